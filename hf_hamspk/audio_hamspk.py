"""Recordings: reading and resampling them, checking them, and measuring how much speech they hold.

`read_sound` is the one reader of whole recordings, used by training, evaluation, the commands, the pipeline and the
endpoint. (Random crops of shards and noise files are decoded where they are cut, in `shards/` and `data/`.) It decodes
block by block, within limits, and never trusts a header. Input that cannot be used raises an `InputError`.

Resampling is windowed-sinc interpolation with the default filter of `torchaudio.functional.resample`, in NumPy alone:
a model gives the same numbers where torchaudio is absent, and memory does not grow for odd rates.

`measure_speech` tells speech from other sound by what voices do and machines do not: the level of several bands rises
far above the quietest moments of the recording (silence, hum, tones and steady noise do not move), and the raised
frames have the periodicity of a voice (clicks, knocks and hiss do not). Voiced frames carry the sounds around them:
consonants, and pauses shorter than a word. It takes singing, babble and other periodic, moving sound for speech, and
misses whispering and speech below the noise.

Letters: `B` batch, `L` samples, `N` samples after resampling, `K` taps of the filter, `C` channels, `T` frames, `F`
frequency bins.
"""

import http.client
import io
import math
import os
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

try:
    import soundfile
except (ImportError, OSError):
    # Arrays need no decoder.
    soundfile = None
try:
    import av
    import av.error
except (ImportError, OSError):
    # Needed for AAC and WebM only.
    av = None

# An utterance below this holds no speaker: ten frames.
SHORTEST_SECONDS = 0.1
# Largest minus smallest sample below which there is no sound: less than one step of 16-bit audio (3.05e-5).
SILENCE_SPAN = 2e-5
# Share of a batch that may be padding: padding is computed like sound, and costs more than another batch.
MOST_PADDING = 0.1
# Zero crossings of the sinc on each side, and the cut-off as a share of half the lower rate.
LOWPASS_WIDTH, ROLLOFF = 6, 0.99
# Values of the largest intermediate array in resampling: 16 MiB of float32.
BLOCK_VALUES = 1 << 22
# Output samples with the same taps from which on they are computed together: below, one call for each costs more.
SHARED_TAPS = 128
# Below this speech loses what tells voices apart; a rate above the highest is a mistake.
LOWEST_RATE, HIGHEST_RATE = 4000, 384_000
# More channels than a microphone array has.
MOST_CHANNELS = 32
# A float recording may go a little beyond full scale; 16-bit samples as floats go far beyond it.
LOUDEST = 16.0
# Full scale of integer samples.
INTEGER_SCALE = {"int16": 1 << 15, "int32": 1 << 31}
# Share of the samples that a header declares, below which a file counts as cut short. MP3 headers are off by a frame or
# two (72 ms), so it is not 1.
DECODED_SHARE = 0.9
FETCH_SECONDS = 20.0
# Samples times channels that are decoded at once: 1 MiB of float32.
DECODED_AT_ONCE = 1 << 18
# libsndfile reports about this many frames where the length is unknown.
UNKNOWN_FRAMES = 1 << 62
# Chunks of a WAV file before its samples; "data" of at least this size means that the writer did not know the length.
MOST_CHUNKS, UNKNOWN_SIZE = 64, 0x7FFFFFFF
# Samples of the longest frame of AAC (HE-AAC): the encoder fills up the last one.
AAC_FRAME = 2048
# Channels this much weaker than the loudest (in power, 40 dB) hold crosstalk or nothing.
SILENT_CHANNEL = 1e-4
# Power of the mean of channels over their mean power: 1 for equal ones, 1/2 for two unrelated, 0 for opposite ones.
ALIKE_CHANNELS = 0.75
NO_SUCH_FILE = (
    "no such file; check the path and the folder that it is relative to (a URL begins with http:// or https://)"
)
_MAPPING_KINDS = {"bytes": "the bytes of an audio file", "path": "a path"}
# Seconds of speech below which no decision is made; see `verification_hamspk` and tests/test_speech.py.
MINIMUM_SPEECH = 1.0
# Range of a signal-to-noise ratio, in dB: below, speech is not found; above, 16-bit audio has no room.
LOWEST_SNR_DB, HIGHEST_SNR_DB = -10.0, 60.0
# Level reported for digital silence; below the smallest step of 16-bit audio.
LOWEST_LEVEL_DB = -120.0
# Five milliseconds more than three periods of a voice of 67 Hz; the steps are the field's.
FRAME_SECONDS, HOP_SECONDS = 0.05, 0.01
# Zero-padded to this, the autocorrelation of a frame does not wrap up to a lag of 30 ms; bins are 12.5 Hz apart.
SPECTRUM_SECONDS = 0.08
# The floor of the bands is measured again in each stretch of at most this length, so that it follows the room.
BLOCK_SECONDS = 20.0
# Bands of equal width, up to the top of telephone speech, which every sampling rate from 8 kHz holds.
LOWEST_HZ, HIGHEST_HZ, BAND_HZ = 100.0, 3700.0, 200.0
# The quietest frames of continuous speech are its pauses and closures: about a tenth of it.
FLOOR_QUANTILE = 0.1
# The mean of steady noise lies this far above that quantile, in bands of 200 Hz and frames of 50 ms.
FLOOR_BIAS_DB = 2.5
# Steady noise rises less over its floor in so many bands at once (its standard deviation in each is 2 dB), vowels far
# more. Bands this far below the loudest of a frame do not count: there a pure tone leaks through the window.
RISE_DB, RISEN_BANDS, RANGE_DB = 8.0, 4, 30.0
# 16-bit audio has a noise of -98 dBFS of its own: nothing below counts as a rise.
QUANTISATION_DB = -98.0
# Pitch of voices, and the frequencies that show it even over a telephone.
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 65.0, 420.0
VOICE_LOWEST_HZ, VOICE_HIGHEST_HZ = 100.0, 1600.0
# The spectrum is flattened by its mean over this width, wider than the distance of any harmonics.
ENVELOPE_HZ = 500.0
# Power up to this many times that of the quietest frames is taken for noise or hum, which have periods of their own.
STEADY_FACTOR = 3.0
# Keeps quotients of powers finite; far below the square of any sample.
SMALLEST_POWER = 1e-30
# Peak of the autocorrelation, relative to lag 0, from which a frame is voiced.
VOICED_PEAK = 0.4
# A syllable has at least so many voiced frames in a row; two clicks within one frame make fewer.
SHORTEST_VOICED = 5
# Voiced frames carry all frames this near to them (half a consonant), and risen ones farther away (a cluster).
CARRIED_SECONDS, REACH_SECONDS = 0.05, 0.25
# Pauses up to this are part of fluent speech: the closure of a plosive, a breath between words.
LONGEST_PAUSE = 0.3
# Runs of this many equal samples at the extreme of a recording do not happen unless it was cut off there.
CLIPPED_RUN = 3


