"""Confidence intervals and paired tests that resample speakers instead of trials.

In a trial list, each speaker occurs in many trials. Trials that share a speaker are correlated. An interval that treats
such trials as independent is several times too narrow. Each replicate therefore draws speakers with replacement, as
many as the list has. The weight of a target trial is the number of times that its speaker was drawn. The weight of an
impostor trial is the product of the numbers of times that its two speakers were drawn. A speaker who was drawn twice
counts as two speakers with the same recordings. Each copy has its own target trials, and impostor trials with the
copies of other speakers. Two copies of one speaker have no trials with each other.

Resampling of subsets of trials is described by R. Bolle, N. Ratha and S. Pankanti, "Error analysis of pattern
recognition systems: the subsets bootstrap", CVIU 93, 2004, and for speech by M. Bisani and H. Ney, ICASSP 2004, and N.
Poh, A. Martin and S. Bengio, IEEE TPAMI 29, 2007. The product of weights is described by A. Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1, 2007. With these weights, the variance between speakers is estimated
correctly. The variance between single trials is counted up to three times, so the intervals tend to be too wide rather
than too narrow.

The confidence limits are percentiles of the replicates. The limits of a minDCF are percentiles that are mirrored at the
estimate (the basic bootstrap of A. Davison and D. Hinkley, "Bootstrap methods and their application", 1997, section
5.2). The reason is that a minimum over thresholds is biased towards low values on a list of few speakers, and that
resampling adds the same bias to the replicates. An interval shows how much a number would vary with other speakers who
are recorded and paired in the same way. It does not cover other recording conditions or other training runs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from tqdm import tqdm

from ..calibration_hamspk import OperatingPoint
from .calibration_metrics import CLLR_SCALE
from .metrics import check_trials, detection_cost, detection_errors
from .speakers import TrialSpeakers

# With fewer speakers, there are too few different draws for percentiles to be meaningful.
FEWEST_SPEAKERS = 10
REPLICATES = 1000
CONFIDENCE = 0.95
# With fewer replicates, hardly any of them lie outside a 95 % interval.
FEWEST_REPLICATES = 100
# Largest rounding error of a rank that is computed from a confidence level.
ALLOWED_ROUNDING = 1e-9
# Prefix of the names of minimum detection costs.
MINIMUM = "min_dcf"
# Seconds before the progress bar appears.
BAR_DELAY = 2.0


@dataclass(frozen=True)
class PairedDifference:
    """Error rate or cost of two systems on the same trials, and their difference.

    Attributes:
        first: error rate or cost of the first system.
        second: error rate or cost of the second system.
        difference: `second - first`; below 0 if the second system is better.
        interval: lower and upper confidence limit of the difference. It excludes 0 if and only if `p_value` is at most
            1 minus the confidence level.
        p_value: two-sided p-value, in (0, 1]. It is small if the sign of the difference changes in few draws of the
            speakers.

    Example:
        ```python
        import numpy as np
        from hf_hamspk.evaluation import TrialSpeakers, paired_test

        enrolment, test = np.triu_indices(12)  # every speaker against itself and the others
        labels, draw = (enrolment == test).astype(int), np.random.default_rng(0)
        worse, better = (scale * labels + draw.normal(size=len(labels)) for scale in (1, 4))
        speakers = TrialSpeakers(tuple("abcdefghijkl"), enrolment, test)
        print(paired_test(worse, better, labels, speakers, progress=False)["eer"])
        ```
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_value: float


