"""Divide the speaker centres among the ranks, gather them for saving and loading, and clip the gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..geometry_hamspk import JointHead, SpeakerHead
from ..losses.engine import centre_parameters, divide_head, shard_of, undivide_head
from ..losses.sharding import CentreShard, shard_rows
from ..modeling_hamspk import HamSpkForXVector

# Avoids a division by zero if all gradients are 0, as in `torch.nn.utils.clip_grad_norm_`.
SMALLEST_TOTAL_NORM = 1e-6


def divide_centres(model: HamSpkForXVector, accelerator: Accelerator) -> None:
    """Keep only the speaker centres of this process, and exclude the centres from `DistributedDataParallel`."""
    divide_head(model.head, accelerator.process_index, accelerator.num_processes)
    names = [f"head.{name}" for name in centre_parameters(model.head)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


@contextmanager
def whole_centres(head: SpeakerHead | JointHead, optimizer: AcceleratedOptimizer) -> Iterator[None]:
    """Context manager in which every process has all speaker centres and their optimiser state.

    Saving and loading then work as with an undivided head, and a run can be resumed with another number of processes.
    All ranks must enter the context. The context has no effect if the head is not divided.
    """
    shard = shard_of(head)
    if shard is None:
        yield
        return
    for parameter in centre_parameters(head).values():
        part, parameter.grad = parameter.shape, None
        parameter.data = gather_rows(parameter.data, shard)
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == part:
                optimizer.state[parameter][name] = gather_rows(value, shard)
    undivide_head(head)
    try:
        yield
    finally:
        rows = slice(shard.first, shard.first + shard.count)
        for parameter in centre_parameters(head).values():
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    optimizer.state[parameter][name] = value[rows].clone()
        divide_head(head, shard.rank, shard.ranks)


def gather_rows(part: Tensor, shard: CentreShard) -> Tensor:
    """Collect the rows of a divided tensor from all ranks, in the order of the ranks.

    The number of rows may differ between ranks.
    """
    counts = [rows_of_rank(rank, shard) for rank in range(shard.ranks)]
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    gathered = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(gathered, padded)
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])


def rows_of_rank(rank: int, shard: CentreShard) -> int:
    """Return the number of speaker centres that a rank stores."""
    return shard_rows(shard.speakers, rank, shard.ranks).count


def clip_gradient(model: nn.Module, head: SpeakerHead | JointHead, largest: float, accelerator: Accelerator) -> None:
    """Scale down all gradients so that their total norm is at most `largest`.

    The total norm covers the speaker centres of all ranks and, only once, the parameters that all ranks share.
    """
    if shard_of(head) is None:
        accelerator.clip_grad_norm_(model.parameters(), largest)
        return
    divided = {id(parameter) for parameter in centre_parameters(head).values()}
    own, shared = [], []
    for parameter in model.parameters():
        if parameter.grad is not None:
            (own if id(parameter) in divided else shared).append(parameter.grad)
    total = torch.nn.utils.get_total_norm(own).square()
    distributed.all_reduce(total)
    factor = largest / ((total + torch.nn.utils.get_total_norm(shared).square()).sqrt() + SMALLEST_TOTAL_NORM)
    for gradient in (*own, *shared):
        gradient.mul_(factor.clamp_max(1.0))
