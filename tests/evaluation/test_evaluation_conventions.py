"""The conventions by which others count, written out here, and what our numbers are in each of them.

- field: accept at or above the threshold; EER is the larger rate at the operating point where both are nearest.
- released code of HAM-Softmax: scikit-learn's `roc_curve` as it comes, without the points inside straight segments;
  then as the field; minDCF over its thresholds, costs 1, divided by min(prior, 1 - prior).
- SpeechBrain: accept above the threshold, thresholds at the scores and half-way between; EER is the mean of the two
  rates at the first nearest point, minDCF is not divided by anything, and "accept all" is no operating point.
"""

import numpy as np
import pytest

from hf_hamspk.evaluation.metrics import detection_errors

CASES = 1500


def random_case(rng, most_trials=16):
    count = int(rng.integers(3, most_trials + 1))
    labels = rng.integers(0, 2, size=count)
    labels[rng.permutation(count)[:2]] = (0, 1)
    scores = rng.integers(0, int(rng.integers(2, 3 * count)), size=count) / 4
    # Equal scores of all trials are refused.
    scores[0] += scores.max() == scores.min()
    return scores, labels


def speechbrain_reference(scores, labels, prior):
    """EER and minDCF by the documented behaviour of SpeechBrain."""
    targets, impostors = scores[labels == 1], scores[labels == 0]
    distinct = np.unique(scores)
    thresholds = np.sort(np.concatenate([distinct, (distinct[1:] + distinct[:-1]) / 2]))
    rejected = np.array([np.mean(targets <= threshold) for threshold in thresholds])
    accepted = np.array([np.mean(impostors > threshold) for threshold in thresholds])
    nearest = np.argmin(np.abs(accepted - rejected))
    return (accepted[nearest] + rejected[nearest]) / 2, (prior * rejected + (1 - prior) * accepted).min()


def in_speechbrains_convention(scores, labels, prior):
    """The same two numbers from our operating points, the first of which accepts all."""
    errors = detection_errors(scores, labels)
    rates = errors.false_negative_rate[1:], errors.false_positive_rate[1:]
    nearest = np.argmin(np.abs(rates[0] - rates[1]))
    return (rates[0][nearest] + rates[1][nearest]) / 2, (prior * rates[0] + (1 - prior) * rates[1]).min()


def released_reference(scores, labels, prior):
    """EER and minDCF by the released code's convention, with scikit-learn."""
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    alarms, hits, _ = roc_curve(labels, scores)
    misses = 1 - hits
    nearest = np.argmin(np.abs(misses - alarms))
    cost = (prior * misses + (1 - prior) * alarms).min() / min(prior, 1 - prior)
    return max(misses[nearest], alarms[nearest]), cost


@pytest.mark.slow
def test_speechbrains_convention():
    rng = np.random.default_rng(1)
    for _ in range(CASES):
        scores, labels = random_case(rng)
        expected = speechbrain_reference(scores, labels, 0.05)
        assert in_speechbrains_convention(scores, labels, 0.05) == pytest.approx(expected, abs=1e-12)


def test_speechbrain_itself():
    metrics = pytest.importorskip("speechbrain.utils.metric_stats")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    for _ in range(30):
        scores, labels = random_case(rng, 60)
        sides = torch.from_numpy(scores[labels == 1]), torch.from_numpy(scores[labels == 0])
        rate, cost = metrics.EER(*sides)[0], metrics.minDCF(*sides, p_target=0.05)[0]
        assert in_speechbrains_convention(scores, labels, 0.05)[1] == pytest.approx(cost, abs=1e-6)
        # It compares in float32, so that rounding picks one of two points that are equally near.
        errors = detection_errors(scores, labels)
        rates = np.stack((errors.false_negative_rate, errors.false_positive_rate))[:, 1:]
        gaps = np.abs(rates[0] - rates[1])
        assert np.abs(rates.mean(0)[gaps < gaps.min() + 1e-6] - rate).min() < 1e-6


def test_speechbrain_agrees_up_to_a_step_on_usual_lists():
    rng = np.random.default_rng(3)
    labels = rng.random(4000) < 0.5
    scores = rng.normal(size=4000) + 3 * labels
    errors = detection_errors(scores, labels)
    rate, cost = speechbrain_reference(scores, labels, 0.01)
    assert errors.equal_error_rate().eer == pytest.approx(rate, abs=1 / 2000)
    # Undivided there; "accept all" is never cheapest at this prior.
    assert errors.minimum_detection_cost(0.01).cost == pytest.approx(cost / 0.01, rel=1e-9)


@pytest.mark.slow
def test_convention_of_the_released_code():
    """The minDCF is ours; its EER is ours where the nearest point is not dropped."""
    rng = np.random.default_rng(4)
    same = 0
    for _ in range(CASES // 3):
        scores, labels = random_case(rng)
        errors = detection_errors(scores, labels)
        rate, cost = released_reference(scores, labels, 0.05)
        assert errors.minimum_detection_cost(0.05).cost == pytest.approx(cost, abs=1e-12)
        same += errors.equal_error_rate().eer == pytest.approx(rate, abs=1e-12)
    assert CASES / 6 < same < CASES // 3


@pytest.mark.slow
def test_released_code_agrees_on_usual_lists():
    rng = np.random.default_rng(5)
    labels = rng.random(20_000) < 0.5
    scores = rng.normal(size=20_000) + 3 * labels
    rate, _ = released_reference(scores, labels, 0.05)
    assert detection_errors(scores, labels).equal_error_rate().eer == pytest.approx(rate, abs=1e-3)
