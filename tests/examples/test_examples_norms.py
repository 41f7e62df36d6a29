"""The script that compares calibrations with and without the norm of the embeddings."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from chords import SPEAKERS, write_chords

from hf_hamspk.evaluation.calibrating import CalibrationTrials
from hf_hamspk.study.plan import read_study
from hf_hamspk.study.running import run_study

PATH = Path(__file__).resolve().parents[2] / "examples" / "studies" / "norm_calibration.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("norm_calibration", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulated(draw: np.random.Generator, informative: bool) -> CalibrationTrials:
    """Trials whose scores are noisier the smaller the smaller norm is, if the norm is informative."""
    labels = np.arange(4000) % 2
    small, large = np.sort(draw.normal(0, 1, (2, 4000)), axis=0)
    score = np.where(labels == 1, 2.0, -2.0) + draw.normal(0, 1, 4000) - 1.5 * small * informative
    features = {"score": score, "magnitude_min": small, "magnitude_max": large}
    return CalibrationTrials(labels, features, draw.integers(0, 40, (4000, 2)))


def test_only_an_informative_norm_lowers_the_cllr(script):
    draw = np.random.default_rng(0)
    for informative in (False, True):
        trials = {name: simulated(draw, informative) for name in ("dev", "test")}
        plain, normed = script.measure(trials, ["dev"], ["test"])["test"]
        assert normed < 0.8 * plain if informative else abs(normed / plain - 1) < 0.02


@pytest.mark.slow
def test_the_script_measures_the_kept_models_of_a_study(script, tmp_path, capsys):
    root = write_chords(tmp_path)
    pairs = "".join(f"{int(a == b)} s{a}/2.flac s{b}/3.flac\n" for a in range(SPEAKERS) for b in range(SPEAKERS))
    (root / "test.txt").write_text(pairs)
    recipe = {"train_data": str(root / "train.csv"), "audio_root": str(root / "audio"), "ecapa_channels": 16}
    recipe |= {"ecapa_output_channels": 48, "batch_size": 6, "crop_seconds": 0.5, "cpu": True}
    content = {"recipe": recipe, "dev_trials": [str(root / "dev.txt")], "test_trials": [str(root / "test.txt")]}
    content |= {"tuning": {"settings": 1, "epochs": 1}, "final": {"seeds": 1, "epochs": 1}, "comparisons": {}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content | {"heads": {"am": {"recipe": {"head": "am"}}}}))
    words = [str(tmp_path / "study.yaml"), str(tmp_path / "runs"), "--json", str(tmp_path / "found.json")]
    run_study(read_study(words[0]), words[1], quiet=True)
    assert script.main(words) == 2
    assert "--keep-models" in capsys.readouterr().err
    run_study(read_study(words[0]), tmp_path / "kept", quiet=True, keep_models=True)
    words[1] = str(tmp_path / "kept")
    assert script.main(words) == 0
    assert "| am | 1 | test |" in capsys.readouterr().out
    assert all(cllr > 0 for cllr in json.loads((tmp_path / "found.json").read_text())["am"][0]["test"])
