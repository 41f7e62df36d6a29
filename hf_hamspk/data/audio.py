"""Audio files to waveforms: soundfile decodes, torchaudio resamples.

Every waveform of the package is mono float32 of shape `(L,)` at the sampling rate that was asked for. Files with more
than one channel are averaged over their channels; files at another sampling rate (telephone speech at 8 kHz too) are
resampled. What cannot be a recording of a voice is refused with an `AudioError` that names the file and the cure.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import soundfile as sf
import torch

from ..audio_hamspk import wav_frames

SAMPLING_RATE = 16_000
"""Samples per second that the speaker models of the field take."""

MIN_DURATION = 0.1
"""Seconds. A tenth of a second holds ten frames, fewer than any encoder of the package spans."""

SILENCE_SPAN = 2e-5
"""Largest minus smallest sample below which a file holds no sound: two thirds of one step of a 16-bit file (3.05e-5),
so the faintest real signal passes and constant files do not, whatever their offset."""

DECODED_SHARE = 0.9
"""Share of the samples promised by the header below which a file counts as cut short. MP3 headers of sound files are
off by one or two frames (72 ms), hence not 1."""

AudioSource = str | os.PathLike[str] | bytes | BinaryIO | Mapping[str, Any]


class AudioError(ValueError):
    """An audio file that cannot be used; the message names it and says what to do.

    Attributes:
        source: name of the file, where the raiser gave one.
        reason: the message without the name, where the raiser gave one.
    """

    # One positional argument is enough to build it again: PyTorch re-raises a worker's exception that way.
    def __init__(self, reason: str, source: str = ""):
        super().__init__(f"{source}: {reason}" if source else reason)
        self.reason = reason
        self.source = source


@dataclass(frozen=True)
class Sound:
    """A decoded recording.

    Attributes:
        waveform: `(L,)` float32, full scale is 1.
        sampling_rate: samples per second.
    """

    waveform: np.ndarray
    sampling_rate: int

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.waveform) / self.sampling_rate


def import_torchaudio() -> ModuleType:
    """torchaudio, or an error that says how to get one that works.

    PyPI's torchaudio for Linux is a CUDA build. Beside a CPU-only torch its import raises OSError (a CUDA library is
    missing), beside a torch of another CUDA version RuntimeError.

    Raises:
        ImportError: torchaudio is absent or does not fit the torch that is installed.
    """
    try:
        import torchaudio
        import torchaudio.functional
    except ModuleNotFoundError as error:
        raise ImportError(f"torchaudio is not installed ({error}): `pip install 'torchaudio>=2.11,<2.12'`") from error
    except (ImportError, OSError, RuntimeError) as error:
        kind = "CPU-only" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise ImportError(
            f"torchaudio cannot be imported ({error}). PyPI's is a build for CUDA 13.0, and this torch "
            f"({torch.__version__}) is {kind}: install the torch from PyPI (`pip install 'torch>=2.11,<2.15'`), or run "
            "`python -m hf_hamspk.cli.doctor --fix-torchaudio`, which removes torchaudio's compiled extension so that "
            "it imports as pure Python"
        ) from error
    return torchaudio


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample by windowed-sinc interpolation (`torchaudio.functional.resample`).

    Args:
        waveform: `(L,)` float32.
        from_rate: samples per second of `waveform`, a positive integer.
        to_rate: samples per second wanted, a positive integer.

    Returns:
        `(ceil(L * to_rate / from_rate),)` float32; `waveform` itself where the rates are equal.

    Raises:
        ValueError: a rate is not a positive integer.
        ImportError: torchaudio does not import, see `import_torchaudio`.
    """
    for name, rate in (("from_rate", from_rate), ("to_rate", to_rate)):
        if rate != int(rate) or rate <= 0:
            raise ValueError(f"{name} must be a positive whole number of samples per second, got {rate}")
    if from_rate == to_rate:
        return waveform
    functional = import_torchaudio().functional
    # torch refuses to share read-only memory quietly, and a strided view costs more to resample than to copy.
    samples = torch.from_numpy(np.array(waveform, dtype=np.float32))
    return functional.resample(samples, int(from_rate), int(to_rate)).numpy()


def read_sound(source: AudioSource, min_duration: float = MIN_DURATION, silence: bool = False) -> Sound:
    """Decode a recording at its own sampling rate, averaged over its channels, and check what it holds.

    Args:
        source: a path, the bytes of an audio file, an open binary file, or the audio dictionary of `datasets`
            (`{"bytes": ..., "path": ...}`, either of them None). Formats are libsndfile's: WAV, FLAC, OGG, Opus, MP3.
        min_duration: seconds, at least 0.
        silence: take a recording without any sound, too.

    Raises:
        AudioError: the file is missing, no audio, damaged, cut short, empty, shorter than `min_duration`, holds NaN or
            infinite samples, or no sound.
    """
    handle, name = _open(source)
    return check_samples(*_decode(handle, name), name, min_duration, silence)


