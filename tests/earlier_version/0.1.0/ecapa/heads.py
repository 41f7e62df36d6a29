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

Each similarity here is the plain form, which gives logits and is what the loss is tested against. The loss itself is
computed by the module `fused`, which needs no tensor of B x K either, for all of the speakers, a random part of them
(`set_class_sampling`), or the part that each of several processes holds (`divide`).

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
from .fused import fused_losses
from .lifting import HeadSettings
from .margins import apply_margin
from .poincare import MAX_TANGENT_RADIUS, distance, pairwise_distance
from .pooling import at_least_float32
from .scoring import normalize, project
from .sharding import Shard, choose_rows, gather_embeddings, gather_labels, shard_rows

# Standard deviation of the centres of the released code: they start almost at the origin.
CENTRE_STD = 1e-3
# A learned curvature stays between this and the largest that float32 can hold with the clip radius in use.
SMALLEST_CURVATURE = 1e-2
# Under torch.compile the plain form is used for up to this many logits, B x K; more would not fit.
COMPILED_LOGITS = 1 << 26


class HeadOutput(NamedTuple):
    """Result of a head.

    Attributes:
        logits: `(B, K)`, scaled, without margin: what identifies a training speaker; None where they were not asked
            for.
        loss: scalar, the mean cross-entropy with margin; None without labels.
    """

    logits: Tensor | None
    loss: Tensor | None


def make_centres(config: HamSpkConfig) -> nn.Parameter:
    """Centres `(K, D)`, to be drawn by their owner."""
    return nn.Parameter(torch.empty(cast(int, config.num_labels), config.embedding_size))


