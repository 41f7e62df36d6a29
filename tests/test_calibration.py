"""Log-likelihood ratios, quality measures, operating points, and the file they lie in."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hf_hamspk.audio_hamspk import MINIMUM_SPEECH
from hf_hamspk.calibration_hamspk import (
    DEFAULT_OPERATING_POINTS,
    QUALITY_FEATURES,
    Calibration,
    OperatingPoint,
    Quality,
    combine_qualities,
    dict_checksum,
    quality_features,
)

FINGERPRINT = "a" * 64


@pytest.fixture
def calibration():
    weights = {"score": 8.0, "log_speech_min": 0.5, "snr_max": -0.01}
    return Calibration(FINGERPRINT, "cosine", -3.0, weights, trials=100, targets=30, speakers=12, audio="dev.txt")


def qualities(draw: np.random.Generator, count: int) -> Quality:
    return Quality(*(draw.uniform(0.5, 30, count) for _ in range(3)), draw.integers(1, 5, count))


def test_the_ratio_is_the_weighted_sum(calibration):
    draw = np.random.default_rng(0)
    scores, features = draw.normal(size=50), quality_features(qualities(draw, 50), qualities(draw, 50))
    ratios = calibration.log_likelihood_ratio(scores, features)
    for i in range(50):
        expected = -3 + 8 * scores[i] + 0.5 * features["log_speech_min"][i] - 0.01 * features["snr_max"][i]
        assert ratios[i] == pytest.approx(expected, abs=1e-12)
    alone = calibration.log_likelihood_ratio(float(scores[0]), {k: v[0] for k, v in features.items()})
    assert isinstance(alone, float) and alone == pytest.approx(ratios[0])
    with pytest.raises(ValueError, match="needs the measure 'log_speech_min'"):
        calibration.log_likelihood_ratio(0.5)


def test_quality_is_needed_where_it_has_a_weight(calibration):
    assert calibration.needs_quality
    plain = replace(calibration, weights={"score": 8.0})
    assert not plain.needs_quality
    assert plain.log_likelihood_ratio(0.5) == 1.0


def test_the_weight_of_the_score_may_be_small(calibration):
    assert replace(calibration, weights={"score": 1e-3}).log_likelihood_ratio(1.0) == pytest.approx(-2.999)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_have_no_checksum(value):
    with pytest.raises(ValueError):
        dict_checksum({"offset": value})


def test_quality_measures_by_hand():
    features = quality_features(Quality(2.0, 30.0, 0.8, 3), Quality(0.05, 12.0, 0.9, 1))
    expected = {
        "log_speech_min": math.log(0.1),
        "log_speech_max": math.log(2.0),
        "snr_min": 12.0,
        "snr_max": 30.0,
        "magnitude_min": 0.8,
        "magnitude_max": 0.9,
        "log_enrolment_utterances": math.log(3),
    }
    assert {name: float(value) for name, value in features.items()} == pytest.approx(expected)


def test_a_calibration_states_only_what_is_known():
    plain = Calibration(FINGERPRINT, "cosine", 0.0, {"score": 1.0})
    assert (plain.trials, plain.targets, plain.speakers, plain.enrolment_utterances) == (0, 0, 0, 1)
    assert (plain.normalisation, plain.top, plain.cohort) == ("none", None, None)
    assert plain.minimum_speech == MINIMUM_SPEECH
    assert replace(plain, minimum_speech=0.0).minimum_speech == 0.0


def test_an_operating_point_that_decides_nothing_says_so():
    point = OperatingPoint("door", 0.1, miss_rate=1.0, false_alarm_rate=0.0)
    assert "door accepts nobody" in str(point.flaw)
    assert "door accepts everybody" in str(replace(point, miss_rate=0.0, false_alarm_rate=1.0).flaw)
    for rate in (None, 0.0, 0.5):
        assert replace(point, miss_rate=rate, false_alarm_rate=rate).flaw is None


def test_the_ratio_rises_with_the_score(calibration):
    features = {name: np.full(200, 1.0) for name in QUALITY_FEATURES}
    assert (np.diff(calibration.log_likelihood_ratio(np.linspace(-1, 1, 200), features)) > 0).all()


def test_decisions_at_the_bayes_threshold_cost_least():
    """Of two unit Gaussians at +-1 the ratio is 2 s; no other threshold is cheaper, whatever prior and costs."""
    normal = math.erf
    plain = Calibration(FINGERPRINT, "cosine", 0.0, {"score": 2.0})

    def cost(point, score):
        miss, alarm = 0.5 * (1 + normal((score - 1) / math.sqrt(2))), 0.5 * (1 - normal((score + 1) / math.sqrt(2)))
        return point.prior * point.cost_miss * miss + (1 - point.prior) * point.cost_false_alarm * alarm

    for point in (*DEFAULT_OPERATING_POINTS, OperatingPoint("own", 0.2, 3.0, 0.7)):
        best = min(np.linspace(-6, 6, 2401), key=lambda score, point=point: cost(point, score))
        assert plain.log_likelihood_ratio(float(best)) == pytest.approx(point.threshold, abs=0.02)


def test_thresholds_of_operating_points():
    assert [point.threshold for point in DEFAULT_OPERATING_POINTS] == pytest.approx([0, math.log(99), -math.log(10)])
    point = OperatingPoint("own", 0.1, 2.0, 5.0)
    assert point.threshold == pytest.approx(math.log(5 * 0.9 / (2 * 0.1)))


def test_quality_measures_are_symmetric_but_for_the_enrolment_utterances():
    draw = np.random.default_rng(1)
    first, second = qualities(draw, 30), replace(qualities(draw, 30), utterances=np.ones(30))
    there, back = quality_features(first, second), quality_features(second, first)
    assert tuple(there) == QUALITY_FEATURES
    for name in QUALITY_FEATURES[:-1]:
        np.testing.assert_array_equal(there[name], back[name])
    np.testing.assert_allclose(there["log_enrolment_utterances"], np.log(first.utterances))
    np.testing.assert_allclose(there["snr_min"], np.minimum(first.snr_db, second.snr_db))
    np.testing.assert_allclose(there["log_speech_max"], np.log(np.maximum(first.speech, second.speech)))
    assert all(np.isfinite(value) for value in quality_features(Quality(0, -99, 0), Quality(0, 0, 0)).values())


def test_utterances_are_put_together():
    assert combine_qualities([Quality(2, 10, 3), Quality(4, 20, 5, 2)]) == Quality(6, 15, 4, 3)
    with pytest.raises(ValueError, match="No utterance"):
        combine_qualities([])


def test_a_calibration_comes_back_as_it_was(tmp_path, calibration):
    measured = replace(calibration, operating_points=(OperatingPoint("door", 0.1, 1.0, 9.0, 0.02, 0.003),))
    for each in (calibration, measured):
        each.save(tmp_path / "verification.json")
        assert Calibration.load(tmp_path / "verification.json") == each
    values = json.loads((tmp_path / "verification.json").read_text())
    assert values["operating_points"][0]["threshold"] == pytest.approx(math.log(81))


def test_a_calibration_is_not_saved_into_a_missing_folder(tmp_path, calibration):
    with pytest.raises(ValueError, match=r"Folder not found: .*none\. Create it before verification\.json is saved"):
        calibration.save(tmp_path / "none" / "verification.json")
    assert not (tmp_path / "none").exists()


def edit(path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def signed(values, **changes) -> None:
    values.update(changes)
    values["checksum"] = dict_checksum(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(offset=-2.0), "was altered: its checksum does not match its values"),
        (lambda v: v["weights"].update(score=9.0), "was altered"),
        (lambda v: v["operating_points"][0].update(threshold=-5.0), "was altered"),
        (lambda v: v.update(fingerprint="b" * 64), "was altered"),
        (lambda v: v.pop("checksum"), "has no checksum"),
        (lambda v: v.update(schema=2), "has schema 2; this version reads 1"),
        (lambda v: signed(v, note="mine"), r"unknown keys \['note'\]"),
        (lambda v: signed(v, weights={"score": -1.0}), "weight of 'score' must be above 0, got -1.0"),
        (lambda v: signed(v, operating_points=[1]), "does not hold a calibration"),
        (lambda v: signed(v, operating_points=[{"name": "x"}]), "does not hold a calibration"),
    ],
)
def test_an_altered_calibration_is_refused(tmp_path, calibration, change, message):
    path = tmp_path / "verification.json"
    calibration.save(path)
    edit(path, change)
    with pytest.raises(ValueError, match=message):
        Calibration.load(path)


def test_what_is_no_calibration_is_refused(tmp_path):
    path = tmp_path / "verification.json"
    with pytest.raises(ValueError, match="There is no file"):
        Calibration.load(path)
    for text, message in (("{ no", "cannot be read as JSON"), ("[1]", "must contain a JSON object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            Calibration.load(path)


def test_a_calibration_of_another_model_is_refused(calibration):
    calibration.check_model(FINGERPRINT, "cosine")
    with pytest.raises(ValueError, match=r"with other weights \(aaaaaaaaaaaa\) than .* \(bbbbbbbbbbbb\)"):
        calibration.check_model("b" * 64, "cosine")
    with pytest.raises(ValueError, match="needs 'cosine' scores, but the model computes 'hyperbolic'"):
        calibration.check_model(FINGERPRINT, "hyperbolic")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": ""}, "needs the fingerprint"),
        ({"similarity": "dot"}, "similarity must be one of cosine, hyperbolic, got 'dot'"),
        ({"normalisation": "as", "top": 20}, "For normalised scores set cohort"),
        ({"normalisation": "as", "cohort": "c" * 64}, "needs top"),
        ({"normalisation": "z", "top": 20, "cohort": "c" * 64}, "top is for normalisation 'as'"),
        ({"cohort": "c" * 64}, "leave it at None"),
        ({"weights": {"score": 1.0, "loudness": 2.0}}, r"Unknown features \['loudness'\]"),
        ({"weights": {"snr_min": 1.0}}, "weight of 'score' must be above 0, got None"),
        ({"weights": {"score": math.nan}}, "weight of 'score' must be a finite number"),
        ({"offset": math.inf}, "weight of 'offset' must be a finite number"),
        ({"trials": -1}, "trials must be an integer of at least 0"),
        ({"enrolment_utterances": 0}, "enrolment_utterances must be an integer of at least 1"),
        ({"minimum_speech": -1.0}, "minimum_speech must be a number of seconds"),
        ({"operating_points": ()}, "one or more points with distinct names"),
        ({"operating_points": (OperatingPoint("a", 0.5), OperatingPoint("a", 0.1))}, "distinct names"),
    ],
)
def test_numbers_that_are_refused(calibration, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(calibration, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("", 0.5), "needs a name"),
        (("a", 0.0), "prior must lie between 0 and 1, got 0.0"),
        (("a", 1.0), "prior must lie between 0 and 1, got 1.0"),
        (("a", True), "prior must lie between"),
        (("a", math.nan), "prior must lie between"),
        (("a", 0.5, 0.0), "cost_miss must be above 0"),
        (("a", 0.5, 1.0, math.inf), "cost_false_alarm must be above 0 and finite"),
        (("a", 0.5, 1.0, 1.0, 1.5), "miss_rate must lie in"),
    ],
)
def test_operating_points_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        OperatingPoint(*values)


def test_operating_points_by_name(calibration):
    assert calibration.operating_point() is calibration.operating_points[0]
    assert calibration.operating_point("strict").prior == 0.01
    with pytest.raises(ValueError, match="no operating point 'lax'; this calibration has balanced, strict, screening"):
        calibration.operating_point("lax")
