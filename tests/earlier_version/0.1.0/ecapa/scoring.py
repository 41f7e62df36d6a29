"""Scores of pairs of embeddings. Larger means more alike, for every similarity.

Letters: `B` enrolment embeddings, `K` test embeddings, `D` embedding size.
"""

import torch
from torch import Tensor

from .poincare import (
    BallPoints,
    conformal_factor,
    curved_norm,
    distance,
    pairwise_distance,
    project_curved,
    project_released,
    released_radius,
)
from .pooling import at_least_float32

# Below this norm an embedding has no direction: its cosine fades to 0, and the gradient stays below the inverse, 1e6.
SMALLEST_NORM = 1e-6


def normalize(embeddings: Tensor) -> Tensor:
    """Scale `(..., D)` to unit norm."""
    return torch.nn.functional.normalize(embeddings, dim=-1, eps=SMALLEST_NORM)


def project(
    embeddings: Tensor, projection: str, curvature: float | Tensor, clip_radius: float
) -> tuple[BallPoints, float | Tensor]:
    """Put features `(..., D)` on the ball.

    Args:
        embeddings: features of any norm.
        projection: `"released"` or `"curved"`; see the module `poincare` for what `c` does in each.
        curvature: `c`, above 1 for released, above 0 for curved.
        clip_radius: largest feature norm of the curved projection; unused in the released one.

    Returns:
        The points, and the factor by which a distance of the unit ball is multiplied (1, or `1 / sqrt(c)`).
    """
    if projection == "released":
        return project_released(embeddings, float(curvature)), 1.0
    return project_curved(embeddings, curvature, clip_radius), curvature**-0.5


def project_norm(
    radius: Tensor, projection: str, curvature: float | Tensor, clip_radius: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `project` does to the norms of features, of any shape.

    Args:
        radius: norms.
        projection, curvature, clip_radius: as in `project`.

    Returns:
        The norms of the points, their conformal factors, and the derivative of the norm by that of the feature.
    """
    if projection == "released":
        largest = released_radius(float(curvature))
        position = radius.clamp_max(largest)
        return position, conformal_factor(position.square()), (radius <= largest).to(radius.dtype)
    position, conformal = curved_norm(radius.clamp_max(clip_radius), curvature)
    # 1 - tanh^2 = 2 / conformal.
    return position, conformal, (2 * curvature**0.5) / conformal * (radius <= clip_radius)


def score(
    enrolment: Tensor, test: Tensor, similarity: str, projection: str, curvature: float | Tensor, clip_radius: float
) -> Tensor:
    """Score each row of `enrolment` `(..., D)` against the same row of `test` `(..., D)`.

    Args:
        enrolment: embeddings.
        test: embeddings.
        similarity: `"cosine"` (range [-1, 1]) or `"hyperbolic"` (minus the distance, range (-inf, 0]).
        projection: as in `project`.
        curvature: as in `project`.
        clip_radius: as in `project`.

    Returns:
        `(...)` scores in float32 or better.
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
    """Score every row of `enrolment` `(..., B, D)` against every row of `test` `(..., K, D)`: `(..., B, K)`."""
    enrolment, test = at_least_float32(enrolment), at_least_float32(test)
    if similarity == "cosine":
        return normalize(enrolment) @ normalize(test).mT
    x, factor = project(enrolment, projection, curvature, clip_radius)
    y, _ = project(test, projection, curvature, clip_radius)
    return -pairwise_distance(x, y) * factor


def magnitude(
    embeddings: Tensor, similarity: str, projection: str, curvature: float | Tensor, clip_radius: float
) -> Tensor:
    """How far embeddings `(..., D)` lie from the origin, `(...)`: a measure of the quality of what was embedded.

    The Euclidean norm for `"cosine"`, the distance from the origin of the ball for `"hyperbolic"`.
    """
    embeddings = at_least_float32(embeddings)
    if similarity == "cosine":
        return torch.linalg.vector_norm(embeddings, dim=-1)
    return -score(embeddings, torch.zeros_like(embeddings), similarity, projection, curvature, clip_radius)
