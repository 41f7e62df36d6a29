"""Training heads, each a *similarity* to K learned speaker centres times a *margin*.

Letters: `B` batch, `K` speakers, `D` embedding size.

| head                 | similarity             | margin on the target     | logits                             |
|----------------------|------------------------|--------------------------|------------------------------------|
| `softmax`            | linear, with bias      | none                     | `W x + b`                          |
| `scaled_softmax`     | linear, with bias      | none                     | `s (W x + b)`                      |
| `normalized_softmax` | cosine                 | none                     | `s cos`                            |
| `am`                 | cosine                 | additive                 | `s (cos - m)`                      |
| `aam`                | cosine                 | additive in the angle    | `s cos(angle + m)`                 |
| `ram`                | cosine                 | additive, hinged         | `s (cos - m)`, easy impostors at 0 |
| `h`                  | minus Poincaré distance | none                    | `-s d`                             |
| `ham`                | minus Poincaré distance | additive                | `-s (d + m)`                       |
| `joint`              | both kinds             | of each                  | weighted sum of the two losses     |

The logits column is the target's; every other speaker has the same expression at m = 0. `h` is `ham` at m = 0. All of
it runs in float32 (or float64) with autocast off, and no tensor of B x K x D is made.

References: Fang and He 2026, arXiv 2601.19709, and the released code, whose numbers the heads agree with (RAM included:
the released form sets the logit of an easy impostor to 0). Wang et al. 2018 (AM), Deng et al. 2019 (AAM), Li et al.
2022, arXiv 2110.09116 (RAM).
"""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_hamspk import HEAD_PARTS, LARGEST_MARGIN, HamSpkConfig
from .poincare import MAX_TANGENT_RADIUS, distance, pairwise_distance
from .pooling import at_least_float32
from .scoring import normalize, project

# Standard deviation of the centres of the released code: they start almost at the origin.
CENTRE_STD = 1e-3
# A learned curvature stays between this and the largest that float32 can hold with the clip radius in use.
SMALLEST_CURVATURE = 1e-2


class HeadOutput(NamedTuple):
    """Result of a head.

    Attributes:
        logits: `(B, K)`, scaled, without margin: what identifies a training speaker.
        loss: scalar, the mean cross-entropy with margin; None without labels.
    """

    logits: Tensor
    loss: Tensor | None


def make_centres(config: HamSpkConfig) -> nn.Parameter:
    """Centres `(K, D)`, to be drawn by their owner."""
    return nn.Parameter(torch.empty(cast(int, config.num_labels), config.embedding_size))


class LinearSimilarity(nn.Module):
    """`W x + b`: `(B, D)` to `(B, K)`."""

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.bias = nn.Parameter(torch.empty(self.weight.shape[0]))
        self.reset_centres()

    def reset_centres(self) -> None:
        """Draw the centres as `torch.nn.Linear` draws its weights."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        init.uniform_(self.weight, -bound, bound)
        init.zeros_(self.bias)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.linear(embeddings, self.weight.to(embeddings.dtype), self.bias.to(embeddings.dtype))


class CosineSimilarity(nn.Module):
    """Cosine to the centres: `(B, D)` to `(B, K)`, range [-1, 1]."""

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.reset_centres()

    def reset_centres(self) -> None:
        """Draw the centres from Xavier's normal distribution, as the released code does."""
        init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return normalize(embeddings) @ normalize(self.weight.to(embeddings.dtype)).mT


