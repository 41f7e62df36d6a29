"""The record of an evaluation, raw and calibrated, and the report that is made from it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.audio_hamspk import SpeechMeasures
from hf_hamspk.calibration_hamspk import Calibration, Cohort, OperatingPoint, Quality, Scorer
from hf_hamspk.evaluation.calibration_metrics import actual_detection_cost, error_rates, log_likelihood_ratio_cost
from hf_hamspk.evaluation.evaluating import EvaluationSettings, evaluate_list, list_digest, list_names
from hf_hamspk.evaluation.metrics import equal_error_rate, minimum_detection_cost
from hf_hamspk.evaluation.report import comparison_table, format_report, write_html
from hf_hamspk.evaluation.results import EVALUATION_FILE, EvaluationRecord
from hf_hamspk.evaluation.trials import Trials
from hf_hamspk.evaluation.verification import EmbeddedFiles, score_ratios, score_trials
from hf_hamspk.folders.recognising import GENERATOR

SPEAKERS, UTTERANCES, SIZE = 12, 3, 24
QUICK = EvaluationSettings(replicates=100, progress=False)
POINTS = (OperatingPoint("even", 0.5, miss_rate=0.1, false_alarm_rate=0.2), OperatingPoint("rare", 0.1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return settle(HamSpkModel(tiny_config()))


@pytest.fixture(autouse=True)
def uncalibrated(model):
    model.calibration = model.cohort = None


@pytest.fixture(scope="module")
def embedded():
    """Three utterances of 12 speakers, the last one with little speech."""
    rng = np.random.default_rng(0)
    result = EmbeddedFiles(failures={"s00/broken.wav": "holds no sound"})
    for speaker in range(SPEAKERS):
        middle = rng.normal(size=SIZE)
        for utterance in range(UTTERANCES):
            name = f"s{speaker:02}/{utterance}.wav"
            result.embeddings[name] = torch.from_numpy(middle + 1.2 * rng.normal(size=SIZE)).float()[None]
            result.measures[name] = SpeechMeasures(4.0, rng.uniform(1.5, 4.0), rng.uniform(5, 30), 0.0, -20.0)
    result.measures[name] = replace(result.measures[name], speech=0.4)
    return result


@pytest.fixture(scope="module")
def trials(embedded):
    names = [*embedded.embeddings, "s00/broken.wav"]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return Trials(np.array([a[:3] == b[:3] for a, b in pairs], int), *zip(*pairs, strict=True))


@pytest.fixture
def calibrated(model):
    """The model with a calibration of AS-normalised scores and the recordings' quality, and its cohort."""
    rng = np.random.default_rng(1)
    model.cohort = Cohort(torch.from_numpy(rng.normal(size=(30, SIZE))).float(), model.fingerprint())
    model.calibration = Calibration(
        fingerprint=model.fingerprint(),
        similarity="cosine",
        offset=-4.0,
        weights={"score": 1.5, "log_speech_min": 0.5, "snr_max": 0.01, "magnitude_min": 0.02},
        operating_points=POINTS,
        normalisation="as",
        top=10,
        cohort=model.cohort.checksum,
    )
    return model


def test_raw_numbers_are_those_of_the_metrics(model, trials, embedded):
    result = evaluate_list(model, trials, embedded, QUICK)
    record, scores, labels = result.record, result.scores, result.trials.labels
    assert result.ratios is None and result.decided is None and result.speakers is not None
    assert result.eer == record["eer"] and record["digest"] == list_digest(trials)
    assert (record["trials"], record["skipped"], record["speakers"]) == (630, 36, 12)
    assert record["unusable_files"] == {"s00/broken.wav": "holds no sound"}
    assert (record["scores"], record["protocol"], record["mean_subtracted"]) == ("cosine", "whole", False)
    assert record["eer"] == equal_error_rate(scores, labels).eer
    assert record["eer_interval"][0] <= record["eer"] <= record["eer_interval"][1]
    assert record["min_dcf"] == {f"{p:g}": minimum_detection_cost(scores, labels, p).cost for p in (0.01, 0.05)}
    assert record["min_dcf_interval"].keys() == record["min_dcf"].keys()
    assert (record["confidence"], record["replicates"], record["interval_note"]) == (0.95, 100, None)
    for name in ("cllr", "cllr_interval", "act_dcf", "act_dcf_interval", "operating_points", "decisions"):
        assert name not in record
    histogram = record["histogram"]
    assert (sum(histogram["targets"]), sum(histogram["impostors"])) == (int(labels.sum()), int((1 - labels).sum()))


