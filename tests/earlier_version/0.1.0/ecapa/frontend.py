"""From waveforms to features, batched, on the model's device, blind to padding.

Letters: `B` batch, `L` samples, `T` frames, `F` mel bins, `N` points of the Fourier transform.

Every front-end takes waveforms `(B, L)` in [-1, 1] padded on the right and the number of valid samples of each, and
gives features whose valid frames do not depend on the padding. The constants live in float32 buffers that are not
saved: they are computed again whenever the model is built, loaded or cast.

References: `"fbank"` agrees with the encoder that the released code uses (torchaudio's MelSpectrogram after a
pre-emphasis); `"kaldi"` with Kaldi's compute-fbank-feats without dither; `"speechbrain"` with SpeechBrain's Fbank and
normalisation of each sentence.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_hamspk import HamSpkConfig
from .pooling import at_least_float32, reflected_positions

PRE_EMPHASIS = 0.97
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
LOWEST_HZ = 20.0
# The released encoder stops below the anti-aliasing filter of 16 kHz recordings; Kaldi goes to half the sampling rate.
RELEASED_HIGHEST_FRACTION = 7600 / 16000
# Added before the logarithm by the released encoder; a silent frame is log(1e-6) = -13.8.
RELEASED_LOG_OFFSET = 1e-6
# Kaldi counts samples as 16-bit integers and floors the energy at the float32 epsilon.
KALDI_SAMPLE_SCALE = 32768.0
# SpeechBrain counts in decibels, floors the energy, and cuts what is further below the loudest entry of the utterance.
SPEECHBRAIN_SMALLEST_ENERGY = 1e-10
SPEECHBRAIN_DECIBELS = 80.0
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
    edges = _edges(LOWEST_HZ, RELEASED_HIGHEST_FRACTION * sampling_rate, bins)
    return _triangles(_frequencies(points, sampling_rate), edges[:-2], edges[1:-1], edges[2:])


def speechbrain_mel_bank(bins: int, points: int, sampling_rate: int) -> np.ndarray:
    """Triangles on the scale of `released_mel_bank`, from 0 Hz, each as wide above its centre as below it."""
    edges = _edges(0.0, sampling_rate / 2, bins)
    left, centre = edges[:-2], edges[1:-1]
    return _triangles(_frequencies(points, sampling_rate), left, centre, 2 * centre - left)


def kaldi_mel_bank(bins: int, points: int, sampling_rate: int) -> np.ndarray:
    """Triangles linear on the mel scale `1127 ln(1 + f / 700)`, `(points // 2 + 1, bins)`."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127 * np.log1p(hertz / 700)

    low, high = mel(np.array([LOWEST_HZ, sampling_rate / 2]))
    edges = np.linspace(low, high, bins + 2)
    return _triangles(mel(_frequencies(points, sampling_rate)), edges[:-2], edges[1:-1], edges[2:])


