"""Mutation testing: draws random mutants of modules, runs the tests named for each module, and lists the survivors.

    python tests/mutation/run.py FOLDER                    # more than 300 mutants in 18 modules
    python tests/mutation/run.py FOLDER --modules losses   # only modules whose path contains "losses"
    python tests/mutation/run.py FOLDER --count 1          # one mutant of each module: a smoke test
    python tests/mutation/run.py FOLDER --again            # test the survivors again, after tests were added
    python tests/mutation/run.py FOLDER --report           # count the results, and test nothing

The repository is never changed: a commit is unpacked into FOLDER, once for each process, and the mutants are written
there. `results.jsonl` in FOLDER has a line for each mutant. The same command resumes an interrupted run.

Each mutant is tested in a fork of this process, which has imported torch and the other packages once. First, all tests
run without a mutant, and the lines that each test runs are recorded. For a mutant, the tests that run its line come
first. A run that takes four times the processor time of the tests without a mutant is ended, and the mutant counts as
killed. The slow tests run only if the fast ones let the mutant through.

A survivor is a gap in the tests, or it is harmless. `harmless.json` beside this file lists the harmless ones with a
reason for each. The exit status is 1 if a survivor is not listed there.

Mutants are identified by module, function, and the text before and after, so that results and list stay valid when
other lines of the module change. Linux and macOS only (fork).
"""

import argparse
import compileall
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from forks import Fork, warm_up
from modules import MODULES
from mutants import Mutant, draw

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
HARMLESS = HERE / "harmless.json"
# Processor time of a mutant's tests: a multiple of the time without a mutant, and the least limit in seconds.
TIMES, LEAST_SECONDS = 4, 60
SLOW_SECONDS = 900
PASSED, FAILED = 0, (1, 2)
KILLED_FAST, KILLED_SLOW, SURVIVED = "killed by fast tests", "killed by slow tests", "survived"


class Job(NamedTuple):
    """A mutant to test, the path of its module in the package, and its key in the results."""

    module: str
    mutant: Mutant
    key: str


def main() -> int:
    arguments = parse_arguments()
    folder = arguments.folder.resolve()
    if folder.is_relative_to(REPOSITORY):
        raise SystemExit(f"{folder} is within the repository. Give a folder outside of it.")
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in MODULES if any(part in name for part in arguments.modules)]
    if not arguments.report:
        run(folder, names, arguments)
    return report(read_results(folder), names)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the copies and the results, outside the repository")
    parser.add_argument("--commit", default="HEAD", help="commit to test (default: HEAD)")
    parser.add_argument(
        "--modules", nargs="+", default=[""], metavar="PART", help="parts of the paths of the modules to mutate"
    )
    parser.add_argument("--count", type=int, help="mutants to draw of each module (default: see modules.py)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--again", action="store_true", help="test survivors again")
    parser.add_argument("--report", action="store_true", help="only count the results")
    return parser.parse_args()


def run(folder: Path, names: list[str], arguments: argparse.Namespace) -> None:
    commit = git("rev-parse", arguments.commit).decode().strip()
    copies = [unpack(folder, commit, number) for number in range(arguments.jobs)]
    known, harmless = read_results(folder), read_harmless()
    jobs = []
    for name in names:
        source = (copies[0] / "hf_hamspk" / name).read_text(encoding="utf-8")
        for mutant in draw(source, arguments.count or MODULES[name].count, f"{arguments.seed} {name}"):
            job = Job(name, mutant, f"{name} {mutant.place}: {mutant.before} -> {mutant.after}")
            is_again = arguments.again and job.key not in harmless and known.get(job.key, {}).get("result") == SURVIVED
            if job.key not in known or is_again:
                jobs.append(job)
    warm_up(folder)
    for name in {job.module: None for job in jobs}:
        baseline(name, folder, copies[0], commit)
    waiting = iter(jobs)
    tests = [test_all(copy, waiting, folder, commit) for copy in copies]
    with open(folder / "results.jsonl", "a", encoding="utf-8") as results:
        while tests:
            for test in list(tests):
                row = next(test, StopIteration)
                if row is StopIteration:
                    tests.remove(test)
                elif row is not None:
                    results.write(json.dumps(row | {"commit": commit}) + "\n")
                    results.flush()
                    print(f"{row['result']}, {row['seconds']:.0f} s: {row['key']}", flush=True)
            time.sleep(0.02)


def git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(REPOSITORY), *words], check=True, capture_output=True).stdout


