"""The Poincaré ball as pure functions, and scores and means of embeddings.

Letters: `B` enrolment and `K` test embeddings (or batch and speakers), `N` embeddings of a speaker, `D` dimension.

One convention. Every point is held as a position `p` of the **unit** ball (`|p| < 1`) together with its conformal
factor `lambda = 2 / (1 - |p|^2)`. Two losses are built on it, and the number `c > 0` means something different in each:

- **released**: the formula of the authors' released code, which made the published results. A vector is clipped to the
  norm `(1 - 1e-5) / sqrt(c)` and the distance is the one of the unit ball, of curvature -1. `c` does not enter the
  distance: it only sets the largest radius. A larger `c` means a smaller region, a *flatter* geometry and a smaller
  range of distances (at most 2.63 for c = 3 and 1.92 for c = 5). (Their floor of 1e-5 on `(1-|x|^2)(1-|y|^2)` is left
  out: it acts only for c < 1.004.)
- **curved**: sectional curvature `-c`. A feature `v` is clipped to `|v| <= clip_radius` and mapped by the exponential
  map at the origin, so that its distance from the origin is `2 |v|`; distances are those of the unit ball divided by
  `sqrt(c)`. A larger `c` means a *more* curved geometry; as `c -> 0` the distance tends to `2 |v - w|`.

With the lift `X = lambda p`, `X0 - 1 = lambda |p|^2`, the identity `cosh d - 1 = (X0-1) + (Y0-1) + (X0-1)(Y0-1) - X.Y`
turns all B x K distances into one matrix product; for a single pair `cosh d - 1 = lambda_x lambda_y |x - y|^2 / 2` has
no cancellation, so it is exact for nearly equal points.

References: Nickel and Kiela 2017 (distance); Khrulkov et al. 2020 (exponential map at the origin); Guo et al. 2022
(feature clipping); Fang and He 2026, arXiv 2601.19709, and the released code (the released variant).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Floor of the variance before its root, from the released encoder: keeps the slope of the root below 50.
SMALLEST_VARIANCE = 1e-4
# The released code clips to this fraction of 1/sqrt(c), and floors the product (1-|x|^2)(1-|y|^2) at the same number.
RELEASED_MARGIN = 1e-5
# In float32 the conformal factor of a point at hyperbolic radius 2*5 is 11,014: the largest that leaves three digits.
MAX_TANGENT_RADIUS = 5.0
# Ways to combine the embeddings of a speaker's utterances; see `combine_embeddings`.
COMBINATIONS = ("mean", "length_weighted", "barycentre")
# Below this norm an embedding has no direction: its cosine fades to 0, and the gradient stays below the inverse, 1e6.
SMALLEST_NORM = 1e-6


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if its precision is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """`(B,)` lengths to `(B, size)` bool, True inside the length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class BallPoints(NamedTuple):
    """Points of the unit ball.

    Attributes:
        position: `(..., D)`, norm below 1.
        conformal: `(..., 1)`, `2 / (1 - |position|^2)`, at least 2.
    """

    position: Tensor
    conformal: Tensor


def released_radius(c: float) -> float:
    """Largest norm of the released variant, `(1 - 1e-5) / sqrt(c)`.

    Raises:
        ValueError: `c <= 1`, where the clip leaves the unit ball or meets the floor of the denominator.
    """
    if not c > 1:
        raise ValueError(
            f"The released distance needs curvature > 1, got {c}: vectors are clipped to (1 - 1e-5) / sqrt(c), which "
            "for c <= 1 reaches the rim of the unit ball or leaves it, and the formula stops being a distance. The "
            "published settings are 3 (HAM) and 5 (H). For a true curvature of any c > 0 choose projection='curved'."
        )
    return (1 - RELEASED_MARGIN) / math.sqrt(c)


def clip_norm(v: Tensor, radius: float | Tensor) -> Tensor:
    """Shorten `v` `(..., D)` to norm `radius` where it is longer. The gradient at the origin is the identity."""
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    # Not clamp_min, so that the slope on the radius itself is that from within, whatever torch does with ties.
    outside = norm > radius
    return v * torch.where(outside, radius / norm.where(outside, torch.ones_like(norm)), 1.0)


def project_released(v: Tensor, c: float) -> BallPoints:
    """Clip features `(..., D)` to the released radius of `c`: a hard Euclidean clip, no exponential map."""
    position = clip_norm(v, released_radius(c))
    return BallPoints(position, conformal_factor(position.square().sum(-1, keepdim=True)))