def check_samples(
    samples: np.ndarray, rate: int, promised: int, name: str, min_duration: float, silence: bool = False
) -> Sound:
    """What a decoder gave, averaged over its channels, if it can be a recording of a voice.

    Args:
        samples: `(L, channels)` float32.
        rate: samples per second.
        promised: samples that the header promises.
        name: of the file, for errors.
        min_duration: seconds, at least 0.
        silence: take a recording without any sound, too.

    Raises:
        AudioError: see `read_sound`, all but the first three.
    """
    decoded, channels = samples.shape
    if decoded < DECODED_SHARE * promised:
        raise AudioError(
            f"is cut short: its header promises {promised} samples, {decoded} could be decoded; copy it anew", name
        )
    if decoded == 0:
        raise AudioError("is empty (0 samples); record it anew or leave it out", name)
    bad = samples.size - int(np.count_nonzero(np.isfinite(samples)))
    if bad:
        raise AudioError(
            f"holds {bad} NaN or infinite samples of {samples.size}; convert it anew from its original", name
        )
    if decoded < round(min_duration * rate):
        raise AudioError(
            f"lasts {decoded / rate:.3g} s, at least {min_duration:g} s are needed; leave it out",
            name,
        )
    waveform = samples[:, 0] if channels == 1 else samples.mean(axis=1)
    if not silence and float(waveform.max()) - float(waveform.min()) < SILENCE_SPAN:
        averaged = "" if channels == 1 else f" after averaging its {channels} channels"
        raise AudioError(
            f"holds no sound{averaged} (every sample is {waveform[0]:g}); check the recording or leave it out", name
        )
    return Sound(waveform, rate)


def read_audio(
    source: AudioSource, sampling_rate: int = SAMPLING_RATE, min_duration: float = MIN_DURATION
) -> np.ndarray:
    """Decode a recording to mono float32 at `sampling_rate`.

    Channels are averaged; another sampling rate is resampled, so 8 kHz works (what lies above 4 kHz stays empty).

    Args:
        source: a path, bytes, an open binary file or an audio dictionary of `datasets`, see `read_sound`.
        sampling_rate: samples per second wanted.
        min_duration: seconds, at least 0.

    Returns:
        `(L,)` float32 with `L >= min_duration * sampling_rate`; full scale is 1.

    Raises:
        AudioError: the recording cannot be used, see `read_sound`.
        ImportError: resampling is needed and torchaudio does not import.
    """
    sound = read_sound(source, min_duration)
    return resample(sound.waveform, sound.sampling_rate, sampling_rate)


def header_duration(source: AudioSource) -> float:
    """Seconds that the header of a recording promises; nothing is decoded.

    Raises:
        AudioError: the file is missing or no audio.
    """
    handle, name = _open(source)
    try:
        return float(sf.info(handle).duration)
    except (sf.SoundFileError, OSError, TypeError) as error:
        raise _not_audio(name, error) from error


def _open(source: AudioSource) -> tuple[Any, str]:
    """What soundfile can read, and the name that errors give it."""
    if isinstance(source, Mapping):
        path, content = source.get("path"), source.get("bytes")
        if content is not None:
            return io.BytesIO(content), "<bytes>" if path is None else str(path)
        if path is None:
            raise AudioError('an audio dictionary needs "bytes" or "path", both are None or absent', "<dictionary>")
        source = path
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise AudioError("no such file; check the path and the folder that it is relative to", str(path))
        if path.is_dir():
            raise AudioError("is a folder; give one audio file", str(path))
        return str(path), str(path)
    if hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        return source, str(getattr(source, "name", "<file object>"))
    raise AudioError(
        f"expected a path, bytes, a file opened in binary mode or an audio dictionary, got {type(source).__name__}"
    )


def _decode(handle: Any, name: str) -> tuple[np.ndarray, int, int]:
    """`(frames, channels)` float32, samples per second, and the frames that the header promises."""
    promised = _wav_frames(handle)
    if _is_empty(handle):
        raise AudioError("is an empty file (0 bytes); copy it anew or leave it out", name)
    try:
        with sf.SoundFile(handle) as file:
            return file.read(dtype="float32", always_2d=True), file.samplerate, max(promised, file.frames)
    # soundfile raises TypeError for headerless ".raw" files.
    except (sf.SoundFileError, OSError, TypeError) as error:
        raise _not_audio(name, error) from error


def _wav_frames(handle: Any) -> int:
    """See `wav_frames`; 0 for what cannot be gone back in."""
    if isinstance(handle, str):
        try:
            with open(handle, "rb") as file:
                return wav_frames(file)
        except OSError:
            return 0
    return wav_frames(handle) if hasattr(handle, "seekable") and handle.seekable() else 0


def _is_empty(handle: Any) -> bool:
    if isinstance(handle, str):
        return os.path.isfile(handle) and os.path.getsize(handle) == 0
    return isinstance(handle, io.BytesIO) and handle.getbuffer().nbytes == 0


def _not_audio(name: str, error: Exception) -> AudioError:
    # The whole message of a LibsndfileError repeats the path.
    said = str(getattr(error, "error_string", error)).rstrip(".")
    return AudioError(
        f"cannot be decoded ({said}); it is damaged or not WAV, FLAC, OGG, Opus or MP3: convert it, "
        "for example with `ffmpeg -i INPUT OUTPUT.flac`",
        name,
    )