def test_ratios_are_those_of_single_pairs(calibrated, trials, embedded):
    usable = trials.without(["s00/broken.wav"])
    scores = score_trials(calibrated, usable, embedded)
    ratios = score_ratios(calibrated, usable, embedded, scores, calibrated.calibration, calibrated.cohort)
    scorer = Scorer(calibrated, calibrated.calibration, calibrated.cohort)
    for row in (0, 1, 77, 629):
        sides, qualities = [], []
        for name in (usable.enrolment[row], usable.test[row]):
            sides.append(embedded.embeddings[name])
            size = calibrated.magnitude(embedded.embeddings[name]).item()
            qualities.append([Quality(embedded.measures[name].speech, embedded.measures[name].snr_db, size)])
        assert ratios[row] == pytest.approx(scorer.ratios(*sides, *qualities)[0], abs=1e-4)
    unmeasured = EmbeddedFiles(embedded.embeddings)
    with pytest.raises(
        ValueError, match=re.escape("uses quality measures, but the speech in 36 files was not measured")
    ):
        score_ratios(calibrated, usable, unmeasured, scores, calibrated.calibration, calibrated.cohort)
    with pytest.raises(ValueError, match="no cohort was given"):
        score_ratios(calibrated, usable, embedded, scores, calibrated.calibration, None)


def test_calibrated_numbers_are_those_of_the_ratios(calibrated, trials, embedded):
    result = evaluate_list(calibrated, trials, embedded, QUICK)
    record, labels = result.record["decisions"], result.decided.labels
    assert result.ratios is not None
    assert (record["trials"], record["without_decision"], len(result.decided)) == (595, 35, 595)
    assert record["share_without_decision"] == 35 / 630
    assert list(record["short_files"].values()) == ["not enough speech: 0.40 s, at least 1 s are needed"]
    assert (record["scores"], record["normalisation"]) == ("log-likelihood ratio", "as")
    assert record["calibration"] == calibrated.calibration.to_dict()["checksum"]
    assert record["eer"] == equal_error_rate(result.ratios, labels).eer
    assert record["cllr"] == log_likelihood_ratio_cost(result.ratios, labels) >= record["min_cllr"]
    assert record["act_dcf"]["0.05"] == actual_detection_cost(result.ratios, labels, 0.05).cost
    assert record["act_dcf"]["0.05"] >= record["min_dcf"]["0.05"]
    even = record["operating_points"]["even"]
    assert (even["miss_rate"], even["false_alarm_rate"]) == error_rates(result.ratios, labels, 0.0)
    assert (even["nominal_miss_rate"], even["nominal_false_alarm_rate"]) == (0.1, 0.2)
    assert even["miss_interval"][0] <= even["miss_rate"] <= even["miss_interval"][1]
    assert sum(record["histogram"]["targets"]) == record["targets"]
    for other in (
        replace(QUICK, calibrated=False),
        replace(QUICK, protocol="paper"),
        replace(QUICK, subtract_mean=True),
    ):
        assert "decisions" not in evaluate_list(calibrated, trials, embedded, other).record


