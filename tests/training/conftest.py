"""A corpus of a few tonal voices, and the arguments of a run on it that takes seconds."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from accelerate.state import AcceleratorState

RATE = 16000
SPEAKERS, UTTERANCES = 6, 4


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps its state for the life of a process; each test starts without."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """`train.csv`, `audio/`, `dev.txt`: each speaker a chord of its own in noise."""
    root = tmp_path_factory.mktemp("corpus")
    rows, trials = ["path,speaker_id"], []
    for speaker in range(SPEAKERS):
        draw = np.random.default_rng(speaker)
        chord = draw.uniform(150, 3000, 4)
        (root / "audio" / f"s{speaker}").mkdir(parents=True)
        for utterance in range(UTTERANCES):
            time = np.arange(int(draw.uniform(0.6, 1.2) * RATE)) / RATE
            wave = sum(np.sin(2 * np.pi * f * time + draw.uniform(0, 6)) for f in chord) + draw.normal(0, 1, len(time))
            soundfile.write(root / "audio" / f"s{speaker}" / f"{utterance}.flac", 0.05 * wave, RATE)
            rows.append(f"s{speaker}/{utterance}.flac,s{speaker}")
        trials.append(f"1 s{speaker}/0.flac s{speaker}/1.flac")
        trials.append(f"0 s{speaker}/0.flac s{(speaker + 1) % SPEAKERS}/1.flac")
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    (root / "dev.txt").write_text("\n".join(trials) + "\n")
    return root


@pytest.fixture
def run_words(corpus):
    """A function: command-line words of a tiny run into a folder, with changes."""

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
        return [word for key, value in (arguments | changes).items() for word in (f"--{key}", *str(value).split())]

    return words
