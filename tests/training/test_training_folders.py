"""The output folder of a run: nobody else's files are touched, damaged checkpoints are refused, one run at a time."""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from hf_hamspk.folders.locks import lock_folder
from hf_hamspk.training import Trainer, read_recipe
from hf_hamspk.training.checkpoints import (
    Progress,
    average_epoch_weights,
    check_checkpoint,
    check_output_folder,
    checkpoints,
    finish_checkpoint,
    forget_run,
    read_progress,
    save_epoch_weights,
    tidy_run,
    trim_metrics,
)

FILES = ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json", "files.json"]
EXPONENTIAL = {"lr_schedule": "exponential"}
DAMAGES = ["missing", "cut", "empty", "flipped", "longer", "other"]


def train(words: list[str]):
    return Trainer.from_recipe(read_recipe(words)).train()


def tree(folder: Path) -> dict[str, str]:
    """Hash of each file, by its path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "cut": content[:middle],
        "empty": b"",
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "longer": content + b"\0",
        "other": random.Random(0).randbytes(len(content)),
    }
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[kind])


def make_checkpoint(output_dir: Path, step: int, keep: int = 9, names: tuple[str, ...] = tuple(FILES[:3])) -> Path:
    unfinished = output_dir / "checkpoints" / ".unfinished"
    unfinished.mkdir(parents=True)
    for name in names:
        (unfinished / name).write_bytes(f"{name} of {step}, some content".encode())
    finish_checkpoint(unfinished, output_dir, Progress(step=step, config={"lr_schedule": "constant"}), keep)
    return output_dir / "checkpoints" / f"step-{step:08d}"


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FILES), st.sampled_from(DAMAGES), st.booleans())
def test_each_damage_of_each_file_is_refused_by_name(tmp_path_factory, name, kind, alone):
    root = tmp_path_factory.mktemp("run")
    if not alone:
        make_checkpoint(root, 5)
    newest = make_checkpoint(root, 10)
    check_checkpoint(newest)
    damage(newest / name, kind)
    with pytest.raises(ValueError, match=re.escape(f"{newest} is damaged")) as caught:
        check_checkpoint(newest)
    assert ("starts" if alone else "resumes from step-00000005") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_digit_in_the_list_is_refused(tmp_path):
    newest = make_checkpoint(tmp_path, 5)
    text = (newest / "files.json").read_text()
    for old, new in ((r'"sha256": "(.)', lambda m: f'"sha256": "{"0" if m[1] != "0" else "1"}'), ("bytes", "byte")):
        (newest / "files.json").write_text(re.sub(old, new, text, count=1))
        with pytest.raises(ValueError, match="is damaged"):
            check_checkpoint(newest)


def test_a_checkpoint_of_an_earlier_version_has_no_list(tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps({"epoch": 1, "batch": 0, "step": 5, "config": {}}))
    (folder / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match=re.escape("random_states_0.pkl is missing")):
        check_checkpoint(folder)
    random_states = {
        "random_state": (3, (1,), None),
        "numpy_random_seed": (),
        "torch_manual_seed": torch.get_rng_state(),
    }
    torch.save(random_states, folder / "random_states_0.pkl")
    check_checkpoint(folder)
    for kind in ("cut", "empty", "other"):
        whole = (folder / "random_states_0.pkl").read_bytes()
        damage(folder / "random_states_0.pkl", kind)
        with pytest.raises(ValueError, match=re.escape("random_states_0.pkl cannot be read")):
            check_checkpoint(folder)
        (folder / "random_states_0.pkl").write_bytes(whole)
    # A list that was there and is gone is no earlier version.
    newer = make_checkpoint(tmp_path, 10)
    (newer / "files.json").unlink()
    with pytest.raises(ValueError, match=re.escape("files.json is missing")):
        check_checkpoint(newer)


def strangers(folder: Path) -> dict[str, str]:
    """Put files of a stranger wherever a run writes, and return their hashes."""
    names = [
        *("notes.txt", "epochs/notes.txt", "epochs/epoch-1.safetensors", "epochs/epoch-0001.safetensors.bak"),
        *("checkpoints/checkpoint-500/optimizer.pt", "checkpoints/step-00000002/notes.txt", "checkpoints/readme"),
        *("checkpoints/step-00000002-copy/model.safetensors", "checkpoints/step-2/progress.json"),
        *("best/thesis.txt", "last/plots/mine.txt", "final/src/main.py", "logs/mine.txt", "metrics.csv", "best.zip"),
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the only copy of {name}")
    return {name: digest for name, digest in tree(folder).items() if name in names}


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints/checkpoint-500/model.safetensors", "epochs/notes.txt", "metrics.jsonl", "best/thesis.txt"),
        *("recipe.yaml", ".lock", "checkpoints/step-00000500/progress.json", "epochs/epoch-0001.safetensors"),
    ],
)
@pytest.mark.parametrize("resume", ["true", "false"])
def test_a_folder_without_a_run_is_refused_before_anything_is_touched(tmp_path, run_words, name, resume):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=re.escape("contains other files (")):
        train(run_words(tmp_path / "run", resume=resume, train_data="nowhere"))
    assert tree(tmp_path) == before


def test_an_empty_folder_and_a_run_of_an_earlier_version_are_taken(tmp_path):
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "new")
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    with pytest.raises(ValueError, match=re.escape("contains other files (recipe.yaml)")):
        check_output_folder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "step": 1, "loss": 3.5}\n')
    check_output_folder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("loss 3.5\n")
    with pytest.raises(ValueError, match="contains other files"):
        check_output_folder(tmp_path)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001" / "progress.json").write_text("{}")
    check_output_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir must be a folder, got the file"):
        check_output_folder(tmp_path / "file")


def test_keeping_and_forgetting_remove_only_what_a_run_wrote(tmp_path):
    make_checkpoint(tmp_path, 1)
    theirs = strangers(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    model = torch.nn.Linear(2, 2)
    for step in (2, 3, 4, 5):
        make_checkpoint(tmp_path, step, keep=2)
        save_epoch_weights(model, tmp_path, step, 2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
    assert sorted(path.name for path in (tmp_path / "epochs").glob("epoch-????.safetensors")) == [
        "epoch-0004.safetensors",
        "epoch-0005.safetensors",
    ]
    tidy_run(tmp_path)
    forget_run(tmp_path)
    assert tree(tmp_path) == theirs


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path):
    make_checkpoint(tmp_path, 1)
    save_epoch_weights(torch.nn.Linear(2, 2), tmp_path, 1, 2)
    before = tree(tmp_path)
    for name in (
        *("checkpoints/.unfinished/model.safetensors", "epochs/.new", "epochs/epoch-0002.safetensors.4711.tmp"),
        *("metrics.jsonl.4711.tmp", "recipe.yaml.4711.tmp", ".best.new/model.safetensors", ".last.old/config.json"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "config.json").write_text("{}")
    mine = ("thesis.4711.tmp", ".new", "epochs/notes.tmp", "checkpoints/.new")
    for name in mine:
        (tmp_path / name).write_text("mine")
    tidy_run(tmp_path)
    assert set(tree(tmp_path)) == {*before, "last/config.json", *mine}


def test_garbage_in_the_metrics_is_removed(tmp_path):
    lines = [b'{"epoch": 0, "step": %d, "loss": 1.5}\n' % step for step in (1, 2, 3)]
    garbage = [
        b"\n",
        b"\0\0\0\0\n",
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'{"step": "2"}\n',
        b'{"loss": 1}\n',
        b"[" * 9999 + b"\n",
    ]
    mixed = [line for pair in zip(garbage, [*lines, *[b""] * 4], strict=True) for line in pair]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(mixed) + b'{"epoch": 0, "st')
    assert trim_metrics(tmp_path, 2) == len(garbage)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:2])
    assert trim_metrics(tmp_path, 2) == trim_metrics(tmp_path / "nowhere", 2) == 0


def test_damaged_and_missing_epoch_weights_are_refused(tmp_path):
    for epoch in (1, 2, 3):
        save_epoch_weights(torch.nn.Linear(2, 2), tmp_path, epoch, 3)
    average_epoch_weights(tmp_path, 3)
    file = tmp_path / "epochs" / "epoch-0002.safetensors"
    whole = file.read_bytes()
    for kind in DAMAGES:
        damage(file, kind)
        with pytest.raises(ValueError, match=re.escape(f"{file} is damaged")):
            average_epoch_weights(tmp_path, 3)
        file.write_bytes(whole)
    # Weights of version 0.1.0 have no list.
    (tmp_path / "epochs" / "files.json").unlink()
    average_epoch_weights(tmp_path, 3)
    save_file({"weight": torch.zeros(2)}, tmp_path / "epochs" / "epoch-0009.safetensors")
    with pytest.raises(ValueError, match=re.escape("epoch-0007.safetensors is damaged (the file is missing")):
        average_epoch_weights(tmp_path, 3)


@pytest.mark.parametrize(
    ("found", "now", "progress", "message"),
    [
        ({"epochs": 3}, {"epochs": 5}, (3, 0), None),
        ({"epochs": 5}, {"epochs": 3}, (3, 0), None),
        ({"epochs": 5}, {"epochs": 3}, (3, 1), "has already begun epoch 4, but epochs is 3"),
        ({"epochs": 5}, {"epochs": 3}, (4, 0), "has already begun epoch 4, but epochs is 3"),
        (
            {"epochs": 3, "lr_schedule": "exponential"},
            {"epochs": 5, "lr_schedule": "exponential"},
            (3, 0),
            "initial_model",
        ),
        ({"epochs": 3}, {"epochs": 5, "lr_schedule": "exponential"}, (3, 0), "lr_schedule: 'epoch_decay'"),
        ({"seed": 0}, {"seed": 1}, (3, 0), "seed: 0 in the checkpoint, 1 now"),
    ],
)
def test_the_number_of_epochs_may_change_unless_the_schedule_depends_on_it(tmp_path, found, now, progress, message):
    base = {"lr_schedule": "epoch_decay", "epochs": 3, "training_data": "a"}
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    values = {"epoch": progress[0], "batch": progress[1], "config": base | found}
    (folder / "progress.json").write_text(json.dumps(values))
    expected = {key: value for key, value in (base | now).items() if key != "training_data"}
    if message is None:
        assert read_progress(folder, expected).epoch == progress[0]
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        read_progress(folder, expected)


@pytest.mark.slow
def test_cheap_checks_come_before_the_audio(tmp_path, run_words, monkeypatch):
    train(run_words(tmp_path / "run", epochs=1, lr_schedule="exponential"))

    def read(*_):
        pytest.fail("the audio was read")

    monkeypatch.setattr("hf_hamspk.training.trainer.build_crops", read)
    for changes, message in (
        ({"epochs": 2, "lr_schedule": "exponential"}, f"set initial_model: {tmp_path / 'run' / 'final'}"),
        ({"ecapa_channels": 32}, "ecapa_channels: 16 in the checkpoint, 32 now"),
        ({"dev_trials": "nowhere.txt"}, "nowhere.txt"),
    ):
        message = message.replace("set initial_model", "new run with initial_model")
        with pytest.raises(ValueError, match=re.escape(message)):
            train(run_words(tmp_path / "run", **({"epochs": 1, "lr_schedule": "exponential"} | changes)))
    with (
        lock_folder(tmp_path / "run" / ".lock", tmp_path / "run", "hamspk train"),
        pytest.raises(ValueError, match=f"process {os.getpid()} on .* is writing into {tmp_path / 'run'}"),
    ):
        train(run_words(tmp_path / "run", epochs=1, lr_schedule="exponential"))
    newest = checkpoints(tmp_path / "run")[-1]
    damage(newest / "random_states_0.pkl", "missing")
    with pytest.raises(ValueError, match=re.escape(f"{newest} is damaged (random_states_0.pkl is missing)")):
        train(run_words(tmp_path / "run", epochs=1, lr_schedule="exponential"))


@pytest.mark.slow
def test_entries_hold_the_mean_loss_and_the_speed(tmp_path, run_words):
    """Four steps an epoch; an entry every three steps spans the epochs, also where a run was resumed between two."""
    changes = {"epochs": 3, "save_steps": 1, "scale": 20}
    train(run_words(tmp_path / "each", log_steps=1, **changes))
    train(run_words(tmp_path / "cut", log_steps=3, max_steps=5, **changes))
    train(run_words(tmp_path / "cut", log_steps=3, **changes))
    each, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("each", "cut")
    )
    losses = [row["loss"] for row in each if "loss" in row]
    rows = [row for row in cut if "loss" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 12] and len(losses) == 12
    for row in rows:
        assert row["loss"] == pytest.approx(sum(losses[row["step"] - 3 : row["step"]]) / 3, rel=1e-6)
        assert row["seconds"] > 0 and 0 <= row["waiting_for_data"] <= 1
    assert rows[0]["utterances_per_second"] == pytest.approx(18 / rows[0]["seconds"], rel=0.01)
    recipe = yaml.safe_load((tmp_path / "cut" / "recipe.yaml").read_text())
    assert (recipe["head"], recipe["scale"], recipe["margin"], recipe["curvature"]) == ("ham", 20, 0.2, 3.0)
    # The recipe in the folder resumes the run.
    assert Trainer.from_recipe(tmp_path / "cut" / "recipe.yaml").checkpoint == checkpoints(tmp_path / "cut")[-1]


@pytest.mark.slow
def test_strangers_files_in_a_run_stay(tmp_path, run_words):
    changes = {"save_steps": 1, "keep_checkpoints": 1}
    train(run_words(tmp_path, epochs=1, **changes))
    theirs = strangers(tmp_path)
    train(run_words(tmp_path, epochs=2, **changes))
    train(run_words(tmp_path, epochs=1, seed=3, resume="false", **changes))
    assert {name: digest for name, digest in tree(tmp_path).items() if name in theirs} == theirs
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-00000004"]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["epoch_decay", "constant"])
def test_an_extended_run_equals_a_long_one(tmp_path, run_words, schedule):
    changes = {"lr_schedule": schedule, "augment_probability": 0.5, "log_steps": 3, "average_last": 2}
    train(run_words(tmp_path / "extended", epochs=2, **changes))
    train(run_words(tmp_path / "extended", epochs=4, **changes))
    train(run_words(tmp_path / "long", epochs=4, **changes))
    for name in ("last", "final"):
        one, two = (load_file(tmp_path / run / name / "model.safetensors") for run in ("extended", "long"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def run_in_child(words: list[str]) -> None:
    """The work of a child process; its output goes into a file beside the run."""
    log = os.open(f"{words[words.index('--output_dir') + 1]}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The lock of tqdm is shared by forked processes: a killed one would keep it from all others forever.
    tqdm.set_lock(threading.RLock())
    try:
        train(words)
    except BaseException as error:
        os.write(2, f"\n{error}\n".encode())
        os._exit(2)
    os._exit(0)


@pytest.mark.slow
def test_thirty_kills_with_each_file_of_the_checkpoint_damaged(tmp_path, run_words):
    """Killed at random, the newest checkpoint damaged, refused by name, deleted, resumed: no weight differs."""
    # A fork of this process itself could inherit locks that its threads hold, and wait for them forever.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["hf_hamspk.training.trainer"])
    changes = {"epochs": 3, "save_steps": 1, "augment_probability": 0.5, "keep_checkpoints": 3, "dev_trials": None}

    def words(name: str) -> list[str]:
        return run_words(tmp_path / name, **changes)

    def run(name: str, kill_at: int | None = None) -> int:
        process = server.Process(target=run_in_child, args=(words(name),))
        process.start()
        metrics = tmp_path / name / "metrics.jsonl"
        while kill_at is not None and process.is_alive():
            if metrics.is_file() and metrics.read_bytes().count(b"\n") >= kill_at:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        process.join()
        return process.exitcode

    assert run("whole") == 0
    whole = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    draw, differences = random.Random(0), []
    for attempt, (file, kind) in enumerate((file, kind) for file in FILES for kind in DAMAGES):
        name = f"cut-{attempt}"
        assert run(name, draw.randint(4, 10)) == -signal.SIGKILL, (tmp_path / f"{name}.log").read_text()[-2000:]
        newest = checkpoints(tmp_path / name)[-1]
        damage(newest / file, kind)
        assert run(name) == 2
        said = (tmp_path / f"{name}.log").read_text()
        assert f"{newest} is damaged" in said and "Delete this folder" in said, said[-2000:]
        shutil.rmtree(newest)
        assert run(name) == 0, (tmp_path / f"{name}.log").read_text()[-2000:]
        final = load_file(tmp_path / name / "final" / "model.safetensors")
        differences += [f"{file} {kind} {key}" for key in whole if not torch.equal(whole[key], final[key])]
        shutil.rmtree(tmp_path / name)
    assert differences == []
