"""Mutation testing: draws random mutants of modules, runs the tests named for each module, and lists the survivors.

    python tests/mutation/run.py FOLDER                    # more than 300 mutants in 18 modules
    python tests/mutation/run.py FOLDER --modules losses   # only modules whose path contains "losses"
    python tests/mutation/run.py FOLDER --count 1          # one mutant of each module: a smoke test
    python tests/mutation/run.py FOLDER --again            # test the survivors again, after tests were added
    python tests/mutation/run.py FOLDER --report           # count the results, and test nothing

The repository is never changed: a commit is unpacked into FOLDER, once for each process, and the mutants are written
there. `results.jsonl` in FOLDER has a line for each mutant. The same command resumes an interrupted run.

Each mutant is tested in a fork of a process that has collected the tests (see `forks.py`). First, the fast tests run
without a mutant, and the lines that each test runs are recorded. For a mutant, the tests that run its line come first,
then the other tests of their files. A run that takes four times the time of the tests without a mutant is ended, and
the mutant counts as killed. The slow tests run only if the fast ones let the mutant through.

A survivor is a gap in the tests, or it is harmless. `harmless.json` beside this file lists the harmless ones with a
reason for each. The exit status is 1 if a survivor is not listed there.

Mutants are identified by module, function, and the text before and after, so that results and list stay valid when
other lines of the module change. Linux and macOS only (fork).
"""

import argparse
import compileall
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from forks import CRASHED, PASSED, Session, is_within_functions, warm_up
from modules import MODULES
from mutants import Mutant, draw, mutants

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
HARMLESS = HERE / "harmless.json"
# Processor time of a mutant's tests: a multiple of the time without a mutant, and the least limit in seconds.
TIMES, LEAST_SECONDS = 4, 20
SLOW_SECONDS = 900
FAST, SLOW = "not slow", "slow"
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
    # Each process takes a module at a time.
    waiting: dict[str, list[Job]] = {}
    for name in names:
        source = (copies[0] / "hf_hamspk" / name).read_text(encoding="utf-8")
        count = MODULES[name].count if arguments.count is None else arguments.count
        drawn = draw(source, count, f"{arguments.seed} {name}")
        for mutant in itertools.chain(*mutants(source)) if arguments.again else drawn:
            job = Job(name, mutant, f"{name} {mutant.place}: {mutant.before} -> {mutant.after}")
            is_survivor = job.key not in harmless and known.get(job.key, {}).get("result") == SURVIVED
            if is_survivor if arguments.again else job.key not in known:
                waiting.setdefault(name, []).append(job)
    warm_up(folder)
    active = {Tester(copy, folder): iter(()) for copy in copies}
    with open(folder / "results.jsonl", "a", encoding="utf-8") as results:
        while active:
            for tester, steps in list(active.items()):
                row = next(steps, StopIteration)
                if row is StopIteration:
                    if waiting:
                        active[tester] = tester.test_all(waiting.pop(next(iter(waiting))))
                    else:
                        tester.close()
                        del active[tester]
                elif row is not None:
                    results.write(json.dumps(row | {"commit": commit}) + "\n")
                    results.flush()
                    print(f"{row['result']}, {row['seconds']:.0f} s: {row['key']}", flush=True)
            time.sleep(0.01)


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


