"""A corpus of a few tonal voices, and the arguments of a run on it that takes seconds."""

from pathlib import Path

import pytest
from chords import write_chords


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """`train.csv`, `audio/`, `dev.txt`: each speaker a chord of its own in noise."""
    return write_chords(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def run_words(corpus):
    """A function: command-line words of a tiny run into a folder, with changes; None leaves a key out."""

    def words(output_dir: Path, **changes) -> list[str]:
        arguments = {
            "train_data": corpus / "train.csv",
            "audio_root": corpus / "audio",
            "dev_trials": corpus / "dev.txt",
            "output_dir": output_dir,
            "ecapa_channels": 16,
            "ecapa_output_channels": 48,
            "pooling_channels": 16,
            "embedding_size": 16,
            "epochs": 3,
            "batch_size": 6,
            "crop_seconds": 0.5,
            "log_steps": 1,
            "cpu": "true",
        }
        kept = {key: value for key, value in (arguments | changes).items() if value is not None}
        return [word for key, value in kept.items() for word in (f"--{key}", *str(value).split())]

    return words
