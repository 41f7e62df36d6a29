"""A trained model in a folder, its run, and a Hub on the loopback interface."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import HfApi
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkForXVector
from hf_hamspk.calibration_hamspk import Calibration, Cohort

SPEAKERS = ("Ann Example", "Ben Example", "Cleo Example", "Dan Example", "Eve Example")
MADE_BY = {
    "versions": {"hf_hamspk": "0.1.0", "torch": "2.14.1", "numpy": None},
    "commit": "0123456789ab",
    "protocol": "whole",
}
DECISIONS = {
    "scores": "log-likelihood ratio",
    "normalisation": "as",
    "trials": 5890,
    "targets": 470,
    "without_decision": 84,
    "share_without_decision": 84 / 5974,
    "short_files": {"Ann Example/7.wav": "not enough speech"},
    "speakers": 78,
    "eer": 0.0901,
    "act_dcf": {"0.01": 0.7013, "0.05": 0.5499},
    "cllr": 0.3217,
    "min_cllr": 0.3011,
    "operating_points": {
        "balanced": {
            "threshold": 0.0,
            "miss_rate": 0.0911,
            "miss_interval": [0.0801, 0.1022],
            "false_alarm_rate": 0.0822,
            "false_alarm_interval": [0.0711, 0.0933],
        }
    },
}
NUMBERS = {
    "trials": 5974,
    "targets": 481,
    "skipped": 3,
    "unusable_files": {"Ben Example/3.wav": "holds no sound"},
    "eer": 0.0867,
    "eer_interval": [0.0741, 0.0993],
    "eer_threshold": 0.412,
    "min_dcf": {"0.01": 0.6161, "0.05": 0.5182},
    "min_cllr": 0.3122,
    "confidence": 0.95,
    "replicates": 1000,
    "scores": "cosine",
    "speakers": 78,
    "groups_left_out": {"other": "its 3 trials are not of both kinds"},
    "decisions": DECISIONS,
}
GROUPS = {
    "female": {
        "trials": 2103,
        "targets": 190,
        "eer": 0.0911,
        "eer_interval": [0.0713, 0.1109],
        "min_dcf": {"0.01": 0.64},
    },
    "male": {
        "trials": 1999,
        "targets": 191,
        "eer": 0.0807,
        "eer_interval": [0.0605, 0.1007],
        "min_dcf": {"0.01": 0.59},
    },
}


def evaluation(fingerprint: str) -> dict:
    """As `hamspk evaluate` writes it."""
    of_lists = {"test-o": NUMBERS | {"groups": GROUPS}, "test-h": NUMBERS | {"eer": 0.1186, "trials": 5414}}
    points = [{"condition": "1 s", "value": 1.0, "trials": 5974, "targets": 481, "eer": 0.1572, "eer_interval": None}]
    return {
        "schema": 2,
        "model": {"name": "final", "fingerprint": fingerprint, "similarity": "cosine"},
        "lists": {name: MADE_BY | values for name, values in of_lists.items()},
        "sweeps": {"test-o": {"digest": "a", "conditions": {"duration": points}}},
        "training": {"epochs": 24, "steps": 960, "unreadable_files": {"Cleo Example/1.wav": "ends too early"}},
    }


@pytest.fixture(scope="session")
def evaluation_of_0_1_0() -> dict:
    """The same as version 0.1.0 wrote it: ratios first, raw scores beside them."""
    raw = {key: NUMBERS[key] for key in ("scores", "trials", "targets", "eer", "min_cllr")}
    shared = {key: NUMBERS[key] for key in ("skipped", "unusable_files", "groups_left_out", "min_dcf")}
    return {
        "schema": 1,
        "model": {"name": "final", "fingerprint": "f", "similarity": "cosine"},
        **MADE_BY,
        "lists": {"test-o": DECISIONS | shared | {"raw": raw, "groups": GROUPS}},
    }


def png() -> bytes:
    """An image of one point."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A model folder with calibration and cohort, and the run folder that it is in."""
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    labels = dict(enumerate(SPEAKERS))
    model = settle(HamSpkForXVector(tiny_config(id2label=labels, label2id={v: k for k, v in labels.items()})))
    fingerprint = model.fingerprint()
    model.cohort = Cohort(torch.randn(7, 24), fingerprint, "means of 7 training speakers")
    model.calibration = Calibration(
        fingerprint, "cosine", -2.0, {"score": 8.0}, trials=3680, targets=301, speakers=46, audio="read speech, 16 kHz"
    )
    model.save_pretrained(run / "final")
    (run / "evaluation.json").write_text(json.dumps(evaluation(fingerprint)))
    recipe = {
        "backbone": None,
        "train_data": str(tmp_path_factory.getbasetemp() / "speech" / "train.csv"),
        "audio_root": "/home/ann/speech/audio",
        "test_trials": ["C:\\Users\\ann\\trials\\test-o.txt", "~/trials/test-h.txt"],
        "noise_folder": "https://example.org/noise",
        "epochs": 24,
        "output_dir": str(run),
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run / "plots").mkdir()
    (run / "plots" / "det.png").write_bytes(png())
    (run / "logs").mkdir()
    (run / "logs" / "events.txt").write_text("not for others")
    for name in ("notes.txt", "ann.wav", "helper.py"):
        (run / "final" / name).write_text("not for others")
    return run / "final", run


@pytest.fixture
def model_folder(trained, tmp_path) -> Path:
    """A copy of the model folder, to be changed."""
    return Path(shutil.copytree(trained[0], tmp_path / "final"))


@pytest.fixture
def hub(monkeypatch):
    """A Hub, with the client of this process allowed to talk to it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    # The client waits between its attempts.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)
