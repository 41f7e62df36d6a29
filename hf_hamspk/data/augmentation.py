"""Augment waveforms without downloads: noise, babble, reverberation, band limits, codec, tone and gain.

One or several kinds are drawn per crop. All randomness comes from the generator that the caller passes, so the same
generator state gives the same result. Folders of recorded noises and room responses (MUSAN, RIRS_NOISES) replace the
generated ones if they are given.
"""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile as sf
import torch

from ..audio_hamspk import resample
from .audio import AUDIO_SUFFIXES, SAMPLING_RATE, import_torchaudio, read_utterance
from .crops import random_crop, wrap_pad

SampleOther = Callable[[np.random.Generator], np.ndarray]
"""Function that draws a waveform `(L,)` of another utterance of the training corpus."""

AUGMENTATION_KINDS = ("noise", "babble", "reverb", "band", "codec", "equaliser", "gain")
"""Kinds of augmentation that need no recordings."""

ALL_KINDS = (*AUGMENTATION_KINDS, "music")

NAMES_OF_SOURCES = ("noise_dir", "music_dir", "speech_dir", "rir_dir")

NOISE_SNR_DB = (5.0, 20.0)
"""Signal-to-noise ratio of generated noise in dB, from a busy street to a quiet office."""

RECORDED_NOISE_SNR_DB = (0.0, 15.0)
"""Signal-to-noise ratio of recorded noise in dB: the published range for MUSAN, whose noises mostly contain pauses."""

MUSIC_SNR_DB = (5.0, 15.0)
"""Signal-to-noise ratio of music in dB: the published range for MUSAN."""

NOISE_SLOPE = (0.0, 2.0)
"""Exponent of the noise's power spectrum 1/f^slope: 0 is white, 1 pink, 2 brown; rooms and traffic lie between."""

BABBLE_SNR_DB = (13.0, 20.0)
"""Signal-to-noise ratio of babble in dB: the published range. Louder babble would compete with the target speaker."""

BABBLE_VOICES = (3, 8)
"""Number of voices in babble: the published range. Fewer than 3 remain distinct; more than 8 sound like noise."""

REVERB_RT60_S = (0.1, 0.7)
"""Seconds in which the sound falls by 60 dB, from a furnished office to a lecture hall."""

REVERB_DIRECT_DB = (-3.0, 12.0)
"""Energy of the direct sound over the energy of the reverberation in dB, from across the room to arm's length."""

REVERB_DELAY_S = 0.002
"""Seconds between the direct sound and the first reflection, for a path that is 0.7 m longer."""

BAND_LOW_HZ = (50.0, 400.0)
"""Cut-off of the high-pass in Hz: 300 Hz is a telephone, 50 Hz a good microphone."""

BAND_HIGH_HZ = (3000.0, 7000.0)
"""Cut-off of the low-pass in Hz: 3.4 kHz is a telephone, 7 kHz wideband speech."""

BAND_ORDER = 4
"""Order of both filter slopes (24 dB per octave), as in simple codecs."""

TELEPHONE_HZ = (300.0, 3400.0)
"""Band of a telephone line in Hz."""

TELEPHONE_RATE = 8000
"""Sampling rate of G.711 in Hz."""

COMPANDING_LAWS = ("mu", "a")
"""Companding laws of G.711: mu-law in North America and Japan, A-law in the rest of the world."""

MU_LEVELS = 256
"""Number of levels of 8-bit mu-law."""

A_LAW = 87.6
"""Compression parameter of G.711's A-law."""

EQUALISER_DB = 8.0
"""Largest gain or loss of the equaliser in a band in dB: the difference between microphones of common telephones."""

EQUALISER_HZ = (100.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)
"""Frequencies in Hz at which gains are drawn. Between them, gains are interpolated over the logarithm of frequency."""

GAIN_DB = (-15.0, 9.0)
"""Gain in dB, for distance and recording level. The upper end clips loud recordings, as real recorders do."""

FLOOR_POWER = 1e-12
"""Mean square (-120 dBFS, below one 16-bit step) below which a signal counts as silent and is not scaled."""


