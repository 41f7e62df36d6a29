"""Encode an audio file for a shard as 16-bit FLAC or Opus, or keep it unchanged."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import soundfile as sf

from ..audio_hamspk import Channel, InputError, Sound, resample
from ..data.audio import read_utterance
from .listing import MemberReader

FULL_SCALE = 32768
"""Number of 16-bit steps for an amplitude of 1.

libsndfile divides by 32768 when it reads, but multiplies floats by 32767 when it writes. That would change loud samples
by one step, so `to_16_bit` converts the samples instead.
"""

OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
"""Sampling rates in Hz that the Opus codec supports."""


@dataclass(frozen=True)
class Encoded:
    """Encoded audio of one utterance in a shard.

    Attributes:
        content: bytes of the audio file.
        suffix: suffix of the file name, with the dot.
        samples: number of samples.
        sampling_rate: sampling rate in Hz.
    """

    content: bytes
    suffix: str
    samples: int
    sampling_rate: int

    @property
    def duration(self) -> float:
        """Return the duration in seconds."""
        return self.samples / self.sampling_rate


def to_16_bit(waveform: np.ndarray) -> np.ndarray:
    """Convert float32 samples `(L,)` in [-1, 1] to int16. Samples of 16-bit audio get their original values back."""
    # In place, because a recording can take 256 MiB.
    steps = waveform * np.float32(FULL_SCALE)
    np.rint(steps, out=steps)
    return np.clip(steps, -FULL_SCALE, FULL_SCALE - 1, out=steps).astype(np.int16)


def encode_waveform(waveform: np.ndarray, sampling_rate: int, codec: str) -> bytes:
    """Encode a waveform as the bytes of a FLAC or Ogg Opus file.

    Args:
        waveform: float32 samples `(L,)`. Samples outside [-1, 1] are clipped.
        sampling_rate: sampling rate in Hz.
        codec: "flac" (16 bit; the same samples give the same bytes) or "opus" (lossy; the number of samples is kept).
    """
    kind, subtype = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}[codec]
    buffer = io.BytesIO()
    sf.write(buffer, to_16_bit(waveform), sampling_rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def encode_file(
    content: bytes, name: str, codec: str, sampling_rate: int, min_duration: float, channel: Channel = None
) -> Encoded:
    """Check a file by decoding it, and encode it for a shard.

    If `codec` is "flac", a 16-bit mono FLAC file with the sampling rate `sampling_rate` and little metadata is kept
    unchanged. If `codec` is "source", every file is kept unchanged.

    Args:
        content: bytes of the file.
        name: name of the file, for errors and, if `codec` is "source", for the suffix.
        codec: "flac", "opus" or "source".
        sampling_rate: sampling rate of the shards in Hz. It is ignored if `codec` is "source".
        min_duration: shortest duration in seconds that is accepted.
        channel: channel to keep; see `read_sound`. It must be None if `codec` is "source".

    Raises:
        InputError: the file cannot be used.
        MissingDecoderError: the file is AAC and PyAV is not installed.
    """
    sound = read_utterance(content, None, name, min_duration, channel)
    if codec == "source":
        suffix = PurePosixPath(name).suffix.lower()
        return Encoded(content, suffix if suffix else _suffix(content), len(sound.waveform), sound.sampling_rate)
    if codec == "flac" and sound.sampling_rate == sampling_rate and _is_plain_flac(content):
        return Encoded(content, ".flac", len(sound.waveform), sampling_rate)
    return _encode_sound(sound, name, codec, sampling_rate)


def encode_member(
    reader: MemberReader,
    row: Mapping[str, Any],
    codec: str,
    sampling_rate: int,
    min_duration: float,
    channel: Channel = None,
) -> Encoded:
    """Read the recording or segment of a row, check it and encode it for a shard.

    Args:
        reader: reader of the sources.
        row: row of a listing (see `listing.LISTING_SCHEMA`).
        codec: codec of the shards. With "source", a segment becomes a FLAC file with the rate of its recording.
        sampling_rate: sampling rate of the shards in Hz.
        min_duration: shortest duration in seconds that is accepted.
        channel: channel to keep; see `encode_file`.

    Raises:
        InputError: the recording or the segment cannot be used.
        SourceChanged, ArchiveError, OSError: it cannot be read (see `MemberReader.read`).
    """
    path = reader.segment(row)
    if path is None:
        return encode_file(reader.read(row), row["name"], codec, sampling_rate, min_duration, channel)
    sound = read_utterance(path, None, row["name"], min_duration, channel)
    unchanged = codec == "source"
    return _encode_sound(
        sound, row["name"], "flac" if unchanged else codec, sound.sampling_rate if unchanged else sampling_rate
    )


def _encode_sound(sound: Sound, name: str, codec: str, sampling_rate: int) -> Encoded:
    waveform = resample(sound.waveform, sound.sampling_rate, sampling_rate)
    if not np.isfinite(waveform).all():
        raise InputError("has infinite samples after resampling; convert it again from its original", name)
    return Encoded(encode_waveform(waveform, sampling_rate, codec), f".{codec}", len(waveform), sampling_rate)


def _is_plain_flac(content: bytes) -> bool:
    """Return True if a file is a FLAC file with 16 bits, one channel and little metadata.

    Files with much metadata are encoded again, because cover art can be larger than the speech.
    """
    if content[:4] != b"fLaC":
        return False
    info = sf.info(io.BytesIO(content))
    return info.subtype == "PCM_16" and info.channels == 1 and _flac_metadata(content) <= len(content) // 20 + 10_000


def _flac_metadata(content: bytes) -> int:
    """Return the number of bytes before the first frame of a FLAC file (RFC 9639, section 8)."""
    place = 4
    last = False
    while not last and place + 4 <= len(content):
        last = bool(content[place] & 0x80)
        place += 4 + int.from_bytes(content[place + 1 : place + 4], "big")
    return place


def _suffix(content: bytes) -> str:
    """Return the suffix of an audio file according to its first bytes. It is used if the file has no name."""
    known = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg"}
    return ".m4a" if content[4:8] == b"ftyp" else known.get(content[:4], ".mp3")
