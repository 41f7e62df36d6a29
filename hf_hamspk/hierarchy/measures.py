"""Statistics of distances, trees and ranks. They need no model.

All distances are symmetric matrices `(N, N)` in float64 with zeros on the diagonal.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

Matrix = NDArray[np.float64]
# Fewest points for the four-point condition, and fewest values for a rank correlation.
FEWEST_POINTS, FEWEST_VALUES = 4, 5


class FourPoint(NamedTuple):
    """Hyperbolicity of a set of points by the four-point condition.

    Attributes:
        largest: `2 delta / diameter`, in [0, 1], with the largest `delta` of all quadruples. It is 0 for a tree.
        mean: mean of `delta` over all quadruples, divided by the mean distance. It is 0 for a tree.
    """

    largest: float
    mean: float


def four_point(distances: Matrix) -> FourPoint:
    """Return the exact Gromov hyperbolicity of at least four points, computed from all quadruples.

    Four points have three sums of opposite distances. `delta` is half the difference of the two largest sums (Gromov
    1987; Fournier et al. 2015). Time and memory grow with `N^4 / 24`, so `N` should be below 80.
    """
    flat = distances.ravel()
    first, second, third = (flat.take(pairs[0]) + flat.take(pairs[1]) for pairs in _opposite_pairs(len(distances)))
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    # The largest sum minus the second largest, without sorting.
    delta = (np.maximum(larger, third) - np.maximum(np.minimum(larger, third), smaller)) / 2
    scale = float(distances.max())
    if scale == 0:
        return FourPoint(0.0, 0.0)
    middle = float(distances.sum()) / (len(distances) * (len(distances) - 1))
    return FourPoint(2 * float(delta.max()) / scale, float(delta.mean()) / middle)


@functools.lru_cache(maxsize=4)
def _opposite_pairs(count: int) -> NDArray[np.intp]:
    """Return the indices, in a flattened distance matrix, of the three pairs of opposite distances of each quadruple.

    The shape is `(3, 2, Q)` for `Q` quadruples.
    """
    i, j, k, m = np.array(list(itertools.combinations(range(count), 4)), np.intp).T
    return np.array([[i * count + j, k * count + m], [i * count + k, j * count + m], [i * count + m, j * count + k]])


def average_linkage(distances: Matrix) -> Matrix:
    """Return the dendrogram of average linkage (UPGMA), in the format of `scipy.cluster.hierarchy.linkage`."""
    return linkage(squareform(distances, checks=False), "average")


def cophenetic_correlation(distances: Matrix, tree: Matrix) -> float:
    """Return the correlation of the distances with the heights at which a dendrogram joins the points, in [-1, 1]."""
    given, joined = squareform(distances, checks=False), np.asarray(cophenet(tree))
    return correlation(given, joined)


def tree_distortion(distances: Matrix, base: int) -> float:
    """Return the mean relative difference between the distances and their approximation by Gromov's tree, in [0, 1].

    The result is 0 if the distances are those of a tree. Gromov's tree keeps the distances from the base point. It
    replaces the Gromov product `(d(x, base) + d(y, base) - d(x, y)) / 2` of two points by the height at which single
    linkage joins them: of each chain of points from `x` to `y`, the smallest product between neighbours is taken, and
    the height is the largest of these values. No distance becomes larger.

    Args:
        distances: distances of N points.
        base: index of the base point.
    """
    from_base = distances[base]
    products = (from_base[:, None] + from_base[None, :] - distances) / 2
    top = products.max() + 1.0
    # Single linkage merges the smallest values first, and needs values of at least 0.
    heights = cophenet(linkage(squareform(top - products, checks=False), "single"))
    chained = top - squareform(heights)
    in_tree = from_base[:, None] + from_base[None, :] - 2 * chained
    upper = np.triu_indices(len(distances), 1)
    known = distances[upper] > 0
    if not known.any():
        return 0.0
    return float(np.mean(np.abs(distances[upper] - in_tree[upper])[known] / distances[upper][known]))


class Dendrogram:
    """Dendrogram whose agreement with labels can be measured.

    Args:
        tree: dendrogram of N points, from `average_linkage`.
    """

    def __init__(self, tree: Matrix):
        count = len(tree) + 1
        self.children = tree[:, :2].astype(int)
        members = np.zeros((2 * count - 1, count), np.float32)
        members[np.arange(count), np.arange(count)] = 1
        for row, (left, right) in enumerate(self.children):
            members[count + row] = members[left] + members[right]
        self.members = members
        self.heights = squareform(cophenet(tree))
        self._upper = np.triu_indices(count, 1)

    def purity(self, classes: NDArray[np.int64]) -> float:
        """Return the dendrogram purity for the classes `(N,)` of the points, in (0, 1] (Heller and Ghahramani 2005).

        Two points of the same class are drawn. The purity is the expected share of this class in the smallest subtree
        that contains both. It is NaN if no two points have the same class.
        """
        labels = np.eye(int(classes.max()) + 1, dtype=np.float32)[classes]
        counts = self.members @ labels
        pairs = counts[self.children[:, 0]] * counts[self.children[:, 1]]
        inner = counts[len(classes) :]
        shares = inner / inner.sum(1, keepdims=True)
        total = float(pairs.sum())
        return float((pairs * shares).sum() / total) if total else float("nan")

    def agreement(self, classes: NDArray[np.int64]) -> float:
        """Return the correlation of the joining heights with whether two points have different classes, in [-1, 1]."""
        different = (classes[:, None] != classes[None, :])[self._upper]
        return correlation(self.heights[self._upper], different.astype(float))


def correlation(first: NDArray, second: NDArray) -> float:
    """Return Pearson's correlation of two vectors `(N,)`; NaN if one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale > 0 else float("nan")


