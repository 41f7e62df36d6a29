"""Front-ends and pooling layers of the models, for padded batches, and creation of the heads.

Letters: `B` batch, `L` samples, `T` frames, `F` mel bins, `C` channels, `H` attention heads, `N` layers of a
transformers backbone, `D` embedding size.

**Front-ends** compute features of waveforms `(B, L)` in [-1, 1], which may be padded on the right. Valid frames do not
depend on the padding. The constants of a front-end are float32 buffers. They are not saved, but computed when a model
is built, loaded or cast. `"fbank"` computes the features of the HAM-Softmax code (torchaudio's
MelSpectrogram after pre-emphasis), `"kaldi"` the features of Kaldi's compute-fbank-feats without dither, and
`"speechbrain"` the features of SpeechBrain's Fbank with normalisation of each sentence.

**Pooling** reduces the valid frames to one vector: Desplanques et al. 2020 (attentive statistics with global context);
Peng et al. 2022, arXiv 2210.01273 (multi-head factorised attention); Snyder et al. 2018 (x-vectors).
"""

import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_hamspk import HamSpkConfig
from .geometry_hamspk import JointHead, SpeakerHead, at_least_float32, length_mask, limit_entries

PRE_EMPHASIS = 0.97
WINDOW_SECONDS, FBANK_HOP_SECONDS = 0.025, 0.010
FBANK_LOWEST_HZ = 20.0
# Highest frequency of "fbank" as a share of the sampling rate, as in the HAM-Softmax code; 1/2 for the other banks.
RELEASED_HIGHEST_FRACTION = 7600 / 16000
# "fbank" adds this before the logarithm, as in the HAM-Softmax code. A silent frame becomes log(1e-6) = -13.8.
RELEASED_LOG_OFFSET = 1e-6
# Kaldi's default window is a Hann window to this power, which makes it similar to a Hamming window that ends in zero.
POVEY_POWER = 0.85
# SpeechBrain raises energies below 1e-10 to 1e-10, and then levels to at most 80 dB below the utterance's maximum.
SPEECHBRAIN_SMALLEST_ENERGY = 1e-10
SPEECHBRAIN_DECIBELS = 80.0
# Louder waveforms are scaled down to this amplitude, because float32 cannot represent the power spectrum of 1e15.
LARGEST_SAMPLE = 1e6
# Number added to the variance of a waveform before its root is taken, as in transformers' Wav2Vec2FeatureExtractor.
VARIANCE_OFFSET = 1e-7
# Power added to the variance before a waveform is scaled to a level: -120 dBFS, less than a step of 16-bit audio.
LEVEL_OFFSET = 1e-12


class Features(NamedTuple):
    """Features `(B, F, T)` (w2v-BERT: `(B, T, F)`) or samples `(B, L)`, 0 in the padding; and valid lengths `(B,)`."""

    values: Tensor
    lengths: Tensor | None


