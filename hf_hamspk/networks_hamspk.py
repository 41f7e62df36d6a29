"""Layers: front-ends, pooling, the ECAPA-TDNN encoder, and the training heads. Masks reach every layer.

Letters: `B` batch, `L` samples, `T` frames, `F` mel bins, `C` channels, `H` attention heads, `N` layers of a
transformers backbone, `D` embedding size, `K` speakers.

**Front-ends** take waveforms `(B, L)` in [-1, 1], padded on the right, and the number of valid samples of each; valid
frames of the features do not depend on the padding. Their constants lie in float32 buffers that are not saved but
computed whenever the model is built, loaded or cast. `"fbank"` agrees with the encoder of the released code
(torchaudio's MelSpectrogram after a pre-emphasis), `"kaldi"` with Kaldi's compute-fbank-feats without dither,
`"speechbrain"` with SpeechBrain's Fbank and normalisation of each sentence.

**Pooling** reduces the valid frames to one vector: Desplanques et al. 2020 (attentive statistics with global context);
Peng et al. 2022, arXiv 2210.01273 (multi-head factorised attention); Snyder et al. 2018 (x-vectors).

**ECAPA-TDNN** (Desplanques et al. 2020, arXiv 2005.07143): each layer is convolution, ReLU, batch normalisation, in
this order. Frames outside the mask are zeroed after each, so that each utterance of a padded batch gives what it gives
alone, and batch statistics in training see valid frames only. With the defaults of the configuration encoder and
pooling agree with the released code of arXiv 2601.19709 (C = 1024 there), with its options with SpeechBrain and
WeSpeaker.

**Heads** are each a *similarity* to K learned speaker centres with a *margin* on the target's:

| head                 | similarity             | margin on the target     | logit of the target                |
|----------------------|------------------------|--------------------------|------------------------------------|
| `softmax`            | linear, with bias      | none                     | `W x + b`                          |
| `scaled_softmax`     | linear, with bias      | none                     | `s (W x + b)`                      |
| `normalized_softmax` | cosine                 | none                     | `s cos`                            |
| `am`                 | cosine                 | additive                 | `s (cos - m)`                      |
| `aam`                | cosine                 | additive in the angle    | `s cos(angle + m)`                 |
| `ram`                | cosine                 | additive, hinged         | `s (cos - m)`, easy impostors at 0 |
| `h`                  | minus Poincaré distance | none                    | `-s d`                             |
| `ham`                | minus Poincaré distance | additive                | `-s (d + m)`                       |
| `joint`              | both kinds             | of each                  | weighted sum of the two losses     |

The logits of the other speakers have m = 0. All runs in float32 (or float64) with autocast off. The loss is the plain
form, over the B x K similarities; a trainer may set `SpeakerHead.engine`, which computes the same loss over blocks of
speakers (`hf_hamspk.losses`). Numbers agree with the released code (RAM included: it sets the logit of an easy impostor
to 0). Fang and He 2026, arXiv 2601.19709 (H, HAM); Wang et al. 2018 (AM); Deng et al. 2019 (AAM); Li et al. 2022, arXiv
2110.09116 (RAM).
"""

import math
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_hamspk import HEAD_PARTS, LARGEST_MARGIN, HamSpkConfig
from .geometry_hamspk import (
    MAX_TANGENT_RADIUS,
    at_least_float32,
    distance,
    length_mask,
    normalize,
    pairwise_distance,
    project,
)

PRE_EMPHASIS = 0.97
WINDOW_SECONDS, FBANK_HOP_SECONDS = 0.025, 0.010
FBANK_LOWEST_HZ = 20.0
# The released encoder stops below the anti-aliasing filter of 16 kHz recordings; Kaldi goes to half the sampling rate.
RELEASED_HIGHEST_FRACTION = 7600 / 16000
# Added before the logarithm by the released encoder; a silent frame is log(1e-6) = -13.8.
RELEASED_LOG_OFFSET = 1e-6
# Kaldi counts samples as 16-bit integers and floors the energy at the float32 epsilon.
KALDI_SAMPLE_SCALE = 32768.0
# SpeechBrain floors the energy, and then decibels at this distance below the loudest entry of the utterance.
SPEECHBRAIN_SMALLEST_ENERGY = 1e-10
SPEECHBRAIN_DECIBELS = 80.0
# As in transformers' Wav2Vec2FeatureExtractor.
VARIANCE_OFFSET = 1e-7
# Standard deviation of the initial centres in the released code, which are close to the origin.
CENTRE_STD = 1e-3
# Endings of the names of parameters with a row for each speaker.
CENTRE_NAMES = ("similarity.weight", "similarity.bias")
# A learned curvature stays between this and the largest that float32 can hold with the clip radius in use.
SMALLEST_CURVATURE = 1e-2


