"""The Space as a stranger has it: its folder on the path, and a calibrated model with its evaluation in a folder."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.calibration_hamspk import Calibration

SPACE = Path(__file__).parents[2] / "examples" / "space"
EDGES = [-8.0, -4.0, 0.0, 4.0, 8.0]


@pytest.fixture(scope="session")
def space() -> Path:
    return SPACE


@pytest.fixture(scope="session")
def verdict() -> ModuleType:
    """The Space's functions without its page."""
    sys.path.insert(0, str(SPACE))
    try:
        import verdict
    finally:
        sys.path.remove(str(SPACE))
    return verdict


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny model of random weights, calibrated out of thin air, and an evaluation to match."""
    folder = tmp_path_factory.mktemp("space") / "tiny"
    model = settle(HamSpkModel(tiny_config()))
    fingerprint = model.fingerprint()
    model.calibration = Calibration(fingerprint, "cosine", -20.0, {"score": 25.0}, trials=60, targets=20, speakers=9)
    model.save_pretrained(folder)
    histogram = {"edges": EDGES, "targets": [0, 10, 20, 10], "impostors": [60, 30, 10, 0]}
    ratios = {"scores": "log-likelihood ratio", "histogram": histogram}
    raw = {"scores": "cosine", "histogram": histogram | {"edges": [-1.0, -0.5, 0.0, 0.5, 1.0]}}
    checksum = model.calibration.to_dict()["checksum"]
    evaluation = {
        "schema": 2,
        "model": {"name": "tiny", "fingerprint": fingerprint},
        "lists": {
            "test-a": raw | {"decisions": {"calibration": checksum} | ratios},
            "test-b": raw,
        },
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder
