"""Functions that read, check and resample recordings, and measure how much speech they contain.

`read_sound` reads complete recordings for training, evaluation, the commands, the pipeline and the endpoint. (Random
crops are decoded in `shards/` and `data/`.) It decodes block by block, enforces limits on the decoded samples, and does
not rely on the header. It raises an `InputError` for input that cannot be used.

Resampling is windowed-sinc interpolation with the default filter of `torchaudio.functional.resample`. It needs only
NumPy, so a model gives the same results without torchaudio, and its memory use does not depend on the sampling rates.

`measure_speech` detects speech by two properties of a frame. The level of several frequency bands is far above the
quietest frames of the recording, which excludes silence, hum, tones and steady noise. The frame is also as periodic as
a voice, which excludes clicks, knocks and hiss. Consonants and short pauses next to voiced frames count as speech.
Without voiced frames, a level that rises for 0.1 s and more with a changing spectrum counts as whispering. Singing,
babble, other periodic sounds of varying level, and noises that change like whispering are mistaken for speech. Speech
below the noise level is not detected.

Symbols in shapes: `L` samples, `N` samples after resampling, `K` filter taps, `C` channels, `T` frames, `F` bins.
"""

import io
import math
import os
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

try:
    import soundfile
except (ImportError, OSError):
    # Arrays can be used without a decoder.
    soundfile = None
try:
    import av
    import av.error
except (ImportError, OSError):
    # Needed for AAC and WebM only.
    av = None

# Duration of the shortest utterance, ten frames: a shorter one says too little about the speaker.
SHORTEST_SECONDS = 0.1
# Difference of the largest and smallest sample below which a recording is silent; a step of 16-bit audio is 3.05e-5.
SILENCE_SPAN = 2e-5
# Zero crossings of the sinc on each side, and the cut-off frequency relative to half the lower sampling rate.
LOWPASS_WIDTH, ROLLOFF = 6, 0.99
# Number of values that are decoded or resampled at once: 1 MiB of float32.
BLOCK_VALUES = 1 << 18
# Least number of output samples with the same taps for which one call per set of taps is the fastest.
SHARED_TAPS = 128
# Range of sampling rates in Hz. Lower rates remove the differences between voices; higher rates are mistakes.
LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
# Largest number of channels, enough for microphone arrays.
MOST_CHANNELS = 32
# Largest float sample. Some recordings exceed 1 a little; 16-bit samples converted to float exceed it by far.
LOUDEST = 16.0
# Full scale of integer samples of each type.
INTEGER_SCALE = {"int16": 1 << 15, "int32": 1 << 31}
# A file with less than this share of its declared samples is truncated; MP3 headers may be wrong by two frames (72 ms).
DECODED_SHARE = 0.9
# Longest wait in seconds for the next bytes of a URL, and longest time for the whole file, redirects included.
FETCH_SECONDS, LONGEST_FETCH = 20.0, 120.0
# A WAV header with at least this many frames (as reported by libsndfile) or bytes declares no length. At most this many
# chunks may precede the samples.
UNKNOWN_FRAMES, UNKNOWN_SIZE, MOST_CHUNKS = 1 << 62, 0x7FFFFFFF, 64
# Samples in the longest frame of AAC (HE-AAC); the encoder pads the last frame.
AAC_FRAME = 2048
AV_CONTAINERS = {b"\x1a\x45\xdf\xa3": "matroska", b"\x30\x26\xb2\x75": "asf", b"#!AM": "amr"}
# A channel is silent (or only crosstalk) below this power relative to the loudest one (-40 dB). Channels are alike if
# the power of their mean is at least this share of their mean power (1 if they are equal, 1/2 if two are unrelated).
SILENT_CHANNEL, ALIKE_CHANNELS = 1e-4, 0.75
# Number of each named channel; 0 is the mean of all channels.
CHANNELS = {"mean": 0, "left": 1, "right": 2}
Channel = str | int | None
# Below this level in dBFS of the loudest second (without its mean), the embeddings of filter banks depend on the level.
# Up to this power, a recording consists of rounding errors and is digital silence; any 16-bit signal has more power.
QUIET_DB, SILENT_POWER = -45.0, 1e-14
# Seconds of speech below which no decision is made by default; see `verification_hamspk`.
MINIMUM_SPEECH = 1.0
# Range of signal-to-noise ratios in dB: below it speech is not detected, above it 16-bit audio has too few bits.
LOWEST_SNR_DB, HIGHEST_SNR_DB = -10.0, 60.0
# Level in dBFS reported for digital silence, less than the smallest step of 16-bit audio.
LOWEST_LEVEL_DB = -120.0
# Length and step of the frames: 50 ms contain three periods of a voice of 67 Hz, and a step of 10 ms is usual.
FRAME_SECONDS, HOP_SECONDS = 0.05, 0.01
# Length of zero-padded frames, so that the autocorrelation does not wrap at lags up to 30 ms; bins are 12.5 Hz apart.
SPECTRUM_SECONDS = 0.08
# Longest block for which one noise floor is measured, so that the floor follows changes of the background noise.
BLOCK_SECONDS = 20.0
# Bands of equal width up to the limit of telephone speech, which every sampling rate of at least 8 kHz contains.
LOWEST_HZ, HIGHEST_HZ, BAND_HZ = 100.0, 3700.0, 200.0
# Share of frames that define the noise floor (about a tenth of continuous speech is pauses and closures), and mean
# level of steady noise above that quantile, in bands of 200 Hz and frames of 50 ms.
FLOOR_QUANTILE, FLOOR_BIAS_DB = 0.1, 2.5
# A frame has risen if at least 4 bands are 8 dB above the floor. Vowels exceed this by far, steady noise does not (its
# standard deviation is 2 dB in each band). Bands 30 dB below the loudest one may contain leakage and do not count.
RISE_DB, RISEN_BANDS, RANGE_DB = 8.0, 4, 30.0
# Quantisation noise of 16-bit audio in dBFS: levels below it are never counted as risen.
QUANTISATION_DB = -98.0
# Range of the pitch of voices, and the frequencies used to detect it, which telephones transmit.
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 65.0, 420.0
VOICE_LOWEST_HZ, VOICE_HIGHEST_HZ = 100.0, 1600.0
# Width of the moving average that flattens the spectrum, larger than the distance between harmonics.
ENVELOPE_HZ = 500.0
# Power relative to the quietest frames up to which sound is treated as noise or hum and does not count as periodic.
STEADY_FACTOR = 3.0
# Constant that keeps quotients of powers finite, far less than the square of any sample.
SMALLEST_POWER = 1e-30
# Peak of the autocorrelation, relative to lag 0, from which a frame is voiced, and least number of consecutive voiced
# frames in a syllable; two clicks within one frame produce fewer.
VOICED_PEAK, SHORTEST_VOICED = 0.4, 5
# Distance from a voiced frame within which all frames are speech (half a consonant), or risen frames (some consonants).
CARRIED_SECONDS, REACH_SECONDS = 0.05, 0.25
# Detectors of speech: as in version 0.1.0, voiced speech only; voiced and whispered speech; a function of the caller.
VOICED, VOICED_OR_WHISPERED, CUSTOM = "voiced", "voiced or whispered", "custom"
DETECTORS = (VOICED, VOICED_OR_WHISPERED, CUSTOM)
Vad = Callable[[np.ndarray, int], Any] | str | None
# Least number of consecutive risen frames in whispering; one click raises the level of five.
SHORTEST_WHISPER = 10
# Number of frames over which the spectrum is averaged, and its least standard deviation over time in dB: bursts of
# noise have 1.3 dB, whispering 4 dB and more.
SMOOTHED_FRAMES, CHANGE_DB = 5, 3.0
# Longest pause that belongs to fluent speech, such as the closure of a plosive or a breath between words.
LONGEST_PAUSE = 0.3
# Seconds of a recording that are measured to weight its pieces; this bounds the computation for recordings of hours.
MOST_WEIGHED = 600.0
# Least number of consecutive equal samples, at the largest or smallest value, that indicates clipping, and the share of
# clipped samples from which there is a warning; unclipped speech has almost none.
CLIPPED_RUN, CLIPPED_SHARE = 3, 1e-3


