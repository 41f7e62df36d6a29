"""Read corpus recordings, define their limits and file suffixes, and import torchaudio."""

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
"""Suffixes of the files that count as audio in a folder or an archive. Those from `.m4a` on need PyAV.

If an utterance has two files (`00001.wav`, `00001.m4a`), the file whose suffix comes first in this tuple is used.
"""

CORPUS_LIMITS = Limits(seconds=86_400.0, values=1 << 26)
"""Limits of one corpus file. In practice, the number of samples is the limit: 70 minutes at 16 kHz (256 MiB)."""


def read_utterance(
    source: Any, rate: int | None = SAMPLING_RATE, name: str = "", min_duration: float = SHORTEST_SECONDS
) -> Sound:
    """Read a corpus recording with the strict checks of `read_sound` and the limits `CORPUS_LIMITS`.

    Args:
        source: path, bytes of an audio file, or any other source that `read_sound` accepts.
        rate: sampling rate of the result in Hz; None keeps the rate of the recording.
        name: name of the recording in errors; "" uses its path.
        min_duration: shortest accepted duration in seconds, at least 0.

    Returns:
        The recording with one channel. Several channels are averaged.

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