class HyperbolicSimilarity(nn.Module):
    """Minus the distance to the centres, in the projection of the configuration: `(B, D)` to `(B, K)`, at most 0.

    With labels, the distance of each embedding to its own centre is computed from the difference of the two points,
    which is exact where they almost coincide; the matrix product serves all the others.
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.projection = config.projection
        self.clip_radius = config.clip_radius
        self.initial_curvature = cast(float, config.curvature)
        self.largest_curvature = (MAX_TANGENT_RADIUS / config.clip_radius) ** 2
        self.weight = make_centres(config)
        self.log_curvature = nn.Parameter(torch.empty(())) if config.learnable_curvature else None
        self.reset_centres()

    def reset_centres(self) -> None:
        """Draw the centres close to the origin, as the released code does, and set the initial curvature."""
        init.normal_(self.weight, std=CENTRE_STD)
        if self.log_curvature is not None:
            init.constant_(self.log_curvature, math.log(self.initial_curvature))

    def curvature(self) -> float | Tensor:
        """`c` in use: a number, or a scalar tensor where it is learned (in float32, inside its bounds)."""
        if self.log_curvature is None:
            return self.initial_curvature
        log_c = self.log_curvature.float()
        # The bound acts on the value and not on the gradient, or a parameter that steps over it could not come back.
        bounded = log_c.clamp(math.log(SMALLEST_CURVATURE), math.log(self.largest_curvature))
        return (log_c + (bounded - log_c).detach()).exp()

    def recorded_curvature(self) -> float:
        """`c` in use as a number that the configuration accepts: rounding may put it just over its bound."""
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


SIMILARITIES = {"linear": LinearSimilarity, "cosine": CosineSimilarity, "hyperbolic": HyperbolicSimilarity}


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """`cos(angle + margin)`, continued by `cosine - margin sin(margin)` past `angle = pi - margin`.

    Args:
        cosine: any shape, range [-1, 1].
        margin: radians, in [0, pi).
    """
    # Rounding may push 1 - cos^2 below 0, and the slope of the square root is infinite there.
    sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    past_turn = cosine <= math.cos(math.pi - margin)
    return torch.where(past_turn, cosine - margin * math.sin(math.pi - margin), shifted)


def apply_margin(similarity: Tensor, labels: Tensor, kind: str, margin: float, scale: float) -> Tensor:
    """Scaled logits with the margin on the target.

    Args:
        similarity: `(B, K)`.
        labels: `(B,)`, in [0, K).
        kind: `"none"`, `"additive"`, `"angular"` or `"real"`.
        margin: at least 0, in units of the similarity (radians for `"angular"`).
        scale: positive.

    Returns:
        `(B, K)` logits.
    """
    if kind == "none":
        return scale * similarity
    index = labels[:, None]
    target = similarity.gather(1, index)
    target = add_angle(target, margin) if kind == "angular" else target - margin
    logits = scale * similarity.scatter(1, index, target)
    if kind == "real":
        logits = logits.masked_fill(logits < scale * target, 0.0)
    return logits


class SpeakerHead(nn.Module):
    """One head of the table above, chosen by `config.head`.

    The margin is a plain attribute, to be moved by a schedule with `set_margin`; it is saved in the configuration and
    not in the weights.

    Args:
        config: `head`, `num_labels`, `embedding_size`, `scale`, `margin`, and for hyperbolic heads `projection`,
            `curvature`, `clip_radius` and `learnable_curvature`.
        head: overrides `config.head`.
    """

    def __init__(self, config: HamSpkConfig, head: str | None = None):
        super().__init__()
        similarity, self.margin_kind = HEAD_PARTS[config.head if head is None else head]
        self.similarity = SIMILARITIES[similarity](config)
        self.scale = cast(float, config.scale)
        self.set_margin(cast(float, config.margin))

    def set_margin(self, margin: float) -> None:
        """Use `margin` (in [0, 3)) from now on. Heads without a margin ignore it."""
        if not 0 <= margin < LARGEST_MARGIN:
            raise ValueError(f"A margin is at least 0 and below {LARGEST_MARGIN:g}, got {margin}.")
        self.margin = float(margin)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> HeadOutput:
        """Logits and loss.

        Args:
            embeddings: `(B, D)`.
            labels: `(B,)` int64 in [0, K), or None.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            similarity = self.similarity(embeddings, labels)
            loss = None
            if labels is not None:
                logits = apply_margin(similarity, labels, self.margin_kind, self.margin, self.scale)
                loss = F.cross_entropy(logits, labels)
            return HeadOutput(self.scale * similarity, loss)


class JointHead(nn.Module):
    """`lambda_1` times a Euclidean head plus `lambda_2` times HAM, each with its own centres.

    The released code publishes 0.3 RAM + 0.7 HAM (c = 3, s = 30, m = 0.2). The logits are those of HAM.

    Args:
        config: as for `SpeakerHead`, and `euclidean_head`, `euclidean_weight`, `hyperbolic_weight`.
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.euclidean = SpeakerHead(config, config.euclidean_head)
        self.hyperbolic = SpeakerHead(config, "ham")
        self.euclidean_weight = config.euclidean_weight
        self.hyperbolic_weight = config.hyperbolic_weight

    @property
    def margin(self) -> float:
        """The margin of both parts."""
        return self.hyperbolic.margin

    def set_margin(self, margin: float) -> None:
        """Use `margin` (in [0, 3)) in both parts from now on."""
        self.euclidean.set_margin(margin)
        self.hyperbolic.set_margin(margin)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> HeadOutput:
        """Logits of the hyperbolic part and the weighted sum of both losses; shapes as in `SpeakerHead`."""
        logits, hyperbolic = self.hyperbolic(embeddings, labels)
        euclidean = self.euclidean(embeddings, labels).loss
        if hyperbolic is None or euclidean is None:
            return HeadOutput(logits, None)
        return HeadOutput(logits, self.euclidean_weight * euclidean + self.hyperbolic_weight * hyperbolic)


def make_head(config: HamSpkConfig) -> SpeakerHead | JointHead:
    """The head that `config.head` names."""
    return JointHead(config) if config.head == "joint" else SpeakerHead(config)
