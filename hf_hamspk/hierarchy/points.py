"""Directions, radii and distances of embeddings and centres in the space in which the head of a model compares them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..configuration_hamspk import HamSpkConfig
from ..geometry_hamspk import HEAD_PARTS, BallPoints, JointHead, pairwise_distance, project
from ..study.controls import project_freely

SPACES = ("released", "curved", "free", "sphere", "euclidean")
# Smallest norm by which a vector is divided to get its direction.
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Points:
    """Points of a space.

    Attributes:
        vectors: features `(N, D)`, float64, before any projection.
        space: space to which the features are projected.
    """

    vectors: NDArray[np.float64]
    space: "Space"

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors `(N, D)`."""
        return unit(self.vectors)

    @property
    def radii(self) -> NDArray[np.float64]:
        """Hyperbolic distances `(N,)` from the origin of a ball; in other spaces, Euclidean norms."""
        return self.space.radii(self.vectors)

    def distances(self) -> NDArray[np.float64]:
        """Return the distances `(N, N)` in the space."""
        return self.space.distances(self.vectors)

    def take(self, places: NDArray) -> "Points":
        """Return the points with the given indices."""
        return Points(self.vectors[places], self.space)

    def with_directions(self, directions: NDArray[np.float64]) -> "Points":
        """Return points with the norms of these points and the given directions. `directions` need no unit norm."""
        return Points(unit(directions) * np.linalg.norm(self.vectors, axis=1, keepdims=True), self.space)


@dataclass(frozen=True)
class Space:
    """Space in which a head compares embeddings with centres.

    Attributes:
        name: `"released"`, `"curved"` or `"free"` for a Poincaré ball with this projection, `"sphere"` for angles, or
            `"euclidean"`.
        curvature, clip_radius: settings of the projection; see `geometry_hamspk.project`.
    """

    name: str
    curvature: float = 3.0
    clip_radius: float = 1.0

    @property
    def is_ball(self) -> bool:
        """Whether the space is a Poincaré ball."""
        return self.name in SPACES[:3]

    def ball_points(self, vectors: NDArray[np.float64]) -> tuple[BallPoints, float]:
        """Return the projected features, and the factor by which distances in the unit ball are multiplied."""
        features = torch.from_numpy(np.ascontiguousarray(vectors))
        if self.name == "free":
            return project_freely(features, self.curvature), 1.0
        points, factor = project(features, self.name, self.curvature, self.clip_radius)
        return points, float(factor)

    def positions(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the positions `(N, D)` in the unit ball; in other spaces, vectors divided by the largest norm."""
        if self.is_ball:
            return self.ball_points(vectors)[0].position.numpy()
        return vectors / max(float(np.linalg.norm(vectors, axis=1).max()), _SMALLEST)

    def radii(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the hyperbolic distances `(N,)` from the origin of a ball; in other spaces, Euclidean norms."""
        if not self.is_ball:
            return np.linalg.norm(vectors, axis=1)
        points, factor = self.ball_points(vectors)
        return 2 * factor * np.arctanh(points.position.norm(dim=-1).numpy())

    def distances(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances `(N, N)`. In the space `"sphere"`, they are angles in radians."""
        if self.is_ball:
            points, factor = self.ball_points(vectors)
            found = factor * pairwise_distance(points, points).numpy()
        elif self.name == "sphere":
            found = np.arccos(np.clip(unit(vectors) @ unit(vectors).T, -1, 1))
        else:
            squares = (vectors**2).sum(1)
            found = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * vectors @ vectors.T, 0))
        found = (found + found.T) / 2
        np.fill_diagonal(found, 0)
        return found


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors `(..., D)` divided by their norms."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SMALLEST)


def space_of(config: HamSpkConfig, name: str | None = None) -> Space:
    """Return the space of a configuration, or the named space with the settings of the configuration.

    Args:
        config: configuration of the model.
        name: one of `SPACES`; None for the space of the head.

    Raises:
        ValueError: the space is unknown, or the curvature of the configuration is not valid in this space.
    """
    if name is None:
        kind = HEAD_PARTS["ham" if config.head == "joint" else config.head][0]
        name = {"linear": "euclidean", "cosine": "sphere"}.get(kind, config.projection)
    if name not in SPACES:
        raise ValueError(f"The space must be one of {', '.join(SPACES)}, got {name!r}.")
    curvature = 3.0 if config.curvature is None else float(config.curvature)
    if name in ("released", "free") and not curvature > 1:
        raise ValueError(f"The space {name} needs a model with a curvature above 1, got {curvature}.")
    return Space(name, curvature, float(config.clip_radius))


def centre_weights(head: Any) -> NDArray[np.float64]:
    """Return the centres `(K, D)` of a head; for `joint`, the centres of its hyperbolic head."""
    own = head.hyperbolic if isinstance(head, JointHead) else head
    return own.similarity.weight.detach().cpu().double().numpy()


def uniform_directions(points: Points) -> Callable[[np.random.Generator], Points]:
    """Return a function that draws points with the norms of `points` and uniformly distributed directions."""
    return lambda generator: points.with_directions(generator.standard_normal(points.vectors.shape))


def matched_directions(points: Points) -> Callable[[np.random.Generator], Points]:
    """Return a function that draws points with the norms of `points` and normally distributed directions.

    The drawn directions have the same mean and covariance as the directions of `points`. The drawn points therefore
    have the same effective dimension, but no hierarchy.
    """
    directions = points.directions
    mean = directions.mean(0)
    # Sums of the N deviations with standard normal weights have the covariance of the deviations, also if N is below D.
    deviations = (directions - mean) / np.sqrt(max(1, len(points) - 1))

    def draw(generator: np.random.Generator) -> Points:
        return points.with_directions(mean + generator.standard_normal((len(points), len(points))) @ deviations)

    return draw
