"""ECAPA-TDNN on a CPU for one recording at a time, with frames as the rows of matrices.

A convolution over time becomes one product of two matrices: `(T, K C)`, in which each row contains a frame and its
neighbours, and the weights `(K C, C')`. Processors with bfloat16 instructions compute this product about three times as
fast as a convolution of `(C, T)`. There is no padding, so an embedding does not depend on other recordings.

Letters: `T` frames, `C` channels, `K` kernel size.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders_hamspk import ConvBlock, Ecapa, SERes2Block
from ..modeling_hamspk import HamSpkModel
from ..networks_hamspk import AttentivePooling, reflected_positions

# In oneDNN, the number of rows is a multiple of this, so that few different numbers of rows occur.
ROWS_STEP = 64


class RowConvolution:
    """Convolution over time that maps rows `(T, C)` to rows `(T, C')`. The number of frames stays the same.

    Args:
        conv: layer with the weights.
        dtype: number format of the computation.
        margin: number of frames by which both ends are extended with a mirror image; 0 extends them with zeros.
        scale, shift: factors and summands `(C',)` of the output channels; None for 1 and 0.
    """

    def __init__(
        self,
        conv: nn.Conv1d,
        dtype: torch.dtype,
        margin: int = 0,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ):
        self.size, self.dilation = conv.kernel_size[0], conv.dilation[0]
        self.margin, self.zeros = margin, cast(int, conv.padding[0])
        weight, bias = conv.weight.detach().permute(0, 2, 1).flatten(1), conv.bias
        bias = torch.zeros(len(weight)) if bias is None else bias.detach()
        if scale is not None and shift is not None:
            weight, bias = weight * scale[:, None], bias * scale + shift
        self.product = product_of_rows(weight.to(dtype).contiguous(), bias.to(dtype))

    def __call__(self, x: Tensor, valid: int) -> Tensor:
        """Convolve the first `valid` rows of `x`. The other rows of the result have no meaning."""
        rows = x.shape[0]
        if self.size > 1:
            x = x[:valid]
            if self.margin:
                x = x[reflected_positions(valid, self.margin, None, x.device)[0]]
            x = F.pad(x, (0, 0, self.zeros, self.zeros + rows - valid))
            step = self.dilation * x.shape[1]
            x = x.as_strided((rows, self.size, x.shape[1]), (x.shape[1], step, 1)).flatten(1)
        return self.product(x)


class RowBlock:
    """Convolution, ReLU and batch normalisation of rows `(T, C)`; see `ConvBlock`.

    Let `s` be the factor and `t` the summand of the normalisation. If `s` is positive, `s * relu(z) + t` is the larger
    of `s * z + t` and `t`; if `s` is negative, it is the smaller one. So `s` and `t` can be included in the weights of
    the convolution.

    Args:
        conv: convolution.
        norm: batch normalisation after ReLU; None for ReLU alone.
        dtype: number format of the computation.
        margin: see `RowConvolution`.
    """

    def __init__(self, conv: nn.Conv1d, norm: nn.Module | None, dtype: torch.dtype, margin: int = 0):
        scale, shift = scale_and_shift(norm, conv.out_channels)
        self.conv = RowConvolution(conv, dtype, margin, scale, shift)
        lowest, highest = limits_of(scale, shift)
        self.lowest, self.highest = lowest.to(dtype), None if highest is None else highest.to(dtype)

    def __call__(self, x: Tensor, valid: int, out: Tensor | None = None) -> Tensor:
        y = self.conv(x, valid)
        return torch.clamp(y, self.lowest, self.highest, out=y if out is None else out)


class _RowRes2Block:
    """Residual block with squeeze-and-excitation; see `SERes2Block`."""

    def __init__(self, block: SERes2Block, dtype: torch.dtype):
        self.reduce, self.expand = _row_block(block.reduce, dtype), _row_block(block.expand, dtype)
        self.groups = [_row_block(cast(ConvBlock, group), dtype) for group in block.groups]
        self.down, self.up = RowConvolution(block.excitation.down, dtype), RowConvolution(block.excitation.up, dtype)

    def __call__(self, x: Tensor, valid: int, out: Tensor) -> Tensor:
        frames = self.reduce(x, valid)
        before = None
        for part, group in zip(frames.chunk(len(self.groups) + 1, dim=1), self.groups, strict=False):
            before = group(part.contiguous() if before is None else part + before, valid, out=part)
        y = self.expand(frames, valid)
        gate = torch.sigmoid(self.up(F.relu(self.down(y[:valid].mean(0, keepdim=True), 1)), 1))
        return torch.addcmul(x, y, gate, out=out)


class RowEcapa:
    """Encoder and pooling of a model, which map features `(T, F)` to the pooled vector `(2 C)` in float32.

    Args:
        model: model for which `supports_rows` is True.
        dtype: number format of the encoder. The statistics of the pooling are computed in float32.
    """

    def __init__(self, model: HamSpkModel, dtype: torch.dtype):
        encoder, pooling = cast(Ecapa, model.backbone), cast(AttentivePooling, model.pooling)
        self.dtype, self.sums_inputs = dtype, encoder.sums_inputs
        self.input = _row_block(encoder.input, dtype)
        self.blocks = [_RowRes2Block(cast(SERes2Block, block), dtype) for block in encoder.blocks]
        self.aggregate = RowBlock(encoder.aggregate, encoder.aggregate_norm, dtype)
        self.pooling, self.channels = pooling, encoder.output_channels
        self.hidden = pooling.hidden.weight.detach()[..., 0]
        of_frames = self.hidden[:, : self.channels].to(dtype).contiguous()
        self.of_frames = product_of_rows(of_frames, of_frames.new_zeros(len(of_frames)))
        scale, shift = scale_and_shift(pooling.norm, pooling.hidden.out_channels)
        self.hidden_norm = None if pooling.norm is None else (shift.to(dtype), scale.to(dtype))
        self.scores = RowConvolution(pooling.scores, dtype)

    def __call__(self, features: Tensor) -> Tensor:
        valid = features.shape[0]
        # Without further rows, oneDNN would prepare its kernels again for each new number of frames.
        further = -valid % ROWS_STEP if uses_onednn(self.dtype) else 0
        x = self.input(F.pad(features.to(self.dtype), (0, 0, 0, further)), valid)
        together = x.new_empty(x.shape[0], len(self.blocks) * x.shape[1])
        for block, slot in zip(self.blocks, together.chunk(len(self.blocks), dim=1), strict=True):
            y = block(x, valid, slot)
            x = x + y if self.sums_inputs else y.contiguous()
        return self._pool(self.aggregate(together, valid), valid)

    def _pool(self, frames: Tensor, valid: int) -> Tensor:
        x, bias = frames[:valid].float(), cast(Tensor, self.pooling.hidden.bias)
        hidden = self.of_frames(frames)
        centre = x.mean(0)
        x -= centre
        if self.pooling.context:
            options = self.pooling.context_deviation
            squares = x.square().sum(0) / max(1, len(x) - int(options.unbiased))
            context = torch.cat([centre, options.of_variance(squares)])
            bias = F.linear(context, self.hidden[:, self.channels :], bias)
        hidden += bias.to(self.dtype)
        if self.hidden_norm is not None:
            hidden = torch.addcmul(self.hidden_norm[0], hidden.relu_(), self.hidden_norm[1])
        weights = self.scores(hidden.tanh_(), valid)[:valid].float()
        weights.sub_(weights.amax(0)).exp_()
        total = weights.sum(0)
        # Moments about the unweighted mean. This avoids the difference of two large numbers.
        weights *= x
        mean = weights.sum(0) / total
        variance = (weights.mul_(x).sum(0) / total - mean.square()).clamp_min(0)
        return torch.cat([centre + mean, self.pooling.deviation.of_variance(variance)])


def supports_rows(model: Any) -> bool:
    """Return whether `RowEcapa` supports this model. It must be an ECAPA-TDNN with attentive pooling."""
    return isinstance(model.backbone, Ecapa) and isinstance(model.pooling, AttentivePooling)


def product_of_rows(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies rows `(T, C)` by `weight` `(C', C)` and adds `bias` `(C',)`.

    oneDNN rearranges the weights for the processor: `F.linear` in bfloat16 at each call, this function only once. It
    uses the operators that the compiler of PyTorch uses for constant weights.
    """
    if not uses_onednn(weight.dtype):
        return lambda x: F.linear(x, weight, bias)
    operators = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight, None)
    return lambda x: operators._linear_pointwise(x, packed, bias, "none", [], "")


