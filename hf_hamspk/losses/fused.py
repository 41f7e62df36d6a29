"""The loss of a head as one operation over blocks of speakers, forward and backward.

Letters: `B` batch, `K` speakers, `N` speakers of a block, `D` embedding size, `A` columns of a lifted vector.

The forward pass goes over blocks of centres: lift, one matrix product, exponentials, their sum, and the gradient of the
embeddings up to a factor per embedding that is known at the end. Up to `KEPT_BYTES` of derivatives of the logits are
kept for the backward pass, which needs one more product for them; the other blocks are computed again. So memory does
not grow with `K`, except for the centres, their gradient and a few numbers per centre.

Cosines and distances are bounded, and so are the logits: one fixed shift is enough for all exponentials. If it is not
(linear, large scales), the shift is the largest logit so far.

The pair of an embedding and its own centre is left out of the products and computed from the difference of the two,
because there the product has no correct digit near coincidence.

Precision: all computations are in float32 or better, whatever the settings of torch. With TF32 or bfloat16 operands
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

from .blocks import BlockwiseLoss
from .lifting import HeadSettings
from .sharding import CentreShard

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
    shard: CentreShard | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Tensor:
    """Cross-entropy with margin of each embedding.

    Args:
        embeddings: `(B, D)` in float32 or better; those of all ranks if the centres are sharded.
        weight: centres `(K, D)`; those of this rank if they are sharded.
        bias: `(K,)` of a linear similarity, or None.
        curvature: of a hyperbolic similarity; a scalar tensor if it is learned.
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
    state = BlockwiseLoss(settings, fixed, chosen, shard, kept_bytes)
    state.needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (embeddings, weight, bias, learned)
    )
    return _FusedLosses.apply(embeddings, weight, bias, learned, labels, state)  # pyright: ignore[reportReturnType]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast off and compute matrix products in float32; the settings of torch are restored afterwards."""
    # The type stubs do not know of mkldnn's.
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