class NoiseSource(Protocol):
    """Interface of a source of recordings for an augmentation. Draws depend on the generator only."""

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        """Return a random crop of a random recording, `(samples,)` float32. Short recordings are repeated.

        Raises:
            InputError: the recording cannot be read.
        """
        ...

    def whole(self, generator: np.random.Generator) -> np.ndarray:
        """Return a random recording, `(L,)` float32.

        Raises:
            InputError: the recording cannot be read.
        """
        ...


class NoiseFolder:
    """Audio files of a folder and its sub-folders, as a source of noise. Each file is equally likely.

    Args:
        folder: folder with the recordings.
        sampling_rate: sampling rate of the drawn waveforms in Hz.
        argument: name of the folder's argument in errors.

    Raises:
        ValueError: the folder contains no audio.
    """

    def __init__(self, folder: str | os.PathLike[str], sampling_rate: int = SAMPLING_RATE, argument: str = "folder"):
        found = [
            os.path.join(root, name) for root, _, names in os.walk(folder) for name in names if _is_noise_file(name)
        ]
        if not found:
            suffixes = ", ".join(AUDIO_SUFFIXES)
            raise ValueError(f"no audio in {argument} {Path(folder)}: expected files ending in {suffixes}")
        self.files = tuple(sorted(found))
        self.sampling_rate = sampling_rate

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        file = self._draw(generator)
        if not os.path.isfile(file):
            # A named pipe would be waited for.
            return random_crop(self._read(file), samples, generator)
        try:
            with sf.SoundFile(file) as sound:
                spare = sound.frames - samples
                if sound.samplerate == self.sampling_rate and spare > 0 and sound.seekable():
                    # A recording of MUSAN lasts minutes: only the crop is decoded.
                    sound.seek(int(generator.integers(spare + 1)))
                    crop = sound.read(samples, dtype="float32", always_2d=True).mean(axis=1)
                    if len(crop) == samples and np.isfinite(crop).all():
                        return crop
        except (sf.SoundFileError, OSError, TypeError, ValueError, RuntimeError):
            pass  # Decoding the whole file gives a better error.
        return random_crop(self._read(file), samples, generator)

    def whole(self, generator: np.random.Generator) -> np.ndarray:
        return self._read(self._draw(generator))

    def _draw(self, generator: np.random.Generator) -> str:
        return self.files[int(generator.integers(len(self.files)))]

    def _read(self, file: str) -> np.ndarray:
        return read_utterance(file, self.sampling_rate, min_duration=0.0).waveform


