"""Cards: the same bytes, valid metadata, no number that is not in the facts, and what is missing is said."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from card_numbers import numbers, of_facts, of_template
from huggingface_hub import ModelCard, parse_eval_result_entries
from tiny_models import tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.evaluation.evaluating import EvaluationSettings, evaluate_list
from hf_hamspk.evaluation.results import EvaluationRecord
from hf_hamspk.evaluation.trials import Trials
from hf_hamspk.evaluation.verification import EmbeddedFiles
from hf_hamspk.publishing.about import About, TrainingData, TrialList
from hf_hamspk.publishing.card import card_metadata, evaluation_files, evaluation_results, render_card
from hf_hamspk.publishing.facts import CardFacts, facts_of_recipe, gather_facts, read_public_recipe

ABOUT = About(
    title="Small | model",
    summary="A summary.",
    languages=["en", "zh"],
    training_data=[
        TrainingData(
            "Corpus A", "CC BY-SA 4.0", "owner/corpus-a", "https://example.org/a", 125, 1625, 1.34, "half read"
        ),
        TrainingData("Corpus B", "Apache-2.0"),
    ],
    trial_lists={
        "test-o": TrialList("Benchmark", "O", "owner/benchmark", "verification", note="The clean list."),
        "test-h": TrialList("Benchmark", "H", "owner/benchmark"),
    },
    limitations=["Telephone speech was not tried."],
    speed={"device": "CPU, 2 threads", "milliseconds for an utterance of 5 s": 41.3},
)


@pytest.fixture(scope="module")
def facts(trained) -> CardFacts:
    return gather_facts(trained[0], "tester/tiny", trained[1], ABOUT)


@pytest.fixture(scope="module")
def bare(trained) -> CardFacts:
    return gather_facts(trained[0], "tester/tiny")


def section(card: str, title: str) -> str:
    return re.search(rf"^##+ {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)[1]


def test_the_same_facts_give_the_same_bytes(facts):
    card = render_card(facts)
    again = CardFacts.from_json(facts.to_json(), "facts")
    assert again == facts and again.to_json() == facts.to_json()
    assert render_card(again) == card
    assert card.startswith("---\n") and card.endswith(".\n") and "\n\n\n\n" not in card


@pytest.mark.parametrize("which", ["facts", "bare"])
def test_every_number_is_in_the_facts(which, request):
    facts = request.getfixturevalue(which)
    strange = numbers(render_card(facts)) - of_facts(json.loads(facts.to_json())) - of_template()
    assert strange == set()


def test_a_number_that_is_not_in_the_facts_would_be_seen(facts):
    assert numbers("EER 8.68") - of_facts(json.loads(facts.to_json())) - of_template() == {"8.68"}


def test_results_stand_with_their_intervals(facts):
    results = section(render_card(facts), "Results")
    head, _, first, decided, second, _ = [line for line in results.splitlines() if line.startswith("|")][:6]
    columns = "trial list | scores | trials | targets | speakers | EER % | minDCF(0.01) | minDCF(0.05)"
    assert head == f"| {columns} | actDCF(0.01) | actDCF(0.05) | Cllr | minCllr |"
    title, none = "Benchmark O (`test-o`)", "not measured"
    numbers = "5974 | 481 | 78 | 8.67 [7.41, 9.93] | 0.616 | 0.518 | - | - | - | 0.312"
    assert first == f"| {title} | cosine | {numbers} |"
    numbers = f"5890 | 470 | 78 | 9.01 | {none} | {none} | 0.701 | 0.550 | 0.322 | 0.301"
    assert decided == f"| {title} | log-likelihood ratio, AS-norm | {numbers} |"
    assert "test-o: 84 trials (1.41 %) have no decision, because a recording has too little speech." in results
    assert "| 11.86 [" in second
    assert "95 % confidence intervals from 1000 resamplings of the speakers" in results
    assert "test-o: 3 trials were left out, because a file could not be used." in results
    assert "test-o: groups without target trials or without impostor trials are left out: other." in results
    assert "Measured with hf_hamspk 0.1.0, torch 2.14.1, commit 0123456789ab, protocol whole." in results
    assert "The clean list." in results
    assert f"| test-o | female | 2103 | 190 | {none} | 9.11 [7.13, 11.09] | 0.640 | {none} |" in results


def test_thresholds_stand_with_their_errors(facts):
    points = section(render_card(facts), "Operating points")
    assert "| balanced | 0.5 | 1 : 1 | 0.000 | not measured | not measured |" in points
    assert "| strict | 0.01 | 1 : 1 | 4.595 |" in points
    assert "| screening | 0.5 | 10 : 1 | -2.303 |" in points
    assert "(3680 trials, 46 speakers; read speech, 16 kHz)" in points
    assert "| test-o | balanced | 9.11 [8.01, 10.22] | 8.22 [7.11, 9.33] |" in points


def test_a_point_that_accepts_nobody_or_everybody_is_marked(facts):
    assert "Do not use" not in render_card(facts)
    points = [
        {"name": "never", "prior": 0.1, "threshold": 2.2, "miss_rate": 1.0, "false_alarm_rate": 0.0},
        {"name": "always", "prior": 0.9, "threshold": -2.2, "miss_rate": 0.0, "false_alarm_rate": 1.0},
    ]
    card = render_card(replace(facts, verification=facts.verification | {"operating_points": points}))
    marked = section(card, "Operating points")
    assert "**Do not use `never`:** it missed all target trials." in marked
    assert "**Do not use `always`:** it accepted all impostor trials." in marked
    assert "\n\n\n\n" not in card


def test_training_data_and_licence(facts):
    card = render_card(facts)
    data = section(card, "Training data")
    assert "| [Corpus A](https://example.org/a): half read | 125 | 1625 | 1.34 | CC BY-SA 4.0 |" in data
    assert "| Corpus B | not stated | not stated | not stated | Apache-2.0 |" in data
    assert "The weights are under `cc-by-sa-4.0`, which keeps the conditions" in data
    chosen = render_card(replace(facts, about=replace(ABOUT, licence="apache-2.0")))
    assert (
        "as stated by their publisher. The licences of the training data have further conditions: attribution; the same"
        in chosen
    )
    assert yaml.safe_load(chosen.split("---\n")[1])["license"] == "apache-2.0"


def test_what_is_missing_is_said(bare):
    card = render_card(replace(bare, verification=None, cohort=None))
    for title in ("Results", "Speed"):
        assert section(card, title).strip().startswith("Not measured.")
    assert "By group of speakers: not measured." in card
    assert "the model is not calibrated. It gives scores but no decisions" in section(card, "Operating points")
    assert section(card, "Training data").strip().startswith("Not stated.\n")
    assert section(card, "Training recipe").strip() == "Not stated."
    assert "Licence of the weights: not stated. Ask before you use them." in card


@pytest.mark.parametrize("word", ["Consent", "biometric", "Spoofing is not detected", "Bias", "Telephone speech"])
def test_use_and_misuse_are_stated(facts, word):
    assert word in section(render_card(facts), "Intended use, and misuse")


def test_the_metadata_reads_back_whole(facts):
    """The Hub groups results by data set and configuration: none of ours may fall out."""
    data = ModelCard(render_card(facts)).data
    expected = card_metadata(facts)
    assert data.to_dict() == expected.to_dict()
    assert data.pipeline_tag == "audio-classification" and data.library_name == "transformers"
    assert {"speaker-verification", "speaker-embedding"} <= set(data.tags)
    assert data.datasets == ["owner/corpus-a"] and data.language == ["en", "zh"] and data.license == "cc-by-sa-4.0"
    results = evaluation_results(facts)
    assert len(results) == 6 and list(data.eval_results) == results
    assert [r["dataset"]["config"] for r in data.to_dict()["model-index"][0]["results"]] == ["O", "H"]
    values = {(r.dataset_config, r.metric_type, r.metric_config): r.metric_value for r in data.eval_results}
    assert values["O", "eer", None] == 8.67 and values["H", "eer", None] == 11.86
    assert values["O", "min_dcf", "0.01"] == 0.616 and values["O", "min_dcf", "0.05"] == 0.518


def test_lists_without_a_description_are_configurations_too(facts):
    results = evaluation_results(replace(facts, about=About()))
    assert {(r.dataset_name, r.dataset_config) for r in results} == {("test-o", "test-o"), ("test-h", "test-h")}


def test_two_lists_of_one_configuration_are_refused(facts):
    same = {name: TrialList("Benchmark", "O") for name in ("test-o", "test-h")}
    with pytest.raises(
        ValueError,
        match=r"'test-o' and 'test-h' are both described as Benchmark, O, so the Hub would show only one",
    ):
        render_card(replace(facts, about=replace(ABOUT, trial_lists=same)))


def test_evaluation_files_parse_with_the_client(facts):
    files = evaluation_files(facts)
    assert set(files) == {".eval_results/test-o.yaml", ".eval_results/test-h.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/test-o.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("owner/benchmark", "verification", 8.67)
    assert entry.notes.startswith("EER in %, smaller is better; Benchmark O (`test-o`), 5974 trials")
    assert entry.notes.endswith("; cosine")
    assert evaluation_files(replace(facts, about=About())) == {}
    assert evaluation_files(replace(facts, evaluation=None)) == {}


def test_the_record_of_an_evaluation_as_it_is(bare):
    """What `hamspk evaluate` writes now, with every number that the card needs."""
    torch.manual_seed(3)
    names = [f"s{speaker:02}/u{utterance}.wav" for speaker in range(12) for utterance in range(3)]
    voices = torch.randn(12, 24).repeat_interleave(3, 0)
    embedded = EmbeddedFiles(dict(zip(names, (voices + torch.randn(36, 24))[:, None], strict=True)))
    pairs = list(itertools.combinations(names, 2))
    labels = np.array([left[:3] == right[:3] for left, right in pairs], dtype=int)
    trials = Trials(labels, *zip(*pairs, strict=True))
    model, settings = HamSpkModel(tiny_config()), EvaluationSettings(replicates=100, progress=False)
    record = EvaluationRecord.of_model(model, "tiny")
    values = record.lists["test-o"] = evaluate_list(model, trials, embedded, settings).record
    facts = replace(bare, evaluation=json.loads(json.dumps(record.to_dict())))
    card = render_card(facts)
    assert f"| {100 * values['eer']:.2f} [{100 * values['eer_interval'][0]:.2f}, " in card
    assert "| test-o | cosine | 630 | 36 | 12 |" in card and "from 100 resamplings" in card
    assert numbers(card) - of_facts(json.loads(facts.to_json())) - of_template() == set()


def test_the_evaluation_of_version_0_1_0_is_shown(model_folder, evaluation_of_0_1_0):
    (model_folder / "evaluation.json").write_text(json.dumps(evaluation_of_0_1_0))
    results = section(render_card(gather_facts(model_folder)), "Results")
    _, _, raw, first = [line for line in results.splitlines() if line.startswith("|")][:4]
    none = "not measured"
    assert raw == f"| test-o | cosine | 5974 | 481 | {none} | 8.67" + f" | {none}" * 2 + " | -" * 3 + " | 0.312 |"
    numbers = "5890 | 470 | 78 | 9.01 | 0.616 | 0.518 | 0.701 | 0.550 | 0.322 | 0.301"
    assert first == f"| test-o | log-likelihood ratio, AS-norm | {numbers} |"
    assert f"| test-o | female | 2103 | 190 | {none} | 9.11 [7.13, 11.09] | 0.640 | {none} |" in results
    assert "(hf_hamspk 0.1.0" not in results and "Measured with hf_hamspk 0.1.0, torch 2.14.1" in results


def test_decisions_of_another_calibration_are_not_shown(model_folder, trained):
    record = json.loads((trained[1] / "evaluation.json").read_text())
    for values in record["lists"].values():
        values["decisions"] = values["decisions"] | {"calibration": "0" * 64}
    (model_folder / "evaluation.json").write_text(json.dumps(record))
    results = section(render_card(gather_facts(model_folder)), "Results")
    assert "log-likelihood" not in results and "| cosine | 5974 |" in results
    assert "the decisions are left out, because they were measured with a calibration that is not" in results


def test_recording_conditions_are_shown(facts):
    conditions = section(render_card(facts), "By recording condition")
    assert "| test-o | duration: 1 s | 5974 | 15.72 |" in conditions


def test_an_unknown_licence_links_to_its_file(facts):
    data = card_metadata(replace(facts, about=About(training_data=[TrainingData("A", "my own")])))
    assert (data.license, data.license_name, data.license_link) == ("other", "see-license-file", "LICENSE")


@pytest.mark.parametrize(
    "lists", [{}, {"a": {}}, {"a": {"eer": None, "min_dcf": None, "groups": None}}, {"a": {"eer": 0.1}}]
)
def test_an_evaluation_with_little_in_it(bare, lists):
    card = render_card(replace(bare, evaluation={"lists": lists}))
    assert "## Results" in card and "None" not in card
    assert render_card(replace(bare, evaluation={}))


def test_a_recipe_that_nobody_ran_has_no_numbers(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train_data: data/a.csv\noutput_dir: runs/mine\nhead: ham\nepochs: 7\n")
    facts = facts_of_recipe(recipe)
    card = render_card(facts)
    assert facts.name == "runs/mine/final" and not facts.published
    assert "There are no weights for this recipe" in card and "trained with HAM-Softmax" in card
    assert "train_data: a.csv" in card and "model-index" not in card
    recipe.write_text("train_data: a.csv\nhead: hem\n")
    with pytest.raises(ValueError, match="head"):
        facts_of_recipe(recipe)


def test_a_backbone_on_the_hub_is_the_base_model(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("backbone: microsoft/wavlm-base-plus\npooling: mhfa\nhead: ham\n")
    facts = facts_of_recipe(recipe)
    assert card_metadata(facts).base_model == "microsoft/wavlm-base-plus"
    assert "a `microsoft/wavlm-base-plus` encoder with mhfa pooling" in render_card(facts)
    recipe.write_text(f"backbone: {tmp_path}/wavlm\n")
    assert read_public_recipe(recipe) == {"backbone": "wavlm"}


@pytest.mark.parametrize("text", ["[]", "{", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "name": "a", "nam": 1}'])
def test_facts_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"card\.json"):
        CardFacts.from_json(text, "card.json")


def test_a_converted_model_states_its_origin_and_keeps_its_licence(bare):
    """A model that was converted was not trained with the head that its configuration names."""
    origin = {"converted_from": "3D-Speaker CAM++ (a/b)", "source_licence": "CC-BY-NC-4.0", "backbone": "campplus"}
    converted = replace(bare, config=bare.config | origin | {"pooling": "statistics"}, recipe=None, about=About())
    card = render_card(converted)
    sentence = (
        "a CAM++ encoder with statistics pooling, converted from the published weights of 3D-Speaker CAM++ (a/b)."
    )
    assert sentence in card and "trained with" not in card.split("## Use")[0]
    assert card_metadata(converted).license == "cc-by-nc-4.0"
    assert "The weights are under `cc-by-nc-4.0`, the licence of the weights that were converted." in card
    tuned = replace(converted, recipe={"head": "ham"}, about=About(training_data=[TrainingData("A", "CC BY-SA 4.0")]))
    assert "of 3D-Speaker CAM++ (a/b), then trained with HAM-Softmax" in render_card(tuned)
    assert card_metadata(tuned).license == "other"
    stated = replace(tuned, about=About(licence="mit"))
    assert "and of the converted weights have further conditions: attribution" in render_card(stated)
    resnet = replace(converted, config=bare.config | origin | {"backbone": "resnet", "resnet_depth": 34})
    assert "a ResNet34 encoder with" in render_card(resnet)
