"""Distances in the Poincaré ball, scores and means of embeddings, and the training heads.

Letters: `B` enrolment embeddings (or batch size), `K` test embeddings (or speakers), `N` utterances of a speaker, `D`
embedding size.

Every point is represented by its position `p` in the **unit** ball (`|p| < 1`) and its conformal factor
`lambda = 2 / (1 - |p|^2)`. Two projections map features to the ball. They use the number `c > 0` differently:

- **released**: the formula of the HAM-Softmax code, which the authors of HAM-Softmax released and which produced the
  published results. A vector is clipped to the norm `(1 - 1e-5) / sqrt(c)`, and the distance is the distance in the
  unit ball, whose curvature is -1. Its formula does not contain `c`; `c` only determines the largest radius. A larger
  `c` means a smaller region, a *flatter* geometry and a smaller range of distances (at most 2.63 for c = 3 and 1.92 for
  c = 5). The HAM-Softmax code limits `(1-|x|^2)(1-|y|^2)` to at least 1e-5; this limit, which matters only for
  c < 1.004, is omitted here.
- **curved**: sectional curvature `-c`. A feature `v` is clipped to `|v| <= clip_radius` and mapped by the exponential
  map at the origin, so that its distance from the origin is `2 |v|`. Distances in the unit ball are divided by
  `sqrt(c)`. A larger `c` means a *more* curved geometry. As `c -> 0`, the distance tends to `2 |v - w|`.

Points are lifted to the hyperboloid by `X = lambda p` and `X0 - 1 = lambda |p|^2`. By the identity
`cosh d - 1 = (X0-1) + (Y0-1) + (X0-1)(Y0-1) - X.Y`, one matrix product gives all B x K distances. For single pairs,
`cosh d - 1 = lambda_x lambda_y |x - y|^2 / 2` avoids cancellation and is accurate even for nearly equal points.

**Heads** combine a *similarity* to K learned speaker centres and a *margin* on the similarity to the target centre:

| head                 | similarity             | margin on the target     | logit of the target                |
|----------------------|------------------------|--------------------------|------------------------------------|
| `softmax`            | linear, with bias      | none                     | `W x + b`                          |
| `scaled_softmax`     | linear, with bias      | none                     | `s (W x + b)`                      |
| `normalized_softmax` | cosine                 | none                     | `s cos`                            |
| `am`                 | cosine                 | additive                 | `s (cos - m)`                      |
| `aam`                | cosine                 | additive in the angle    | `s cos(angle + m)`                 |
| `ram`                | cosine                 | additive, hinged         | `s (cos - m)`, easy impostors at 0 |
| `h`                  | minus Poincaré distance | none                    | `-s d`                             |
| `ham`                | minus Poincaré distance | additive                | `-s (d + m)`                       |
| `joint`              | two heads, one `ham`   | as in both heads         | as in `ham`                        |

Impostor logits have no margin. For `ram`, an impostor is easy if its logit is smaller than the target logit after the
margin; the logit of an easy impostor is replaced by 0, as in the HAM-Softmax code. The loss of `joint` is the weighted
sum of the losses of its two heads. Heads compute in float32 (or float64) with autocast disabled. By default the loss is
computed from all B x K similarities. A trainer can set `SpeakerHead.engine` to compute the same loss over blocks of
speakers (`hf_hamspk.losses`).

References: Nickel and Kiela 2017 (distance); Khrulkov et al. 2020 (exponential map at the origin); Guo et al. 2022
(feature clipping); Fang and He 2026, arXiv 2601.19709, and their HAM-Softmax code (the released projection, H, HAM);
Wang et al. 2018 (AM); Deng et al. 2019 (AAM); Li et al. 2022, arXiv 2110.09116 (RAM).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Lower limit of a variance before its root is taken, as in the HAM-Softmax code. It keeps the root's slope below 50.
SMALLEST_VARIANCE = 1e-4
# The released projection clips norms to (1 - RELEASED_MARGIN) / sqrt(c).
RELEASED_MARGIN = 1e-5
# Largest sqrt(c) * |v|. At the radius 2 * 5 the conformal factor is 11,014, and float32 still keeps three digits.
MAX_TANGENT_RADIUS = 5.0
# Methods to combine the embeddings of a speaker's utterances; see `combine_embeddings`.
COMBINATIONS = ("mean", "length_weighted", "barycentre")
# Embeddings with a smaller norm are divided by this value, not by their norm. The cosine's gradient is at most 1e6.
SMALLEST_NORM = 1e-6
# Vectors with larger entries are scaled down until the largest one has this value; in float32, 1e20 squared overflows.
LARGEST_ENTRY = 1e15
# Standard deviation of the initial centres in the HAM-Softmax code. The centres are then close to the origin.
CENTRE_STD = 1e-3
# Lower bound of a learned curvature. The upper bound depends on the clip radius and the range of float32.
SMALLEST_CURVATURE = 1e-2
# Similarity and margin of each head. The head "joint" combines a Euclidean head and "ham".
HEAD_PARTS = {
    "softmax": ("linear", "none"),
    "scaled_softmax": ("linear", "none"),
    "normalized_softmax": ("cosine", "none"),
    "am": ("cosine", "additive"),
    "aam": ("cosine", "angular"),
    "ram": ("cosine", "real"),
    "h": ("hyperbolic", "none"),
    "ham": ("hyperbolic", "additive"),
}
# Published settings, used for fields that a configuration leaves at None. Scale 1 is the plain softmax.
PUBLISHED_SCALE = {"softmax": 1.0}
PUBLISHED_CURVATURE = {"h": 5.0}
OTHER_SCALE, OTHER_CURVATURE, MARGIN = 30.0, 3.0, 0.2
# Margins are in [0, LARGEST_MARGIN). Angles stay below pi, and distances of "released" below 2.64 for c >= 3.
LARGEST_MARGIN = 3.0


def as_tensor(values: Any) -> Tensor:
    """Return a tensor unchanged, or the tensor of a list or array of numbers, of any byte order and strides."""
    try:
        if np.ma.is_masked(values):
            raise TypeError("Masked values are not numbers.")
        is_array = isinstance(values, np.ndarray)
        return torch.as_tensor(values.astype(values.dtype.newbyteorder("="), order="C") if is_array else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected a tensor or an array of numbers, got {type(values).__name__}.") from error


def at_least_float32(x: Tensor) -> Tensor:
    """Convert `x` to float32, or return it unchanged if its precision is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return a bool mask `(B, size)` whose row `i` is True in the first `lengths[i]` entries."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def limit_entries(v: Tensor, largest: float = LARGEST_ENTRY) -> Tensor:
    """Scale finite vectors `(..., D)` down so that no entry exceeds `largest`, without changing their directions.

    Autograd treats the scale factor as a constant. The gradient is still exact for functions of the direction.
    """
    # On a CPU, the norm is faster to compute than the largest entry. On other devices, this test would block.
    is_tested = v.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_tested and bool((torch.linalg.vector_norm(v.detach(), dim=-1) <= largest).all()):
        return v
    return v * (largest / v.detach().abs().amax(-1, keepdim=True)).clamp_max(1)


