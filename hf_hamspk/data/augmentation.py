"""Augment waveforms without downloads: noise, babble, reverberation, band limits, codec, equaliser and gain.

One or several kinds of augmentation are drawn for each crop. All random choices come from the generator that the caller
passes, so the same generator state gives the same result. Folders of recorded noises and room responses (such as MUSAN
and RIRS_NOISES) can replace the generated ones.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile as sf
import torch

from ..audio_hamspk import is_number, resample
from ..files.recordings import AUDIO_SUFFIXES, find_recordings
from .audio import SAMPLING_RATE, import_torchaudio, read_utterance
from .crops import random_crop, wrap_pad

SampleOther = Callable[[np.random.Generator], np.ndarray]
"""Function that draws a waveform `(L,)` of another utterance of the training corpus."""

AUGMENTATION_KINDS = ("noise", "babble", "reverb", "band", "codec", "equaliser", "gain")
"""Kinds of augmentation that need no recordings."""

ALL_KINDS = (*AUGMENTATION_KINDS, "music")

NAMES_OF_SOURCES = ("noise_dir", "music_dir", "speech_dir", "rir_dir")

NOISE_SNR_DB = (5.0, 20.0)
"""Range of the signal-to-noise ratio of generated noise in dB, from a busy street to a quiet office."""

RECORDED_NOISE_SNR_DB = (0.0, 15.0)
"""Range of the signal-to-noise ratio of recorded noise in dB, as published for MUSAN, whose noises contain pauses."""

MUSIC_SNR_DB = (5.0, 15.0)
"""Range of the signal-to-noise ratio of music in dB, as published for MUSAN."""

NOISE_SLOPE = (0.0, 2.0)
"""Range of the exponent in the power spectrum 1/f^slope of generated noise: 0 is white, 1 pink and 2 brown noise."""

BABBLE_SNR_DB = (13.0, 20.0)
"""Range of the signal-to-noise ratio of babble in dB, as published. Louder babble would mask the target speaker."""

BABBLE_VOICES = (3, 8)
"""Range of the number of voices in babble, as published. Fewer than 3 remain distinct. More than 8 sound like noise."""

REVERB_RT60_S = (0.1, 0.7)
"""Range of the time in seconds in which the sound decays by 60 dB, from a furnished office to a lecture hall."""

REVERB_DIRECT_DB = (-3.0, 12.0)
"""Range of the direct-to-reverberant energy ratio in dB, from the far side of a room to arm's length."""

REVERB_DELAY_S = 0.002
"""Seconds between the direct sound and the first reflection, whose path is 0.7 m longer."""

BAND_LOW_HZ = (50.0, 400.0)
"""Range of the cut-off of the high-pass in Hz. 300 Hz corresponds to a telephone, 50 Hz to a good microphone."""

BAND_HIGH_HZ = (3000.0, 7000.0)
"""Range of the cut-off of the low-pass in Hz. 3.4 kHz corresponds to a telephone, 7 kHz to wideband speech."""

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
"""Largest gain or loss of the equaliser in dB, about the difference between the microphones of common telephones."""

EQUALISER_HZ = (100.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0)
"""Frequencies in Hz at which gains are drawn. Between them, gains are interpolated over the logarithm of frequency."""

GAIN_DB = (-15.0, 9.0)
"""Range of the gain in dB, which simulates distance and recording level. High gains clip loud recordings."""

LEVEL_RANGE_DB = (-90.0, 0.0)
"""Accepted levels in dBFS. 16-bit audio contains nothing below -90 dBFS, and nothing is louder than 0 dBFS."""

INT16_SCALE = 32768.0
"""Integer value of full scale in 16-bit audio, as in soundfile."""

FLOOR_POWER = 1e-12
"""Mean square (-120 dBFS, less than one 16-bit step) below which a signal counts as silent and is not scaled."""


class NoiseSource(Protocol):
    """Interface of a source of recordings for an augmentation. All random choices depend on the generator only."""

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        """Return a random crop of a random recording, `(samples,)` float32. Short recordings are repeated.

        Raises:
            InputError: the recording cannot be read.
        """
        ...

    def whole(self, generator: np.random.Generator) -> np.ndarray:
        """Return a complete random recording, `(L,)` float32.

        Raises:
            InputError: the recording cannot be read.
        """
        ...


