"""Measures of log-likelihood ratios (Cllr, actDCF), and the convex hull of the ROC curve (minCllr, ROCCH-EER).

A likelihood ratio says how many times more probable the two recordings are if they are from the same speaker than if
they are from different speakers. This module uses the natural logarithm of the ratio. The Bayes decision accepts a
trial if this logarithm is at or above `log(cost_false_alarm * (1 - prior) / (cost_miss * prior))`. The measures are
defined in N. Brümmer and J. du Preez, "Application-independent evaluation of speaker detection", Computer Speech &
Language 20, 2006.

EER, minDCF and minCllr measure how well the scores rank the trials. They need at least two distinct scores. Cllr and
actDCF also measure the calibration, and are defined even if all ratios are equal.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from ..calibration_hamspk import OperatingPoint
from .metrics import EqualErrorRate, check_operating_condition, check_trials, detection_cost, detection_errors

# Factor that makes the Cllr an average over the two classes, in bits. The Cllr is then 1 if all ratios are 0.
CLLR_SCALE = 1.0 / (2.0 * math.log(2.0))


@dataclass(frozen=True)
class ActualDetectionCost:
    """Detection cost of the decisions at the Bayes threshold.

    Attributes:
        cost: normalised cost, at least 0. A cost above 1 means that decisions without the scores would be cheaper.
        threshold: log-likelihood ratio at and above which a trial is accepted.
        miss_rate: share of the target trials that are rejected, in [0, 1].
        false_alarm_rate: share of the impostor trials that are accepted, in [0, 1].

    Example:
        ```python
        from hf_hamspk.evaluation import actual_detection_cost

        actual = actual_detection_cost([5.1, 0.3, -2.0, -4.2], [1, 1, 0, 0], prior=0.1)
        print(actual.cost, actual.miss_rate)  # 0.5 0.5: one of the two targets is below log(0.9 / 0.1)
        ```
    """

    cost: float
    threshold: float
    miss_rate: float
    false_alarm_rate: float


# Instances are compared by identity: a generated `__eq__` would compare arrays, and their truth value is ambiguous.
@dataclass(frozen=True, eq=False)
class ConvexHull:
    """Convex hull of a ROC curve, given by its `V` vertices from "accept all" to "reject all".

    The error rates of a point between two vertices are obtained by choosing one of the two thresholds at random for
    each trial. Isotonic regression with the pool-adjacent-violators algorithm (PAV) is equivalent to this hull. Each
    segment of the hull corresponds to a range of scores. The log-likelihood ratio of all scores in the range is the
    logarithm of the slope of the segment (T. Fawcett and A. Niculescu-Mizil, "PAV and the ROC convex hull", Machine
    Learning 68, 2007).

    Attributes:
        thresholds: float64, shape `(V,)`, scores at the vertices in ascending order, followed by `inf`.
        misses: int64, shape `(V,)`, number of target trials below each threshold, rising from 0 to `targets`.
        false_alarms: int64, shape `(V,)`, number of impostor trials at or above each threshold, falling from
            `impostors` to 0.
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
        """Log-likelihood ratios of the `V - 1` segments of the hull, in ascending order, float64.

        The first ratio is `-inf` if the first segment contains no targets. The last ratio is `inf` if the last segment
        contains no impostors.
        """
        with np.errstate(divide="ignore"):
            of_targets = np.log(np.diff(self.misses) / self.targets)
            of_impostors = np.log(-np.diff(self.false_alarms) / self.impostors)
        return of_targets - of_impostors

    def equal_error_rate(self) -> EqualErrorRate:
        """Return the equal error rate on the convex hull of the ROC curve (ROCCH-EER).

        This is the error rate at the point of the hull where FNR = FPR. The point is interpolated linearly between two
        vertices. The ROCCH-EER is also the largest error rate over all priors if the best threshold is chosen for each
        prior (N. Brümmer and E. de Villiers, "The BOSARIS toolkit", 2011, arXiv:1304.2865). It is never higher than the
        rate under the step convention (`metrics.equal_error_rate`). On lists of the usual size, the two rates are
        almost equal.

        Returns:
            The rate, in [0, 0.5], and the threshold of the nearer of the two vertices, which may be `inf`.
        """
        # FNR - FPR, multiplied by targets * impostors. It rises strictly from below 0 to above 0.
        gap = self.misses * self.impostors - self.false_alarms * self.targets
        after = int(np.searchsorted(gap, 0))
        before = after - 1
        share = -int(gap[before]) / (int(gap[after]) - int(gap[before]))
        rates = self.misses / self.targets
        rate = float(rates[before] + share * (rates[after] - rates[before]))
        nearest = before if share < 0.5 else after
        return EqualErrorRate(eer=rate, threshold=float(self.thresholds[nearest]))

    def log_likelihood_ratio_cost(self) -> float:
        """Return the minCllr in bits, in [0, 1].

        The minCllr is the lowest Cllr that any non-decreasing calibration of the scores can have on these trials. The
        best calibration is fitted to the same trials.
        """
        ratios = self.log_likelihood_ratios
        of_targets, of_impostors = np.diff(self.misses), -np.diff(self.false_alarms)
        # A segment without targets has a ratio of -inf, but contributes no cost of targets. The same holds for segments
        # without impostors, whose ratio is inf.
        costs = _logistic_costs(ratios[of_targets > 0], ratios[of_impostors > 0])
        shares = of_targets[of_targets > 0] / self.targets, of_impostors[of_impostors > 0] / self.impostors
        return float(sum(cost @ share for cost, share in zip(costs, shares, strict=True))) * CLLR_SCALE