class BallPoints(NamedTuple):
    """Positions `(..., D)` in the unit ball, with norms below 1, and conformal factors `(..., 1)`, at least 2."""

    position: Tensor
    conformal: Tensor


def released_radius(c: float) -> float:
    """Return the largest norm of the released projection, `(1 - 1e-5) / sqrt(c)`; raise a ValueError unless `c > 1`."""
    if not c > 1:
        raise ValueError(
            f"The released projection needs curvature > 1, got {c}. Otherwise, points could leave the unit ball. The "
            "published values are 3 (HAM) and 5 (H). projection='curved' accepts any curvature above 0."
        )
    return (1 - RELEASED_MARGIN) / math.sqrt(c)


def clip_norm(v: Tensor, radius: float | Tensor) -> Tensor:
    """Shorten vectors `(..., D)` whose norm exceeds `radius` to the norm `radius`; return other vectors unchanged."""
    v = limit_entries(v)
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    # With clamp_min, the gradient at norm == radius would depend on how torch treats equal values.
    outside = norm > radius
    return v * torch.where(outside, radius / norm.where(outside, torch.ones_like(norm)), 1.0)


def project_released(v: Tensor, c: float) -> BallPoints:
    """Map features `(..., D)` to the ball by clipping their norms to `released_radius(c)`."""
    position = clip_norm(v, released_radius(c))
    return BallPoints(position, conformal_factor(position.square().sum(-1, keepdim=True)))


def conformal_factor(square: Tensor) -> Tensor:
    """Return the conformal factors `2 / (1 - square)` of points with the squared norms `square`, any shape."""
    return 2 / (1 - square)


