"""Runs of pytest in forks of a process that has imported torch and the other packages once."""

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

# Imported once by the parent. None of them starts threads, which would not survive a fork.
WARM = (
    "numpy",
    "torch",
    "torchaudio",
    "safetensors.torch",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.isotonic",
    "soundfile",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "transformers.models.wav2vec2.feature_extraction_wav2vec2",
    "transformers.pipelines",
    "transformers.trainer",
    "datasets",
    "accelerate",
)
# Bytes of address space of a fork, of which torch alone takes several GiB.
MEMORY = 24 << 30
# Seconds after which a fork that waits for nothing is ended; processor time is limited as well.
WALL_SECONDS = 900


def warm_up(folder: Path) -> None:
    """Import what the tests need, without network, and nothing of the package under test."""
    os.environ |= {
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    for name in WARM:
        importlib.import_module(name)
    if any(name.partition(".")[0] == "hf_hamspk" for name in sys.modules):
        raise SystemExit("The package was imported before the fork.")


class Fork:
    """A run of pytest in a fork of this process.

    Args:
        copy: copy of the repository to test.
        files: test files.
        marks: value of pytest's `-m`.
        seconds: limit of processor time.
        first: tests to run before the others.
        record: file of the package whose lines are recorded by test, and the JSON file to write them to; None records
            nothing, and the run ends with the first test that fails.

    Attributes:
        log: file with the output of pytest.
    """

    def __init__(
        self,
        copy: Path,
        files: Sequence[str],
        marks: str,
        seconds: float,
        first: Sequence[str] = (),
        record: tuple[Path, Path] | None = None,
    ):
        self.log = copy.with_suffix(".log")
        self.temporary = copy.with_suffix(".tmp")
        self.end_by = time.monotonic() + WALL_SECONDS
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            status = 70
            try:
                self._enter(copy, seconds)
                if record is None:
                    # Compiled files count as current if size and second of the source are equal, as of two mutants.
                    sys.dont_write_bytecode = True
                    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
                plugins: list[Any] = [First(first)] if record is None else [Recorder(*record)]
                how = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--durations=0", "--tb=short", "-m", marks]
                status = int(pytest.main([*how, *files], plugins=plugins))
                sys.stdout.flush()
            finally:
                os._exit(status)

    def _enter(self, copy: Path, seconds: float) -> None:
        os.setsid()
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "TMPDIR": str(self.temporary)}
        sys.path.insert(0, str(copy))

    def poll(self) -> int | None:
        """Return the exit status, minus the signal that ended the fork, or None while it runs."""
        found, status = os.waitpid(self.process, os.WNOHANG)
        if not found and time.monotonic() < self.end_by:
            return None
        self.end()
        return os.waitstatus_to_exitcode(status) if found else -signal.SIGXCPU

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(0.05)
        return status

    def end(self) -> None:
        """Kill the fork and the processes that its tests started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process, 0)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def failed_test(self) -> str:
        """Return the name of the test that failed."""
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("FAILED ", "ERROR ")):
                return line.split()[1]
        return ""


class First:
    """Plugin of pytest that runs the given tests before the others."""

    def __init__(self, tests: Sequence[str]):
        self.tests = set(tests)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.nodeid not in self.tests)


class Recorder:
    """Plugin of pytest that records which lines of a file each test runs.

    Lines that only the import of the file runs belong to no test.
    """

    def __init__(self, source: Path, report: Path):
        self.source, self.report = str(source), report
        self.lines: dict[str, set[int]] = {}
        self.current: set[int] = set()

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != self.source:
            return None
        self.current.add(frame.f_lineno)
        return self.trace_line

    def trace_line(self, frame: FrameType, event: str, argument: object) -> Any:
        self.current.add(frame.f_lineno)
        return self.trace_line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.current = self.lines[item.nodeid] = set()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # pyright: ignore[reportArgumentType]

    def pytest_sessionfinish(self) -> None:
        self.report.write_text(json.dumps({test: sorted(lines) for test, lines in self.lines.items()}))
