"""Recordings as people hand them over (paths, URLs, bytes, arrays, dictionaries, decoders) as waveforms.

Whatever cannot be a recording is refused with an `InputError` that says what was expected, what came, and what to do.
Nothing is read or decoded beyond the limits, whatever a header promises.

Letters: `L` samples.
"""

import http.client
import io
import math
import os
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .integrity import is_number
from .resampling import resample

try:
    import soundfile
except (ImportError, OSError):
    # Arrays need no decoder.
    soundfile = None

# Below this speech loses what tells voices apart; above, it is a mistake.
LOWEST_RATE, HIGHEST_RATE = 8000, 384_000
# More channels than a microphone array has.
MOST_CHANNELS = 32
# A float recording may go a little beyond full scale; 16-bit samples as floats go far beyond it.
LOUDEST = 16.0
# Full scale of integer samples.
FULL_SCALE = {"int16": 1 << 15, "int32": 1 << 31}
# Share of the samples that a header promises below which a file counts as cut short.
DECODED_SHARE = 0.9
FETCH_SECONDS = 20.0
DECODED_AT_ONCE = 1 << 18
# Of a WAV file, before its samples; and from what size on "data" only says that the writer did not know.
MOST_CHUNKS, UNKNOWN_SIZE = 64, 0x7FFFFFFF
# Channels this much weaker than the loudest (in power, 40 dB) hold crosstalk or nothing.
SILENT_CHANNEL = 1e-4
# Power of the mean of channels over their mean power: 1 for equal ones, 1/2 for two unrelated, 0 for opposite ones.
ALIKE_CHANNELS = 0.75


class InputError(ValueError):
    """What was handed over cannot be used. The message is for whoever did, and names no file that they did not name."""


@dataclass(frozen=True)
class Limits:
    """How much is read of one recording.

    Attributes:
        seconds: of audio; a longer recording is refused.
        size: of a file, in bytes.
        remote: fetch URLs and open paths; False leaves bytes, arrays and decoders.
    """

    seconds: float = 600.0
    size: int = 256 << 20
    remote: bool = True

    def __post_init__(self) -> None:
        if not is_number(self.seconds) or self.seconds <= 0:
            raise InputError(f"limits: seconds must be a positive number, got {_short(repr(self.seconds))}.")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"limits: size must be a number of bytes, at least 1, got {_short(repr(self.size))}.")
        if not isinstance(self.remote, bool):
            raise InputError(f"limits: remote must be True or False, got {_short(repr(self.remote))}.")


@dataclass(frozen=True)
class Sound:
    """A recording, decoded.

    Attributes:
        waveform: `(L,)` float32 at the rate that was asked for, one channel, finite.
        warnings: sentences.
    """

    waveform: np.ndarray
    warnings: list[str] = field(default_factory=list)


def read_sound(source: Any, rate: int, label: str, limits: Limits, source_rate: int | None = None) -> Sound:
    """Decode a recording, average its channels, resample it.

    Args:
        source: a path, a URL, the bytes of an audio file, an open binary file, an array or tensor `(L,)` (or with
            channels), a decoder of torchcodec, or a dictionary: `{"array" or "raw", "sampling_rate"}`, or `{"bytes",
            "path"}` as `datasets` has it. Samples are floating point in [-1, 1], or of 16 or 32 bits.
        rate: wanted, in Hz.
        label: what messages call it, for example "The test".
        limits: how much is read.
        source_rate: of arrays that come without one, in Hz; None: as wanted, with a warning.

    Raises:
        InputError: it is no recording, or one that cannot be used.
        ImportError: a file is to be decoded, and soundfile is missing.
    """
    samples, found, warnings = _samples(source, rate if source_rate is None else source_rate, label, limits)
    if not isinstance(samples, np.ndarray | torch.Tensor):
        raise InputError(f"{label} holds {type(samples).__name__}; expected an array of samples.")
    _check_rate(found, label)
    waveform = _as_waveform(samples, found, label, limits, warnings)
    if source_rate is None and _lacks_rate(source):
        warnings.append(f"{label} came without a sampling rate and was taken to have {rate} Hz; give sampling_rate.")
    if found < rate:
        warnings.append(
            f"{label} was recorded at {found} Hz, the model hears {rate} Hz: what lies above {found / 2000:g} kHz is "
            "missing."
        )
    return Sound(resample(waveform, found, rate), warnings)