def test_calibrating_changes_no_raw_number(calibrated, trials, embedded):
    """Raw scores are over all trials, those with too little speech for a decision among them."""
    with_decisions = dict(evaluate_list(calibrated, trials, embedded, QUICK).record)
    without = evaluate_list(calibrated, trials, embedded, replace(QUICK, calibrated=False)).record
    assert with_decisions.pop("decisions")["trials"] == 595
    assert with_decisions == without and without["trials"] == 630


def test_where_nothing_can_be_decided_the_reason_is_noted(calibrated, trials, embedded):
    calibrated.calibration = replace(calibrated.calibration, minimum_speech=9.0)
    result = evaluate_list(calibrated, trials, embedded, QUICK)
    assert result.ratios is None and result.record["trials"] == 630
    assert result.record["decisions"]["without_decision"] == 630
    assert "do not include both target and impostor trials" in result.record["decisions"]["note"]
    text = format_report(record_of(calibrated, {"l": result}))
    assert "l: decisions were not measured: the 0 trials with enough speech" in text


def record_of(model, results, name="owner/name") -> EvaluationRecord:
    record = EvaluationRecord.of_model(model, name)
    record.lists = {key: result.record for key, result in results.items()}
    return record


def test_the_mean_of_the_cohort_can_be_subtracted(calibrated, trials, embedded):
    usable = trials.without(["s00/broken.wav"])
    subtracted = evaluate_list(calibrated, trials, embedded, replace(QUICK, replicates=0, subtract_mean=True))
    mean = calibrated.cohort.embeddings.mean(0)
    np.testing.assert_array_equal(subtracted.scores, score_trials(calibrated, usable, embedded, mean))
    assert subtracted.record["interval_note"] == "none were requested"
    calibrated.cohort = None
    with pytest.raises(ValueError, match=r"this model has no cohort\. Add one with `hamspk calibrate --cohort`"):
        evaluate_list(calibrated, trials, embedded, replace(QUICK, subtract_mean=True))


def test_groups_have_their_own_numbers(model, trials, embedded):
    metadata = {name: {"gender": "f" if name < "s08" else "m", "one": name} for name in trials.files}
    settings = replace(QUICK, metadata=metadata, group_by=["gender", "one"])
    result = evaluate_list(model, trials, embedded, settings)
    assert list(result.record["groups"]) == ["gender f", "gender m"]
    mask = np.array([a < "s08" and b < "s08" for a, b in zip(result.trials.enrolment, result.trials.test, strict=True)])
    women = result.record["groups"]["gender f"]
    assert women["eer"] == equal_error_rate(result.scores[mask], result.trials.labels[mask]).eer
    assert (women["trials"], women["speakers"], women["eer_interval"]) == (int(mask.sum()), 8, None)
    assert women["interval_note"] == "8 speakers are too few to resample; 10 are needed"
    assert result.record["groups_left_out"] == {}


def test_speakers_come_from_names_or_a_table(model, embedded, trials):
    flat = {name: name.replace("/", "-x").replace("s", "") for name in trials.files}
    renamed = Trials(trials.labels, *([flat[n][::-1] for n in side] for side in (trials.enrolment, trials.test)))
    known = EmbeddedFiles(
        {flat[n][::-1]: rows for n, rows in embedded.embeddings.items()}, {flat["s00/broken.wav"][::-1]: "x"}
    )
    result = evaluate_list(model, renamed, known, QUICK)
    assert result.record["eer_interval"] is None and result.record["speakers"] is None
    assert "cannot be derived from the file names" in result.record["interval_note"]
    metadata = {name: {"speaker_id": name.rpartition("x")[2]} for name in renamed.files}
    told = evaluate_list(model, renamed, known, replace(QUICK, metadata=metadata))
    assert told.record["eer_interval"] is not None
    everybody = {name: {"speaker_id": "all"} for name in metadata}
    with pytest.raises(ValueError, match="labels contradict the table of speakers"):
        evaluate_list(model, renamed, known, replace(QUICK, metadata=everybody))


