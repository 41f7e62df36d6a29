"""Read the recordings of a corpus, define its limits and file suffixes, and import torchaudio."""

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from ..audio_hamspk import SHORTEST_SECONDS, Limits, Sound, read_sound

SAMPLING_RATE = 16_000
"""Usual sampling rate of speaker models in Hz."""

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".sph", ".w64", ".caf"),
    *(".m4a", ".mp4", ".aac", ".webm", ".mka"),
)
"""Suffixes of the files that count as audio in a folder or an archive. The second line needs PyAV.

If one utterance has two files (`00001.wav`, `00001.m4a`), the file whose suffix comes first is used.
"""

CORPUS_LIMITS = Limits(seconds=86_400.0, values=1 << 26)
"""Limits of one file of a corpus. The number of samples decides: 70 minutes at 16 kHz, 256 MiB as float32."""


def read_utterance(
    source: Any, rate: int | None = SAMPLING_RATE, name: str = "", min_duration: float = SHORTEST_SECONDS
) -> Sound:
    """Read a recording of a corpus with `read_sound`, strict and with `CORPUS_LIMITS`.

    Args:
        source: path, bytes of an audio file, or any other source that `read_sound` takes.
        rate: sampling rate of the result in Hz; None keeps the rate of the recording.
        name: name of the recording in errors; "" takes its path.
        min_duration: shortest accepted duration in seconds, at least 0.

    Returns:
        The recording with one channel; several channels are averaged.

    Raises:
        InputError: the recording is missing, not audio, damaged, cut short, empty, too short, too long or silent, or it
            contains NaN or infinite samples.
    """
    path = source.get("path") if isinstance(source, Mapping) else source
    if not name and isinstance(path, str | os.PathLike):
        name = str(os.fspath(path))
    label = name if name else "the recording"
    return read_sound(source, rate, label, CORPUS_LIMITS, strict=True, min_duration=min_duration)


def import_torchaudio() -> ModuleType:
    """Import torchaudio, or raise an error that names a version to install.

    PyPI's torchaudio for Linux is a CUDA build. Its import raises OSError if torch is CPU-only, because a CUDA library
    is
    missing, and RuntimeError if torch was built for another CUDA version.

    Returns:
        The module torchaudio.

    Raises:
        ImportError: torchaudio is not installed or does not fit the installed torch.
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
