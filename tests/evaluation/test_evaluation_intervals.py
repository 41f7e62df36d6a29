"""The bootstrap over speakers: each replicate against trials written out as often as they count, and its laws."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_hamspk.calibration_hamspk import DEFAULT_OPERATING_POINTS, OperatingPoint
from hf_hamspk.evaluation.calibration_metrics import actual_detection_cost, convex_hull, log_likelihood_ratio_cost
from hf_hamspk.evaluation.intervals import (
    _System,
    bootstrap,
    draw_speakers,
    paired_test,
    rank_limits,
    resample_errors,
)
from hf_hamspk.evaluation.metrics import equal_error_rate, minimum_detection_cost
from hf_hamspk.evaluation.speakers import TrialSpeakers

POINTS = (OperatingPoint("0.01", 0.01), OperatingPoint("0.5", 0.5, cost_miss=2.0))


def simulate(speakers=24, utterances=4, spread=1.0, noise=1.0, seed=0, decimals=2):
    """All pairs of utterances of speakers, each of whom shifts the scores that he takes part in."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(speakers), utterances)
    first, second = np.triu_indices(len(owner), 1)
    sides = owner[first], owner[second]
    labels = sides[0] == sides[1]
    shift = spread * rng.normal(size=speakers)
    scores = noise * rng.normal(size=len(first)) + 3.0 * labels + shift[sides[0]] + shift[sides[1]]
    names = tuple(str(i) for i in range(speakers))
    return np.round(scores, decimals), labels, TrialSpeakers(names, *(side.astype(np.int32) for side in sides))


def plain_numbers(scores, labels):
    """What `_System.compute` gives, by the plain functions."""
    numbers = [equal_error_rate(scores, labels).eer]
    numbers += [minimum_detection_cost(scores, labels, p.prior, p.cost_miss, p.cost_false_alarm).cost for p in POINTS]
    numbers += [log_likelihood_ratio_cost(scores, labels)]
    for p in POINTS:
        actual = actual_detection_cost(scores, labels, p.prior, p.cost_miss, p.cost_false_alarm)
        numbers += [actual.cost, actual.miss_rate, actual.false_alarm_rate]
    return numbers


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_a_replicate_is_the_list_with_trials_repeated(decimals):
    rng = np.random.default_rng(1)
    for case in range(40):
        scores, labels, speakers = simulate(
            int(rng.integers(3, 12)), int(rng.integers(2, 4)), seed=case, decimals=decimals
        )
        system = _System(scores, labels, speakers, POINTS, True)
        assert system.compute().tolist() == pytest.approx(plain_numbers(scores, labels), rel=1e-12)
        multiplicities = rng.integers(0, 4, size=len(speakers.names))
        counts = np.where(
            labels,
            multiplicities[speakers.enrolment],
            multiplicities[speakers.enrolment] * multiplicities[speakers.test],
        )
        repeated, marks = np.repeat(scores, counts), np.repeat(labels, counts)
        numbers = system.compute(multiplicities.astype(float))
        if not 0 < marks.sum() < len(marks):
            assert np.isnan(numbers).all()
        elif len(set(repeated.tolist())) > 1:
            assert numbers.tolist() == pytest.approx(plain_numbers(repeated, marks), rel=1e-12)


def test_the_cheapest_threshold_may_reject_or_accept_all_trials():
    for sign in (1, -1):
        scores, labels, speakers = simulate(seed=3)
        system = _System(sign * scores, labels, speakers, POINTS, True)
        assert system.compute().tolist() == pytest.approx(plain_numbers(sign * scores, labels), rel=1e-12)
    assert system.compute()[1] == 1.0


def test_estimates_are_the_plain_numbers_bit_for_bit():
    scores, labels, speakers = simulate()
    result = bootstrap(scores, labels, speakers, POINTS, True, 100, progress=False)
    assert list(result.estimates) == [
        *("eer", "min_dcf 0.01", "min_dcf 0.5", "cllr"),
        *("act_dcf 0.01", "miss_rate 0.01", "false_alarm_rate 0.01"),
        *("act_dcf 0.5", "miss_rate 0.5", "false_alarm_rate 0.5"),
    ]
    expected = plain_numbers(scores, labels)
    assert [result.estimates[name] for name in ("eer", "min_dcf 0.01", "min_dcf 0.5")] == expected[:3]
    assert list(result.estimates.values()) == pytest.approx(expected, rel=1e-14)
    for name, replicates in result.replicates.items():
        low, high = result.interval(name)
        percentiles = np.quantile(replicates, [0.025, 0.975])
        assert low <= result.estimates[name] <= high
        if name.startswith("min_dcf"):
            mirrored = 2 * result.estimates[name] - percentiles[::-1]
            assert (low, high) == pytest.approx((min(mirrored[0], result.estimates[name]), min(1.0, mirrored[1])))
        else:
            assert (low, high) == pytest.approx(tuple(percentiles))


