"""Statistics of distances, trees and ranks against brute force, known values and simulated null hypotheses."""

import itertools

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kruskal, spearmanr

from hf_hamspk.hierarchy.measures import (
    Dendrogram,
    average_linkage,
    cophenetic_correlation,
    correlation,
    four_point,
    permutation_p_value,
    permute_within,
    rank_effect,
    ranks_within,
    tree_distortion,
)


def tree_metric(leaves, seed):
    """Distances of the leaves of a random tree with random lengths of edges, with some inner nodes as points."""
    draw = np.random.default_rng(seed)
    nodes = 2 * leaves
    distances = np.zeros((nodes, nodes))
    for node in range(1, nodes):
        parent = draw.integers(node)
        distances[node, :node] = distances[parent, :node] + draw.uniform(0.1, 2)
        distances[:node, node] = distances[node, :node]
    kept = draw.permutation(nodes)[:leaves]
    return distances[np.ix_(kept, kept)]


def points(count, size, seed):
    return squareform(pdist(np.random.default_rng(seed).standard_normal((count, size))))


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_has_no_hyperbolicity_and_no_distortion(seed):
    distances = tree_metric(20, seed)
    assert max(four_point(distances)) < 1e-12
    assert tree_distortion(distances, 3) < 1e-12


def test_equal_distances_are_a_star():
    distances = 1.5 * (1 - np.eye(12))
    assert four_point(distances) == (0, 0) and tree_distortion(distances, 0) < 1e-12


def test_a_cycle_of_four_points_is_as_far_from_a_tree_as_possible():
    cycle = np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]], float)
    assert four_point(cycle).largest == 1
    assert four_point(np.zeros((4, 4))) == (0, 0)


def test_the_four_point_condition_agrees_with_brute_force():
    distances = points(9, 3, 0)
    deltas = []
    for i, j, k, m in itertools.combinations(range(9), 4):
        sums = sorted(
            [
                distances[i, j] + distances[k, m],
                distances[i, k] + distances[j, m],
                distances[i, m] + distances[j, k],
            ]
        )
        deltas.append((sums[2] - sums[1]) / 2)
    found = four_point(distances)
    assert found.largest == pytest.approx(2 * max(deltas) / distances.max())
    assert found.mean == pytest.approx(np.mean(deltas) / distances[np.triu_indices(9, 1)].mean())


def test_the_hyperbolic_plane_has_a_delta_of_at_most_log_2():
    draw = np.random.default_rng(0)
    radius, angle = draw.uniform(4, 9, 40), draw.uniform(0, 2 * np.pi, 40)
    cosh = np.cosh(radius)[:, None] * np.cosh(radius) - np.sinh(radius)[:, None] * np.sinh(radius) * np.cos(
        angle[:, None] - angle
    )
    distances = np.arccosh(np.maximum(cosh, 1)) * (1 - np.eye(40))
    assert 0.3 < four_point(distances).largest * distances.max() / 2 <= np.log(2)


def test_the_tree_never_makes_a_distance_longer():
    distances = points(15, 4, 1)
    products = (distances[:1] + distances[:, :1] - distances) / 2
    for middle in range(15):  # The largest value that a chain of points keeps throughout.
        products = np.maximum(products, np.minimum(products[:, middle, None], products[None, middle]))
    in_tree = distances[:1] + distances[:, :1] - 2 * products
    upper = np.triu_indices(15, 1)
    assert (in_tree[upper] <= distances[upper] + 1e-12).all()
    expected = ((distances - in_tree)[upper] / distances[upper]).mean()
    assert tree_distortion(distances, 0) == pytest.approx(expected)


def test_an_ultrametric_has_a_cophenetic_correlation_of_1():
    ultrametric = squareform(cophenet(linkage(pdist(np.random.default_rng(0).standard_normal((20, 3))), "average")))
    assert cophenetic_correlation(ultrametric, average_linkage(ultrametric)) == pytest.approx(1)
    assert cophenetic_correlation(points(20, 50, 0), average_linkage(points(20, 50, 0))) < 0.8