def conformal_factor(square: Tensor) -> Tensor:
    """`2 / (1 - square)`, of the squared norm of a point, any shape."""
    return 2 / (1 - square)


def project_curved(v: Tensor, c: float | Tensor, clip_radius: float = 1.0) -> BallPoints:
    """Exponential map at the origin of the ball of curvature `-c`, after clipping the feature to `clip_radius`.

    Args:
        v: features `(..., D)`, any norm.
        c: positive; a tensor with a gradient where the curvature is learned.
        clip_radius: largest feature norm, half the largest distance from the origin. `sqrt(c) * clip_radius` may be at
            most 5, beyond which float32 cannot hold the points.

    Returns:
        The points scaled by `sqrt(c)`, that is, in the unit ball.
    """
    v = clip_norm(v, clip_radius)
    norm = _positive(torch.linalg.vector_norm(v, dim=-1, keepdim=True))
    position, conformal = curved_norm(norm, c)
    return BallPoints(v * (position / norm), conformal)


def _positive(x: Tensor) -> Tensor:
    """`x`, or the smallest normal number if that is larger: a divisor, whose gradient there is 0."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def curved_norm(norm: Tensor, c: float | Tensor) -> tuple[Tensor, Tensor]:
    """Norm and conformal factor of the points to which `project_curved` maps features of norm `norm`, any shape."""
    argument = (c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)) * norm
    return torch.tanh(argument), 2 * torch.cosh(argument).square()


class _Arcosh1p(torch.autograd.Function):
    """`arcosh(1 + u)` for `u >= 0`, with a finite derivative at `u = 0`, where two points coincide."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return torch.log1p(u + (u * (u + 2)).sqrt())

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad_outputs[0] * arcosh1p_slope(u)


def arcosh1p_slope(u: Tensor) -> Tensor:
    """Derivative of `arcosh(1 + u)`, any shape."""
    # Below the rounding of u itself the direction is noise; the floor bounds it by 1/sqrt(eps), 3e3 in float32.
    return (u * (u + 2)).clamp_min(torch.finfo(u.dtype).eps).rsqrt()


def arcosh1p(u: Tensor) -> Tensor:
    """`arcosh(1 + u)`, `u >= 0` of any shape, exact for small `u`, with a finite gradient everywhere."""
    return _Arcosh1p.apply(u)  # pyright: ignore[reportReturnType]


def distance(x: BallPoints, y: BallPoints) -> Tensor:
    """Distance in the unit ball, pair by pair: `(..., D)` and `(..., D)` to `(...)`, range `[0, inf)`.

    Where two points coincide the distance is 0 and so is its gradient (a subgradient).
    """
    apart = x.position - y.position
    return arcosh1p(cosh_less_1(apart, x.conformal.squeeze(-1) * y.conformal.squeeze(-1)))


def cosh_less_1(apart: Tensor, conformal: Tensor) -> Tensor:
    """`cosh d - 1` `(...)` from the difference of positions `(..., D)` and the product of conformal factors `(...)`."""
    return 0.5 * conformal * apart.square().sum(-1)


def pairwise_distance(x: BallPoints, y: BallPoints) -> Tensor:
    """All distances in the unit ball: `(B, D)` and `(K, D)` to `(B, K)`, range `[0, inf)`, by one matrix product.

    The absolute error of `cosh d` is that of the product, so in float32 distances below about 1e-3 are not resolved;
    use `distance` for the pairs whose closeness matters.
    """
    x_time = x.conformal * x.position.square().sum(-1, keepdim=True)
    y_time = (y.conformal * y.position.square().sum(-1, keepdim=True)).mT
    product = (x.conformal * x.position) @ (y.conformal * y.position).mT
    return arcosh1p((x_time + y_time + x_time * y_time - product).clamp_min(0))


def to_features(point: BallPoints, projection: str, curvature: float) -> Tensor:
    """Features `(..., D)` that `project_released` or `project_curved` maps to `point`, a point in their range."""
    if projection == "released":
        return point.position
    root_c = math.sqrt(curvature)
    norm = _positive(torch.linalg.vector_norm(point.position, dim=-1, keepdim=True))
    return point.position * (torch.atanh(norm) / (root_c * norm))


