"""From waveforms to features, batched, on the model's device, blind to padding.

Letters: `B` batch, `L` samples, `T` frames, `F` mel bins, `N` points of the Fourier transform.

Every front-end takes waveforms `(B, L)` in [-1, 1] padded on the right and the number of valid samples of each, and
gives features whose valid frames do not depend on the padding. The constants live in float32 buffers that are not
saved: they are computed again whenever the model is built, loaded or cast.

References: `"fbank"` agrees with the encoder that the released code uses (torchaudio's MelSpectrogram after a
pre-emphasis); `"kaldi"` with Kaldi's compute-fbank-feats without dither.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_hamspk import HamSpkConfig
from .pooling import at_least_float32

PRE_EMPHASIS = 0.97
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
LOWEST_HZ = 20.0
# The released encoder stops below the anti-aliasing filter of 16 kHz recordings; Kaldi goes to half the sampling rate.
RELEASED_HIGHEST_FRACTION = 7600 / 16000
# Added before the logarithm by the released encoder; a silent frame is log(1e-6) = -13.8.
RELEASED_LOG_OFFSET = 1e-6
# Kaldi counts samples as 16-bit integers and floors the energy at the float32 epsilon.
KALDI_SAMPLE_SCALE = 32768.0
# As in transformers' Wav2Vec2FeatureExtractor.
VARIANCE_OFFSET = 1e-7


class Features(NamedTuple):
    """Features and which of their frames are valid.

    Attributes:
        values: `(B, F, T)`, or `(B, L)` of the waveform front-end; 0 where not valid.
        lengths: `(B,)` valid frames (or samples), or None where all are.
    """

    values: Tensor
    lengths: Tensor | None


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """`(B,)` lengths to `(B, size)` bool, True inside the length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def released_mel_bank(bins: int, points: int, sampling_rate: int) -> np.ndarray:
    """Triangles on the scale `2595 log10(1 + f / 700)`, linear in Hz, `(points // 2 + 1, bins)`."""
    highest = RELEASED_HIGHEST_FRACTION * sampling_rate
    low, high = 2595 * np.log10(1 + np.array([LOWEST_HZ, highest]) / 700)
    edges = np.linspace(low, high, bins + 2)
    return _triangles(np.linspace(0, sampling_rate / 2, points // 2 + 1), 700 * (10 ** (edges / 2595) - 1))


def kaldi_mel_bank(bins: int, points: int, sampling_rate: int) -> np.ndarray:
    """Triangles linear on the mel scale `1127 ln(1 + f / 700)`, `(points // 2 + 1, bins)`."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127 * np.log1p(hertz / 700)

    low, high = mel(np.array([LOWEST_HZ, sampling_rate / 2]))
    edges = np.linspace(low, high, bins + 2)
    return _triangles(mel(np.linspace(0, sampling_rate / 2, points // 2 + 1)), edges)


def _triangles(at: np.ndarray, edges: np.ndarray) -> np.ndarray:
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (at[:, None] - left) / (centre - left)
    falling = (right - at[:, None]) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


class FilterBank(nn.Module):
    """Log mel filter bank with the mean of each utterance removed: `(B, L)` to `(B, F, T)`.

    Args:
        config: `frontend` (`"fbank"` or `"kaldi"`), `sampling_rate`, `num_mel_bins`, `mask_mel_bins`, `mask_frames`.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, config: HamSpkConfig):
        super().__init__()
        self.kaldi = config.frontend == "kaldi"
        self.sampling_rate = config.sampling_rate
        self.bins = config.num_mel_bins
        self.mask_mel_bins = config.mask_mel_bins
        self.mask_frames = config.mask_frames
        self.window_length = round(WINDOW_SECONDS * config.sampling_rate)
        self.hop = round(HOP_SECONDS * config.sampling_rate)
        self.points = 1 << (self.window_length - 1).bit_length()
        window, bank = self.constants()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bank", bank, persistent=False)

    @property
    def smallest_length(self) -> int:
        """Samples that the shortest utterance must have: one window."""
        return self.window_length

    def constants(self) -> tuple[Tensor, Tensor]:
        """Hamming window `(window_length,)` and mel bank `(N // 2 + 1, F)`, float32, made with NumPy.

        NumPy, because a model is built on the meta device before its weights are loaded.
        """
        n = np.arange(self.window_length)
        period = self.window_length - 1 if self.kaldi else self.window_length
        window = 0.54 - 0.46 * np.cos(2 * np.pi * n / period)
        make_bank = kaldi_mel_bank if self.kaldi else released_mel_bank
        bank = make_bank(self.bins, self.points, self.sampling_rate)
        return torch.from_numpy(window.astype(np.float32)), torch.from_numpy(bank.astype(np.float32))

    def restore_constants(self) -> None:
        """Fill the buffers again, after a load through the meta device or a cast."""
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
        """Features of right-padded `waveforms` `(B, L)`; `lengths` `(B,)` in samples, None where all are valid."""
        with torch.autocast(waveforms.device.type, enabled=False):
            frames = self._kaldi_frames(waveforms) if self.kaldi else self._released_frames(waveforms, lengths)
            power = torch.view_as_real(torch.fft.rfft(frames, self.points)).square().sum(-1)
            energies = (power @ self.bank).mT
            # Kaldi floors, the released encoder adds.
            smallest = torch.finfo(torch.float32).eps
            values = (energies.clamp_min(smallest) if self.kaldi else energies + RELEASED_LOG_OFFSET).log()
            frame_lengths = None if lengths is None else self.frame_lengths(lengths)
            values = remove_mean(values, frame_lengths)
        if self.training:
            values = mask_bands(values, frame_lengths, self.mask_mel_bins, self.mask_frames)
        return Features(values, frame_lengths)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of utterances of `lengths` samples: frames are centred (released) or lie inside (Kaldi)."""
        inside = lengths - self.window_length if self.kaldi else lengths
        return 1 + torch.div(inside, self.hop, rounding_mode="floor")

    def _released_frames(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """Pre-emphasised, centred, reflected at both ends of each utterance, windowed: `(B, T, window_length)`."""
        waveforms = waveforms.to(self.window.dtype)
        previous = torch.cat([waveforms[:, 1:2], waveforms[:, :-1]], dim=1)
        emphasised = waveforms - PRE_EMPHASIS * previous
        # torch.stft would centre the window in N points; only the window's own samples are needed.
        margin = self.points // 2 - (self.points - self.window_length) // 2
        size = waveforms.shape[1]
        at = torch.arange(-margin, size + margin, device=waveforms.device).abs()
        last = (torch.full_like(at[:1], size) if lengths is None else lengths)[:, None] - 1
        at = torch.where(at > last, 2 * last - at, at).clamp_min(0).expand(waveforms.shape[0], -1)
        return emphasised.gather(1, at).unfold(1, self.window_length, self.hop) * self.window

    def _kaldi_frames(self, waveforms: Tensor) -> Tensor:
        """Frames inside the waveform, mean removed, pre-emphasised one by one, windowed: `(B, T, window_length)`."""
        frames = (waveforms.to(self.window.dtype) * KALDI_SAMPLE_SCALE).unfold(1, self.window_length, self.hop)
        frames = frames - frames.mean(-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        return (frames - PRE_EMPHASIS * previous) * self.window


class Waveform(nn.Module):
    """The samples themselves, brought to zero mean and unit variance where the configuration says so."""

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
    # At most half of an utterance, however short.
    widest = (lengths // 2).clamp_max(longest)
    width = (torch.rand_like(lengths, dtype=torch.float32) * (widest + 1)).long()
    start = (torch.rand_like(width, dtype=torch.float32) * (lengths - width + 1).clamp_min(1)).long()[:, None]
    at = torch.arange(size, device=lengths.device)
    return (at >= start) & (at < start + width[:, None])


def make_frontend(config: HamSpkConfig) -> FilterBank | Waveform:
    """The front-end that `config.frontend` names."""
    return Waveform(config) if config.frontend == "waveform" else FilterBank(config)