def project_curved(v: Tensor, c: float | Tensor, clip_radius: float = 1.0) -> BallPoints:
    """Clip features `(..., D)` to `clip_radius` and apply the exponential map at the origin; the curvature is `-c`.

    The points are scaled by `sqrt(c)`, so that they lie in the unit ball. `sqrt(c) * clip_radius` must be at most 5,
    because float32 cannot represent points farther out. A learned `c` is a tensor that requires a gradient.
    """
    v = clip_norm(v, clip_radius)
    norm = _positive(torch.linalg.vector_norm(v, dim=-1, keepdim=True))
    position, conformal = curved_norm(norm, c)
    return BallPoints(v * (position / norm), conformal)


def _positive(x: Tensor) -> Tensor:
    """Raise the values of `x` to at least the smallest normal number of its data type, so that `x` can be a divisor."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def curved_norm(norm: Tensor, c: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return norms and conformal factors of the points to which `project_curved` maps features of norm `norm`."""
    argument = (c.sqrt() if isinstance(c, Tensor) else math.sqrt(c)) * norm
    return torch.tanh(argument), 2 * torch.cosh(argument).square()


class _Arcosh1p(torch.autograd.Function):
    """Function `arcosh(1 + u)` for `u >= 0`. Its derivative is finite even at `u = 0`, where two points coincide."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return torch.log1p(u + (u * (u + 2)).sqrt())

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad_outputs[0] * arcosh1p_slope(u)


def arcosh1p_slope(u: Tensor) -> Tensor:
    """Return the derivative of `arcosh(1 + u)` at `u`, any shape."""
    # For a u as small as its rounding error, the slope is noise. It is limited to 1/sqrt(eps), 3e3 in float32.
    return (u * (u + 2)).clamp_min(torch.finfo(u.dtype).eps).rsqrt()


def arcosh1p(u: Tensor) -> Tensor:
    """Compute `arcosh(1 + u)` for `u >= 0` of any shape, accurate for small `u`, with a finite gradient everywhere."""
    return _Arcosh1p.apply(u)  # pyright: ignore[reportReturnType]


def distance(x: BallPoints, y: BallPoints) -> Tensor:
    """Compute the distances `(...)` of pairs in the unit ball. If two points coincide, distance and gradient are 0."""
    apart = x.position - y.position
    return arcosh1p(cosh_less_1(apart, x.conformal.squeeze(-1) * y.conformal.squeeze(-1)))


def cosh_less_1(apart: Tensor, conformal: Tensor) -> Tensor:
    """Compute `cosh d - 1` from `apart`, the position difference, and `conformal`, the product of conformal factors."""
    return 0.5 * conformal * apart.square().sum(-1)


def pairwise_distance(x: BallPoints, y: BallPoints) -> Tensor:
    """Compute the distances `(B, K)`, in `[0, inf)`, of B points `x` from K points `y` in the unit ball.

    One matrix product gives all distances. Its rounding error in `cosh d` does not decrease with the distance `d`. In
    float32, distances below about 1e-3 can therefore not be told from 0. Use `distance` for nearly equal points.
    """
    x_time = x.conformal * x.position.square().sum(-1, keepdim=True)
    y_time = (y.conformal * y.position.square().sum(-1, keepdim=True)).mT
    product = (x.conformal * x.position) @ (y.conformal * y.position).mT
    return arcosh1p((x_time + y_time + x_time * y_time - product).clamp_min(0))


def to_features(point: BallPoints, projection: str, curvature: float) -> Tensor:
    """Return features `(..., D)` that `project` maps to `point`. There must be such features."""
    if projection == "released":
        return point.position
    root_c = math.sqrt(curvature)
    norm = _positive(torch.linalg.vector_norm(point.position, dim=-1, keepdim=True))
    return point.position * (torch.atanh(norm) / (root_c * norm))


def karcher_mean(points: BallPoints, weights: Tensor, steps: int = 100, tolerance: float = 1e-12) -> BallPoints:
    """Compute the point with the least weighted sum of squared distances to `points` (Karcher 1977).

    In hyperbolic space there is exactly one such point. Gradient descent along geodesics starts at the Einstein
    midpoint (Ungar 2008). The eigenvalues of the Hessian of `d^2 / 2` are between 1 and `d coth d`, where `d` is the
    distance to one of the points. The step size is 1 over the weighted mean of `d coth d`, so the sum never increases.
    The descent ends after `steps` steps, or when the length of a step is at most `tolerance`.

    Args:
        points: N points of size D, preferably in float64.
        weights: weights `(N,)`, at least 0, with a sum above 0.
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
        # Compute the time coordinate again, so that rounding errors do not move the point off the hyperboloid.
        mean = torch.cat([(1 + mean[1:].square().sum(0, keepdim=True)).sqrt(), mean[1:]])
    return _from_hyperboloid(mean)


