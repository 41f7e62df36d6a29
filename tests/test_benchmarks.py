"""`tests/benchmarks/run_all.py`: its table, benchmarks that fail, and the limit of time."""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "benchmarks"


def run_all(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, FOLDER / "run_all.py", *words], capture_output=True, text=True)


def test_benchmarks_without_time_are_left_out_and_named(tmp_path):
    done = run_all("--output", tmp_path, "--minutes", "0")
    assert done.returncode == 1
    found = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    # Those that need a folder or another package are started alone.
    alone = {"benchmark_encoders", "benchmark_stores"}
    assert {f"benchmark_{name}" for name in found} == {one.stem for one in FOLDER.glob("benchmark_*.py")} - alone
    assert done.stdout.count("| failed: left out after 0 minutes |") == len(found)


def test_the_table_of_an_earlier_run(tmp_path):
    rows = [{"what": "HAM, 1211 speakers", "rival": "AM eager", "ratio": 0.95, "bound": 1.0}]
    entries = {"head": {"result": {"rows": rows}, "problem": ""}, "onnx": {"result": {}, "problem": "no onnx"}}
    (tmp_path / "results.json").write_text(json.dumps({"benchmarks": entries}))
    lines = run_all("--render", tmp_path / "results.json").stdout.splitlines()
    assert lines[2:] == [
        "| head | HAM, 1211 speakers | AM eager | 0.95 (wanted: 1) |",
        "| onnx | failed: no onnx | | |",
    ]