def _samples(source: Any, array_rate: int, label: str, limits: Limits) -> tuple[Any, Any, list[str]]:
    """Samples (an array of one or two axes), their rate, and warnings."""
    if isinstance(source, Mapping):
        return _of_mapping(source, array_rate, label, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), len(source), label, limits)
    if isinstance(source, str | os.PathLike):
        return _of_name(os.fspath(source), label, limits)
    if isinstance(source, np.ndarray | torch.Tensor):
        return source, array_rate, []
    if hasattr(source, "get_all_samples"):
        return _of_decoder(source, label, limits)
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        try:
            content = source.read(limits.size + 1)
        except (OSError, ValueError) as error:
            raise InputError(f"{label} is a file that cannot be read ({error}). Is it open?") from error
        if isinstance(content, bytes):
            return _decode(io.BytesIO(content), len(content), label, limits)
    raise InputError(
        f"{label} is of type {type(source).__name__}; expected a path, a URL, bytes, an array, or a dictionary with "
        '"array" and "sampling_rate", or with "bytes" or "path".'
    )


def _lacks_rate(source: Any) -> bool:
    if isinstance(source, Mapping):
        return "sampling_rate" not in source and any(source.get(key) is not None for key in ("array", "raw"))
    return isinstance(source, np.ndarray | torch.Tensor)


def _of_mapping(source: Mapping, array_rate: int, label: str, limits: Limits) -> tuple[Any, Any, list[str]]:
    for key in ("array", "raw"):
        if source.get(key) is not None:
            samples = source[key]
            if isinstance(samples, list | tuple):
                if len(samples) > limits.seconds * HIGHEST_RATE:
                    raise _too_long(label, len(samples) / HIGHEST_RATE, limits)
                samples = _as_array(samples, label)
            return samples, source.get("sampling_rate", array_rate), []
    for key in ("bytes", "path"):
        if source.get(key) is not None:
            if isinstance(source[key], bytes if key == "bytes" else str | os.PathLike):
                return _samples(source[key], array_rate, label, limits)
            raise InputError(f"{label} holds {type(source[key]).__name__} under {key!r}; expected {_KINDS[key]}.")
    keys = ", ".join(repr(key) for key in list(source)[:5])
    raise InputError(
        f'{label} is a dictionary with {keys if keys else "nothing in it"}; expected "array" (or "raw") and '
        '"sampling_rate", or "bytes" or "path".'
    )


_KINDS = {"bytes": "the bytes of an audio file", "path": "a path"}


def _as_array(samples: Any, label: str) -> np.ndarray:
    try:
        return np.asarray(samples, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{label} holds a list that is no list of numbers; expected samples in [-1, 1].") from error


def _of_name(name: str | bytes, label: str, limits: Limits) -> tuple[Any, Any, list[str]]:
    if not isinstance(name, str) or not limits.remote:
        raise InputError(f"{label} is a name; expected the recording itself, as bytes or as an array.")
    if name.startswith(("http://", "https://")):
        content = _fetch(name, label, limits)
        return _decode(io.BytesIO(content), len(content), label, limits)
    if not os.path.isfile(name):
        what = "a folder" if os.path.isdir(name) else "no file"
        raise InputError(f"{label}: {_short(name)} is {what}; expected an audio file, or a URL with http(s)://.")
    try:
        with open(name, "rb") as file:
            return _decode(file, os.path.getsize(name), label, limits)
    except OSError as error:
        raise InputError(f"{label}: {_short(name)} cannot be read ({type(error).__name__}).") from error


def _short(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:120]}...")


def _fetch(url: str, label: str, limits: Limits) -> bytes:
    try:
        # Some servers refuse Python's own name.
        request = urllib.request.Request(url, headers={"User-Agent": "hamspk"})
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:
            return response.read(limits.size + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"the server answered {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise InputError(f"{label}: {_short(url)} cannot be fetched ({reason}).") from error


def _of_decoder(decoder: Any, label: str, limits: Limits) -> tuple[Any, Any, list[str]]:
    """A decoder of torchcodec, which `datasets` hands over."""
    try:
        seconds = getattr(getattr(decoder, "metadata", None), "duration_seconds", None)
        if seconds is not None and seconds > limits.seconds:
            raise _too_long(label, float(seconds), limits)
        decoded = decoder.get_all_samples()
        return decoded.data, decoded.sample_rate, []
    except InputError:
        raise
    except Exception as error:
        # What a decoder raises is anybody's guess.
        raise InputError(f"{label} cannot be decoded ({type(error).__name__}); is it damaged?") from error


def _decode(file: Any, size: int, label: str, limits: Limits) -> tuple[np.ndarray, int, list[str]]:
    """Decode a file, as far as the limits go: `(L, channels)` float32, the rate, warnings."""
    if soundfile is None:
        raise ImportError(
            "Audio files are decoded by soundfile, which is not installed (`pip install soundfile`). Arrays need none."
        )
    if size > limits.size:
        raise InputError(f"{label} is a file of more than {limits.size >> 20} MiB; cut out the part that matters.")
    if size == 0:
        raise InputError(f"{label} is an empty file.")
    in_header = wav_frames(file)
    try:
        with soundfile.SoundFile(file) as sound:
            rate, promised, channels = sound.samplerate, max(sound.frames, in_header), sound.channels
            if channels > MOST_CHANNELS:
                raise InputError(f"{label} has {channels} channels, at most {MOST_CHANNELS} are read. Is it damaged?")
            _check_rate(rate, label)
            most = math.floor(limits.seconds * rate)
            if promised > most:
                raise _too_long(label, promised / rate, limits)
            blocks, decoded = [], 0
            while decoded <= most:
                blocks.append(sound.read(DECODED_AT_ONCE, dtype="float32", always_2d=True))
                decoded += len(blocks[-1])
                if len(blocks[-1]) < DECODED_AT_ONCE:
                    break
    # soundfile raises TypeError for headerless ".raw" files.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise InputError(
            f"{label} cannot be decoded: it is damaged, or not WAV, FLAC, OGG, Opus or MP3. Convert it, for example "
            "with `ffmpeg -i INPUT OUTPUT.flac`."
        ) from error
    warnings = []
    if decoded < DECODED_SHARE * promised:
        warnings.append(
            f"{label} is cut short: {promised / rate:.1f} s are promised, {decoded / rate:.1f} s are there."
        )
    return np.concatenate(blocks), rate, warnings