class NoiseFolder:
    """Source of noise that draws files from a folder and its sub-folders. Each file is equally likely.

    Args:
        folder: folder with the recordings.
        sampling_rate: sampling rate of the drawn waveforms in Hz.
        argument: name of the argument that set the folder, for errors.

    Raises:
        ValueError: the folder contains no audio.
    """

    def __init__(self, folder: str | os.PathLike[str], sampling_rate: int = SAMPLING_RATE, argument: str = "folder"):
        found = find_recordings(folder).files
        if not found:
            suffixes = ", ".join(AUDIO_SUFFIXES)
            raise ValueError(f"No audio in {argument} {Path(folder)}. Expected files ending in {suffixes}.")
        self.files = tuple(found)
        self.sampling_rate = sampling_rate

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        file = self._draw(generator)
        if not os.path.isfile(file):
            # Opening a named pipe would block. `_read` rejects it.
            return random_crop(self._read(file), samples, generator)
        try:
            with sf.SoundFile(file) as sound:
                spare = sound.frames - samples
                if sound.samplerate == self.sampling_rate and spare > 0 and sound.seekable():
                    # Recordings of MUSAN last minutes, so only the crop is decoded.
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


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of a crop.

    With the given `probability`, 1 to `most` different `kinds` are applied one after the other. Each kind is equally
    likely. If `level_range_db` is set, every crop, augmented or not, is finally scaled to a random level and rounded to
    16 bits, as a recording device would store it. Recordings for noise, music, babble and reverberation come from
    folders, which are searched with their sub-folders, or from objects that implement `NoiseSource`.

    Example:
        ```python
        import numpy as np

        augment = Augmentation(probability=1.0, kinds=("noise", "reverb"), most=2)
        waveform = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
        augmented = augment(waveform, np.random.default_rng(1))
        ```

    Attributes:
        probability: fraction of the crops that are augmented, in [0, 1].
        kinds: kinds to draw from: "noise" (a recording from `noise_dir`; coloured Gaussian noise if it is None),
            "music" (a recording from `music_dir`, required for this kind), "babble" (3 to 8 recordings from
            `speech_dir`; other utterances of the corpus if it is None), "reverb" (a room response from `rir_dir`;
            exponentially decaying noise if it is None), "band" (limits similar to the band of a telephone), "codec" (a
            telephone line with 8 kHz and 8-bit mu-law or A-law), "equaliser" (the frequency response of another
            microphone) and "gain" (another level, with clipping).
        noise_dir: folder of noise recordings, or a `NoiseSource`.
        rir_dir: folder of room impulse responses, or a `NoiseSource`.
        sampling_rate: sampling rate of the crops in Hz.
        most: largest number of kinds applied to one crop, at least 1. The number is drawn uniformly from 1 to `most`.
        music_dir: folder of music, or a `NoiseSource`.
        speech_dir: folder of voices for babble, or a `NoiseSource`.
        level_range_db: lowest and highest root mean square level of the crops in dBFS, which is drawn uniformly; None
            leaves the levels unchanged.

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
    level_range_db: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_level_range(self.level_range_db)
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must be between 0 and 1, got {self.probability}.")
        unknown = [kind for kind in self.kinds if kind not in ALL_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be some of {', '.join(ALL_KINDS)}, got {self.kinds}.")
        if not 1 <= self.most <= len(self.kinds):
            raise ValueError(f"most must be between 1 and {len(self.kinds)} (the number of kinds), got {self.most}.")
        if "music" in self.kinds and self.music_dir is None:
            raise ValueError("The kind music needs music_dir, got None. Set music_dir, or remove music from kinds.")
        # Opened here, so that an empty folder raises before training and not in a loader process.
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
        """Augment a crop with the given probability, and set its level if `level_range_db` is set.

        Args:
            waveform: float32 samples `(L,)` with `L >= 1`; the array is not changed.
            generator: random generator of all random choices.
            sample_other: function that draws other utterances of the corpus. Babble needs it if `speech_dir` is not
                set.

        Returns:
            Float32 samples `(L,)`.

        Raises:
            ValueError: babble is drawn, but neither `sample_other` nor `speech_dir` is set.
            InputError: a recording from `noise_dir`, `music_dir`, `speech_dir` or `rir_dir`, or another utterance of
                the corpus, cannot be read.
        """
        if generator.random() < self.probability:
            count = int(generator.integers(1, self.most + 1))
            for place in generator.permutation(len(self.kinds))[:count]:
                waveform = self._apply(self.kinds[int(place)], waveform, generator, sample_other)
        if self.level_range_db is not None:
            waveform = at_level(waveform, generator.uniform(*self.level_range_db))
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
                "The kind babble needs other voices. Pass sample_other, set speech_dir, or remove babble from kinds."
            )
        return babble(samples, generator, sample_other)

    def _room_response(self, generator: np.random.Generator) -> np.ndarray:
        if "rir_dir" not in self._sources:
            rt60, direct = generator.uniform(*REVERB_RT60_S), generator.uniform(*REVERB_DIRECT_DB)
            return room_response(rt60, direct, self.sampling_rate, generator)
        return self._sources["rir_dir"].whole(generator)


