"""From frames to one vector, over the valid frames only.

Letters: `B` batch, `C` channels, `T` frames, `H` attention heads, `N` layers of a transformers backbone.

References: Desplanques et al. 2020 (attentive statistics with global context, as in ECAPA-TDNN); Peng et al. 2022,
arXiv 2210.01273 (multi-head factorised attention). The attentive pooling agrees with the encoder that the released code
uses.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

# Floor of the variance before its root, from the released encoder: keeps the slope of the root below 50.
SMALLEST_VARIANCE = 1e-4


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


def keep_valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the frames of `x` `(B, C, T)` outside `mask` `(B, T)`, so that a convolution sees what it pads with."""
    return x if mask is None else x * mask[:, None].to(x.dtype)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of `x` `(B, C, T)` over the valid frames, `(B, C)`."""
    if mask is None:
        return x.mean(-1)
    return keep_valid(x, mask).sum(-1) / mask.sum(-1, keepdim=True).clamp_min(1)


def mean_and_deviation(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (unbiased, at least 0.01) of `x` `(B, C, T)` over the valid frames, each `(B, C)`."""
    mean = masked_mean(x, mask)
    squares = keep_valid((x - mean[..., None]).square(), mask).sum(-1)
    # A single frame has no deviation; dividing by 1 gives it 0.
    freedom = max(x.shape[-1] - 1, 1) if mask is None else (mask.sum(-1, keepdim=True) - 1).clamp_min(1)
    variance = squares / freedom
    return mean, variance.clamp_min(SMALLEST_VARIANCE).sqrt()


class StatisticsPooling(nn.Module):
    """Mean and standard deviation: `(B, C, T)` to `(B, 2C)`."""

    def __init__(self, channels: int):
        super().__init__()
        self.output_size = 2 * channels

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat(mean_and_deviation(at_least_float32(x), mask), dim=1)


class AttentivePooling(nn.Module):
    """Attentive statistics with global context: `(B, C, T)` to `(B, 2C)`.

    Each channel has its own attention over the frames, computed from the frame and from the mean and deviation of the
    utterance.

    Args:
        channels: C.
        hidden: channels of the attention's hidden layer.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.output_size = 2 * channels
        self.hidden = nn.Conv1d(3 * channels, hidden, 1)
        self.norm = nn.BatchNorm1d(hidden)
        self.scores = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, deviation = mean_and_deviation(at_least_float32(x), mask)
        hidden = F.relu(self._hidden(x, torch.cat([mean, deviation], dim=1).to(x.dtype)))
        scores = at_least_float32(self.scores(torch.tanh(batch_norm(self.norm, hidden, mask))))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        # Frames that are not valid have weight 0, and are 0 themselves.
        weighted = weights * x
        mean = weighted.sum(-1)
        variance = (weighted * x).sum(-1) - mean.square()
        return torch.cat([mean, variance.clamp_min(SMALLEST_VARIANCE).sqrt()], dim=1)

    def _hidden(self, x: Tensor, context: Tensor) -> Tensor:
        """The 1x1 convolution of frame and context together, without repeating the context for every frame."""
        weight, channels = self.hidden.weight, x.shape[1]
        of_context = F.linear(context, weight[:, channels:, 0], self.hidden.bias)
        return F.conv1d(x, weight[:, :channels]) + of_context[..., None]


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
