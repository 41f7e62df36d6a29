"""The steps of datatrove, with its executors for one machine and for Ray: the bytes of one process.

The local executor is killed at random and started again, and one rank is left out at first. `HAMSPK_FULL_SIZE=1` takes
5,000 files, 4 ranks and 10 kills in place of 300 files, 2 ranks and one kill.
"""

import functools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from many_ranks import RATE, contents, tiny
from tiny_models import save_model

from hf_hamspk.embedding import embed_share, finish_embeddings, parts
from hf_hamspk.embedding.finding import find_source
from hf_hamspk.embedding.sharing import parts_folder
from hf_hamspk.loading.models import load_model
from hf_hamspk.shards import PrepareOptions, prepare

FULL = os.environ.get("HAMSPK_FULL_SIZE") == "1"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200 if FULL else 900)]
pytest.importorskip("datatrove", reason="the extra `datatrove` is not installed")

from hf_hamspk.clusters import EmbedShare, FinishEmbeddings, FinishShards, MakeShards, PlanShards  # noqa: E402

FILES, TASKS, KILLS = (5000, 4, 10) if FULL else (300, 2, 1)
SHARDS = PrepareOptions(shards=128 if FULL else 12)
PART = 16


class EmbedShareInSmallParts(EmbedShare):
    """`EmbedShare` with parts of 16 recordings, so that a kill finds a rank at work."""

    def work(self, rank: int, world_size: int) -> None:
        parts.PART_UTTERANCES = PART
        super().work(rank, world_size)


class FinishSmallParts(FinishEmbeddings):
    """`FinishEmbeddings` after `EmbedShareInSmallParts`."""

    def work(self, rank: int, world_size: int) -> None:
        parts.PART_UTTERANCES = PART
        super().work(rank, world_size)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_UTTERANCES", PART)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    """Recordings in `wav`, a model, and the shards and embeddings of one process in `one` and `one.parquet`."""
    root = tmp_path_factory.mktemp("expected")
    tiny(root / "wav", FILES)
    prepare([root / "wav"], root / "one", SHARDS, progress=False)
    model = load_model(save_model(root / "model"), "cpu")
    source = find_source([str(root / "wav")]).open(RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_UTTERANCES", PART)
        embed_share(model, source, root / "one.parquet", 0, 1, progress=False)
        finish_embeddings(model, source, root / "one.parquet", name="model")
    return root


class Steps:
    """Steps that prepare and embed the recordings of `expected` with an executor, whose logs are in `folder`.

    Args:
        executor: class of the executor.
        expected: folder of the fixture of this name.
        folder: folder for the results and the logs.
        settings: further arguments of the executor.
    """

    def __init__(self, executor, expected: Path, folder: Path, **settings):
        self.executor, self.folder, self.settings = executor, folder, settings
        self.shards, self.embeddings = folder / "shards", folder / "e.parquet"
        embed = str(expected / "model"), [str(expected / "wav")], str(self.embeddings), "float32", "cpu"
        self.plan = PlanShards([str(expected / "wav")], str(self.shards), SHARDS)
        self.make, self.finish = MakeShards(str(self.shards)), FinishShards(str(self.shards))
        self.embed, self.finish_embeddings = EmbedShareInSmallParts(*embed), FinishSmallParts(*embed)

    def logs(self, step) -> Path:
        return self.folder / "logs" / type(step).__name__

    def run(self, step) -> None:
        self.executor([step], tasks=TASKS, workers=TASKS, logging_dir=str(self.logs(step)), **self.settings).run()

    def done(self, step) -> int:
        """Return the number of shards or parts."""
        if step is self.make:
            return len(list((self.shards / ".progress").glob("shard-*.json")))
        return len(list(Path(parts_folder(self.embeddings)).glob("part-*.parquet")))

    def undo(self, step) -> None:
        """Take away a shard or part of rank 0 and the mark that the rank has ended, so that there is work to kill."""
        (self.logs(step) / "completions" / "00000").unlink(missing_ok=True)
        (self.shards / ".progress" / "shard-00000.json").unlink(missing_ok=True)
        Path(parts_folder(self.embeddings), parts.part_name(0)).unlink(missing_ok=True)


def check_steps(steps: Steps, expected: Path, run_ranks: Callable, kill_ranks: Callable) -> None:
    """Run all steps. `kill_ranks(steps, step)` kills ranks and restarts them; the last rank is left out, and named."""
    steps.plan.work(0, 1)
    for step, finish in ((steps.make, steps.finish), (steps.embed, steps.finish_embeddings)):
        # As if the logs were those of an earlier run, in which the last rank has ended.
        marks = [steps.logs(step) / place for place in (f"completions/{TASKS - 1:05d}", f"stats/{TASKS - 1:05d}.json")]
        for mark in marks:
            mark.parent.mkdir(parents=True)
            mark.write_text("[]")
        kill_ranks(steps, step)
        with pytest.raises(ValueError, match=rf"missing.*\. Rank {TASKS - 1} of {TASKS} never started: run `hamspk"):
            finish.work(0, 1)
        for mark in marks:
            mark.unlink()
        run_ranks(steps, step)
        finish.work(0, 1)
    assert contents(steps.shards) == contents(expected / "one")
    assert steps.embeddings.read_bytes() == (expected / "one.parquet").read_bytes()


def wait_for_work(steps: Steps, step, is_over: Callable[[], bool]) -> None:
    """Return a random time after a rank has finished a shard or part, or when all ranks have ended."""
    before = steps.done(step)
    while steps.done(step) == before and not is_over():
        time.sleep(0.02)
    time.sleep(random.uniform(0.0, 0.1))


def run_in_own_group(steps: Steps, step) -> None:
    os.setsid()
    torch.set_num_threads(1)
    steps.run(step)


def run_in_child(steps: Steps, step, kills: int = 0) -> None:
    """Run an executor in a process; kill it with all its processes `kills` times while ranks are at work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_hamspk.clusters"])
    while True:
        child = context.Process(target=run_in_own_group, args=(steps, step))
        child.start()
        if kills:
            wait_for_work(steps, step, lambda child=child: not child.is_alive())
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.join()
        if child.exitcode == -signal.SIGKILL:
            kills -= 1
            continue
        assert child.exitcode == 0
        if not kills:
            return
        steps.undo(step)


