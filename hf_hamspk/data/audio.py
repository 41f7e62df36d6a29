"""Read the recordings of a corpus, complete or in segments, and import torchaudio."""

import logging
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
import soundfile
import torch

from ..audio_hamspk import (
    SHORTEST_SECONDS,
    Channel,
    InputError,
    Limits,
    QuietFile,
    Sound,
    check_rate,
    choose_channel,
    read_sound,
)
from ..files.tables import Segment, split_segment

SAMPLING_RATE = 16_000
"""Usual sampling rate of speaker models in Hz."""

SHOWN_WARNINGS = 5
"""Number of recordings of a corpus whose warnings are logged; the others are counted."""

logger = logging.getLogger(__name__)

CORPUS_LIMITS = Limits(seconds=86_400.0, values=1 << 26)
"""Limits of one corpus file. In practice, the number of samples is the limit: 70 minutes at 16 kHz (256 MiB)."""

SEEKABLE_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
"""Kinds of samples for which libsndfile seeks exactly. After a seek in MP3 and Vorbis, the samples differ."""

SKIPPED_AT_ONCE = 1 << 18
"""Number of samples that are decoded at once to reach the start of a segment."""

SEGMENT_TOLERANCE = 0.05
"""Seconds by which a segment may end after the recording. Times in tables are often rounded."""


def read_utterance(
    source: Any,
    rate: int | None = SAMPLING_RATE,
    name: str = "",
    min_duration: float = SHORTEST_SECONDS,
    channel: Channel = None,
) -> Sound:
    """Read a corpus recording with the strict checks of `read_sound` and the limits `CORPUS_LIMITS`.

    Args:
        source: path, bytes of an audio file, or any other source that `read_sound` accepts. If a path ends in a segment
            (see `files.tables`), only the samples of the segment are read.
        rate: sampling rate of the result in Hz; None keeps the rate of the recording.
        name: name of the recording in errors; "" uses its path.
        min_duration: shortest accepted duration in seconds, at least 0.
        channel: channel to read; see `read_sound`.

    Returns:
        The recording with one channel.

    Raises:
        InputError: the recording is missing, not audio, damaged, cut short, empty, too short, too long or silent, or it
            contains NaN or infinite samples.
    """
    path = source.get("path") if isinstance(source, Mapping) else source
    if not name and isinstance(path, str | os.PathLike):
        name = str(os.fspath(path))
    label = name if name else "the recording"
    rate_of_array = None
    if isinstance(source, str | os.PathLike):
        file, segment = split_segment(os.fspath(source))
        if segment is not None:
            source, rate_of_array, channel = _read_segment(file, segment, label, channel)
            rate = rate_of_array if rate is None else rate
    limits = choose_channel(CORPUS_LIMITS, channel)
    return read_sound(source, rate, label, limits, rate_of_array, strict=True, min_duration=min_duration)


def _read_segment(path: str, segment: Segment, label: str, channel: Channel) -> tuple[np.ndarray, int, Channel]:
    """Return the samples `(L,)` or `(L, C)` of a segment, their rate in Hz, and the channel to choose from them."""
    found = _seek_segment(path, segment) if os.path.isfile(path) else None
    if found is not None:
        return *found, channel
    # The length of the file is unknown, or its decoder cannot seek.
    whole = read_sound(path, None, label, CORPUS_LIMITS, channel=channel)
    start, stop = segment_bounds(segment, whole.sampling_rate, len(whole.waveform), label)
    return whole.waveform[start:stop], whole.sampling_rate, None


