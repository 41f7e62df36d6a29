"""Training on data sets that is killed and resumed, in one and in two processes, with callbacks and trackers."""

import json
import multiprocessing
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Audio, Dataset
from killed_run import Run, train
from safetensors.torch import load_file

pytest.importorskip("trackio")

# Starts once, imports the package once, and forks each process of a run.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["killed_run"])
STEPS = 9


@pytest.fixture(scope="module")
def saved(corpus, tmp_path_factory) -> Path:
    """The corpus as a folder of `save_to_disk`, with the audio in it."""
    rows = [line.split(",") for line in (corpus / "train.csv").read_text().splitlines()[1:]]
    content = [{"path": path, "bytes": (corpus / "audio" / path).read_bytes()} for path, _ in rows]
    data = Dataset.from_dict({"audio": content, "speaker": [speaker for _, speaker in rows]})
    folder = tmp_path_factory.mktemp("rows") / "saved"
    data.cast_column("audio", Audio(sampling_rate=16000)).save_to_disk(folder)
    return folder


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(run: Run) -> list[int | None]:
    """Run all processes, end the others as soon as one has been killed, and return the exit codes."""
    run = run._replace(port=free_port())
    started = [PROCESSES.Process(target=train, args=(run, rank)) for rank in range(run.world_size)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode != 0:
            for other in started:
                other.kill()
    return [process.exitcode for process in started]


def samples(run: Run) -> list[dict[int, Counter[str]]]:
    """Of each process, the samples of each step. A step that was trained again replaces what was there before."""
    found = []
    for rank in range(run.world_size):
        steps: dict[int, list[str]] = {}
        last = 0
        for line in (run.folder.parent / f"{run.folder.name}-{rank}.txt").read_text().splitlines():
            step, sample = int(line.split()[0]), line.split()[1]
            if step not in (0, last):
                steps[step] = []
            if step > 0:
                steps[step].append(sample)
            last = step
        found.append({step: Counter(each) for step, each in steps.items()})
    return found


def assert_exact(whole: Run, cut: Run, one: Run) -> None:
    """The weights are those of an uninterrupted run, and no sample was lost or doubled in any step."""
    first, second = (load_file(run.folder / "final" / "model.safetensors") for run in (whole, cut))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for rank in range(cut.world_size):
        assert (cut.folder.parent / f"{cut.folder.name}-{rank}.steps").read_text() == f"{STEPS} {STEPS}"
    expected, trained = samples(one)[0], samples(cut)
    for step in range(1, STEPS + 1):
        assert sum((each[step] for each in trained), Counter()) == expected[step], step
        assert {each[step].total() for each in trained} == {8 // cut.world_size}
    epochs = [sum((expected[step + first] for step in range(3)), Counter()) for first in (1, 4, 7)]
    assert all(len(each) == each.total() == 24 for each in epochs), "each utterance once per epoch"
    rows = [json.loads(line) for line in (cut.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert sum("dev_eer" in row for row in rows) == 3
    assert list((cut.folder / "logs").rglob("events.out.tfevents*"))
    assert list((cut.folder.parent / "trackio").rglob("killed*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "killed_at"),
    [("dataset", 6), ("stream", 6), ("stream", 4)],
    ids=["dataset", "stream", "stream after its first epoch"],
)
def test_a_killed_run_loses_and_doubles_nothing(saved, corpus, tmp_path, kind, killed_at):
    whole = Run(saved, corpus / "dev.txt", tmp_path / "whole", kind)
    cut = whole._replace(folder=tmp_path / "cut")
    assert start(whole) == [0]
    assert start(cut._replace(killed_at=killed_at)) == [-signal.SIGKILL]
    assert not (cut.folder / "final").exists()
    assert start(cut) == [0]
    assert_exact(whole, cut, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_two_processes_that_were_killed_lose_and_double_nothing(saved, corpus, tmp_path, kind):
    one = Run(saved, corpus / "dev.txt", tmp_path / "one", kind)
    whole, cut = (one._replace(folder=tmp_path / name, world_size=2) for name in ("whole", "cut"))
    assert start(one) == [0]
    assert start(whole) == [0, 0]
    assert -signal.SIGKILL in start(cut._replace(killed_at=6))
    assert not (cut.folder / "final").exists()
    assert start(cut) == [0, 0]
    assert_exact(whole, cut, one)
