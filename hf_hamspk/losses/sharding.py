"""Divide the centres among the ranks of a process group, and choose random centres for a training step.

Letters: `B` batch size of one rank, `R` ranks, `D` embedding size, `K` speakers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


class CentreShard(NamedTuple):
    """Rows of the matrix of centres that one rank stores.

    Attributes:
        first: number of the first row, counted from 0 over all ranks.
        count: number of rows.
        speakers: number of rows on all ranks together.
        ranks: number of ranks in the default process group.
        rank: number of this rank.
    """

    first: int
    count: int
    speakers: int
    ranks: int
    rank: int


def shard_rows(speakers: int, rank: int, ranks: int) -> CentreShard:
    """Return the contiguous rows that a rank stores. The numbers of rows of two ranks differ by at most one.

    Raises:
        ValueError: there are fewer speakers than ranks, or `rank` is out of range.
    """
    if not 0 <= rank < ranks <= speakers:
        raise ValueError(
            f"Expected at least {ranks} speakers (one per rank) and a rank from 0 to {ranks - 1}, got {speakers} "
            f"speakers and rank {rank}. The centres cannot be divided."
        )
    first = rank * speakers // ranks
    return CentreShard(first, (rank + 1) * speakers // ranks - first, speakers, ranks, rank)


def sum_over_ranks(tensor: Tensor, shard: CentreShard | None) -> Tensor:
    """Sum a tensor over all ranks, in place. If `shard` is None, return the tensor unchanged."""
    if shard is not None:
        distributed.all_reduce(tensor)
    return tensor


def largest_over_ranks(tensor: Tensor, shard: CentreShard | None) -> Tensor:
    """Take the elementwise maximum over all ranks, in place. If `shard` is None, return the tensor unchanged."""
    if shard is not None:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor


def gather_batches(rows: Tensor, shard: CentreShard) -> Tensor:
    """Collect the `B` rows of each rank into one tensor of `R B` rows, without a gradient. All ranks need equal `B`."""
    gathered = [torch.empty_like(rows) for _ in range(shard.ranks)]
    distributed.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


class _GatherEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, shard: CentreShard) -> Tensor:
        ctx.shard, ctx.rows = shard, embeddings.shape[0]
        return gather_batches(embeddings, shard)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        total = sum_over_ranks(grad_outputs[0].contiguous(), ctx.shard)
        own = total[ctx.shard.rank * ctx.rows : (ctx.shard.rank + 1) * ctx.rows]
        # The loss is the mean over all ranks, but data parallel training averages the gradient once more.
        return own * ctx.shard.ranks, None


def gather_embeddings(embeddings: Tensor, shard: CentreShard) -> Tensor:
    """Collect the embeddings `(B, D)` of each rank into one tensor `(R B, D)`. `B` must be the same on all ranks.

    In the backward pass, the gradients of a rank's own embeddings are summed over all ranks, because each rank computes
    only the contribution of its own centres. The sum is multiplied by the number of ranks: the loss is already the mean
    over all ranks, but `DistributedDataParallel` will divide the gradients by this number once more.
    """
    return _GatherEmbeddings.apply(embeddings, shard)  # pyright: ignore[reportReturnType]


def choose_rows(labels: Tensor, count: int, share: float) -> Tensor:
    """Choose the centres for a training step: the centres of the labels, and others at random.

    Args:
        labels: row numbers `(B,)`, counted from the first row of this rank. Numbers outside [0, count) belong to other
            ranks.
        count: number of rows on this rank.
        share: fraction of the rows to draw, in (0, 1]. At least B rows are drawn, so that every label is included.

    Returns:
        Row numbers in ascending order.
    """
    rank = torch.rand(count, device=labels.device)
    inside = (labels >= 0) & (labels < count)
    rank.index_put_((labels.clamp(0, count - 1),), inside.to(rank.dtype), accumulate=True)
    # B labels need at most B rows. Counting the distinct labels would force a GPU to synchronise.
    drawn = min(count, max(round(share * count), labels.shape[0]))
    return rank.topk(drawn, sorted=False).indices.sort().values