class Checked(HTMLParser):
    """Collects tags, and where they point."""

    def __init__(self):
        super().__init__()
        self.tags, self.targets = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href")]


def test_the_record_is_written_read_and_reported(calibrated, trials, embedded, tmp_path):
    metadata = {name: {"gender": "f" if name < "s06" else "m"} for name in trials.files}
    settings = replace(QUICK, metadata=metadata, group_by=["gender"])
    home = tmp_path / "secret" / "runs" / "final"
    home.mkdir(parents=True)
    record = record_of(calibrated, {"a <list>": evaluate_list(calibrated, trials, embedded, settings)}, home)
    assert record.model["name"] == "runs/final"
    assert record.fingerprint == calibrated.fingerprint()
    assert record.write(tmp_path / "new") == []
    path = tmp_path / "new" / EVALUATION_FILE
    assert EvaluationRecord.read(path) == record
    assert EvaluationRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert str(tmp_path) not in path.read_text()
    text = format_report(record)
    for part in ("a <list>", "log-likelihood ratio, AS-norm", "even", "gender f", "actDCF(0.01)", "brackets are 95 %"):
        assert part in text
    values = record.lists["a <list>"]
    for numbers in (values, values["decisions"]):
        assert f"{100 * numbers['eer']:.2f} [" in text
    assert "35 (5.6 %)" in text and "35 trials get no decision" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())

    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "p.png").write_bytes(b"\x89PNG made up")
    record.plots = {"p.png": "Caption & more", "gone.png": "deleted"}
    page = write_html(record, tmp_path).read_text(encoding="utf-8")
    parser = Checked()
    parser.feed(page)
    assert "script" not in parser.tags and "link" not in parser.tags
    assert [target[:22] for target in parser.targets] == ["data:image/png;base64,"]
    assert "a &lt;list&gt;" in page and "Caption &amp; more" in page
    assert "http" not in page and str(tmp_path) not in page


def test_comparisons_are_shown(model, trials, embedded):
    result = evaluate_list(model, trials, embedded, replace(QUICK, replicates=0))
    record = record_of(model, {"l": result})
    numbers = {"eer": {"this": 0.1, "other": 0.2, "difference": -0.1, "interval": [-0.15, 0.01], "p_value": 0.061}}
    record.lists["l"]["compared"] = {"model": {"name": "someone/other"}, "numbers": numbers}
    assert record.model["name"] == "owner/name"
    expected = ["l", "cosine", "EER %", "10.00", "20.00", "-10.00 [-15.00, 1.00]", "0.061"]
    head = ["trial list", "scores", "number"]
    assert comparison_table(record) == [[*head, "owner/name", "someone/other", "difference", "p"], expected]
    same = {"name": "owner/name", "fingerprint": "0123456789ab"}
    record.lists["l"]["compared"]["model"] = same
    assert comparison_table(record)[0][3:5] == [
        f"owner/name [{record.model['fingerprint'][:8]}]",
        "owner/name [01234567]",
    ]
    record.lists["m"] = record.lists["l"] | {"compared": {"model": {"name": "third"}, "numbers": numbers}}
    assert comparison_table(record)[0][4:] == ["other model", "difference", "p", "compared with"]
    assert [row[-1] for row in comparison_table(record)[1:]] == ["owner/name [01234567]", "third"]
    del record.lists["m"]
    assert "no intervals: none were requested" in format_report(record)


def entry(eer: float, digest: str = "a", **more) -> dict:
    return {"digest": digest, "trials": 10, "targets": 5, "eer": eer} | more


