"""Nearest neighbours as largest inner products, for every similarity.

A cosine is the inner product of unit vectors. A hyperbolic distance grows with `cosh d`, and with the lift of the
module `geometry_hamspk` that is linear in either side: `cosh d - 1 = a + b (1 + a) - X.Y`, where `X = lambda p` and
`a = lambda |p|^2` of the query, `Y` and `b` those of the key. So the nearest keys have the largest inner product of
`(Y, b)` with `(X, -1 - a)`, and every library that searches by inner products searches the ball.

Letters: `N` keys, `Q` queries, `D` embedding size, `E` size of the vectors of the product (`D`, or `D + 1`).
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..configuration_hamspk import HamSpkConfig
from ..geometry_hamspk import normalize, project, score

# Half a unit in the last place of float32.
ROUNDING = 2.0**-24
# Two vectors are rounded to float32 before they are multiplied.
ROUNDED_FACTORS = 2


class ScoringModel(Protocol):
    """What an index needs of a model: the similarity in its configuration, and its fingerprint."""

    config: HamSpkConfig

    def fingerprint(self) -> str:
        """Identifies the weights."""
        ...


class Similarity(NamedTuple):
    """How a model compares embeddings; fields as in `geometry_hamspk.score`."""

    similarity: str
    projection: str
    curvature: float
    clip_radius: float

    @classmethod
    def of(cls, model: ScoringModel) -> "Similarity":
        """The similarity in a model's configuration."""
        config = model.config
        # A cosine model may have no curvature, and none enters a cosine.
        curvature = 1.0 if config.curvature is None else float(config.curvature)
        return cls(config.similarity, config.projection, curvature, float(config.clip_radius))

    def score(self, keys: Tensor, queries: Tensor) -> Tensor:
        """Score rows in float64: `(..., D)` and `(..., D)` to `(...)`."""
        return score(keys.double(), queries.double(), *self)

    def key_vectors(self, keys: Tensor) -> Tensor:
        """`(N, D)` to `(N, E)` float32."""
        if self.similarity == "cosine":
            return normalize(keys.double()).float()
        position, conformal, beyond = self._lift(keys)
        return torch.cat([conformal * position, beyond], dim=-1).float()

    def query_vectors(self, queries: Tensor) -> Tensor:
        """`(Q, D)` to `(Q, E)` float32."""
        if self.similarity == "cosine":
            return self.key_vectors(queries)
        position, conformal, beyond = self._lift(queries)
        return torch.cat([conformal * position, -1 - beyond], dim=-1).float()

    def product_of_score(self, scores: Tensor, queries: Tensor) -> Tensor:
        """The inner products `(Q, k)`, float64, of scores `(Q, k)` of queries `(Q, D)`; monotone in the score."""
        if self.similarity == "cosine":
            return scores
        factor = 1.0 if self.projection == "released" else self.curvature**-0.5
        return self._lift(queries)[2] + 1 - torch.cosh(scores / factor)

    def _lift(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points, _ = project(embeddings.double(), self.projection, self.curvature, self.clip_radius)
        position, conformal = points
        return position, conformal, conformal * position.square().sum(-1, keepdim=True)


def rounding_bound(size: int) -> float:
    """The largest error of a float32 inner product of `size` terms, in any order, over the product of the two norms.

    The terms are rounded to float32, multiplied and summed (N. Higham, "Accuracy and Stability of Numerical
    Algorithms", 2002, section 3.1).
    """
    terms = (size + ROUNDED_FACTORS) * ROUNDING
    return terms / (1 - terms) if terms < 1 else math.inf
