"""Where recordings of noise, music, other voices and rooms come from: a folder of audio files, or anything alike."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile as sf

from .audio import SAMPLING_RATE, AudioError, read_audio
from .corpus import AUDIO_SUFFIXES
from .crops import random_crop


class NoiseSource(Protocol):
    """Recordings that an augmentation mixes in. What is drawn depends on the generator only."""

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        """A random crop of a random recording, `(samples,)` float32; a short one is repeated.

        Raises:
            AudioError: the recording cannot be read.
        """
        ...

    def whole(self, generator: np.random.Generator) -> np.ndarray:
        """A random recording, `(L,)` float32.

        Raises:
            AudioError: the recording cannot be read.
        """
        ...


class NoiseFolder:
    """The audio files of a folder and its sub-folders, each equally likely.

    Args:
        folder: where they are.
        sampling_rate: samples per second wanted.
        argument: what an error calls the folder.

    Raises:
        ValueError: there is no audio in it.
    """

    def __init__(self, folder: str | os.PathLike[str], sampling_rate: int = SAMPLING_RATE, argument: str = "folder"):
        found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names if _is_audio(name)]
        if not found:
            suffixes = ", ".join(AUDIO_SUFFIXES)
            raise ValueError(f"no audio in {argument} {Path(folder)}: expected files ending in {suffixes}")
        self.files = tuple(sorted(found))
        self.sampling_rate = sampling_rate

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        file = self._draw(generator)
        try:
            with sf.SoundFile(file) as sound:
                spare = sound.frames - samples
                if sound.samplerate == self.sampling_rate and spare > 0 and sound.seekable():
                    # A recording of MUSAN lasts minutes: only the crop is decoded.
                    sound.seek(int(generator.integers(spare + 1)))
                    crop = sound.read(samples, dtype="float32", always_2d=True).mean(axis=1)
                    if len(crop) == samples and np.isfinite(crop).all():
                        return crop
        except (sf.SoundFileError, OSError):
            pass  # Decoding it whole says better what is wrong.
        return random_crop(self._read(file), samples, generator)

    def whole(self, generator: np.random.Generator) -> np.ndarray:
        return self._read(self._draw(generator))

    def _draw(self, generator: np.random.Generator) -> str:
        return self.files[int(generator.integers(len(self.files)))]

    def _read(self, file: str) -> np.ndarray:
        try:
            return read_audio(file, self.sampling_rate, min_duration=0.0)
        except AudioError as error:
            raise AudioError(error.reason, file) from error


def _is_audio(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