def mel_bank(kind: str | None, bins: int, points: int, sampling_rate: int) -> np.ndarray:
    """Return triangular filters for the power spectrum of `points` samples, `(points // 2 + 1, bins)`.

    The centres are equidistant in mel: `2595 log10(1 + f / 700)`, or `1127 ln(1 + f / 700)` for `"kaldi"`. Triangles
    are linear in Hz, or in mel for `"kaldi"`. The filters of `"speechbrain"` are symmetric and start at 0 Hz.
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
    """Log mel filter bank that subtracts the mean of each utterance: `(B, L)` to `(B, F, T)`.

    An utterance must have at least `smallest_length` samples, the length of one window.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.kind, self.level_db = config.frontend, config.level_db
        self.is_povey, self.scale = config.kaldi_window == "povey" and self.kind == "kaldi", float(config.kaldi_scale)
        self.sampling_rate, self.bins = config.sampling_rate, config.num_mel_bins
        self.mask_mel_bins, self.mask_frames = config.mask_mel_bins, config.mask_frames
        self.window_length = self.smallest_length = round(WINDOW_SECONDS * config.sampling_rate)
        self.hop = round(FBANK_HOP_SECONDS * config.sampling_rate)
        is_speechbrain = self.kind == "speechbrain"
        self.points = self.window_length if is_speechbrain else 1 << (self.window_length - 1).bit_length()
        for name, constant in zip(("window", "bank"), self.constants(), strict=True):
            self.register_buffer(name, constant, persistent=False)

    def constants(self, kind: type[np.floating] = np.float32) -> tuple[Tensor, Tensor]:
        """Compute the window `(window_length,)` and the mel filters `(points // 2 + 1, F)` in the NumPy type `kind`."""
        # torch may build a model on the meta device, where tensors have no values, but NumPy arrays do.
        n = np.arange(self.window_length)
        period = self.window_length - 1 if self.kind == "kaldi" else self.window_length
        window = 0.54 - 0.46 * np.cos(2 * np.pi * n / period)
        if self.is_povey:
            window = (0.5 - 0.5 * np.cos(2 * np.pi * n / period)) ** POVEY_POWER
        bank = mel_bank(self.kind, self.bins, self.points, self.sampling_rate)
        return torch.from_numpy(window.astype(kind)), torch.from_numpy(bank.astype(kind))

    def restore_constants(self) -> None:
        """Compute the constants again after building the model on the meta device, where buffers have no values."""
        window, bank = self.constants()
        init.copy_(self.window, window.to(self.window))
        init.copy_(self.bank, bank.to(self.bank))

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.window.dtype not in (torch.float32, torch.float64):
            # The filter bank must stay in float32 when the model is cast to half precision.
            self.window, self.bank = (constant.to(self.window.device) for constant in self.constants())
        return self

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, constants: tuple[Tensor, Tensor] | None = None
    ) -> Features:
        """Compute features of `waveforms` `(B, L)` with `lengths` `(B,)` valid samples (None: no padding)."""
        window, bank = (self.window, self.bank) if constants is None else constants
        with torch.autocast(waveforms.device.type, enabled=False):
            samples = valid_samples(waveforms.to(window.dtype), lengths, self.level_db)
            frames = self._frames(samples, lengths) * window
            squares = torch.view_as_real(torch.fft.rfft(frames, self.points)).square()
            power = squares[..., 0] + squares[..., 1]  # Faster than a sum over an axis of two.
            frame_lengths = None if lengths is None else self.frame_lengths(lengths)
            values = self._logarithm((power @ bank).mT, frame_lengths)
            values = remove_mean(values, frame_lengths)
        if self.training:
            values = mask_bands(values, frame_lengths, self.mask_mel_bins, self.mask_frames)
        return Features(values, frame_lengths)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return the numbers of frames of utterances of `lengths` samples. All kinds but `"kaldi"` pad both ends."""
        inside = lengths - self.window_length if self.kind == "kaldi" else lengths
        return 1 + torch.div(inside, self.hop, rounding_mode="floor")

    def _frames(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the samples of each frame, `(B, T, window_length)`, after the preprocessing of the front-end."""
        if self.kind == "kaldi":
            frames = (waveforms * self.scale).unfold(1, self.window_length, self.hop)
            frames = frames - frames.mean(-1, keepdim=True)
            return frames - PRE_EMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        # torch.stft centres the window in `points` samples. Only the samples inside the window are needed here.
        margin = self.points // 2 - (self.points - self.window_length) // 2
        if self.kind == "fbank":
            emphasised = waveforms - PRE_EMPHASIS * torch.cat([waveforms[:, 1:2], waveforms[:, :-1]], dim=1)
            at = reflected_positions(waveforms.shape[1], margin, lengths, waveforms.device)
            extended = emphasised.gather(1, at.expand(waveforms.shape[0], -1))
        else:
            extended = F.pad(waveforms, (margin, margin))
        return extended.unfold(1, self.window_length, self.hop)

    def _logarithm(self, energies: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the finite logarithm of `energies` `(B, F, T)`; for `"speechbrain"`, the result is in dB."""
        if self.kind == "kaldi":
            return energies.clamp_min(torch.finfo(torch.float32).eps).log()
        if self.kind == "fbank":
            return (energies + RELEASED_LOG_OFFSET).log()
        decibels = 10 * energies.clamp_min(SPEECHBRAIN_SMALLEST_ENERGY).log10()
        valid = decibels
        if lengths is not None:
            # The maximum is taken over valid frames only. In SpeechBrain it may come from the padding.
            valid = decibels.masked_fill(~length_mask(lengths, decibels.shape[-1])[:, None], -math.inf)
        return torch.maximum(decibels, valid.amax((1, 2), keepdim=True) - SPEECHBRAIN_DECIBELS)


class Waveform(nn.Module):
    """Front-end that returns samples, normalised to mean 0 and variance 1 if `config.normalize_waveform` is True."""

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.normalize, self.level_db = config.normalize_waveform, config.level_db
        self.smallest_length = round(WINDOW_SECONDS * config.sampling_rate)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Features:
        """Return the samples `(B, L)` of `waveforms` `(B, L)`, with 0 in the padding."""
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = valid_samples(at_least_float32(waveforms), lengths, self.level_db)
            if self.normalize:
                waveforms = standardise(waveforms, lengths, VARIANCE_OFFSET)
        return Features(waveforms, lengths)


def valid_samples(waveforms: Tensor, lengths: Tensor | None, level_db: float | None = None) -> Tensor:
    """Set the padding of waveforms `(B, L)` to 0, limit their amplitude, and scale them to `level_db` if it is given.

    The level in dBFS is the root mean square after the mean was subtracted.
    """
    if lengths is not None:
        waveforms = waveforms.where(length_mask(lengths, waveforms.shape[1]), 0.0)
    waveforms = limit_entries(waveforms, LARGEST_SAMPLE)
    if level_db is None:
        return waveforms
    return standardise(waveforms, lengths, LEVEL_OFFSET) * 10 ** (level_db / 20)


def standardise(waveforms: Tensor, lengths: Tensor | None, offset: float) -> Tensor:
    """Scale waveforms `(B, L)` to mean 0 and variance 1; `offset` is added to the variance first."""
    waveforms = remove_mean(waveforms[:, None], lengths)[:, 0]
    count = waveforms.shape[1] if lengths is None else lengths[:, None]
    return waveforms / (waveforms.square().sum(1, keepdim=True) / count + offset).sqrt()


def remove_mean(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Subtract the mean over the valid frames from values `(B, F, T)`, and set the padding to 0."""
    if lengths is None:
        return values - values.mean(-1, keepdim=True)
    mask = length_mask(lengths, values.shape[-1])[:, None]
    mean = (values * mask).sum(-1, keepdim=True) / lengths[:, None, None]
    return (values - mean) * mask


def mask_bands(values: Tensor, lengths: Tensor | None, bins: int, frames: int) -> Tensor:
    """Mask (by the mean, 0) up to `bins` adjacent filters and `frames` adjacent valid frames of each utterance."""
    size = torch.full((values.shape[0],), values.shape[2], device=values.device) if lengths is None else lengths
    height = torch.full_like(size, values.shape[1])
    in_band = _random_stretch(height, bins, values.shape[1])[:, :, None]
    in_stretch = _random_stretch(size, frames, values.shape[2])[:, None, :]
    return values.masked_fill(in_band | in_stretch, 0.0)


def _random_stretch(lengths: Tensor, longest: int, size: int) -> Tensor:
    """Return a random bool mask `(B, size)`: up to `longest` adjacent True in the first `lengths[i]` of row `i`."""
    # A mask covers at most half of a short utterance.
    widest = (lengths // 2).clamp_max(longest)
    width = (torch.rand_like(lengths, dtype=torch.float32) * (widest + 1)).long()
    start = (torch.rand_like(width, dtype=torch.float32) * (lengths - width + 1).clamp_min(1)).long()[:, None]
    at = torch.arange(size, device=lengths.device)
    return (at >= start) & (at < start + width[:, None])


class Deviation(NamedTuple):
    """Options for the computation of a standard deviation.

    An unbiased variance is divided by the number of frames minus 1. `offset` is added to the variance. The variance is
    then limited to at least `smallest_variance`, because the root has an infinite derivative at 0.
    """

    smallest_variance: float
    unbiased: bool = True
    offset: float = 0.0

    def of_variance(self, variance: Tensor) -> Tensor:
        """Return the standard deviation of a variance of any shape."""
        return (variance + self.offset).clamp_min(self.smallest_variance).sqrt()


def batch_norm(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a batch normalisation to `x` `(B, C, T)` or `(B, C, F, T)`, with batch statistics of valid frames only."""
    if mask is None or not norm.training:
        return norm(x)
    frames = x.movedim(-1, 1)
    valid = norm(frames[mask][..., None])[..., 0] if x.ndim == 4 else norm(frames[mask])
    places = mask.view(*mask.shape, *[1] * (x.ndim - 2))
    return torch.zeros_like(frames, dtype=valid.dtype).masked_scatter(places, valid).movedim(1, -1)


def keep_valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the frames of `x` `(B, ..., T)` outside `mask` `(B, T)` to zero, the value that convolutions pad with."""
    return x if mask is None else x * mask.view(mask.shape[0], *[1] * (x.ndim - 2), mask.shape[1]).to(x.dtype)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean `(B, C)` over the valid frames of `x` `(B, C, T)`, which must be 0 outside `mask`."""
    return x.mean(-1) if mask is None else x.sum(-1) / mask.sum(-1, keepdim=True).clamp_min(1)


def reflected_positions(size: int, margin: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """Return indices that extend utterances of `size` entries by `margin` entries of a mirror image at both ends.

    The result is `(B, size + 2 * margin)`, with B = 1 if `lengths` `(B,)` is None. The mirror image does not repeat the
    end itself. If an utterance is too short, its first or last index is repeated.
    """
    at = torch.arange(-margin, size + margin, device=device).abs()
    last = (torch.full_like(at[:1], size) if lengths is None else lengths)[:, None] - 1
    return torch.minimum(torch.where(at > last, 2 * last - at, at).clamp_min(0), last)


def mean_and_deviation(x: Tensor, mask: Tensor | None, deviation: Deviation) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of `x` `(B, C, T)` over the valid frames, `(B, C)` each."""
    mean = masked_mean(keep_valid(x, mask), mask)
    squares = keep_valid((x - mean[..., None]).square(), mask).sum(-1)
    count = torch.full_like(mean[:, :1], x.shape[-1]) if mask is None else mask.sum(-1, keepdim=True)
    # The variance of a single frame is 0 here, not 0 / 0.
    freedom = (count - int(deviation.unbiased)).clamp_min(1)
    return mean, deviation.of_variance(squares / freedom)


class StatisticsPooling(nn.Module):
    """Pooling by mean and standard deviation: `(B, C, T)` to `(B, 2C)`."""

    def __init__(self, config: HamSpkConfig, channels: int):
        super().__init__()
        self.output_size = 2 * channels
        offset = float(config.pooling_variance_offset)
        self.deviation = Deviation(float(config.pooling_smallest_variance), offset=offset)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.cat(mean_and_deviation(at_least_float32(x), mask, self.deviation), dim=1)


class XVectorPooling(nn.Module):
    """Pooling by time-delay layers, mean and standard deviation: `(B, C, T)` to `(B, 2 * config.tdnn_channels[-1])`.

    The layers reduce the number of frames. An utterance shorter than their receptive field (15 frames or 0.3 s in
    transformers) is padded with zeros. Without padding in the batch, results agree with the `*ForXVector` models of
    transformers. With padding, the models of transformers use too many frames, because they ignore the dilation.
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
            # A frame is valid if its complete receptive field is valid. The first frame always counts as valid.
            first = torch.arange(x.shape[-1], device=x.device) == 0
            mask = F.pad(mask, (0, missing))[:, self.span :] | first
        return torch.cat(mean_and_deviation(at_least_float32(x), mask, self.deviation), dim=1)


class AttentivePooling(nn.Module):
    """Attentive statistics pooling, with global context as an option: `(B, C, T)` to `(B, 2C)`.

    Each channel has its own attention over the frames, which depends on the frame and, if `config.pooling_context` is
    True, on mean and standard deviation of the utterance.
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
        """Apply the 1x1 convolution to frames and context. The context is equal for all frames, so it is not copied."""
        weight, channels = self.hidden.weight, x.shape[1]
        if not self.context:
            return self.hidden(x)
        context = torch.cat(mean_and_deviation(at_least_float32(x), mask, self.context_deviation), dim=1)
        of_context = F.linear(context.to(x.dtype), weight[:, channels:, 0], self.hidden.bias)
        return F.conv1d(x, weight[:, :channels]) + of_context[..., None]


def _weighted_moments(weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean and variance over time, `(B, C)` each, of `x` `(B, C, T)`. The weights must sum to 1."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        mean = (weights * x).sum(-1)
        return mean, (weights * (x - mean[..., None]).square()).sum(-1)
    # Compute the same values with less memory.
    products = weights * x
    mean = products.sum(-1)
    torch.sub(x, mean[..., None], out=products).square_().mul_(weights)
    return mean, products.sum(-1)


class LayerMix(nn.Module):
    """Learned convex sum of the N layers of a backbone: N tensors `(B, T, C)` to one."""

    def __init__(self, layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    def restart(self) -> None:
        """Give all layers the same weight."""
        init.zeros_(self.weight)

    def forward(self, layers: tuple[Tensor, ...]) -> Tensor:
        weights = at_least_float32(self.weight).softmax(0).to(layers[0].dtype)
        mixed = weights[0] * layers[0]
        for weight, layer in zip(weights[1:], layers[1:], strict=True):
            mixed = mixed + weight * layer
        return mixed


class FactorisedAttentivePooling(nn.Module):
    """Multi-head factorised attention over the N layers of a backbone: N tensors `(B, T, C)` to `(B, H * E)`.

    Keys and values have separate layer weights and are separately compressed to E = `config.pooling_channels`.
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


Pooling = StatisticsPooling | XVectorPooling | AttentivePooling | FactorisedAttentivePooling


def make_pooling(config: HamSpkConfig, channels: int, layers: int) -> Pooling:
    """Create the pooling `config.pooling` for frames `(B, channels, T)`. The number of `layers` is for MHFA only."""
    if config.pooling == "mhfa":
        return FactorisedAttentivePooling(config, channels, layers)
    kinds = {"statistics": StatisticsPooling, "xvector": XVectorPooling, "attentive": AttentivePooling}
    return kinds[cast(str, config.pooling)](config, channels)


def make_head(config: HamSpkConfig) -> SpeakerHead | JointHead:
    """Create the head with the name `config.head` from the fields of the configuration."""

    def part(head: str) -> SpeakerHead:
        sizes: Any = (config.num_labels, config.embedding_size, config.scale, config.margin)
        geometry: Any = (config.curvature, config.projection, config.clip_radius, config.learnable_curvature)
        return SpeakerHead(head, *sizes, *geometry)

    if config.head != "joint":
        return part(config.head)
    return JointHead(part(config.euclidean_head), part("ham"), config.euclidean_weight, config.hyperbolic_weight)
