"""Control heads of a study: hyperbolic heads in which one property is removed, or in which the radius is free.

The projection `released` (see `geometry_hamspk`) clips nearly all embeddings to the largest radius
`R = (1 - 1e-5) / sqrt(c)` in the unit ball, so that the loss depends only on the directions of the embeddings. In three
control heads the radius is free. They map an embedding `v` of size `D` to a point `x` in the direction of `v`, with the
radius `r = R tanh(|v| / sqrt(D))`. The radius depends on the norm as in the exponential map at the origin, but stays
below `R`. For a long embedding, `x` is nearly the same point as with the projection `released`.

| control         | similarity to a centre `w`                                     | margin on the target  |
|-----------------|----------------------------------------------------------------|-----------------------|
| `angle`         | minus the angle of `v` and `w`, times `2 sqrt(c) / (c - 1)`    | `m`                   |
| `rim`           | minus the distance of the clipped embedding and `R w / |w|`    | `m`                   |
| `exponential`   | minus the distance of `x` and the clipped centre               | `m`                   |
| `horosphere`    | minus the Busemann function at `x`, for `u = w / |w|`          | `m`                   |
| `radial_margin` | as for `horosphere`                                            | `m tanh(|v|/sqrt(D))` |

The Busemann function `log(|u - x|^2 / (1 - |x|^2))` compares two distances from the ideal point `u` on the boundary of
the ball: it is the distance of `x` minus the distance of the origin. The softmax of `-s` times the Busemann function is
a distribution over directions. The point `x` determines it: the distribution is uniform if `x` is the origin, and
concentrated in the direction of `x` if `x` is near the boundary. For `s = D - 1` it is the distribution of the point at
which a hyperbolic Brownian motion that starts at `x` reaches the boundary. The radius therefore expresses certainty. An
embedding at the origin has the loss `log K`, because all K speakers are equally probable. A constant margin would
increase this loss; the margin of `radial_margin` does not.

Control heads compute the plain loss, because the blockwise loss does not support them. They are for studies only: a
model that is saved with a control head is loaded with the head of its configuration. The loaded model computes the same
embeddings, and the radii follow from the norms of the embeddings.

References: Ghadimi Atigh et al. 2021 (Busemann function as a loss); Kato and McCullagh 2020 (the distribution over
directions); Meng et al. 2021 (a margin that grows with the norm of the embedding).
"""

import copy
import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..configuration_hamspk import HamSpkConfig
from ..geometry_hamspk import (
    BallPoints,
    CosineSimilarity,
    HyperbolicSimilarity,
    JointHead,
    LinearSimilarity,
    SpeakerHead,
    conformal_factor,
    distance,
    limit_entries,
    normalize,
    pairwise_distance,
    project_released,
    released_radius,
)
from ..modeling_hamspk import HamSpkForXVector
from ..networks_hamspk import make_head
from ..training.arguments import Recipe
from ..training.models import RecipeModel

# Vectors of this length are longer than every clip radius.
LONG = 1e3
# Cosines are kept below 1 by this amount, because the derivative of the arc cosine is infinite at 1.
SMALLEST_GAP = 1e-6
# Below this norm the exponential map is linear in float32. As a divisor, a smaller norm would lose its precision.
SMALLEST_LENGTH = 1e-6


class AngleSimilarity(CosineSimilarity):
    """Minus the angle to the centres, multiplied by the slope of the hyperbolic distance at the angle 0.

    The slope is `sqrt(k) = 2 sqrt(c) / (c - 1)`. This head has the same temperature as a hyperbolic head, but not its
    geometry, and its centres have no radii.

    Args:
        speakers, embedding_size: see `CosineSimilarity`.
        curvature: curvature `c` of the hyperbolic head.
    """

    def __init__(self, speakers: int, embedding_size: int, curvature: float):
        super().__init__(speakers, embedding_size)
        self.slope = 2 * math.sqrt(curvature) / (curvature - 1)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        cosine = super().forward(embeddings)
        return -self.slope * cosine.clamp(SMALLEST_GAP - 1, 1 - SMALLEST_GAP).arccos()


class RimSimilarity(HyperbolicSimilarity):
    """Minus the hyperbolic distance to centres that always have the largest radius of the projection `released`."""

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        c = self.initial_curvature
        return _minus_distances(
            project_released(embeddings, c), project_released(LONG * normalize(self.weight), c), labels
        )


class ExponentialSimilarity(HyperbolicSimilarity):
    """Minus the hyperbolic distance of embeddings (`project_freely`) from centres projected by `released`."""

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        c = self.initial_curvature
        return _minus_distances(project_freely(embeddings, c), project_released(self.weight, c), labels)