def _from_hyperboloid(point: Tensor) -> BallPoints:
    """Map a point `(1 + D,)` of the hyperboloid, with its time coordinate first, to the ball."""
    conformal = 1 + point[:1]
    return BallPoints(point[1:] / conformal, conformal)


def normalize(embeddings: Tensor) -> Tensor:
    """Scale embeddings `(..., D)` to unit norm."""
    return F.normalize(limit_entries(embeddings), dim=-1, eps=SMALLEST_NORM)


def project(
    embeddings: Tensor, projection: str, curvature: float | Tensor, clip_radius: float
) -> tuple[BallPoints, float | Tensor]:
    """Map features `(..., D)` to points of the ball; see the docstring of this module for the projections.

    Returns:
        The points, and the factor by which their distances in the unit ball must be multiplied (1, or `1 / sqrt(c)`).
    """
    if projection == "released":
        return project_released(embeddings, float(curvature)), 1.0
    return project_curved(embeddings, curvature, clip_radius), curvature**-0.5


def score(
    enrolment: Tensor, test: Tensor, similarity: str, projection: str, curvature: float | Tensor, clip_radius: float
) -> Tensor:
    """Score each row of `enrolment` `(..., D)` against the same row of `test` `(..., D)`.

    Args:
        enrolment, test: embeddings of the two recordings of each trial.
        similarity: `"cosine"` (range [-1, 1]) or `"hyperbolic"` (minus the distance, range (-inf, 0]).
        projection, curvature, clip_radius: settings of `"hyperbolic"`; see `project`.

    Returns:
        Scores `(...)` in float32 or better. A larger score means that the embeddings are more similar.
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
    """Score every row of `enrolment` `(..., B, D)` against every row of `test` `(..., K, D)`; see `score`."""
    enrolment, test = at_least_float32(enrolment), at_least_float32(test)
    if similarity == "cosine":
        return normalize(enrolment) @ normalize(test).mT
    x, factor = project(enrolment, projection, curvature, clip_radius)
    y, _ = project(test, projection, curvature, clip_radius)
    return -pairwise_distance(x, y) * factor


def magnitude(
    embeddings: Tensor, similarity: str, projection: str, curvature: float | Tensor, clip_radius: float
) -> Tensor:
    """Return the distance `(...)` of embeddings `(..., D)` from the origin, a measure of the quality of the embeddings.

    For `"cosine"` it is the Euclidean norm of an embedding. For `"hyperbolic"` it is the hyperbolic distance of the
    projected embedding from the centre of the ball.
    """
    embeddings = at_least_float32(embeddings)
    if similarity == "cosine":
        return torch.linalg.vector_norm(embeddings, dim=-1)
    return -score(embeddings, torch.zeros_like(embeddings), similarity, projection, curvature, clip_radius)


def mean_direction(embeddings: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return a vector `(D,)` with the mean direction and the mean norm of embeddings `(N, D)` with weights `(N,)`."""
    embeddings, shares = limit_entries(at_least_float32(embeddings)), _shares(embeddings, weights)
    direction = (shares[:, None] * normalize(embeddings)).sum(0)
    if float(direction.detach().norm()) < SMALLEST_NORM:
        raise ValueError("The directions of these embeddings cancel out. Check that all are of the same speaker.")
    return normalize(direction) * (shares * embeddings.norm(dim=-1)).sum()


def barycentre(
    embeddings: Tensor, projection: str, curvature: float, clip_radius: float, weights: Tensor | None = None
) -> Tensor:
    """Return an embedding `(D,)` that `project` maps to the `karcher_mean` of the projected embeddings `(N, D)`."""
    shares = _shares(embeddings, weights)
    points, _ = project(embeddings.double(), projection, curvature, clip_radius)
    mean = karcher_mean(points, shares.double())
    return to_features(mean, projection, curvature).to(at_least_float32(embeddings).dtype)


