"""Two recordings of synthetic speech, as the snippets of a card name them."""

from pathlib import Path

import numpy as np
import soundfile
from tiny_models import RATE

from hf_hamspk.data.synthetic import make_speech

SECONDS = (3.0, 3.5)
FILES = ("enrolment.wav", "test.wav")


def voices() -> list[np.ndarray]:
    """Of two speakers, float32."""
    return [make_speech(seed, seed, seconds, RATE) for seed, seconds in enumerate(SECONDS)]


def record(folder: Path) -> list[np.ndarray]:
    """Write them into a folder, without loss."""
    waves = voices()
    for file, wave in zip(FILES, waves, strict=True):
        soundfile.write(folder / file, wave, RATE, subtype="FLOAT")
    return waves