def is_number(value: Any) -> bool:
    """Return whether a value is a finite int or float of Python or NumPy, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        # A whole number that no float holds.
        return False


class InputError(ValueError):
    """Invalid input. The message is safe to show to the caller: it names only paths the caller gave.

    Attributes:
        reason: the problem, without the name.
        name: name of the input in the message; "" if it has none.
    """

    # One positional argument is enough to build it again: PyTorch re-raises a worker's exception that way.
    def __init__(self, reason: str, name: str = ""):
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason
        self.name = name


class MissingDecoderError(InputError, ImportError):
    """The decoder of a file is not installed."""


@dataclass(frozen=True)
class Limits:
    """Limits on one recording.

    Example:
        ```python
        limits = Limits(seconds=60, remote=False)
        ```

    Attributes:
        seconds: longest recording.
        size: largest file, in bytes.
        values: largest number of decoded samples times channels, whatever the header declares.
        remote: whether URLs are fetched and paths opened; False accepts only bytes, arrays and decoders.

    Raises:
        InputError: a limit has the wrong type or is not positive.
    """

    seconds: float = 600.0
    size: int = 256 << 20
    values: int = 1 << 27
    remote: bool = True

    def __post_init__(self) -> None:
        if not is_number(self.seconds) or self.seconds <= 0:
            raise InputError(f"limits: seconds must be a positive number, got {_short(repr(self.seconds))}.")
        for name, unit in {"size": "bytes", "values": "samples times channels"}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"limits: {name} must be a number of {unit}, at least 1, got {_short(repr(value))}.")
        if not isinstance(self.remote, bool):
            raise InputError(f"limits: remote must be True or False, got {_short(repr(self.remote))}.")


@dataclass(frozen=True)
class Sound:
    """A recording that was read and checked: one channel, finite samples.

    Attributes:
        waveform: `(L,)` float32, full scale is 1.
        sampling_rate: rate of the waveform, in Hz.
        warnings: sentences about problems of the recording.
    """

    waveform: np.ndarray
    sampling_rate: int
    warnings: list[str] = field(default_factory=list)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.waveform) / self.sampling_rate


def read_sound(
    source: Any,
    rate: int | None,
    label: str = "The recording",
    limits: Limits | None = None,
    source_rate: int | None = None,
    strict: bool = False,
    min_duration: float = SHORTEST_SECONDS,
) -> Sound:
    """Decode a recording, average its channels, and resample it.

    soundfile decodes WAV, FLAC, OGG, Opus, MP3, AIFF and others. PyAV, if installed, decodes AAC (m4a, mp4, aac),
    Matroska and WebM. The first bytes of a file decide its format, not its name.

    Args:
        source: a path, a URL, the bytes of an audio file, an open binary file, an array or tensor `(L,)` (or with
            channels), a decoder of torchcodec, or a dictionary: `{"array" or "raw", "sampling_rate"}`, or `{"bytes",
            "path"}` as in `datasets`. Samples are floating point in [-1, 1], or integers of 16 or 32 bits.
        rate: sampling rate of the result, in Hz; None keeps the rate of the recording.
        label: name of the recording in messages, for example "The test", or its path.
        limits: limits on the recording; None is `Limits()`.
        source_rate: sampling rate of arrays that have none, in Hz; None assumes `rate`, with a warning.
        strict: raise an error if the recording is truncated, silent, or shorter than `min_duration`. Otherwise a
            truncated recording gets a warning, and silence is returned.
        min_duration: shortest recording in seconds, if `strict`.

    Raises:
        InputError: the source is not a recording, or cannot be used.
        MissingDecoderError: soundfile or PyAV is needed and not installed.
    """
    limits = Limits() if limits is None else limits
    mixdown = _read(source, rate if source_rate is None else source_rate, _input_name(source, label), limits)
    warnings: list[str] = []
    if source_rate is None and _lacks_rate(source):
        warnings.append(f"{label} came without a sampling rate and was taken to have {rate} Hz; give sampling_rate.")
    waveform = mixdown.waveform(label, warnings, min_duration if strict else None)
    found = mixdown.rate
    if rate is None:
        return Sound(waveform, found, warnings)
    if found < rate:
        warnings.append(
            f"{label} was recorded at {found} Hz, the model takes {rate} Hz: it has no frequencies above "
            f"{found / 2000:g} kHz."
        )
    return Sound(resample(waveform, found, rate), rate, warnings)


def _input_name(source: Any, label: str) -> str:
    """Return the name of a recording in errors: the label, and the path or URL that the caller gave."""
    if isinstance(source, Mapping):
        source = source.get("path") if all(source.get(key) is None for key in ("array", "raw", "bytes")) else None
    if not isinstance(source, str | os.PathLike):
        return label
    path = os.fspath(source)
    if not isinstance(path, str) or path == label or not path.isprintable():
        return label
    return f"{label} {_short(path)}"


class _Mixdown:
    """Mixes decoded blocks down to one channel, within limits.

    `promised` is the number of frames that the header declares (0 if unknown), `filler` the number of frames that the
    encoder may have appended.
    """

    def __init__(self, rate: Any, channels: int, promised: int, name: str, limits: Limits, filler: int = 0):
        self.name, self.limits, self.filler = name, limits, filler
        self.rate = check_rate(rate, name)
        if not 0 < channels <= MOST_CHANNELS:
            raise InputError(f"has {channels} channels, at most {MOST_CHANNELS} are read. Is it damaged?", name)
        self.channels = channels
        self.promised = 0 if promised >= UNKNOWN_FRAMES else promised
        self.most = min(math.floor(limits.seconds * self.rate), limits.values // channels)
        self.blocks: list[np.ndarray] = []
        self.frames, self.bad, self.loudest = 0, 0, 0.0
        # Sums of products of channels, from which the power of any mean of channels follows.
        self.products = np.zeros((channels, channels))
        if self.promised > self.most:
            raise self._too_long(self.promised)

    def add(self, samples: np.ndarray) -> None:
        """Add a block `(L, C)` of float32 samples."""
        self.frames += len(samples)
        if self.frames > self.most + self.filler:
            raise self._too_long(self.frames)
        if not len(samples):
            return
        extreme = max(float(samples.max()), -float(samples.min()))
        if not math.isfinite(extreme):
            self.bad += samples.size - int(np.count_nonzero(np.isfinite(samples)))
            return
        self.loudest = max(self.loudest, extreme)
        if self.channels == 1:
            self.blocks.append(samples[:, 0])
            return
        # Channel after channel in memory: the same sums, several times faster.
        planes = np.ascontiguousarray(samples.T)
        self.products += planes @ planes.T
        self.blocks.append(planes.mean(axis=0))

    def waveform(self, label: str, warnings: list[str], min_duration: float | None) -> np.ndarray:
        """Return the recording `(L,)`, finite float32 in about [-1, 1]; add sentences on its problems to `warnings`.

        With `min_duration`, raise an InputError for recordings that are truncated, shorter than that, or silent.
        """
        if self.frames < DECODED_SHARE * self.promised:
            if min_duration is not None:
                raise InputError(
                    f"is cut short: its header declares {self.promised} samples, {self.frames} could be decoded; copy "
                    "it again",
                    self.name,
                )
            declared, decoded = self.promised / self.rate, self.frames / self.rate
            warnings.append(
                f"{label} is cut short: its header declares {declared:.1f} s, {decoded:.1f} s were decoded."
            )
        if self.bad:
            samples = self.frames * self.channels
            said = f"holds {self.bad} NaN or infinite samples of {samples}; convert it again from its original"
            raise InputError(said, self.name)
        if self.loudest > LOUDEST:
            raise InputError(
                f"holds samples up to {self.loudest:.4g}; expected floating point in [-1, 1]. Divide 16-bit audio by "
                "32768",
                self.name,
            )
        waveform = np.concatenate(self.blocks) if self.blocks else np.zeros(0, np.float32)
        if 0 < self.promised < len(waveform) < self.promised + self.filler:
            waveform = waveform[: self.promised]
        if min_duration is not None:
            require_sound(waveform, self.rate, self.name, min_duration, self.channels)
        if self._channels_differ():
            warnings.append(
                f"{label} has channels that differ, which were averaged: are they of different people or microphones? "
                "Give the one that matters."
            )
        return waveform

    def _channels_differ(self) -> bool:
        """Return whether the audible channels are unlike or cancel each other."""
        power = np.diag(self.products)
        audible = power > SILENT_CHANNEL * power.max()
        count = np.count_nonzero(audible)
        if count < 2:
            return False
        return self.products[np.ix_(audible, audible)].sum() / count**2 < ALIKE_CHANNELS * power[audible].mean()

    def _too_long(self, frames: int) -> InputError:
        seconds, limits = frames / self.rate, self.limits
        if seconds > limits.seconds:
            said = f"lasts {seconds:.0f} s, at most {limits.seconds:g} s are taken; cut out a part. A minute is plenty"
        else:
            said = f"lasts {seconds:.0f} s or more in {self.channels} channels, more than {limits.values} samples; "
            said += "cut it into utterances"
        return InputError(said, self.name)


def require_sound(
    waveform: np.ndarray, rate: int, name: str, min_duration: float = SHORTEST_SECONDS, channels: int = 1
) -> None:
    """Raise an `InputError` if a waveform `(L,)` is empty, shorter than `min_duration` seconds, or silent."""
    if not len(waveform):
        raise InputError("is empty (0 samples); record it again or leave it out", name)
    if len(waveform) < round(min_duration * rate):
        seconds = len(waveform) / rate
        raise InputError(f"lasts {seconds:.3g} s, at least {min_duration:g} s are needed; leave it out", name)
    if float(waveform.max()) - float(waveform.min()) < SILENCE_SPAN:
        averaged = "" if channels == 1 else f" after averaging its {channels} channels"
        said = f"holds no sound{averaged} (every sample is {waveform[0]:g}); check the recording or leave it out"
        raise InputError(said, name)


def _read(source: Any, array_rate: Any, name: str, limits: Limits) -> _Mixdown:
    if isinstance(source, Mapping):
        return _read_mapping(source, array_rate, name, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), name, limits)
    if isinstance(source, str | os.PathLike):
        return _read_path(os.fspath(source), name, limits)
    if isinstance(source, np.ndarray | torch.Tensor):
        return _read_array(source, array_rate, name, limits)
    if isinstance(source, list | tuple):
        return _read_array(_list_to_array(source, name), array_rate, name, limits)
    if hasattr(source, "get_all_samples"):
        return _read_decoder(source, name, limits)
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        try:
            content = source.read(limits.size + 1)
        except (OSError, ValueError) as error:
            raise InputError(f"is a file that cannot be read ({error}). Is it open?", name) from error
        if isinstance(content, bytes):
            return _decode(io.BytesIO(content), name, limits)
    raise InputError(
        f"is of type {type(source).__name__}; expected a path, a URL, bytes, a file opened in binary mode, an array, "
        'or a dictionary with "array" and "sampling_rate", or with "bytes" or "path"',
        name,
    )


def _lacks_rate(source: Any) -> bool:
    if isinstance(source, Mapping):
        return "sampling_rate" not in source and any(source.get(key) is not None for key in ("array", "raw"))
    return isinstance(source, np.ndarray | torch.Tensor)


def _read_mapping(source: Mapping, array_rate: Any, name: str, limits: Limits) -> _Mixdown:
    for key in ("array", "raw"):
        if source.get(key) is not None:
            samples = source[key]
            if isinstance(samples, list | tuple):
                samples = _list_to_array(samples, name)
            return _read_array(samples, source.get("sampling_rate", array_rate), name, limits)
    for key in ("bytes", "path"):
        if source.get(key) is not None:
            if isinstance(source[key], bytes if key == "bytes" else str | os.PathLike):
                return _read(source[key], array_rate, name, limits)
            found = type(source[key]).__name__
            raise InputError(f"holds {found} under {key!r}; expected {_MAPPING_KINDS[key]}", name)
    keys = ", ".join(repr(key) for key in list(source)[:5])
    raise InputError(
        f'is a dictionary with {keys if keys else "no keys"}, and nothing to read in it; it needs "array" (or '
        '"raw") and "sampling_rate", or "bytes" or "path"',
        name,
    )


def _list_to_array(samples: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(samples, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError("holds a list with other values than numbers; expected samples in [-1, 1]", name) from error


def _read_path(path: str | bytes, name: str, limits: Limits) -> _Mixdown:
    if not isinstance(path, str) or not limits.remote:
        raise InputError("is a name; expected the recording itself, as bytes or as an array", name)
    if path.startswith(("http://", "https://")):
        return _decode(io.BytesIO(_fetch(path, name, limits)), name, limits)
    # A named pipe would be waited for; a device never ends.
    if not os.path.isfile(path):
        if os.path.isdir(path):
            raise InputError("is a folder; give one audio file", name)
        if os.path.exists(path):
            raise InputError("is not a regular file (a pipe or a device); give an audio file", name)
        raise InputError(NO_SUCH_FILE, name)
    try:
        # By its number: soundfile takes a file for raw samples if its name ends in ".raw".
        with open(os.open(path, os.O_RDONLY), "rb") as file:
            return _decode(file, name, limits)
    except OSError as error:
        said = f"cannot be read ({type(error).__name__}); check its permissions and its disk"
        raise InputError(said, name) from error


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def _fetch(url: str, name: str, limits: Limits) -> bytes:
    try:
        # Some servers refuse Python's own name.
        request = urllib.request.Request(url, headers={"User-Agent": "hamspk"})
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:
            return response.read(limits.size + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"the server answered {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise InputError(f"cannot be fetched ({reason})", name) from error


def _read_decoder(decoder: Any, name: str, limits: Limits) -> _Mixdown:
    """Read a decoder of torchcodec, as `datasets` returns it."""
    try:
        seconds = getattr(getattr(decoder, "metadata", None), "duration_seconds", None)
        if seconds is not None and seconds > limits.seconds:
            raise InputError(f"lasts {seconds:.0f} s, at most {limits.seconds:g} s are taken; cut out a part", name)
        decoded = decoder.get_all_samples()
        samples, rate = decoded.data, decoded.sample_rate
    except InputError:
        raise
    except Exception as error:
        # A decoder may raise anything.
        raise InputError(f"cannot be decoded ({type(error).__name__}); is it damaged?", name) from error
    return _read_array(samples, rate, name, limits)


def _read_array(samples: Any, rate: Any, name: str, limits: Limits) -> _Mixdown:
    """Read an array or tensor `(L,)`, `(C, L)` or `(L, C)`."""
    if not isinstance(samples, np.ndarray | torch.Tensor):
        raise InputError(f"holds {type(samples).__name__}; expected an array of samples", name)
    shape: tuple[int, ...] = tuple(samples.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and not 0 < min(shape) <= MOST_CHANNELS):
        raise InputError(f"has shape {shape}; expected (samples,), or channels and samples", name)
    # Refused by its shape, before a virtual array is copied.
    mixdown = _Mixdown(rate, 1 if len(shape) == 1 else min(shape), max(shape), name, limits)
    values = _to_float32(_to_numpy(samples, name), name)
    if values.ndim == 1:
        values = values[:, None]
    elif shape[0] <= shape[-1]:
        values = values.T
    mixdown.add(values)
    return mixdown


def _decode(file: Any, name: str, limits: Limits) -> _Mixdown:
    """Decode a seekable binary file, within the limits."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > limits.size:
        raise InputError(f"is a file of more than {limits.size >> 20} MiB; cut out the part that matters", name)
    if size == 0:
        raise InputError("is an empty file (0 bytes); copy it again or leave it out", name)
    start = file.read(12)
    file.seek(0)
    container = _av_container(start)
    return _decode_soundfile(file, name, limits) if container is None else _decode_av(file, container, name, limits)