def plain_number(value: Any) -> Any:
    """Return a scalar of NumPy or torch, or an array of dimension 0, as a Python number; other values unchanged."""
    is_scalar = isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0
    return value.item() if is_scalar else value


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number of Python, NumPy or torch, and not a bool."""
    value = plain_number(value)
    try:
        return isinstance(value, int | float | np.floating) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # The integer is too large for a float.
        return False


class InputError(ValueError):
    """Error for invalid input. The message is safe to show to the caller: its only paths are from the caller.

    Attributes:
        reason: description of the problem, without the name of the input.
        name: name of the input in the message; "" if it has none.
    """

    # PyTorch re-raises the exception of a worker by calling its class with one positional argument, the message.
    def __init__(self, reason: str, name: str = ""):
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason
        self.name = name


class MissingDecoderError(InputError, ImportError):
    """Error for audio that cannot be decoded because a package is not installed."""


@dataclass(frozen=True)
class Limits:
    """Limits on one recording.

    Example:
        ```python
        limits = Limits(seconds=60, remote=False)
        ```

    Attributes:
        seconds: length of the longest recording in seconds.
        size: size of the largest file in bytes.
        values: largest number of decoded samples times channels.
        remote: whether URLs and paths are accepted; False accepts only bytes, arrays, open files and decoders.

    Raises:
        InputError: a limit has the wrong type or is not positive.
    """

    seconds: float = 600.0
    size: int = 256 << 20
    values: int = 1 << 27
    remote: bool = True

    def __post_init__(self) -> None:
        if not is_number(self.seconds) or self.seconds <= 0:
            raise InputError(f"limits: seconds must be a positive finite number, got {_short(repr(self.seconds))}.")
        for name, unit in {"size": "bytes", "values": "samples times channels"}.items():
            value = getattr(self, name)
            if not is_number(value) or value != int(value) or value < 1:
                raise InputError(f"limits: {name} ({unit}) must be an integer above 0, got {_short(repr(value))}.")
        if not isinstance(self.remote, bool):
            raise InputError(f"limits: remote must be True or False, got {_short(repr(self.remote))}.")


def make_limits(limits: Any) -> Limits:
    """Return limits given as `Limits`, a dictionary of its fields, or None; raise an `InputError` if one is invalid."""
    # `isinstance` would fail: an installed package and the code in a model's folder have different `Limits` classes.
    if hasattr(limits, "remote"):
        return limits
    try:
        return Limits(**({} if limits is None else limits))
    except TypeError as error:
        given = _short(repr(limits))
        raise InputError(f"limits must be a dictionary of seconds, size, values and remote, got {given}.") from error


@dataclass(frozen=True)
class _ChannelLimits(Limits):
    """Limits that also contain the number of the channel to read, from 1; 0 averages all channels without a warning."""

    channel: int = 0


def choose_channel(limits: Any, channel: Channel) -> Limits:
    """Return limits with which `read_sound` reads one channel, or the limits unchanged if `channel` is None."""
    limits = make_limits(limits)
    if channel is None:
        return limits
    number = CHANNELS.get(channel) if isinstance(channel, str) else channel if is_number(channel) and channel else None
    if number is None or number not in range(MOST_CHANNELS + 1):
        given = _short(repr(channel))
        raise InputError(f"channel must be 'left', 'right', 'mean' or a number from 1 to {MOST_CHANNELS}, got {given}.")
    return _ChannelLimits(**{name: getattr(limits, name) for name in vars(Limits())}, channel=int(number))


@dataclass(frozen=True)
class Sound:
    """Recording with one channel of finite samples, as returned by `read_sound`.

    Attributes:
        waveform: float32 samples `(L,)` with full scale 1.
        sampling_rate: sampling rate of the waveform in Hz.
        warnings: sentences about problems of the recording.
    """

    waveform: np.ndarray
    sampling_rate: int
    warnings: list[str] = field(default_factory=list)

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return len(self.waveform) / self.sampling_rate


def read_sound(
    source: Any,
    rate: int | None,
    label: str = "The recording",
    limits: Limits | Mapping[str, Any] | None = None,
    source_rate: int | None = None,
    strict: bool = False,
    min_duration: float = SHORTEST_SECONDS,
    channel: Channel = None,
) -> Sound:
    """Decode a recording, choose or average its channels, and resample it.

    soundfile decodes WAV, FLAC, OGG, Opus, MP3, AIFF and other formats. PyAV, if installed, decodes AAC (m4a, mp4,
    aac), Matroska, WebM, WMA and AMR. The format is determined by the first bytes of a file, not by its name.

    Without the source, the memory use is at most 8 bytes per sample of the averaged waveform before resampling, plus
    4 bytes per sample of the result, plus 40 MB.

    Args:
        source: path, URL, bytes of an audio file, open binary file, array or tensor `(L,)`, `(C, L)` or `(L, C)`,
            decoder of torchcodec, or dictionary with "array" (or "raw") and "sampling_rate", or with "bytes" or "path",
            as in `datasets`. Samples are floating point in [-1, 1], or integers of 16 or 32 bits.
        rate: sampling rate of the result in Hz; None keeps the rate of the recording.
        label: name of the recording in messages, for example "The test", or its path.
        limits: limits on the recording, a `Limits` or a dictionary with some of its fields; None for its defaults.
        source_rate: sampling rate in Hz of arrays that have none; None assumes `rate`, with a warning.
        strict: whether to raise an error if the recording is truncated, silent, or shorter than `min_duration`. False
            returns such recordings, with a warning about truncated ones.
        min_duration: shortest accepted duration in seconds; used only if `strict` is True.
        channel: channel to read: "left", "right", or its number, counted from 1. "mean" averages all channels. None
            averages them as well, and adds a warning if they differ.

    Raises:
        InputError: the source is not a recording, cannot be used, lacks the channel, or does not fit into memory.
        MissingDecoderError: soundfile or PyAV is required but not installed.
    """
    limits = choose_channel(limits, channel)
    warnings: list[str] = []
    try:
        mixdown = _read(source, rate if source_rate is None else source_rate, limits)
        if source_rate is None and _lacks_rate(source):
            warnings.append(f"{label} has no sampling rate, so {rate} Hz was assumed. Give sampling_rate.")
        waveform, found = mixdown.waveform(label, warnings, min_duration if strict else None), mixdown.rate
        rate = found if rate is None else rate
        if found < rate:
            missing = f"frequencies above {found / 2000:g} kHz are missing"
            warnings.append(f"{label} was sampled at {found} Hz, but the model expects {rate} Hz: {missing}.")
        return Sound(resample(waveform, found, rate), rate, warnings)
    except InputError as error:  # The functions below raise errors without a name.
        raise type(error)(error.reason, _input_name(source, label)) from error.__cause__
    except MemoryError:
        said = "needs more memory than this process can get; cut it into shorter files"
        raise InputError(said, _input_name(source, label)) from None


def _input_name(source: Any, label: str) -> str:
    """Return the name of a recording in error messages: its label, with the path or URL if there is one."""
    if isinstance(source, Mapping):
        source = source.get("path") if all(source.get(key) is None for key in ("array", "raw", "bytes")) else None
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    return f"{label} {_short(path)}" if isinstance(path, str) and path != label and path.isprintable() else label


class _Mixdown:
    """Object that collects the decoded blocks of a recording, averages their channels and checks the limits.

    `promised` is the number of samples per channel that the header declares (0 if unknown). `filler` is the largest
    number of samples per channel that the encoder may have appended to the recording.
    """

    def __init__(self, rate: Any, channels: int, promised: int, limits: Limits, filler: int = 0):
        self.rate, self.limits, self.filler = check_rate(rate), limits, filler
        if not 0 < channels <= MOST_CHANNELS:
            raise InputError(f"has {channels} channels; expected 1 to {MOST_CHANNELS}. Is the file damaged?")
        self.channel: int | None = getattr(limits, "channel", None)
        if self.channel is not None and self.channel > channels:
            raise InputError(f"has {channels} channels, but not channel {self.channel}. Choose another channel")
        # Numbers of channels of the recording, and of channels that are averaged.
        self.channels, self.averaged = channels, 1 if self.channel else channels
        self.promised = 0 if promised >= UNKNOWN_FRAMES else promised
        self.most = min(math.floor(limits.seconds * self.rate), limits.values // channels)
        self.blocks: list[np.ndarray] = []
        self.frames, self.bad, self.loudest = 0, 0, 0.0
        # Sums of products of channels, from which `_channels_differ` computes the power of their mean.
        self.products = np.zeros((self.averaged, self.averaged))
        if self.promised > self.most:
            raise self._too_long(self.promised)

    def add(self, samples: np.ndarray) -> None:
        """Add a block `(L, C)` of float32 samples."""
        self.frames += len(samples)
        if self.frames > self.most + self.filler:
            raise self._too_long(self.frames)
        if not len(samples):
            return
        if self.channel:
            samples = np.ascontiguousarray(samples[:, self.channel - 1 : self.channel])
        extreme = max(float(samples.max()), -float(samples.min()))
        if not math.isfinite(extreme):
            self.bad += samples.size - int(np.count_nonzero(np.isfinite(samples)))
            return
        self.loudest = max(self.loudest, extreme)
        if self.loudest > LOUDEST:  # The recording is refused, and products of its samples could overflow.
            return
        if self.averaged == 1:
            self.blocks.append(samples[:, 0])
            return
        # A contiguous copy of each channel makes these sums several times faster.
        planes = np.ascontiguousarray(samples.T)
        self.products += planes @ planes.T
        self.blocks.append(planes.mean(axis=0))

    def waveform(self, label: str, warnings: list[str], min_duration: float | None) -> np.ndarray:
        """Return the recording as finite float32 samples `(L,)`, and append sentences about problems to `warnings`.

        If `min_duration` is given, the recording must not be truncated, silent or shorter (in seconds).
        """
        if self.frames < DECODED_SHARE * self.promised:
            declared, decoded = self.promised / self.rate, self.frames / self.rate
            said = f"is cut short: its header declares {declared:.1f} s, but only {decoded:.1f} s were decoded"
            if min_duration is not None:
                raise InputError(f"{said}; copy it again")
            warnings.append(f"{label} {said}.")
        if self.bad:
            said = f"contains NaN or infinite samples ({self.bad} of {self.frames * self.averaged})"
            raise InputError(f"{said}; convert it again from the original")
        if self.loudest > LOUDEST:
            said = f"contains samples up to {self.loudest:.4g}; expected floating point in [-1, 1]"
            raise InputError(f"{said}. Divide 16-bit audio by 32768")
        waveform = np.concatenate(self.blocks) if self.blocks else np.zeros(0, np.float32)
        self.blocks = []
        if 0 < self.promised < len(waveform) < self.promised + self.filler:
            waveform = waveform[: self.promised]
        if min_duration is not None:
            require_sound(waveform, self.rate, "", min_duration, self.averaged)
        if self.channel is None and self._channels_differ():
            warnings.append(
                f"{label} has different channels, which were averaged. If they are of different people or microphones, "
                "choose one with channel (--channel): left, right or a number. Choose mean to average all."
            )
        seconds = np.array_split(waveform, max(1, math.ceil(len(waveform) / self.rate)))
        second = max((part for part in seconds if len(part)), key=np.var, default=np.zeros(1))
        power = float(np.var(second, dtype=np.float64))
        if SILENT_POWER < power < 10 ** (QUIET_DB / 10):
            warnings.append(
                f"{label} is too quiet: its loudest second is at {10 * math.log10(power):.0f} dBFS. Embeddings depend "
                f"on the level below {QUIET_DB:g} dBFS. Record at a higher level."
            )
        if (clipped := _clipped_share(waveform)) >= CLIPPED_SHARE:
            warnings.append(f"{label} is clipped in {clipped:.1%} of its samples. Record at a lower level.")
        # Resampling and compression hide clipped samples. Of 1,000 natural recordings, none has this much power.
        elif power > SILENT_POWER and power > float(np.quantile(np.abs(second - second.mean()), 0.98)) ** 2 / 3:
            warnings.append(f"{label} is clipped or distorted: its level is near its peak. Record at a lower level.")
        return waveform

    def _channels_differ(self) -> bool:
        """Return whether the audible channels are dissimilar or cancel each other."""
        power = np.diag(self.products)
        audible = power >= SILENT_CHANNEL * power.max()
        power_of_mean = float(self.products[np.ix_(audible, audible)].mean())
        return power_of_mean < ALIKE_CHANNELS * float(power[audible].mean())

    def _too_long(self, frames: int) -> InputError:
        seconds, limits = frames / self.rate, self.limits
        if seconds > limits.seconds:
            said = f"lasts {seconds:.0f} s; expected at most {limits.seconds:g} s. Give an excerpt; a minute is enough"
            return InputError(said)
        said = f"lasts {seconds:.0f} s or more in {self.channels} channels; expected at most {limits.values} samples"
        return InputError(f"{said} in all channels. Cut it into utterances")


def require_sound(
    waveform: np.ndarray, rate: int, name: str, min_duration: float = SHORTEST_SECONDS, channels: int = 1
) -> None:
    """Raise an `InputError` if a waveform `(L,)` is empty, shorter than `min_duration` seconds, or silent."""
    if not len(waveform):
        raise InputError("is empty (0 samples); record it again or remove it", name)
    if len(waveform) < round(min_duration * rate):
        seconds = len(waveform) / rate
        raise InputError(f"lasts {seconds:.3g} s; expected at least {min_duration:g} s. Remove it", name)
    if float(waveform.max()) - float(waveform.min()) < SILENCE_SPAN:
        averaged = "" if channels == 1 else f" after averaging its {channels} channels"
        said = f"holds no sound{averaged} (every sample is {waveform[0]:g}); check the recording or remove it"
        raise InputError(said, name)


def _read(source: Any, array_rate: Any, limits: Limits) -> _Mixdown:
    if isinstance(source, Mapping):
        return _read_mapping(source, array_rate, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), limits)
    if isinstance(source, str | os.PathLike):
        return _read_path(os.fspath(source), limits)
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return _read_array(source, array_rate, limits)
    if hasattr(source, "get_all_samples"):
        return _read_decoder(source, limits)
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        try:
            content = source.read(limits.size + 1)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read from the file object ({error}). Is the file open?") from error
        if isinstance(content, bytes):
            return _decode(io.BytesIO(content), limits)
    raise InputError(
        f"is of type {type(source).__name__}; expected a path, a URL, bytes, a file opened in binary mode, an array, "
        'or a dictionary with "array" and "sampling_rate", or with "bytes" or "path"'
    )


def _lacks_rate(source: Any) -> bool:
    if isinstance(source, Mapping):
        return "sampling_rate" not in source and any(source.get(key) is not None for key in ("array", "raw"))
    return isinstance(source, np.ndarray | torch.Tensor)


def _read_mapping(source: Mapping, array_rate: Any, limits: Limits) -> _Mixdown:
    for key in ("array", "raw"):
        if source.get(key) is not None:
            return _read_array(source[key], source.get("sampling_rate", array_rate), limits)
    kinds = {"bytes": (bytes, "the bytes of an audio file"), "path": (str | os.PathLike, "a path")}
    for key, (kind, expected) in kinds.items():
        if source.get(key) is not None:
            if isinstance(source[key], kind):
                return _read(source[key], array_rate, limits)
            raise InputError(f"has {type(source[key]).__name__} under the key {key!r}; expected {expected}")
    keys = ", ".join(map(repr, list(source)[:5])) if source else "none"
    raise InputError(f'has the keys {keys}; expected "array" (or "raw") and "sampling_rate", or "bytes" or "path"')


def _read_path(path: str | bytes, limits: Limits) -> _Mixdown:
    if not isinstance(path, str) or not limits.remote:
        raise InputError("is a path or URL; expected the audio itself, as bytes or as an array")
    if path.startswith(("http://", "https://")):
        return _decode(_fetch(path, limits), limits)
    # Reading a named pipe would block, and a device has no end.
    if os.path.isdir(path):
        raise InputError("is a folder; give one audio file")
    if not os.path.exists(path):
        raise InputError("no such file; check the path and its base folder (a URL begins with http:// or https://)")
    if not os.path.isfile(path):
        raise InputError("is not a regular file (a pipe or a device); give an audio file")
    try:
        # Opened by its descriptor: soundfile would read a file whose name ends in ".raw" as raw samples.
        with open(os.open(path, os.O_RDONLY), "rb") as file:
            return _decode(file, limits)
    except OSError as error:
        raise InputError(f"cannot be read ({type(error).__name__}); check its permissions and the disk") from error


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Handler that follows redirects to http and https only; the base class also follows redirects to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")):
            raise ValueError(f"redirected to {_short(newurl)}, which is not an http or https URL")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, limits: Limits) -> io.BytesIO:
    """Return the content of a URL; raise an `InputError` if it is not complete after `LONGEST_FETCH` seconds."""
    found: list[io.BytesIO | Exception] = []
    # The time limit of a socket applies to one read. Another thread limits the time of all reads together.
    thread = threading.Thread(target=_download, args=(url, limits, found), daemon=True)
    thread.start()
    thread.join(LONGEST_FETCH)
    content = found[0] if found else TimeoutError(f"not complete after {LONGEST_FETCH:g} s")
    if isinstance(content, io.BytesIO):
        return content
    reason = f"the server answered {content.code}" if isinstance(content, urllib.error.HTTPError) else str(content)
    raise InputError(f"cannot be fetched ({_short(reason)})") from content


def _download(url: str, limits: Limits, found: list[io.BytesIO | Exception]) -> None:
    """Append the content of a URL to `found`, or the error if it cannot be fetched; nothing if it takes too long."""
    content, deadline = io.BytesIO(), time.monotonic() + LONGEST_FETCH
    try:
        # Some servers reject the default user agent of Python.
        request = urllib.request.Request(url, headers={"User-Agent": "hamspk"})
        with urllib.request.build_opener(_WebRedirects).open(request, timeout=FETCH_SECONDS) as response:
            while content.tell() <= limits.size and content.write(response.read1(BLOCK_VALUES)):
                if time.monotonic() > deadline:
                    return
        found.append(content)
    except Exception as error:
        found.append(error)


def _read_decoder(decoder: Any, limits: Limits) -> _Mixdown:
    """Read the audio of a torchcodec decoder, which `datasets` returns."""
    try:
        seconds = getattr(getattr(decoder, "metadata", None), "duration_seconds", None)
        if seconds is not None and seconds > limits.seconds:
            raise InputError(f"lasts {seconds:.0f} s; expected at most {limits.seconds:g} s. Give an excerpt")
        decoded = decoder.get_all_samples()
        samples, rate = decoded.data, decoded.sample_rate
    except InputError:
        raise
    except Exception as error:  # A decoder may raise any exception.
        raise InputError(f"cannot be decoded ({type(error).__name__}). Is the file damaged?") from error
    return _read_array(samples, rate, limits)


def _read_array(samples: Any, rate: Any, limits: Limits) -> _Mixdown:
    """Read an array, tensor or list `(L,)`, `(C, L)` or `(L, C)`."""
    if isinstance(samples, list | tuple):
        try:
            samples = np.asarray(samples, dtype=np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError("is a list that contains other values than numbers; expected samples") from error
    if not isinstance(samples, np.ndarray | torch.Tensor) or np.ma.is_masked(samples):
        raise InputError(f"contains {type(samples).__name__}; expected an array of samples, none of them masked")
    shape: tuple[int, ...] = tuple(samples.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and not 0 < min(shape) <= MOST_CHANNELS):
        raise InputError(f"has shape {shape}; expected (samples,), (channels, samples) or (samples, channels)")
    # The limits are checked by shape, before an expanded or memory-mapped array is copied.
    mixdown = _Mixdown(rate, 1 if len(shape) == 1 else min(shape), max(shape), limits)
    values = _to_numpy(samples)
    values = (values.T if shape[0] <= shape[-1] else values).reshape(-1, mixdown.channels)
    step = BLOCK_VALUES // mixdown.channels
    for begin in range(0, max(1, len(values)), step):
        mixdown.add(_to_float32(values[begin : begin + step]))
    return mixdown


class QuietFile:
    """File for decoders. `seek` returns -1 for an impossible position, because decoders would print an exception."""

    def __init__(self, file: Any):
        self._file, self.read, self.readinto, self.tell = file, file.read, file.readinto, file.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


def _decode(file: Any, limits: Limits) -> _Mixdown:
    """Decode a seekable binary file and enforce the limits."""
    file = QuietFile(file)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > limits.size:
        raise InputError(f"is larger than {limits.size >> 20} MiB, the limit for one file. Give an excerpt")
    if size == 0:
        raise InputError("is an empty file (0 bytes); copy it again or remove it")
    container = _av_container(file.read(12))
    file.seek(0)
    return _decode_soundfile(file, limits) if container is None else _decode_av(file, container, limits)


def _decode_soundfile(file: Any, limits: Limits) -> _Mixdown:
    if soundfile is None:
        raise MissingDecoderError("cannot be decoded without soundfile. Run `pip install soundfile`, or give an array")
    in_header = wav_frames(file)
    try:
        with soundfile.SoundFile(file) as sound:
            # Prevents a seek after each block, which fails at the end of a FLAC file that was written to a pipe.
            sound.seekable = lambda: False
            mixdown = _Mixdown(sound.samplerate, sound.channels, max(sound.frames, in_header), limits)
            frames = max(1, BLOCK_VALUES // sound.channels)
            while True:
                block = sound.read(frames, dtype="float32", always_2d=True)
                mixdown.add(block)
                if len(block) < frames:
                    return mixdown
    except InputError:
        raise
    # Damaged headers also cause errors that are not a SoundFileError.
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError) as error:
        # The complete message of a LibsndfileError contains the path, which is already in the name.
        said = str(getattr(error, "error_string", type(error).__name__)).rstrip(".").replace("/", ", ")
        raise InputError(
            f"cannot be decoded ({said}); expected an undamaged WAV, FLAC, OGG, Opus or MP3 file. Convert it, for "
            "example with `ffmpeg -i INPUT OUTPUT.flac`"
        ) from error


def _av_container(start: bytes) -> str | None:
    """Return FFmpeg's name of the container that begins with the bytes `start`; None if soundfile decodes the file."""
    if start[4:8] == b"ftyp":
        return "mov"
    # ADTS begins with twelve set bits, and has layer 0, which MP3 never has.
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0:
        return "aac"
    return AV_CONTAINERS.get(start[:4])