def karcher_mean(points: BallPoints, weights: Tensor, steps: int = 100, tolerance: float = 1e-12) -> BallPoints:
    """The point with the least weighted sum of squared distances (Karcher 1977), unique in hyperbolic space.

    Gradient descent along geodesics from the weighted sum of the lifted points, scaled back to the hyperboloid: the
    Einstein midpoint (Ungar 2008), or Lorentzian centroid (Law et al. 2019). The Hessian of `d^2 / 2` lies between 1
    and `d coth d`, so a step of one over the mean of the latter never overshoots.

    Args:
        points: `(N, D)`, better in float64.
        weights: `(N,)`, at least 0, of positive sum.
        steps: largest number of steps.
        tolerance: length of a step at which the descent ends.

    Returns:
        `(D,)`, no farther from the origin than the farthest of the points.
    """
    weights = weights / weights.sum()
    lifted = torch.cat([points.conformal - 1, points.conformal * points.position], dim=-1)
    total = (weights[:, None] * lifted).sum(0)
    mean = total / (total[0].square() - total[1:].square().sum()).sqrt()
    for _ in range(steps):
        d = distance(points, _from_hyperboloid(mean))
        # log_m(x) = d / sinh(d) (x - cosh(d) m), whose factor is 1 where the points coincide.
        factor = torch.where(d > 0, d / _positive(torch.sinh(d)), 1.0)
        tangent = ((weights * factor)[:, None] * (lifted - torch.cosh(d)[:, None] * mean)).sum(0)
        curving = torch.where(d > 0, d / _positive(torch.tanh(d)), 1.0)
        step = tangent / (weights * curving).sum()
        length = (step[1:].square().sum() - step[0].square()).clamp_min(0).sqrt()
        if length <= tolerance:
            break
        mean = torch.cosh(length) * mean + torch.sinh(length) / length * step
        # Rounding errors must not lead away from the hyperboloid.
        mean = torch.cat([(1 + mean[1:].square().sum(0, keepdim=True)).sqrt(), mean[1:]])
    return _from_hyperboloid(mean)


def _from_hyperboloid(point: Tensor) -> BallPoints:
    """Point `(1 + D,)` of the hyperboloid, its time coordinate first, in the ball."""
    conformal = 1 + point[:1]
    return BallPoints(point[1:] / conformal, conformal)


def normalize(embeddings: Tensor) -> Tensor:
    """Scale `(..., D)` to unit norm."""
    return torch.nn.functional.normalize(embeddings, dim=-1, eps=SMALLEST_NORM)


def project(
    embeddings: Tensor, projection: str, curvature: float | Tensor, clip_radius: float
) -> tuple[BallPoints, float | Tensor]:
    """Put features `(..., D)` on the ball.

    Args:
        embeddings: features of any norm.
        projection: `"released"` or `"curved"`; see the top of this module for what `c` does in each.
        curvature: `c`, above 1 for released, above 0 for curved.
        clip_radius: largest feature norm of the curved projection; unused in the released one.

    Returns:
        The points, and the factor by which a distance of the unit ball is multiplied (1, or `1 / sqrt(c)`).
    """
    if projection == "released":
        return project_released(embeddings, float(curvature)), 1.0
    return project_curved(embeddings, curvature, clip_radius), curvature**-0.5


def score(
    enrolment: Tensor, test: Tensor, similarity: str, projection: str, curvature: float | Tensor, clip_radius: float
) -> Tensor:
    """Score each row of `enrolment` `(..., D)` against the same row of `test` `(..., D)`.

    Args:
        enrolment, test: embeddings.
        similarity: `"cosine"` (range [-1, 1]) or `"hyperbolic"` (minus the distance, range (-inf, 0]).
        projection, curvature, clip_radius: as in `project`.

    Returns:
        `(...)` scores in float32 or better; larger means more alike.
    """
    enrolment, test = at_least_float32(enrolment), at_least_float32(test)
    if similarity == "cosine":
        return (normalize(enrolment) * normalize(test)).sum(-1)
    x, factor = project(enrolment, projection, curvature, clip_radius)
    y, _ = project(test, projection, curvature, clip_radius)
    return -distance(x, y) * factor