def _decode_soundfile(file: Any, name: str, limits: Limits) -> _Mixdown:
    if soundfile is None:
        raise MissingDecoderError(
            "audio files are decoded by soundfile, which is not installed: `pip install soundfile`. Arrays need none",
            name,
        )
    in_header = wav_frames(file)
    try:
        with soundfile.SoundFile(file) as sound:
            # Otherwise it seeks after each block, which fails at the end of FLAC that was written to a pipe.
            sound.seekable = lambda: False
            mixdown = _Mixdown(sound.samplerate, sound.channels, max(sound.frames, in_header), name, limits)
            frames = max(1, DECODED_AT_ONCE // sound.channels)
            while True:
                block = sound.read(frames, dtype="float32", always_2d=True)
                mixdown.add(block)
                if len(block) < frames:
                    return mixdown
    except InputError:
        raise
    # Its own errors, and what damaged headers make it raise besides.
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError) as error:
        # The whole message of a LibsndfileError repeats the path.
        said = str(getattr(error, "error_string", type(error).__name__)).rstrip(".").replace("/", ", ")
        raise InputError(
            f"cannot be decoded ({said}); it is damaged or not WAV, FLAC, OGG, Opus or MP3: convert it, for example "
            "with `ffmpeg -i INPUT OUTPUT.flac`",
            name,
        ) from error


