"""Fit a calibration, which maps the scores of trials to log-likelihood ratios.

The map is an affine function of the score and, optionally, of quality measures of the recordings. It minimises the
prior-weighted proper scoring rule of N. Brümmer and G. Doddington, "Likelihood-ratio calibration using prior-weighted
proper scoring rules", Interspeech 2013. At the prior 0.5, this rule is the Cllr of N. Brümmer and J. du Preez,
"Application-independent evaluation of speaker detection", Computer Speech & Language 20, 2006. Targets and impostors
are weighted by the prior, so the log-likelihood ratio does not depend on their numbers in the list. The quality
measures follow J. Thienpondt et al., "The IDLab VoxSRC-20 submission: large margin fine-tuning and quality-aware score
calibration in DNN based speaker verification", ICASSP 2021.

Trials of the same speaker are not independent, so the error rates are measured by cross-validation over speakers.

Letters: `N` trials, `F` features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ..calibration_hamspk import DEFAULT_OPERATING_POINTS, SCORE, OperatingPoint
from .calibration_metrics import error_rates, log_likelihood_ratio_cost

# Strength of the regularisation. It is divided by the number of trials of the rarer class, so its effect vanishes as
# pairs are added. It keeps the weights finite if the classes are separable. For Gaussian scores with an EER of 1 to
# 10 % and 20 to 1000 pairs, a tenth of this value gives overconfident ratios, and ten times this value gives
# overcautious ratios.
RIDGE = 0.01
# Number of pairs of the rarer class that are needed for each fitted number. With fewer pairs, logistic regression is
# unstable (P. Peduzzi et al., "A simulation study of the number of events per variable in logistic regression
# analysis", J. Clin. Epidemiol. 49, 1996).
PAIRS_PER_PARAMETER = 10
# Cross-validation leaves out the speakers of up to two folds, and impostor trials need two more speakers.
MINIMUM_SPEAKERS = 4
FOLDS = 5
# A feature with a smaller standard deviation counts as constant, because float32 scores are rounded.
SMALLEST_FEATURE_SPREAD = 1e-6
# Newton's method ends when no coefficient of a standardised feature changes by more than this.
SMALLEST_STEP = 1e-9
MOST_STEPS = 100
# A Newton step that does not lower the cost is halved at most this many times. Smaller steps are lost in rounding.
MOST_HALVINGS = 40


@dataclass(frozen=True, eq=False)
class CalibrationTrials:
    """Labelled trials with the features to which a calibration is fitted.

    Attributes:
        labels: `(N,)`, 1 for a target trial, 0 for an impostor trial.
        features: maps the name of each feature to its values, `(N,)` float64. The feature "score" is required; the
            other features are from `calibration_hamspk.QUALITY_FEATURES`.
        speakers: `(N, 2)`, names or numbers of the enrolment speaker and the test speaker. They are stored as numbers
            from 0.

    Raises:
        ValueError: the arrays have different numbers of trials, "score" is missing, or a value is not finite.
    """

    labels: NDArray[np.int8]
    features: dict[str, NDArray[np.float64]]
    speakers: NDArray

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if SCORE not in self.features:
            raise ValueError(f"features must contain {SCORE!r}, got {sorted(self.features)}.")
        for name, values in self.features.items():
            if np.shape(values) != labels.shape or labels.ndim != 1:
                raise ValueError(
                    f"labels and features must have one entry per trial, got labels of shape {labels.shape} and "
                    f"{name!r} of shape {np.shape(values)}."
                )
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{name!r} contains NaN or infinite values. Leave these trials out, and report how many they are."
                )
        if np.shape(self.speakers) != (len(labels), 2):
            raise ValueError(f"speakers must have shape ({len(labels)}, 2), got {np.shape(self.speakers)}.")
        numbers = np.unique(np.asarray(self.speakers), return_inverse=True)[1].reshape(-1, 2)
        object.__setattr__(self, "labels", labels.astype(np.int8))
        object.__setattr__(self, "features", {k: np.asarray(v, np.float64) for k, v in self.features.items()})
        object.__setattr__(self, "speakers", numbers)

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.labels)

    @property
    def targets(self) -> int:
        """Number of target trials."""
        return int(self.labels.sum())

    @property
    def speaker_count(self) -> int:
        """Number of distinct speakers."""
        return int(self.speakers.max()) + 1 if len(self) else 0

    def matrix(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return the named features as the columns of a matrix, `(N, F)`."""
        return np.stack([self.features[name] for name in names], axis=1)

    def varying(self, names: Sequence[str]) -> list[str]:
        """Return those of `names` whose features vary over the trials. "score" is always returned."""
        return [name for name in names if name == SCORE or np.std(self.features[name]) > SMALLEST_FEATURE_SPREAD]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """Affine map from features to log-likelihood ratios: `offset + sum of weight x feature`.

    Attributes:
        offset: log-likelihood ratio if all features are 0.
        weights: maps the name of each feature to its weight.
    """

    offset: float
    weights: dict[str, float]

    def __call__(self, features: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the log-likelihood ratios, `(N,)`."""
        return self.offset + np.sum([weight * features[name] for name, weight in self.weights.items()], axis=0)


@dataclass(frozen=True, eq=False)
class FittedCalibration:
    """Fitted map and its performance on held-out speakers.

    Attributes:
        map: map fitted on all trials.
        held_out_ratios: `(N,)`, log-likelihood ratios. The ratio of each trial is from a map that was fitted without
            the two speakers of the trial.
        cost: Cllr of `held_out_ratios`, in bits.
        operating_points: operating points with the error rates of `held_out_ratios`.
        constant: names of the features that were left out because they have the same value in all trials.
    """

    map: AffineMap
    held_out_ratios: NDArray[np.float64]
    cost: float
    operating_points: tuple[OperatingPoint, ...]
    constant: list[str] = field(default_factory=list)


def check_size(trials: CalibrationTrials, parameters: int = 2) -> None:
    """Check that there are enough trials and speakers to fit `parameters` numbers.

    Raises:
        ValueError: there are too few target trials, impostor trials or speakers.
    """
    smallest = PAIRS_PER_PARAMETER * parameters
    targets, impostors = trials.targets, len(trials) - trials.targets
    if not (targets >= smallest and impostors >= smallest):
        raise ValueError(
            f"Too few pairs to calibrate on: expected at least {smallest} of each kind ({PAIRS_PER_PARAMETER} for each "
            f"of {parameters} fitted numbers), got {targets} target pairs and {impostors} impostor pairs. "
            "Add pairs" + (", or leave quality measures out." if parameters > 2 else ".")
        )
    if trials.speaker_count < MINIMUM_SPEAKERS:
        raise ValueError(
            f"Too few speakers to calibrate on: expected at least {MINIMUM_SPEAKERS}, got {trials.speaker_count}. The "
            "calibration is tested on held-out speakers. Add pairs of other speakers."
        )


def logistic_regression(
    features: ArrayLike,
    labels: ArrayLike,
    prior: float = 0.5,
    counts: ArrayLike | None = None,
    ridge: float = RIDGE,
) -> tuple[float, NDArray[np.float64]]:
    """Fit a prior-weighted logistic regression by Newton's method.

    The cost is `prior x mean over targets of log(1 + exp(-z)) + (1 - prior) x mean over impostors of log(1 + exp(z)) +
    ridge / (2 n) x sum of squared weights`. Here `z = LLR + log(prior / (1 - prior))`, and `n` is the number of trials
    of the rarer class. The weights in the last term are the weights of standardised features.

    Args:
        features: `(N, F)`, features of the trials, one column for each feature; a constant column gets the weight 0.
        labels: `(N,)`, 1 for a target trial, 0 for an impostor trial.
        prior: prior probability of a target trial, in (0, 1). It weights the two classes in the cost.
        counts: `(N,)`, weights of the trials, at least 0; None gives every trial the weight 1.
        ridge: strength of the regularisation.

    Returns:
        The offset and the weights `(F,)` of the log-likelihood ratio.

    Raises:
        ValueError: one class is missing, or the prior is out of range.
    """
    values, is_target = np.asarray(features, dtype=np.float64), np.asarray(labels) == 1
    if not 0 < prior < 1:
        raise ValueError(f"prior must lie strictly between 0 and 1, got {prior}.")
    counted = np.ones(len(values)) if counts is None else np.asarray(counts, dtype=np.float64)
    targets, impostors = float(counted[is_target].sum()), float(counted[~is_target].sum())
    if not (targets > 0 and impostors > 0):
        raise ValueError(
            f"A calibration needs target and impostor trials, got {targets:g} target and {impostors:g} impostor "
            "trials. Add pairs of the missing kind."
        )
    mean = np.average(values, axis=0, weights=counted)
    deviation = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=counted))
    # A feature may be constant in a resampled list; its weight is then 0.
    deviation = np.where(deviation > SMALLEST_FEATURE_SPREAD, deviation, np.inf)
    design = np.concatenate([np.ones((len(values), 1)), (values - mean) / deviation], axis=1)
    weight = counted * np.where(is_target, prior / targets, (1 - prior) / impostors)
    penalty = np.full(design.shape[1], ridge / min(targets, impostors))
    penalty[0] = 0.0
    solution = _minimise(design, is_target, weight, penalty, float(np.log(prior) - np.log1p(-prior)))
    weights = solution[1:] / deviation
    return float(solution[0] - weights @ mean), weights


def _minimise(
    design: NDArray[np.float64], is_target: NDArray[np.bool_], weight: NDArray, penalty: NDArray, shift: float
) -> NDArray[np.float64]:
    """Return the coefficients `(1 + F,)` that minimise the weighted logistic cost, by a damped Newton method."""
    sign = np.where(is_target, 1.0, -1.0)

    def cost(solution: NDArray) -> float:
        return float(weight @ np.logaddexp(0.0, -sign * (design @ solution + shift)) + penalty @ solution**2 / 2)

    solution = np.zeros(design.shape[1])
    now = cost(solution)
    for _ in range(MOST_STEPS):
        probability = expit(design @ solution + shift)
        gradient = design.T @ (weight * (probability - is_target)) + penalty * solution
        curvature = (design.T * (weight * probability * (1 - probability))) @ design + np.diag(penalty)
        # Solved by least squares, because a constant feature makes the matrix singular.
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        for _ in range(MOST_HALVINGS):
            after = cost(solution - step)
            if after <= now:
                break
            step = step / 2
        else:
            return solution
        solution, now = solution - step, after
        if np.abs(step).max() < SMALLEST_STEP:
            break
    return solution


def fit_map(
    trials: CalibrationTrials,
    names: Sequence[str] = (SCORE,),
    prior: float = 0.5,
    counts: ArrayLike | None = None,
    chosen: NDArray | None = None,
) -> AffineMap:
    """Fit the map from features to log-likelihood ratios.

    Args:
        trials: trials with their features.
        names: names of the features to use.
        prior: prior probability of a target trial for which the fit is optimal, in (0, 1).
        counts: `(N,)`, weights of the trials; None gives every trial the weight 1.
        chosen: `(N,)` bool, True for the trials to fit on; None uses all trials.

    Raises:
        ValueError: the chosen trials are of one class only, or the prior is out of range.
    """
    rows = slice(None) if chosen is None else chosen
    counted = None if counts is None else np.asarray(counts)[rows]
    offset, weights = logistic_regression(trials.matrix(names)[rows], trials.labels[rows], prior, counted)
    return AffineMap(offset, dict(zip(names, weights.tolist(), strict=True)))


def speaker_folds(speakers: NDArray, folds: int = FOLDS, seed: int = 0) -> NDArray[np.int64]:
    """Assign the speakers to folds at random. Return the fold numbers `(N, 2)` of the two speakers of each trial."""
    count = int(speakers.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    return (order % min(folds, count))[speakers]


def cross_validate(
    trials: CalibrationTrials, names: Sequence[str] = (SCORE,), prior: float = 0.5, folds: int = FOLDS
) -> NDArray[np.float64]:
    """Return log-likelihood ratios `(N,)`, each from a map that was fitted without the speakers of the trial.

    Every speaker belongs to one fold. For each trial, the map is fitted on the trials that contain no speaker from the
    folds of the trial's own two speakers.

    Raises:
        ValueError: no target or no impostor trial remains if the speakers of two folds are left out.
    """
    places = speaker_folds(trials.speakers, folds)
    ratios = np.zeros(len(trials))
    for first in range(int(places.max()) + 1):
        for second in range(first, int(places.max()) + 1):
            tested = ((places == (first, second)) | (places == (second, first))).all(axis=1)
            if not tested.any():
                continue
            rest = np.asarray(~np.isin(places, (first, second)).any(axis=1))
            kinds = trials.labels[rest]
            if not 0 < kinds.sum() < len(kinds):
                raise ValueError(
                    f"Too few speakers to calibrate on: if the speakers of two of the {folds} folds are left out, "
                    f"{int(kinds.sum())} target and {len(kinds) - int(kinds.sum())} impostor trials remain. "
                    "Pair every speaker with several others, and record every speaker at least twice."
                )
            ratios[tested] = fit_map(trials, names, prior, chosen=rest)(trials.features)[tested]
    return ratios


def fit(
    trials: CalibrationTrials,
    names: Sequence[str] = (SCORE,),
    operating_points: Sequence[OperatingPoint] = DEFAULT_OPERATING_POINTS,
    prior: float = 0.5,
) -> FittedCalibration:
    """Fit a map, and measure its error rates by cross-validation over speakers.

    Args:
        trials: trials with their features, at least as many as `check_size` requires.
        names: names of the features; constant features are left out.
        operating_points: operating points at whose thresholds the error rates are measured.
        prior: prior probability of a target trial for which the fit is optimal, in (0, 1).

    Raises:
        ValueError: there are too few pairs or speakers, a class is missing, or the fitted weight of the score is not
            positive.
    """
    used = trials.varying(names)
    check_size(trials, 1 + len(used))
    fitted = fit_map(trials, used, prior)
    if not fitted.weights[SCORE] > 0:
        raise ValueError(
            "Expected larger scores for pairs of the same speaker than for pairs of different speakers, got the "
            "opposite. Either the model does not tell these speakers apart, or the labels are swapped (1 must be "
            "the label of a target pair)."
        )
    ratios = cross_validate(trials, used, prior)
    return FittedCalibration(
        map=fitted,
        held_out_ratios=ratios,
        cost=log_likelihood_ratio_cost(ratios, trials.labels),
        operating_points=measure_points(ratios, trials.labels, operating_points),
        constant=[name for name in names if name not in used],
    )


def measure_points(
    ratios: ArrayLike, labels: ArrayLike, operating_points: Sequence[OperatingPoint]
) -> tuple[OperatingPoint, ...]:
    """Return the operating points with the error rates of the given log-likelihood ratios."""
    measured = []
    for point in operating_points:
        miss_rate, false_alarm_rate = error_rates(ratios, labels, point.threshold)
        measured.append(replace(point, miss_rate=miss_rate, false_alarm_rate=false_alarm_rate))
    return tuple(measured)