# Instances are compared by identity: a generated `__eq__` would compare arrays, and their truth value is ambiguous.
@dataclass(frozen=True, eq=False)
class BootstrapResult:
    """Error rates and costs of a system, and their values in the replicates with resampled speakers.

    Attributes:
        estimates: maps the name of each error rate or cost to its value on the original trials.
        replicates: maps the name of each error rate or cost to its values in the `R` replicates, float64, shape
            `(R,)`.
        left_out: number of replicates that were dropped because they had no target or no impostor trials.
        confidence: confidence level of the intervals, in (0, 1).

    Example:
        ```python
        import numpy as np
        from hf_hamspk.evaluation import TrialSpeakers, bootstrap

        enrolment, test = np.triu_indices(12)  # every speaker against itself and the others
        labels = (enrolment == test).astype(int)
        scores = 2 * labels + np.random.default_rng(0).normal(size=len(labels))
        found = bootstrap(scores, labels, TrialSpeakers(tuple("abcdefghijkl"), enrolment, test), progress=False)
        print(found.estimates["eer"], found.interval("eer"))
        ```
    """

    estimates: dict[str, float]
    replicates: dict[str, NDArray[np.float64]]
    left_out: int
    confidence: float

    def interval(self, name: str) -> tuple[float, float]:
        """Return the lower and upper confidence limit of an error rate or cost (see the module docstring)."""
        low, high = _percentiles(self.replicates[name], self.confidence)
        if not name.startswith(MINIMUM):
            return low, high
        estimate = self.estimates[name]
        # Mirrored limits may lie outside [0, 1], or both may lie on the same side of the estimate.
        return max(0.0, min(2 * estimate - high, estimate)), min(1.0, max(2 * estimate - low, estimate))


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    speakers: TrialSpeakers,
    points: Sequence[OperatingPoint] = (),
    log_likelihood_ratios: bool = False,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: bool = True,
) -> BootstrapResult:
    """Compute error rates and costs, and resample the speakers for their confidence intervals.

    The result contains `eer` (step convention) and, for each operating point, `min_dcf NAME`. If the scores are
    log-likelihood ratios, it also contains `cllr` and, for each operating point, `act_dcf NAME`, `miss_rate NAME` and
    `false_alarm_rate NAME` at its Bayes threshold. Each replicate is computed exactly, from all thresholds and all
    trials. The computation needs about 60 bytes of memory for each trial, for any number of replicates.

    Args:
        scores: shape `(N,)`, finite scores.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        speakers: speakers of the same trials.
        points: operating points with distinct names.
        log_likelihood_ratios: whether the scores are natural log-likelihood ratios.
        replicates: number of draws of the speakers, at least 100.
        confidence: confidence level of the intervals, in (0, 1).
        seed: random seed of the draws; the same seed and speakers give the same draws.
        progress: whether to show a progress bar.

    Returns:
        The error rates and costs on the original trials and in all replicates.

    Raises:
        ValueError: the scores or labels are invalid (see `detection_errors`), there are fewer than `FEWEST_SPEAKERS`
            speakers, the speakers contradict the labels, the lengths differ, two points have the same name, or
            `replicates` or `confidence` is out of range.
    """
    system = _System(scores, labels, speakers, points, log_likelihood_ratios)
    _check_request(speakers, replicates, confidence)
    drawn = np.array(list(_replicate([system], len(speakers.names), replicates, seed, progress)))[:, 0]
    kept = drawn[np.isfinite(drawn).all(axis=1)]
    return BootstrapResult(
        estimates=dict(zip(system.names, system.compute().tolist(), strict=True)),
        replicates=dict(zip(system.names, kept.T, strict=True)),
        left_out=len(drawn) - len(kept),
        confidence=confidence,
    )


