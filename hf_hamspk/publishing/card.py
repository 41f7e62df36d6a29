"""Model cards, rendered from the facts of a model by huggingface_hub's card classes and a Jinja template."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..configuration_hamspk import ENCODERS
from .about import About, TrialList
from .facts import CardFacts
from .licences import OTHER, dropped_conditions, hub_licence, weights_licence
from .tables import (
    MISSING,
    card_group_rows,
    cell,
    describe_scores,
    evaluated_lists,
    group_head,
    measured,
    point_flaws,
    point_rows,
    point_rows_of_lists,
    result_head,
    result_notes,
    result_rows,
    sweep_rows,
)

TEMPLATE = Path(__file__).with_name("card_template.md.jinja")
EVALUATION_FOLDER = ".eval_results"
# The Hub has no task for speaker verification; this one includes speaker identification.
PIPELINE_TAG = "audio-classification"
TAGS = ("speaker-verification", "speaker-recognition", "speaker-embedding", "ham-softmax", "hyperbolic")
# Number of decimals in the metadata, for the EER in per cent and for detection costs.
EER_DECIMALS, COST_DECIMALS = 2, 3
_SIMILARITIES = {"cosine": "cosine", "hyperbolic": "negative distance in the Poincaré ball"}
# With the released projection, `c` is not a curvature.
_SETTINGS = {"margin": "margin", "scale": "scale", "curvature": "c"}


def render_card(facts: CardFacts) -> str:
    """Render the text of a model's README.md; the same facts give the same text.

    Raises:
        ValueError: two trial lists have the same description.
    """
    card = ModelCard.from_template(
        card_metadata(facts),
        template_path=str(TEMPLATE),
        facts=facts,
        description=_description(facts),
        model_rows=_model_rows(facts),
        data_rows=_data_rows(facts.about),
        licence_note=_licence_note(facts),
        recipe=""
        if facts.recipe is None
        else yaml.safe_dump(facts.recipe, sort_keys=False, allow_unicode=True).strip(),
        **_measurements(facts),
    )
    return str(card).rstrip() + "\n"


def _measurements(facts: CardFacts) -> dict[str, Any]:
    lists = evaluated_lists(facts.evaluation)
    names = {name: _list_title(name, one) for name, one in facts.about.trial_lists.items()}
    notes = [
        f"{names[name]}: {one.note}" for name, one in facts.about.trial_lists.items() if one.note and name in lists
    ]
    return {
        "result_head": result_head(lists),
        "result_rows": result_rows(lists, names),
        "notes": [*result_notes(facts.evaluation), *notes],
        "group_head": group_head(lists),
        "group_rows": card_group_rows(lists),
        "sweep_rows": sweep_rows(facts.evaluation),
        "point_rows": point_rows(facts.verification),
        "point_flaws": point_flaws(facts.verification),
        "calibrated_on": _calibrated_on(facts.verification),
        "list_point_rows": point_rows_of_lists(lists),
        "speed_rows": [[cell(key.replace("_", " ")), cell(value)] for key, value in facts.about.speed.items()],
    }


def card_metadata(facts: CardFacts) -> ModelCardData:
    """Return the metadata of a card, for its YAML header.

    Raises:
        ValueError: two trial lists have the same description.
    """
    licence = chosen_licence(facts)
    other = licence == OTHER
    results = evaluation_results(facts)
    data = [one.dataset for one in facts.about.training_data if one.dataset is not None]
    return ModelCardData(
        language=facts.about.languages if facts.about.languages else None,
        license=licence,
        license_name="see-license-file" if other else None,
        license_link=(facts.about.licence_link if facts.about.licence_link is not None else "LICENSE")
        if other
        else None,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(TAGS),
        datasets=list(dict.fromkeys(data)) if data else None,
        base_model=_base_model(facts),
        metrics=sorted({result.metric_type for result in results}) if results else None,
        eval_results=results if results else None,
        model_name=facts.title if results else None,
    )


def evaluation_results(facts: CardFacts) -> list[EvalResult]:
    """Return the entries of `model-index`: EER in per cent and minDCF of the raw scores on each trial list.

    The Hub groups the entries by task, data set, configuration, split and revision, and shows each group under the
    name of its first entry. Therefore each trial list needs a configuration with a different name.

    Raises:
        ValueError: two trial lists have the same description.
    """
    results, seen = [], {}
    for name, values in evaluated_lists(facts.evaluation).items():
        one = facts.about.trial_lists.get(name, TrialList(name=name))
        config = name if one.config is None else one.config
        data: dict[str, Any] = {
            "task_type": PIPELINE_TAG,
            "task_name": "Speaker Verification",
            "dataset_type": one.name.lower().replace(" ", "-") if one.dataset is None else one.dataset,
            "dataset_name": one.name,
            "dataset_config": config,
        }
        key = (data["dataset_type"], config)
        if key in seen:
            raise ValueError(
                f"The trial lists {seen[key]!r} and {name!r} are both described as {one.name}, {config}, so the Hub "
                "would show only one of them. Give each a different `config` in trial_lists."
            )
        seen[key] = name
        if values.get("eer") is not None:
            value = round(100 * values["eer"], EER_DECIMALS)
            results.append(EvalResult(**data, metric_type="eer", metric_name="EER (%)", metric_value=value))
        for prior, cost in measured(values, "min_dcf").items():
            if cost is not None:
                label, value = f"minDCF (p_target = {prior})", round(cost, COST_DECIMALS)
                results.append(
                    EvalResult(
                        **data, metric_type="min_dcf", metric_config=prior, metric_name=label, metric_value=value
                    )
                )
    return results


def evaluation_files(facts: CardFacts) -> dict[str, str]:
    """Return the paths and contents of the files in `.eval_results`, each with the EER of a benchmark in per cent."""
    files = {}
    for name, values in evaluated_lists(facts.evaluation).items():
        one = facts.about.trial_lists.get(name)
        if one is None or one.dataset is None or values.get("eer") is None:
            continue
        scores = describe_scores(values)
        entry = EvalResultEntry(
            dataset_id=one.dataset,
            task_id="default" if one.task is None else one.task,
            dataset_revision=one.revision,
            value=round(100 * values["eer"], EER_DECIMALS),
            notes=f"EER in %, smaller is better; {_list_title(name, one)}, {values.get('trials')} trials; {scores}",
        )
        path = f"{EVALUATION_FOLDER}/{''.join(c if c.isalnum() or c in '-_.' else '-' for c in name)}.yaml"
        files[path] = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
    return files


def chosen_licence(facts: CardFacts) -> str | None:
    """Return the identifier of the weights' licence: the stated licence, or one that keeps all conditions.

    These are the conditions of the licences of the training data and, for a converted model, of the original weights.
    """
    stated = facts.about.licence
    return weights_licence(given_licences(facts)) if stated is None else hub_licence(stated)


def given_licences(facts: CardFacts) -> list[str]:
    """Return the known licences of the training data and of the weights that were converted."""
    source = facts.config.get("source_licence")
    return [*facts.about.data_licences(), *([hub_licence(source)] if isinstance(source, str) else [])]


def _list_title(name: str, one: TrialList) -> str:
    return f"{one.name}{'' if one.config is None else f' {one.config}'} (`{name}`)"


def _base_model(facts: CardFacts) -> str | None:
    if facts.about.base_model is not None or facts.recipe is None:
        return facts.about.base_model
    starts = (facts.recipe.get(key) for key in ("backbone", "initial_model"))
    return next((start for start in starts if isinstance(start, str) and start.count("/") == 1), None)


def _description(facts: CardFacts) -> str:
    config = facts.config
    head = str(config.get("head", "")).upper()
    loss = {"HAM": "HAM-Softmax", "": "a softmax"}.get(head, f"the `{config.get('head')}` head")
    values = {name: config.get(key) for key, name in _SETTINGS.items()}
    settings = [f"{name} = {value:g}" for name, value in values.items() if isinstance(value, int | float)]
    source, start = config.get("converted_from"), ""
    if isinstance(source, str):
        start = f"converted from the published weights of {source}"
        if facts.recipe is None:
            return f"Speaker embeddings from the waveform: {_encoder(facts)}, {start}."
        start += ", then "
    trained = f"trained with {loss}" + (f" ({', '.join(settings)})" if settings else "")
    return f"Speaker embeddings from the waveform: {_encoder(facts)}, {start}{trained}."


def _encoder(facts: CardFacts) -> str:
    config, backbone = facts.config, facts.config.get("backbone_config")
    start = None if facts.recipe is None else facts.recipe.get("backbone")
    if config.get("backbone") in ("campplus", "resnet"):
        name = "CAM++" if config["backbone"] == "campplus" else f"ResNet{config.get('resnet_depth', '')}"
        return f"a {name} encoder with {config.get('pooling', 'its')} pooling"
    if (start is not None and start not in ENCODERS) or isinstance(backbone, dict):
        name = start if start is not None else measured(config, "backbone_config").get("model_type")
        return f"a `{name}` encoder with {config.get('pooling', 'its')} pooling"
    channels = config.get("ecapa_channels")
    return "an ECAPA-TDNN" if channels is None else f"an ECAPA-TDNN of {channels} channels"


def _model_rows(facts: CardFacts) -> list[list[str]]:
    config, rows = facts.config, []
    for label, key, unit in (("Input", "sampling_rate", " Hz, mono"), ("Embedding", "embedding_size", " dimensions")):
        if key in config:
            rows.append([label, f"{config[key]}{unit}"])
    if "similarity" in config:
        rows.append(["Score", _SIMILARITIES.get(config["similarity"], str(config["similarity"]))])
    if facts.weights is not None:
        numbers, size = facts.weights["numbers"], facts.weights["bytes"]
        rows.append(["Size", f"{numbers} values without the training head; {size} bytes of safetensors with it"])
    licence = chosen_licence(facts)
    rows.append(["Licence of the weights", "not stated" if licence is None else licence])
    if facts.overlap_detector is not None:
        licence = facts.overlap_detector.get("licence")
        origin = f"{facts.overlap_detector.get('origin')} (licence: {'not stated' if licence is None else licence})"
        rows.append(["Recordings in which two people speak at once", f"a warning, by the network of {origin}"])
    return rows


def _data_rows(about: About) -> list[list[str]]:
    rows = []
    for data in about.training_data:
        name = f"[{data.name}]({data.url})" if data.url is not None else data.name
        if data.note is not None:
            name += f": {data.note}"
        numbers = ["not stated" if n is None else f"{n}" for n in (data.speakers, data.utterances, data.hours)]
        rows.append([cell(name), *numbers, "not stated" if data.licence is None else cell(data.licence)])
    return rows


def _licence_note(facts: CardFacts) -> str:
    licence, of_data, about = chosen_licence(facts), given_licences(facts), facts.about
    source = facts.config.get("source_licence")
    if licence is None:
        return "Licence of the weights: not stated. Ask before you use them."
    if about.licence is None and source is not None and not about.data_licences():
        return f"The weights are under `{licence}`, the licence of the weights that were converted."
    if about.licence is None and source is not None:
        return (
            f"The weights are under `{licence}`, which keeps the conditions of the licences of the training data and "
            "of the weights that were converted."
        )
    if about.licence is None:
        return f"The weights are under `{licence}`, which keeps the conditions of the licences of the training data."
    dropped = dropped_conditions(licence, of_data)
    if dropped:
        others = "" if source is None else " and of the converted weights"
        return (
            f"The weights are under `{licence}`, as stated by their publisher. The licences of the training data"
            f"{others} have further conditions: {'; '.join(dropped)}."
        )
    return f"The weights are under `{licence}`."


def _calibrated_on(verification: dict[str, Any] | None) -> str:
    if verification is None:
        return ""
    parts = [
        f"{verification[key]} {word}"
        for key, word in (("trials", "trials"), ("speakers", "speakers"))
        if verification.get(key)
    ]
    normalisation = verification.get("normalisation")
    if normalisation not in (None, "none"):
        parts.append(f"{normalisation}-norm")
    audio = verification.get("audio")
    return cell(", ".join(parts) + (f"; {audio}" if audio else "")) if parts or audio else MISSING