def unpack(folder: Path, commit: str, number: int) -> Path:
    """Unpack a commit into a new copy, and link the folder `shared` beside the repository to a place beside it."""
    copy = folder / "copies" / f"copy{number}"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(copy)], input=git("archive", commit), check=True)
    compileall.compile_dir(copy / "hf_hamspk", quiet=1)
    shared, link = REPOSITORY.parent / "shared", copy.parent / "shared"
    if shared.is_dir() and not link.exists():
        link.symlink_to(shared)
    return copy


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of each mutant by key. A line that was cut short is left out."""
    path, found = folder / "results.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            found[row["key"]] = row
    return found


def read_harmless() -> dict[str, str]:
    """Return the reason for each harmless mutant by key."""
    by_reason = json.loads(HARMLESS.read_text(encoding="utf-8"))
    return {key: reason for reason, keys in by_reason.items() for key in keys}


def baseline(name: str, folder: Path, copy: Path, commit: str) -> dict[str, Any]:
    """Run the fast tests of a module without a mutant: the lines that each test runs, and the seconds of all."""
    path = folder / "baselines" / f"{name.replace('/', '.')}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("commit") == commit:
        return found
    path.parent.mkdir(exist_ok=True)
    start = time.monotonic()
    fork = Fork(copy, MODULES[name].fast, "not slow", SLOW_SECONDS, record=(copy / "hf_hamspk" / name, path))
    if fork.wait() != PASSED:
        raise SystemExit(f"The tests of {name} fail without a mutant: see {fork.log}")
    seconds = time.monotonic() - start
    found = {"commit": commit, "seconds": seconds, "lines": json.loads(path.read_text(encoding="utf-8"))}
    path.write_text(json.dumps(found), encoding="utf-8")
    print(f"{name}: {len(found['lines'])} tests without a mutant took {seconds:.0f} s", flush=True)
    return found


def test_all(copy: Path, jobs: Iterator[Job], folder: Path, commit: str) -> Iterator[dict[str, Any] | None]:
    """Test mutants in a copy: yield None while one is tested, and the result of each."""
    for job in jobs:
        path, start = copy / "hf_hamspk" / job.module, time.monotonic()
        original, times, found = path.read_bytes(), path.stat(), baseline(job.module, folder, copy, commit)
        result, by = SURVIVED, ""
        first = [test for test, lines in found["lines"].items() if job.mutant.line in lines]
        stages = [
            (KILLED_FAST, MODULES[job.module].fast, "not slow", max(LEAST_SECONDS, TIMES * found["seconds"])),
            (KILLED_SLOW, MODULES[job.module].slow, "slow", SLOW_SECONDS),
        ]
        path.write_text(job.mutant.source, encoding="utf-8")
        for killed, files, marks, seconds in stages:
            if not files:
                continue
            fork = Fork(copy, files, marks, seconds, first)
            try:
                while (status := fork.poll()) is None:
                    yield None
            finally:
                fork.end()
            if status < 0:
                result, by = killed, "time" if status == -signal.SIGXCPU else f"signal {-status}"
            elif status in FAILED:
                result, by = killed, fork.failed_test()
            elif status != PASSED:
                raise SystemExit(f"pytest ended with status {status}: see {fork.log}")
            if result != SURVIVED:
                break
        path.write_bytes(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        seconds = time.monotonic() - start
        yield {"key": job.key, "module": job.module, "result": result, "by": by, "seconds": round(seconds, 1)}


def report(results: dict[str, dict[str, Any]], names: list[str]) -> int:
    """Print the counts by module and the survivors that are not known to be harmless."""
    harmless, counts, gaps = read_harmless(), {name: Counter() for name in names}, []
    for key, row in results.items():
        if row["module"] in counts:
            is_gap = row["result"] == SURVIVED and key not in harmless
            gaps += [key] if is_gap else []
            counts[row["module"]]["gap" if is_gap else row["result"]] += 1
    total = sum(counts.values(), Counter())
    columns = (KILLED_FAST, KILLED_SLOW, SURVIVED, "gap")
    print(f"{'module':36}{'mutants':>8}{'fast':>6}{'slow':>6}{'harmless':>10}{'gaps':>6}")
    for name, count in [*counts.items(), ("all", total)]:
        fast, slow, survived, gap = (count[column] for column in columns)
        print(f"{name:36}{count.total():8}{fast:6}{slow:6}{survived:10}{gap:6}")
    print(*sorted(gaps), sep="\n")
    return 1 if gaps else 0


if __name__ == "__main__":
    raise SystemExit(main())