def paired_test(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    speakers: TrialSpeakers,
    points: Sequence[OperatingPoint] = (),
    log_likelihood_ratios: bool = False,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, PairedDifference]:
    """Test whether two systems differ, by measuring both on the same draws of the speakers.

    The limits of the interval are two of the sorted differences, so that p-value and interval always agree.

    The p-value is the smallest significance level at which the interval of the difference excludes 0. Two shares of the
    replicates are computed: the share with a difference of at most 0, and the share with a difference of at least 0.
    The p-value is twice the smaller share. One is added to the numerator and to the denominator of this share, so that
    the p-value is never 0 (A. Davison and D. Hinkley, "Bootstrap methods and their application", 1997, sections 4.4 and
    5.4).

    Args:
        first: shape `(N,)`, finite scores of the first system.
        second: shape `(N,)`, finite scores of the second system on the same trials. The two systems may use different
            scales, unless `log_likelihood_ratios` is True.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        speakers: speakers of the same trials.
        points: operating points with distinct names.
        log_likelihood_ratios: whether the scores of both systems are natural log-likelihood ratios.
        replicates: number of draws of the speakers, at least 100.
        confidence: confidence level of the intervals, in (0, 1).
        seed: random seed of the draws; the same seed and speakers give the same draws.
        progress: whether to show a progress bar.

    Returns:
        A dictionary that maps the name of each error rate or cost (see `bootstrap`) to the comparison of the systems.

    Raises:
        ValueError: the inputs are invalid (see `bootstrap`), or there are too few replicates for the confidence level.
    """
    systems = [_System(scores, labels, speakers, points, log_likelihood_ratios) for scores in (first, second)]
    _check_request(speakers, replicates, confidence)
    drawn = np.array(list(_replicate(systems, len(speakers.names), replicates, seed, progress)))
    differences = drawn[:, 1] - drawn[:, 0]
    differences = differences[np.isfinite(differences).all(axis=1)]
    estimates = [system.compute() for system in systems]
    result = {}
    for name, one, other, spread in zip(systems[0].names, *estimates, differences.T, strict=True):
        result[name] = PairedDifference(
            first=float(one),
            second=float(other),
            difference=float(other - one),
            interval=rank_limits(spread, confidence),
            p_value=rank_p_value(spread),
        )
    return result


def draw_speakers(speakers: int, replicates: int, seed: int = 0) -> NDArray[np.float64]:
    """For each replicate, draw speakers with replacement, as many as there are.

    Returns:
        How many times each speaker was drawn in each replicate, `(replicates, speakers)`.
    """
    generator = np.random.default_rng(seed)
    return np.array([_draw(generator, speakers) for _ in range(replicates)])


