"""`tests/gpu/run.sh --reduced` runs to its end on the CPU. On a GPU, the script is started by hand."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_reduced_script_runs_to_its_end(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "WHEELS": str(tmp_path / "none")}
    done = subprocess.run(
        ["bash", HERE / "run.sh", "--reduced", "--output", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    parts = ["machine", "heads", "encoders", "memory", "head speed", "training speed", "embedding speed", "trainer"]
    assert [part for part in results if part != "seconds"] == parts
    assert list(results["seconds"]) == parts
    table = (tmp_path / "out" / "table.md").read_text()
    assert "failed" not in table and "ABOVE" not in table and "left out" not in table
    assert "| trainer | resumed run against a whole one, precision bf16 | 0.0e+00 |" in table


def test_only_missing_and_older_packages_are_installed(tmp_path):
    for name in ("numpy-0.1-py3-none-any.whl", "numpy-999.1-py3-none-any.whl", "absent_package-1.0-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr("x", "")
    done = subprocess.run(
        [sys.executable, HERE / "wheels_needed.py", tmp_path], capture_output=True, text=True, check=True
    )
    names = [Path(line).name for line in done.stdout.splitlines()]
    assert names == ["absent_package-1.0-py3-none-any.whl", "numpy-999.1-py3-none-any.whl"]


@pytest.mark.slow
def test_a_machine_without_a_gpu_is_refused(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", HERE / "run.sh", "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "no GPU was found" in done.stderr and "--reduced" in done.stderr