def test_a_record_takes_in_what_is_there_of_the_same_weights(tmp_path):
    model = {"name": "m", "fingerprint": "f"}
    EvaluationRecord(model, {"dev": entry(0.1)}, training={"epochs": 3, "steps": 9}).write(tmp_path)
    points = [{"condition": "1 s", "value": 1.0, "trials": 10, "targets": 5, "eer": 0.3}]
    of_list = {"digest": "a", "conditions": {"duration": points}}
    EvaluationRecord(model, sweeps={"dev": of_list}, plots={"sweep.png": "EER over duration"}).write(tmp_path)
    newer = EvaluationRecord(
        model, {"dev": entry(0.2), "test": entry(0.3)}, {"dev": {"digest": "a", "conditions": {"noise": points}}}
    )
    assert newer.write(tmp_path) == []
    there = EvaluationRecord.read(tmp_path / EVALUATION_FILE)
    assert there == newer
    assert {name: values["eer"] for name, values in there.lists.items()} == {"dev": 0.2, "test": 0.3}
    assert set(there.sweeps["dev"]["conditions"]) == {"duration", "noise"}
    assert there.training == {"epochs": 3, "steps": 9} and there.plots == {"sweep.png": "EER over duration"}
    assert [file.name for file in tmp_path.iterdir()] == [EVALUATION_FILE]
    again = EvaluationRecord(model, {"dev": entry(0.4, "b")}, {"dev": {"digest": "b", "conditions": {"noise": points}}})
    assert again.write(tmp_path) == ["dev: the measurements on another trial list with this name were replaced."]
    assert set(again.sweeps["dev"]["conditions"]) == {"noise"} and again.lists["test"]["eer"] == 0.3


def test_a_record_of_other_weights_is_never_mixed(tmp_path):
    (tmp_path / "plots").mkdir()
    for file in ("det.png", "mine.png"):
        (tmp_path / "plots" / file).write_bytes(f"Software\0{GENERATOR}".encode() if file == "det.png" else b"")
    (tmp_path / "outside.png").write_bytes(b"")
    plots = {"det.png": "DET", "../outside.png": "no plot of ours"}
    EvaluationRecord({"fingerprint": "old"}, {"dev": entry(0.1)}, plots=plots).write(tmp_path)
    newer = EvaluationRecord({"fingerprint": "new"}, {"test": entry(0.2)})
    assert newer.write(tmp_path) == [
        f"{tmp_path / EVALUATION_FILE} was replaced, because it contained measurements of other weights or settings."
    ]
    there = EvaluationRecord.read(tmp_path / EVALUATION_FILE)
    assert list(there.lists) == ["test"] and there.plots == {}
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["mine.png"]
    assert (tmp_path / "outside.png").is_file()
    for strange in ("{", "[1]", '{"thesis": 1}'):
        (tmp_path / EVALUATION_FILE).write_text(strange)
        with pytest.raises(ValueError, match=r"The file was not changed. Choose another folder \(--output\)"):
            newer.write(tmp_path)
        assert (tmp_path / EVALUATION_FILE).read_text() == strange