def test_the_local_executor(expected, tmp_path):
    from datatrove.executor import LocalPipelineExecutor

    threads = torch.get_num_threads()
    steps = Steps(LocalPipelineExecutor, expected, tmp_path, start_method="fork")
    check_steps(steps, expected, run_in_child, functools.partial(run_in_child, kills=KILLS))
    assert torch.get_num_threads() == threads


def embed_in_usual_parts(expected: Path, output: Path) -> None:
    model = load_model(expected / "model", "cpu")
    source = find_source([str(expected / "wav")]).open(RATE)
    embed_share(model, source, output, 0, 1, progress=False)
    finish_embeddings(model, source, output, name="model")


def test_the_executor_of_ray(expected, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from datatrove.executor import RayPipelineExecutor

    monkeypatch.setattr(parts, "PART_UTTERANCES", 128)
    embed_in_usual_parts(expected, tmp_path / "one.parquet")
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")
    try:
        ray.init(num_cpus=TASKS, include_dashboard=False, logging_level="error", log_to_driver=False)
    except Exception as error:  # Ray gives its own processes seconds to start, whatever else the machine does
        ray.shutdown()
        pytest.skip(f"Ray does not start on this machine: {error}")

    def job(step, depends=None, tasks=1):
        logs = str(tmp_path / "logs" / type(step).__name__)
        settings = {"workers": tasks, "logging_dir": logs, "depends": depends, "mem_per_cpu_gb": 0.25}
        return RayPipelineExecutor([step], tasks=tasks, **settings)

    try:
        out = str(tmp_path / "shards")
        plan = job(PlanShards([str(expected / "wav")], out, SHARDS))
        job(FinishShards(out), job(MakeShards(out), plan, TASKS)).run()
        assert contents(tmp_path / "shards") == contents(expected / "one")
        words = (str(expected / "model"), [str(expected / "wav")], str(tmp_path / "e.parquet"), "float32", "cpu")
        job(FinishEmbeddings(*words), job(EmbedShare(*words), tasks=TASKS)).run()
        assert (tmp_path / "e.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    finally:
        ray.shutdown()