def _frequencies(points: int, sampling_rate: int) -> np.ndarray:
    """Hz of the points of the spectrum, `(points // 2 + 1,)`."""
    return np.linspace(0, sampling_rate / 2, points // 2 + 1)


def _edges(lowest: float, highest: float, bins: int) -> np.ndarray:
    """Hz where filters begin, peak and end, equally far apart on the scale `2595 log10(1 + f / 700)`, `(bins + 2,)`."""
    low, high = 2595 * np.log10(1 + np.array([lowest, highest]) / 700)
    return 700 * (10 ** (np.linspace(low, high, bins + 2) / 2595) - 1)


def _triangles(at: np.ndarray, left: np.ndarray, centre: np.ndarray, right: np.ndarray) -> np.ndarray:
    rising = (at[:, None] - left) / (centre - left)
    falling = (right - at[:, None]) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


class FilterBank(nn.Module):
    """Log mel filter bank with the mean of each utterance removed: `(B, L)` to `(B, F, T)`.

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
        self.window_length = round(WINDOW_SECONDS * config.sampling_rate)
        self.hop = round(HOP_SECONDS * config.sampling_rate)
        is_speechbrain = self.kind == "speechbrain"
        self.points = self.window_length if is_speechbrain else 1 << (self.window_length - 1).bit_length()
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
        period = self.window_length - 1 if self.kind == "kaldi" else self.window_length
        window = 0.54 - 0.46 * np.cos(2 * np.pi * n / period)
        banks = {"fbank": released_mel_bank, "kaldi": kaldi_mel_bank, "speechbrain": speechbrain_mel_bank}
        bank = banks[str(self.kind)](self.bins, self.points, self.sampling_rate)
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
            frames = self._frames(waveforms.to(self.window.dtype), lengths) * self.window
            power = torch.view_as_real(torch.fft.rfft(frames, self.points)).square().sum(-1)
            frame_lengths = None if lengths is None else self.frame_lengths(lengths)
            values = self._logarithm((power @ self.bank).mT, frame_lengths)
            values = remove_mean(values, frame_lengths)
        if self.training:
            values = mask_bands(values, frame_lengths, self.mask_mel_bins, self.mask_frames)
        return Features(values, frame_lengths)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of utterances of `lengths` samples: those of Kaldi lie inside, the others are centred."""
        inside = lengths - self.window_length if self.kind == "kaldi" else lengths
        return 1 + torch.div(inside, self.hop, rounding_mode="floor")

    def _frames(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        """What the window is laid on: `(B, T, window_length)`."""
        if self.kind == "kaldi":
            return self._kaldi_frames(waveforms)
        # torch.stft would centre the window in N points; only the window's own samples are needed.
        margin = self.points // 2 - (self.points - self.window_length) // 2
        if self.kind == "speechbrain":
            extended = self._between_zeros(waveforms, margin, lengths)
        else:
            extended = self._emphasised_and_reflected(waveforms, margin, lengths)
        return extended.unfold(1, self.window_length, self.hop)

    @staticmethod
    def _between_zeros(waveforms: Tensor, margin: int, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            waveforms = waveforms.where(length_mask(lengths, waveforms.shape[1]), 0.0)
        return nn.functional.pad(waveforms, (margin, margin))

    @staticmethod
    def _emphasised_and_reflected(waveforms: Tensor, margin: int, lengths: Tensor | None) -> Tensor:
        """The released encoder's, reflected at both ends of each utterance."""
        previous = torch.cat([waveforms[:, 1:2], waveforms[:, :-1]], dim=1)
        emphasised = waveforms - PRE_EMPHASIS * previous
        at = reflected_positions(waveforms.shape[1], margin, lengths, waveforms.device)
        return emphasised.gather(1, at.expand(waveforms.shape[0], -1))

    def _kaldi_frames(self, waveforms: Tensor) -> Tensor:
        """Frames inside the waveform, mean removed, pre-emphasised one by one."""
        frames = (waveforms * KALDI_SAMPLE_SCALE).unfold(1, self.window_length, self.hop)
        frames = frames - frames.mean(-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        return frames - PRE_EMPHASIS * previous

    def _logarithm(self, energies: Tensor, lengths: Tensor | None) -> Tensor:
        """Of `(B, F, T)`; Kaldi floors, the released encoder adds, SpeechBrain floors twice."""
        if self.kind == "kaldi":
            return energies.clamp_min(torch.finfo(torch.float32).eps).log()
        if self.kind == "fbank":
            return (energies + RELEASED_LOG_OFFSET).log()
        decibels = 10 * energies.clamp_min(SPEECHBRAIN_SMALLEST_ENERGY).log10()
        valid = decibels
        if lengths is not None:
            # SpeechBrain takes the loudest entry of the padding, too.
            valid = decibels.masked_fill(~length_mask(lengths, decibels.shape[-1])[:, None], -math.inf)
        return torch.maximum(decibels, valid.amax((1, 2), keepdim=True) - SPEECHBRAIN_DECIBELS)


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