def _decode_av(file: Any, container: str, limits: Limits) -> _Mixdown:
    if av is None:
        raise MissingDecoderError(
            "is AAC, MP4, Matroska, WebM, WMA or AMR, which soundfile does not decode. Run `pip install av` (PyAV with "
            "FFmpeg), or convert it, for example with `ffmpeg -i INPUT OUTPUT.flac`"
        )
    try:
        # The container is specified because FFmpeg might detect a playlist and open the addresses in it.
        with av.open(file, mode="r", format=container) as opened:
            if not opened.streams.audio:
                raise InputError("contains no audio stream; remove it")
            return _decode_stream(opened, opened.streams.audio[0], limits)
    except InputError:
        raise
    # PyAV raises a ValueError if the number of channels changes within the stream.
    except (av.error.FFmpegError, ValueError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be decoded ({said}); it is damaged. Copy it again or remove it") from error


def _decode_stream(opened: Any, stream: Any, limits: Limits) -> _Mixdown:
    """Decode one audio stream of PyAV."""
    pyav: Any = av
    seconds = 0.0 if stream.duration is None else float(stream.duration * (stream.time_base or 0))
    mixdown: _Mixdown | None = None
    # Interleaved samples, because PyAV reads planes of more than 7 channels beyond the end of their memory.
    interleave = pyav.AudioResampler(format="flt")
    for frame in opened.decode(stream):
        for samples in interleave.resample(frame):
            block = samples.to_ndarray().reshape(-1, samples.layout.nb_channels)
            if mixdown is None:
                # The rate is read from the frame, because the header of HE-AAC declares half of it.
                rate = int(samples.sample_rate)
                mixdown = _Mixdown(rate, block.shape[1], round(seconds * rate), limits, filler=AAC_FRAME)
            mixdown.add(block)
    return _Mixdown(stream.rate, 1, round(seconds * stream.rate), limits) if mixdown is None else mixdown


def check_rate(rate: Any, name: str = "") -> int:
    """Return a sampling rate in Hz as an int; raise an `InputError` unless it is a whole number in [4000, 384000]."""
    if not is_number(rate) or rate != int(rate) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        expected = f"expected a whole number from {LOWEST_RATE} to {HIGHEST_RATE}"
        raise InputError(f"has a sampling rate of {_short(str(rate))} Hz; {expected}", name)
    return int(rate)


def _to_numpy(samples: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(samples, np.ndarray):
        return np.asarray(samples)
    try:
        samples = samples.detach().cpu()
        return (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"is a tensor of {samples.dtype} that cannot be converted to an array") from error


def _to_float32(samples: np.ndarray) -> np.ndarray:
    """Convert samples of any byte order to float32 with full scale 1."""
    if samples.dtype.name in INTEGER_SCALE:
        return samples.astype(np.float32) / np.float32(INTEGER_SCALE[samples.dtype.name])
    if not np.issubdtype(samples.dtype, np.floating):
        expected = "expected floating point in [-1, 1], or integers of 16 or 32 bits"
        raise InputError(f"has {samples.dtype} samples; {expected}")
    with np.errstate(over="ignore"):
        return samples.astype(np.float32)


def wav_frames(file: Any) -> int:
    """Return the number of frames that the header of a WAV file declares, which soundfile does not report.

    The position in the file is restored. For other files, or if the header declares no length, the result is 0.
    """
    start, header, frame = file.tell(), file.read(12), 0
    is_wav = header[:4] == b"RIFF" and header[8:] == b"WAVE"
    try:
        for _ in range(MOST_CHUNKS if is_wav else 0):
            name, size = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                return 0 if size >= UNKNOWN_SIZE or frame == 0 else size // frame
            body = file.read(min(size, 16)) if name == b"fmt " else b""
            if body:
                frame = struct.unpack("<H", body[12:14])[0]
            file.seek(size + size % 2 - len(body), io.SEEK_CUR)
        return 0
    except struct.error:  # The file ends within the header.
        return 0
    finally:
        file.seek(start)


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample a waveform `(L,)` between two sampling rates in Hz.

    The result has the shape `(ceil(L * to_rate / from_rate),)` and is float32. For equal rates it is the input itself.
    """
    if from_rate == to_rate:
        return waveform
    divisor = math.gcd(from_rate, to_rate)
    step, phases = from_rate // divisor, to_rate // divisor
    scale = min(1.0, to_rate / from_rate) * ROLLOFF
    reach = math.ceil(LOWPASS_WIDTH / scale)
    padded = np.pad(waveform.astype(np.float32, copy=False), (reach, reach + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    result = np.empty(-(-len(waveform) * phases // step), dtype=np.float32)
    if len(result) >= SHARED_TAPS * phases:
        # Every `phases`-th output sample has the same taps, so no window needs to be copied.
        taps = _taps(np.arange(phases) * step % phases / phases, reach, scale)
        for phase in range(phases):
            own = result[phase::phases]
            np.einsum("nk,k->n", windows[phase * step // phases :: step][: len(own)], taps[phase], out=own)
        return result
    block = max(1, BLOCK_VALUES // windows.shape[1])
    for begin in range(0, len(result), block):
        # Output sample n is at time n * step / phases, in units of input samples.
        n = np.arange(begin, min(len(result), begin + block))
        first, phase = np.divmod(n * step, phases)
        result[n] = np.einsum("nk,nk->n", windows[first], _taps(phase / phases, reach, scale))
    return result


def _taps(fraction: np.ndarray, reach: int, scale: float) -> np.ndarray:
    """Return filter taps `(N, K)` of output samples; each lies `fraction` `(N,)` input steps after an input sample."""
    time = ((np.arange(-reach, reach + 1) - fraction[:, None]) * scale).clip(-LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = np.cos(time * (np.pi / LOWPASS_WIDTH / 2)) ** 2
    return (scale * np.sinc(time) * window).astype(np.float32)


@dataclass(frozen=True)
class SpeechMeasures:
    """Measurements of the speech in a recording.

    Attributes:
        duration: duration in seconds.
        speech: seconds of speech, including pauses of up to 0.3 s; in [0, duration].
        snr_db: signal-to-noise ratio of the speech in dB, in [-10, 60]; -10 if there is no speech.
        clipped: share of clipped samples, in [0, 1].
        level_db: root mean square level in dBFS; at least -120.
        is_whispered: whether there is speech without any voiced frame: whispering, or noise that resembles it.
    """

    duration: float
    speech: float
    snr_db: float
    clipped: float
    level_db: float
    is_whispered: bool = False


class _Block(NamedTuple):
    """Measurements of a block: which frames are speech, power of each frame, noise power, and whether any is voiced."""

    speech: np.ndarray
    power: np.ndarray
    noise: float
    is_voiced: bool


def measure_speech(waveform: np.ndarray, sampling_rate: int, vad: Vad = None) -> SpeechMeasures:
    """Measure how much speech a waveform contains, and how clean it is.

    Args:
        waveform: floating-point samples `(L,)` in [-1, 1], of any length.
        sampling_rate: sampling rate in Hz, at least 8000.
        vad: detector of speech: `"voiced or whispered"` (the default), `"voiced"` (as in version 0.1.0), or a function
            that maps the waveform and the sampling rate to boolean frames `(T,)`, which divide the waveform evenly, or
            to intervals `(N, 2)` in seconds.

    Raises:
        ValueError: the waveform is not a finite floating-point vector, the sampling rate is below 8 kHz, or `vad` is
            unknown or returns something else.
    """
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"Expected one channel of floating-point samples in [-1, 1] of shape (samples,), got {samples.dtype} of "
            f"shape {samples.shape}. Average the channels, and divide 16-bit audio by 32768."
        )
    if not np.isfinite(samples).all():
        raise ValueError("The recording contains NaN or infinite samples. Convert it again from the original.")
    if not callable(vad) and vad not in (None, VOICED, VOICED_OR_WHISPERED):
        raise ValueError(f"vad must be a function, {VOICED!r}, {VOICED_OR_WHISPERED!r} or None, got {vad!r}.")
    samples = samples.astype(np.float32, copy=False)
    if sampling_rate < 2 * HIGHEST_HZ:
        raise ValueError(f"The sampling rate must be at least 8000 Hz to measure speech, got {sampling_rate} Hz.")
    duration = len(samples) / sampling_rate
    frame = round(FRAME_SECONDS * sampling_rate)
    level = _decibels(float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0)
    if len(samples) < 2 * frame:
        return SpeechMeasures(duration, 0.0, LOWEST_SNR_DB, _clipped_share(samples), level)
    count = -(-len(samples) // round(BLOCK_SECONDS * sampling_rate))
    parts = np.array_split(samples, count)
    marks: list[Any] = [VOICED_OR_WHISPERED if vad is None else vad] * count
    if callable(vad):
        starts = np.cumsum([0, *map(len, parts)]) / sampling_rate
        is_speech = _speech_at(vad(samples, sampling_rate), duration)
        marks = [lambda times, start=start: is_speech(start + times) for start in starts[:-1]]
    blocks = [_measure_block(part, sampling_rate, mark) for part, mark in zip(parts, marks, strict=True)]
    frames = sum(int(block.speech.sum()) for block in blocks)
    total = sum(len(block.speech) for block in blocks)
    signal = sum(float(block.power[block.speech].sum()) for block in blocks)
    noise = sum(block.noise * int(block.speech.sum()) for block in blocks)
    # The frames of speech contain speech and noise.
    snr = _decibels(max(signal - noise, 0.0)) - _decibels(noise) if frames else LOWEST_SNR_DB
    snr = min(max(snr, LOWEST_SNR_DB), HIGHEST_SNR_DB)
    is_whispered = frames > 0 and not any(block.is_voiced for block in blocks)
    return SpeechMeasures(duration, duration * frames / total, snr, _clipped_share(samples), level, is_whispered)


def _speech_at(found: Any, duration: float) -> Callable[[np.ndarray], Any]:
    """Return a function that tells whether there is speech at given times (s), as the caller's detector `found`."""
    marks = np.asarray(found)
    if marks.dtype == bool and marks.ndim == 1 and len(marks):
        return lambda times: marks[np.minimum((times / duration * len(marks)).astype(int), len(marks) - 1)]
    intervals = marks.reshape(-1, 2) if marks.size == 0 else marks
    if intervals.ndim != 2 or intervals.shape[1] != 2 or not np.issubdtype(intervals.dtype, np.number):
        raise ValueError(
            "The speech detector (vad) must return boolean frames (T,), or intervals (N, 2) with begin and end in "
            f"seconds, got {marks.dtype} of shape {marks.shape}."
        )
    begins, ends = intervals.T
    return lambda times: np.any((begins <= times[:, None]) & (times[:, None] < ends), axis=1)


def speech_weights(pieces: Sequence[np.ndarray], sampling_rate: int) -> list[float]:
    """Return the seconds of speech in the middle of each piece `(L,)` of a recording; all 1 if there is no speech."""
    weights = [0.0]
    if len(pieces) > 1 and sampling_rate >= 2 * HIGHEST_HZ:
        share = min(1.0, MOST_WEIGHED * sampling_rate / sum(map(len, pieces)))
        sizes = [int(len(piece) * share) for piece in pieces]
        middles = [piece[(len(piece) - size) // 2 :][:size] for piece, size in zip(pieces, sizes, strict=True)]
        weights = [measure_speech(middle, sampling_rate).speech for middle in middles]
    return weights if any(weights) else [1.0] * len(pieces)


def _power(decibels: float) -> float:
    return 10 ** (decibels / 10)


def _decibels(power: float) -> float:
    return max(10 * float(np.log10(max(power, SMALLEST_POWER))), LOWEST_LEVEL_DB)


def _clipped_share(samples: np.ndarray) -> float:
    """Return the share of clipped samples: three or more adjacent samples at the recording's maximum or minimum."""
    if len(samples) < CLIPPED_RUN or float(samples.max()) == float(samples.min()):
        return 0.0
    runs = [_run_lengths(samples == extreme)[1::2] for extreme in (samples.max(), samples.min())]
    return sum(int(lengths[lengths >= CLIPPED_RUN].sum()) for lengths in runs) / len(samples)


def _measure_block(samples: np.ndarray, sampling_rate: int, vad: Any) -> _Block:
    """Measure a block; `vad` is the name of a detector, or a function of the times of frames in seconds."""
    frame, hop = round(FRAME_SECONDS * sampling_rate), round(HOP_SECONDS * sampling_rate)
    size = round(SPECTRUM_SECONDS * sampling_rate)
    window = np.hanning(frame).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop] * window
    bins = int(HIGHEST_HZ * SPECTRUM_SECONDS) + 1
    # Scaled so that the sum over all bins, for positive and negative frequencies, is the mean square of the frame.
    spectrum = np.fft.rfft(frames, size)[:, :bins]
    power = (spectrum.real**2 + spectrum.imag**2) / np.float32(size * float(np.square(window).sum()))
    edges = np.rint(np.arange(LOWEST_HZ, HIGHEST_HZ + 1, BAND_HZ) * SPECTRUM_SECONDS).astype(int)
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    floor = np.quantile(bands, FLOOR_QUANTILE, axis=0)
    quiet = _power(QUANTISATION_DB) * BAND_HZ / (sampling_rate / 2)
    least = np.maximum(np.maximum(floor, quiet) * _power(RISE_DB), bands.max(1, keepdims=True) * _power(-RANGE_DB))
    risen = (bands > least).sum(1) >= RISEN_BANDS
    voiced = _long_runs(risen & (_periodicity(power) > VOICED_PEAK), SHORTEST_VOICED)
    near = _dilate(voiced, round(CARRIED_SECONDS / HOP_SECONDS))
    carried = risen & _dilate(voiced, round(REACH_SECONDS / HOP_SECONDS))
    speech, is_voiced = _close_gaps(near | carried, round(LONGEST_PAUSE / HOP_SECONDS)), bool(voiced.any())
    if not isinstance(vad, str):
        speech, is_voiced = vad(np.arange(len(frames)) * HOP_SECONDS + FRAME_SECONDS / 2), True
    elif vad == VOICED_OR_WHISPERED and not is_voiced:
        speech = _whispered(bands, risen)
    noise = float(floor.sum(dtype=np.float64)) * _power(FLOOR_BIAS_DB)
    return _Block(speech, bands.sum(1, dtype=np.float64), noise, is_voiced)


def _whispered(bands: np.ndarray, risen: np.ndarray) -> np.ndarray:
    """Return the frames `(T,)` of whispering, given the power in bands `(T, F)`; none if the spectrum is steady."""
    long = _long_runs(risen, SHORTEST_WHISPER)
    if long.sum() < 2 * SHORTEST_WHISPER:
        return np.zeros_like(risen)
    levels = 10 * np.log10(bands[long] + SMALLEST_POWER)
    shapes = levels - levels.mean(1, keepdims=True)
    smooth = np.lib.stride_tricks.sliding_window_view(shapes, SMOOTHED_FRAMES, axis=0).mean(-1)
    changes = float(np.sqrt(smooth.var(axis=0).mean())) >= CHANGE_DB
    return _close_gaps(long, round(LONGEST_PAUSE / HOP_SECONDS)) if changes else np.zeros_like(risen)


def _periodicity(power: np.ndarray) -> np.ndarray:
    """Return the largest autocorrelation `(T,)` of flattened spectra at pitch periods of voices, relative to lag 0."""
    low, high = round(VOICE_LOWEST_HZ * SPECTRUM_SECONDS), round(VOICE_HIGHEST_HZ * SPECTRUM_SECONDS)
    width = round(ENVELOPE_HZ * SPECTRUM_SECONDS) | 1
    padded = np.pad(power[:, :high], ((0, 0), (width // 2 + 1, width // 2)), mode="reflect")
    sums = np.cumsum(padded, axis=1, dtype=np.float64)
    envelope = (sums[:, width:] - sums[:, :-width]) / width
    steady = np.quantile(envelope, FLOOR_QUANTILE, axis=0)
    gain = np.clip(1 - STEADY_FACTOR * steady / (envelope + SMALLEST_POWER), 0, 1)
    flat = power[:, :high] * (gain / (envelope + SMALLEST_POWER))
    flat[:, :low] = 0
    correlation, rate = np.fft.irfft(flat, 2 * high), 2 * high / SPECTRUM_SECONDS
    lags = slice(int(rate / HIGHEST_PITCH_HZ), int(rate / LOWEST_PITCH_HZ) + 1)
    return correlation[:, lags].max(1) / np.maximum(correlation[:, 0], SMALLEST_POWER)


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """Return the lengths of alternating runs of False and True. The first and last run are False and may be empty."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return np.diff(edges, prepend=0, append=len(mask))


def _long_runs(mask: np.ndarray, shortest: int) -> np.ndarray:
    """Return the mask with only those runs of True that have at least `shortest` frames."""
    lengths = _run_lengths(mask)
    is_long = lengths >= shortest
    is_long[::2] = False
    return np.repeat(is_long, lengths)


def _close_gaps(mask: np.ndarray, longest: int) -> np.ndarray:
    """Return the mask with gaps of at most `longest` frames between runs of True filled."""
    lengths = _run_lengths(mask)
    is_filled = lengths <= longest
    is_filled[1::2] = True
    is_filled[[0, -1]] = False
    return np.repeat(is_filled, lengths)


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Return the mask with each run of True extended by `reach` frames on both sides."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(mask, reach), 2 * reach + 1).max(1)