def ranks_within(values: NDArray, strata: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the centred ranks of values `(N,)` within their strata `(N,)`.

    A rank is divided by the size of its stratum, and the mean of the stratum is subtracted. With one stratum, the
    correlation of two such vectors is Spearman's correlation. With several strata, it compares only values in the same
    stratum. The rank of a value that is alone in its stratum is 0.
    """
    ranks = np.zeros(len(values))
    for stratum in np.unique(strata):
        own = strata == stratum
        ranks[own] = (rankdata(values[own]) - 0.5) / own.sum() - 0.5
    return ranks


def rank_effect(ranks: NDArray, classes: NDArray) -> float:
    """Return the share of the variance of the ranks that the classes explain, in [0, 1].

    It is the eta squared of the Kruskal-Wallis test.
    """
    centred = ranks - ranks.mean()
    counts = np.bincount(classes)
    means = np.bincount(classes, centred) / np.maximum(counts, 1)
    total = float(centred @ centred)
    return float((counts * means**2).sum()) / total if total > 0 else float("nan")


def permutation_p_value(observed: float, drawn: Sequence[float] | NDArray, tail: str) -> float:
    """Return the p-value of an observed statistic from the statistics of random draws.

    Args:
        observed: observed statistic.
        drawn: statistics of the draws.
        tail: `"low"` or `"high"` if low or high values speak against the null hypothesis; `"both"` if values far from 0
            do.
    """
    values = np.asarray(drawn, float)
    # Draws that equal the observed value up to rounding count as at least as extreme.
    slack = 1e-12 + 1e-9 * abs(observed)
    if tail == "low":
        extreme = values <= observed + slack
    elif tail == "high":
        extreme = values >= observed - slack
    else:
        extreme = np.abs(values) >= abs(observed) - slack
    return (1 + int(extreme.sum())) / (1 + len(values))


def permute_within(strata: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return a random permutation `(N,)` that exchanges only members of the same stratum."""
    order = np.empty(len(strata), np.int64)
    order[np.argsort(strata, kind="stable")] = np.lexsort((generator.random(len(strata)), strata))
    return order
