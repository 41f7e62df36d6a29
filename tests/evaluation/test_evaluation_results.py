"""The record of an evaluation, raw and calibrated, and the report that is made of it."""

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
from hf_hamspk.evaluation.evaluating import EvaluationSettings, evaluate_list
from hf_hamspk.evaluation.metrics import equal_error_rate, minimum_detection_cost
from hf_hamspk.evaluation.report import comparison_table, format_report, write_html
from hf_hamspk.evaluation.results import evaluation_record, read_record, write_record
from hf_hamspk.evaluation.trials import Trials
from hf_hamspk.evaluation.verification import EmbeddedFiles, score_ratios, score_trials

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
    assert result.ratios is None and result.speakers is not None
    assert (record["trials"], record["skipped"], record["speakers"]) == (630, 36, 12)
    assert record["unusable_files"] == {"s00/broken.wav": "holds no sound"}
    assert (record["scores"], record["normalisation"]) == ("cosine", "none")
    assert record["eer"] == equal_error_rate(scores, labels).eer
    assert record["eer_interval"][0] <= record["eer"] <= record["eer_interval"][1]
    assert record["min_dcf"] == {f"{p:g}": minimum_detection_cost(scores, labels, p).cost for p in (0.01, 0.05)}
    assert record["min_dcf_interval"].keys() == record["min_dcf"].keys()
    assert (record["confidence"], record["replicates"], record["interval_note"]) == (0.95, 100, None)
    for name in ("cllr", "cllr_interval", "act_dcf", "act_dcf_interval", "operating_points"):
        assert record[name] is None
    histogram = record["histogram"]
    assert (sum(histogram["targets"]), sum(histogram["impostors"])) == (int(labels.sum()), int((1 - labels).sum()))
    assert "raw" not in record


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
    with pytest.raises(ValueError, match=re.escape("weighs the quality of recordings, but 36 files were not measured")):
        score_ratios(calibrated, usable, unmeasured, scores, calibrated.calibration, calibrated.cohort)
    with pytest.raises(ValueError, match="no cohort was given"):
        score_ratios(calibrated, usable, embedded, scores, calibrated.calibration, None)


def test_calibrated_numbers_are_those_of_the_ratios(calibrated, trials, embedded):
    result = evaluate_list(calibrated, trials, embedded, QUICK)
    record, labels = result.record, result.trials.labels
    assert result.ratios is not None
    assert (record["trials"], record["skipped"]) == (595, 71)
    assert "not enough speech: 0.40 s, at least 1 s are needed" in record["unusable_files"].values()
    assert (record["scores"], record["normalisation"]) == ("log-likelihood ratio", "as")
    assert record["eer"] == equal_error_rate(result.ratios, labels).eer
    assert record["cllr"] == log_likelihood_ratio_cost(result.ratios, labels) >= record["min_cllr"]
    assert record["act_dcf"]["0.05"] == actual_detection_cost(result.ratios, labels, 0.05).cost
    assert record["act_dcf"]["0.05"] >= record["min_dcf"]["0.05"]
    even = record["operating_points"]["even"]
    assert (even["miss_rate"], even["false_alarm_rate"]) == error_rates(result.ratios, labels, 0.0)
    assert (even["nominal_miss_rate"], even["nominal_false_alarm_rate"]) == (0.1, 0.2)
    assert even["miss_interval"][0] <= even["miss_rate"] <= even["miss_interval"][1]
    assert record["raw"]["eer"] == equal_error_rate(result.raw, labels).eer
    assert record["raw"]["scores"] == "cosine"
    for other in (
        replace(QUICK, calibrated=False),
        replace(QUICK, protocol="paper"),
        replace(QUICK, subtract_mean=True),
    ):
        assert evaluate_list(calibrated, trials, embedded, other).ratios is None


def test_the_mean_of_the_cohort_can_be_subtracted(calibrated, trials, embedded):
    usable = trials.without(["s00/broken.wav"])
    subtracted = evaluate_list(calibrated, trials, embedded, replace(QUICK, replicates=0, subtract_mean=True))
    mean = calibrated.cohort.embeddings.mean(0)
    np.testing.assert_array_equal(subtracted.raw, score_trials(calibrated, usable, embedded, mean))
    assert subtracted.record["interval_note"] == "none were asked for"
    calibrated.cohort = None
    with pytest.raises(ValueError, match="The mean to subtract is that of the model's cohort, and this model has none"):
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
    assert "cannot be read off the names" in result.record["interval_note"]
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
    results = {"a <list>": evaluate_list(calibrated, trials, embedded, settings)}
    home = tmp_path / "secret" / "runs" / "final"
    home.mkdir(parents=True)
    record = evaluation_record(calibrated, str(home), results, settings)
    assert record["model"]["name"] == "runs/final"
    assert record["model"]["fingerprint"] == calibrated.fingerprint()
    path = write_record(record, tmp_path / "new" / "evaluation.json")
    assert read_record(path) == json.loads(json.dumps(record))
    assert str(tmp_path) not in path.read_text()
    text = format_report(record)
    for part in ("a <list>", "log-likelihood ratio, AS-norm", "even", "gender f", "actDCF(0.01)", "In brackets: 95 %"):
        assert part in text
    assert f"{100 * record['lists']['a <list>']['eer']:.2f} [" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())

    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG made up")
    page = write_html(record, {"Caption & more": picture}, tmp_path / "report.html").read_text(encoding="utf-8")
    parser = Checked()
    parser.feed(page)
    assert "script" not in parser.tags and "link" not in parser.tags
    assert [target[:22] for target in parser.targets] == ["data:image/png;base64,"]
    assert "a &lt;list&gt;" in page and "Caption &amp; more" in page
    assert "http" not in page and str(tmp_path) not in page


def test_comparisons_are_shown(model, trials, embedded):
    result = evaluate_list(model, trials, embedded, replace(QUICK, replicates=0))
    record = evaluation_record(model, "owner/name", {"l": result}, QUICK)
    record["lists"]["l"]["compared"] = {
        "eer": {"this": 0.1, "other": 0.2, "difference": -0.1, "interval": [-0.15, 0.01], "p_value": 0.061}
    }
    assert record["model"]["name"] == "owner/name"
    assert comparison_table(record)[1] == ["l", "EER %", "10.00", "20.00", "-10.00 [-15.00, 1.00]", "0.061"]
    assert "no intervals: none were asked for" in format_report(record)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "evaluation.json"
    with pytest.raises(ValueError, match="There is no file"):
        read_record(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_record(path)
    path.write_text('{"schema": 7}')
    with pytest.raises(ValueError, match="has schema 7; this version reads 1"):
        read_record(path)