class Features(NamedTuple):
    """Features and which of their frames are valid.

    Attributes:
        values: `(B, F, T)`, or `(B, L)` of the waveform front-end; 0 where not valid.
        lengths: `(B,)` valid frames (or samples); None if all are valid.
    """

    values: Tensor
    lengths: Tensor | None


def mel_bank(kind: str | None, bins: int, points: int, sampling_rate: int) -> np.ndarray:
    """Triangular filters over the power spectrum of `points` samples, `(points // 2 + 1, bins)`.

    They are equally far apart on a mel scale: `2595 log10(1 + f / 700)`, or `1127 ln(1 + f / 700)` for `"kaldi"`. Their
    sides are straight in Hz, for `"kaldi"` on the mel scale. Those of `"speechbrain"` are symmetric, from 0 Hz.
    """
    at = np.linspace(0, sampling_rate / 2, points // 2 + 1)
    lowest = 0.0 if kind == "speechbrain" else FBANK_LOWEST_HZ
    highest = RELEASED_HIGHEST_FRACTION * sampling_rate if kind == "fbank" else sampling_rate / 2
    if kind == "kaldi":
        at, (low, high) = (1127 * np.log1p(hertz / 700) for hertz in (at, np.array([lowest, highest])))
        edges = np.linspace(low, high, bins + 2)
    else:
        low, high = 2595 * np.log10(1 + np.array([lowest, highest]) / 700)
        edges = 700 * (10 ** (np.linspace(low, high, bins + 2) / 2595) - 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    if kind == "speechbrain":
        right = 2 * centre - left
    rising = (at[:, None] - left) / (centre - left)
    falling = (right - at[:, None]) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


class FilterBank(nn.Module):
    """Log mel filter bank with the mean of each utterance removed: `(B, L)` to `(B, F, T)`.

    An utterance has at least `smallest_length` samples, one window.

    Args:
        config: `frontend` (`"fbank"`, `"kaldi"` or `"speechbrain"`), `sampling_rate`, `num_mel_bins`, `mask_mel_bins`,
            `mask_frames`.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.kind = config.frontend
        self.sampling_rate = config.sampling_rate
        self.bins = config.num_mel_bins
        self.mask_mel_bins = config.mask_mel_bins
        self.mask_frames = config.mask_frames
        self.window_length = self.smallest_length = round(WINDOW_SECONDS * config.sampling_rate)
        self.hop = round(FBANK_HOP_SECONDS * config.sampling_rate)
        is_speechbrain = self.kind == "speechbrain"
        self.points = self.window_length if is_speechbrain else 1 << (self.window_length - 1).bit_length()
        window, bank = self.constants()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bank", bank, persistent=False)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Hamming window `(window_length,)` and mel bank `(points // 2 + 1, F)`, float32.

        NumPy computes them, because a model is built on the meta device before its weights are loaded.
        """
        n = np.arange(self.window_length)
        period = self.window_length - 1 if self.kind == "kaldi" else self.window_length
        window = 0.54 - 0.46 * np.cos(2 * np.pi * n / period)
        bank = mel_bank(self.kind, self.bins, self.points, self.sampling_rate)
        return torch.from_numpy(window.astype(np.float32)), torch.from_numpy(bank.astype(np.float32))

    def restore_constants(self) -> None:
        """Fill the buffers after a load through the meta device."""
        window, bank = self.constants()
        init.copy_(self.window, window.to(self.window))
        init.copy_(self.bank, bank.to(self.bank))

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.window.dtype not in (torch.float32, torch.float64):
            # A cast of the model to half precision must not reach the filter bank.
            self.window, self.bank = (constant.to(self.window.device) for constant in self.constants())
        return self

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Features:
        """Features of right-padded `waveforms` `(B, L)`; `lengths` `(B,)` in samples, None if all are valid."""
        with torch.autocast(waveforms.device.type, enabled=False):
            frames = self._frames(waveforms.to(self.window.dtype), lengths) * self.window
            power = torch.view_as_real(torch.fft.rfft(frames, self.points)).square().sum(-1)
            frame_lengths = None if lengths is None else self.frame_lengths(lengths)
            values = self._logarithm((power @ self.bank).mT, frame_lengths)
            values = remove_mean(values, frame_lengths)
        if self.training:
            values = mask_bands(values, frame_lengths, self.mask_mel_bins, self.mask_frames)
        return Features(values, frame_lengths)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of utterances of `lengths` samples: Kaldi's lie inside the utterance, the others are centred."""
        inside = lengths - self.window_length if self.kind == "kaldi" else lengths
        return 1 + torch.div(inside, self.hop, rounding_mode="floor")

    def _frames(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """Samples under each window, `(B, T, window_length)`; Kaldi treats each frame by itself."""
        if self.kind == "kaldi":
            frames = (waveforms * KALDI_SAMPLE_SCALE).unfold(1, self.window_length, self.hop)
            frames = frames - frames.mean(-1, keepdim=True)
            return frames - PRE_EMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        # torch.stft would centre the window in `points` samples; only those under the window are needed.
        margin = self.points // 2 - (self.points - self.window_length) // 2
        if self.kind == "fbank":
            emphasised = waveforms - PRE_EMPHASIS * torch.cat([waveforms[:, 1:2], waveforms[:, :-1]], dim=1)
            at = reflected_positions(waveforms.shape[1], margin, lengths, waveforms.device)
            extended = emphasised.gather(1, at.expand(waveforms.shape[0], -1))
        else:
            if lengths is not None:
                waveforms = waveforms.where(length_mask(lengths, waveforms.shape[1]), 0.0)
            extended = F.pad(waveforms, (margin, margin))
        return extended.unfold(1, self.window_length, self.hop)

    def _logarithm(self, energies: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the log energies `(B, F, T)`, in dB for SpeechBrain, with the floor or offset of each front-end."""
        if self.kind == "kaldi":
            return energies.clamp_min(torch.finfo(torch.float32).eps).log()
        if self.kind == "fbank":
            return (energies + RELEASED_LOG_OFFSET).log()
        decibels = 10 * energies.clamp_min(SPEECHBRAIN_SMALLEST_ENERGY).log10()
        valid = decibels
        if lengths is not None:
            # Unlike in SpeechBrain, whose loudest entry may lie in the padding.
            valid = decibels.masked_fill(~length_mask(lengths, decibels.shape[-1])[:, None], -math.inf)
        return torch.maximum(decibels, valid.amax((1, 2), keepdim=True) - SPEECHBRAIN_DECIBELS)


class Waveform(nn.Module):
    """The samples themselves, normalised to zero mean and unit variance if `config.normalize_waveform`."""

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.normalize = config.normalize_waveform
        self.smallest_length = round(WINDOW_SECONDS * config.sampling_rate)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Features:
        """`(B, L)` to `(B, L)`, 0 where not valid."""
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = at_least_float32(waveforms)
            if self.normalize:
                waveforms = remove_mean(waveforms[:, None], lengths)[:, 0]
                count = waveforms.shape[1] if lengths is None else lengths[:, None]
                variance = waveforms.square().sum(1, keepdim=True) / count
                waveforms = waveforms / (variance + VARIANCE_OFFSET).sqrt()
            elif lengths is not None:
                waveforms = waveforms * length_mask(lengths, waveforms.shape[1])
        return Features(waveforms, lengths)


def remove_mean(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Subtract from `(B, F, T)` the mean over the valid frames; frames that are not valid become 0."""
    if lengths is None:
        return values - values.mean(-1, keepdim=True)
    mask = length_mask(lengths, values.shape[-1])[:, None]
    mean = (values * mask).sum(-1, keepdim=True) / lengths[:, None, None]
    return (values - mean) * mask


def mask_bands(values: Tensor, lengths: Tensor | None, bins: int, frames: int) -> Tensor:
    """Set one random band of up to `bins` bins and one stretch of up to `frames` frames of each utterance to 0.

    After the mean removal 0 is the mean. The frames are drawn among the valid ones.
    """
    size = torch.full((values.shape[0],), values.shape[2], device=values.device) if lengths is None else lengths
    height = torch.full_like(size, values.shape[1])
    in_band = _random_stretch(height, bins, values.shape[1])[:, :, None]
    in_stretch = _random_stretch(size, frames, values.shape[2])[:, None, :]
    return values.masked_fill(in_band | in_stretch, 0.0)


def _random_stretch(lengths: Tensor, longest: int, size: int) -> Tensor:
    """`(B, size)` bool: a stretch of 0 to `longest` places, uniform inside each length."""
    # At most half of a short utterance.
    widest = (lengths // 2).clamp_max(longest)
    width = (torch.rand_like(lengths, dtype=torch.float32) * (widest + 1)).long()
    start = (torch.rand_like(width, dtype=torch.float32) * (lengths - width + 1).clamp_min(1)).long()[:, None]
    at = torch.arange(size, device=lengths.device)
    return (at >= start) & (at < start + width[:, None])


def make_frontend(config: HamSpkConfig) -> FilterBank | Waveform:
    """The front-end of `config.frontend`."""
    return Waveform(config) if config.frontend == "waveform" else FilterBank(config)


class Deviation(NamedTuple):
    """Options of a standard deviation.

    Attributes:
        smallest_variance: floor before the root; above 0, where the root has no slope.
        unbiased: divide by the number of frames less 1, not by the number of frames.
        offset: added to the variance before the floor.
    """

    smallest_variance: float
    unbiased: bool = True
    offset: float = 0.0

    def of_variance(self, variance: Tensor) -> Tensor:
        """Standard deviation of a variance, any shape."""
        return (variance + self.offset).clamp_min(self.smallest_variance).sqrt()


def batch_norm(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a batch normalisation to `x` `(B, C, T)`, taking its statistics from the valid frames only.

    Args:
        norm: `nn.BatchNorm1d` or what it was converted to (SyncBatchNorm).
        x: frames.
        mask: `(B, T)` bool, True where valid; None if all frames are.
    """
    if mask is None or not norm.training:
        return norm(x)
    frames = x.mT
    valid = norm(frames[mask])
    return torch.zeros_like(frames, dtype=valid.dtype).masked_scatter(mask[..., None], valid).mT


def overwrites(norm: nn.Module, x: Tensor) -> bool:
    """Whether the next layer may overwrite `x`, the output of a layer that nothing else reads.

    It may in evaluation without gradients on a CPU, where new memory costs more than the arithmetic. Compilers and
    exporters plan memory themselves.
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
    """Zero the frames of `x` `(B, C, T)` outside `mask` `(B, T)`, like the padding of a convolution."""
    return x if mask is None else x * mask[:, None].to(x.dtype)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid frames of `x` `(B, C, T)`, which is 0 outside `mask`: `(B, C)`."""
    return x.mean(-1) if mask is None else x.sum(-1) / mask.sum(-1, keepdim=True).clamp_min(1)


def reflected_positions(size: int, margin: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """Indices that mirror utterances at both ends, `margin` places beyond them: `(B, size + 2 * margin)`.

    Args:
        size: places of the padded batch.
        margin: places before the first and after the last.
        lengths: `(B,)` valid places of each utterance, which is mirrored at its own end; None (all valid) gives B = 1.
        device: of the result.

    The end itself is not repeated; an utterance too short for its mirror image repeats its first or last place.
    """
    at = torch.arange(-margin, size + margin, device=device).abs()
    last = (torch.full_like(at[:1], size) if lengths is None else lengths)[:, None] - 1
    return torch.minimum(torch.where(at > last, 2 * last - at, at).clamp_min(0), last)


def mean_and_deviation(x: Tensor, mask: Tensor | None, deviation: Deviation) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `x` `(B, C, T)` over the valid frames, each `(B, C)`."""
    mean = masked_mean(keep_valid(x, mask), mask)
    squares = keep_valid((x - mean[..., None]).square(), mask).sum(-1)
    count = torch.full_like(mean[:, :1], x.shape[-1]) if mask is None else mask.sum(-1, keepdim=True)
    # A single frame has no deviation; dividing by 1 gives it 0.
    freedom = (count - int(deviation.unbiased)).clamp_min(1)
    return mean, deviation.of_variance(squares / freedom)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation: `(B, C, T)` to `(B, 2C)`."""

    def __init__(self, config: HamSpkConfig, channels: int):
        super().__init__()
        self.output_size = 2 * channels
        self.deviation = Deviation(float(config.pooling_smallest_variance))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat(mean_and_deviation(at_least_float32(x), mask, self.deviation), dim=1)


class XVectorPooling(nn.Module):
    """Time-delay layers, then mean and standard deviation: `(B, C, T)` to `(B, 2 * config.tdnn_channels[-1])`.

    The layers shorten the frames; zeros follow an utterance shorter than their receptive field (15 frames or 0.3 s in
    transformers' models). Agrees with the `*ForXVector` models of transformers on utterances that are not padded. Those
    include too many frames of a padded one in the statistics, as their count ignores the dilation.
    """

    def __init__(self, config: HamSpkConfig, channels: int):
        super().__init__()
        outputs, kernel_sizes, dilations = config.tdnn_channels, config.tdnn_kernel_sizes, config.tdnn_dilations
        self.output_size = 2 * outputs[-1]
        self.deviation = Deviation(float(config.pooling_smallest_variance))
        self.span = sum(dilation * (size - 1) for size, dilation in zip(kernel_sizes, dilations, strict=True))
        self.project = nn.Conv1d(channels, outputs[0], 1)
        shapes = zip([outputs[0], *outputs], outputs, kernel_sizes, dilations, strict=False)
        self.layers = nn.ModuleList(nn.Conv1d(c, d, size, dilation=dilation) for c, d, size, dilation in shapes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        missing = max(0, self.span + 1 - x.shape[-1])
        x = F.pad(keep_valid(self.project(x), mask), (0, missing))
        for layer in self.layers:
            x = F.relu(layer(x))
        if mask is not None:
            # A frame is valid if its receptive field is; the first one always counts.
            first = torch.arange(x.shape[-1], device=x.device) == 0
            mask = F.pad(mask, (0, missing))[:, self.span :] | first
        return torch.cat(mean_and_deviation(at_least_float32(x), mask, self.deviation), dim=1)


class AttentivePooling(nn.Module):
    """Attentive statistics with global context: `(B, C, T)` to `(B, 2C)`.

    Each channel has its own attention over the frames, computed from the frame and, with `config.pooling_context`, from
    the mean and deviation of the utterance.
    """

    def __init__(self, config: HamSpkConfig, channels: int):
        super().__init__()
        smallest, hidden = float(config.pooling_smallest_variance), config.pooling_channels
        self.output_size = 2 * channels
        self.context = config.pooling_context
        self.context_deviation = Deviation(smallest, config.pooling_unbiased, float(config.pooling_variance_offset))
        self.deviation = Deviation(smallest)
        self.hidden = nn.Conv1d(3 * channels if self.context else channels, hidden, 1)
        self.norm = nn.BatchNorm1d(hidden) if config.pooling_hidden_norm else None
        self.scores = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self._hidden(x, mask)
        if self.norm is not None:
            hidden = batch_norm(self.norm, F.relu(hidden, inplace=True), mask)
        scores = at_least_float32(self.scores(torch.tanh(hidden)))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
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
    # The same with less memory.
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

    Keys and values have their own layer weights and their own compression to `config.pooling_channels`; each head is
    one attention over time.
    """

    def __init__(self, config: HamSpkConfig, channels: int, layers: int):
        super().__init__()
        compressed, heads = config.pooling_channels, config.mhfa_heads
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


class ConvBlock(nn.Module):
    """Convolution that keeps the number of frames, ReLU, batch normalisation: `(B, C, T)` to `(B, C', T)`.

    Args:
        inputs: C.
        outputs: C'.
        kernel_size: odd, in frames.
        dilation: in frames.
        reflect: pad each utterance with its mirror image, not with zeros.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, dilation: int = 1, reflect: bool = False):
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.margin = padding if reflect else 0
        self.conv = nn.Conv1d(inputs, outputs, kernel_size, padding=padding - self.margin, dilation=dilation)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Frames `(B, C, T)` to `(B, C', T)`, 0 outside `mask`.

        Args:
            x: frames.
            mask: `(B, T)` bool; None if all are valid.
            out: `(B, C', T)`, into which the result is written if `overwrites` holds; it may be `x`.
        """
        if self.margin:
            x = mirrored(x, self.margin, mask)
        x = F.relu(self.conv(x), inplace=True)
        if overwrites(self.norm, x):
            return folded_norm(self.norm, x, mask, x if out is None else out)
        return keep_valid(batch_norm(self.norm, x, mask), mask)


def mirrored(x: Tensor, margin: int, mask: Tensor | None) -> Tensor:
    """Mirror `(B, C, T)` at both ends of each utterance: `(B, C, T + 2 * margin)`."""
    lengths = None if mask is None else mask.sum(-1)
    at = reflected_positions(x.shape[-1], margin, lengths, x.device)
    if mask is None:
        return x.index_select(-1, at[0])
    return x.gather(-1, at[:, None].expand(-1, x.shape[1], -1))


class SqueezeExcitation(nn.Module):
    """Weights the channels of `(B, C, T)` by a gate computed from their means over the valid frames."""

    def __init__(self, channels: int, bottleneck: int):
        super().__init__()
        self.down = nn.Conv1d(channels, bottleneck, 1)
        self.up = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, x: Tensor, residual: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """`residual` plus the gated `x`, both `(B, C, T)` and 0 outside `mask`; written to `out` if that is given."""
        gate = torch.sigmoid(self.up(F.relu(self.down(masked_mean(x, mask)[..., None]))))
        return torch.addcmul(residual, x, gate, out=out)


class SERes2Block(nn.Module):
    """Residual block of hierarchical convolutions over channel groups, with squeeze-and-excitation: shape kept."""

    def __init__(self, config: HamSpkConfig, dilation: int):
        super().__init__()
        channels, groups = config.ecapa_channels, config.ecapa_groups
        width = channels // groups
        reflect = config.ecapa_padding == "reflect"
        self.reduce = ConvBlock(channels, channels)
        # The last group passes unchanged.
        self.groups = nn.ModuleList(ConvBlock(width, width, 3, dilation, reflect) for _ in range(groups - 1))
        self.expand = ConvBlock(channels, channels)
        self.excitation = SqueezeExcitation(channels, config.ecapa_bottleneck)

    def forward(self, x: Tensor, mask: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Frames `(B, C, T)` to as many; written to `out` if `overwrites` holds."""
        frames = self.reduce(x, mask)
        if overwrites(self.reduce.norm, frames):
            return self._overwrite(frames, x, mask, out)
        *parts, last = frames.chunk(len(self.groups) + 1, dim=1)
        outputs: list[Tensor] = []
        for part, group in zip(parts, self.groups, strict=True):
            outputs.append(group(part + outputs[-1] if outputs else part, mask))
        return self.excitation(self.expand(torch.cat([*outputs, last], dim=1), mask), x, mask)

    def _overwrite(self, frames: Tensor, x: Tensor, mask: Tensor | None, out: Tensor | None) -> Tensor:
        """The rest of `forward` after `reduce`, with the output of each group in the memory of its input."""
        before = None
        for part, group in zip(frames.chunk(len(self.groups) + 1, dim=1), self.groups, strict=False):
            before = group(part if before is None else part.add_(before), mask, out=part)
        expanded = self.expand(frames, mask)
        return self.excitation(expanded, x, mask, out=expanded if out is None else out)


class Ecapa(nn.Module):
    """Frame encoder that aggregates the outputs of all blocks: `(B, F, T)` to `(B, ecapa_output_channels, T)`.

    Args:
        config: `num_mel_bins` and the fields that begin with `ecapa_`.
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        channels = config.ecapa_channels
        self.sums_inputs = config.ecapa_block_input == "sum"
        self.input = ConvBlock(config.num_mel_bins, channels, 5, reflect=config.ecapa_padding == "reflect")
        self.blocks = nn.ModuleList(SERes2Block(config, dilation) for dilation in config.ecapa_dilations)
        self.aggregate = nn.Conv1d(len(self.blocks) * channels, config.ecapa_output_channels, 1)
        normalize = config.ecapa_normalize_aggregate
        self.aggregate_norm = nn.BatchNorm1d(config.ecapa_output_channels) if normalize else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode features `(B, F, T)`, zero outside `mask` `(B, T)` bool (None: all frames are valid)."""
        x = self.input(x, mask)
        slots: list[Tensor | None] = [None] * len(self.blocks)
        together = None
        if overwrites(self.input.norm, x):
            # The blocks write side by side into one tensor, which saves `torch.cat`.
            together = x.new_empty(x.shape[0], len(slots) * x.shape[1], x.shape[2])
            slots = list(together.chunk(len(slots), dim=1))
        outputs = []
        for block, slot in zip(self.blocks, slots, strict=True):
            outputs.append(block(x, mask, slot))
            x = x + outputs[-1] if self.sums_inputs else outputs[-1]
        if together is None or any(output is not slot for output, slot in zip(outputs, slots, strict=True)):
            together = torch.cat(outputs, dim=1)
        frames = F.relu(self.aggregate(together), inplace=True)
        if self.aggregate_norm is not None:
            frames = batch_norm(self.aggregate_norm, frames, mask)
        return keep_valid(frames, mask)


Pooling = StatisticsPooling | XVectorPooling | AttentivePooling | FactorisedAttentivePooling


def make_pooling(config: HamSpkConfig, channels: int, layers: int) -> Pooling:
    """The pooling of `config.pooling` for frames of `channels`; MHFA pools all `layers` of a backbone."""
    if config.pooling == "mhfa":
        return FactorisedAttentivePooling(config, channels, layers)
    kinds = {"statistics": StatisticsPooling, "xvector": XVectorPooling, "attentive": AttentivePooling}
    return kinds[config.pooling](config, channels)


def add_angle(cosine: Tensor, margin: float) -> Tensor:
    """`cos(angle + margin)`, continued by `cosine - margin sin(margin)` past `angle = pi - margin`.

    Args:
        cosine: any shape, range [-1, 1].
        margin: in radians, in [0, pi).
    """
    # Rounding may push 1 - cos^2 below 0; at 0 the slope of the root is infinite.
    sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    past_turn = cosine <= math.cos(math.pi - margin)
    return torch.where(past_turn, cosine - margin * math.sin(math.pi - margin), shifted)


def add_margin(target: Tensor, kind: str, margin: float) -> Tensor:
    """Similarities to the own centre with a margin.

    Args:
        target: any shape.
        kind: `"none"`, `"additive"`, `"angular"` or `"real"`.
        margin: at least 0, in units of the similarity (radians for `"angular"`).
    """
    if kind == "none":
        return target
    return add_angle(target, margin) if kind == "angular" else target - margin


def apply_margin(similarity: Tensor, labels: Tensor, kind: str, margin: float, scale: float) -> Tensor:
    """Scaled logits `(B, K)` with the margin on the target.

    Args:
        similarity: `(B, K)`.
        labels: `(B,)`, in [0, K).
        kind, margin: as in `add_margin`.
        scale: positive.
    """
    if kind == "none":
        return scale * similarity
    index = labels[:, None]
    target = add_margin(similarity.gather(1, index), kind, margin)
    logits = scale * similarity.scatter(1, index, target)
    if kind == "real":
        logits = logits.masked_fill(logits < scale * target, 0.0)
    return logits


class HeadOutput(NamedTuple):
    """Result of a head.

    Attributes:
        logits: `(B, K)`, scaled, without margin, to identify training speakers; None if not asked for.
        loss: scalar, the mean cross-entropy with margin; None without labels.
    """

    logits: Tensor | None
    loss: Tensor | None


class LossEngine(Protocol):
    """Computes the loss of a head in training."""

    @property
    def gives_logits(self) -> bool:
        """Whether this process holds all centres, so that there are logits."""
        ...

    def __call__(self, head: "SpeakerHead", embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy with margin, a scalar, of embeddings `(B, D)` and labels `(B,)`."""
        ...


def make_centres(config: HamSpkConfig) -> nn.Parameter:
    """Centres `(K, D)`, not yet drawn."""
    return nn.Parameter(torch.empty(cast(int, config.num_labels), config.embedding_size))


class LinearSimilarity(nn.Module):
    """`W x + b`: `(B, D)` to `(B, K)`."""

    kind = "linear"

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.bias = nn.Parameter(torch.empty(self.weight.shape[0]))
        self.reset_centres()

    def curvature(self) -> None:
        """A linear similarity has none."""

    def reset_centres(self) -> None:
        """Draw the centres as `torch.nn.Linear` draws its weights."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        init.uniform_(self.weight, -bound, bound)
        init.zeros_(self.bias)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.linear(embeddings, self.weight.to(embeddings.dtype), self.bias.to(embeddings.dtype))


class CosineSimilarity(nn.Module):
    """Cosine to the centres: `(B, D)` to `(B, K)`, range [-1, 1]."""

    kind = "cosine"
    bias: None = None

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.weight = make_centres(config)
        self.reset_centres()

    def curvature(self) -> None:
        """A cosine has none."""

    def reset_centres(self) -> None:
        """Draw the centres from Xavier's normal distribution, as in the released code."""
        init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        return normalize(embeddings) @ normalize(self.weight.to(embeddings.dtype)).mT


class HyperbolicSimilarity(nn.Module):
    """Minus the distance to the centres, in the projection of the configuration: `(B, D)` to `(B, K)`, at most 0.

    With labels, the distance of each embedding to its own centre is computed from the difference of the two points,
    which is exact for nearly equal points; the others come from one matrix product.
    """

    kind = "hyperbolic"
    bias: None = None

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.projection = config.projection
        self.clip_radius = config.clip_radius
        self.initial_curvature = cast(float, config.curvature)
        self.largest_curvature = (MAX_TANGENT_RADIUS / config.clip_radius) ** 2
        self.weight = make_centres(config)
        self.log_curvature = nn.Parameter(torch.empty(())) if config.learnable_curvature else None
        self.reset_centres()

    def reset_centres(self) -> None:
        """Draw the centres close to the origin, as in the released code, and set the initial curvature."""
        init.normal_(self.weight, std=CENTRE_STD)
        if self.log_curvature is not None:
            init.constant_(self.log_curvature, math.log(self.initial_curvature))

    def curvature(self) -> float | Tensor:
        """`c`: a number, or a scalar tensor inside its bounds, in float32 or better, if it is learned."""
        if self.log_curvature is None:
            return self.initial_curvature
        log_c = at_least_float32(self.log_curvature)
        # The bound acts on the value, not on the gradient, so that a parameter that steps over it can come back.
        bounded = log_c.clamp(math.log(SMALLEST_CURVATURE), math.log(self.largest_curvature))
        return (log_c + (bounded - log_c).detach()).exp()

    def recorded_curvature(self) -> float:
        """`c` as a number that the configuration accepts: rounding may put it just over its bound."""
        return min(float(torch.as_tensor(self.curvature()).detach()), self.largest_curvature)

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        c = self.curvature()
        x, factor = project(embeddings, self.projection, c, self.clip_radius)
        centres, _ = project(self.weight.to(embeddings.dtype), self.projection, c, self.clip_radius)
        distances = pairwise_distance(x, centres)
        if labels is not None:
            own = type(centres)(centres.position[labels], centres.conformal[labels])
            distances = distances.scatter(1, labels[:, None], distance(x, own)[:, None])
        return -distances * factor


SIMILARITY_MODULES = {"linear": LinearSimilarity, "cosine": CosineSimilarity, "hyperbolic": HyperbolicSimilarity}


class SpeakerHead(nn.Module):
    """One head of the table at the top of the module, chosen by `config.head`.

    The margin is a plain attribute, which a schedule changes by `set_margin`; it is saved in the configuration, not in
    the weights. `engine` belongs to a training run and is not saved.

    Args:
        config: `head`, `num_labels`, `embedding_size`, `scale`, `margin`, and for hyperbolic heads `projection`,
            `curvature`, `clip_radius` and `learnable_curvature`.
        head: overrides `config.head`.
    """

    def __init__(self, config: HamSpkConfig, head: str | None = None):
        super().__init__()
        similarity, self.margin_kind = HEAD_PARTS[config.head if head is None else head]
        self.similarity = SIMILARITY_MODULES[similarity](config)
        self.scale = cast(float, config.scale)
        self.projection, self.clip_radius = config.projection, float(config.clip_radius)
        self.engine: LossEngine | None = None
        self.set_margin(cast(float, config.margin))

    def set_margin(self, margin: float) -> None:
        """Use `margin` (in [0, 3)) from now on. Heads without a margin ignore it."""
        if not 0 <= margin < LARGEST_MARGIN:
            raise ValueError(f"A margin is at least 0 and below {LARGEST_MARGIN:g}, got {margin}.")
        self.margin = float(margin)

    def centre_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters with a row for each speaker, by name."""
        return {name: p for name, p in self.named_parameters() if name.endswith(CENTRE_NAMES)}

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Logits and loss.

        Args:
            embeddings: `(B, D)`.
            labels: `(B,)` int64 in [0, K), or None.
            return_logits: None returns logits except in training with labels, which needs no tensor of B x K.
        """
        if return_logits is None:
            return_logits = labels is None or not self.training
        if return_logits and self.engine is not None and not self.engine.gives_logits:
            raise ValueError("No rank holds all centres, so there are no logits: ask the saved model for them.")
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            logits = self.scale * self.similarity(embeddings, labels) if return_logits else None
            if labels is None:
                return HeadOutput(logits, None)
            if self.engine is None:
                return HeadOutput(logits, self.plain_loss(embeddings, labels))
            return HeadOutput(logits, self.engine(self, embeddings, labels))

    def plain_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss by its definition, over the B x K similarities."""
        similarity = self.similarity(embeddings, labels)
        return F.cross_entropy(apply_margin(similarity, labels, self.margin_kind, self.margin, self.scale), labels)


class JointHead(nn.Module):
    """`lambda_1` times a Euclidean head plus `lambda_2` times HAM, each with its own centres.

    The released code publishes 0.3 RAM + 0.7 HAM (c = 3, s = 30, m = 0.2). The logits are those of HAM.

    Args:
        config: as for `SpeakerHead`, and `euclidean_head`, `euclidean_weight`, `hyperbolic_weight`.
    """

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.euclidean = SpeakerHead(config, config.euclidean_head)
        self.hyperbolic = SpeakerHead(config, "ham")
        self.euclidean_weight = config.euclidean_weight
        self.hyperbolic_weight = config.hyperbolic_weight

    @property
    def margin(self) -> float:
        """The margin of both parts."""
        return self.hyperbolic.margin

    def set_margin(self, margin: float) -> None:
        """As `SpeakerHead.set_margin`, in both parts."""
        self.euclidean.set_margin(margin)
        self.hyperbolic.set_margin(margin)

    def centre_parameters(self) -> dict[str, nn.Parameter]:
        """As `SpeakerHead.centre_parameters`, of both parts."""
        return {name: p for name, p in self.named_parameters() if name.endswith(CENTRE_NAMES)}

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, return_logits: bool | None = None
    ) -> HeadOutput:
        """Logits of the hyperbolic part and the weighted sum of both losses; arguments as in `SpeakerHead`."""
        logits, hyperbolic = self.hyperbolic(embeddings, labels, return_logits)
        if labels is None or hyperbolic is None:
            return HeadOutput(logits, None)
        euclidean = cast(Tensor, self.euclidean(embeddings, labels, False).loss)
        return HeadOutput(logits, self.euclidean_weight * euclidean + self.hyperbolic_weight * hyperbolic)


def make_head(config: HamSpkConfig) -> SpeakerHead | JointHead:
    """The head of `config.head`."""
    return JointHead(config) if config.head == "joint" else SpeakerHead(config)
