"""Runs of pytest in forks, so that imports and the collection of tests are done once for many mutants.

This process imports torch and the other packages, and forks a `Session` for some test files. The session collects the
tests and forks a child for each mutant. In the child, the changed functions get the code of the mutant, and the tests
run. A mutant outside of functions needs a session of its own, which imports the changed module.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

# Imported once. None of them starts threads, which would not survive a fork.
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
# Bytes of address space of a child. Torch alone takes several GiB.
MEMORY = 24 << 30
# Seconds after which a child is ended even if it takes no processor time.
WALL_SECONDS = 900
# Exit status if pytest itself failed, and if a test failed.
PASSED, FAILED, CRASHED = 0, 1, 70
# Flag of the code of functions, which the code of modules and classes lacks.
CO_OPTIMIZED = 1


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


class Session:
    """A process that has collected tests and runs them for one request after another.

    Args:
        copy: copy of the repository to test.
        files: test files.
        marks: value of pytest's `-m`.
    """

    def __init__(self, copy: Path, files: Sequence[str], marks: str):
        self.log = copy.with_suffix(".log")
        requests, replies = os.pipe(), os.pipe()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            status = CRASHED
            try:
                os.close(requests[1])
                os.close(replies[0])
                loop = _enter(copy, self.log, requests[0], replies[1])
                how = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--durations=0", "--tb=line", "-m", marks]
                status = int(pytest.main([*how, *files], plugins=[loop]))
                sys.stdout.flush()
            finally:
                os._exit(status)
        os.close(requests[0])
        os.close(replies[1])
        self.requests, self.replies = os.fdopen(requests[1], "w"), os.fdopen(replies[0], "rb", buffering=0)

    def send(self, **request: Any) -> None:
        """Ask for a run of the tests.

        Args:
            seconds: limit of processor time.
            first: tests to run before the others.
            only: test files to run; all if left out.
            recorded: file with the lines that each test runs. Tests that it lacks are new, and run first.
            mutant: path and text of the changed module; the module is left as it is on disk if left out.
            record: path of a module, and of the JSON file to which the lines that each test runs are written.
        """
        with contextlib.suppress(BrokenPipeError):
            self.requests.write(json.dumps(request) + "\n")
            self.requests.flush()

    def poll(self) -> dict[str, Any] | None:
        """Return the result of the run, or None while it runs.

        The result contains the exit `status` of pytest, the name of the test that failed (`by`), and the `seconds` of
        processor time.
        """
        if not select.select([self.replies], [], [], 0)[0]:
            return None
        line = self.replies.readline()
        # The session ends without an answer if the tests cannot be collected.
        return json.loads(line) if line else {"status": FAILED, "by": "collection"}

    def wait(self, **request: Any) -> dict[str, Any]:
        """Run the tests, and return the answer of `poll`."""
        self.send(**request)
        while (reply := self.poll()) is None:
            time.sleep(0.05)
        return reply

    def close(self) -> None:
        """End the session and the processes that it started."""
        for pipe in (self.requests, self.replies):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def _enter(copy: Path, log: Path, requests: int, replies: int) -> "Loop":
    """Prepare the process of a session."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path.insert(0, str(copy))
    # Compiled files count as current if size and second of the source are equal, as of two mutants.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    _move_temporary(copy.with_suffix(".tmp"))
    return Loop(copy, os.fdopen(requests, "r"), os.fdopen(replies, "w"))


def _move_temporary(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


class Loop:
    """Plugin of pytest that runs the collected tests in a child for each request."""

    def __init__(self, copy: Path, requests: Any, replies: Any):
        self.copy, self.requests, self.replies = copy, requests, replies
        self.failed = copy.with_suffix(".failed")
        self.functions: list[FunctionType] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed:
            return None
        package = str(self.copy / "hf_hamspk")
        functions = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        self.functions = [one for one in functions if one.__code__.co_filename.startswith(package)]
        # A collection of garbage in a child would copy the memory of all modules.
        gc.collect()
        gc.freeze()
        for line in iter(self.requests.readline, ""):
            request = json.loads(line)
            self.failed.write_text("")
            child = os.fork()
            if child == 0:
                self._begin(session, request)
                return None
            status, seconds = _end_of(child, time.monotonic() + WALL_SECONDS)
            reply = {"status": status, "seconds": seconds, "by": self.failed.read_text()}
            self.replies.write(json.dumps(reply) + "\n")
            self.replies.flush()
        return True

    def _begin(self, session: pytest.Session, request: dict[str, Any]) -> None:
        """Prepare a child: the mutant, the limits, and the tests in their order."""
        os.setsid()
        _move_temporary(self.copy.with_suffix(".tmp") / "child")
        seconds = int(request["seconds"])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        if "mutant" in request:
            swap_code(self.functions, *request["mutant"])
        if "record" in request:
            session.config.pluginmanager.register(Recorder(*request["record"]))
        first, only = set(request.get("first", ())), request.get("only")
        if "recorded" in request:
            recorded = json.loads(Path(request["recorded"]).read_text())["lines"]
            first |= {item.nodeid for item in session.items if item.nodeid not in recorded}
        files = {test.partition("::")[0] for test in (*first, *(only or ()))}
        items = [item for item in session.items if only is None or item.nodeid.partition("::")[0] in files]
        session.items[:] = sorted(items, key=lambda item: item.nodeid not in first)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.write_text(report.nodeid)


def _end_of(child: int, limit: float) -> tuple[int, float]:
    """Wait for a child: its exit status, or minus the signal that ended it, and its seconds of processor time."""
    found, status, used = 0, 0, None
    while not found and time.monotonic() < limit:
        found, status, used = os.wait4(child, os.WNOHANG)
        time.sleep(0.01)
    # Also the processes that the tests started.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if not found or used is None:
        os.waitpid(child, 0)
        return -signal.SIGXCPU, 0.0
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def swap_code(functions: list[FunctionType], path: str, source: str) -> None:
    """Give the functions of an imported module the code of a changed source text."""
    new = {(code.co_qualname, code.co_firstlineno): code for code in _codes(compile(source, path, "exec"))}
    for function in functions:
        if function.__code__.co_filename == path:
            code = new.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
            if code is not None and code.co_freevars == function.__code__.co_freevars:
                function.__code__ = code


def is_within_functions(original: str, changed: str) -> bool:
    """Return whether two versions of a module differ only in the code of functions, which `swap_code` can replace."""
    texts = [
        [(code.co_code, code.co_names, [c for c in code.co_consts if not isinstance(c, CodeType)]) for code in bodies]
        for bodies in (_bodies(original), _bodies(changed))
    ]
    return repr(texts[0]) == repr(texts[1])


def _bodies(source: str) -> list[CodeType]:
    """Return the code that an import of a module runs: of the module itself and of its classes."""
    module = compile(source, "module", "exec")
    return [module, *(code for code in _codes(module) if not code.co_flags & CO_OPTIMIZED)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


class Recorder:
    """Plugin of pytest that records which lines of a file each test runs."""

    def __init__(self, source: str, report: str):
        self.source, self.report = source, Path(report)
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
