"""Scores: larger is more alike, matrix and pairs agree, and nothing divides by zero."""

import pytest
import torch
from torch.nn import functional as F

from hf_hamspk.geometry_hamspk import normalize, project, released_radius, score, score_matrix
from hf_hamspk.losses.lifting import project_norm

WAYS = [
    ("cosine", "released", 3.0, 1.0),
    ("hyperbolic", "released", 3.0, 1.0),
    ("hyperbolic", "released", 5.0, 1.0),
    ("hyperbolic", "curved", 0.1, 1.0),
    ("hyperbolic", "curved", 1.0, 2.0),
    ("hyperbolic", "curved", 10.0, 1.0),
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))


@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_matrix_is_pair_by_pair(way, dtype):
    x, y = torch.randn(2, 5, 16, dtype=dtype), torch.randn(2, 7, 16, dtype=dtype)
    matrix = score_matrix(x, y, *way)
    pairs = score(x[:, :, None], y[:, None], *way)
    assert matrix.shape == pairs.shape == (2, 5, 7) and matrix.dtype == dtype
    torch.testing.assert_close(matrix, pairs, rtol=1e-4, atol=1e-4)


@every_way
def test_a_score_is_symmetric_and_highest_for_the_same_embedding(way):
    x, y = torch.randn(2, 50, 16)
    assert torch.equal(score(x, y, *way), score(y, x, *way))
    own = score(x, x, *way)
    assert (score(x, y, *way) < own).all()
    torch.testing.assert_close(own, torch.full((50,), 1.0 if way[0] == "cosine" else 0.0))


def test_cosine():
    x, y = torch.randn(2, 50, 16)
    torch.testing.assert_close(score(x, y, *WAYS[0]), F.cosine_similarity(x, y))
    assert score_matrix(x, y, *WAYS[0]).abs().max() <= 1 + 1e-6
    torch.testing.assert_close(score(1e3 * x, 1e-3 * y, *WAYS[0]), F.cosine_similarity(x, y))


@pytest.mark.parametrize("c", [1.5, 3.0, 5.0])
def test_released_scores_of_clipped_embeddings_are_ordered_as_their_cosines(c):
    """Embeddings on the clip sphere share one radius, so the distance is a function of the angle."""
    x, y = torch.randn(2, 200, 16, dtype=torch.float64)
    assert min(x.norm(dim=-1).min(), y.norm(dim=-1).min()) > released_radius(c)
    cosine = score_matrix(x, y, "cosine", "released", c, 1.0).flatten()
    hyperbolic = score_matrix(x, y, "hyperbolic", "released", c, 1.0).flatten()
    assert (hyperbolic[cosine.argsort()].diff() >= -1e-12).all()
    assert torch.equal(hyperbolic.argsort(), cosine.argsort())


@pytest.mark.parametrize("c", [0.1, 1.0, 4.0])
def test_curved_score_is_minus_a_distance_of_curvature_minus_c(c):
    """From the origin it is minus twice the norm; along a ray distances add."""
    ray = F.normalize(torch.randn(16, dtype=torch.float64), dim=-1)
    near, far, zero = 0.2 * ray, 0.7 * ray, 0 * ray
    way = ("hyperbolic", "curved", c, 1.0)
    torch.testing.assert_close(score(zero, far, *way), torch.tensor(-1.4, dtype=torch.float64))
    torch.testing.assert_close(score(near, far, *way), torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(score(-near, far, *way), torch.tensor(-1.8, dtype=torch.float64))


@every_way
def test_a_zero_embedding_has_a_finite_score_and_gradient(way):
    x = torch.zeros(3, 16, requires_grad=True)
    y = torch.cat([torch.zeros(1, 16), torch.randn(2, 16)])
    for function in (score, score_matrix):
        scores = function(x, y, *way)
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        assert scores.isfinite().all() and gradient.isfinite().all()
    if way[0] == "cosine":
        assert (score(x, y, *way) == 0).all()


@every_way
def test_half_precision_is_scored_in_float32(way):
    x, y = torch.randn(2, 5, 16)
    scores = score(x.bfloat16(), y.bfloat16(), *way)
    assert scores.dtype == score_matrix(x.half(), y.half(), *way).dtype == torch.float32
    assert torch.equal(scores, score(x.bfloat16().float(), y.bfloat16().float(), *way))


def test_normalize():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-6, 0.0]])
    torch.testing.assert_close(normalize(x), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("place", [way[1:] for way in WAYS[1:]], ids=str)
def test_the_norms_of_the_projection_and_its_slope(place):
    # The rim itself is among them: there the slope is that from within.
    rim = place[2] if place[0] == "curved" else released_radius(place[1])
    radius = torch.tensor([1e-12, 1e-3, 0.3, 0.9, 1.5, rim, 40.0], dtype=torch.float64, requires_grad=True)
    point, _ = project(radius[:, None], *place)
    (expected,) = torch.autograd.grad(point.position.sum(), radius)
    position, conformal, slope = project_norm(radius, *place)
    torch.testing.assert_close(position, point.position[:, 0])
    torch.testing.assert_close(conformal, point.conformal[:, 0])
    torch.testing.assert_close(slope, expected)
