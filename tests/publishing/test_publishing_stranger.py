"""From the command to somebody else's machine: push, then load by name in processes that cannot see this package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from card_recordings import record
from hub_server import HubServer
from strangers import without
from tiny_models import RATE

from hf_hamspk import HamSpkForXVector, HamSpkModel

pytestmark = pytest.mark.slow
NAME = "tester/tiny"

STRANGER = (
    without("hf_hamspk")
    + """
import json, sys
import soundfile, torch
from transformers import AutoModel, AutoModelForAudioXVector, pipeline

torch.set_num_threads(1)
name, *revisions = sys.argv[1:]
waves = [soundfile.read(file, dtype="float32")[0] for file in ("enrolment.wav", "test.wav")]
for revision in revisions:
    trust = {"trust_remote_code": True, "revision": revision}
    model = AutoModel.from_pretrained(name, **trust)
    report = {
        "embeddings": model.embed(waves, sampling_rate=model.config.sampling_rate).tolist(),
        "answer": model.verifier().verify(waves[:1], waves[1], sampling_rate=model.config.sampling_rate).to_dict(),
        "head": type(AutoModelForAudioXVector.from_pretrained(name, **trust)).__name__,
        "calibrated": model.calibration is not None,
        "cohort": 0 if model.cohort is None else len(model.cohort.embeddings),
        "seen": sorted(module for module in sys.modules if module.split(".")[0] == "hf_hamspk"),
        "from": type(model).__module__.split(".")[0],
    }
    if "speaker-verification" in (getattr(model.config, "custom_pipelines", None) or {}):
        answer = pipeline("speaker-verification", model=name, **trust)(("enrolment.wav", "test.wav"))
        report["pipeline"] = answer["score"]
    print(json.dumps(report))
"""
)


def environment(hub: HubServer, home: Path) -> dict[str, str]:
    """Of a process with a cache of its own, that knows of no Hub but this one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "PYTHON", "TRANSFORMERS"))}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }


def push(hub: HubServer, home: Path, *words) -> str:
    command = [sys.executable, "-m", "hf_hamspk", "push", *map(str, words)]
    done = subprocess.run(command, env=environment(hub, home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.token not in done.stdout + done.stderr
    return done.stdout


def visit(hub: HubServer, work: Path, home: Path, *revisions: str) -> list[dict]:
    command = [sys.executable, "-c", STRANGER, NAME, *revisions]
    done = subprocess.run(command, env=environment(hub, home), cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_published_changed_and_pinned(trained, tmp_path):
    waves = record(tmp_path)
    folder = Path(shutil.copytree(trained[0], tmp_path / "final"))
    first = HamSpkModel.from_pretrained(folder)
    with HubServer() as hub:
        out = push(hub, tmp_path / "home", folder, NAME, "--run", trained[1])
        pinned = list(hub.repositories[NAME].commits)[-1]
        assert f"{NAME} is at revision {pinned}" in out

        (seen,) = visit(hub, tmp_path, tmp_path / "theirs", pinned)
        assert torch.equal(torch.tensor(seen["embeddings"]), first.embed(waves, RATE))
        assert seen["answer"] == first.verifier().verify(waves[:1], waves[1], RATE).to_dict()
        if "pipeline_hamspk.py" in hub.files(NAME):
            assert seen["pipeline"] == pytest.approx(seen["answer"]["score"], abs=1e-6)
        assert seen["head"] == "HamSpkForXVector" and seen["seen"] == []
        assert seen["from"] == "transformers_modules"
        assert seen["calibrated"] and seen["cohort"] == 7

        changed = HamSpkForXVector.from_pretrained(folder)
        changed.calibration = changed.cohort = None
        changed.base_model.projection.weight.data.mul_(-0.5)
        changed.save_pretrained(folder)
        push(hub, tmp_path / "home", folder, NAME)
        newest = list(hub.repositories[NAME].commits)[-1]
        assert newest != pinned and len(hub.titles(NAME)) == 3

        # The pinned revision is what it was; the newest is the changed one, without what no longer fitted.
        again, now = visit(hub, tmp_path, tmp_path / "another", pinned, "main")
        assert again == seen
        assert torch.equal(torch.tensor(now["embeddings"]), changed.embed(waves, RATE))
        assert now["answer"]["decision"] is None
        assert not now["calibrated"] and now["cohort"] == 0