def test_seeds_decide_the_draws():
    scores, labels, speakers = simulate(12)
    one, same, other = (bootstrap(scores, labels, speakers, (), False, 100, seed=s, progress=False) for s in (3, 3, 4))
    assert np.array_equal(one.replicates["eer"], same.replicates["eer"])
    assert not np.array_equal(one.replicates["eer"], other.replicates["eer"])


def test_without_ratios_there_is_no_cllr():
    scores, labels, speakers = simulate(12)
    result = bootstrap(scores, labels, speakers, DEFAULT_OPERATING_POINTS, replicates=100, progress=False)
    assert list(result.estimates) == ["eer", "min_dcf balanced", "min_dcf strict", "min_dcf screening"]


def test_speakers_that_differ_widen_the_interval():
    """Trials alone would give an interval of the same width for both."""
    widths = []
    for spread in (0.0, 1.0):
        scores, labels, speakers = simulate(40, spread=spread, noise=(3 - 2 * spread**2) ** 0.5)
        low, high = bootstrap(scores, labels, speakers, replicates=200, progress=False).interval("eer")
        rate = equal_error_rate(scores, labels).eer
        widths.append((high - low) / (2 * 1.96 * (rate * (1 - rate) / labels.sum()) ** 0.5))
    assert widths[1] > 1.5 * widths[0]


def test_replicates_without_a_class_are_left_out_and_counted():
    scores, labels, speakers = simulate(12, utterances=1, seed=2)
    # The only target trial is of speaker 0, who is not drawn in about a third of the replicates.
    scores, labels = np.append(scores, 3.0), np.append(labels, True)
    zero = np.zeros(1, np.int32)
    speakers = TrialSpeakers(speakers.names, np.append(speakers.enrolment, zero), np.append(speakers.test, zero))
    result = bootstrap(scores, labels, speakers, replicates=300, progress=False)
    assert 60 < result.left_out < 160
    assert len(result.replicates["eer"]) == 300 - result.left_out
    assert np.isfinite(result.replicates["eer"]).all()


def test_paired_test_sees_what_two_intervals_do_not():
    scores, labels, speakers = simulate(40, seed=5)
    better = scores + 0.3 * labels
    tested = paired_test(scores, better, labels, speakers, POINTS, replicates=200, progress=False)
    eer = tested["eer"]
    assert eer.difference == eer.second - eer.first < 0
    assert eer.second == equal_error_rate(better, labels).eer
    assert eer.interval[1] < 0
    assert eer.p_value < 0.05
    alone = [bootstrap(s, labels, speakers, replicates=200, progress=False).interval("eer") for s in (scores, better)]
    assert alone[0][0] < alone[1][1], "the two intervals overlap"
    turned = paired_test(better, scores, labels, speakers, POINTS, replicates=200, progress=False)
    for name, difference in tested.items():
        assert turned[name].p_value == difference.p_value
        assert turned[name].interval == pytest.approx([-limit for limit in difference.interval[::-1]])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(39, 400), st.floats(-3, 3), st.sampled_from([0.8, 0.9, 0.95, 0.975]))
def test_p_value_and_interval_agree(seed, count, shift, confidence):
    """For any differences, also tied ones: the interval excludes 0 if and only if p is at most 1 - confidence."""
    draw = np.random.default_rng(seed)
    spread = np.round(draw.normal(shift, 1, size=count), draw.integers(0, 4))
    if (1 - confidence) / 2 * (count + 1) < 1:
        with pytest.raises(ValueError, match="replicates, got"):
            rank_limits(spread, confidence)
        return
    low, high = rank_limits(spread, confidence)
    tail = 1 + min(int((spread <= 0).sum()), int((spread >= 0).sum()))
    assert low <= high
    assert (low > 0 or high < 0) == (min(1.0, 2 * tail / (count + 1)) <= 1 - confidence + 1e-12)


@pytest.mark.parametrize("reversed_draws", range(20, 31))
def test_the_case_of_0_052_beside_an_interval_without_0(reversed_draws):
    spread = np.concatenate([np.linspace(-1, -0.01, reversed_draws), np.linspace(0.01, 9, 1000 - reversed_draws)])
    low, _ = rank_limits(spread, 0.95)
    assert (low > 0) == (2 * (1 + reversed_draws) / 1001 <= 0.05)


