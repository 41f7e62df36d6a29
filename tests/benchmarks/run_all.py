"""All benchmarks of this folder, one after the other: a table of ratios, JSON, plots.

    python tests/benchmarks/run_all.py [--size quick|full] [--wespeaker CHECKOUT] [--output FOLDER] [--only NAME ...]
                                       [--minutes 55]
    python tests/benchmarks/run_all.py --render benchmarks/results.json

The second command prints the table of an earlier run, as Markdown, and measures nothing. Ratios are how many times as
long the rival takes as this package, in the same run; benchmarks without a rival give none. A benchmark that fails is
reported, and the others go on. Those that cannot begin within --minutes are reported as left out.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZES = ("quick", "full")
# Words that make a benchmark quick and those that make it full; WeSpeaker's checkout where it is taken; JSON, plots.
WORDS: dict[str, tuple[list[str], list[str]]] = {
    "head": ([], []),
    "encoder": (
        ["--rounds", "3"],
        ["--compile", "--profile", "--memory", "8", "16", "32", "64"],
    ),
    "embedding": (
        ["--channels", "512", "--utterances", "30", "--rounds", "3"],
        ["--utterances", "2000", "--lengths", "1", "2", "4", "8", "16", "32", "60"],
    ),
    "losses": (["--speakers", "1211"], []),
    "metrics": (["--rounds", "3"], ["--large"]),
    "prepare": ([], []),
    "streaming": (["--utterances", "200", "--rounds", "1"], []),
    "scoring": (["--trials", "58000", "--pairs", "10000000"], []),
    "search": (["--enrolled", "100000", "--similarity", "cosine", "--rounds", "1"], ["--rival-queries", "200"]),
    "onnx": ([], []),
    "startup": (["--rounds", "3"], []),
    "ranks": (["--files", "512", "--seconds", "0.5"], []),
}
LONGEST_SECONDS = {"quick": 600, "full": 7200}
MINUTES = {"quick": 55.0, "full": 24 * 60.0}


def options_of(name: str) -> str:
    """What a benchmark says of its options."""
    return subprocess.run(
        [sys.executable, HERE / f"benchmark_{name}.py", "--help"], capture_output=True, text=True
    ).stdout


def run(name: str, arguments, folder: Path, seconds: float) -> dict:
    """One benchmark in a process of its own, for at most some seconds: its JSON, its output, how long it took."""
    quick, full = WORDS[name]
    options = options_of(name)
    words = list(quick if arguments.size == "quick" else full)
    given = {"--json": folder / f"{name}.json", "--plots": folder, "--wespeaker": arguments.wespeaker}
    given |= {"--threads": arguments.threads, "--clock": arguments.clock}
    given |= {"--plot": folder / f"{name}.png" if name == "ranks" else None}
    for option, value in given.items():
        if value is not None and option in options:
            words += [option, str(value)]
    (folder / f"{name}.json").unlink(missing_ok=True)
    start, longest = time.perf_counter(), min(seconds, LONGEST_SECONDS[arguments.size])
    try:
        command = [sys.executable, str(HERE / f"benchmark_{name}.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest)
        words_of_error = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
        output, problem = done.stdout, "" if done.returncode == 0 else words_of_error[-1]
    except subprocess.TimeoutExpired:
        output, problem = "", f"took more than {longest:.0f} s"
    path = folder / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        "words": [word for word in words if not Path(word).is_absolute()],
        "minutes": (time.perf_counter() - start) / 60,
        "problem": problem,
        "output": output,
        "result": found,
    }


def table(results: dict) -> str:
    """Markdown: every ratio of every benchmark, and what came of those that give none."""
    lines = ["| benchmark | what | rival | time of the rival / ours |", "|---|---|---|---|"]
    for name, entry in results["benchmarks"].items():
        rows = entry["result"].get("rows", [])
        for row in rows:
            bound = f" (wanted: {row['bound']:g})" if "bound" in row else ""
            lines.append(f"| {name} | {row['what']} | {row['rival']} | {row['ratio']:.2f}{bound} |")
        if entry["problem"]:
            lines.append(f"| {name} | failed: {entry['problem']} | | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--wespeaker", type=Path, help="checkout of WeSpeaker; without it, it is left out")
    parser.add_argument("--output", type=Path, default=Path("benchmarks"), help="folder (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch, where a benchmark takes it")
    parser.add_argument("--clock", help="wall or processor, where a benchmark takes it")
    parser.add_argument("--minutes", type=float, help="longest time of all together (default: 55; full: a day)")
    parser.add_argument("--only", nargs="+", choices=WORDS, default=list(WORDS))
    parser.add_argument("--render", type=Path, metavar="RESULTS", help="print the table of an earlier run")
    arguments = parser.parse_args()
    if arguments.render is not None:
        print(table(json.loads(arguments.render.read_text(encoding="utf-8"))))
        return 0
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: dict = {"size": arguments.size, "benchmarks": {}}
    minutes = MINUTES[arguments.size] if arguments.minutes is None else arguments.minutes
    end = time.perf_counter() + 60 * minutes
    for name in arguments.only:
        left = end - time.perf_counter()
        if left <= 0:
            problem = f"left out after {minutes:g} minutes"
            entry = {"words": [], "minutes": 0.0, "problem": problem, "output": "", "result": {}}
        else:
            print(f"benchmark_{name} ...", file=sys.stderr, flush=True)
            entry = run(name, arguments, arguments.output.resolve(), left)
        results["benchmarks"][name] = entry
        print(f"## {name} ({entry['minutes']:.1f} min)\n{entry['output']}{entry['problem']}", flush=True)
        (arguments.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return int(any(entry["problem"] for entry in results["benchmarks"].values()))


if __name__ == "__main__":
    sys.exit(main())
