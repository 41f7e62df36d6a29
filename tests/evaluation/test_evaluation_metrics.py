"""EER and minDCF: against brute force, against scikit-learn, their laws and their refusals."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from hf_hamspk.evaluation import detection_errors, equal_error_rate, minimum_detection_cost
from hf_hamspk.evaluation.metrics import DetectionErrors, detection_cost

CASES = 3000


def random_case(rng, most_trials=14):
    """A small case with both classes, most often with ties within and across classes."""
    count = int(rng.integers(2, most_trials + 1))
    labels = rng.integers(0, 2, size=count)
    labels[rng.permutation(count)[:2]] = (0, 1)
    levels = int(rng.integers(2, 2 * count + 1))
    values = np.array([-3.0, -0.5, -0.0, 0.0, 0.25, 1.0, 7.5, 1e-300, 1e300, *rng.normal(size=30)])
    scores = rng.choice(rng.choice(values, levels), count)
    # Equal scores of all trials are refused, and -0.0 equals 0.0.
    if (scores == scores[0]).all():
        scores[int(rng.integers(count))] = 2.0
    return scores, labels


def sweep(scores, labels):
    """All operating points by the definition: (threshold, FNR, FPR) as exact fractions, rising thresholds."""
    pairs = [(float(score), int(label)) for score, label in zip(scores, labels, strict=True)]
    targets = sum(label for _, label in pairs)
    impostors = len(pairs) - targets
    points = []
    for threshold in [*sorted({score for score, _ in pairs}), math.inf]:
        misses = sum(1 for score, label in pairs if label == 1 and not score >= threshold)
        false_alarms = sum(1 for score, label in pairs if label == 0 and score >= threshold)
        points.append((threshold, Fraction(misses, targets), Fraction(false_alarms, impostors)))
    return points


def brute_force_eer(points):
    """Nearest rates, then smaller maximum, then lower threshold; all comparisons exact."""
    threshold, miss, alarm = min(points, key=lambda point: (abs(point[1] - point[2]), max(point[1:]), point[0]))
    return float(max(miss, alarm)), threshold


@pytest.mark.slow
def test_operating_points_equal_a_brute_force_sweep():
    rng = np.random.default_rng(1)
    for _ in range(CASES):
        scores, labels = random_case(rng)
        errors = detection_errors(scores, labels)
        points = sweep(scores, labels)
        assert errors.thresholds.tolist() == [point[0] for point in points]
        assert errors.false_negative_rate.tolist() == [float(point[1]) for point in points]
        assert errors.false_positive_rate.tolist() == [float(point[2]) for point in points]
        assert (errors.targets, errors.impostors) == (int(labels.sum()), int((1 - labels).sum()))


def test_equal_error_rate_equals_a_brute_force_sweep():
    rng = np.random.default_rng(2)
    for _ in range(CASES):
        scores, labels = random_case(rng)
        result = equal_error_rate(scores, labels)
        assert (result.eer, result.threshold) == brute_force_eer(sweep(scores, labels))
        assert type(result.eer) is type(result.threshold) is float


@pytest.mark.parametrize(
    ("prior", "costs"), [(5e-324, (1.0, 1.0)), (0.5, (1e308, 5e-324)), (0.5, (1e308, 1e-10)), (1e-20, (1e-308, 1.0))]
)
def test_extreme_costs_are_refused_in_one_sentence(prior, costs):
    """Where the quotient of the weighted costs of the errors is no number."""
    with pytest.raises(ValueError, match="are too extreme for a detection cost"):
        detection_cost(0.5, 0.5, prior, *costs)


@pytest.mark.slow
def test_minimum_detection_cost_equals_a_brute_force_sweep():
    rng = np.random.default_rng(3)
    for _ in range(CASES):
        scores, labels = random_case(rng)
        # Sixteenths are exact in binary, so the costs of equal fractions are equal floats as well, up to the rates.
        prior, miss_cost, alarm_cost = rng.integers(1, 16) / 16, rng.integers(1, 9) / 2, rng.integers(1, 9) / 2
        weights = Fraction(miss_cost) * Fraction(prior), Fraction(alarm_cost) * (1 - Fraction(prior))
        points = sweep(scores, labels)
        costs = {point[0]: weights[0] * point[1] + weights[1] * point[2] for point in points}
        result = minimum_detection_cost(scores, labels, prior, miss_cost, alarm_cost)
        cheapest = min(costs.values())
        assert result.cost == pytest.approx(float(cheapest / min(weights)), rel=1e-14, abs=0)
        # Rounding may choose among equally cheap thresholds, but never a dearer one.
        assert costs[result.threshold] == cheapest


@pytest.mark.slow
def test_minimum_detection_cost_equals_a_float_sweep_bit_for_bit():
    rng = np.random.default_rng(4)
    for _ in range(CASES):
        scores, labels = random_case(rng)
        prior = float(rng.uniform(0.001, 0.999))
        best = (math.inf, math.inf)
        for threshold, miss, alarm in sweep(scores, labels):
            cost = prior * float(miss) + (1.0 - prior) * float(alarm)
            if cost < best[0]:
                best = (cost, threshold)
        result = minimum_detection_cost(scores, labels, prior)
        assert (result.cost, result.threshold) == (best[0] / min(prior, 1.0 - prior), best[1])


@pytest.mark.slow
def test_scikit_learn_gives_the_same_curve_and_rate():
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    rng = np.random.default_rng(5)
    for decimals in (1, 2, 12):
        labels = rng.random(5000) < 0.3
        scores = np.round(rng.normal(size=5000) + 1.7 * labels, decimals)
        errors = detection_errors(scores, labels)
        false_positive, true_positive, thresholds = roc_curve(labels, scores, drop_intermediate=False)
        assert np.array_equal(thresholds[::-1], errors.thresholds)
        assert np.array_equal(false_positive[::-1], errors.false_positive_rate)
        np.testing.assert_allclose(1 - true_positive[::-1], errors.false_negative_rate, rtol=0, atol=1e-15)
        false_negative = 1 - true_positive
        nearest = np.argmin(np.abs(false_negative - false_positive))
        expected = max(false_negative[nearest], false_positive[nearest])
        assert errors.equal_error_rate().eer == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_strictly_increasing_maps_of_the_scores_change_nothing():
    rng = np.random.default_rng(6)
    for _ in range(300):
        scores, labels = random_case(rng)
        ranks = np.unique(scores, return_inverse=True)[1].astype(np.float64)
        for mapped in (ranks, 3 * ranks - 5, np.exp(ranks / 8), np.arctan(ranks), ranks.astype(np.float32)):
            assert equal_error_rate(mapped, labels).eer == equal_error_rate(scores, labels).eer
            assert minimum_detection_cost(mapped, labels).cost == minimum_detection_cost(scores, labels).cost
        threshold = equal_error_rate(scores, labels).threshold
        assert equal_error_rate(np.exp(ranks / 8), labels).threshold == np.exp(ranks / 8)[scores == threshold][0]


def test_order_of_the_trials_does_not_matter():
    rng = np.random.default_rng(7)
    for _ in range(300):
        scores, labels = random_case(rng)
        order = rng.permutation(len(scores))
        assert equal_error_rate(scores[order], labels[order]) == equal_error_rate(scores, labels)
        assert minimum_detection_cost(scores[order], labels[order]) == minimum_detection_cost(scores, labels)


@pytest.mark.slow
def test_swapping_the_classes_and_negating_the_scores_changes_nothing():
    rng = np.random.default_rng(8)
    for _ in range(CASES):
        scores, labels = random_case(rng)
        assert equal_error_rate(-scores, 1 - labels).eer == equal_error_rate(scores, labels).eer
        straight = minimum_detection_cost(scores, labels, 0.2, 3.0, 2.0).cost
        swapped = minimum_detection_cost(-scores, 1 - labels, 0.8, 2.0, 3.0).cost
        assert swapped == pytest.approx(straight, rel=1e-14)


def test_rates_at_the_returned_threshold():
    rng = np.random.default_rng(9)
    for _ in range(300):
        scores, labels = random_case(rng)
        result = equal_error_rate(scores, labels)
        accepted = scores >= result.threshold
        rates = np.mean(~accepted[labels == 1]), np.mean(accepted[labels == 0])
        assert result.eer == pytest.approx(max(rates), abs=1e-15)
        assert result.threshold in scores


def test_two_equally_near_points_take_the_smaller_maximum():
    # Target scores 1, 1, 2, 2 and impostor scores 0, 1, 1, 3: FNR 0, FPR 3/4 at 1 and FNR 1/2, FPR 1/4 at 2.
    scores, labels = [1, 1, 2, 2, 0, 1, 1, 3], [1, 1, 1, 1, 0, 0, 0, 0]
    result = equal_error_rate(scores, labels)
    assert (result.eer, result.threshold) == (0.5, 2.0)
    # FNR 0, FPR 1/2 at 1 and FNR 3/4, FPR 1/4 at 2: both 1/2 apart, with the maxima 1/2 and 3/4.
    scores, labels = [1, 1, 1, 2, 0, 0, 1, 2], [1, 1, 1, 1, 0, 0, 0, 0]
    result = equal_error_rate(scores, labels)
    assert (result.eer, result.threshold) == (0.5, 1.0)
    assert equal_error_rate([-score for score in scores], [1 - label for label in labels]).eer == 0.5


def test_perfect_separation_is_zero():
    scores, labels = [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]
    result, cost = equal_error_rate(scores, labels), minimum_detection_cost(scores, labels)
    assert (result.eer, result.threshold) == (0.0, 0.8)
    assert (cost.cost, cost.threshold) == (0.0, 0.8)


def test_perfectly_wrong_scores():
    result = equal_error_rate([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1])
    assert (result.eer, result.threshold) == (1.0, 0.8)
    assert minimum_detection_cost([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]).cost == 1.0


@pytest.mark.parametrize("labels", [[0, 1], [1, 0, 0], [1, 1, 1, 0]])
def test_constant_scores_are_refused(labels):
    for scores in ([0.3] * len(labels), [0.0] * (len(labels) - 1) + [-0.0]):
        for function in (detection_errors, equal_error_rate, minimum_detection_cost):
            with pytest.raises(ValueError, match=f"all {len(labels)} scores are .*, so they do not rank the trials"):
                function(scores, labels)


def test_limits_of_the_prior():
    rng = np.random.default_rng(10)
    labels = np.arange(2000) % 2
    scores = rng.normal(size=2000) + labels
    scores[np.argmax(scores)], scores[0] = 0.0, scores.max() + 1  # The greatest score is an impostor,
    scores[np.argmin(scores)], scores[1] = 0.0, scores.min() - 1  # the lowest a target.
    rejected = minimum_detection_cost(scores, labels, prior=1e-12)
    assert (rejected.cost, rejected.threshold) == (1.0, math.inf)
    accepted = minimum_detection_cost(scores, labels, prior=1 - 1e-12)
    assert (accepted.cost, accepted.threshold) == (1.0, scores.min())
    for prior in (1e-6, 0.01, 0.3, 0.5, 0.9, 1 - 1e-6):
        assert 0.0 < minimum_detection_cost(scores, labels, prior).cost <= 1.0


def test_errors_cost_the_same_unless_told_otherwise():
    labels = np.arange(400) % 2
    scores = np.random.default_rng(11).normal(size=400) + 2 * labels
    errors = detection_errors(scores, labels)
    for prior in (0.1, 0.5):
        expected = minimum_detection_cost(scores, labels, prior, 1.0, 1.0)
        assert minimum_detection_cost(scores, labels, prior) == errors.minimum_detection_cost(prior) == expected
        assert minimum_detection_cost(scores, labels, prior, 2.0) != expected
        assert minimum_detection_cost(scores, labels, prior, 1.0, 2.0) != expected
    assert minimum_detection_cost(scores, labels) == minimum_detection_cost(scores, labels, 0.01)
    assert errors.minimum_detection_cost() == errors.minimum_detection_cost(0.01)


def test_only_the_ratio_of_the_weights_counts():
    rng = np.random.default_rng(11)
    labels = rng.random(1000) < 0.5
    scores = rng.normal(size=1000) + labels
    one = minimum_detection_cost(scores, labels, prior=0.01, cost_miss=10.0)
    other = minimum_detection_cost(scores, labels, prior=10 / 109)  # 0.1 : 0.99
    assert one.cost == pytest.approx(other.cost, rel=1e-12)
    assert one.threshold == other.threshold


def test_label_and_score_types():
    scores, labels = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    expected = equal_error_rate(scores, labels)
    for marks in (
        np.array(labels, bool),
        np.array(labels, np.int8),
        np.array(labels, np.uint8),
        np.array(labels, float),
    ):
        assert equal_error_rate(scores, marks) == expected
    single = np.array(scores, np.float32)
    assert equal_error_rate(single, labels).threshold == float(single[1])
    assert equal_error_rate(np.array([1, 4, 3, 8]), labels).threshold == 4.0
    assert equal_error_rate(np.array([1, 4, 3, 8], np.float16), labels).threshold == 4.0


def test_large_counts_do_not_overflow():
    many = 3_000_000_000
    errors = DetectionErrors(
        thresholds=np.array([0.0, 1.0, math.inf]),
        misses=np.array([0, many // 4, many]),
        false_alarms=np.array([many, many // 4, 0]),
        targets=many,
        impostors=many,
    )
    assert errors.equal_error_rate().eer == 0.25


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "scores and labels are empty: expected at least one target and one impostor trial."),
        ([0.1, 0.2], [0, 0], "targets are missing: all 2 labels are impostor (0)."),
        ([0.1, 0.2, 0.3], [1, 1, 1], "impostors are missing: all 3 labels are target (1)."),
        ([0.1, math.nan, math.nan], [0, 1, 1], "2 of 3 scores are NaN."),
        ([math.inf, math.nan, 0.0], [0, 1, 1], "1 of 3 scores are NaN."),
        ([0.1, math.inf, -math.inf, 0.2], [0, 1, 1, 0], "2 of 4 scores are infinite."),
        ([0.1, 0.2, 0.3], [0, 2, -1], "got 2 at index 1 (2 of 3 labels are neither 0 nor 1)."),
        ([0.1, 0.2], [0.0, 0.5], "got 0.5 at index 1 (1 of 2 labels are neither 0 nor 1)."),
        ([0.1, 0.2], [0.0, math.nan], "got nan at index 1 (1 of 2 labels are neither 0 nor 1)."),
        ([0.1, 0.2], ["0", "1"], "labels must be 0 (impostor) or 1 (target), got an array of type <U1."),
        (["a", "b"], [0, 1], "scores must be real numbers, got an array of type <U1."),
        ([1j, 2.0], [0, 1], "scores must be real numbers, got an array of type complex128."),
        ([None, 2.0], [0, 1], "scores must be real numbers, got an array of type object."),
        ([0.1, 0.2], [0, 1, 1], "scores and labels must have the same length, got 2 scores and 3 labels."),
        ([[0.1], [0.2]], [0, 1], "scores must be one-dimensional with one entry per trial, got shape (2, 1)."),
        ([0.1, 0.2], [[0, 1]], "labels must be one-dimensional with one entry per trial, got shape (1, 2)."),
        (0.5, 1, "scores must be one-dimensional with one entry per trial, got shape ()."),
    ],
)
def test_bad_trials_are_refused(scores, labels, message):
    for function in (detection_errors, equal_error_rate, minimum_detection_cost):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(scores, labels)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_bad_priors_are_refused(prior):
    with pytest.raises(ValueError, match=re.escape(f"prior must be strictly between 0 and 1, got {prior!r}.")):
        minimum_detection_cost([0.0, 1.0], [0, 1], prior=prior)


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["cost_miss", "cost_false_alarm"])
def test_bad_costs_are_refused(name, cost):
    with pytest.raises(ValueError, match=re.escape(f"{name} must be finite and above 0, got {cost!r}.")):
        minimum_detection_cost([0.0, 1.0], [0, 1], **{name: cost})


def test_results_are_frozen_and_inputs_untouched():
    scores, labels = np.array([0.3, 0.1, 0.2]), np.array([1, 0, 1])
    before = scores.copy(), labels.copy()
    result = equal_error_rate(scores, labels)
    with pytest.raises(AttributeError):
        result.eer = 0.0  # type: ignore[misc]
    assert np.array_equal(scores, before[0]) and np.array_equal(labels, before[1])
