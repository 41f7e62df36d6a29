"""Encoding a source's file for a shard: 16-bit FLAC, Opus, or the file unchanged."""

import io
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import soundfile as sf

from ..audio_hamspk import InputError, resample
from ..data.audio import read_utterance

FULL_SCALE = 32768
"""Steps of a 16-bit sample for an amplitude of 1. libsndfile reads with this number and writes floats with one less,
which would change loud samples by one step, so the samples are rounded here."""

OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
"""Samples per second that the Opus codec knows."""


@dataclass(frozen=True)
class Encoded:
    """Audio as it goes into a shard.

    Attributes:
        content: the bytes of an audio file.
        suffix: of its name, with the dot.
        samples: number of samples.
        sampling_rate: samples per second.
    """

    content: bytes
    suffix: str
    samples: int
    sampling_rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / self.sampling_rate


def to_16_bit(waveform: np.ndarray) -> np.ndarray:
    """Round `(L,)` float32 of full scale 1 to int16; samples that came from 16 bits get their values back."""
    return np.clip(np.rint(waveform * np.float32(FULL_SCALE)), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def encode_waveform(waveform: np.ndarray, sampling_rate: int, codec: str) -> bytes:
    """The bytes of a FLAC or Ogg Opus file.

    Args:
        waveform: `(L,)` float32, full scale is 1; louder samples are clipped.
        sampling_rate: samples per second.
        codec: "flac" (16 bit, the same bytes for the same samples) or "opus" (lossy; the number of samples is kept).
    """
    kind, subtype = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}[codec]
    buffer = io.BytesIO()
    sf.write(buffer, to_16_bit(waveform), sampling_rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def encode_file(content: bytes, name: str, codec: str, sampling_rate: int, min_duration: float) -> Encoded:
    """Decode a file, which checks it, and encode it for a shard.

    A FLAC file that is 16-bit, mono and at the rate already is taken unchanged; "source" takes every file unchanged.

    Args:
        content: the bytes of the file.
        name: of the file: for errors, and for the suffix under the codec "source".
        codec: "flac", "opus" or "source".
        sampling_rate: of the shards, samples per second; under the codec "source" the file's own is kept.
        min_duration: seconds.

    Raises:
        InputError: the file cannot be used.
        MissingDecoderError: it is AAC and PyAV is not installed.
    """
    sound = read_utterance(content, None, name, min_duration)
    if codec == "source":
        suffix = PurePosixPath(name).suffix.lower()
        return Encoded(content, suffix if suffix else _suffix(content), len(sound.waveform), sound.sampling_rate)
    if codec == "flac" and sound.sampling_rate == sampling_rate and _is_plain_flac(content):
        return Encoded(content, ".flac", len(sound.waveform), sampling_rate)
    waveform = resample(sound.waveform, sound.sampling_rate, sampling_rate)
    if not np.isfinite(waveform).all():
        raise InputError("has infinite samples after resampling; convert it again from its original", name)
    return Encoded(encode_waveform(waveform, sampling_rate, codec), f".{codec}", len(waveform), sampling_rate)


def _is_plain_flac(content: bytes) -> bool:
    """16 bits, one channel, and no more than a little besides the audio (covers may be larger than the speech)."""
    if content[:4] != b"fLaC":
        return False
    info = sf.info(io.BytesIO(content))
    return info.subtype == "PCM_16" and info.channels == 1 and _flac_metadata(content) <= len(content) // 20 + 10_000


def _flac_metadata(content: bytes) -> int:
    """Bytes before the first frame of a FLAC file (RFC 9639, section 8)."""
    place = 4
    last = False
    while not last and place + 4 <= len(content):
        last = bool(content[place] & 0x80)
        place += 4 + int.from_bytes(content[place + 1 : place + 4], "big")
    return place


def _suffix(content: bytes) -> str:
    """From the first bytes, for sources without names."""
    known = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg"}
    return ".m4a" if content[4:8] == b"ftyp" else known.get(content[:4], ".mp3")
