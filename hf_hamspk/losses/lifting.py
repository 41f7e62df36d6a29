"""Lift of embeddings and centres, and the derivative of the lift. With lifted vectors, each similarity is a product.

Letters: `B` batch size, `N` centres, `D` embedding size, `A` columns of a lifted vector.

Lifts are radial. The lift of a vector with the norm `r` has the same direction and the length `L(r)`. For hyperbolic
similarities, it has an additional coordinate `T(r)`, the time part.

| similarity | lifted embedding `(A,)`   | lifted centre `(A,)` | their product             | logit                |
|------------|---------------------------|----------------------|---------------------------|----------------------|
| linear     | `s x, s` in bits          | `w, b`               | the logit in bits         | `s (w x + b)`        |
| cosine     | `s x/|x|, -shift` in bits | `w/|w|, 1`           | the logit - shift in bits | `s cos`              |
| hyperbolic | `-X, X0 - 1, X0`          | `Y, 1, Y0 - 1`       | `u = cosh d - 1`          | `-s f arcosh(1 + u)` |

`(X, X0)` and `(Y, Y0)` are the lifts of embedding and centre to the hyperboloid (see the module `geometry_hamspk`).
`s` is the scale, `shift` the result of `fixed_shift`, and `f` is 1, or `1 / sqrt(c)` in the curved projection. A value
in bits is divided by `log 2`. `project_norm` computes the norms and conformal factors of the points.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry_hamspk import (
    SMALLEST_NORM,
    BallPoints,
    arcosh1p,
    arcosh1p_slope,
    conformal_factor,
    cosh_less_1,
    curved_norm,
    distance,
    normalize,
    project,
    released_radius,
    score,
)

# A smaller norm is treated as this norm. The lift is linear there, and the square still fits into float32.
SMALLEST_RADIUS = 1e-15
# Number of rows for which radial parts are computed at once.
RADIAL_ROWS = 1 << 17
# Range of exponents. Float32 can represent exp(-87) to exp(88), but sums and factors need a reserve at the upper end.
LOWEST_EXPONENT, HIGHEST_EXPONENT = -80.0, 50.0
# Factor from natural to binary logarithms. A logit in bits is the exponent of a power of 2.
BITS_PER_NAT = 1 / math.log(2)
# Size of a cache line in bytes.
CACHE_LINE = 64


class HeadSettings(NamedTuple):
    """Settings of a head, without its learned parameters.

    Attributes:
        kind: similarity: `"linear"`, `"cosine"` or `"hyperbolic"`.
        margin_kind, margin: kind and size of the margin; see `geometry_hamspk.add_margin`.
        scale: factor of the logits, above 0.
        projection, clip_radius: projection of `"hyperbolic"`; see `geometry_hamspk.project`.
    """

    kind: str
    margin_kind: str
    margin: float
    scale: float
    projection: str = "released"
    clip_radius: float = 1.0


class Radial:
    """Radial parts of the lift of N vectors: `L/r`, `L'`, `T`, `T'` and the norm `r`, `(N,)` each.

    `L'` and `T'` are the derivatives with respect to `r`.

    Args:
        parts: tensor `(5, N)` of the five parts. In one tensor, they can be sliced with one call instead of five.
    """

    def __init__(self, parts: Tensor):
        self.parts = parts
        self.scale, self.slope, self.time, self.time_slope, self.radius = parts.unbind()

    def __getitem__(self, span: slice) -> "Radial":
        return self if span == slice(0, self.parts.shape[1]) else Radial(self.parts[:, span])


def target_similarity(
    embeddings: Tensor, rows: Tensor, bias: Tensor | None, curvature: float | Tensor | None, settings: HeadSettings
) -> Tensor:
    """Compute the similarity `(B,)` of each embedding `(B, D)` to its target centre, a row of `rows` `(B, D)`.

    Distances are computed from the difference of the two vectors, so they are accurate even for nearly equal vectors.
    """
    if settings.kind == "linear":
        product = (embeddings * rows).sum(-1)
        return product if bias is None else product + bias
    if settings.kind == "cosine":
        return score(embeddings, rows, settings.kind, settings.projection, 1.0, settings.clip_radius)
    c = 1.0 if curvature is None else curvature
    # Embeddings and centres are projected in one call, because for a small batch the number of calls determines the
    # time.
    both, factor = project(torch.stack([embeddings, rows]), settings.projection, c, settings.clip_radius)
    x, y = (BallPoints(*parts) for parts in zip(both.position.unbind(), both.conformal.unbind(), strict=True))
    return -distance(x, y) * factor


def project_norm(
    radius: Tensor, projection: str, curvature: float | Tensor, clip_radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute, from the norms of features, the norms of the points to which `project` maps the features.

    Args:
        radius: norms of the features, any shape.
        projection, curvature, clip_radius: settings of the projection; see `project`.

    Returns:
        The norms of the points, their conformal factors, and the derivatives of the norms with respect to `radius`.
    """
    if projection == "released":
        largest = released_radius(float(curvature))
        position = radius.clamp_max(largest)
        return position, conformal_factor(position.square()), (radius <= largest).to(radius.dtype)
    position, conformal = curved_norm(radius.clamp_max(clip_radius), curvature)
    # 1 - tanh^2 = 2 / conformal.
    return position, conformal, (2 * curvature**0.5) / conformal * (radius <= clip_radius)