def _shares(embeddings: Tensor, weights: Tensor | None) -> Tensor:
    if embeddings.ndim != 2 or embeddings.shape[0] == 0:
        raise ValueError(f"Expected embeddings of shape (N, D) with N at least 1, got {tuple(embeddings.shape)}.")
    count = embeddings.shape[0]
    if weights is None:
        return torch.full((count,), 1 / count, device=embeddings.device)
    if weights.shape != (count,) or not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
        raise ValueError(f"Expected {count} weights of at least 0, not all of them 0, got {weights.tolist()}.")
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
    """Combine the embeddings `(N, D)` of a speaker's utterances into one embedding `(D,)`.

    Args:
        embeddings: embeddings of one or more utterances.
        combine: `"mean"` (mean direction and mean norm; the norm matters only for hyperbolic scores),
            `"length_weighted"` (the same with means weighted by `seconds`), or `"barycentre"` (the point of the ball
            with the least sum of squared distances to the embeddings, intended for models with hyperbolic scores).
        seconds: duration of the speech in each utterance, for `"length_weighted"`.
        projection, curvature, clip_radius: values of the model's configuration, for `"barycentre"`.
    """
    if combine == "mean":
        return mean_direction(embeddings)
    if combine == "barycentre":
        return barycentre(embeddings, projection, curvature, clip_radius)
    if combine != "length_weighted":
        raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}.")
    if seconds is None:
        raise ValueError("combine='length_weighted' needs the seconds of speech in each utterance.")
    return mean_direction(embeddings, torch.tensor(list(seconds), dtype=torch.float32, device=embeddings.device))


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """Compute `cos(angle + margin)`, or `cosine - margin sin(margin)` for angles of at least `pi - margin`."""
    # Rounding errors can make 1 - cos^2 negative. At 0 the derivative of the root is infinite.
    sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    past_turn = cosine <= math.cos(math.pi - margin)
    return torch.where(past_turn, cosine - margin * math.sin(math.pi - margin), shifted)


def add_margin(target: Tensor, kind: str, margin: float) -> Tensor:
    """Return similarities to the target centre, any shape, after a margin is applied (in radians for `"angular"`).

    The kinds are `"none"`, `"additive"`, `"angular"` (added to the angle) and `"real"`. For the target, `"real"` is the
    same as `"additive"`; `apply_margin` describes its effect on the impostors.
    """
    if kind == "none":
        return target
    return add_angle(target, margin) if kind == "angular" else target - margin


def apply_margin(similarity: Tensor, labels: Tensor, kind: str, margin: float, scale: float) -> Tensor:
    """Compute scaled logits `(B, K)` after a margin is applied to the similarity to the target centre.

    For the kind `"real"`, each impostor logit that is smaller than the target logit after the margin is replaced by 0.
    """
    if kind == "none":
        return scale * similarity
    index = labels[:, None]
    target = add_margin(similarity.gather(1, index), kind, margin)
    logits = scale * similarity.scatter(1, index, target)
    if kind == "real":
        logits = logits.masked_fill(logits < scale * target, 0.0)
    return logits


class HeadOutput(NamedTuple):
    """Scaled logits `(B, K)` without margin, and mean cross-entropy with margin. What was not computed is None."""

    logits: Tensor | None
    loss: Tensor | None


def check_head(scale: float, margin: float, clip_radius: float) -> None:
    """Raise a ValueError if the scale, margin or clip radius of a head is out of range."""
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite, got {scale}.")
    if not 0 <= margin < LARGEST_MARGIN:
        raise ValueError(f"margin must be at least 0 and below {LARGEST_MARGIN:g}, got {margin}.")
    if not 0 < clip_radius < math.inf:
        raise ValueError(f"clip_radius must be above 0 and finite, got {clip_radius}.")


def check_projection(projection: str, curvature: float, clip_radius: float, learnable_curvature: bool) -> None:
    """Raise a ValueError if the settings of a projection are out of range (see `project` and `SpeakerHead`)."""
    if projection == "released":
        if learnable_curvature:
            raise ValueError("learnable_curvature needs projection='curved'; 'released' has no curvature to learn.")
        if not curvature < math.inf:
            raise ValueError(f"curvature must be finite, got {curvature}.")
        released_radius(curvature)
        return
    if projection != "curved":
        raise ValueError(f"projection must be 'released' or 'curved', got {projection!r}.")
    largest = (MAX_TANGENT_RADIUS / clip_radius) ** 2
    if not 0 < curvature <= largest:
        raise ValueError(
            f"projection='curved' needs 0 < curvature <= (5 / clip_radius)^2 = {largest:g}, got {curvature}. "
            "Beyond this limit, float32 cannot represent the points. Reduce curvature or clip_radius."
        )


