"""Reading the recordings of a corpus, with its limits and file endings; and the one import of torchaudio."""

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from ..audio_hamspk import SHORTEST_SECONDS, Limits, Sound, read_sound

SAMPLING_RATE = 16_000
"""Samples per second that the speaker models of the field take."""

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".sph", ".w64", ".caf"),
    *(".m4a", ".mp4", ".aac", ".webm", ".mka"),
)
"""Endings of the files that count as audio when a folder or an archive is searched. The second line needs PyAV. Of two
files of one utterance (`00001.wav`, `00001.m4a`), the one whose ending comes first is used."""

CORPUS_LIMITS = Limits(seconds=86_400.0, values=1 << 26)
"""Of one file of a corpus. The samples decide: 70 minutes at 16 kHz, 256 MiB as float32."""


def read_utterance(
    source: Any, rate: int | None = SAMPLING_RATE, name: str = "", min_duration: float = SHORTEST_SECONDS
) -> Sound:
    """Read a recording of a corpus: `read_sound`, strict, with `CORPUS_LIMITS`.

    Args:
        source: a path, the bytes of an audio file, or anything else that `read_sound` takes.
        rate: wanted, in Hz; None keeps the rate of the recording.
        name: of the recording, for errors; "" takes its path.
        min_duration: in seconds, at least 0.

    Returns:
        One channel; channels are averaged.

    Raises:
        InputError: missing, no audio, damaged, cut short, empty, too short, too long, silent, NaN or infinite.
    """
    path = source.get("path") if isinstance(source, Mapping) else source
    if not name and isinstance(path, str | os.PathLike):
        name = str(os.fspath(path))
    label = name if name else "the recording"
    return read_sound(source, rate, label, CORPUS_LIMITS, strict=True, min_duration=min_duration)


def import_torchaudio() -> ModuleType:
    """Import torchaudio, or raise an error that says how to install one that works.

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
