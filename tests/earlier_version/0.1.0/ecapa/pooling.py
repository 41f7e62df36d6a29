"""From frames to one vector, over the valid frames only.

Letters: `B` batch, `C` channels, `T` frames, `H` attention heads, `N` layers of a transformers backbone.

References: Desplanques et al. 2020 (attentive statistics with global context, as in ECAPA-TDNN); Peng et al. 2022,
arXiv 2210.01273 (multi-head factorised attention); Snyder et al. 2018 (x-vectors). With the defaults of the
configuration the attentive pooling agrees with the encoder that the released code uses; its options are what
SpeechBrain and WeSpeaker do differently.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

# Floor of the variance before its root, from the released encoder: keeps the slope of the root below 50.
SMALLEST_VARIANCE = 1e-4


class Deviation(NamedTuple):
    """How a standard deviation is made of squared differences.

    Attributes:
        smallest_variance: floor before the root; above 0, where the root has no slope.
        unbiased: divide by the number of frames less 1, not by the number of frames.
        offset: added to the variance before the floor.
    """

    smallest_variance: float = SMALLEST_VARIANCE
    unbiased: bool = True
    offset: float = 0.0

    def of_variance(self, variance: Tensor) -> Tensor:
        """The root of a variance, or of the floor where that is larger."""
        return (variance + self.offset).clamp_min(self.smallest_variance).sqrt()


def at_least_float32(x: Tensor) -> Tensor:
    """Statistics over time are summed in float32 even where the layers run in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def batch_norm(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a batch normalisation to `x` `(B, C, T)`, taking its statistics from the valid frames only.

    Args:
        norm: `nn.BatchNorm1d` or what it was converted to (SyncBatchNorm).
        x: frames.
        mask: `(B, T)` bool, True where valid, or None where all are.
    """
    if mask is None or not norm.training:
        return norm(x)
    frames = x.mT
    valid = norm(frames[mask])
    return torch.zeros_like(frames, dtype=valid.dtype).masked_scatter(mask[..., None], valid).mT


def overwrites(norm: nn.Module, x: Tensor) -> bool:
    """Whether `x`, fresh from a layer, is overwritten by what follows, where nothing will read it again.

    In evaluation without gradients on a CPU, where new memory costs more than the arithmetic done on it. What compiles
    or exports plans its memory itself.
    """
    plain = x.device.type == "cpu" and x.dtype == norm.weight.dtype == at_least_float32(x).dtype
    return plain and not (norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def folded_norm(norm: nn.Module, x: Tensor, mask: Tensor | None, out: Tensor) -> Tensor:
    """A batch normalisation in evaluation as one product and sum, zeroed outside `mask`, written to `out`."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = cast(Tensor, norm.weight) * (variance + cast(float, norm.eps)).rsqrt()
    shift = cast(Tensor, norm.bias) - mean * scale
    torch.addcmul(shift[:, None], x, scale[:, None], out=out)
    return out if mask is None else out.mul_(mask[:, None])


def keep_valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the frames of `x` `(B, C, T)` outside `mask` `(B, T)`, so that a convolution sees what it pads with."""
    return x if mask is None else x * mask[:, None].to(x.dtype)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of `x` `(B, C, T)` over the valid frames, `(B, C)`."""
    if mask is None:
        return x.mean(-1)
    return keep_valid(x, mask).sum(-1) / mask.sum(-1, keepdim=True).clamp_min(1)


def reflected_positions(size: int, margin: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """Where to read utterances of `size` places that are mirrored at both ends, `margin` places beyond them.

    Args:
        size: of the padded batch.
        margin: places before the first and after the last.
        lengths: `(B,)` valid places of each utterance, at whose own end it is mirrored; None: all are valid.
        device: of the result.

    Returns:
        `(B, size + 2 * margin)` indices, B = 1 without `lengths`. The end itself is not repeated; an utterance too
        short for its mirror image repeats its first or last place.
    """
    at = torch.arange(-margin, size + margin, device=device).abs()
    last = (torch.full_like(at[:1], size) if lengths is None else lengths)[:, None] - 1
    return torch.minimum(torch.where(at > last, 2 * last - at, at).clamp_min(0), last)


def mean_and_deviation(x: Tensor, mask: Tensor | None, deviation: Deviation) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `x` `(B, C, T)` over the valid frames, each `(B, C)`."""
    mean = masked_mean(x, mask)
    squares = keep_valid((x - mean[..., None]).square(), mask).sum(-1)
    count = torch.full_like(mean[:, :1], x.shape[-1]) if mask is None else mask.sum(-1, keepdim=True)
    # A single frame has no deviation; dividing by 1 gives it 0.
    freedom = (count - int(deviation.unbiased)).clamp_min(1)
    return mean, deviation.of_variance(squares / freedom)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation: `(B, C, T)` to `(B, 2C)`.

    Args:
        channels: C.
        deviation: how the standard deviation is made.
    """

    def __init__(self, channels: int, deviation: Deviation):
        super().__init__()
        self.output_size = 2 * channels
        self.deviation = deviation

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat(mean_and_deviation(at_least_float32(x), mask, self.deviation), dim=1)


class XVectorPooling(nn.Module):
    """Time-delay layers, then mean and standard deviation: `(B, C, T)` to `(B, 2 * channels[-1])`.

    The layers see no padding: they shorten the frames, and an utterance shorter than what they see at once (15 frames
    as transformers' models have them, 0.3 s) is followed by zeros. Agrees with the `*ForXVector` models of transformers
    on utterances that are not padded. Of a padded one they take too many frames into the statistics, as their count
    leaves out the dilation.

    Args:
        inputs: C.
        channels: of the projection and the first layer, and of each layer after it.
        kernel_sizes: of each layer, in frames.
        dilations: of each layer, in frames.
        deviation: how the standard deviation is made.
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        dilations: Sequence[int],
        deviation: Deviation,
    ):
        super().__init__()
        self.output_size = 2 * channels[-1]
        self.deviation = deviation
        self.span = sum(dilation * (size - 1) for size, dilation in zip(kernel_sizes, dilations, strict=True))
        self.project = nn.Conv1d(inputs, channels[0], 1)
        shapes = zip([channels[0], *channels], channels, kernel_sizes, dilations, strict=False)
        self.layers = nn.ModuleList(nn.Conv1d(c, d, size, dilation=dilation) for c, d, size, dilation in shapes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        missing = max(0, self.span + 1 - x.shape[-1])
        x = F.pad(keep_valid(self.project(x), mask), (0, missing))
        for layer in self.layers:
            x = F.relu(layer(x))
        if mask is not None:
            # A frame is valid if all that it saw is; the first one always counts.
            first = torch.arange(x.shape[-1], device=x.device) == 0
            mask = F.pad(mask, (0, missing))[:, self.span :] | first
        return torch.cat(mean_and_deviation(at_least_float32(x), mask, self.deviation), dim=1)


class AttentivePooling(nn.Module):
    """Attentive statistics with global context: `(B, C, T)` to `(B, 2C)`.

    Each channel has its own attention over the frames, computed from the frame and, with context, from the mean and
    deviation of the utterance.

    Args:
        channels: C.
        hidden: channels of the attention's hidden layer.
        context: whether the attention sees the mean and deviation of the utterance.
        hidden_norm: ReLU and batch normalisation before the attention's tanh.
        context_deviation: how the deviation in the context is made; the floor holds for the pooled one, too.
    """

    def __init__(self, channels: int, hidden: int, context: bool, hidden_norm: bool, context_deviation: Deviation):
        super().__init__()
        self.output_size = 2 * channels
        self.context = context
        self.context_deviation = context_deviation
        self.deviation = Deviation(context_deviation.smallest_variance)
        self.hidden = nn.Conv1d(3 * channels if context else channels, hidden, 1)
        self.norm = nn.BatchNorm1d(hidden) if hidden_norm else None
        self.scores = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self._hidden(x, mask)
        if self.norm is not None:
            hidden = batch_norm(self.norm, F.relu(hidden, inplace=True), mask)
        scores = at_least_float32(self.scores(torch.tanh(hidden)))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        # Frames that are not valid have weight 0.
        mean, variance = _weighted_moments(scores.softmax(-1), x)
        return torch.cat([mean, self.deviation.of_variance(variance)], dim=1)

    def _hidden(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The 1x1 convolution of frame and context together, without repeating the context for every frame."""
        weight, channels = self.hidden.weight, x.shape[1]
        if not self.context:
            return self.hidden(x)
        context = torch.cat(mean_and_deviation(at_least_float32(x), mask, self.context_deviation), dim=1)
        of_context = F.linear(context.to(x.dtype), weight[:, channels:, 0], self.hidden.bias)
        return F.conv1d(x, weight[:, :channels]) + of_context[..., None]


def _weighted_moments(weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of `x` `(B, C, T)` under weights that sum to 1 over time, each `(B, C)`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        mean = (weights * x).sum(-1)
        return mean, (weights * (x - mean[..., None]).square()).sum(-1)
    # The same in one piece of new memory.
    products = weights * x
    mean = products.sum(-1)
    torch.sub(x, mean[..., None], out=products).square_().mul_(weights)
    return mean, products.sum(-1)


class LayerMix(nn.Module):
    """Learned convex sum of the layers of a backbone: `(N, B, T, C)` to `(B, T, C)`."""

    def __init__(self, layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    def restart(self) -> None:
        """Weigh all layers alike."""
        init.zeros_(self.weight)

    def forward(self, layers: tuple[Tensor, ...]) -> Tensor:
        weights = at_least_float32(self.weight).softmax(0).to(layers[0].dtype)
        mixed = weights[0] * layers[0]
        for weight, layer in zip(weights[1:], layers[1:], strict=True):
            mixed = mixed + weight * layer
        return mixed


class FactorisedAttentivePooling(nn.Module):
    """Multi-head factorised attention over all layers of a backbone: N times `(B, T, C)` to `(B, H * compressed)`.

    Keys and values have their own layer weights and their own compression; each head is one attention over time.

    Args:
        layers: N.
        channels: C.
        compressed: size of the compressed keys and values.
        heads: H.
    """

    def __init__(self, layers: int, channels: int, compressed: int, heads: int):
        super().__init__()
        self.output_size = heads * compressed
        self.key_mix = LayerMix(layers)
        self.value_mix = LayerMix(layers)
        self.key_compression = nn.Linear(channels, compressed)
        self.value_compression = nn.Linear(channels, compressed)
        self.attention = nn.Linear(compressed, heads)

    def forward(self, layers: tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
        scores = at_least_float32(self.attention(self.key_compression(self.key_mix(layers))))
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min)
        values = at_least_float32(self.value_compression(self.value_mix(layers)))
        return (scores.softmax(1).mT @ values).flatten(1)
