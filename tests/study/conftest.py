"""A tiny corpus and a study on it that takes seconds."""

import pytest
import yaml
from chords import SPEAKERS, write_chords

from hf_hamspk.study.plan import read_study


@pytest.fixture(scope="session")
def chords(tmp_path_factory):
    """The corpus, and `test.txt` with other trials of the same speakers."""
    root = write_chords(tmp_path_factory.mktemp("chords"))
    pairs = [(a, b) for a in range(SPEAKERS) for b in range(SPEAKERS)]
    (root / "test.txt").write_text("".join(f"{int(a == b)} s{a}/2.flac s{b}/3.flac\n" for a, b in pairs))
    return root


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory, chords):
    """A function: the path of a small study of two heads and a control, with changes."""

    def make(**changes):
        content = {
            "recipe": {
                "train_data": str(chords / "train.csv"),
                "audio_root": str(chords / "audio"),
                "ecapa_channels": 16,
                "ecapa_output_channels": 48,
                "pooling_channels": 16,
                "embedding_size": 16,
                "batch_size": 6,
                "crop_seconds": 0.5,
                "log_steps": 1,
                "average_last": 2,
                "augment_probability": 0.5,
                "augment_kinds": ["noise", "gain"],
                "cpu": True,
            },
            "dev_trials": [str(chords / "dev.txt")],
            "test_trials": [str(chords / "test.txt")],
            "search": {"learning_rate": [1e-3, 3e-3, "log"]},
            "tuning": {"settings": 1, "epochs": 1},
            "final": {"seeds": 2, "epochs": 2, "budgets": [1]},
            "heads": {
                "am": {"recipe": {"head": "am"}, "search": {"relative_margin": [0.1, 0.3]}},
                "ham": {"recipe": {"head": "ham"}, "search": {"reach": [10, 80, "log"]}},
                "rim": {"like": "ham", "control": "rim", "seeds": 1},
            },
            "comparisons": {"claims": [["ham", "am"]], "controls": [["ham", "rim"]]},
            "replicates": 100,
        } | changes
        path = tmp_path_factory.mktemp("study") / "tiny.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return make


@pytest.fixture
def tiny(tiny_study):
    """The small study itself."""
    return read_study(tiny_study())