class HorosphereSimilarity(CosineSimilarity):
    """Minus the Busemann function at the embeddings (see `project_freely`). The centres are ideal points.

    The range is from `-2 artanh R` to `2 artanh R`, and the value is 0 for an embedding at the origin.

    Args:
        speakers, embedding_size: see `CosineSimilarity`.
        curvature: number `c > 1`, which determines the largest radius `R`.
    """

    def __init__(self, speakers: int, embedding_size: int, curvature: float):
        super().__init__(speakers, embedding_size)
        self.number = curvature

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        points = project_freely(embeddings, self.number).position
        radius = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        # |u - x|^2 = (1 - r)^2 + 2 (r - x.u). Rounding errors could make the second term negative.
        apart = radius - points @ normalize(self.weight).mT
        apart = torch.where(apart < 0, 0.0, apart)
        return torch.log1p(radius) - torch.log1p(-radius) - torch.log1p(2 * apart / (1 - radius).square())


def project_freely(v: Tensor, c: float) -> BallPoints:
    """Map each feature `v` of `(..., D)` to a point of the ball with the radius `R tanh(|v| / sqrt(D))`, below `R`.

    Args:
        v: features.
        c: curvature, above 1. `R` is `released_radius(c)`.
    """
    v = limit_entries(v)
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(SMALLEST_LENGTH)
    position = v * (released_radius(c) * free_share(norm, v.shape[-1]) / norm)
    return BallPoints(position, conformal_factor(position.square().sum(-1, keepdim=True)))


def free_share(norm: Tensor, size: int) -> Tensor:
    """Return `r / R` in [0, 1] for each norm: the radius from `project_freely` over the largest radius `R`."""
    return torch.tanh(norm / math.sqrt(size))


def _minus_distances(x: BallPoints, centres: BallPoints, labels: Tensor | None) -> Tensor:
    distances = pairwise_distance(x, centres)
    if labels is not None:
        own = BallPoints(centres.position[labels], centres.conformal[labels])
        distances = distances.scatter(1, labels[:, None], distance(x, own)[:, None])
    return -distances


class RadialMargin:
    """Cross-entropy with the margin `m tanh(|v| / sqrt(D))`, which grows with the norm of the embedding `v`."""

    gives_logits = True

    def __call__(self, head: SpeakerHead, embeddings: Tensor, labels: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
        margin = head.margin * free_share(norm, embeddings.shape[-1])
        similarity = head.similarity(embeddings, labels)
        target = similarity.gather(1, labels[:, None]) - margin
        return F.cross_entropy(head.scale * similarity.scatter(1, labels[:, None], target), labels)


class StudyModel(RecipeModel):
    """Model of a recipe whose head is changed to a control head.

    Args:
        recipe: recipe of the run. For a control, it must have a hyperbolic head with the projection `released`.
        control: name of a control head, or None.
    """

    def __init__(self, recipe: Recipe, control: str | None):
        super().__init__(recipe)
        self.control = control

    def build(self, speakers: list[str], keep_centres: bool = False) -> tuple[HamSpkForXVector, str | None]:
        model, said = super().build(speakers, keep_centres)
        use_control(model.head, self.control)
        return model, said


def use_control(head: SpeakerHead | JointHead, control: str | None) -> None:
    """Replace the similarity of a hyperbolic head, and also its margin for `radial_margin`; None changes nothing.

    Raises:
        ValueError: the head is not hyperbolic, or its projection is not `released`.
    """
    if control is None:
        return
    old = None if isinstance(head, JointHead) else head.similarity
    if not isinstance(old, HyperbolicSimilarity) or old.projection != "released":
        raise ValueError(f"The control {control} needs the head h or ham with the projection 'released'.")
    speakers, size = old.weight.shape
    if control in ("rim", "exponential"):
        kind = RimSimilarity if control == "rim" else ExponentialSimilarity
        head.similarity = kind(speakers, size, old.initial_curvature, old.projection, old.clip_radius, False)
        head.similarity.load_state_dict(old.state_dict())
    else:
        kind = AngleSimilarity if control == "angle" else HorosphereSimilarity
        head.similarity = kind(speakers, size, old.initial_curvature)
    cast(SpeakerHead, head).engine = control_engine(control)


def control_engine(control: str | None) -> RadialMargin | None:
    """Return the object that computes the loss of a control head; None for the plain loss."""
    return RadialMargin() if control == "radial_margin" else None


def similarity_range(config: HamSpkConfig, control: str | None) -> float:
    """Return the similarity of two long vectors at an angle of 0 degrees, minus their similarity at 90 degrees.

    The result is 1 for a cosine. For a hyperbolic head, it is the distance of two points with the largest radius at a
    right angle. For `joint`, it is the range of the hyperbolic head.

    Raises:
        ValueError: the head has a linear similarity, whose range is not limited.
    """
    small = copy.deepcopy(config)
    small.num_labels = small.embedding_size = 2
    head = make_head(small)
    use_control(head, control)
    similarity = head.hyperbolic.similarity if isinstance(head, JointHead) else head.similarity
    if isinstance(similarity, LinearSimilarity):
        raise ValueError(f"reach and relative_margin are not defined for the head {config.head}; search scale instead.")
    with torch.no_grad():
        similarity.weight.copy_(LONG * torch.eye(2))
        same, apart = similarity(LONG * torch.eye(2)[:1], torch.tensor([0]))[0].tolist()
    return same - apart