def score_matrix(
    enrolment: Tensor, test: Tensor, similarity: str, projection: str, curvature: float | Tensor, clip_radius: float
) -> Tensor:
    """Score every row of `enrolment` `(..., B, D)` against all of `test` `(..., K, D)`, as `score`: `(..., B, K)`."""
    enrolment, test = at_least_float32(enrolment), at_least_float32(test)
    if similarity == "cosine":
        return normalize(enrolment) @ normalize(test).mT
    x, factor = project(enrolment, projection, curvature, clip_radius)
    y, _ = project(test, projection, curvature, clip_radius)
    return -pairwise_distance(x, y) * factor


def magnitude(
    embeddings: Tensor, similarity: str, projection: str, curvature: float | Tensor, clip_radius: float
) -> Tensor:
    """Distance `(...)` of embeddings `(..., D)` from the origin, a measure of their quality.

    It is the Euclidean norm for `"cosine"`, the distance in the ball for `"hyperbolic"`.
    """
    embeddings = at_least_float32(embeddings)
    if similarity == "cosine":
        return torch.linalg.vector_norm(embeddings, dim=-1)
    return -score(embeddings, torch.zeros_like(embeddings), similarity, projection, curvature, clip_radius)


def mean_direction(embeddings: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean direction of embeddings `(N, D)`, with their mean norm: `(D,)`.

    Args:
        embeddings: at least one.
        weights: `(N,)`, at least 0; None for equal ones.

    Raises:
        ValueError: no embedding, weights that do not fit, or directions that cancel.
    """
    embeddings, shares = at_least_float32(embeddings), _shares(embeddings, weights)
    direction = (shares[:, None] * normalize(embeddings)).sum(0)
    if float(direction.detach().norm()) < SMALLEST_NORM:
        raise ValueError(
            "The directions of these embeddings cancel, so they have no mean. Are they of several speakers?"
        )
    return normalize(direction) * (shares * embeddings.norm(dim=-1)).sum()


def barycentre(
    embeddings: Tensor, projection: str, curvature: float, clip_radius: float, weights: Tensor | None = None
) -> Tensor:
    """Embedding `(D,)` whose point in the ball has the least sum of squared distances to those of `(N, D)`.

    Args:
        embeddings: at least one.
        projection, curvature, clip_radius: as in `project`.
        weights: `(N,)`, at least 0; None for equal ones.
    """
    shares = _shares(embeddings, weights)
    points, _ = project(embeddings.double(), projection, curvature, clip_radius)
    mean = karcher_mean(points, shares.double())
    return to_features(mean, projection, curvature).to(at_least_float32(embeddings).dtype)


def _shares(embeddings: Tensor, weights: Tensor | None) -> Tensor:
    if embeddings.ndim != 2 or embeddings.shape[0] == 0:
        raise ValueError(f"Expected embeddings of shape (N, D), N at least 1, got {tuple(embeddings.shape)}.")
    if weights is None:
        return torch.full(embeddings.shape[:1], 1 / embeddings.shape[0], device=embeddings.device)
    if weights.shape != embeddings.shape[:1] or not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
        raise ValueError(
            f"Expected {embeddings.shape[0]} weights of at least 0, not all of them 0, got {weights.tolist()}."
        )
    weights = at_least_float32(weights).to(embeddings.device)
    return weights / weights.sum()


def combine_embeddings(
    embeddings: Tensor,
    combine: str,
    seconds: Sequence[float] | None = None,
    projection: str = "released",
    curvature: float = 3.0,
    clip_radius: float = 1.0,
) -> Tensor:
    """Combine the embeddings of a speaker's utterances: `(N, D)` to `(D,)`.

    Args:
        embeddings: at least one.
        combine: `"mean"` (the mean direction, with the mean norm, which hyperbolic scoring uses), `"length_weighted"`
            (the same, weighted by `seconds`), or `"barycentre"` (the point of the ball with the least sum of squared
            distances, for models that compare by hyperbolic distance; a cosine model uses its direction).
        seconds: of speech in each utterance.
        projection, curvature, clip_radius: of the model's configuration, for `"barycentre"`.

    Raises:
        ValueError: unknown `combine`, no embedding, or seconds that are missing or do not fit.
    """
    if combine == "mean":
        return mean_direction(embeddings)
    if combine == "barycentre":
        return barycentre(embeddings, projection, curvature, clip_radius)
    if combine != "length_weighted":
        raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}.")
    if seconds is None:
        raise ValueError("combine='length_weighted' needs the seconds of speech of each utterance.")
    return mean_direction(embeddings, torch.tensor(list(seconds), dtype=torch.float32, device=embeddings.device))