class Tester:
    """Tests mutants in a copy of the repository, with the sessions of one module at a time.

    Args:
        copy: copy of the repository.
        folder: folder for the recorded lines.
    """

    def __init__(self, copy: Path, folder: Path):
        self.copy, self.folder = copy, folder
        self.name = ""
        self.sessions: dict[str, Session] = {}
        self.found: dict[str, Any] = {}

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions = {}

    def baseline_path(self, name: str) -> Path:
        return self.folder / "baselines" / f"{name.replace('/', '.')}.json"

    def enter(self, name: str) -> Iterator[None]:
        """Start the session of a module, and record the lines that each test runs if they are not known."""
        if name == self.name:
            return
        self.close()
        self.name, self.sessions = name, {FAST: Session(self.copy, MODULES[name].fast, FAST)}
        path = self.baseline_path(name)
        digest = hashlib.sha256((self.copy / "hf_hamspk" / name).read_bytes()).hexdigest()
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if found.get("digest") != digest:
            path.parent.mkdir(exist_ok=True)
            record = str(self.copy / "hf_hamspk" / name), str(path)
            self.sessions[FAST].send(seconds=SLOW_SECONDS, record=record)
            while (reply := self.sessions[FAST].poll()) is None:
                yield None
            if reply["status"] != PASSED:
                raise SystemExit(f"The tests of {name} fail without a mutant: see {self.sessions[FAST].log}")
            seconds = reply["seconds"]
            found = {"digest": digest, "seconds": seconds, "lines": json.loads(path.read_text(encoding="utf-8"))}
            path.write_text(json.dumps(found), encoding="utf-8")
            print(f"{name}: {len(found['lines'])} tests without a mutant took {seconds:.0f} s", flush=True)
        self.found = found

    def test_all(self, jobs: list[Job]) -> Iterator[dict[str, Any] | None]:
        for job in jobs:
            yield from self.test(job)

    def test(self, job: Job) -> Iterator[dict[str, Any] | None]:
        """Test one mutant: yield None while tests run, and its result in the end."""
        yield from self.enter(job.module)
        path, start = self.copy / "hf_hamspk" / job.module, time.monotonic()
        original, times = path.read_text(encoding="utf-8"), path.stat()
        is_swapped = is_within_functions(original, job.mutant.source)
        result, by = SURVIVED, ""
        # For the processes that tests start, and for a session of the mutant's own.
        path.write_text(job.mutant.source, encoding="utf-8")
        for killed, marks, request in self.stages(job):
            if is_swapped:
                if marks not in self.sessions:
                    path.write_text(original, encoding="utf-8")
                    self.sessions[marks] = Session(self.copy, MODULES[job.module].slow, marks)
                    # The tests are collected before the mutant is written.
                    self.sessions[marks].send(seconds=SLOW_SECONDS, only=[])
                    while self.sessions[marks].poll() is None:
                        yield None
                    path.write_text(job.mutant.source, encoding="utf-8")
                session = self.sessions[marks]
                request["mutant"] = str(path), job.mutant.source
            else:
                session = Session(self.copy, getattr(MODULES[job.module], "fast" if marks == FAST else "slow"), marks)
            session.send(**request)
            while (reply := session.poll()) is None:
                yield None
            if not is_swapped:
                session.close()
            if reply["status"] == CRASHED:
                raise SystemExit(f"pytest failed: see {session.log}")
            if reply["status"] != PASSED:
                result, by = killed, reply["by"] if reply["status"] > 0 else f"signal {-reply['status']}"
                break
        path.write_text(original, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        seconds = time.monotonic() - start
        yield {"key": job.key, "module": job.module, "result": result, "by": by, "seconds": round(seconds, 1)}

    def stages(self, job: Job) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield the result if a test fails, the marks of the tests, and the request for the session."""
        lines = self.found["lines"]
        first = [test for test, ran in lines.items() if job.mutant.line in ran]
        # Fixtures are shared by the tests of a file. The lines of files that start processes are not known.
        known = {test.partition("::")[0] for test, ran in lines.items() if ran}
        only = {test.partition("::")[0] for test in first} | (set(MODULES[job.module].fast) - known)
        request: dict[str, Any] = {"seconds": max(LEAST_SECONDS, TIMES * self.found["seconds"])}
        if first:
            request |= {"first": first, "only": sorted(only), "recorded": str(self.baseline_path(job.module))}
        yield KILLED_FAST, FAST, request
        if MODULES[job.module].slow:
            yield KILLED_SLOW, SLOW, {"seconds": SLOW_SECONDS}


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