class LinearSimilarity(nn.Module):
    """Linear similarity `W x + b`: `(B, D)` to `(B, K)`."""

    kind = "linear"

    def __init__(self, speakers: int, embedding_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(speakers, embedding_size))
        self.bias = nn.Parameter(torch.empty(speakers))
        self.reset_centres()

    def curvature(self) -> None:
        """Return None, because a linear similarity has no curvature."""

    def reset_centres(self) -> None:
        """Initialise the centres like the weights of `torch.nn.Linear`, and set the bias to 0."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.linear(embeddings, self.weight.to(embeddings.dtype), self.bias.to(embeddings.dtype))


class CosineSimilarity(nn.Module):
    """Cosine similarity to the centres: `(B, D)` to `(B, K)`, range [-1, 1]."""

    kind = "cosine"
    bias: None = None

    def __init__(self, speakers: int, embedding_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(speakers, embedding_size))
        self.reset_centres()

    def curvature(self) -> None:
        """Return None, because a cosine has no curvature."""

    def reset_centres(self) -> None:
        """Draw the centres from the Xavier normal distribution, as in the HAM-Softmax code."""
        nn.init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return normalize(embeddings) @ normalize(self.weight.to(embeddings.dtype)).mT


class HyperbolicSimilarity(nn.Module):
    """Negative Poincaré distance to the centres, in the given projection: `(B, D)` to `(B, K)`, at most 0.

    One matrix product gives all distances. With labels, the distance of each embedding to its target centre is computed
    from the difference of the two points instead, which is accurate even for nearly equal points.
    """

    kind = "hyperbolic"
    bias: None = None

    def __init__(
        self,
        speakers: int,
        embedding_size: int,
        curvature: float,
        projection: str,
        clip_radius: float,
        learnable_curvature: bool,
    ):
        super().__init__()
        check_projection(projection, curvature, clip_radius, learnable_curvature)
        self.projection, self.clip_radius = projection, clip_radius
        self.initial_curvature = curvature
        self.largest_curvature = (MAX_TANGENT_RADIUS / clip_radius) ** 2
        self.weight = nn.Parameter(torch.empty(speakers, embedding_size))
        self.log_curvature = nn.Parameter(torch.empty(())) if learnable_curvature else None
        self.reset_centres()

    def reset_centres(self) -> None:
        """Draw centres near the origin, as in the HAM-Softmax code, and reset a learned curvature."""
        nn.init.normal_(self.weight, std=CENTRE_STD)
        if self.log_curvature is not None:
            nn.init.constant_(self.log_curvature, math.log(self.initial_curvature))

    def curvature(self) -> float | Tensor:
        """Return `c`: a float if it is fixed, otherwise a scalar tensor with at least the precision of float32.

        A learned `c` is limited to the range from `SMALLEST_CURVATURE` to `largest_curvature`.
        """
        if self.log_curvature is None:
            return self.initial_curvature
        bounds = math.log(SMALLEST_CURVATURE), math.log(self.largest_curvature)
        if self.training:
            # After a step that was too large, the next steps can move the parameter back from its bound.
            self.log_curvature.data.clamp_(*bounds)
        log_c = at_least_float32(self.log_curvature)
        # The bounds limit the value but not the gradient, which would be 0 at a bound.
        return (log_c + (log_c.detach().clamp(*bounds) - log_c.detach())).exp()

    def recorded_curvature(self) -> float:
        """Return `c` as a float for the configuration. It never exceeds `largest_curvature`, even after rounding."""
        return min(float(torch.as_tensor(self.curvature()).detach()), self.largest_curvature)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        c = self.curvature()
        x, factor = project(embeddings, self.projection, c, self.clip_radius)
        centres, _ = project(self.weight.to(embeddings.dtype), self.projection, c, self.clip_radius)
        distances = pairwise_distance(x, centres)
        if labels is not None:
            own = type(centres)(centres.position[labels], centres.conformal[labels])
            distances = distances.scatter(1, labels[:, None], distance(x, own)[:, None])
        return -distances * factor


class SpeakerHead(nn.Module):
    """Training head: centres of the speakers, a similarity and a margin.

    A table in the docstring of this module lists all heads. `set_margin` can change the margin in training. The margin
    is saved in the configuration, not with the weights. A trainer can set the attribute `engine` to an object that then
    computes the loss, such as `losses.engine.BlockwiseEngine`. The engine is not saved.

    Args:
        head: name of a head in this table, except `joint`.
        speakers: number K of speakers.
        embedding_size, scale, margin: fields of `HamSpkConfig` with these names.
        curvature, projection, clip_radius, learnable_curvature: further fields, which only hyperbolic heads use.
    """

    def __init__(
        self,
        head: str,
        speakers: int,
        embedding_size: int,
        scale: float,
        margin: float,
        curvature: float,
        projection: str = "released",
        clip_radius: float = 1.0,
        learnable_curvature: bool = False,
    ):
        super().__init__()
        check_head(scale, margin, clip_radius)
        similarity, self.margin_kind = HEAD_PARTS[head]
        sizes, geometry = (speakers, embedding_size), (curvature, projection, clip_radius, learnable_curvature)
        if similarity == "hyperbolic":
            self.similarity = HyperbolicSimilarity(*sizes, *geometry)
        else:
            self.similarity = (LinearSimilarity if similarity == "linear" else CosineSimilarity)(*sizes)
        self.scale, self.margin = scale, float(margin)
        self.projection, self.clip_radius = projection, float(clip_radius)
        self.engine: Any = None

    def set_margin(self, margin: float) -> None:
        """Set the margin, in [0, 3). It has no effect on heads without a margin."""
        check_head(self.scale, margin, self.clip_radius)
        self.margin = float(margin)

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Compute logits and loss.

        Args:
            embeddings: embeddings of the utterances, `(B, D)`.
            labels: target speakers `(B,)`, int64 in [0, K); None computes no loss.
            return_logits: whether to compute logits. None computes them, unless the head is in training mode and labels
                are given; leaving the logits out saves memory.
        """
        if return_logits is None:
            return_logits = labels is None or not self.training
        if return_logits and self.engine is not None and not self.engine.gives_logits:
            raise ValueError("No rank holds all centres, so there are no logits. Load the saved model to compute them.")
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = limit_entries(at_least_float32(embeddings))
            logits = self.scale * self.similarity(embeddings, labels) if return_logits else None
            if labels is None:
                return HeadOutput(logits, None)
            if self.engine is None:
                return HeadOutput(logits, self.plain_loss(embeddings, labels))
            return HeadOutput(logits, self.engine(self, embeddings, labels))

    def plain_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss, a scalar, from all B x K similarities at once."""
        similarity = self.similarity(embeddings, labels)
        return F.cross_entropy(apply_margin(similarity, labels, self.margin_kind, self.margin, self.scale), labels)


class JointHead(nn.Module):
    """Training head whose loss is the weighted sum of the losses of a Euclidean head and of a HAM head.

    Each of the two heads has its own centres. The logits are the logits of the HAM head. The HAM-Softmax code uses
    0.3 RAM + 0.7 HAM (c = 3, s = 30, m = 0.2).
    """

    def __init__(
        self, euclidean: SpeakerHead, hyperbolic: SpeakerHead, euclidean_weight: float, hyperbolic_weight: float
    ):
        super().__init__()
        self.euclidean, self.hyperbolic = euclidean, hyperbolic
        self.euclidean_weight, self.hyperbolic_weight = euclidean_weight, hyperbolic_weight

    @property
    def margin(self) -> float:
        """Margin of both heads."""
        return self.hyperbolic.margin

    def set_margin(self, margin: float) -> None:
        """Set the margin of both heads (see `SpeakerHead.set_margin`)."""
        self.euclidean.set_margin(margin)
        self.hyperbolic.set_margin(margin)

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Compute the logits of HAM and the weighted sum of both losses; for arguments see `SpeakerHead.forward`."""
        logits, hyperbolic = self.hyperbolic(embeddings, labels, return_logits)
        if labels is None or hyperbolic is None:
            return HeadOutput(logits, None)
        euclidean = cast(Tensor, self.euclidean(embeddings, labels, False).loss)
        return HeadOutput(logits, self.euclidean_weight * euclidean + self.hyperbolic_weight * hyperbolic)
