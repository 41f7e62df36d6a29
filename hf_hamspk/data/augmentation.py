"""Waveform augmentation that needs no downloads: noise, babble, reverberation, band limits, tone and gain.

One kind or several are drawn per crop. All randomness comes from the generator passed in, so a crop is augmented
the same way whenever it is drawn again. Folders with real noises and room responses (MUSAN, RIRS_NOISES) take the place
of the generated ones where they are given.
"""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .audio import SAMPLING_RATE, read_audio
from .corpus import AUDIO_SUFFIXES
from .crops import random_crop

SampleOther = Callable[[np.random.Generator], np.ndarray]
"""Draws a waveform `(L,)` of another utterance of the training corpus."""

KINDS = ("noise", "babble", "reverb", "band", "equaliser", "gain")

NOISE_SNR_DB = (5.0, 20.0)
"""From a busy street to a quiet office; the published recipe takes 0 to 15 for MUSAN noises, most of which pause."""

NOISE_SLOPE = (0.0, 2.0)
"""Exponent of the noise's power spectrum 1/f^slope: 0 is white, 1 pink, 2 brown; rooms and traffic lie between."""

BABBLE_SNR_DB = (13.0, 20.0)
"""The published range for speech: louder voices would make it unclear who is to be recognised."""

BABBLE_VOICES = (3, 8)
"""The published range: fewer than 3 can be told apart, more than 8 sound like noise."""

REVERB_RT60_S = (0.1, 0.7)
"""Seconds in which the sound falls by 60 dB: from a furnished office to a lecture hall."""

REVERB_DIRECT_DB = (-3.0, 12.0)
"""Energy of the direct sound over that of the reverberation: from across the room to at arm's length."""

REVERB_DELAY_S = 0.002
"""Seconds between the direct sound and the first reflection: 0.7 m of detour."""

BAND_LOW_HZ = (50.0, 400.0)
"""Cut-off of the high-pass: 300 Hz is a telephone, 50 Hz a good microphone."""

BAND_HIGH_HZ = (3000.0, 7000.0)
"""Cut-off of the low-pass: 3.4 kHz is a telephone, 7 kHz wideband speech."""

BAND_ORDER = 4
"""Order of both slopes (24 dB per octave), as that of simple codecs."""

EQUALISER_DB = 8.0
"""Largest gain or loss of the equaliser in a band: what separates the microphones of common telephones."""

EQUALISER_HZ = (100.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)
"""Where the gains are drawn, an octave apart; between them they are interpolated over the logarithm of frequency."""

GAIN_DB = (-15.0, 9.0)
"""Distance and recording level; the upper end drives loud recordings into clipping, as happens."""