def convex_hull(scores: ArrayLike, labels: ArrayLike) -> ConvexHull:
    """Compute the convex hull of the ROC curve by isotonic regression of the labels on the scores.

    Args:
        scores: shape `(N,)`, finite scores on any scale; larger scores mean more similar recordings.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Raises:
        ValueError: the scores or labels are invalid (see `detection_errors`).
    """
    errors = detection_errors(scores, labels)
    of_targets = np.diff(errors.misses)
    trials = of_targets - np.diff(errors.false_alarms)
    blocks = isotonic_regression(of_targets / trials, weights=trials).blocks
    # Rounding may leave a superfluous vertex on a straight line. It does not change any result.
    return ConvexHull(
        thresholds=errors.thresholds[blocks],
        misses=errors.misses[blocks],
        false_alarms=errors.false_alarms[blocks],
        targets=errors.targets,
        impostors=errors.impostors,
    )


def log_likelihood_ratio_cost(ratios: ArrayLike, labels: ArrayLike) -> float:
    """Return the Cllr, a cost of log-likelihood ratios that summarises all operating points.

    The Cllr is `1 / (2 log 2) * (mean over targets of log(1 + exp(-r)) + mean over impostors of log(1 + exp(r)))`,
    where `r` is the log-likelihood ratio of a trial. It is 0 for perfect ratios and 1 if every `r` is 0. If it is above
    1, the ratios are worse than no ratios. The minCllr, `convex_hull(...).log_likelihood_ratio_cost()`, is the part of
    the Cllr that is due to discrimination. The difference between Cllr and minCllr is due to calibration.

    Args:
        ratios: shape `(N,)`, finite natural log-likelihood ratios; they may all be equal.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.

    Returns:
        The cost in bits, at least 0.

    Raises:
        ValueError: the ratios or labels are invalid (see `check_trials`).
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
    """Return the actDCF, which is the normalised detection cost of the decisions at the Bayes threshold.

    The actDCF is never below the minDCF of the same operating point. The difference between the two is due to
    calibration.

    Args:
        ratios: shape `(N,)`, finite natural log-likelihood ratios; they may all be equal.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        prior: probability of a target trial, strictly between 0 and 1.
        cost_miss: cost of rejecting a target trial, finite and above 0.
        cost_false_alarm: cost of accepting an impostor trial, finite and above 0.

    Returns:
        The cost, the threshold, and the two error rates at the threshold.

    Raises:
        ValueError: the ratios or labels are invalid (see `check_trials`), or `prior` or a cost is out of range.
    """
    check_operating_condition(prior, cost_miss, cost_false_alarm)
    threshold = OperatingPoint("given", prior, cost_miss, cost_false_alarm).threshold
    miss_rate, false_alarm_rate = error_rates(ratios, labels, threshold)
    cost = detection_cost(miss_rate, false_alarm_rate, prior, cost_miss, cost_false_alarm)
    return ActualDetectionCost(cost, threshold, miss_rate, false_alarm_rate)


def error_rates(scores: ArrayLike, labels: ArrayLike, threshold: float) -> tuple[float, float]:
    """Return the miss rate and the false-alarm rate at a threshold.

    Args:
        scores: shape `(N,)`, finite scores.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        threshold: score at and above which a trial is accepted; it may be infinite.

    Raises:
        ValueError: the scores or labels are invalid (see `check_trials`), or the threshold is NaN.
    """
    if math.isnan(threshold):
        raise ValueError("threshold is NaN. Give the score at and above which a trial is accepted.")
    values, is_target = check_trials(scores, labels)
    accepted = values >= threshold
    return float(np.mean(~accepted[is_target])), float(np.mean(accepted[~is_target]))


def _logistic_costs(targets: NDArray[np.floating], impostors: NDArray[np.floating]) -> tuple[NDArray, NDArray]:
    """Compute `log(1 + exp(-r))` of target ratios and `log(1 + exp(r))` of impostor ratios without overflow."""
    return np.logaddexp(0.0, -targets.astype(np.float64)), np.logaddexp(0.0, impostors.astype(np.float64))
