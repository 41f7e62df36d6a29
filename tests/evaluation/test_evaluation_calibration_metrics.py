"""Cllr, minCllr, actDCF and the convex hull: against their definitions written out, their laws and their refusals."""

import math
import re

import numpy as np
import pytest

from hf_hamspk.calibration_hamspk import OperatingPoint
from hf_hamspk.evaluation.calibration_metrics import (
    actual_detection_cost,
    convex_hull,
    error_rates,
    log_likelihood_ratio_cost,
)
from hf_hamspk.evaluation.metrics import detection_errors, equal_error_rate, minimum_detection_cost

CASES = 1000


def random_case(rng, most_trials=14):
    """A small case with both classes, not all scores equal, most often with ties."""
    count = int(rng.integers(2, most_trials + 1))
    labels = rng.integers(0, 2, size=count)
    labels[rng.permutation(count)[:2]] = (0, 1)
    scores = rng.integers(0, int(rng.integers(2, 2 * count + 1)), size=count) - 3.0
    if (scores == scores[0]).all():
        scores[int(rng.integers(count))] += 1
    return scores, labels


def gaussian_ratios(count, distance, seed=0):
    """Perfectly calibrated log-likelihood ratios: two normal distributions `distance` apart, of unit variance."""
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.5
    return distance * (rng.normal(size=count) + distance * (labels - 0.5)), labels


def pooled_adjacent_violators(scores, labels):
    """PAV by its definition: trials of one score are one pool; neighbours out of order are merged until none is left.

    Returns:
        Pools `[targets, trials, scores in it]`, in order.
    """
    pools = []
    for score in sorted(set(scores.tolist())):
        chosen = scores == score
        pools.append([int(labels[chosen].sum()), int(chosen.sum()), [score]])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            targets, trials, values = pools.pop()
            pools[-1] = [pools[-1][0] + targets, pools[-1][1] + trials, pools[-1][2] + values]
    return pools


def ratios_of_bins(scores, labels):
    """The log-likelihood ratio of the segment of each trial."""
    hull = convex_hull(scores, labels)
    return hull.log_likelihood_ratios[np.searchsorted(hull.thresholds, scores, side="right") - 1]


@pytest.mark.slow
def test_hull_and_minimum_cllr_equal_pooling_by_hand():
    rng = np.random.default_rng(1)
    for _ in range(CASES):
        scores, labels = random_case(rng)
        targets, impostors = int(labels.sum()), int((1 - labels).sum())
        cost = 0.0
        ratio_of = {}
        for of_targets, trials, values in pooled_adjacent_violators(scores, labels):
            of_impostors = trials - of_targets
            if of_targets:
                cost += of_targets / targets * math.log2(1 + (of_impostors / impostors) / (of_targets / targets)) / 2
            if of_impostors:
                cost += of_impostors / impostors * math.log2(1 + of_targets / targets / (of_impostors / impostors)) / 2
            odds = math.inf if not of_impostors else of_targets / targets / (of_impostors / impostors)
            ratio_of |= dict.fromkeys(values, math.log(odds) if odds else -math.inf)
        assert convex_hull(scores, labels).log_likelihood_ratio_cost() == pytest.approx(cost, abs=1e-12)
        ratios = ratios_of_bins(scores, labels)
        np.testing.assert_allclose(ratios, [ratio_of[score] for score in scores], atol=1e-12)


def test_hull_touches_the_curve_from_below():
    """Exactly the smallest miss rates that mixtures of two operating points reach, at every false-alarm rate."""
    rng = np.random.default_rng(2)
    for _ in range(CASES):
        scores, labels = random_case(rng, 8)
        errors, hull = detection_errors(scores, labels), convex_hull(scores, labels)
        points = list(zip(errors.false_positive_rate.tolist(), errors.false_negative_rate.tolist(), strict=True))
        corners = hull.false_alarms / hull.impostors, hull.misses / hull.targets
        assert set(zip(*(side.tolist() for side in corners), strict=True)) <= set(points)
        for wanted in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
            reachable = [y for x, y in points if x <= wanted]
            for x1, y1 in points:
                for x2, y2 in points:
                    if x1 < wanted < x2:
                        reachable.append(y1 + (y2 - y1) * (wanted - x1) / (x2 - x1))
            on_hull = np.interp(wanted, corners[0][::-1], corners[1][::-1])
            assert on_hull == pytest.approx(min(reachable), abs=1e-12)