FLOOR_POWER = 1e-12
"""Mean square (-120 dBFS, below a 16-bit step) under which a signal cannot be set to a level relative to another."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a crop: with `probability`, one to `most` different `kinds` in turn, each equally likely.

    Attributes:
        probability: share of the crops that are augmented, 0 to 1.
        kinds: some of "noise" (coloured Gaussian noise or a file of `noise_dir`), "babble" (3 to 8 other utterances of
            the corpus), "reverb" (exponentially decaying noise as a room response, or a file of `rir_dir`), "band"
            (telephone-like band limits), "equaliser" (the tone of another microphone) and "gain" (level, with
            clipping).
        most: largest number of kinds in one crop, at least 1; how many is drawn uniformly.
        noise_dir: folder with noise recordings, searched with its sub-folders.
        rir_dir: folder with room impulse responses, searched with its sub-folders.
        sampling_rate: samples per second of the crops.

    Raises:
        ValueError: a value is out of range, or a folder has no audio.
    """

    probability: float = 0.6
    kinds: tuple[str, ...] = KINDS
    noise_dir: str | None = None
    rir_dir: str | None = None
    sampling_rate: int = SAMPLING_RATE
    most: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must lie between 0 and 1, got {self.probability}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {self.kinds}")
        if not 1 <= self.most <= len(self.kinds):
            raise ValueError(f"most must lie between 1 and the number of kinds, {len(self.kinds)}, got {self.most}")
        # Now, so that an empty folder is found before the training and not by a loader process.
        _ = self._noise_files, self._rir_files

    @cached_property
    def _noise_files(self) -> tuple[str, ...]:
        return _audio_files(self.noise_dir, "noise_dir")

    @cached_property
    def _rir_files(self) -> tuple[str, ...]:
        return _audio_files(self.rir_dir, "rir_dir")

    def __call__(
        self, waveform: np.ndarray, generator: np.random.Generator, sample_other: SampleOther | None = None
    ) -> np.ndarray:
        """Augment a crop, or return it as it is.

        Args:
            waveform: `(L,)` float32, `L >= 1`; it is not changed.
            generator: source of everything random.
            sample_other: draws other utterances of the corpus; needed for babble.

        Returns:
            `(L,)` float32.

        Raises:
            ValueError: babble is drawn and there is no `sample_other`.
            AudioError: a file of `noise_dir` or `rir_dir` cannot be read.
        """
        if generator.random() >= self.probability:
            return waveform
        count = int(generator.integers(1, self.most + 1))
        for place in generator.permutation(len(self.kinds))[:count]:
            waveform = self._apply(self.kinds[int(place)], waveform, generator, sample_other)
        return waveform

    def _apply(
        self, kind: str, waveform: np.ndarray, generator: np.random.Generator, sample_other: SampleOther | None
    ) -> np.ndarray:
        if kind == "noise":
            noise = self._noise(len(waveform), generator)
            return add_at_snr(waveform, noise, generator.uniform(*NOISE_SNR_DB))
        if kind == "babble":
            if sample_other is None:
                raise ValueError("babble mixes in other utterances: pass sample_other, or leave it out of kinds")
            noise = babble(len(waveform), generator, sample_other)
            return add_at_snr(waveform, noise, generator.uniform(*BABBLE_SNR_DB))
        if kind == "reverb":
            return reverberate(waveform, self._room_response(generator))
        if kind == "band":
            low, high = generator.uniform(*BAND_LOW_HZ), generator.uniform(*BAND_HIGH_HZ)
            return limit_band(waveform, low, high, self.sampling_rate)
        if kind == "equaliser":
            gains = generator.uniform(-EQUALISER_DB, EQUALISER_DB, len(EQUALISER_HZ))
            return equalise(waveform, gains, self.sampling_rate)
        gain = 10.0 ** (generator.uniform(*GAIN_DB) / 20.0)
        return np.clip(waveform * np.float32(gain), -1.0, 1.0)

    def _noise(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        if not self._noise_files:
            return coloured_noise(samples, generator.uniform(*NOISE_SLOPE), generator)
        return random_crop(self._read_one(self._noise_files, generator), samples, generator)

    def _room_response(self, generator: np.random.Generator) -> np.ndarray:
        if not self._rir_files:
            rt60, direct = generator.uniform(*REVERB_RT60_S), generator.uniform(*REVERB_DIRECT_DB)
            return room_response(rt60, direct, self.sampling_rate, generator)
        return self._read_one(self._rir_files, generator)

    def _read_one(self, files: tuple[str, ...], generator: np.random.Generator) -> np.ndarray:
        return read_audio(files[int(generator.integers(len(files)))], self.sampling_rate, min_duration=0.0)


def add_at_snr(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`waveform + noise` with the noise scaled so that their mean powers differ by `snr_db`.

    Args:
        waveform: `(L,)`.
        noise: `(L,)`.
        snr_db: signal-to-noise ratio in dB.

    Returns:
        `(L,)` float32; the waveform itself where it or the noise is silent.
    """
    signal_power, noise_power = _power(waveform), _power(noise)
    if min(signal_power, noise_power) < FLOOR_POWER:
        return waveform
    scale = math.sqrt(signal_power / noise_power * 10.0 ** (-snr_db / 10.0))
    return waveform + np.float32(scale) * noise.astype(np.float32, copy=False)


def coloured_noise(samples: int, slope: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise with the power spectrum `1 / f^slope`: `(samples,)` float32, of no particular level."""
    size = fast_fft_length(samples)
    bins = size // 2 + 1
    parts = generator.standard_normal((2, bins), dtype=np.float32)
    # Bin 0 gets the value of bin 1: 1/f has no value there.
    shape = np.maximum(np.arange(bins, dtype=np.float32), 1.0) ** np.float32(-slope / 2.0)
    return np.fft.irfft((parts[0] + 1j * parts[1]) * shape, size)[:samples].astype(np.float32, copy=False)


def babble(samples: int, generator: np.random.Generator, sample_other: SampleOther) -> np.ndarray:
    """The sum of 3 to 8 other utterances at equal power: `(samples,)` float32, of no particular level."""
    total = np.zeros(samples, dtype=np.float32)
    for _ in range(int(generator.integers(BABBLE_VOICES[0], BABBLE_VOICES[1] + 1))):
        voice = random_crop(sample_other(generator), samples, generator)
        power = _power(voice)
        if power >= FLOOR_POWER:
            total += voice / np.float32(math.sqrt(power))
    return total


def room_response(rt60: float, direct_db: float, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """A synthetic room: the direct sound, then Gaussian noise that decays by 60 dB in `rt60`.

    Args:
        rt60: seconds.
        direct_db: energy of the direct sound over that of the reverberation, dB.
        sampling_rate: samples per second.
        generator: source of the noise.

    Returns:
        `(round(rt60 * sampling_rate),)` float32 of unit energy, the direct sound first.
    """
    length = max(2, round(rt60 * sampling_rate))
    # Amplitude falls to 10^-3 over the length.
    decay = np.exp(np.linspace(0.0, -3.0 * math.log(10.0), length, dtype=np.float32))
    response = generator.standard_normal(length, dtype=np.float32) * decay
    response[: min(length - 1, 1 + round(REVERB_DELAY_S * sampling_rate))] = 0.0
    response *= np.float32(10.0 ** (-direct_db / 20.0) / math.sqrt(float(np.dot(response, response))))
    response[0] = 1.0
    return response / np.float32(math.sqrt(float(np.dot(response, response))))


def reverberate(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve with a room response, cut to the length of the waveform and set back to its level.

    Args:
        waveform: `(L,)`.
        response: `(R,)`, any level; its peak, the direct sound, is moved to the start so that nothing is delayed.

    Returns:
        `(L,)` float32; the waveform itself where it or the result is silent.
    """
    response = response[int(np.argmax(np.abs(response))) :][: len(waveform)]
    size = fast_fft_length(len(waveform) + len(response) - 1)
    spectrum = np.fft.rfft(waveform, size) * np.fft.rfft(response, size)
    wet = np.fft.irfft(spectrum, size)[: len(waveform)].astype(np.float32, copy=False)
    power, wet_power = _power(waveform), _power(wet)
    if min(power, wet_power) < FLOOR_POWER:
        return waveform
    return wet * np.float32(math.sqrt(power / wet_power))


def limit_band(waveform: np.ndarray, low_hz: float, high_hz: float, sampling_rate: int) -> np.ndarray:
    """Keep `low_hz` to `high_hz`, with the magnitude of 4th-order Butterworth slopes and no phase shift.

    Args:
        waveform: `(L,)`.
        low_hz: cut-off (-3 dB) of the high-pass, above 0.
        high_hz: cut-off (-3 dB) of the low-pass.
        sampling_rate: samples per second.

    Returns:
        `(L,)` float32.
    """
    size = fast_fft_length(len(waveform))
    hertz = np.arange(size // 2 + 1, dtype=np.float32) * np.float32(sampling_rate / size)
    # |H|^2 of both slopes. f^8 / (f^8 + low^8) has a value at 0 Hz, 1 / (1 + (low / f)^8) has none.
    low, high = (hertz / np.float32(low_hz)) ** 2, (hertz / np.float32(high_hz)) ** 2
    for _ in range(BAND_ORDER.bit_length() - 1):
        low, high = low * low, high * high
    gain = np.sqrt(low / (1.0 + low) / (1.0 + high))
    return np.fft.irfft(np.fft.rfft(waveform, size) * gain, size)[: len(waveform)].astype(np.float32, copy=False)


def equalise(waveform: np.ndarray, gains_db: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Raise and lower bands, without phase shift.

    Args:
        waveform: `(L,)`.
        gains_db: one for each frequency of `EQUALISER_HZ`; constant beyond the first and the last.
        sampling_rate: samples per second.

    Returns:
        `(L,)` float32.
    """
    size = fast_fft_length(len(waveform))
    hertz = np.arange(size // 2 + 1) * (sampling_rate / size)
    decibels = np.interp(np.log(np.maximum(hertz, EQUALISER_HZ[0])), np.log(EQUALISER_HZ), gains_db)
    gain = (10.0 ** (decibels / 20.0)).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(waveform, size) * gain, size)[: len(waveform)].astype(np.float32, copy=False)


@functools.lru_cache(maxsize=1024)
def fast_fft_length(samples: int) -> int:
    """The smallest length from `samples` up that is even and has no prime factor above 5, quick to transform."""
    best = 1 << max(1, (samples - 1).bit_length())
    for fives in (1, 5, 25, 125, 625):
        for threes in (1, 3, 9, 27, 81, 243):
            odd = fives * threes
            best = min(best, odd << max(1, (-(-samples // odd) - 1).bit_length()))
    return best


def _power(waveform: np.ndarray) -> float:
    return float(np.dot(waveform, waveform)) / len(waveform)


def _audio_files(folder: str | None, argument: str) -> tuple[str, ...]:
    if folder is None:
        return ()
    found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names if _is_audio(name)]
    if not found:
        raise ValueError(f"no audio in {argument} {Path(folder)}: expected files ending in {', '.join(AUDIO_SUFFIXES)}")
    return tuple(sorted(found))


def _is_audio(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
