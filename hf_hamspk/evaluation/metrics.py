"""Equal error rate and minimum detection cost, computed exactly from every distinct threshold.

A trial is accepted if its score is greater than or equal to the threshold. A rejected target trial is a miss (false
negative), and an accepted impostor trial is a false alarm (false positive). Trials with equal scores are accepted or
rejected together. The distinct thresholds are therefore the distinct scores and `inf`, which rejects all trials.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rates = TypeVar("Rates", float, NDArray[np.float64])


@dataclass(frozen=True)
class EqualErrorRate:
    """Equal error rate and its threshold.

    Attributes:
        eer: equal error rate, a fraction in [0, 1].
        threshold: score at and above which a trial is accepted. It is one of the scores. Only the threshold that
            `ConvexHull.equal_error_rate` returns may also be `inf`.

    Example:
        ```python
        from hf_hamspk.evaluation import equal_error_rate

        found = equal_error_rate([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0])
        print(found.eer, found.threshold)  # 0.5 0.6
        ```
    """

    eer: float
    threshold: float


@dataclass(frozen=True)
class MinimumDetectionCost:
    """Minimum detection cost and its threshold.

    Attributes:
        cost: normalised cost, in [0, 1]. The cheaper of accepting all trials and rejecting all trials costs 1.
        threshold: score at and above which a trial is accepted. It is one of the scores, or `inf` if rejecting every
            trial is cheapest.

    Example:
        ```python
        from hf_hamspk.evaluation import minimum_detection_cost

        found = minimum_detection_cost([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0], prior=0.05)
        print(found.cost, found.threshold)  # 0.5 0.9
        ```
    """

    cost: float
    threshold: float


# Instances are compared by identity: a generated `__eq__` would compare arrays, and their truth value is ambiguous.
@dataclass(frozen=True, eq=False)
class DetectionErrors:
    """Numbers of misses and false alarms at each of the `P` distinct thresholds of a list of scores.

    The thresholds rise strictly. The first threshold is the lowest score and accepts all trials. The last threshold is
    `inf` and rejects all trials. From each threshold to the next, the misses never fall, the false alarms never rise,
    and at least one of the two numbers changes.

    Attributes:
        thresholds: float64, shape `(P,)`, distinct scores in ascending order, followed by `inf`.
        misses: int64, shape `(P,)`, number of target trials below each threshold, rising from 0 to `targets`.
        false_alarms: int64, shape `(P,)`, number of impostor trials at or above each threshold, falling from
            `impostors` to 0.
        targets: number of target trials, at least 1.
        impostors: number of impostor trials, at least 1.

    Example:
        ```python
        from hf_hamspk.evaluation import detection_errors

        errors = detection_errors([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0])
        print(errors.equal_error_rate().eer, errors.minimum_detection_cost(prior=0.05).cost)  # 0.5 0.5
        ```
    """

    thresholds: NDArray[np.float64]
    misses: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    targets: int
    impostors: int

    @property
    def false_negative_rate(self) -> NDArray[np.float64]:
        """Share of the target trials that are rejected at each threshold, float64, `(P,)`, rising from 0 to 1."""
        return self.misses / self.targets

    @property
    def false_positive_rate(self) -> NDArray[np.float64]:
        """Share of the impostor trials that are accepted at each threshold, float64, `(P,)`, falling from 1 to 0."""
        return self.false_alarms / self.impostors

    def equal_error_rate(self) -> EqualErrorRate:
        """Return the equal error rate and its threshold, as defined by the function `equal_error_rate`."""
        # Both rates multiplied by targets * impostors. The products are integers, so ties are found exactly.
        negative = self.misses * self.impostors
        positive = self.false_alarms * self.targets
        # FNR - FPR rises strictly from -1 to 1. It is nearest to 0 at one of the two points around its change of sign.
        after = int(np.searchsorted(negative - positive, 0))
        before = after - 1
        nearest = min(
            (before, after),
            key=lambda point: (abs(int(negative[point] - positive[point])), max(negative[point], positive[point])),
        )
        miss_rate = int(self.misses[nearest]) / self.targets
        false_alarm_rate = int(self.false_alarms[nearest]) / self.impostors
        return EqualErrorRate(eer=max(miss_rate, false_alarm_rate), threshold=float(self.thresholds[nearest]))

    def minimum_detection_cost(
        self, prior: float = 0.01, cost_miss: float = 1.0, cost_false_alarm: float = 1.0
    ) -> MinimumDetectionCost:
        """Return the minimum detection cost and its threshold, as defined by `metrics.minimum_detection_cost`."""
        check_operating_condition(prior, cost_miss, cost_false_alarm)
        costs = detection_cost(self.false_negative_rate, self.false_positive_rate, prior, cost_miss, cost_false_alarm)
        cheapest = int(np.argmin(costs))
        return MinimumDetectionCost(cost=float(costs[cheapest]), threshold=float(self.thresholds[cheapest]))


def detection_errors(scores: ArrayLike, labels: ArrayLike) -> DetectionErrors:
    """Count the misses and false alarms at every distinct threshold.

    Args:
        scores: shape `(N,)`, finite real numbers; larger scores mean more similar recordings. Types other than float32
            and float64 are converted to float64.
        labels: shape `(N,)`, 1 (or True) for a target trial, 0 (or False) for an impostor trial.

    Returns:
        The numbers of errors at the `P <= N + 1` distinct thresholds, from "accept all" to "reject all".

    Raises:
        ValueError: an input is not one-dimensional and numeric, the lengths differ, the inputs are empty, a score is
            NaN or infinite, a label is neither 0 nor 1, one of the two classes is missing, or all scores are equal.
    """
    values, is_target = check_trials(scores, labels)
    targets, impostors = np.sort(values[is_target]), np.sort(values[~is_target])
    # The array consists of two sorted runs. A stable sort merges them several times as fast as an argsort.
    ordered = np.sort(np.concatenate((targets, impostors)), kind="stable")
    if ordered[0] == ordered[-1]:
        raise ValueError(
            f"all {ordered.size} scores are {float(ordered[0])!r}, so they do not rank the trials and the error rates "
            "are undefined. Check that the embeddings differ and that the scores were read from the right column."
        )
    # Position of the first trial of each distinct score, and one past the last trial for "reject all".
    below = np.concatenate(([0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [ordered.size]))
    misses = np.append(np.searchsorted(targets, ordered[below[:-1]]), targets.size)
    return DetectionErrors(
        thresholds=np.append(ordered[below[:-1]].astype(np.float64), np.inf),
        misses=misses,
        false_alarms=impostors.size - (below - misses),
        targets=targets.size,
        impostors=impostors.size,
    )


def detection_cost(
    miss_rate: Rates, false_alarm_rate: Rates, prior: float, cost_miss: float = 1.0, cost_false_alarm: float = 1.0
) -> Rates:
    """Return the normalised detection cost for a miss rate and a false-alarm rate.

    The detection cost is `cost_miss * prior * miss_rate + cost_false_alarm * (1 - prior) * false_alarm_rate`. It is
    normalised by `min(cost_miss * prior, cost_false_alarm * (1 - prior))`, the cost of the cheaper of "accept all" and
    "reject all" (NIST speaker recognition evaluation plans). SpeechBrain's minDCF is not normalised.

    Args:
        miss_rate: miss rate in [0, 1], a number or an array.
        false_alarm_rate: false-alarm rate in [0, 1], of the same shape as `miss_rate`.
        prior: probability of a target trial, strictly between 0 and 1.
        cost_miss: cost of rejecting a target trial, finite and above 0.
        cost_false_alarm: cost of accepting an impostor trial, finite and above 0.

    Returns:
        The cost, at least 0, of the same shape as `miss_rate`.

    Raises:
        ValueError: the ratio of the weighted costs of the two errors is too large for float64.
    """
    weights = cost_miss * prior, cost_false_alarm * (1.0 - prior)
    if not (min(weights) > 0 and max(weights) / min(weights) < math.inf):
        raise ValueError(
            f"The prior {prior:g} and the costs {cost_miss:g} (miss) and {cost_false_alarm:g} (false alarm) are too "
            "extreme for a detection cost. Choose values that differ less."
        )
    return (weights[0] * miss_rate + weights[1] * false_alarm_rate) / min(weights)


def equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> EqualErrorRate:
    """Return the equal error rate at one of the thresholds, without interpolation (step convention).

    The threshold with the smallest |FNR - FPR| is chosen among the thresholds of `detection_errors`. The equal error
    rate is the larger of the two error rates at this threshold. This is the convention of the `voxceleb_trainer` recipe
    (https://github.com/clovaai/voxceleb_trainer), and of the code that was published with HAM-Softmax. That recipe uses
    scikit-learn's `roc_curve`. By default (`drop_intermediate=True`), `roc_curve` drops thresholds inside straight
    segments of the curve, possibly also the threshold with the smallest |FNR - FPR|. This function keeps every
    threshold. SpeechBrain returns the mean of the two error rates at the threshold with the smallest |FNR - FPR|.

    If two thresholds have the same |FNR - FPR|, the threshold with the smaller equal error rate is chosen, or the lower
    threshold if these rates are equal as well. The rate therefore stays the same if the two classes are exchanged and
    the scores are negated. If all scores are equal, the only thresholds are "accept all" and "reject all". In this case
    an error is raised, because the rate would be 1 under this convention, but 0.5 under others
    (`ConvexHull.equal_error_rate`, SpeechBrain).

    Args:
        scores: shape `(N,)`, finite scores; a trial is accepted if its score is at or above the threshold.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Returns:
        The rate, a fraction in [0, 1], and its threshold.

    Raises:
        ValueError: the scores or labels are invalid (see `detection_errors`).
    """
    return detection_errors(scores, labels).equal_error_rate()


def minimum_detection_cost(
    scores: ArrayLike,
    labels: ArrayLike,
    prior: float = 0.01,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
) -> MinimumDetectionCost:
    """Return the minimum of `detection_cost` over all thresholds, including "accept all" and "reject all".

    If several thresholds have the minimum cost, the lowest of them is returned.

    Args:
        scores: shape `(N,)`, finite scores; a trial is accepted if its score is at or above the threshold.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        prior: probability of a target trial, strictly between 0 and 1.
        cost_miss: cost of rejecting a target trial, finite and above 0.
        cost_false_alarm: cost of accepting an impostor trial, finite and above 0.

    Returns:
        The normalised cost, in [0, 1], and its threshold.

    Raises:
        ValueError: the scores or labels are invalid (see `detection_errors`), or `prior`, `cost_miss` or
            `cost_false_alarm` is out of range.
    """
    check_operating_condition(prior, cost_miss, cost_false_alarm)
    return detection_errors(scores, labels).minimum_detection_cost(prior, cost_miss, cost_false_alarm)


def check_operating_condition(prior: float, cost_miss: float, cost_false_alarm: float) -> None:
    """Check the prior and the costs of an operating point.

    Raises:
        ValueError: the prior is not strictly between 0 and 1, or a cost is not finite or not above 0.
    """
    if not 0.0 < prior < 1.0:
        raise ValueError(
            f"prior must be strictly between 0 and 1, got {prior!r}. Give the probability of a target trial; usual "
            "values are 0.01 and 0.05."
        )
    for name, cost in (("cost_miss", cost_miss), ("cost_false_alarm", cost_false_alarm)):
        if not (cost > 0.0 and math.isfinite(cost)):
            raise ValueError(f"{name} must be finite and above 0, got {cost!r}. The usual value is 1.")


def check_trials(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Check the scores and labels of trials, and return them as arrays.

    Unlike `detection_errors`, this function accepts scores that are all equal.

    Args:
        scores: `(N,)`, finite real numbers.
        labels: `(N,)`, 1 for a target trial, 0 for an impostor trial; both classes must occur.

    Returns:
        The scores `(N,)`, float32 or float64, and a mask `(N,)` that is True for target trials.

    Raises:
        ValueError: an input is not one-dimensional and numeric, the lengths differ, the inputs are empty, a score is
            NaN or infinite, a label is neither 0 nor 1, or one of the two classes is missing.
    """
    if np.ma.is_masked(scores) or np.ma.is_masked(labels):
        raise ValueError("scores and labels must not contain masked entries. Leave these trials out.")
    values, marks = np.asarray(scores), np.asarray(labels)
    for name, array in (("scores", values), ("labels", marks)):
        if array.ndim != 1:
            raise ValueError(
                f"{name} must be one-dimensional with one entry per trial, got shape {array.shape}. Flatten the array."
            )
    if values.size != marks.size:
        raise ValueError(
            f"scores and labels must have the same length, got {values.size} scores and {marks.size} labels."
        )
    if values.size == 0:
        raise ValueError("scores and labels are empty: expected at least one target and one impostor trial.")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"scores must be real numbers, got an array of type {values.dtype}. Convert them to floats.")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    _check_finite(values)
    return values, _is_target(marks)


