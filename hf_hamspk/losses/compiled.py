"""Loss of a hyperbolic head for `torch.compile`, which itself fuses the elementwise operations.

Letters: `B` batch size, `K` speakers, `D` embedding size, `A` columns of a lifted vector.

The method is that of the module `blocks` with a single block. The forward pass computes the derivatives of the
exponentials with respect to the products of lifted vectors. The backward pass then consists of two matrix products,
whereas the backward pass of a cross-entropy first computes all probabilities again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..geometry_hamspk import add_margin
from .lifting import (
    CACHE_LINE,
    SMALLEST_RADIUS,
    HeadSettings,
    fixed_shift,
    radial_lift,
    target_similarity,
    vector_norms,
)


def can_compile(settings: HeadSettings, curvature: float | Tensor | None) -> bool:
    """Return whether `compiled_loss` accepts a head. It must be hyperbolic, with fixed curvature and bounded logits."""
    if settings.kind != "hyperbolic" or curvature is None or isinstance(curvature, Tensor):
        return False
    return settings.margin_kind in ("none", "additive") and fixed_shift(settings, curvature) is not None


def compiled_loss(
    embeddings: Tensor, weight: Tensor, labels: Tensor, curvature: float, settings: HeadSettings
) -> Tensor:
    """Compute the mean cross-entropy with margin, a scalar, of embeddings `(B, D)` and centres `(K, D)`.

    `can_compile` must be True for the head. The loss is the same as that of `fused_losses`. Without `torch.compile`,
    this function also works, but is slower and needs more memory.
    """
    shift = fixed_shift(settings, curvature)
    if shift is None:
        raise ValueError("Expected a head with bounded logits. Check a head with can_compile first.")
    x, x_time = _lift(embeddings, curvature, settings)
    y, y_time = _lift(weight.to(embeddings.dtype), curvature, settings)
    lifted_x, lifted_y = _aligned([-x, x_time, x_time + 1]), _aligned([y, torch.ones_like(y_time), y_time])
    factor = 1.0 if settings.projection == "released" else curvature**-0.5
    impostors = _ImpostorLogits.apply(lifted_x, lifted_y, labels, settings.scale * factor, shift)
    rows = weight.index_select(0, labels).to(embeddings.dtype)
    target = target_similarity(embeddings, rows, None, curvature, settings)
    odds = impostors - settings.scale * add_margin(target, settings.margin_kind, settings.margin)
    return torch.logaddexp(odds, torch.zeros_like(odds)).mean()


def _lift(vectors: Tensor, curvature: float, settings: HeadSettings) -> tuple[Tensor, Tensor]:
    """Return the lifts `(N, D)` of vectors `(N, D)`, and the time parts `(N, 1)`; see the module `lifting`."""
    radius = vector_norms(vectors, vectors.dtype).clamp_min(SMALLEST_RADIUS)
    length, time = radial_lift(radius, curvature, settings)
    return vectors * (length / radius)[:, None], time[:, None]


def _aligned(columns: list[Tensor]) -> Tensor:
    """Concatenate columns, and add columns of zeros so that each row begins at a cache line (faster products)."""
    first, line = columns[0], CACHE_LINE // columns[0].element_size()
    missing = -sum(column.shape[1] for column in columns) % line
    # Concatenating the zeros as well takes no extra time. `F.pad` would copy everything once more.
    return torch.cat([*columns, first.new_zeros(first.shape[0], missing)], dim=1)


class _ImpostorLogits(torch.autograd.Function):
    """Logarithm `(B,)` of the sum of exponentials of the impostor logits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, labels: Tensor, scale: float, shift: float) -> Tensor:
        # As in `blocks.to_distance`, this lower limit bounds the derivative where the rounding error exceeds the value.
        u = (x @ y.mT).clamp_min(torch.finfo(x.dtype).eps / 2)
        sinh = (u * (u + 2)).sqrt()
        exponentials = torch.exp(-scale * torch.log(1 + u + sinh) - shift)
        is_target = torch.arange(y.shape[0], device=y.device) == labels[:, None]
        exponentials = torch.where(is_target, 0.0, exponentials)
        total = exponentials.sum(1)
        ctx.save_for_backward(x, y, exponentials / sinh, total)
        ctx.scale = scale
        return total.log() + shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, derivative, total = ctx.saved_tensors
        factor = (grad_outputs[0] * -ctx.scale / total.clamp_min(torch.finfo(total.dtype).tiny))[:, None]
        return factor * (derivative @ y), derivative.mT @ (factor * x), None, None, None