def wav_frames(file: Any) -> int:
    """Frames that the header of a WAV file promises, where soundfile tells only those that are there.

    Args:
        file: binary, seekable, at its start; it is left there.

    Returns:
        0 for another file, and for one that was written to a pipe and does not say.
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


def _too_long(label: str, seconds: float, limits: Limits) -> InputError:
    return InputError(
        f"{label} lasts {seconds:.0f} s, at most {limits.seconds:g} s are taken; cut out a part. A minute is plenty."
    )


def _check_rate(rate: Any, label: str) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(
            f"{label} has a sampling rate of {_short(str(rate))} Hz; expected a whole number from {LOWEST_RATE} to "
            f"{HIGHEST_RATE}."
        )


def _as_waveform(
    samples: np.ndarray | torch.Tensor, rate: int, label: str, limits: Limits, warnings: list[str]
) -> np.ndarray:
    """`(L,)` float32 in [-1, 1], finite; channels, in front or behind, are averaged."""
    shape = tuple(samples.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and not 0 < min(shape) <= MOST_CHANNELS):
        raise InputError(f"{label} has shape {shape}; expected (samples,), or channels and samples.")
    if max(shape) > limits.seconds * rate:
        raise _too_long(label, max(shape) / rate, limits)
    values = _full_scale(_to_numpy(samples, label), label)
    if values.ndim == 1 or not values.size:
        return values.reshape(-1)
    channels = values if shape[0] <= shape[1] else values.T
    if _differ(channels):
        warnings.append(
            f"{label} has channels that differ, which were averaged: are they of different people or microphones? Give "
            "the one that matters."
        )
    return channels.mean(0)


def _differ(channels: np.ndarray) -> bool:
    """Whether those of `(C, L)` that hold sound are of different things, or cancel each other."""
    power = np.square(channels, dtype=np.float64).mean(1)
    heard = power > SILENT_CHANNEL * power.max()
    if np.count_nonzero(heard) < 2:
        return False
    return np.square(channels[heard].mean(0), dtype=np.float64).mean() < ALIKE_CHANNELS * power[heard].mean()


def _to_numpy(samples: np.ndarray | torch.Tensor, label: str) -> np.ndarray:
    if isinstance(samples, np.ndarray):
        return samples
    try:
        samples = samples.detach().cpu()
        return (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{label} is a tensor of {samples.dtype} that is no plain array of samples.") from error


def _full_scale(samples: np.ndarray, label: str) -> np.ndarray:
    """Float32 in [-1, 1], finite."""
    if samples.dtype.name in FULL_SCALE:
        return samples.astype(np.float32) / np.float32(FULL_SCALE[samples.dtype.name])
    if not np.issubdtype(samples.dtype, np.floating):
        raise InputError(
            f"{label} holds {samples.dtype} samples; expected floating point in [-1, 1], or integers of 16 or 32 bits."
        )
    bad = samples.size - int(np.count_nonzero(np.isfinite(samples)))
    if bad:
        raise InputError(f"{label} holds {bad} NaN or infinite samples of {samples.size}; decode or repair it first.")
    loudest = float(np.abs(samples).max()) if samples.size else 0.0
    if loudest > LOUDEST:
        raise InputError(
            f"{label} holds samples up to {loudest:.4g}; expected floating point in [-1, 1]. Divide 16-bit audio by "
            "32768."
        )
    return samples.astype(np.float32)