def test_the_purity_of_a_dendrogram_agrees_with_its_definition():
    distances, classes = points(14, 2, 3), np.random.default_rng(3).integers(0, 3, 14)
    found = Dendrogram(average_linkage(distances))
    subtrees = [set(np.flatnonzero(row)) for row in found.members]
    shares = []
    for a, b in itertools.combinations(range(14), 2):
        if classes[a] == classes[b]:
            smallest = min((one for one in subtrees if {a, b} <= one), key=len)
            shares.append(np.mean(classes[list(smallest)] == classes[a]))
    assert found.purity(classes) == pytest.approx(np.mean(shares))


def test_separate_classes_are_pure_and_agree():
    classes = np.repeat([0, 1, 2], 6)
    distances = np.where(classes[:, None] == classes, 1.0, 5.0) * (1 - np.eye(18))
    found = Dendrogram(average_linkage(distances))
    assert found.purity(classes) == pytest.approx(1) and found.agreement(classes) == pytest.approx(1)
    assert np.isnan(found.purity(np.arange(18)))


def test_rank_statistics_agree_with_scipy():
    draw = np.random.default_rng(0)
    first, second, classes = draw.standard_normal(50), draw.integers(0, 9, 50), draw.integers(0, 3, 50)
    one = np.zeros(50, int)
    expected = spearmanr(first, second).statistic
    assert correlation(ranks_within(first, one), ranks_within(second, one)) == pytest.approx(expected)
    shares = rank_effect(ranks_within(first, one), classes)
    assert shares == pytest.approx(kruskal(*(first[classes == i] for i in range(3))).statistic / 49)


def test_ranks_within_strata_ignore_differences_between_strata():
    strata = np.repeat([0, 1], 20)
    within = np.random.default_rng(0).standard_normal(40)
    first, second = within + 100 * strata, np.exp(within) - 50 * strata
    assert correlation(ranks_within(first, strata), ranks_within(second, strata)) == pytest.approx(1)
    order = permute_within(strata, np.random.default_rng(1))
    assert (strata[order] == strata).all() and sorted(order) == list(range(40)) and (order != np.arange(40)).any()


def test_p_values():
    assert permutation_p_value(5, [1, 2, 3], "high") == 1 / 4 and permutation_p_value(5, [1, 2, 3], "low") == 1
    assert permutation_p_value(-5, [1, 2, 3], "both") == 1 / 4 and permutation_p_value(2, [-2, 1, 3], "both") == 3 / 4


@pytest.mark.slow
def test_p_values_are_uniform_if_nothing_is_there():
    """Ranks, classes and dendrograms of independent values: of 300 p-values, about 5 % are below 0.05."""
    draw, p_values = np.random.default_rng(0), []
    for _ in range(100):
        values, others, classes = draw.standard_normal(20), draw.standard_normal(20), np.arange(20) % 3
        ranks, more = ranks_within(values, classes * 0), ranks_within(others, classes * 0)
        tree = Dendrogram(average_linkage(squareform(pdist(values[:, None]))))
        orders = [draw.permutation(20) for _ in range(39)]
        for statistic, tail in (
            (lambda order, ranks=ranks, more=more: correlation(ranks[order], more), "both"),
            (lambda order, ranks=ranks, classes=classes: rank_effect(ranks[order], classes), "high"),
            (lambda order, tree=tree, classes=classes: tree.purity(classes[order]), "high"),
        ):
            drawn = [statistic(order) for order in orders]
            p_values.append(permutation_p_value(statistic(np.arange(20)), drawn, tail))
    found = np.array(p_values)
    assert 0.02 < (found <= 0.05).mean() < 0.09
    assert 0.42 < (found <= 0.5).mean() < 0.58
