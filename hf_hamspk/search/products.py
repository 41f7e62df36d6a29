"""Express each similarity by inner products, so that a library that compares inner products can find the nearest keys.

A key is an enrolled embedding. The nearest keys of a query are the keys with the highest similarity to the query.

The cosine similarity is the inner product of unit vectors. A hyperbolic distance `d` increases with `cosh d`. A point
`p` of the ball with conformal factor `lambda` is lifted to `(lambda p, lambda |p|^2)` (see `geometry_hamspk`). Let
`(X, a)` be the lift of the query and `(Y, b)` the lift of the key. Then `cosh d - 1 = a + b (1 + a) - X.Y`. For a given
query, the nearest keys are therefore the keys whose `(Y, b)` has the largest inner product with `(X, -1 - a)`.

Letters in shapes: `N` keys, `Q` queries, `D` embedding size, `E` size of the vectors that are multiplied (`D` for the
cosine similarity, `D + 1` for hyperbolic distances).
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..configuration_hamspk import HamSpkConfig
from ..geometry_hamspk import normalize, project, score

# Largest relative rounding error of float32.
ROUNDING = 2.0**-24
# Both vectors are rounded to float32 before they are multiplied.
ROUNDED_FACTORS = 2


class ScoringModel(Protocol):
    """Interface of a model whose embeddings can be stored in an index. It has a configuration and a fingerprint."""

    config: HamSpkConfig

    def fingerprint(self) -> str:
        """Return a checksum that identifies the weights."""
        ...


class Similarity(NamedTuple):
    """Similarity function of a model. The fields are arguments of `geometry_hamspk.score`."""

    similarity: str
    projection: str
    curvature: float
    clip_radius: float

    @classmethod
    def of(cls, model: ScoringModel) -> "Similarity":
        """Read the similarity from the configuration of a model."""
        config = model.config
        # A cosine model may have no curvature, because the cosine similarity does not use it.
        curvature = 1.0 if config.curvature is None else float(config.curvature)
        return cls(config.similarity, config.projection, curvature, float(config.clip_radius))

    def score(self, keys: Tensor, queries: Tensor) -> Tensor:
        """Return the scores `(...)` of pairs of keys `(..., D)` and queries `(..., D)`, computed in float64."""
        return score(keys.double(), queries.double(), *self)

    def key_vectors(self, keys: Tensor) -> Tensor:
        """Map key embeddings `(N, D)` to the float32 vectors `(N, E)` from which inner products are computed."""
        if self.similarity == "cosine":
            return normalize(keys.double()).float()
        position, conformal, beyond = self._lift(keys)
        return torch.cat([conformal * position, beyond], dim=-1).float()

    def query_vectors(self, queries: Tensor) -> Tensor:
        """Map query embeddings `(Q, D)` to the float32 vectors `(Q, E)` from which inner products are computed."""
        if self.similarity == "cosine":
            return self.key_vectors(queries)
        position, conformal, beyond = self._lift(queries)
        return torch.cat([conformal * position, -1 - beyond], dim=-1).float()

    def product_of_score(self, scores: Tensor, queries: Tensor) -> Tensor:
        """Return the inner products of key and query vectors that correspond to scores of the model.

        Args:
            scores: scores of `k` keys for each query, `(Q, k)` float64.
            queries: query embeddings, `(Q, D)`.

        Returns:
            Inner products, `(Q, k)` float64.
        """
        if self.similarity == "cosine":
            return scores
        factor = 1.0 if self.projection == "released" else self.curvature**-0.5
        return self._lift(queries)[2] + 1 - torch.cosh(scores / factor)

    def _lift(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points, _ = project(embeddings.double(), self.projection, self.curvature, self.clip_radius)
        position, conformal = points
        return position, conformal, conformal * position.square().sum(-1, keepdim=True)


def rounding_bound(size: int) -> float:
    """Return an upper bound of the rounding error of an inner product in float32.

    The bound is relative to the product of the norms of the two vectors. It covers the errors of the conversion of both
    vectors to float32, of the multiplications, and of the additions in any order (N. Higham, "Accuracy and Stability of
    Numerical Algorithms", 2002, section 3.1). If `size` is too large for a bound, the result is infinity.

    Args:
        size: number of terms in the inner product.
    """
    terms = (size + ROUNDED_FACTORS) * ROUNDING
    return terms / (1 - terms) if terms < 1 else math.inf
