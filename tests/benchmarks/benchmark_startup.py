"""CPU time of short command lines, as multiples of that of `python -c "import torch"` in the same run.

    python tests/benchmarks/benchmark_startup.py [--rounds 5] [--verify-form new|old] [--json FILE]

Every command line is a process of its own, in turns with the import; what counts is the processor time, user and
system, of that process, and of it the median over the rounds. The model is a tiny ECAPA-TDNN of random weights, the
recordings are modulated noise. There is no network: the Hub is an address where nobody listens, and its cache is empty;
how long the command for a misspelt model takes by the clock is printed, too. `--verify-form old` writes the second
recording of `verify` as version 0.1.0 wants it, with `--test`.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
from transformers.utils import logging

from hf_hamspk import HamSpkConfig, HamSpkModel

RATE, SECONDS = 16_000, 4.0
YARDSTICK = "import torch"
SMALL, WHOLE = 0.5, 3.0
MISSPELT_MODEL = "nobody/no-such-model"
# They would let the Hub be reached, or keep it from being asked.
UNSET = ("http_proxy", "https_proxy", "all_proxy", "hf_hub_offline", "transformers_offline", "hf_hub_cache")


class Case(NamedTuple):
    """A command line after `hamspk`, the exit code that it must have, and the largest ratio wanted, if any."""

    words: list[str]
    code: int
    bound: float | None = None


def make_inputs(folder: Path) -> None:
    """A model in `model`, two recordings."""
    config = HamSpkConfig(
        ecapa_channels=16,
        ecapa_output_channels=48,
        ecapa_bottleneck=8,
        ecapa_groups=4,
        pooling_channels=8,
        embedding_size=24,
        num_labels=5,
    )
    logging.disable_progress_bar()
    HamSpkModel(config).save_pretrained(folder / "model")
    draw, times = np.random.default_rng(0), np.arange(round(SECONDS * RATE)) / RATE
    for i, name in enumerate("ab"):
        loudness = 0.05 * np.sin(np.pi * (3 + i) * times) ** 2
        sf.write(folder / f"{name}.wav", loudness * draw.standard_normal(len(times)), RATE)


def cases(verify_form: str) -> dict[str, Case]:
    """What is measured, by name."""

    def verify(model: str, first: str, second: str) -> list[str]:
        return ["verify", model, first, *(["--test"] if verify_form == "old" else []), second]

    options = ["--operatin-point", "x"]
    return {
        "--help": Case(["--help"], 0, SMALL),
        "--version": Case(["--version"], 0, SMALL),
        "misspelt option": Case(["verify", *options, *verify("M", "a", "b")[1:]], 2, SMALL),
        "missing recipe": Case(["train", "missing.yaml"], 2, SMALL),
        "missing audio file": Case(verify("model", "missing.wav", "b.wav"), 2, SMALL),
        "misspelt model, no network": Case(verify(MISSPELT_MODEL, "a.wav", "b.wav"), 2),
        "verify": Case(verify("model", "a.wav", "b.wav"), 0, WHOLE),
    }


def closed_environment(folder: Path) -> dict[str, str]:
    """The environment with a Hub where nobody listens, and an empty cache of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name.lower() not in UNSET}
    return kept | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(folder / "hub")}


def run(command: list[str], code: int, folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """CPU and wall seconds of a process that must end with an exit code."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            output.seek(0)
            text = output.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}, not {code}: {text}")
    return used.ru_utime + used.ru_stime, wall


def measure(named: dict[str, Case], rounds: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Medians of CPU and wall seconds, by name; the yardstick is among them."""
    environment = closed_environment(folder)
    commands = {YARDSTICK: ([sys.executable, "-c", YARDSTICK], 0)}
    commands |= {name: ([sys.executable, "-m", "hf_hamspk", *case.words], case.code) for name, case in named.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, (command, code) in commands.items():
            found[name].append(run(command, code, folder, environment))
    return {
        name: (statistics.median(cpu for cpu, _ in pairs), statistics.median(wall for _, wall in pairs))
        for name, pairs in found.items()
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--verify-form", choices=("new", "old"), default="new", help="(default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=cases("new"), metavar="CASE", help="some of: %(choices)s")
    parser.add_argument("--json", type=Path, help="write the ratios there")
    arguments = parser.parse_args()
    named = cases(arguments.verify_form)
    if arguments.only is not None:
        named = {name: named[name] for name in arguments.only}
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        medians = measure(named, arguments.rounds, Path(name))
    yardstick = medians[YARDSTICK][0]
    print(f"{'case':28}{'CPU s':>8}{'ratio':>8}{'bound':>8}  holds   (median of {arguments.rounds} rounds)")
    print(f"{YARDSTICK:28}{yardstick:>8.2f}{1:>8.2f}")
    rows = []
    for name, case in named.items():
        ratio = medians[name][0] / yardstick
        line = f"{name:28}{medians[name][0]:>8.2f}{ratio:>8.2f}"
        # The other way round, as the other benchmarks have it.
        row = {"what": name, "rival": YARDSTICK, "ratio": 1 / ratio}
        if case.bound is not None:
            line += f"{case.bound:>8.1f}  {'yes' if ratio <= case.bound else 'NO'}"
            row["bound"] = 1 / case.bound
        print(line)
        rows.append(row)
    for name, case in named.items():
        if MISSPELT_MODEL in case.words:
            print(f"{name}: {medians[name][1]:.1f} s by the clock")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