def _av_container(start: bytes) -> str | None:
    """Return FFmpeg's name for a container that soundfile does not read, from its first 12 bytes; None for others."""
    if start[4:8] == b"ftyp":
        return "mov"
    if start.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    # ADTS: twelve set bits, and layer 0, which MP3 never has.
    if len(start) > 1 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0:
        return "aac"
    return None


def _decode_av(file: Any, container: str, name: str, limits: Limits) -> _Mixdown:
    if av is None:
        raise MissingDecoderError(
            "is AAC, MP4, Matroska or WebM, which soundfile does not decode: `pip install av` (PyAV, which brings "
            "FFmpeg along), or convert it, for example with `ffmpeg -i INPUT OUTPUT.flac`",
            name,
        )
    try:
        # The container is named: left to guess, FFmpeg takes a playlist for audio and opens the addresses in it.
        with av.open(file, mode="r", format=container) as opened:
            if not opened.streams.audio:
                raise InputError("holds no audio stream; leave it out", name)
            return _decode_stream(opened, opened.streams.audio[0], name, limits)
    except InputError:
        raise
    # A ValueError also where the channels change midway.
    except (av.error.FFmpegError, ValueError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be decoded ({said}); it is damaged: copy it again or leave it out", name) from error


def _decode_stream(opened: Any, stream: Any, name: str, limits: Limits) -> _Mixdown:
    """Decode one audio stream of PyAV."""
    pyav: Any = av
    seconds = 0.0 if stream.duration is None else float(stream.duration * (stream.time_base or 0))
    mixdown: _Mixdown | None = None
    to_planes = pyav.AudioResampler(format="fltp")
    for frame in opened.decode(stream):
        for planes in to_planes.resample(frame):
            block = planes.to_ndarray().T
            if mixdown is None:
                # The rate of the frame and not of the header: HE-AAC announces half of its rate.
                rate = int(planes.sample_rate)
                mixdown = _Mixdown(rate, block.shape[1], round(seconds * rate), name, limits, filler=AAC_FRAME)
            mixdown.add(block)
    if mixdown is None:
        return _Mixdown(stream.rate, 1, round(seconds * stream.rate), name, limits)
    return mixdown


def check_rate(rate: Any, name: str) -> int:
    """Return a sampling rate in Hz as an int; raise an `InputError` if it is not whole or outside [4000, 384000]."""
    if not is_number(rate) or rate != int(rate) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(
            f"has a sampling rate of {_short(str(rate))} Hz; expected a whole number from {LOWEST_RATE} to "
            f"{HIGHEST_RATE}",
            name,
        )
    return int(rate)


def _to_numpy(samples: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    if isinstance(samples, np.ndarray):
        return samples
    try:
        samples = samples.detach().cpu()
        return (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"is a tensor of {samples.dtype} that is not a plain array of samples", name) from error


def _to_float32(samples: np.ndarray, name: str) -> np.ndarray:
    """Convert samples of any byte order to float32 with full scale 1."""
    if samples.dtype.name in INTEGER_SCALE:
        return samples.astype(np.float32) / np.float32(INTEGER_SCALE[samples.dtype.name])
    if not np.issubdtype(samples.dtype, np.floating):
        raise InputError(
            f"holds {samples.dtype} samples; expected floating point in [-1, 1], or integers of 16 or 32 bits", name
        )
    with np.errstate(over="ignore"):
        return samples.astype(np.float32)


def wav_frames(file: Any) -> int:
    """Return the number of frames that the header of a WAV file declares; soundfile reports only those it finds.

    The position in the file is restored. The result is 0 for other files, and if the header does not declare a length.
    """
    start = file.tell()
    try:
        riff, _, wave = struct.unpack("<4sI4s", file.read(12))
        frame = 0
        if (riff, wave) != (b"RIFF", b"WAVE"):
            return 0
        for _ in range(MOST_CHUNKS):
            name, size = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                return 0 if size >= UNKNOWN_SIZE or frame == 0 else size // frame
            body = file.read(min(size, 16)) if name == b"fmt " else b""
            if body:
                frame = struct.unpack("<H", body[12:14])[0]
            file.seek(size + size % 2 - len(body), io.SEEK_CUR)
        return 0
    except struct.error:
        # It ends within its header.
        return 0
    finally:
        file.seek(start)


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `(L,)` between two rates in Hz: `(ceil(L * to_rate / from_rate),)` float32.

    If the rates are equal, the waveform itself is returned.
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
        # Every `phases`-th output sample has the same taps: no window is copied, which is many times faster.
        taps = _taps(np.arange(phases) * step % phases / phases, reach, scale)
        for phase in range(phases):
            own = result[phase::phases]
            np.einsum("nk,k->n", windows[phase * step // phases :: step][: len(own)], taps[phase], out=own)
        return result
    block = max(1, BLOCK_VALUES // windows.shape[1])
    for begin in range(0, len(result), block):
        # Output sample n is at the time n * step / phases, counted in input samples.
        n = np.arange(begin, min(len(result), begin + block))
        first, phase = np.divmod(n * step, phases)
        result[n] = np.einsum("nk,nk->n", windows[first], _taps(phase / phases, reach, scale))
    return result


def _taps(fraction: np.ndarray, reach: int, scale: float) -> np.ndarray:
    """Return the filters `(N, K)` of output samples that lie `fraction` `(N,)` of a sample after an input sample."""
    time = (np.arange(-reach, reach + 1) - fraction[:, None]) * scale
    time = time.clip(-LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = np.cos(time * (np.pi / LOWPASS_WIDTH / 2)) ** 2
    return (scale * np.sinc(time) * window).astype(np.float32)


def make_feature_extractor(sampling_rate: int) -> Wav2Vec2FeatureExtractor:
    """Return a feature extractor that only pads waveforms and makes the mask; the model computes the features."""
    return Wav2Vec2FeatureExtractor(
        sampling_rate=sampling_rate, do_normalize=False, return_attention_mask=True, feature_size=1, padding_value=0.0
    )


def check_batch(input_values: Tensor, attention_mask: Tensor | None, smallest_length: int) -> None:
    """Raise a ValueError unless a batch is `(B, L)`, with a mask of this shape and enough samples in every row.

    The values of the mask are checked on the CPU only, as another device would have to be waited for, and not while the
    model is compiled or exported.
    """
    if input_values.ndim != 2:
        raise ValueError(
            f"input_values has shape {tuple(input_values.shape)}; expected (batch, samples) of mono audio."
        )
    too_short = f"one analysis window needs {smallest_length}, and a speaker at least {SHORTEST_SECONDS} s."
    if input_values.shape[1] < smallest_length:
        raise ValueError(f"input_values holds {input_values.shape[1]} samples; {too_short}")
    if attention_mask is None:
        return
    if attention_mask.shape != input_values.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_values {tuple(input_values.shape)}; the "
            "mask marks samples, one for one."
        )
    if attention_mask.device.type == "cpu" and attention_mask.shape[0] and not torch.compiler.is_compiling():
        mask = attention_mask.long()
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("attention_mask has 0 before 1: utterances must be padded on the right.")
        shortest = int(mask.sum(-1).min())
        if shortest < smallest_length:
            raise ValueError(f"attention_mask leaves an utterance {shortest} samples; {too_short}")


def check_labels(labels: Tensor, speakers: int) -> None:
    """Raise a ValueError if a label `(B,)` lies outside [0, speakers)."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < speakers:
        raise ValueError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}, but the model has {speakers} "
            "speakers (num_labels): rebuild the head with num_labels of the new training set."
        )


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group the indices of `lengths` into batches of similar lengths, each of at most `budget` samples with padding."""
    batches: list[list[int]] = []
    held = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        padded = (len(batches[-1]) + 1) * lengths[i] if batches else 0
        if batches and padded <= budget and padded - held - lengths[i] <= MOST_PADDING * padded:
            batches[-1].append(i)
            held += lengths[i]
        else:
            batches.append([i])
            held = lengths[i]
    return batches


@dataclass(frozen=True)
class SpeechMeasures:
    """Measurements of a recording.

    Attributes:
        duration: length in seconds.
        speech: seconds of speech, including pauses of up to 0.3 s; in [0, duration].
        snr_db: signal-to-noise ratio of the speech in dB, in [-10, 60]; -10 if there is no speech.
        clipped: share of clipped samples, in [0, 1].
        level_db: root mean square level in dBFS; at least -120.
    """

    duration: float
    speech: float
    snr_db: float
    clipped: float
    level_db: float


class _Block(NamedTuple):
    """Measurements of one stretch: whether each frame is speech, its power, and the power of the noise."""

    speech: np.ndarray
    power: np.ndarray
    noise: float


def measure_speech(waveform: np.ndarray, sampling_rate: int) -> SpeechMeasures:
    """Measure how much speech a waveform contains, and how clean it is.

    Args:
        waveform: `(L,)` floating point in [-1, 1], of any length.
        sampling_rate: rate in Hz, at least 8000.

    Raises:
        ValueError: the waveform is not a finite floating-point vector, or the sampling rate is below 8 kHz.
    """
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"A recording must be one channel of floating point in [-1, 1], shape (samples,); got {samples.dtype} of "
            f"shape {samples.shape}. Average the channels, and divide 16-bit audio by 32768."
        )
    if not np.isfinite(samples).all():
        raise ValueError("The recording holds NaN or infinite samples; decode or repair it first.")
    return measure_sound(Sound(samples.astype(np.float32, copy=False), sampling_rate))


def measure_sound(sound: Sound) -> SpeechMeasures:
    """Measure a recording that `read_sound` returned, like `measure_speech`."""
    samples, sampling_rate = sound.waveform, sound.sampling_rate
    if sampling_rate < 2 * HIGHEST_HZ:
        raise ValueError(f"Speech is measured at 8000 Hz or more, got {sampling_rate} Hz.")
    duration = len(samples) / sampling_rate
    frame = round(FRAME_SECONDS * sampling_rate)
    level = _decibels(float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0)
    if len(samples) < 2 * frame:
        return SpeechMeasures(duration, 0.0, LOWEST_SNR_DB, _clipped_share(samples), level)
    count = -(-len(samples) // round(BLOCK_SECONDS * sampling_rate))
    blocks = [_measure_block(part, sampling_rate) for part in np.array_split(samples, count)]
    frames = sum(int(block.speech.sum()) for block in blocks)
    total = sum(len(block.speech) for block in blocks)
    signal = sum(float(block.power[block.speech].sum()) for block in blocks)
    noise = sum(block.noise * int(block.speech.sum()) for block in blocks)
    # The noise is in the frames of the speech, too.
    snr = _decibels(max(signal - noise, 0.0)) - _decibels(noise) if frames else LOWEST_SNR_DB
    snr = min(max(snr, LOWEST_SNR_DB), HIGHEST_SNR_DB)
    return SpeechMeasures(duration, duration * frames / total, snr, _clipped_share(samples), level)


def _power(decibels: float) -> float:
    return 10 ** (decibels / 10)


def _decibels(power: float) -> float:
    return max(10 * float(np.log10(max(power, SMALLEST_POWER))), LOWEST_LEVEL_DB)


def _clipped_share(samples: np.ndarray) -> float:
    """Return the share of samples in runs of equal values at the largest or smallest value."""
    if len(samples) < CLIPPED_RUN or float(samples.max()) == float(samples.min()):
        return 0.0
    total = 0
    for extreme in (samples.max(), samples.min()):
        at = np.concatenate([[False], samples == extreme, [False]])
        edges = np.flatnonzero(at[1:] != at[:-1])
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= CLIPPED_RUN].sum())
    return total / len(samples)


def _measure_block(samples: np.ndarray, sampling_rate: int) -> _Block:
    frame, hop = round(FRAME_SECONDS * sampling_rate), round(HOP_SECONDS * sampling_rate)
    size = round(SPECTRUM_SECONDS * sampling_rate)
    window = np.hanning(frame).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop] * window
    bins = int(HIGHEST_HZ * SPECTRUM_SECONDS) + 1
    # Scaled so that the sum over all bins of both signs is the mean square of the frame.
    spectrum = np.fft.rfft(frames, size)[:, :bins]
    power = (spectrum.real**2 + spectrum.imag**2) / np.float32(size * float(np.square(window).sum()))
    bands = _band_power(power)
    floor = np.quantile(bands, FLOOR_QUANTILE, axis=0)
    quiet = _power(QUANTISATION_DB) * BAND_HZ / (sampling_rate / 2)
    least = np.maximum(np.maximum(floor, quiet) * _power(RISE_DB), bands.max(1, keepdims=True) * _power(-RANGE_DB))
    risen = (bands > least).sum(1) >= RISEN_BANDS
    voiced = _long_runs(risen & (_periodicity(power) > VOICED_PEAK), SHORTEST_VOICED)
    near = _dilate(voiced, round(CARRIED_SECONDS / HOP_SECONDS))
    carried = risen & _dilate(voiced, round(REACH_SECONDS / HOP_SECONDS))
    speech = _close_gaps(near | carried, round(LONGEST_PAUSE / HOP_SECONDS))
    return _Block(speech, bands.sum(1, dtype=np.float64), float(floor.sum(dtype=np.float64)) * _power(FLOOR_BIAS_DB))


def _band_power(power: np.ndarray) -> np.ndarray:
    """Sum the power `(T, F)` over bands of equal width: `(T, B)`."""
    edges = np.arange(LOWEST_HZ, HIGHEST_HZ + 1, BAND_HZ) * SPECTRUM_SECONDS
    return np.add.reduceat(power, np.rint(edges).astype(int)[:-1], axis=1)


def _periodicity(power: np.ndarray) -> np.ndarray:
    """Return the largest autocorrelation of each frame at the lags of voices, after flattening its spectrum: `(T,)`."""
    low, high = round(VOICE_LOWEST_HZ * SPECTRUM_SECONDS), round(VOICE_HIGHEST_HZ * SPECTRUM_SECONDS)
    width = round(ENVELOPE_HZ * SPECTRUM_SECONDS) | 1
    padded = np.pad(power[:, :high], ((0, 0), (width // 2 + 1, width // 2)), mode="reflect")
    sums = np.cumsum(padded, axis=1, dtype=np.float64)
    envelope = (sums[:, width:] - sums[:, :-width]) / width
    steady = np.quantile(envelope, FLOOR_QUANTILE, axis=0)
    gain = np.clip(1 - STEADY_FACTOR * steady / (envelope + SMALLEST_POWER), 0, 1)
    flat = power[:, :high] * (gain / (envelope + SMALLEST_POWER))
    flat[:, :low] = 0
    size = 2 * high
    correlation = np.fft.irfft(flat, size)
    rate = size / SPECTRUM_SECONDS
    lags = slice(int(rate / HIGHEST_PITCH_HZ), int(rate / LOWEST_PITCH_HZ) + 1)
    return correlation[:, lags].max(1) / np.maximum(correlation[:, 0], SMALLEST_POWER)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first index of each run of True, and the index after its end."""
    at = np.concatenate([[False], mask, [False]])
    edges = np.flatnonzero(at[1:] != at[:-1])
    return edges[::2], edges[1::2]


def _long_runs(mask: np.ndarray, shortest: int) -> np.ndarray:
    """Keep only runs of True of at least `shortest` frames."""
    result = np.zeros_like(mask)
    for begin, end in zip(*_runs(mask), strict=True):
        result[begin:end] = end - begin >= shortest
    return result


def _close_gaps(mask: np.ndarray, longest: int) -> np.ndarray:
    """Fill gaps of at most `longest` frames between runs of True."""
    result = mask.copy()
    begins, ends = _runs(mask)
    for end, begin in zip(ends[:-1], begins[1:], strict=True):
        if begin - end <= longest:
            result[end:begin] = True
    return result


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Extend each run of True by `reach` frames on both sides."""
    result = np.zeros_like(mask)
    for begin, end in zip(*_runs(mask), strict=True):
        result[max(0, begin - reach) : end + reach] = True
    return result