def _seek_segment(path: str, segment: Segment) -> tuple[np.ndarray, int] | None:
    """Read a segment without the rest of the file; None if this is not possible."""
    try:
        # Opened by its file descriptor, because soundfile would read a file named "*.raw" as raw samples.
        with open(os.open(path, os.O_RDONLY), "rb") as raw, soundfile.SoundFile(cast(Any, QuietFile(raw))) as file:
            rate, frames = check_rate(file.samplerate, ""), file.frames
            start, stop = segment_bounds(segment, rate, frames, "")
            # Otherwise soundfile seeks after each block.
            file.seekable = lambda: False
            if (stop - start) * file.channels > CORPUS_LIMITS.values:
                return None
            if file.subtype.startswith(SEEKABLE_SUBTYPES):
                file.seek(start)
            else:
                _skip(file, start)
            samples = file.read(stop - start, dtype="float32", always_2d=True)
    # Reading the whole file gives a better error message.
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError):
        return None
    return (samples if samples.shape[1] > 1 else samples[:, 0], rate) if len(samples) == stop - start else None


def _skip(file: soundfile.SoundFile, frames: int) -> None:
    """Decode and discard the first frames of a file."""
    while frames > 0:
        found = len(file.read(min(frames, SKIPPED_AT_ONCE), dtype="float32", always_2d=True))
        if found == 0:
            return
        frames -= found


def join_segments(sound: Sound, segments: Sequence[Segment]) -> tuple[Sound, dict[Segment, str]]:
    """Return the samples of segments of a recording, one after the other.

    Returns:
        The joined recording, and a dictionary that maps each segment that cannot be used to the reason.
    """
    parts, skipped = [np.empty(0, np.float32)], {}
    for segment in segments:
        try:
            start, stop = segment_bounds(segment, sound.sampling_rate, len(sound.waveform), "")
            parts.append(sound.waveform[start:stop])
        except InputError as error:
            skipped[segment] = error.reason
    return Sound(np.concatenate(parts), sound.sampling_rate, sound.warnings), skipped


def segment_bounds(segment: Segment, rate: int, frames: int, label: str) -> tuple[int, int]:
    """Return the first sample of a segment and the sample after its last one.

    Raises:
        InputError: the recording ends before the segment.
    """
    scale = 1 if segment.samples else rate
    start = round(segment.start * scale)
    stop = frames if segment.stop is None else round(segment.stop * scale)
    if start >= frames or stop > frames + SEGMENT_TOLERANCE * rate:
        until = "its end" if segment.stop is None else f"{stop / rate:.2f} s"
        raise InputError(
            f"lasts {frames / rate:.2f} s, but the segment is from {start / rate:.2f} s to {until}; correct the times",
            label,
        )
    return start, min(stop, frames)


def log_warnings(found: Mapping[str, Sequence[str]]) -> None:
    """Log the warnings of `read_sound` about the first few recordings of a corpus, and the number of the others.

    Args:
        found: maps recordings to their warnings, which may be empty.
    """
    warned = [warnings for warnings in found.values() if warnings]
    for warnings in warned[:SHOWN_WARNINGS]:
        logger.warning("%s", " ".join(warnings))
    if len(warned) > SHOWN_WARNINGS:
        logger.warning("%d more recordings have warnings.", len(warned) - SHOWN_WARNINGS)


def import_torchaudio() -> ModuleType:
    """Import torchaudio, or raise an error that explains how to install a suitable version.

    The torchaudio on PyPI for Linux is a CUDA build. If torch is CPU-only, a CUDA library is missing and the import
    raises OSError. If torch was built for another CUDA version, the import raises RuntimeError.

    Returns:
        The module torchaudio.

    Raises:
        ImportError: torchaudio is not installed or does not fit the installed torch.
    """
    try:
        import torchaudio
        import torchaudio.functional
    except ModuleNotFoundError as error:
        raise ImportError(
            f"torchaudio is not installed ({error}). Run `pip install 'torchaudio>=2.11,<2.12'`."
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        kind = "CPU-only" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        raise ImportError(
            f"torchaudio cannot be imported ({error}). The torchaudio on PyPI is built for CUDA 13.0, but this torch "
            f"({torch.__version__}) is {kind}. Install torch from PyPI (`pip install 'torch>=2.11,<2.15'`), or run "
            "`python -m hf_hamspk.cli.doctor --fix-torchaudio`, which removes torchaudio's compiled extension. "
            "torchaudio then works as pure Python."
        ) from error
    return torchaudio