def uses_onednn(dtype: torch.dtype) -> bool:
    """Return whether products of rows are computed by oneDNN on this processor, and not by `F.linear`.

    In float32, `F.linear` uses MKL, which has AVX-512 for processors of Intel only. On others, oneDNN takes about half
    of the time.
    """
    operators = torch.ops.mkldnn
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(operators, name) for name in names):
        return False
    if dtype == torch.bfloat16:
        return operators._is_mkldnn_bf16_supported()
    is_intel = "Intel" in str(torch.cpu.get_capabilities().get("cpu_name"))
    return torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and not is_intel


def _row_block(block: ConvBlock, dtype: torch.dtype) -> RowBlock:
    return RowBlock(block.conv, block.norm, dtype, block.margin)


def limits_of(scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the smallest and the largest value `(C,)` of `scale * relu(z) + shift`; None for no largest value."""
    highest = None if bool((scale > 0).all()) else shift.where(scale <= 0, torch.inf)
    return shift.where(scale >= 0, -torch.inf), highest


def scale_and_shift(norm: nn.Module | None, channels: int) -> tuple[Tensor, Tensor]:
    """Return the factors and summands, `(C,)` each, of a batch normalisation in evaluation mode; 1 and 0 for None."""
    if norm is None:
        return torch.ones(channels), torch.zeros(channels)
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = cast(Tensor, norm.weight).detach() * (variance + cast(float, norm.eps)).rsqrt()
    return scale, cast(Tensor, norm.bias).detach() - mean * scale
