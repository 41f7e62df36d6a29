"""The loss of a head as one operation over blocks of speakers, forward and backward.

Letters: `B` batch, `K` speakers, `N` speakers of a block, `D` embedding size, `A` columns of a lifted vector.

The forward pass goes over blocks of centres: lift, one matrix product, exponentials, their sum, and the gradient of the
embeddings up to a factor for each of them that is known at the end. The derivatives of the logits are kept for the
backward pass, which then is one more product, as far as `KEPT_BYTES` go; the blocks beyond are computed again. So
memory does not grow with `K`, but for the centres, their gradient and a few numbers for each.

Cosines and distances are bounded, and with them the logits, so one fixed shift does for all exponentials; where it does
not (linear, large scales), it is the largest logit so far.

The pair of an embedding and its own centre is left out of the products and computed from the difference of the two,
because there the product has no correct digit near coincidence.

Precision: everything here is in float32 or better, whatever the settings of torch. With TF32 or bfloat16 operands
`cosh d` is wrong by 1e-3 and more, larger than the distance of two confusable speakers. Embeddings and centres may come
in any precision; gradients leave in theirs. `tests/benchmarks/benchmark_head.py` prints the errors of both.

References: An et al. 2022, arXiv 2203.15565 (class sampling, sharded centres); Milakov and Gimelshein 2018, arXiv
1805.02867 (online normalisation of the softmax).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import ClassBlocks
from .lifting import HeadSettings
from .sharding import Shard

# Derivatives of logits that are kept between the passes, in all.
KEPT_BYTES = 80 << 20


def fused_losses(
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    curvature: float | Tensor | None,
    labels: Tensor,
    settings: HeadSettings,
    chosen: Tensor | None = None,
    shard: Shard | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Tensor:
    """Cross-entropy with margin of each embedding.

    Args:
        embeddings: `(B, D)` in float32 or better; those of all ranks where the centres are sharded.
        weight: centres `(K, D)`, those of this rank where they are sharded.
        bias: `(K,)` of a linear similarity, or None.
        curvature: of a hyperbolic similarity; a scalar tensor where it is learned.
        labels: `(B,)` int64, numbers of speakers of the whole head.
        settings: the head's.
        chosen: rows of `weight` `(N,)` that take part, ascending, those of the labels among them; None for all.
        shard: which rows of the whole head `weight` holds; None for all of them.
        kept_bytes: see `KEPT_BYTES`; with 0 everything is computed again.

    Returns:
        `(B,)` losses, the same on every rank.
    """
    learned = curvature if isinstance(curvature, Tensor) else None
    fixed = None if curvature is None or learned is not None else float(curvature)
    task = ClassBlocks(settings, fixed, chosen, shard, kept_bytes)
    task.needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (embeddings, weight, bias, learned)
    )
    return _FusedLosses.apply(embeddings, weight, bias, learned, labels, task)  # pyright: ignore[reportReturnType]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast off, and matrix products in float32 whatever the settings of torch, which come back afterwards."""
    # The type stubs do not know of mkldnn's.
    backend: Any = getattr(torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda, "matmul")  # noqa: B009
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "ieee"
        # On few speakers entering it would be felt.
        autocast = torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=False) if autocast else nullcontext():
            yield
    finally:
        backend.fp32_precision = before


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        curvature: Tensor | None,
        labels: Tensor,
        task: ClassBlocks,
    ) -> Tensor:
        ctx.save_for_backward(embeddings, weight, bias, curvature)
        ctx.task = task
        with full_precision(embeddings.device):
            return task.forward(embeddings, weight, bias, curvature, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple:
        with full_precision(grad_outputs[0].device):
            return (*ctx.task.backward(grad_outputs[0], *ctx.saved_tensors), None, None)
