"""Loss of a head as a single differentiable operation that is computed over blocks of speakers.

Letters: `B` batch size, `K` speakers, `N` speakers of a block, `D` embedding size, `A` columns of a lifted vector.

The forward pass processes one block of centres after the other. It lifts the centres (see `lifting`), multiplies them
with the lifted embeddings, sums the exponentials of the logits, and accumulates the gradient of the embeddings. When
the sums are complete, the gradient of each embedding is multiplied by one factor. The derivatives of the logits are
kept for as many blocks as fit into `KEPT_BYTES`. For these blocks, the backward pass needs only one more matrix
product; it computes the other blocks again. The memory does not grow with `K`, except for the centres, their gradient
and a few numbers for each centre.

To keep the exponentials within the range of float32, a number is subtracted from all logits of an embedding. Cosines
and distances are bounded, and so are their logits; a fixed number is then usually sufficient. With a linear similarity
or a large scale, no fixed number is, and the largest logit of the embedding so far is subtracted.

The distance of an embedding to its target centre is computed from the difference of the two vectors, not from the
matrix product. If the two vectors are nearly equal, the matrix product would give a distance without correct digits.

All computations are in float32 or better, even if torch is set to allow lower precision. With operands in TF32 or
bfloat16, the error of `cosh d` is 1e-3 or more, which is larger than the differences between similar speakers.
Embeddings and centres may have any precision; each gradient has the precision of its tensor.
`tests/benchmarks/benchmark_head.py` prints the errors with operands in TF32 and in bfloat16.

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

# Largest total size, in bytes, of the derivatives of logits that are kept for the backward pass.
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
        embeddings: embeddings `(B, D)` in float32 or better. If the centres are divided, the embeddings of all ranks.
        weight: centres `(K, D)`. If the centres are divided, only the rows of this rank.
        bias: bias `(K,)` of a linear similarity; None for other similarities.
        curvature: curvature of a hyperbolic similarity, as a scalar tensor if it is learned; None for other
            similarities.
        labels: speaker numbers, `(B,)` int64. If the centres are divided, they are numbered over all ranks.
        settings: settings of the head.
        chosen: ascending row numbers of `weight` that are used in the loss, including those of all labels of this rank;
            None for all rows.
        shard: rows of the head that `weight` contains; None if it contains all rows.
        kept_bytes: largest memory in bytes for derivatives that are kept for the backward pass (see `KEPT_BYTES`). With
            0, the backward pass computes all blocks again.

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
    """Context manager that disables autocast, and in which matrix products are computed in full float32."""
    # The type stubs of torch lack `mkldnn.matmul`.
    backend: Any = getattr(torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda, "matmul")  # noqa: B009
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "ieee"
        # With few speakers, entering the autocast context takes noticeable time.
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