def _check_finite(values: NDArray[np.floating]) -> None:
    """Check that all scores are finite."""
    if np.isfinite(values).all():
        return
    nans = int(np.isnan(values).sum())
    if nans > 0:
        raise ValueError(
            f"{nans} of {values.size} scores are NaN. NaN scores come from NaN embeddings or silent files. Leave these "
            "trials out, and report how many they are."
        )
    infinite = int(np.isinf(values).sum())
    raise ValueError(
        f"{infinite} of {values.size} scores are infinite. Scores must be finite, because the threshold inf stands for "
        "rejecting all trials. Replace each infinite score with a finite number outside the range of the other scores, "
        "or leave these trials out and report how many they are."
    )


def _is_target(marks: NDArray) -> NDArray[np.bool_]:
    """Return a mask `(N,)` that is True for target trials; raise if a label is invalid or a class is missing."""
    if marks.dtype.kind not in "bfiu":
        raise ValueError(f"labels must be 0 (impostor) or 1 (target), got an array of type {marks.dtype}.")
    is_target = marks == 1
    wrong = ~(is_target | (marks == 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"labels must be 0 (impostor) or 1 (target), got {marks[first].item()!r} at index {first} "
            f"({int(wrong.sum())} of {marks.size} labels are neither 0 nor 1)."
        )
    if is_target.all() or not is_target.any():
        missing, present = ("impostors", "target (1)") if is_target.all() else ("targets", "impostor (0)")
        raise ValueError(
            f"{missing} are missing: all {marks.size} labels are {present}. Error rates need trials of both classes."
        )
    return is_target