def check_level_range(range_db: Sequence[float] | None) -> None:
    """Raise ValueError unless `range_db` is None or contains two levels in dBFS, the lower one first."""
    if range_db is None:
        return
    lowest, highest = LEVEL_RANGE_DB
    numbers = len(range_db) == 2 and all(map(is_number, range_db))
    if not numbers or not lowest <= range_db[0] <= range_db[1] <= highest:
        raise ValueError(
            f"level_range_db must be two levels from {lowest:g} to {highest:g} dBFS, the lower one first, got "
            f"{list(range_db)}. Usual values are -70 and -20."
        )


def at_level(waveform: np.ndarray, level_db: float) -> np.ndarray:
    """Scale a waveform to a root mean square level, round it to 16 bits, and clip peaks beyond full scale.

    Args:
        waveform: samples `(L,)`.
        level_db: level in dBFS.

    Returns:
        Float32 samples `(L,)`. The waveform is returned unchanged if it is silent.
    """
    power = _mean_square(waveform)
    if power < FLOOR_POWER:
        return waveform
    steps = np.rint(waveform * np.float32(INT16_SCALE * 10.0 ** (level_db / 20.0) / math.sqrt(power)))
    return (np.clip(steps, -INT16_SCALE, INT16_SCALE - 1) / INT16_SCALE).astype(np.float32)


