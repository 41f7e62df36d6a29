"""Measures of log-likelihood ratios (Cllr, actDCF), and the convex hull of the ROC curve (minCllr, ROCCH-EER).

A log-likelihood ratio is the natural logarithm of how much more probable a pair of utterances is from one speaker than
from two. The Bayes decision accepts a trial if the ratio is at or above
`log(cost_false_alarm * (1 - prior) / (cost_miss * prior))`. Measures: N. Brümmer and J. du Preez, "Application-
independent evaluation of speaker detection", Computer Speech & Language 20, 2006.

EER, minDCF and minCllr measure how well scores rank; they need at least two different scores. Cllr and actDCF measure
calibration as well, and accept the same ratio for every trial.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from ..calibration_hamspk import OperatingPoint
from .metrics import EqualErrorRate, check_operating_condition, check_trials, detection_cost, detection_errors

# Cllr averages the two classes and counts in bits: a ratio of 0 for every trial costs 1.
CLLR_SCALE = 1.0 / (2.0 * math.log(2.0))


@dataclass(frozen=True)
class ActualDetectionCost:
    """The cost of the decisions at the Bayes threshold.

    Attributes:
        cost: normalised cost, at least 0; above 1, ignoring the scores would have been cheaper.
        threshold: log-likelihood ratio at and above which a trial is accepted.
        miss_rate: share of the target trials that are rejected, in [0, 1].
        false_alarm_rate: share of the impostor trials that are accepted, in [0, 1].

    Example:
        ```python
        from hf_hamspk.evaluation import actual_detection_cost

        actual = actual_detection_cost([5.1, 0.3, -2.0, -4.2], [1, 1, 0, 0], prior=0.1)
        print(actual.cost, actual.miss_rate)  # 0.5 0.5: one of the targets is below log(0.9 / 0.1)
        ```
    """

    cost: float
    threshold: float
    miss_rate: float
    false_alarm_rate: float


# A generated `__eq__` would raise, as an array has no single truth value: compared by identity.
@dataclass(frozen=True, eq=False)
class ConvexHull:
    """The `V` vertices of the convex hull of a ROC curve, from "accept all" to "reject all".

    A point between two vertices is reached by choosing at random between their thresholds. The pool-adjacent-violators
    algorithm (PAV) finds the same hull: each segment is one bin of scores, whose log-likelihood ratio is the logarithm
    of the slope of the segment (T. Fawcett and A. Niculescu-Mizil, "PAV and the ROC convex hull", Machine Learning 68,
    2007).

    Attributes:
        thresholds: float64, shape `(V,)`, strictly rising: scores, then `inf`.
        misses: int64, shape `(V,)`: target trials below the threshold, from 0 to `targets`.
        false_alarms: int64, shape `(V,)`: impostor trials at or above it, from `impostors` to 0.
        targets: number of target trials, at least 1.
        impostors: number of impostor trials, at least 1.

    Example:
        ```python
        from hf_hamspk.evaluation import convex_hull

        hull = convex_hull([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0])
        print(hull.equal_error_rate().eer, hull.log_likelihood_ratio_cost())  # 0.333..., 0.5
        ```
    """

    thresholds: NDArray[np.float64]
    misses: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    targets: int
    impostors: int

    @property
    def log_likelihood_ratios(self) -> NDArray[np.float64]:
        """Log-likelihood ratio of each of the `V - 1` segments, rising.

        A first segment of impostors only has `-inf`, a last one of targets only `inf`.
        """
        with np.errstate(divide="ignore"):
            of_targets = np.log(np.diff(self.misses) / self.targets)
            of_impostors = np.log(-np.diff(self.false_alarms) / self.impostors)
        return of_targets - of_impostors

    def equal_error_rate(self) -> EqualErrorRate:
        """Equal error rate under the ROC-convex-hull convention (ROCCH-EER).

        The rate at which the hull meets FNR = FPR, by a straight line between two vertices: the error rate of the least
        favourable prior with the best thresholds (N. Brümmer and E. de Villiers, "The BOSARIS toolkit", 2011,
        arXiv:1304.2865). Never above 0.5, and never above the rate of the step convention, `equal_error_rate`, which
        is almost the same on lists of usual size.

        Returns:
            The rate, in [0, 0.5], and the threshold of the nearer of the two vertices (`inf` if it rejects all).
        """
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
        """The minCllr: the Cllr of the scores after the best non-decreasing map, in bits, in [0, 1].

        The map is fitted to the trials on which it is measured, so no calibration can do better on them.
        """
        ratios = self.log_likelihood_ratios
        of_targets, of_impostors = np.diff(self.misses), -np.diff(self.false_alarms)
        # A segment without targets has the ratio -inf, but no target to pay for it; likewise without impostors.
        costs = _logistic_costs(ratios[of_targets > 0], ratios[of_impostors > 0])
        shares = of_targets[of_targets > 0] / self.targets, of_impostors[of_impostors > 0] / self.impostors
        return float(sum(cost @ share for cost, share in zip(costs, shares, strict=True))) * CLLR_SCALE


def convex_hull(scores: ArrayLike, labels: ArrayLike) -> ConvexHull:
    """The convex hull of the ROC curve, by isotonic regression of the labels on the scores.

    Args:
        scores: shape `(N,)`, finite, of any scale, greater = more likely the same speaker.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Raises:
        ValueError: as `detection_errors`.
    """
    errors = detection_errors(scores, labels)
    of_targets = np.diff(errors.misses)
    trials = of_targets - np.diff(errors.false_alarms)
    blocks = isotonic_regression(of_targets / trials, weights=trials).blocks
    # Rounding may leave a vertex on a straight line, which changes no number.
    return ConvexHull(
        thresholds=errors.thresholds[blocks],
        misses=errors.misses[blocks],
        false_alarms=errors.false_alarms[blocks],
        targets=errors.targets,
        impostors=errors.impostors,
    )


def log_likelihood_ratio_cost(ratios: ArrayLike, labels: ArrayLike) -> float:
    """The Cllr: the cost of the log-likelihood ratios, averaged over all applications.

    `1 / (2 log 2) * (mean over targets of log(1 + exp(-r)) + mean over impostors of log(1 + exp(r)))`. 0 is perfect, 1
    is the cost of the ratio 0 for every trial; above 1 the ratios mislead. The part above the minCllr,
    `convex_hull(...).log_likelihood_ratio_cost()`, is due to calibration, the rest to discrimination.

    Args:
        ratios: shape `(N,)`, finite natural log-likelihood ratios; they may all be equal.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Returns:
        The cost in bits, at least 0.

    Raises:
        ValueError: as `detection_errors`, constant ratios excepted.
    """
    values, is_target = check_trials(ratios, labels)
    of_targets, of_impostors = _logistic_costs(values[is_target], values[~is_target])
    return float(of_targets.mean() + of_impostors.mean()) * CLLR_SCALE


def actual_detection_cost(
    ratios: ArrayLike,
    labels: ArrayLike,
    prior: float = 0.01,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
) -> ActualDetectionCost:
    """The actDCF: the detection cost of the decisions at the Bayes threshold.

    Normalised as the minDCF of the same operating point, which is never larger; the difference is due to calibration.

    Args:
        ratios: shape `(N,)`, finite natural log-likelihood ratios; they may all be equal.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        prior: probability of a target trial, strictly between 0 and 1.
        cost_miss: cost of rejecting a target trial, finite and above 0.
        cost_false_alarm: cost of accepting an impostor trial, finite and above 0.

    Returns:
        The cost, the threshold, and the two error rates there.

    Raises:
        ValueError: as `detection_errors`, constant ratios excepted, or if `prior` or a cost is out of its range.
    """
    check_operating_condition(prior, cost_miss, cost_false_alarm)
    threshold = OperatingPoint("given", prior, cost_miss, cost_false_alarm).threshold
    miss_rate, false_alarm_rate = error_rates(ratios, labels, threshold)
    cost = detection_cost(miss_rate, false_alarm_rate, prior, cost_miss, cost_false_alarm)
    return ActualDetectionCost(cost, threshold, miss_rate, false_alarm_rate)


def error_rates(scores: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[float, float]:
    """Miss rate and false-alarm rate at a threshold; a trial is accepted if its score is at or above it.

    Args:
        scores: shape `(N,)`, finite.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        threshold: a number or `inf`, not NaN.

    Raises:
        ValueError: as `detection_errors`, constant scores excepted, or if the threshold is NaN.
    """
    if math.isnan(threshold):
        raise ValueError("threshold is NaN: give the score at and above which a trial is accepted.")
    values, is_target = check_trials(scores, labels)
    accepted = values >= threshold
    return float(np.mean(~accepted[is_target])), float(np.mean(accepted[~is_target]))


def _logistic_costs(targets: NDArray[np.floating], impostors: NDArray[np.floating]) -> tuple[NDArray, NDArray]:
    """`log(1 + exp(-r))` of the ratios of targets, `log(1 + exp(r))` of those of impostors, without overflow."""
    return np.logaddexp(0.0, -targets.astype(np.float64)), np.logaddexp(0.0, impostors.astype(np.float64))