def radial_lift(radius: Tensor, curvature: float | Tensor | None, settings: HeadSettings) -> tuple[Tensor, Tensor]:
    """Compute the length `L` and the time part `T`, `(N,)` each, of the lift of vectors with norms `radius` `(N,)`."""
    if settings.kind == "cosine":
        return normalize(radius[:, None])[:, 0], torch.zeros_like(radius)
    c = 1.0 if curvature is None else curvature
    position, conformal, _ = project_norm(radius, settings.projection, c, settings.clip_radius)
    return conformal * position, conformal * position.square()


def radial_parts(
    vectors: tuple[Tensor, ...], dtype: torch.dtype, curvature: float | Tensor | None, settings: HeadSettings
) -> list[Radial] | list[None]:
    """Compute the radial parts for each tensor `(N, D)`, block by block. For a linear similarity, they are None."""
    if settings.kind == "linear":
        return [None for _ in vectors]
    norms = [vector_norms(v, dtype) for v in vectors]
    # All norms are processed together, because for few speakers the number of calls determines the time.
    radius = torch.cat(norms).clamp_min_(SMALLEST_RADIUS)
    pieces = [_radial_part(some, curvature, settings) for some in radius.split(RADIAL_ROWS)]
    parts = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return [Radial(some) for some in parts.split([len(v) for v in vectors], dim=1)]