def test_convex_hull_equal_error_rate_is_the_worst_bayes_error():
    """The largest cost over all priors of the best threshold of each, not divided by anything."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        scores, labels = random_case(rng)
        errors = detection_errors(scores, labels)
        priors = np.unique(np.concatenate([np.linspace(0, 1, 2001), _kinks(errors)]))[:, None]
        costs = priors * errors.false_negative_rate + (1 - priors) * errors.false_positive_rate
        rate = convex_hull(scores, labels).equal_error_rate().eer
        assert rate == pytest.approx(costs.min(axis=1).max(), abs=1e-12)
        assert rate <= min(0.5, equal_error_rate(scores, labels).eer) + 1e-12


def _kinks(errors):
    """The priors at which the cheapest of two operating points changes."""
    miss, alarm = errors.false_negative_rate, errors.false_positive_rate
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (alarm[:, None] - alarm) / (alarm[:, None] - alarm - miss[:, None] + miss)
    return slope[np.isfinite(slope) & (slope >= 0) & (slope <= 1)]


def test_conventions_of_the_equal_error_rate_agree_on_long_lists_and_differ_on_short_ones():
    ratios, labels = gaussian_ratios(100_000, 3.0)
    assert convex_hull(ratios, labels).equal_error_rate().eer == pytest.approx(
        equal_error_rate(ratios, labels).eer, abs=5e-4
    )
    scores, labels = [1.0, 0.0], [0, 1]
    assert equal_error_rate(scores, labels).eer == 1.0
    assert convex_hull(scores, labels).equal_error_rate().eer == 0.5
    assert convex_hull([0.0, 1.0], labels).equal_error_rate().eer == 0.0


def test_cllr_is_the_formula():
    rng = np.random.default_rng(4)
    for _ in range(CASES):
        ratios, labels = random_case(rng)
        terms = [
            [math.log2(1 + math.exp(-r)) for r, label in zip(ratios, labels, strict=True) if label == 1],
            [math.log2(1 + math.exp(r)) for r, label in zip(ratios, labels, strict=True) if label == 0],
        ]
        expected = sum(sum(side) / len(side) for side in terms) / 2
        assert log_likelihood_ratio_cost(ratios, labels) == pytest.approx(expected, rel=1e-12)


def test_cllr_of_no_answer_is_one_and_of_huge_ratios_finite():
    assert log_likelihood_ratio_cost([0.0, 0.0, 0.0], [1, 0, 0]) == pytest.approx(1.0, abs=1e-15)
    assert log_likelihood_ratio_cost([1e5, -1e5], [1, 0]) == 0.0
    assert log_likelihood_ratio_cost([-1e5, 1e5], [1, 0]) == pytest.approx(1e5 / math.log(2))
    assert log_likelihood_ratio_cost(np.array([200.0, -200.0], np.float32), [0, 1]) == pytest.approx(200 / math.log(2))


def test_no_calibration_beats_the_minimum():
    ratios, labels = gaussian_ratios(20_000, 2.0)
    least = convex_hull(ratios, labels).log_likelihood_ratio_cost()
    assert log_likelihood_ratio_cost(ratios, labels) == pytest.approx(least, abs=0.01)
    for scale in (0.3, 1.0, 3.0):
        for shift in (-1.0, 0.0, 1.0):
            mapped = scale * ratios + shift
            assert log_likelihood_ratio_cost(mapped, labels) > least
            assert convex_hull(mapped, labels).log_likelihood_ratio_cost() == pytest.approx(least, rel=1e-12)
            for prior in (0.01, 0.5):
                actual = actual_detection_cost(mapped, labels, prior).cost
                assert actual >= minimum_detection_cost(mapped, labels, prior).cost - 1e-12


def test_perfect_and_useless_scores():
    assert convex_hull([0, 1, 2, 3], [0, 0, 1, 1]).log_likelihood_ratio_cost() == 0.0
    assert convex_hull([3, 2, 1, 0], [0, 0, 1, 1]).log_likelihood_ratio_cost() == pytest.approx(1.0)
    assert ratios_of_bins([0, 1, 2, 3], [0, 0, 1, 1]).tolist() == [
        -math.inf,
        -math.inf,
        math.inf,
        math.inf,
    ]


def test_decisions_are_those_at_the_bayes_threshold():
    ratios, labels = gaussian_ratios(5000, 2.0)
    for prior, cost_miss, cost_false_alarm in ((0.5, 1, 1), (0.01, 1, 1), (0.2, 10, 3)):
        result = actual_detection_cost(ratios, labels, prior, cost_miss, cost_false_alarm)
        odds = prior * cost_miss / ((1 - prior) * cost_false_alarm)
        accepted = np.exp(ratios) * odds >= 1
        rates = np.mean(~accepted[labels]), np.mean(accepted[~labels])
        assert (result.miss_rate, result.false_alarm_rate) == pytest.approx(rates)
        weights = cost_miss * prior, cost_false_alarm * (1 - prior)
        assert result.cost == pytest.approx((weights[0] * rates[0] + weights[1] * rates[1]) / min(weights))
        assert result.threshold == pytest.approx(-math.log(odds))
        assert result.threshold == OperatingPoint("any", prior, cost_miss, cost_false_alarm).threshold
    assert error_rates([0.0, 1.0], [0, 1], 1.0) == (0.0, 0.0)
    assert error_rates([0.0, 1.0], [0, 1], math.inf) == (1.0, 0.0)
    assert actual_detection_cost([0.0, 0.0], [0, 1], 0.5).cost == 1.0


@pytest.mark.parametrize(
    "function",
    [
        convex_hull,
        log_likelihood_ratio_cost,
        actual_detection_cost,
    ],
)
def test_bad_trials_are_refused(function):
    cases = {
        "scores and labels are empty": ([], []),
        "impostors are missing": ([0.1, 0.2], [1, 1]),
        "1 of 2 scores are NaN": ([math.nan, 0.1], [0, 1]),
        "1 of 2 scores are infinite": ([math.inf, 0.1], [0, 1]),
        "got 2 at index 1": ([0.1, 0.2], [0, 2]),
    }
    if function not in (log_likelihood_ratio_cost, actual_detection_cost):
        cases["all 3 scores are 0.5, so they do not rank the trials"] = ([0.5] * 3, [0, 1, 1])
    for message, (scores, labels) in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            function(scores, labels)


def test_bad_operating_points_are_refused():
    with pytest.raises(ValueError, match="prior must be strictly between 0 and 1, got 1"):
        actual_detection_cost([0.0, 1.0], [0, 1], 1.0)
    with pytest.raises(ValueError, match="cost_miss must be finite and above 0, got 0"):
        actual_detection_cost([0.0, 1.0], [0, 1], 0.5, 0.0)
    with pytest.raises(ValueError, match="threshold is NaN"):
        error_rates([0.0, 1.0], [0, 1], math.nan)


def test_a_score_at_the_threshold_is_accepted():
    scores, labels = [0.1, 0.5, 0.5, 0.9], [0, 0, 1, 1]
    assert error_rates(scores, labels, 0.5) == (0.0, 0.5)
    assert error_rates(scores, labels, math.nextafter(0.5, 1)) == (0.5, 0.0)


def test_errors_cost_the_same_unless_told_otherwise():
    ratios, labels = gaussian_ratios(200, 1.0)
    assert actual_detection_cost(ratios, labels, 0.2) == actual_detection_cost(ratios, labels, 0.2, 1.0, 1.0)
    assert actual_detection_cost(ratios, labels, 0.2) != actual_detection_cost(ratios, labels, 0.2, 2.0, 1.0)