class LinearSimilarity(nn.Module):
    """`W x + b`: `(B, D)` to `(B, K)`."""

    kind = "linear"

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.bias = nn.Parameter(torch.empty(self.weight.shape[0]))
        self.reset_centres()

    def curvature(self) -> None:
        """A linear similarity has none."""

    def reset_centres(self) -> None:
        """Draw the centres as `torch.nn.Linear` draws its weights."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        init.uniform_(self.weight, -bound, bound)
        init.zeros_(self.bias)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.linear(embeddings, self.weight.to(embeddings.dtype), self.bias.to(embeddings.dtype))


class CosineSimilarity(nn.Module):
    """Cosine to the centres: `(B, D)` to `(B, K)`, range [-1, 1]."""

    kind = "cosine"
    bias: None = None

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.reset_centres()

    def curvature(self) -> None:
        """A cosine has none."""

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

    kind = "hyperbolic"
    bias: None = None

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
        """`c` in use: a number, or a scalar tensor where it is learned (in float32 or better, inside its bounds)."""
        if self.log_curvature is None:
            return self.initial_curvature
        log_c = at_least_float32(self.log_curvature)
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


class SpeakerHead(nn.Module):
    """One head of the table above, chosen by `config.head`.

    The margin is a plain attribute, to be moved by a schedule with `set_margin`; it is saved in the configuration and
    not in the weights. So are `class_sampling` and `shard`, which are of a training run and saved nowhere.

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
        self.projection, self.clip_radius = config.projection, float(config.clip_radius)
        self.class_sampling = 1.0
        self.shard: Shard | None = None
        self.set_margin(cast(float, config.margin))

    def set_margin(self, margin: float) -> None:
        """Use `margin` (in [0, 3)) from now on. Heads without a margin ignore it."""
        if not 0 <= margin < LARGEST_MARGIN:
            raise ValueError(f"A margin is at least 0 and below {LARGEST_MARGIN:g}, got {margin}.")
        self.margin = float(margin)

    def set_class_sampling(self, share: float) -> None:
        """Train each step on the speakers of the batch and others drawn at random, `share` (in (0, 1]) of all in sum.

        The loss is then the cross-entropy over these (An et al. 2022). All take part in evaluation mode.
        """
        if not 0 < share <= 1:
            raise ValueError(f"class_sampling must be above 0 and at most 1 (all speakers), got {share}.")
        self.class_sampling = float(share)

    def divide(self, rank: int, ranks: int) -> None:
        """Keep only this rank's part of the centres, for training with `torch.distributed` on `ranks` processes.

        The loss is then the mean over the batches of all ranks, which must be of one size, and equal on every rank.
        Logits are not to be had.
        """
        if self.shard is not None:
            raise ValueError("The centres of this head are divided already.")
        shard = shard_rows(self.similarity.weight.shape[0], rank, ranks)
        for parameter in self.centre_parameters().values():
            parameter.data = parameter.data[shard.first : shard.first + shard.count].clone()
        self.shard = shard

    def undivide(self) -> None:
        """Take the centres to be all of them again, after their owner has put all rows back."""
        self.shard = None

    def centre_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that have a row for each speaker, by name."""
        return {name: p for name, p in self.named_parameters() if name in ("similarity.weight", "similarity.bias")}

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Logits and loss.

        Args:
            embeddings: `(B, D)`.
            labels: `(B,)` int64 in [0, K), or None.
            return_logits: None for logits unless a loss is trained on, which needs no tensor of B x K.
        """
        if return_logits is None:
            return_logits = labels is None or not self.training
        if return_logits and self.shard is not None:
            raise ValueError("No rank holds all centres, so there are no logits: ask the saved model for them.")
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            logits = self.scale * self.similarity(embeddings, labels) if return_logits else None
            return HeadOutput(logits, None if labels is None else self._loss(embeddings, labels))

    def plain_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss as its definition reads, over the B x K similarities: what the fused form is held to."""
        similarity = self.similarity(embeddings, labels)
        return F.cross_entropy(apply_margin(similarity, labels, self.margin_kind, self.margin, self.scale), labels)

    def _loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        whole = self.shard is None and not self._is_sampling()
        if torch.compiler.is_compiling() and whole and labels.shape[0] * len(self.similarity.weight) <= COMPILED_LOGITS:
            # The compiler fuses the plain form.
            return self.plain_loss(embeddings, labels)
        if self.shard is not None:
            embeddings, labels = gather_embeddings(embeddings, self.shard), gather_labels(labels, self.shard)
        similarity, chosen = self.similarity, None
        if self._is_sampling():
            first = 0 if self.shard is None else self.shard.first
            chosen = choose_rows(labels - first, len(similarity.weight), self.class_sampling)
        return fused_losses(
            embeddings,
            similarity.weight,
            similarity.bias,
            similarity.curvature(),
            labels,
            self.settings(),
            chosen,
            self.shard,
        ).mean()

    def settings(self) -> HeadSettings:
        """What the fused loss needs to know besides the parameters."""
        kind = self.similarity.kind
        return HeadSettings(kind, self.margin_kind, self.margin, self.scale, self.projection, self.clip_radius)

    def _is_sampling(self) -> bool:
        return self.training and self.class_sampling < 1


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

    def set_class_sampling(self, share: float) -> None:
        """As `SpeakerHead.set_class_sampling`; each part draws its own speakers."""
        self.euclidean.set_class_sampling(share)
        self.hyperbolic.set_class_sampling(share)

    def divide(self, rank: int, ranks: int) -> None:
        """As `SpeakerHead.divide`, both parts."""
        self.euclidean.divide(rank, ranks)
        self.hyperbolic.divide(rank, ranks)

    def undivide(self) -> None:
        """As `SpeakerHead.undivide`, both parts."""
        self.euclidean.undivide()
        self.hyperbolic.undivide()

    @property
    def shard(self) -> Shard | None:
        """As of `SpeakerHead`; the same for both parts."""
        return self.hyperbolic.shard

    def centre_parameters(self) -> dict[str, nn.Parameter]:
        """As `SpeakerHead.centre_parameters`, of both parts."""
        parts = {"euclidean": self.euclidean, "hyperbolic": self.hyperbolic}
        return {f"{part}.{name}": p for part, head in parts.items() for name, p in head.centre_parameters().items()}

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Logits of the hyperbolic part and the weighted sum of both losses; arguments as in `SpeakerHead`."""
        logits, hyperbolic = self.hyperbolic(embeddings, labels, return_logits)
        if labels is None or hyperbolic is None:
            return HeadOutput(logits, None)
        euclidean = cast(Tensor, self.euclidean(embeddings, labels, False).loss)
        return HeadOutput(logits, self.euclidean_weight * euclidean + self.hyperbolic_weight * hyperbolic)

    def plain_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """As `SpeakerHead.plain_loss`."""
        euclidean, hyperbolic = (part.plain_loss(embeddings, labels) for part in (self.euclidean, self.hyperbolic))
        return self.euclidean_weight * euclidean + self.hyperbolic_weight * hyperbolic


def make_head(config: HamSpkConfig) -> SpeakerHead | JointHead:
    """The head that `config.head` names."""
    return JointHead(config) if config.head == "joint" else SpeakerHead(config)