def resample_errors(
    scores: ArrayLike, labels: ArrayLike, speakers: TrialSpeakers, draws: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Compute the EER and the minCllr of a system, on the original trials and for given draws of the speakers.

    With the same draws, several systems can be compared, also over several lists with common speakers.

    Args:
        scores: shape `(N,)`, finite scores.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        speakers: speakers of the same trials.
        draws: `(R, S)`, number of times that each of the `S` speakers was drawn; see `draw_speakers`.

    Returns:
        A dictionary with `eer` and `min_cllr`, each `(1 + R,)` float64. The first value is for the original trials. If
        a draw has no target or no impostor trials, its values are NaN.

    Raises:
        ValueError: the scores, labels or speakers are invalid (see `bootstrap`).
    """
    system, pooled = _System(scores, labels, speakers, (), False), _PooledTrials(scores, labels, speakers)
    rows = [None, *draws]
    return {
        "eer": np.array([system.compute(row)[0] for row in rows]),
        "min_cllr": np.array([pooled.min_cllr(row) for row in rows]),
    }


class _PooledTrials:
    """Trials of one system, grouped by score, from which the minCllr of many draws of the speakers is computed."""

    def __init__(self, scores: ArrayLike, labels: ArrayLike, speakers: TrialSpeakers) -> None:
        values, is_target = check_trials(scores, labels)
        order = np.argsort(values, kind="stable")
        self.is_target = is_target[order]
        self.sides = speakers.enrolment[order], speakers.test[order]
        ordered = values[order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def min_cllr(self, multiplicities: NDArray[np.float64] | None = None) -> float:
        """Return the minCllr in bits. Trials are weighted as in `_System.compute`. NaN if a class is missing."""
        if multiplicities is None:
            weights = np.ones(self.is_target.size)
        else:
            first, second = (multiplicities[side] for side in self.sides)
            weights = np.where(self.is_target, first, first * second)
        targets = np.add.reduceat(np.where(self.is_target, weights, 0.0), self.starts)
        impostors = np.add.reduceat(np.where(self.is_target, 0.0, weights), self.starts)
        used = targets + impostors > 0
        targets, impostors = targets[used], impostors[used]
        if not (targets.sum() and impostors.sum()):
            return math.nan
        both = targets + impostors
        # Isotonic regression of the share of targets joins the scores that get the same likelihood ratio.
        blocks = isotonic_regression(targets / both, weights=both).blocks[:-1]
        targets, impostors = np.add.reduceat(targets, blocks), np.add.reduceat(impostors, blocks)
        targets, impostors = targets / targets.sum(), impostors / impostors.sum()
        mixed = (targets > 0) & (impostors > 0)
        ratio = np.log(targets[mixed] / impostors[mixed])
        costs = targets[mixed] * np.logaddexp(0, -ratio) + impostors[mixed] * np.logaddexp(0, ratio)
        return float(costs.sum() * CLLR_SCALE)


class _System:
    """Trials of one system, sorted once by score, so that each replicate needs a single pass over them.

    A running sum of the weights of the sorted target trials gives the weighted number of misses at every threshold. A
    second running sum does the same for the rejected impostor trials. All error rates and costs are computed from these
    two sums.
    """

    def __init__(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        speakers: TrialSpeakers,
        points: Sequence[OperatingPoint],
        log_likelihood_ratios: bool,
    ) -> None:
        detection_errors(scores, labels)  # Checks that the equal error rate is defined.
        values, is_target = check_trials(scores, labels)
        _check_speakers(speakers, is_target)
        if len({point.name for point in points}) < len(points):
            raise ValueError(f"points must have distinct names, got {', '.join(point.name for point in points)}.")
        self.points = tuple(points)
        self.log_likelihood_ratios = log_likelihood_ratios
        self.names = _number_names(points, log_likelihood_ratios)
        rows = [np.flatnonzero(mask) for mask in (is_target, ~is_target)]
        rows = [row[np.argsort(values[row])] for row in rows]
        targets, impostors = (values[row] for row in rows)
        self.target_speaker = speakers.enrolment[rows[0]]
        self.impostor_speakers = speakers.enrolment[rows[1]], speakers.test[rows[1]]
        # Numbers of targets and of impostors below each distinct score. The last entry belongs to "reject all".
        self.target_places, self.impostor_places = _places(targets, impostors, np.union1d(targets, impostors))
        # The cheapest threshold is a target score or rejects all trials: raising a threshold to the next target score
        # adds no misses and can only reduce the false alarms.
        self.cheap_places = _places(targets, impostors, np.unique(targets))
        if log_likelihood_ratios:
            thresholds = [point.threshold for point in points]
            self.point_places = [np.searchsorted(side, thresholds) for side in (targets, impostors)]
            self.target_costs = np.logaddexp(0.0, -targets.astype(np.float64))
            self.impostor_costs = np.logaddexp(0.0, impostors.astype(np.float64))
        # Every replicate reuses these running sums, and these buffers for the weights of the trials.
        self.misses, self.rejected = np.zeros(targets.size + 1), np.zeros(impostors.size + 1)
        self.room = np.empty(max(targets.size, impostors.size)), np.empty(impostors.size)

    def compute(self, multiplicities: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the error rates and costs in the order of `names`.

        Args:
            multiplicities: `(S,)`, number of times each speaker was drawn, as whole numbers in float64, so that sums
                are exact. None uses each speaker once.

        Returns:
            The values, all NaN if no target or no impostor trial was drawn.
        """
        targets, impostors = (self.room[0][: self.target_speaker.size], self.room[1])
        if multiplicities is None:
            targets[:], impostors[:] = 1.0, 1.0
        else:
            # The indices have been checked. mode="clip" avoids a second check and a copy.
            np.take(multiplicities, self.target_speaker, out=targets, mode="clip")
        np.cumsum(targets, out=self.misses[1:])
        missed_cost = targets @ self.target_costs if self.log_likelihood_ratios else 0.0
        if multiplicities is not None:
            other = self.room[0][: impostors.size]
            np.take(multiplicities, self.impostor_speakers[0], out=impostors, mode="clip")
            np.take(multiplicities, self.impostor_speakers[1], out=other, mode="clip")
            np.multiply(impostors, other, out=impostors)
        np.cumsum(impostors, out=self.rejected[1:])
        if not (self.misses[-1] and self.rejected[-1]):
            return np.full(len(self.names), np.nan)
        alarmed_cost = impostors @ self.impostor_costs if self.log_likelihood_ratios else 0.0
        numbers = [self._equal_error_rate()]
        numbers += [self._minimum_cost(point) for point in self.points]
        if self.log_likelihood_ratios:
            mean_costs = missed_cost / self.misses[-1], alarmed_cost / self.rejected[-1]
            numbers += [sum(mean_costs) * CLLR_SCALE, *self._actual_costs()]
        return np.array(numbers)

    def _equal_error_rate(self) -> float:
        """Return the equal error rate of the weighted trials (step convention).

        The threshold is found by bisection. The error rates are compared as whole numbers, without rounding errors.
        """
        targets, impostors = int(self.misses[-1]), int(self.rejected[-1])

        def products(point: int) -> tuple[int, int]:
            missed = int(self.misses[self.target_places[point]])
            alarmed = impostors - int(self.rejected[self.impostor_places[point]])
            return missed * impostors, alarmed * targets

        # Miss rate minus false-alarm rate rises with the threshold. Bisection finds the two points around its zero.
        before, after = 0, len(self.target_places) - 1
        while after - before > 1:
            middle = (before + after) // 2
            missed, alarmed = products(middle)
            before, after = (before, middle) if missed >= alarmed else (middle, after)
        nearest = min((products(before), products(after)), key=lambda pair: (abs(pair[0] - pair[1]), max(pair)))
        return max(nearest) / (targets * impostors)

    def _minimum_cost(self, point: OperatingPoint) -> float:
        """Return the minimum detection cost of the weighted trials.

        The thresholds are divided into runs, and runs that cannot contain the minimum are skipped. The misses at the
        first threshold of a run and the false alarms at the last one give a lower bound of all costs in the run,
        because no threshold of the run has fewer misses or fewer false alarms.
        """
        missed, rejected = self.cheap_places

        def rates(places: slice | NDArray) -> tuple[NDArray, NDArray]:
            alarmed = self.rejected[-1] - self.rejected[rejected[places]]
            return self.misses[missed[places]] / self.misses[-1], alarmed / self.rejected[-1]

        length = max(1, math.isqrt(len(missed)))
        edges = np.append(np.arange(0, len(missed) - 1, length), len(missed) - 1)
        miss_rates, alarm_rates = rates(edges)
        cheapest = _cost(miss_rates, alarm_rates, point).min()
        for run in np.flatnonzero(_cost(miss_rates[:-1], alarm_rates[1:], point) < cheapest):
            inside = rates(slice(edges[run], edges[run + 1]))
            cheapest = min(cheapest, _cost(*inside, point).min())
        return float(cheapest)

    def _actual_costs(self) -> list[float]:
        """Return actDCF, miss rate and false-alarm rate of each operating point, in the order of `_number_names`."""
        numbers = []
        for number, point in enumerate(self.points):
            miss_rate = self.misses[self.point_places[0][number]] / self.misses[-1]
            alarm_rate = (self.rejected[-1] - self.rejected[self.point_places[1][number]]) / self.rejected[-1]
            numbers += [float(_cost(miss_rate, alarm_rate, point)), miss_rate, alarm_rate]
        return numbers


def _replicate(
    systems: Sequence[_System], speakers: int, replicates: int, seed: int, progress: bool
) -> Iterator[list[NDArray[np.float64]]]:
    """Yield the error rates and costs of every system for each draw of the speakers."""
    generator = np.random.default_rng(seed)
    bar = tqdm(range(replicates), desc="resampling", disable=not progress, leave=False, delay=BAR_DELAY)
    for _ in bar:
        drawn = _draw(generator, speakers)
        yield [system.compute(drawn) for system in systems]


def _draw(generator: np.random.Generator, speakers: int) -> NDArray[np.float64]:
    return np.bincount(generator.integers(speakers, size=speakers), minlength=speakers).astype(np.float64)


def _cost(miss_rate: NDArray, alarm_rate: NDArray, point: OperatingPoint) -> NDArray:
    return detection_cost(miss_rate, alarm_rate, point.prior, point.cost_miss, point.cost_false_alarm)


def _number_names(points: Sequence[OperatingPoint], log_likelihood_ratios: bool) -> list[str]:
    names = ["eer", *(f"{MINIMUM} {point.name}" for point in points)]
    if log_likelihood_ratios:
        names += ["cllr"]
        names += [
            f"{number} {point.name}" for point in points for number in ("act_dcf", "miss_rate", "false_alarm_rate")
        ]
    return names


def _places(targets: NDArray, impostors: NDArray, thresholds: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of sorted targets and of sorted impostors below each threshold; the last one is `inf`."""
    below = np.searchsorted(targets, thresholds), np.searchsorted(impostors, thresholds)
    return np.append(below[0], targets.size), np.append(below[1], impostors.size)


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def rank_limits(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return two of the sorted values as confidence limits.

    Let `R` be the number of values and `j = floor((1 - confidence) / 2 * (R + 1))`. The limits are the `j`-th smallest
    and the `j`-th largest value. Both limits lie on the same side of 0 if and only if at most `j - 1` values are 0 or
    lie on the other side. This is the case if and only if the p-value `2 * (1 + number of these values) / (R + 1)` is
    at most `1 - confidence`.
    """
    # `ALLOWED_ROUNDING` is needed because `1 - 0.95` is not exactly 0.05.
    rank = math.floor((1 - confidence) / 2 * (len(values) + 1) + ALLOWED_ROUNDING)
    if rank < 1:
        raise ValueError(
            f"A comparison with confidence {confidence:g} needs at least {math.ceil(2 / (1 - confidence)) - 1} "
            f"replicates, got {len(values)}. Raise replicates, or lower confidence."
        )
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def rank_p_value(values: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of replicates of a difference; see `paired_test`. It agrees with `rank_limits`."""
    tail = 1 + min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * tail / (len(values) + 1))


def _check_speakers(speakers: TrialSpeakers, is_target: NDArray[np.bool_]) -> None:
    if len(speakers) != is_target.size:
        raise ValueError(
            f"speakers must have one entry per score, got {len(speakers)} entries for {is_target.size} scores."
        )
    wrong = (speakers.enrolment == speakers.test) != is_target
    if wrong.any():
        raise ValueError(
            f"The speakers contradict {int(wrong.sum())} of {is_target.size} labels. Both recordings of a target trial "
            "must have the same speaker, and the recordings of an impostor trial must have different speakers."
        )


def _check_request(speakers: TrialSpeakers, replicates: int, confidence: float) -> None:
    if len(speakers.names) < FEWEST_SPEAKERS:
        raise ValueError(
            f"Resampling needs at least {FEWEST_SPEAKERS} speakers, and is reliable with about 50 or more. These "
            f"trials have {len(speakers.names)}. Report the error rates without intervals."
        )
    if replicates < FEWEST_REPLICATES:
        raise ValueError(f"replicates must be at least {FEWEST_REPLICATES}, got {replicates}. The usual value is 1000.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}. The usual value is 0.95.")
