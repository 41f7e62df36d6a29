"""How good scores are as log-likelihood ratios, and the convex hull of the ROC curve, from which the bounds come.

A log-likelihood ratio is natural and larger for the same speaker: the logarithm of how much more probable the pair of
utterances is from one speaker than from two. Its decision is that of Bayes: accept where it is at or above
`log(cost_false_alarm * (1 - prior) / (cost_miss * prior))`. Measures after N. Brümmer and J. du Preez, "Application-
independent evaluation of speaker detection", Computer Speech & Language 20, 2006.

Two things are asked of scores. How well they rank: EER, minDCF, minCllr, and they need at least two different scores.
How well they say it: Cllr and actDCF, for which one and the same ratio for every trial is a legitimate answer.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from ..calibration_hamspk import OperatingPoint
from .metrics import EqualErrorRate, check_operating_condition, check_trials, detection_cost, detection_errors

# Cllr averages the two classes and counts in bits: an answer of 0 to every trial costs 1.
BITS = 1.0 / (2.0 * math.log(2.0))


@dataclass(frozen=True)
class ActualDetectionCost:
    """What decisions at the Bayes threshold cost.

    Attributes:
        cost: the normalised cost, at least 0; above 1 the scores did harm: ignoring them would have been cheaper.
        threshold: the log-likelihood ratio at and above which a trial was accepted.
        miss_rate: share of the target trials that were rejected, in [0, 1].
        false_alarm_rate: share of the impostor trials that were accepted, in [0, 1].
    """

    cost: float
    threshold: float
    miss_rate: float
    false_alarm_rate: float


# Arrays have no single truth value, so a generated `__eq__` would raise: compared by identity.
@dataclass(frozen=True, eq=False)
class ConvexHull:
    """The `V` vertices of the convex hull of a ROC curve, from "accept all" to "reject all".

    Between two vertices lies every operating point that a coin can choose among them. The pool-adjacent-violators
    algorithm (PAV) finds the same: each segment is one bin of scores, whose log-likelihood ratio is the logarithm of
    the segment's slope (T. Fawcett and A. Niculescu-Mizil, "PAV and the ROC convex hull", Machine Learning 68, 2007).

    Attributes:
        thresholds: float64, shape `(V,)`, strictly rising: scores, then `inf`.
        misses: int64, shape `(V,)`: target trials below the threshold, from 0 to `targets`.
        false_alarms: int64, shape `(V,)`: impostor trials at or above it, from `impostors` to 0.
        targets: number of target trials, at least 1.
        impostors: number of impostor trials, at least 1.
    """

    thresholds: NDArray[np.float64]
    misses: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    targets: int
    impostors: int

    @property
    def log_likelihood_ratios(self) -> NDArray[np.float64]:
        """Of each of the `V - 1` segments, rising from perhaps `-inf` (impostors only) to perhaps `inf`."""
        with np.errstate(divide="ignore"):
            of_targets = np.log(np.diff(self.misses) / self.targets)
            of_impostors = np.log(-np.diff(self.false_alarms) / self.impostors)
        return of_targets - of_impostors

    def equal_error_rate(self) -> EqualErrorRate:
        """Where the hull meets FNR = FPR; see the function `convex_hull_equal_error_rate`."""
        # Over the common denominator targets * impostors; the difference rises strictly from below 0 to above.
        gap = self.misses * self.impostors - self.false_alarms * self.targets
        after = int(np.searchsorted(gap, 0))
        before = after - 1
        share = -int(gap[before]) / (int(gap[after]) - int(gap[before]))
        rates = self.misses / self.targets
        rate = float(rates[before] + share * (rates[after] - rates[before]))
        nearest = before if share < 0.5 else after
        return EqualErrorRate(eer=rate, threshold=float(self.thresholds[nearest]))

    def log_likelihood_ratio_cost(self) -> float:
        """The minCllr; see the function `minimum_log_likelihood_ratio_cost`."""
        ratios = self.log_likelihood_ratios
        of_targets, of_impostors = np.diff(self.misses), -np.diff(self.false_alarms)
        # A segment without targets has the ratio -inf, and no target to be charged for it; likewise impostors.
        costs = _costs(ratios[of_targets > 0], ratios[of_impostors > 0])
        shares = of_targets[of_targets > 0] / self.targets, of_impostors[of_impostors > 0] / self.impostors
        return float(sum(cost @ share for cost, share in zip(costs, shares, strict=True))) * BITS


def convex_hull(scores: ArrayLike, labels: ArrayLike) -> ConvexHull:
    """The convex hull of the ROC curve, by isotonic regression of the labels on the scores.

    Args:
        scores: shape `(N,)`, finite, greater = more likely the same speaker.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Raises:
        ValueError: as `detection_errors`.
    """
    errors = detection_errors(scores, labels)
    of_targets = np.diff(errors.misses)
    trials = of_targets - np.diff(errors.false_alarms)
    blocks = isotonic_regression(of_targets / trials, weights=trials).blocks
    # Rounding may leave a vertex on a straight line; it moves no number.
    return ConvexHull(
        thresholds=errors.thresholds[blocks],
        misses=errors.misses[blocks],
        false_alarms=errors.false_alarms[blocks],
        targets=errors.targets,
        impostors=errors.impostors,
    )


def convex_hull_equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> EqualErrorRate:
    """Equal error rate under the ROC-convex-hull convention (ROCCH-EER).

    The rate at which the convex hull of the ROC curve meets FNR = FPR, by a straight line between two vertices: the
    error rate of the least favourable prior with the best thresholds (N. Brümmer and E. de Villiers, "The BOSARIS
    toolkit", 2011, arXiv:1304.2865). Never above 0.5, and never above the rate of the step convention,
    `equal_error_rate`, from which it hardly differs on lists of usual size.

    Args:
        scores: shape `(N,)`, finite.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Returns:
        The rate, in [0, 0.5], and the threshold of the nearer of the two vertices (`inf` if that one rejects all).

    Raises:
        ValueError: as `detection_errors`.
    """
    return convex_hull(scores, labels).equal_error_rate()


def log_likelihood_ratio_cost(ratios: ArrayLike, labels: ArrayLike) -> float:
    """Cllr: what the log-likelihood ratios cost, averaged over all applications.

    `1 / (2 log 2) * (mean over targets of log(1 + exp(-r)) + mean over impostors of log(1 + exp(r)))`. 0 is perfect, 1
    is what a system costs that answers 0 to everything, above 1 the scores mislead. The part above `minCllr` is lost to
    calibration, the rest to a lack of discrimination.

    Args:
        ratios: shape `(N,)`, finite natural log-likelihood ratios; all of them may be equal.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Returns:
        The cost in bits, at least 0.

    Raises:
        ValueError: as `detection_errors`, constant ratios excepted.
    """
    values, is_target = check_trials(ratios, labels)
    of_targets, of_impostors = _costs(values[is_target], values[~is_target])
    return float(of_targets.mean() + of_impostors.mean()) * BITS


def minimum_log_likelihood_ratio_cost(scores: ArrayLike, labels: ArrayLike) -> float:
    """The minCllr: the Cllr of the scores after the best non-decreasing map, which PAV finds.

    The map is fitted to the very trials that it is measured on: no calibration can do better on them.

    Args:
        scores: shape `(N,)`, finite; of any scale.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Returns:
        The cost in bits, in [0, 1].

    Raises:
        ValueError: as `detection_errors`.
    """
    return convex_hull(scores, labels).log_likelihood_ratio_cost()


def bayes_threshold(prior: float, cost_miss: float = 1.0, cost_false_alarm: float = 1.0) -> float:
    """The log-likelihood ratio at and above which to accept; see `OperatingPoint.threshold`.

    Raises:
        ValueError: if `prior`, `cost_miss` or `cost_false_alarm` is out of its range.
    """
    check_operating_condition(prior, cost_miss, cost_false_alarm)
    return OperatingPoint("given", prior, cost_miss, cost_false_alarm).threshold


def actual_detection_cost(
    ratios: ArrayLike,
    labels: ArrayLike,
    prior: float = 0.01,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
) -> ActualDetectionCost:
    """The actDCF: the detection cost of the decisions that the log-likelihood ratios make at the Bayes threshold.

    Normalised as the minDCF of the same operating point, which it cannot beat; the difference is lost to calibration.

    Args:
        ratios: shape `(N,)`, finite natural log-likelihood ratios; all of them may be equal.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        prior: probability of a target trial, strictly between 0 and 1.
        cost_miss: cost of rejecting a target trial, finite and above 0.
        cost_false_alarm: cost of accepting an impostor trial, finite and above 0.

    Returns:
        The cost, the threshold, and the two error rates there.

    Raises:
        ValueError: as `detection_errors`, constant ratios excepted, or if `prior` or a cost is out of its range.
    """
    threshold = bayes_threshold(prior, cost_miss, cost_false_alarm)
    miss_rate, false_alarm_rate = error_rates(ratios, labels, threshold)
    cost = detection_cost(miss_rate, false_alarm_rate, prior, cost_miss, cost_false_alarm)
    return ActualDetectionCost(cost, threshold, miss_rate, false_alarm_rate)


def error_rates(scores: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[float, float]:
    """Miss rate and false-alarm rate at a threshold: a trial is accepted if its score is at or above it.

    Args:
        scores: shape `(N,)`, finite.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        threshold: a number or `inf`, not NaN.

    Raises:
        ValueError: as `detection_errors`, constant scores excepted, or if the threshold is NaN.
    """
    if math.isnan(threshold):
        raise ValueError("threshold is NaN: pass the score at and above which a trial is accepted.")
    values, is_target = check_trials(scores, labels)
    accepted = values >= threshold
    return float(np.mean(~accepted[is_target])), float(np.mean(accepted[~is_target]))


def optimal_log_likelihood_ratios(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """The log-likelihood ratio of each trial's PAV bin, shape `(N,)`; `-inf` and `inf` at the ends are possible.

    Raises:
        ValueError: as `detection_errors`.
    """
    hull = convex_hull(scores, labels)
    bins = np.searchsorted(hull.thresholds, np.asarray(scores, dtype=np.float64), side="right") - 1
    return hull.log_likelihood_ratios[bins]


def _costs(targets: NDArray[np.floating], impostors: NDArray[np.floating]) -> tuple[NDArray, NDArray]:
    """`log(1 + exp(-r))` of the ratios of targets, `log(1 + exp(r))` of those of impostors, without overflow."""
    return np.logaddexp(0.0, -targets.astype(np.float64)), np.logaddexp(0.0, impostors.astype(np.float64))
