"""Small files that are large once decoded, and what the largest accepted ones may take in memory."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from hf_hamspk.data.synthetic import make_speech

RATE = 16_000


def long_file(path: Path, seconds: int, rate: int, channels: int = 1) -> Path:
    """A FLAC file of square waves that sound like nobody, written second by second; a few kB for each."""
    second = np.where(np.arange(rate) * 240 // rate % 2 == 0, 9000, -9000).astype(np.int16)
    block = np.repeat(second[:, None], channels, axis=1)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", format="FLAC") as file:
        for _ in range(seconds):
            file.write(block)
    return path


def long_speech(path: Path, seconds: int, rate: int = RATE) -> Path:
    """A FLAC file of speech at 16 kHz that repeats."""
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for begin in range(0, seconds, 10):
            file.write(make_speech(1, begin % 50 // 10, min(10.0, seconds - begin)))
    return path


def with_length(content: bytes, samples: int) -> bytes:
    """A FLAC file whose header says that it has so many samples; 0 says that the number is unknown."""
    fields = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
    return content[:18] + fields.to_bytes(8, "big") + content[26:]


def refused_bombs() -> Iterator[tuple[str, bytes]]:
    """Files that no door may decode to their end."""
    # More than 2^27 samples in all channels.
    eight = flac(45, 384_000, 8)
    yield "8 channels at 384 kHz", eight
    yield "8 channels at 384 kHz, of unknown length", with_length(eight, 0)
    yield "eight hours", with_length(flac(20, 8000), 8 * 3600 * 8000)
    yield "2^36 samples", with_length(flac(2, RATE), 2**36 - 1)
    yield "an hour of unknown length", with_length(flac(3600, 4000), 0)


def flac(seconds: int, rate: int, channels: int = 1) -> bytes:
    """Silence with a click in it."""
    buffer = io.BytesIO()
    block = np.zeros((rate, channels), np.int16)
    block[rate // 2] = 1000
    with soundfile.SoundFile(buffer, "w", rate, channels, "PCM_16", format="FLAC") as file:
        for _ in range(seconds):
            file.write(block)
    return buffer.getvalue()


def reading_bytes(samples: int, seconds: float) -> int:
    """The most that `read_sound` takes besides its source, as its docstring derives it."""
    return 8 * samples + 4 * RATE * round(seconds) + (40 << 20)