def test_the_p_value_counts_the_replicates_on_the_other_side_of_zero():
    scores, labels, speakers = simulate(20, seed=5)
    other = scores + 0.3 * np.random.default_rng(1).normal(size=len(scores))
    tested = paired_test(scores, other, labels, speakers, POINTS, True, 100, 0.9, progress=False)
    first, second = (bootstrap(s, labels, speakers, POINTS, True, 100, progress=False) for s in (scores, other))
    between = 0
    for name, difference in tested.items():
        spread = second.replicates[name] - first.replicates[name]
        tail = min((spread <= 0).sum(), (spread >= 0).sum())
        assert difference.p_value == pytest.approx(min(1.0, 2 * (tail + 1) / 101))
        assert difference.interval == (np.sort(spread)[4], np.sort(spread)[-5])
        assert difference.difference == pytest.approx(second.estimates[name] - first.estimates[name])
        between += 2 / 101 < difference.p_value < 1
    assert between >= 3


def test_a_system_is_no_better_than_itself_on_any_scale():
    scores, labels, speakers = simulate(20)
    same = paired_test(scores, 5 * scores - 2, labels, speakers, POINTS, replicates=100, progress=False)
    for difference in same.values():
        assert (difference.difference, difference.interval, difference.p_value) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.slow
def test_coverage_on_simulated_speakers():
    """Of the 95 % intervals about 95 % hold the number of the whole population; wider than needed is allowed."""
    population, marks, _ = simulate(900, 2, spread=0.5, seed=999, decimals=6)
    truth = {"eer": equal_error_rate(population, marks).eer}
    truth |= {"min_dcf 0.01": minimum_detection_cost(population, marks, 0.01).cost}
    truth |= {"cllr": log_likelihood_ratio_cost(population, marks)}
    hits = dict.fromkeys(truth, 0)
    for seed in range(150):
        trials = simulate(60, 3, spread=0.5, seed=seed, decimals=6)
        result = bootstrap(*trials, POINTS[:1], True, replicates=200, progress=False)
        for name, value in truth.items():
            low, high = result.interval(name)
            hits[name] += low <= value <= high
    assert min(hits.values()) >= 0.88 * 150, hits


def test_bad_requests_are_refused():
    scores, labels, speakers = simulate(12)
    few = simulate(9)
    cases = [
        (few, {}, "Resampling needs at least 10 speakers, and is reliable with about 50 or more. These trials have 9."),
        ((scores[1:], labels[1:], speakers), {}, "speakers must have one entry per score, got"),
        ((scores, ~labels, speakers), {}, f"The speakers contradict {len(labels)} of {len(labels)} labels"),
        ((scores * 0, labels, speakers), {}, "do not rank the trials"),
        ((scores, labels, speakers), {"replicates": 99}, "replicates must be at least 100, got 99"),
        ((scores, labels, speakers), {"confidence": 1.0}, "confidence must lie between 0 and 1, got 1.0"),
        ((scores, labels, speakers), {"points": POINTS + POINTS}, "points must have distinct names"),
    ]
    for trials, options, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            bootstrap(*trials, **options)
        with pytest.raises(ValueError, match=re.escape(message)):
            paired_test(trials[0], *trials, **options)


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_eer_and_min_cllr_of_draws_are_those_of_repeated_trials(decimals):
    scores, labels, speakers = simulate(12, 3, seed=5, decimals=decimals)
    draws = draw_speakers(12, 20, seed=3)
    assert draws.shape == (20, 12) and (draws.sum(1) == 12).all()
    found = resample_errors(scores, labels, speakers, draws)
    for row, drawn in enumerate([np.ones(12), *draws]):
        weights = drawn[speakers.enrolment] * np.where(labels, 1, drawn[speakers.test])
        counts = weights.astype(int)
        repeated, marks = np.repeat(scores, counts), np.repeat(labels, counts)
        assert found["eer"][row] == pytest.approx(equal_error_rate(repeated, marks).eer, rel=1e-12)
        expected = convex_hull(repeated, marks).log_likelihood_ratio_cost()
        assert found["min_cllr"][row] == pytest.approx(expected, rel=1e-9)


def test_a_draw_without_a_class_is_not_a_number_and_draws_repeat():
    scores, labels, speakers = simulate(12, 2, seed=5)
    alone = np.zeros((1, 12))
    alone[0, 3] = 12
    found = resample_errors(scores, labels, speakers, alone)
    assert np.isnan(found["eer"][1]) and np.isnan(found["min_cllr"][1])
    assert np.array_equal(draw_speakers(12, 5, 1), draw_speakers(12, 5, 1))
    assert not np.array_equal(draw_speakers(12, 5, 1), draw_speakers(12, 5, 2))
