"""Loss of a head as one differentiable operation that is computed over blocks of speakers.

Letters: `B` batch size, `K` speakers, `N` speakers of a block, `D` embedding size, `A` columns of a lifted vector.

The forward pass processes one block of centres after the other. It lifts the centres (see `lifting`), multiplies them
with the lifted embeddings, sums the exponentials of the logits, and accumulates the gradient of the embeddings. This
gradient is multiplied by one factor per embedding at the end, when the sums are complete. Up to `KEPT_BYTES` of logit
derivatives are kept, so that the backward pass needs only one more matrix product for these blocks. The other blocks
are computed again. Memory does not grow with `K`, except for the centres, their gradient and a few numbers per centre.

Cosines and distances are bounded, and so are their logits. If subtracting a fixed number from all logits keeps the
exponentials within the range of float32, this number is subtracted. Otherwise (linear similarity, large scales) the
largest logit of the embedding so far is subtracted.

The distance of an embedding to its target centre is computed from the difference of the two vectors, not from the
matrix product. If the two vectors are nearly equal, the distance from the matrix product has no correct digit.

All computations are in float32 or better, even if torch allows lower precision. With TF32 or bfloat16 operands, the
error of `cosh d` is 1e-3 or more, which exceeds the distance between two confusable speakers. Embeddings and centres
may have any precision, and their gradients have the same precision. `tests/benchmarks/benchmark_head.py` prints the
errors with TF32 and with bfloat16 operands.

References: An et al. 2022, arXiv 2203.15565 (class sampling, sharded centres); Milakov and Gimelshein 2018, arXiv
1805.02867 (online normalisation of the softmax).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import BlockwiseLoss
from .lifting import HeadSettings
from .sharding import CentreShard

# Total size of the logit derivatives that are kept for the backward pass, in bytes.
KEPT_BYTES = 80 << 20


def fused_losses(
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    curvature: float | Tensor | None,
    labels: Tensor,
    settings: HeadSettings,
    chosen: Tensor | None = None,
    shard: CentreShard | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Tensor:
    """Compute the cross-entropy with margin of each embedding.

    Args:
        embeddings: embeddings `(B, D)` in float32 or better; if the centres are sharded, of all ranks.
        weight: centres `(K, D)`; if the centres are sharded, only the rows of this rank.
        bias: bias `(K,)` of a linear similarity; None for other similarities.
        curvature: curvature of a hyperbolic similarity, a scalar tensor if it is learned; None for other similarities.
        labels: speaker numbers, `(B,)` int64, counted over all ranks.
        settings: settings of the head.
        chosen: ascending row numbers of `weight` in the loss, including all labels of this rank; None for all rows.
        shard: rows of the head that `weight` contains; None if it contains all.
        kept_bytes: memory for derivatives that are kept for the backward pass, in bytes (see `KEPT_BYTES`); with 0, the
            backward pass computes all blocks again.

    Returns:
        Losses `(B,)`, the same on every rank.
    """
    learned = curvature if isinstance(curvature, Tensor) else None
    fixed = None if curvature is None or learned is not None else float(curvature)
    state = BlockwiseLoss(settings, fixed, chosen, shard, kept_bytes)
    state.needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (embeddings, weight, bias, learned)
    )
    return _FusedLosses.apply(embeddings, weight, bias, learned, labels, state)  # pyright: ignore[reportReturnType]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast and compute matrix products in full float32 while the context lasts."""
    # The type stubs of torch lack `mkldnn.matmul`.
    backend: Any = getattr(torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda, "matmul")  # noqa: B009
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "ieee"
        # Entering the context takes noticeable time with few speakers.
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
        state: BlockwiseLoss,
    ) -> Tensor:
        ctx.save_for_backward(embeddings, weight, bias, curvature)
        ctx.state = state
        with full_precision(embeddings.device):
            return state.forward(embeddings, weight, bias, curvature, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple:
        with full_precision(grad_outputs[0].device):
            return (*ctx.state.backward(grad_outputs[0], *ctx.saved_tensors), None, None)
