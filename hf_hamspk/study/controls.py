"""Control heads of a study: hyperbolic heads in which one property is removed.

They compute the plain loss, because the blockwise loss does not know them. They are for studies only: a model that is
saved with a control cannot be loaded with it.
"""

import copy
import math

import torch
from torch import Tensor

from ..configuration_hamspk import HamSpkConfig
from ..geometry_hamspk import (
    BallPoints,
    CosineSimilarity,
    HyperbolicSimilarity,
    JointHead,
    LinearSimilarity,
    SpeakerHead,
    distance,
    normalize,
    pairwise_distance,
    project_released,
)
from ..modeling_hamspk import HamSpkForXVector
from ..networks_hamspk import make_head
from ..training.arguments import Recipe
from ..training.models import RecipeModel

# Vectors of this length lie outside every clip radius. A linear similarity has no finite reach.
LONG = 1e3
# Cosines are kept below 1 by this amount, because the derivative of the arc cosine is infinite at 1.
SMALLEST_GAP = 1e-6


class AngleSimilarity(CosineSimilarity):
    """Minus the angle to the centres, multiplied by the slope of the hyperbolic distance at the angle 0.

    The slope is `sqrt(k) = 2 sqrt(c) / (c - 1)`. This head has the temperature of a hyperbolic head, but neither its
    geometry nor radii of centres.

    Args:
        speakers, embedding_size: see `CosineSimilarity`.
        curvature: number `c` of the hyperbolic head.
    """

    def __init__(self, speakers: int, embedding_size: int, curvature: float):
        super().__init__(speakers, embedding_size)
        self.slope = 2 * math.sqrt(curvature) / (curvature - 1)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        cosine = super().forward(embeddings)
        return -self.slope * cosine.clamp(SMALLEST_GAP - 1, 1 - SMALLEST_GAP).arccos()


class RimSimilarity(HyperbolicSimilarity):
    """Minus the hyperbolic distance to centres that always have the largest radius of the released projection."""

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        c = self.initial_curvature
        x, centres = project_released(embeddings, c), project_released(LONG * normalize(self.weight), c)
        distances = pairwise_distance(x, centres)
        if labels is not None:
            own = BallPoints(centres.position[labels], centres.conformal[labels])
            distances = distances.scatter(1, labels[:, None], distance(x, own)[:, None])
        return -distances


class StudyModel(RecipeModel):
    """Model of a recipe whose head is changed to a control head.

    Args:
        recipe: recipe of the run; a control needs a hyperbolic head with the released projection.
        control: `"angle"`, `"rim"` or None.
    """

    def __init__(self, recipe: Recipe, control: str | None):
        super().__init__(recipe)
        self.control = control

    def build(self, speakers: list[str], keep_centres: bool = False) -> tuple[HamSpkForXVector, str | None]:
        model, said = super().build(speakers, keep_centres)
        use_control(model.head, self.control)
        return model, said


def use_control(head: SpeakerHead | JointHead, control: str | None) -> None:
    """Replace the similarity of a hyperbolic head; None changes nothing.

    Raises:
        ValueError: the head is not hyperbolic, or has another projection than the released one.
    """
    if control is None:
        return
    old = None if isinstance(head, JointHead) else head.similarity
    if not isinstance(old, HyperbolicSimilarity) or old.projection != "released":
        raise ValueError(f"control {control} needs the head h or ham with projection released.")
    speakers, size = old.weight.shape
    if control == "angle":
        head.similarity = AngleSimilarity(speakers, size, old.initial_curvature)
    else:
        new = RimSimilarity(speakers, size, old.initial_curvature, old.projection, old.clip_radius, False)
        new.load_state_dict(old.state_dict())
        head.similarity = new


def similarity_range(config: HamSpkConfig, control: str | None) -> float:
    """Return the similarity at an angle of 0 minus the similarity at 90 degrees, for long vectors.

    It is 1 for a cosine. For a hyperbolic head, it is the distance of two points on the rim at a right angle. For
    `joint`, it belongs to the hyperbolic head.

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