def _is_noise_file(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of a crop.

    With the given `probability`, 1 to `most` different `kinds` are applied one after the other. Each kind is equally
    likely.

    Example:
        ```python
        import numpy as np

        augment = Augmentation(probability=1.0, kinds=("noise", "reverb"), most=2)
        louder = augment(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), np.random.default_rng(1))
        ```

    Attributes:
        probability: share of the crops that are augmented, 0 to 1.
        kinds: kinds to draw from: "noise" (coloured Gaussian noise or a file of `noise_dir`), "music" (a file of
            `music_dir`), "babble" (3 to 8 other utterances of the corpus, or files of `speech_dir`), "reverb"
            (exponentially decaying noise as a room response, or a file of `rir_dir`), "band" (telephone-like band
            limits),
            "codec" (a telephone line: its band, 8 kHz and 8 bits by mu- or A-law), "equaliser" (the tone of another
            microphone) and "gain" (level, with clipping).
        noise_dir: folder with noise recordings, searched with its sub-folders, or another `NoiseSource`.
        rir_dir: folder with room impulse responses, or another `NoiseSource`.
        sampling_rate: sampling rate of the crops in Hz.
        most: largest number of kinds in one crop, at least 1. The number is drawn uniformly.
        music_dir: folder with music, or another `NoiseSource`.
        speech_dir: folder with voices for babble, or another `NoiseSource`.

    Raises:
        ValueError: a value is out of range, or a folder contains no audio.
    """

    probability: float = 0.6
    kinds: tuple[str, ...] = AUGMENTATION_KINDS
    noise_dir: str | NoiseSource | None = None
    rir_dir: str | NoiseSource | None = None
    sampling_rate: int = SAMPLING_RATE
    most: int = 1
    music_dir: str | NoiseSource | None = None
    speech_dir: str | NoiseSource | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must lie between 0 and 1, got {self.probability}")
        unknown = [kind for kind in self.kinds if kind not in ALL_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be some of {', '.join(ALL_KINDS)}, got {self.kinds}")
        if not 1 <= self.most <= len(self.kinds):
            raise ValueError(f"most must lie between 1 and the number of kinds, {len(self.kinds)}, got {self.most}")
        if "music" in self.kinds and self.music_dir is None:
            raise ValueError("music cannot be generated: give music_dir, or remove it from kinds")
        # Here, so that an empty folder is found before the training and not by a loader process.
        _ = self._sources

    @cached_property
    def _sources(self) -> dict[str, NoiseSource]:
        given = {name: getattr(self, name) for name in NAMES_OF_SOURCES}
        return {
            name: NoiseFolder(source, self.sampling_rate, name) if isinstance(source, (str, os.PathLike)) else source
            for name, source in given.items()
            if source is not None
        }

    def __call__(
        self, waveform: np.ndarray, generator: np.random.Generator, sample_other: SampleOther | None = None
    ) -> np.ndarray:
        """Augment a crop, or return it unchanged, as drawn.

        Args:
            waveform: float32 samples `(L,)` with `L >= 1`; the array is not changed.
            generator: random generator of all draws.
            sample_other: function that draws other utterances of the corpus. Babble needs it if there is no
                `speech_dir`.

        Returns:
            Float32 samples `(L,)`.

        Raises:
            ValueError: babble is drawn, but `sample_other` is missing.
            InputError: a recording of one of the sources cannot be read.
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
            range_db = RECORDED_NOISE_SNR_DB if "noise_dir" in self._sources else NOISE_SNR_DB
            return add_at_snr(waveform, noise, generator.uniform(*range_db))
        if kind == "music":
            noise = self._sources["music_dir"].crop(len(waveform), generator)
            return add_at_snr(waveform, noise, generator.uniform(*MUSIC_SNR_DB))
        if kind == "babble":
            noise = self._babble(len(waveform), generator, sample_other)
            return add_at_snr(waveform, noise, generator.uniform(*BABBLE_SNR_DB))
        if kind == "reverb":
            return reverberate(waveform, self._room_response(generator))
        if kind == "band":
            low, high = generator.uniform(*BAND_LOW_HZ), generator.uniform(*BAND_HIGH_HZ)
            return limit_band(waveform, low, high, self.sampling_rate)
        if kind == "codec":
            law = COMPANDING_LAWS[int(generator.integers(len(COMPANDING_LAWS)))]
            return telephone(waveform, law, self.sampling_rate)
        if kind == "equaliser":
            gains = generator.uniform(-EQUALISER_DB, EQUALISER_DB, len(EQUALISER_HZ))
            return equalise(waveform, gains, self.sampling_rate)
        gain = 10.0 ** (generator.uniform(*GAIN_DB) / 20.0)
        return np.clip(waveform * np.float32(gain), -1.0, 1.0)

    def _noise(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        if "noise_dir" not in self._sources:
            return coloured_noise(samples, generator.uniform(*NOISE_SLOPE), generator)
        return self._sources["noise_dir"].crop(samples, generator)

    def _babble(self, samples: int, generator: np.random.Generator, sample_other: SampleOther | None) -> np.ndarray:
        voices = self._sources.get("speech_dir")
        if voices is not None:
            return babble(samples, generator, lambda draws: voices.crop(samples, draws))
        if sample_other is None:
            raise ValueError(
                "babble mixes in other utterances: pass sample_other, give speech_dir, or leave it out of kinds"
            )
        return babble(samples, generator, sample_other)

    def _room_response(self, generator: np.random.Generator) -> np.ndarray:
        if "rir_dir" not in self._sources:
            rt60, direct = generator.uniform(*REVERB_RT60_S), generator.uniform(*REVERB_DIRECT_DB)
            return room_response(rt60, direct, self.sampling_rate, generator)
        return self._sources["rir_dir"].whole(generator)


def add_at_snr(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise to a waveform at a signal-to-noise ratio.

    Args:
        waveform: samples `(L,)`.
        noise: samples `(L,)`, which are scaled.
        snr_db: ratio of the mean powers in dB.

    Returns:
        Float32 samples `(L,)`; the waveform itself if it or the noise is silent.
    """
    signal_power, noise_power = _mean_square(waveform), _mean_square(noise)
    if min(signal_power, noise_power) < FLOOR_POWER:
        return waveform
    scale = math.sqrt(signal_power / noise_power * 10.0 ** (-snr_db / 10.0))
    return waveform + np.float32(scale) * noise.astype(np.float32, copy=False)


def coloured_noise(samples: int, slope: float, generator: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise with the power spectrum `1 / f^slope`: `(samples,)` float32. Its level is arbitrary."""
    size = fast_fft_length(samples)
    bins = size // 2 + 1
    parts = generator.standard_normal((2, bins), dtype=np.float32)
    # Bin 0 gets the value of bin 1: 1/f has no value there.
    shape = np.maximum(np.arange(bins, dtype=np.float32), 1.0) ** np.float32(-slope / 2.0)
    return np.fft.irfft((parts[0] + 1j * parts[1]) * shape, size)[:samples].astype(np.float32, copy=False)


def babble(samples: int, generator: np.random.Generator, sample_other: SampleOther) -> np.ndarray:
    """Return the sum of 3 to 8 other utterances at equal power: `(samples,)` float32. Its level is arbitrary."""
    total = np.zeros(samples, dtype=np.float32)
    for _ in range(int(generator.integers(BABBLE_VOICES[0], BABBLE_VOICES[1] + 1))):
        voice = random_crop(sample_other(generator), samples, generator)
        power = _mean_square(voice)
        if power >= FLOOR_POWER:
            total += voice / np.float32(math.sqrt(power))
    return total


def room_response(rt60: float, direct_db: float, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return a synthetic room response: the direct sound, then Gaussian noise that decays by 60 dB in `rt60`.

    Args:
        rt60: decay time in seconds.
        direct_db: energy of the direct sound over the energy of the reverberation, in dB.
        sampling_rate: sampling rate in Hz.
        generator: random generator of the noise.

    Returns:
        Float32 response `(round(rt60 * sampling_rate),)` of unit energy, which starts with the direct sound.
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
    """Convolve a waveform with a room response. Length and level of the waveform are kept.

    Args:
        waveform: samples `(L,)`.
        response: response `(R,)` of any level. Its peak, the direct sound, is moved to the start to avoid a delay.

    Returns:
        Float32 samples `(L,)`; the waveform itself if it or the result is silent.
    """
    response = response[int(np.argmax(np.abs(response))) :][: len(waveform)]
    size = fast_fft_length(len(waveform) + len(response) - 1)
    spectrum = np.fft.rfft(waveform, size) * np.fft.rfft(response, size)
    wet = np.fft.irfft(spectrum, size)[: len(waveform)].astype(np.float32, copy=False)
    power, wet_power = _mean_square(waveform), _mean_square(wet)
    if min(power, wet_power) < FLOOR_POWER:
        return waveform
    return wet * np.float32(math.sqrt(power / wet_power))


def limit_band(waveform: np.ndarray, low_hz: float, high_hz: float, sampling_rate: int) -> np.ndarray:
    """Limit a waveform to the band from `low_hz` to `high_hz`, with the slopes of a 4th-order Butterworth filter.

    The phase is not changed.

    Args:
        waveform: samples `(L,)`.
        low_hz: cut-off (-3 dB) of the high-pass in Hz, above 0.
        high_hz: cut-off (-3 dB) of the low-pass in Hz.
        sampling_rate: sampling rate in Hz.

    Returns:
        Float32 samples `(L,)`.
    """
    size = fast_fft_length(len(waveform))
    hertz = np.arange(size // 2 + 1, dtype=np.float32) * np.float32(sampling_rate / size)
    # |H|^2 of both slopes. f^8 / (f^8 + low^8) has a value at 0 Hz, 1 / (1 + (low / f)^8) has none.
    low, high = (hertz / np.float32(low_hz)) ** 2, (hertz / np.float32(high_hz)) ** 2
    for _ in range(BAND_ORDER.bit_length() - 1):
        low, high = low * low, high * high
    gain = np.sqrt(low / (1.0 + low) / (1.0 + high))
    return np.fft.irfft(np.fft.rfft(waveform, size) * gain, size)[: len(waveform)].astype(np.float32, copy=False)


def telephone(waveform: np.ndarray, law: str, sampling_rate: int) -> np.ndarray:
    """Simulate a telephone line: 300 to 3,400 Hz, 8,000 samples per second, 8 bits by G.711.

    Args:
        waveform: samples `(L,)`; samples beyond full scale are clipped.
        law: companding law, `"mu"` or `"a"`.
        sampling_rate: sampling rate in Hz.

    Returns:
        Float32 samples `(L,)`.

    Raises:
        ValueError: the law is unknown.
        ImportError: torchaudio cannot be imported.
    """
    if law not in COMPANDING_LAWS:
        raise ValueError(f"law must be one of {', '.join(COMPANDING_LAWS)}, got {law!r}")
    narrow = resample(limit_band(waveform, *TELEPHONE_HZ, sampling_rate), sampling_rate, TELEPHONE_RATE)
    narrow = np.clip(narrow, -1.0, 1.0)
    wide = resample(_mu_law(narrow) if law == "mu" else _a_law(narrow), TELEPHONE_RATE, sampling_rate)
    # The rounding of lengths can leave it a sample short.
    return wrap_pad(wide, len(waveform))[: len(waveform)]


def _mu_law(waveform: np.ndarray) -> np.ndarray:
    functional = import_torchaudio().functional
    codes = functional.mu_law_encoding(torch.from_numpy(waveform), MU_LEVELS)
    return functional.mu_law_decoding(codes, MU_LEVELS).numpy()


def _a_law(waveform: np.ndarray) -> np.ndarray:
    """Quantise to 128 levels of magnitude by the A-law, finest near zero, and expand again."""
    scale = 1.0 + math.log(A_LAW)
    size = np.abs(waveform)
    # Linear below 1/A, logarithmic above; the two meet at 1 / scale.
    coded = np.where(size < 1.0 / A_LAW, A_LAW * size, 1.0 + np.log(np.maximum(A_LAW * size, 1.0))) / scale
    coded = (np.minimum(np.floor(coded * 128.0), 127.0) + 0.5) / 128.0
    size = np.where(coded < 1.0 / scale, coded * scale, np.exp(coded * scale - 1.0)) / A_LAW
    return np.copysign(size, waveform).astype(np.float32)


def equalise(waveform: np.ndarray, gains_db: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Raise and lower frequency bands without changing the phase.

    Args:
        waveform: samples `(L,)`.
        gains_db: gain in dB at each frequency of `EQUALISER_HZ`; constant below the first and above the last.
        sampling_rate: sampling rate in Hz.

    Returns:
        Float32 samples `(L,)`.
    """
    size = fast_fft_length(len(waveform))
    hertz = np.arange(size // 2 + 1) * (sampling_rate / size)
    decibels = np.interp(np.log(np.maximum(hertz, EQUALISER_HZ[0])), np.log(EQUALISER_HZ), gains_db)
    gain = (10.0 ** (decibels / 20.0)).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(waveform, size) * gain, size)[: len(waveform)].astype(np.float32, copy=False)


@functools.lru_cache(maxsize=1024)
def fast_fft_length(samples: int) -> int:
    """Return the smallest even length of at least `samples` without a prime factor above 5, for a fast transform."""
    best = 1 << max(1, (samples - 1).bit_length())
    for fives in (1, 5, 25, 125, 625):
        for threes in (1, 3, 9, 27, 81, 243):
            odd = fives * threes
            best = min(best, odd << max(1, (-(-samples // odd) - 1).bit_length()))
    return best


def _mean_square(waveform: np.ndarray) -> float:
    return float(np.dot(waveform, waveform)) / len(waveform)