def add_at_snr(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise to a waveform at a signal-to-noise ratio.

    Args:
        waveform: samples `(L,)`.
        noise: samples `(L,)` of any level.
        snr_db: ratio of the mean powers of waveform and noise in dB.

    Returns:
        Float32 samples `(L,)`. The waveform is returned unchanged if it or the noise is silent.
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
    # 1/f is undefined at 0 Hz, so bin 0 gets the value of bin 1.
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
    """Return a synthetic room response: the direct sound, followed by Gaussian noise that decays by 60 dB in `rt60`.

    Args:
        rt60: decay time in seconds.
        direct_db: ratio of the energy of the direct sound to the energy of the reverberation, in dB.
        sampling_rate: sampling rate in Hz.
        generator: random generator of the noise.

    Returns:
        Float32 response `(round(rt60 * sampling_rate),)` of unit energy, which starts with the direct sound.
    """
    length = max(2, round(rt60 * sampling_rate))
    # The amplitude falls to 10^-3 (-60 dB) at the end.
    decay = np.exp(np.linspace(0.0, -3.0 * math.log(10.0), length, dtype=np.float32))
    response = generator.standard_normal(length, dtype=np.float32) * decay
    response[: min(length - 1, 1 + round(REVERB_DELAY_S * sampling_rate))] = 0.0
    response *= np.float32(10.0 ** (-direct_db / 20.0) / math.sqrt(float(np.dot(response, response))))
    response[0] = 1.0
    return response / np.float32(math.sqrt(float(np.dot(response, response))))


def reverberate(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve a waveform with a room response. The length and the level of the waveform do not change.

    Args:
        waveform: samples `(L,)`.
        response: response `(R,)` of any level. Its peak, the direct sound, is moved to the start to avoid a delay.

    Returns:
        Float32 samples `(L,)`. The waveform is returned unchanged if it or the result is silent.
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
    # |H|^2 of both slopes. The form f^8 / (f^8 + low^8) is defined at 0 Hz, 1 / (1 + (low / f)^8) is not.
    low, high = (hertz / np.float32(low_hz)) ** 2, (hertz / np.float32(high_hz)) ** 2
    for _ in range(BAND_ORDER.bit_length() - 1):
        low, high = low * low, high * high
    gain = np.sqrt(low / (1.0 + low) / (1.0 + high))
    return np.fft.irfft(np.fft.rfft(waveform, size) * gain, size)[: len(waveform)].astype(np.float32, copy=False)


def telephone(waveform: np.ndarray, law: str, sampling_rate: int) -> np.ndarray:
    """Simulate a telephone line: a band of 300 to 3,400 Hz, 8,000 samples per second and 8-bit companding by G.711.

    Args:
        waveform: samples `(L,)`. Samples beyond full scale are clipped.
        law: companding law, `"mu"` or `"a"`.
        sampling_rate: sampling rate in Hz.

    Returns:
        Float32 samples `(L,)`.

    Raises:
        ValueError: the law is unknown.
        ImportError: torchaudio cannot be imported.
    """
    if law not in COMPANDING_LAWS:
        raise ValueError(f"law must be one of {', '.join(COMPANDING_LAWS)}, got {law!r}.")
    narrow = resample(limit_band(waveform, *TELEPHONE_HZ, sampling_rate), sampling_rate, TELEPHONE_RATE)
    narrow = np.clip(narrow, -1.0, 1.0)
    wide = resample(_mu_law(narrow) if law == "mu" else _a_law(narrow), TELEPHONE_RATE, sampling_rate)
    # Because lengths are rounded, the result can be one sample too short.
    return wrap_pad(wide, len(waveform))[: len(waveform)]


def _mu_law(waveform: np.ndarray) -> np.ndarray:
    functional = import_torchaudio().functional
    codes = functional.mu_law_encoding(torch.from_numpy(waveform), MU_LEVELS)
    return functional.mu_law_decoding(codes, MU_LEVELS).numpy()


def _a_law(waveform: np.ndarray) -> np.ndarray:
    """Compress samples by the A-law, quantise them to 128 levels of magnitude, and expand them again."""
    scale = 1.0 + math.log(A_LAW)
    size = np.abs(waveform)
    # The curve is linear below 1/A and logarithmic above. The two parts meet at 1 / scale.
    coded = np.where(size < 1.0 / A_LAW, A_LAW * size, 1.0 + np.log(np.maximum(A_LAW * size, 1.0))) / scale
    coded = (np.minimum(np.floor(coded * 128.0), 127.0) + 0.5) / 128.0
    size = np.where(coded < 1.0 / scale, coded * scale, np.exp(coded * scale - 1.0)) / A_LAW
    return np.copysign(size, waveform).astype(np.float32)


def equalise(waveform: np.ndarray, gains_db: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Amplify and attenuate frequency bands without changing the phase.

    Args:
        waveform: samples `(L,)`.
        gains_db: gain in dB at each frequency of `EQUALISER_HZ`. The gain is constant below the first and above the
            last frequency.
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
    """Return the smallest even FFT length that is at least `samples` and has no prime factor above 5."""
    best = 1 << max(1, (samples - 1).bit_length())
    for fives in (1, 5, 25, 125, 625):
        for threes in (1, 3, 9, 27, 81, 243):
            odd = fives * threes
            best = min(best, odd << max(1, (-(-samples // odd) - 1).bit_length()))
    return best


def _mean_square(waveform: np.ndarray) -> float:
    return float(np.dot(waveform, waveform)) / len(waveform)