def test_records_of_version_0_1_0_are_read(tmp_path):
    shared = {"versions": {"torch": "2.11.0"}, "commit": None, "protocol": "whole", "mean_subtracted": False}
    compared = {"eer": {"this": 0.1, "other": 0.2, "difference": -0.1, "interval": [-0.2, 0.0], "p_value": 0.1}}
    of_list = {
        **{"trials": 8, "targets": 4, "skipped": 3, "unusable_files": {"a.wav": "holds no sound"}, "eer": 0.1},
        **{"scores": "log-likelihood ratio", "normalisation": "as", "cllr": 0.4, "groups_left_out": {}},
        **{"groups": {"sex f": {"eer": 0.2}}, "raw": {"scores": "cosine", "trials": 8, "eer": 0.15}},
        **{"compared": compared},
    }
    plain = {"trials": 8, "skipped": 0, "eer": 0.2, "scores": "cosine", "cllr": None, "act_dcf": None}
    old = {"schema": 1, "model": {"fingerprint": "f"}, **shared, "lists": {"calibrated": of_list, "plain": plain}}
    (tmp_path / EVALUATION_FILE).write_text(json.dumps(old | {"compared_with": {"name": "other"}}))
    record = EvaluationRecord.read(tmp_path / EVALUATION_FILE)
    assert record.lists["plain"] == shared | {"trials": 8, "skipped": 0, "eer": 0.2, "scores": "cosine"}
    calibrated = record.lists["calibrated"]
    assert (calibrated["scores"], calibrated["eer"], calibrated["skipped"]) == ("cosine", 0.15, 3)
    decisions = calibrated["decisions"]
    assert (decisions["scores"], decisions["eer"], decisions["cllr"]) == ("log-likelihood ratio", 0.1, 0.4)
    assert decisions["groups"] == {"sex f": {"eer": 0.2}}
    assert calibrated["compared"] == {"model": {"name": "other"}, "numbers": compared}
    assert "log-likelihood ratio, AS-norm" in format_report(record)
    EvaluationRecord({"fingerprint": "f"}, {"new": entry(0.3)}).write(tmp_path)
    assert set(EvaluationRecord.read(tmp_path / EVALUATION_FILE).lists) == {"calibrated", "plain", "new"}


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "evaluation.json"
    with pytest.raises(ValueError, match="File not found: "):
        EvaluationRecord.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        EvaluationRecord.read(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        EvaluationRecord.read(path)
    path.write_text('{"schema": 7}')
    with pytest.raises(ValueError, match="must have schema 1 or 2, got 7"):
        EvaluationRecord.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eer": 1.5}, "dev: eer must be a number between 0 and 1, got 1.5"),
        ({"eer": float("nan")}, "no number 'eer'"),
        ({"trials": -1}, "dev: trials must be a whole number of at least 0, got -1"),
        ({"trials": True}, "dev: trials must be a whole number"),
        ({"eer_interval": [0.2, 0.1]}, r"dev: eer_interval must be \[low, high\]"),
        ({"min_dcf": {"0.01": "low"}}, "0.01: min_dcf must be a number of at least 0, got 'low'"),
        ({"groups": [1]}, "dev: groups must be a JSON object"),
        ({"groups": {"f": {"eer": 2}}}, "dev: groups: f: eer must be a number between 0 and 1"),
        ({"decisions": {"cllr": -0.1}}, "dev: decisions: cllr must be a number of at least 0"),
        ({"histogram": {"edges": [0, 0], "targets": [1], "impostors": [1]}}, "histogram must be increasing edges"),
        ({"scores": 5}, "dev: scores must be text"),
    ],
)
def test_values_of_another_kind_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationRecord.from_dict({"schema": 2, "model": {}, "lists": {"dev": entry(0.1) | change}})


def test_sections_of_another_kind_are_named():
    for section in ("sweeps", "plots", "training"):
        with pytest.raises(ValueError, match=f"The record: {section} must be a JSON object"):
            EvaluationRecord.from_dict({"schema": 2, "model": {}, "lists": {}, section: [1]})
    sweeps = {"dev": {"conditions": {"duration": [{"eer": 7}]}}}
    with pytest.raises(ValueError, match="sweeps: dev: duration: eer must be a number between 0 and 1, got 7"):
        EvaluationRecord.from_dict({"schema": 2, "model": {}, "lists": {}, "sweeps": sweeps})


def test_lists_are_named_by_their_files_and_by_folders_where_these_agree():
    assert list_names(["a/dev.txt", "b/test.txt"]) == {"a/dev.txt": "dev", "b/test.txt": "test"}
    assert list_names(["/x/a/dev.txt", "/x/b/dev.txt"]) == {"/x/a/dev.txt": "a/dev", "/x/b/dev.txt": "b/dev"}
    assert list_names(["/x/a/dev.txt", "/y/a/dev.txt"]) == {"/x/a/dev.txt": "x/a/dev", "/y/a/dev.txt": "y/a/dev"}
    assert list_names(["dev.txt", "dev.txt"]) == {"dev.txt": "dev"}
