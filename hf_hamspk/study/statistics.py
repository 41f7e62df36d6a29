"""Statistics of a study: paired comparisons that resample seeds and speakers together, and Holm's correction.

Each replicate draws speakers of the test lists with replacement; the draw is the same for all heads, seeds and lists.
Each replicate also draws seeds with replacement; this draw is the same for both heads of a comparison. Of `n` seeds,
`n - 1` are drawn, because `n` draws would underestimate the variance of a mean over `n` seeds by the factor
`(n - 1) / n` (J. Rao and C. Wu, "Resampling inference with complex survey data", JASA 83, 1988). The relative
difference of two heads is computed from the mean errors of the heads over the seeds. For several lists, it is the mean
of the relative differences of the lists, as in arXiv 2601.19709.

X. Bouthillier et al., "Accounting for variance in machine learning benchmarks", MLSys 2021, recommend the probability
that one system is better than the other in a single run. S. Holm, "A simple sequentially rejective multiple test
procedure", 1979, corrects the p-values of a family.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..evaluation.intervals import rank_limits, rank_p_value

# With fewer seeds, the variance between seeds cannot be estimated.
FEWEST_SEEDS = 2
# Largest relative difference. It replaces the infinite relative difference to a second head without errors.
MOST_WORSE = 1000.0
# Name of the mean over the lists.
MEAN = "mean"


@dataclass(frozen=True)
class HeadComparison:
    """Comparison of two heads on a list, or over several lists.

    Attributes:
        first, second: mean error of each head over the seeds; None if several lists are compared.
        relative: relative difference, `first / second - 1`; below 0 if the first head is better.
        interval: lower and upper confidence limit of the relative difference. It excludes 0 if and only if `p_value` is
            at most 1 minus the confidence level.
        probability: probability, in [0, 1], that a run of the first head has a lower error than the run of the second
            head with the same seed, if the speakers are drawn again.
        p_value: two-sided p-value, in (0, 1], not corrected for the number of comparisons.
        seeds: number of seeds that both heads have.
    """

    first: float | None
    second: float | None
    relative: float
    interval: tuple[float, float]
    probability: float
    p_value: float
    seeds: int


def compare_heads(
    first: Mapping[str, NDArray], second: Mapping[str, NDArray], confidence: float = 0.95, seed: int = 0
) -> HeadComparison:
    """Compare two heads over one or several lists.

    Args:
        first: for each list, the errors of the first head, `(n, 1 + R)`. Each row belongs to one of `n` seeds. It has
            the error on the original trials, and then the errors for `R` draws of the speakers (`resample_errors`).
        second: errors of the second head with the same seeds, lists and draws.
        confidence: confidence level of the interval, in (0, 1).
        seed: random seed of the draws of seeds.

    Raises:
        ValueError: there are fewer than `FEWEST_SEEDS` seeds, or the lists differ.
    """
    if set(first) != set(second) or not first:
        raise ValueError(f"Expected errors of both heads on the same lists, got {sorted(first)} and {sorted(second)}.")
    seeds, columns = next(iter(first.values())).shape
    if seeds < FEWEST_SEEDS:
        raise ValueError(f"A comparison needs at least {FEWEST_SEEDS} seeds, got {seeds}.")
    generator = np.random.default_rng(seed)
    # Weights of the seeds: 1 for each seed on the original trials, then the counts of n - 1 draws in each replicate.
    drawn = generator.integers(seeds, size=(columns - 1, seeds - 1))
    weights = np.stack([(drawn == one).sum(1) for one in range(seeds)]) / (seeds - 1)
    weights = np.concatenate([np.full((seeds, 1), 1 / seeds), weights], axis=1)
    relative = np.mean([_relative(first[name], second[name], weights) for name in first], axis=0)
    spread = relative[1:][np.isfinite(relative[1:])]
    wins = np.mean([_wins(first[name][:, 1:], second[name][:, 1:]) for name in first])
    means = [float(errors[:, 0].mean()) for head in (first, second) for errors in head.values()]
    return HeadComparison(
        first=means[0] if len(first) == 1 else None,
        second=means[1] if len(first) == 1 else None,
        relative=float(relative[0]),
        interval=rank_limits(spread, confidence),
        probability=float(wins),
        p_value=rank_p_value(spread),
        seeds=seeds,
    )


def _relative(first: NDArray, second: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Return the relative differences `(1 + R,)` of the weighted means over seeds; 0 where both means are 0."""
    one, other = (first * weights).sum(0), (second * weights).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where((one == 0) & (other == 0), 0.0, one / other - 1)
    return np.minimum(relative, MOST_WORSE)


def _wins(first: NDArray, second: NDArray) -> float:
    """Return the share of pairs of runs in which the first run is better; a tie counts as one half."""
    known = np.isfinite(first) & np.isfinite(second)
    return float(np.mean(((first < second) + 0.5 * (first == second))[known]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of comparisons of a family, in the same order."""
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        running = max(running, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(1.0, running)
    return corrected


def expected_best(values: Sequence[float]) -> list[float]:
    """Return the expected lowest of `k` values drawn without replacement, for each `k` from 1 to `len(values)`.

    The result shows which error a head reaches with a search of only `k` settings. (J. Dodge et al., "Show your work",
    EMNLP 2019, draw with replacement.)
    """
    ordered, count = sorted(values), len(values)
    expected = []
    for size in range(1, count + 1):
        # The value of rank r is the lowest if the other size - 1 values are among the count - 1 - r larger values.
        shares = [math.comb(count - 1 - rank, size - 1) / math.comb(count, size) for rank in range(count)]
        expected.append(sum(share * value for share, value in zip(shares, ordered, strict=True)))
    return expected
