"""Blockwise loss for the head of a model, optionally with class sampling and with centres divided among processes.

Letters: `B` batch size, `K` speakers, `D` embedding size.

References: An et al. 2022, arXiv 2203.15565 (class sampling, sharded centres).
"""

from typing import cast

import torch
from torch import Tensor

from ..geometry_hamspk import JointHead, SpeakerHead
from .compiled import can_compile, compiled_loss
from .fused import fused_losses
from .lifting import HeadSettings
from .sharding import CentreShard, choose_rows, gather_batches, gather_embeddings, shard_rows

# Endings of the names of the parameters that have one row for each speaker.
CENTRE_NAMES = ("similarity.weight", "similarity.bias")
# Under torch.compile, the loss is computed from all B x K logits at once if there are at most this many. The limit is
# for the memory.
COMPILED_LOGITS = 1 << 26


class BlockwiseEngine:
    """Engine that computes the loss of a head over blocks of speakers, so that the memory does not grow with B x K.

    `use_blocks(head)` creates the engine of a head. A `joint` head gets one engine for each of its two heads.

    Example:
        ```python
        import torch
        from hf_hamspk import HamSpkConfig, HamSpkForXVector
        from hf_hamspk.losses import use_blocks

        head = use_blocks(HamSpkForXVector(HamSpkConfig(ecapa_channels=64, num_labels=1000)).head)
        head(torch.randn(8, 192), torch.arange(8)).loss.backward()
        ```

    Attributes:
        class_sampling: fraction of the speakers in the loss of a training step, in (0, 1].
        shard: rows of the centres that this process stores; None if it stores all.
    """

    def __init__(self) -> None:
        self.class_sampling = 1.0
        self.shard: CentreShard | None = None

    @property
    def gives_logits(self) -> bool:
        """Whether logits can be computed. This is possible only if this process stores all centres."""
        return self.shard is None

    def __call__(self, head: SpeakerHead, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean loss, a scalar. If the centres are divided, it is the mean over the batches of all ranks."""
        similarity, shard = head.similarity, self.shard
        is_sampling = head.training and self.class_sampling < 1
        whole = shard is None and not is_sampling
        if torch.compiler.is_compiling() and whole and labels.shape[0] * len(similarity.weight) <= COMPILED_LOGITS:
            # The compiler fuses these operations itself.
            settings, curvature = head_settings(head), similarity.curvature()
            if can_compile(settings, curvature):
                return compiled_loss(embeddings, similarity.weight, labels, cast(float, curvature), settings)
            return head.plain_loss(embeddings, labels)
        if shard is not None:
            embeddings, labels = gather_embeddings(embeddings, shard), gather_batches(labels, shard)
        chosen = None
        if is_sampling:
            first = 0 if shard is None else shard.first
            chosen = choose_rows(labels - first, len(similarity.weight), self.class_sampling)
        return fused_losses(
            embeddings,
            similarity.weight,
            similarity.bias,
            similarity.curvature(),
            labels,
            head_settings(head),
            chosen,
            shard,
        ).mean()


def head_settings(head: SpeakerHead) -> HeadSettings:
    """Return the settings of a head that the blockwise loss needs in addition to the parameters."""
    kind = head.similarity.kind
    return HeadSettings(kind, head.margin_kind, head.margin, head.scale, head.projection, head.clip_radius)


def head_parts(head: SpeakerHead | JointHead) -> list[SpeakerHead]:
    """Return the two heads that a `joint` head combines. For any other head, return a list with this head."""
    return [head.euclidean, head.hyperbolic] if isinstance(head, JointHead) else [head]


def centre_parameters(head: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of a head that have one row for each speaker, by name."""
    return {name: parameter for name, parameter in head.named_parameters() if name.endswith(CENTRE_NAMES)}


def use_blocks(head: SpeakerHead | JointHead) -> SpeakerHead | JointHead:
    """Set a head to compute its loss over blocks of speakers, and return the head."""
    for part in head_parts(head):
        if not isinstance(part.engine, BlockwiseEngine):
            part.engine = BlockwiseEngine()
    return head


def _engines(head: SpeakerHead | JointHead) -> list[BlockwiseEngine]:
    return [cast(BlockwiseEngine, part.engine) for part in head_parts(use_blocks(head))]


def set_class_sampling(head: SpeakerHead | JointHead, share: float) -> None:
    """Limit the loss of each training step to a sample of the speakers (An et al. 2022).

    The sample contains the speakers of the batch, and others that are drawn at random. The loss is the cross-entropy
    over the speakers in the sample. The two heads of a `joint` head draw separate samples. In evaluation mode, all
    speakers are used.

    Args:
        head: head. From now on, it computes the loss over blocks of speakers.
        share: fraction of the speakers in the sample, in (0, 1].

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"class_sampling must be above 0 and at most 1 (all speakers), got {share}.")
    for engine in _engines(head):
        engine.class_sampling = float(share)


def divide_head(head: SpeakerHead | JointHead, rank: int, ranks: int) -> None:
    """Keep only the centres of one rank in the head, for training with `torch.distributed` in `ranks` processes.

    After this call, all ranks must have batches of the same size. The loss is the mean over the batches of all ranks,
    so every rank gets the same value. Logits can no longer be computed.

    Raises:
        ValueError: the centres are already divided, or there are fewer speakers than ranks.
    """
    if shard_of(head) is not None:
        raise ValueError("The centres of this head are already divided among ranks. Divide a head only once.")
    for part, engine in zip(head_parts(head), _engines(head), strict=True):
        shard = shard_rows(part.similarity.weight.shape[0], rank, ranks)
        for parameter in centre_parameters(part).values():
            parameter.data = parameter.data[shard.first : shard.first + shard.count].clone()
        engine.shard = shard


def undivide_head(head: SpeakerHead | JointHead) -> None:
    """Mark a divided head as undivided. The caller must first restore all rows of its centres."""
    for engine in _engines(head):
        engine.shard = None


def shard_of(head: SpeakerHead | JointHead) -> CentreShard | None:
    """Return the rows of the centres that this process stores; None if it stores all."""
    engine = head_parts(head)[-1].engine
    return engine.shard if isinstance(engine, BlockwiseEngine) else None
