"""The centres that take part: those held by this rank of a process group, and a random part of them.

Letters: `B` batch of one rank, `R` ranks, `D` embedding size, `K` speakers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


class CentreShard(NamedTuple):
    """The rows of the centres that a rank holds.

    Attributes:
        first: number of the first one.
        count: how many.
        speakers: rows of all ranks.
        ranks: of the default process group.
        rank: this one.
    """

    first: int
    count: int
    speakers: int
    ranks: int
    rank: int


def shard_rows(speakers: int, rank: int, ranks: int) -> CentreShard:
    """Rows of `rank`: contiguous, and of sizes that differ by one at most.

    Raises:
        ValueError: fewer speakers than ranks, or no such rank.
    """
    if not 0 <= rank < ranks <= speakers:
        raise ValueError(f"{speakers} speakers cannot be divided among {ranks} ranks for rank {rank}.")
    first = rank * speakers // ranks
    return CentreShard(first, (rank + 1) * speakers // ranks - first, speakers, ranks, rank)


def sum_over_ranks(tensor: Tensor, shard: CentreShard | None) -> Tensor:
    """The sum of a tensor of one shape over all ranks, in place; of an unsharded head, itself."""
    if shard is not None:
        distributed.all_reduce(tensor)
    return tensor


def largest_over_ranks(tensor: Tensor, shard: CentreShard | None) -> Tensor:
    """The elementwise maximum of a tensor over all ranks, as `sum_over_ranks`."""
    if shard is not None:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor


def gather_labels(labels: Tensor, shard: CentreShard) -> Tensor:
    """Labels `(B,)` of every rank, `(R B,)`. Every rank must have as many."""
    gathered = [torch.empty_like(labels) for _ in range(shard.ranks)]
    distributed.all_gather(gathered, labels.contiguous())
    return torch.cat(gathered)


class _GatherEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, shard: CentreShard) -> Tensor:
        ctx.shard, ctx.rows = shard, embeddings.shape[0]
        gathered = [torch.empty_like(embeddings) for _ in range(shard.ranks)]
        distributed.all_gather(gathered, embeddings.contiguous())
        return torch.cat(gathered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        total = sum_over_ranks(grad_outputs[0].contiguous(), ctx.shard)
        own = total[ctx.shard.rank * ctx.rows : (ctx.shard.rank + 1) * ctx.rows]
        # The loss is the mean over all ranks, and data parallel training averages the gradient once more.
        return own * ctx.shard.ranks, None


def gather_embeddings(embeddings: Tensor, shard: CentreShard) -> Tensor:
    """Embeddings `(B, D)` of every rank, `(R B, D)`; every rank must have as many.

    The gradient of a rank's own rows is summed over the ranks, each of which knows the part of its centres, and
    multiplied by their number: as if the rank had taken the mean over its own batch, which is what the averaging of
    `DistributedDataParallel` expects.
    """
    return _GatherEmbeddings.apply(embeddings, shard)  # pyright: ignore[reportReturnType]


def choose_rows(labels: Tensor, count: int, share: float) -> Tensor:
    """Draw the centres of a step: those of the labels, and others at random.

    Args:
        labels: `(B,)` rows of this rank; any that are not in [0, count) are of other ranks.
        count: rows of this rank.
        share: of the rows to draw, in (0, 1]; at least as many rows as labels are drawn.

    Returns:
        Ascending rows.
    """
    rank = torch.rand(count, device=labels.device)
    inside = (labels >= 0) & (labels < count)
    rank.index_put_((labels.clamp(0, count - 1),), inside.to(rank.dtype), accumulate=True)
    # B labels are at most B rows; counting the distinct ones would synchronise with a GPU.
    drawn = min(count, max(round(share * count), labels.shape[0]))
    return rank.topk(drawn, sorted=False).indices.sort().values
