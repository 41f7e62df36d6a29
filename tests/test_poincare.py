"""The laws of the Poincaré ball, for both variants, over curvatures, precisions and the edges."""

import re

import pytest
import torch

from hf_hamspk.geometry_hamspk import (
    BallPoints,
    arcosh1p,
    clip_norm,
    distance,
    pairwise_distance,
    project_curved,
    project_released,
    released_radius,
)
from hf_hamspk.losses.lifting import distance_and_slopes

CASES = [("released", c) for c in (1.5, 2.0, 3.0, 5.0, 10.0)] + [("curved", c) for c in (1e-4, 0.1, 1.0, 10.0)]
ATOL = {torch.float32: 2e-4, torch.float64: 1e-9}
DTYPES = list(ATOL)

every_case = pytest.mark.parametrize(("variant", "c"), CASES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def project(v: torch.Tensor, variant: str, c: float) -> BallPoints:
    return project_released(v, c) if variant == "released" else project_curved(v, c)


def features(n: int, dtype: torch.dtype, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Vectors of norms from 1e-3 to 3: inside the ball, on the clip sphere and beyond."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(n, size, generator=generator, dtype=torch.float64)
    norm = 10 ** (torch.rand(n, 1, generator=generator, dtype=torch.float64) * 3.5 - 3)
    return (direction / direction.norm(dim=-1, keepdim=True) * norm).to(dtype)


def textbook(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance of the unit ball, of positions in float64."""
    x, y = x.double(), y.double()
    gap = (x - y).square().sum(-1)
    room = (1 - x.square().sum(-1)) * (1 - y.square().sum(-1))
    return torch.acosh(1 + 2 * gap / room)


@every_dtype
@every_case
def test_distance_is_a_metric(variant, c, dtype):
    x, y, z = (project(features(200, dtype, seed=i), variant, c) for i in range(3))
    d = distance(x, y)
    assert (d > 0).all()
    assert torch.equal(d, distance(y, x))
    assert (distance(x, x) == 0).all()
    assert (d <= distance(x, z) + distance(z, y) + ATOL[dtype]).all()


@every_dtype
@every_case
def test_points_lie_in_the_ball_and_their_conformal_factor_is_that_of_their_radius(variant, c, dtype):
    points = project(features(200, dtype), variant, c)
    assert points.position.dtype == points.conformal.dtype == dtype
    assert (points.position.norm(dim=-1) < 1).all()
    assert (points.conformal >= 2).all()
    origin = project(torch.zeros(1, 8, dtype=dtype), variant, c)
    from_origin = distance(points, origin)
    expected = 1 + torch.cosh(from_origin)
    torch.testing.assert_close(points.conformal[:, 0], expected, rtol=20 * ATOL[dtype], atol=0)
    torch.testing.assert_close(
        points.conformal[:, 0].double(), 2 / (1 - points.position.double().square().sum(-1)), rtol=1e-2, atol=0
    )


@every_dtype
@every_case
def test_pairwise_distance_is_the_distance_pair_by_pair(variant, c, dtype):
    x, y = (project(features(n, dtype, seed=n), variant, c) for n in (23, 17))
    matrix = pairwise_distance(x, y)
    one_by_one = distance(BallPoints(*(t[:, None] for t in x)), BallPoints(*(t[None] for t in y)))
    assert matrix.shape == (23, 17)
    # The matrix does not resolve small distances; cosh does not blow their error up.
    torch.testing.assert_close(torch.cosh(matrix), torch.cosh(one_by_one), rtol=5 * ATOL[dtype], atol=5 * ATOL[dtype])


@every_dtype
@every_case
def test_distance_agrees_with_the_textbook(variant, c, dtype):
    x, y = (project(features(300, dtype, seed=i), variant, c) for i in (4, 5))
    # The curved variant may come within 1e-3 of the rim, where float32 positions themselves are rounded.
    rtol = {torch.float32: 1e-3, torch.float64: 1e-7}[dtype]
    torch.testing.assert_close(distance(x, y).double(), textbook(x.position, y.position), rtol=rtol, atol=ATOL[dtype])
    torch.testing.assert_close(
        pairwise_distance(x, y).double().diagonal(), textbook(x.position, y.position), rtol=rtol, atol=10 * ATOL[dtype]
    )


@pytest.mark.parametrize("c", [1.5, 3.0, 10.0])
def test_released_distance_is_that_of_the_released_formula(c):
    """Clip to (1 - 1e-5) / sqrt(c), then the unit-ball formula with the product floored at 1e-5: c is not in it."""
    v, w = features(100, torch.float64, seed=1), features(100, torch.float64, seed=2)
    radius = (1 - 1e-5) / c**0.5
    x, y = (t * (radius / t.norm(dim=-1, keepdim=True)).clamp(max=1) for t in (v, w))
    room = ((1 - x.square().sum(-1)) * (1 - y.square().sum(-1))).clamp(min=1e-5)
    expected = torch.acosh(1 + 2 * (x - y).square().sum(-1) / room)
    torch.testing.assert_close(distance(project_released(v, c), project_released(w, c)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("c", "largest"), [(3.0, 2.63), (5.0, 1.92)])
def test_largest_released_distance_is_as_documented(c, largest):
    v = torch.tensor([[1e3, 0.0]], dtype=torch.float64)
    assert distance(project_released(v, c), project_released(-v, c)).item() == pytest.approx(largest, abs=0.005)


@pytest.mark.parametrize("c", [1e-4, 0.1, 1.0, 10.0])
def test_curved_distance_from_the_origin_is_twice_the_norm(c):
    v = features(100, torch.float64)
    origin = project_curved(torch.zeros(1, 8, dtype=torch.float64), c)
    expected = 2 * v.norm(dim=-1).clamp(max=1)
    torch.testing.assert_close(distance(project_curved(v, c), origin) / c**0.5, expected, rtol=1e-7, atol=1e-12)


def test_curved_distance_tends_to_the_euclidean_one():
    v, w = clip_norm(features(100, torch.float64, seed=1), 1.0), clip_norm(features(100, torch.float64, seed=2), 1.0)
    expected = 2 * (v - w).norm(dim=-1)
    errors = []
    for c in (1e-2, 1e-4, 1e-6):
        d = distance(project_curved(v, c), project_curved(w, c)) / c**0.5
        errors.append(((d - expected) / expected).abs().max().item())
    assert errors[0] > 50 * errors[1] > 2500 * errors[2]
    assert errors[2] < 1e-5


@pytest.mark.parametrize("c", [0.5, 4.0])
def test_curved_distance_is_the_textbook_of_curvature_minus_c(c):
    """Points x of the ball of radius 1/sqrt(c): d = arccosh(1 + 2c|x-y|^2 / ((1-c|x|^2)(1-c|y|^2))) / sqrt(c)."""
    v, w = features(100, torch.float64, seed=1), features(100, torch.float64, seed=2)
    points = []
    for t in (v, w):
        norm = t.norm(dim=-1, keepdim=True)
        clipped = t / norm * norm.clamp(max=1)
        # The exponential map at the origin of curvature -c of a tangent vector u is tanh(sqrt(c)|u|) u / (sqrt(c)|u|).
        size = clipped.norm(dim=-1, keepdim=True)
        points.append(torch.tanh(c**0.5 * size) * clipped / (c**0.5 * size))
    x, y = points
    room = (1 - c * x.square().sum(-1)) * (1 - c * y.square().sum(-1))
    expected = torch.acosh(1 + 2 * c * (x - y).square().sum(-1) / room) / c**0.5
    d = distance(project_curved(v, c), project_curved(w, c)) / c**0.5
    torch.testing.assert_close(d, expected, rtol=1e-8, atol=1e-10)


@every_case
def test_gradients_are_right_at_generic_points(variant, c):
    generator = torch.Generator().manual_seed(3)
    # Norms away from the clip, which has a corner.
    inside, outside = 0.25, 4.0
    for size in (inside, outside):
        v, w = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
        v, w = (size * t / t.norm(dim=-1, keepdim=True) for t in (v, w))
        v.requires_grad_()
        w.requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: distance(project(a, variant, c), project(b, variant, c)), (v, w))
        assert torch.autograd.gradcheck(
            lambda a, b: pairwise_distance(project(a, variant, c), project(b, variant, c)), (v, w)
        )


def test_gradient_of_a_learned_curvature():
    v, w = features(3, torch.float64, seed=1), features(3, torch.float64, seed=2)
    c = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda c: pairwise_distance(project_curved(v, c), project_curved(w, c)) * c**-0.5, (c,)
    )


def hard_cases(variant: str, c: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs where a careless formula gives NaN: coincident, at the origin, on the clip sphere, tiny, huge, opposite."""
    generator = torch.Generator().manual_seed(11)
    radius = released_radius(c) if variant == "released" else 1.0
    u = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    u = u / u.norm(dim=-1, keepdim=True)
    v = u * 10 ** (torch.rand(400, 1, generator=generator, dtype=torch.float64) * 18 - 15)
    w = v[torch.randperm(400, generator=generator)].clone()
    w[:100] = v[:100]
    w[100:150] = -v[100:150]
    w[150:200] = v[150:200] * (1 + 1e-7)
    v[200:220] = radius * u[200:220]
    w[200:210] = v[200:210]
    v[220:240] = 0
    w[230:240] = 0
    v[240:260] = radius * (1 + 1e-6) * u[240:260]
    w[240:260] = radius * (1 - 1e-6) * u[240:260]
    return v.to(dtype), w.to(dtype)


@every_dtype
@every_case
def test_values_and_gradients_are_finite_at_the_edges(variant, c, dtype):
    v, w = (t.requires_grad_() for t in hard_cases(variant, c, dtype))
    for function in (distance, pairwise_distance):
        d = function(project(v, variant, c), project(w, variant, c))
        assert d.isfinite().all() and (d >= 0).all()
        for gradient in torch.autograd.grad(d.sum(), (v, w)):
            assert gradient.isfinite().all()


@every_dtype
@every_case
def test_gradient_of_coincident_points_is_zero(variant, c, dtype):
    v = features(50, dtype).requires_grad_()
    w = v.detach().clone().requires_grad_()
    for gradient in torch.autograd.grad(distance(project(v, variant, c), project(w, variant, c)).sum(), (v, w)):
        assert (gradient == 0).all()


@every_dtype
def test_small_distances_keep_their_digits(dtype):
    """The difference form has no cancellation: 1e-6 apart is measured to the precision of the positions."""
    x = torch.tensor([[0.25, 0.5]], dtype=dtype)
    y = x + torch.tensor([[2.0**-20, 0.0]], dtype=dtype)
    points = [BallPoints(p, 2 / (1 - p.square().sum(-1, keepdim=True))) for p in (x, y)]
    expected = (points[0].conformal * 2.0**-20).double().item()
    assert distance(*points).item() == pytest.approx(expected, rel=1e-5)


def test_arcosh1p_of_small_and_large_numbers():
    u = torch.tensor([0.0, 1e-300, 1e-20, 1e-8, 1.0, 1e8], dtype=torch.float64)
    expected = torch.where(u < 1e-7, (2 * u).sqrt(), torch.acosh(1 + u))
    torch.testing.assert_close(arcosh1p(u), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("c", [1.0, 0.5, 0.0, -3.0, float("nan")])
def test_released_curvature_of_one_or_less_is_refused(c):
    with pytest.raises(ValueError, match=re.escape(f"The released projection needs curvature > 1, got {c}")):
        project_released(torch.zeros(1, 2), c)


@every_dtype
def test_clip(dtype):
    v = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], dtype=dtype, requires_grad=True)
    clipped = clip_norm(v, 1.0)
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0], [1e-30, 0.0]], dtype=dtype)
    torch.testing.assert_close(clipped, expected)
    (gradient,) = torch.autograd.grad(clipped.sum(), v)
    # Inside the identity; outside only the part across the radius is left.
    torch.testing.assert_close(gradient[[0, 2, 3]], torch.ones(3, 2, dtype=dtype))
    torch.testing.assert_close((gradient[1] * v[1].detach()).sum(), torch.zeros((), dtype=dtype), rtol=0, atol=1e-6)


@every_dtype
@every_case
def test_slopes_of_the_distance_are_those_of_backpropagation(variant, c, dtype):
    parts = [part.requires_grad_() for v in (1, 2) for part in project(features(50, dtype, seed=v), variant, c)]
    # The last two coincide, and almost.
    with torch.no_grad():
        for mine, other in zip(parts[:2], parts[2:], strict=True):
            other[-2:] = mine[-2:]
        parts[2][-2] += 1e-6
    x, y = BallPoints(*parts[:2]), BallPoints(*parts[2:])
    found, slopes = distance_and_slopes(x, y)
    by_position = slopes.apart * slopes.by_position[:, None]
    expected = torch.autograd.grad(distance(x, y).sum(), parts)
    torch.testing.assert_close(found, distance(x, y), rtol=0, atol=0)
    for mine, theirs in zip(
        (by_position, slopes.by_x_conformal, -by_position, slopes.by_y_conformal),
        (*expected[:2], *expected[2:]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs.reshape(mine.shape), rtol=1e-5, atol=1e-6)