def vector_norms(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the norms `(N,)` of vectors `(N, D)`. The squares of the entries may exceed the range of `dtype`.

    A norm that itself exceeds the range of `dtype` is replaced by the largest number of `dtype`.
    """
    # On a CPU, double precision takes ten times as long, so it is used only if needed. On a GPU, testing whether it is
    # needed would take longer.
    if not vectors.is_cuda and not torch.compiler.is_compiling():
        norms = torch.linalg.vector_norm(vectors, dim=1, dtype=dtype)
        if bool(norms.isfinite().all()):
            return norms
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).clamp_max(torch.finfo(dtype).max).to(dtype)


def _radial_part(radius: Tensor, curvature: float | Tensor | None, settings: HeadSettings) -> Tensor:
    """Compute the five parts of a `Radial`, `(5, N)`."""
    if settings.kind == "cosine":
        scale, zeros = normalize(radius[:, None])[:, 0].div_(radius), torch.zeros_like(radius)
        # A vector shorter than SMALLEST_NORM is only scaled. A longer vector is normalised to length 1.
        return torch.stack([scale, scale * (radius < SMALLEST_NORM), zeros, zeros, radius])
    c = 1.0 if curvature is None else curvature
    position, conformal, ball_slope = project_norm(radius, settings.projection, c, settings.clip_radius)
    # Let p be the norm of the position. Then L = lambda p and T = L p. The derivative of lambda = 2 / (1 - p^2) is
    # lambda^2 p.
    length = conformal * position
    slope = torch.addcmul(conformal, length, length).mul_(ball_slope)
    time_slope = ball_slope.mul_(conformal).mul_(length)
    return torch.stack([length / radius, slope, length * position, time_slope, radius])


def lift_embeddings(x: Tensor, radial: Radial | None, shift: float, settings: HeadSettings) -> Tensor:
    """Lift embeddings `(B, D)` to `(B, A)` (see the table in the module docstring)."""
    batch, size = x.shape
    out = new_rows(batch, size + (2 if settings.kind == "hyperbolic" else 1), x)
    space, scale = out[:, :size], settings.scale * BITS_PER_NAT
    if radial is None:
        torch.mul(x, scale, out=space)
        out[:, size] = scale
    elif settings.kind == "cosine":
        torch.mul(x, (scale * radial.scale)[:, None], out=space)
        out[:, size] = -shift * BITS_PER_NAT
    else:
        torch.mul(x, -radial.scale[:, None], out=space)
        out[:, size] = radial.time
        torch.add(radial.time, 1, out=out[:, size + 1])
    return out


def new_rows(count: int, columns: int, like: Tensor) -> Tensor:
    """Return an uninitialised matrix `(count, columns)`. Its rows start at cache lines, for faster matrix products."""
    line = CACHE_LINE // like.element_size()
    return like.new_empty(count, -(-columns // line) * line)[:, :columns]


def lift_centres(rows: Tensor, bias: Tensor | None, radial: Radial | None, out: Tensor) -> None:
    """Lift centres `(N, D)` to `(N, A)` (see the table in the module docstring) and write them to `out`."""
    size = rows.shape[1]
    if radial is None:
        out[:, :size].copy_(rows)
        out[:, size] = 0.0 if bias is None else bias
        return
    torch.mul(rows, radial.scale[:, None], out=out[:, :size])
    out[:, size] = 1.0
    if out.shape[1] > size + 1:
        out[:, size + 1] = radial.time


def pull_back(grad: Tensor, time_grad: Tensor, vectors: Tensor, radial: Radial, out: Tensor) -> Tensor:
    """Compute the gradient of vectors from the gradient of their lift, and write it to `out`.

    Args:
        grad: gradient of the lifted vectors without the time part, `(N, D)`.
        time_grad: gradient of the time parts, `(N,)`.
        vectors: vectors before the lift, `(N, D)`.
        radial: radial parts of the lift of the vectors.
        out: buffer for the result, `(N, D)`; may be `grad`.

    Returns:
        The gradient of the lengths `L`, `(N,)`.
    """
    length_grad = (grad * vectors).sum(1).div_(radial.radius)
    along = (radial.slope - radial.scale).mul_(length_grad).addcmul_(radial.time_slope, time_grad)
    # With the factor `scale` last, no number is as small as 1 / radius^2, which float32 cannot represent from 1e20 on.
    torch.addcmul(grad, vectors, along.div_(radial.scale).div_(radial.radius)[:, None], out=out)
    out.mul_(radial.scale[:, None])
    return length_grad


def ball_parts(lift: Radial) -> Radial:
    """Compute the radial parts `p/r`, `p'`, `lambda`, `lambda'` and `r` of the map into the ball from the lift."""
    # T = lambda p^2 = lambda - 2, L = lambda p, and L' = (lambda + L^2) p'.
    conformal = lift.time + 2
    slope = lift.slope / (lift.scale * lift.radius).square_().add_(conformal)
    return Radial(torch.stack([lift.scale / conformal, slope, conformal, lift.time_slope, lift.radius]))


class DistanceSlopes(NamedTuple):
    """Derivatives of the distances between the points `x` and `y`.

    Attributes:
        apart: difference of the positions of `x` and `y`, `(..., D)`.
        by_position: factor `(...)`. `by_position * apart` is the derivative of the distance with respect to the
            position of `x`, and `-by_position * apart` the derivative with respect to the position of `y`.
        by_x_conformal, by_y_conformal: derivatives with respect to the conformal factors of `x` and `y`, `(...)`.
    """

    apart: Tensor
    by_position: Tensor
    by_x_conformal: Tensor
    by_y_conformal: Tensor


def distance_and_slopes(x: BallPoints, y: BallPoints) -> tuple[Tensor, DistanceSlopes]:
    """Compute the distances `(...)` between `x` and `y`, and the derivatives, without an autograd graph."""
    x_conformal, y_conformal = x.conformal.squeeze(-1), y.conformal.squeeze(-1)
    apart, conformal = x.position - y.position, x_conformal * y_conformal
    u = cosh_less_1(apart, conformal)
    slope = arcosh1p_slope(u)
    by_logarithm = slope * u
    slopes = DistanceSlopes(apart, slope * conformal, by_logarithm / x_conformal, by_logarithm / y_conformal)
    return arcosh1p(u), slopes


class PairDistance(NamedTuple):
    """Distances of embeddings to their target centres, with the values that the gradient needs.

    Attributes:
        distance: distances in the unit ball, `(B,)`.
        slopes: derivatives of the distances.
        vectors: embeddings followed by their target centres, `(2 B, D)`.
        ball: radial parts of the map of `vectors` into the ball; see `ball_parts`.
    """

    distance: Tensor
    slopes: DistanceSlopes
    vectors: Tensor
    ball: Radial


def pair_distance(vectors: Tensor, lift: Radial) -> PairDistance:
    """Compute the distances of embeddings to their target centres.

    `vectors` `(2 B, D)` contains the embeddings, then the centres. `lift` contains the radial parts of `vectors`.
    """
    ball = ball_parts(lift)
    positions, conformal = (vectors * ball.scale[:, None]).chunk(2), ball.time[:, None].chunk(2)
    x, y = (BallPoints(*parts) for parts in zip(positions, conformal, strict=True))
    return PairDistance(*distance_and_slopes(x, y), vectors, ball)


def pull_back_pairs(given: Tensor, pairs: PairDistance) -> tuple[Tensor, ...]:
    """Compute the gradients of embeddings and centres, `(B, D)` each, from the gradient `given` `(B,)` of distances."""
    slopes, batch = pairs.slopes, given.shape[0]
    grad = torch.empty_like(pairs.vectors)
    torch.mul(slopes.apart, (given * slopes.by_position)[:, None], out=grad[:batch])
    torch.neg(grad[:batch], out=grad[batch:])
    by_conformal = torch.cat([given * slopes.by_x_conformal, given * slopes.by_y_conformal])
    pull_back(grad, by_conformal, pairs.vectors, pairs.ball, grad)
    return grad.chunk(2)


def curvature_gradient(
    radial: Radial, length_grad: Tensor, time_grad: Tensor, curvature: Tensor, settings: HeadSettings
) -> Tensor:
    """Compute the gradient of a learned curvature, a scalar, through the lift with the parts `radial`."""
    with torch.enable_grad():
        c = curvature.detach().requires_grad_()
        parts = radial_lift(radial.radius, c, settings)
        return torch.autograd.grad(parts, c, (length_grad, time_grad))[0]


def logit_range(settings: HeadSettings, curvature: float | None) -> tuple[float, float]:
    """Return the smallest and largest possible logit of an impostor. They are infinite for an unbounded similarity."""
    if settings.kind == "linear":
        return -math.inf, math.inf
    if settings.kind == "cosine":
        return -settings.scale, settings.scale
    if settings.projection == "curved":
        # The distance of each point from the origin is at most twice the clip radius, for any curvature.
        return -settings.scale * 4 * settings.clip_radius, 0.0
    return -settings.scale * 4 * math.atanh(released_radius(1.0 if curvature is None else curvature)), 0.0


def fixed_shift(settings: HeadSettings, curvature: float | None) -> float | None:
    """Return a number that can be subtracted from all logits so that the exponentials fit into float32.

    If no fixed number is sufficient, return None.
    """
    low, high = logit_range(settings, curvature)
    if high - low > HIGHEST_EXPONENT - LOWEST_EXPONENT:
        return None
    return high - max(0.0, LOWEST_EXPONENT + high - low)
