"""Locks, ownership and atomic writes: one command at a time in a folder, and nobody else's file is touched."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hf_hamspk.folders import locks
from hf_hamspk.folders.locks import check_unlocked, lock_folder, process_is_alive, read_lock
from hf_hamspk.folders.ownership import is_model_file, remove_own_files, replace_folder, restore_folder
from hf_hamspk.folders.writing import remove_leftovers, write_atomically


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def hold(path: Path, ready) -> None:
    with lock_folder(path, path.parent, "hamspk train"):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / ".lock", ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_the_holder_of_a_lock_is_named(tmp_path, holder):
    named = f"hamspk train (process {holder.pid} on {os.uname().nodename}, started 2"
    for attempt in (lock_folder(tmp_path / ".lock", tmp_path, "hamspk train").__enter__, None):
        with pytest.raises(ValueError, match=re.escape(named)) as caught:
            check_unlocked(tmp_path / ".lock", tmp_path) if attempt is None else attempt()
        assert f"is writing into {tmp_path}. Wait until it ends" in str(caught.value)


def test_a_killed_process_holds_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert read_lock(tmp_path / ".lock")["pid"] == holder.pid
    with lock_folder(tmp_path / ".lock", tmp_path, "hamspk train"):
        assert read_lock(tmp_path / ".lock")["pid"] == os.getpid()
    assert "pid" not in read_lock(tmp_path / ".lock")


def hold_with_worker(path: Path, ready) -> None:
    with lock_folder(path, path.parent, "hamspk train"):
        worker = os.fork()
        if worker == 0:
            ready.put(os.getpid())
        time.sleep(60)


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    """A worker process outlives its killed parent for a while."""
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    process = context.Process(target=hold_with_worker, args=(tmp_path / ".lock", ready))
    process.start()
    worker = ready.get(timeout=20)
    try:
        process.kill()
        process.join()
        check_unlocked(tmp_path / ".lock", tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize(
    ("host", "alive", "free"), [("here", False, True), ("here", True, False), ("elsewhere", False, False)]
)
def test_without_locks_of_the_file_system_the_noted_process_decides(tmp_path, monkeypatch, host, alive, free):
    monkeypatch.setattr(locks, "fcntl", None)
    host = os.uname().nodename if host == "here" else "elsewhere"
    note = {
        "package": "hf_hamspk",
        "work": "x",
        "host": host,
        "started": "",
        "pid": os.getpid() if alive else dead_pid(),
    }
    handle = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    locks._note(handle, note)
    os.close(handle)
    if free:
        check_unlocked(tmp_path / ".lock", tmp_path)
    else:
        with pytest.raises(ValueError, match=re.escape(str(note["pid"]))):
            check_unlocked(tmp_path / ".lock", tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 3000, b"\x00" * 512, b'{"package": "another"}', b"x" * 5000])
def test_any_other_content_of_a_lock_file_names_nobody(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    assert read_lock(tmp_path / ".lock") == {}
    check_unlocked(tmp_path / ".lock", tmp_path)


def test_a_process_is_dead_or_alive():
    assert process_is_alive(os.getpid()) and process_is_alive(1)
    assert not process_is_alive(dead_pid())


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OURS = ["config.json", "model.safetensors", "plots/det.png", "plots/scores-dev.png", "modeling_hamspk.py", "blocks.py"]
THEIRS = ["thesis.txt", "plots/det.jpg", "notes/config.json", "config.json.bak", "model.safetensors.old", ".hidden"]


def fill(folder: Path, names, text: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text} {name}")


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(OURS)), st.sets(st.sampled_from(THEIRS)), st.sets(st.sampled_from(OURS), min_size=1))
def test_a_replaced_folder_keeps_what_is_not_ours(tmp_path_factory, ours, theirs, new):
    root = tmp_path_factory.mktemp("replace")
    fill(root / "best", ours, "old")
    fill(root / "best", theirs, "their")
    fill(root / "new", new, "new")
    replace_folder(root / "new", root / "best", is_model_file)
    expected = {name: f"new {name}" for name in new} | {name: f"their {name}" for name in theirs}
    assert tree(root / "best") == {name: text.encode() for name, text in expected.items()}
    assert os.listdir(root) == ["best"]
    remove_own_files(root / "best", is_model_file)
    assert set(tree(root)) == {f"best/{name}" for name in theirs}
    assert (root / "best").exists() == bool(theirs)


@pytest.mark.parametrize("renamed", [1, 2])
def test_an_interrupted_replacement_is_completed(tmp_path, monkeypatch, renamed):
    fill(tmp_path / "best", [*OURS, *THEIRS], "old")
    fill(tmp_path / "new", OURS, "new")
    real, count = os.replace, 0

    def killed(*names):
        nonlocal count
        count += 1
        if count > renamed:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "new", tmp_path / "best", is_model_file)
    monkeypatch.undo()
    restore_folder(tmp_path / "best", is_model_file)
    found = tree(tmp_path / "best")
    assert {name: text for name, text in found.items() if name in THEIRS} == {n: f"old {n}".encode() for n in THEIRS}
    assert found["config.json"] == (b"old config.json" if renamed == 1 else b"new config.json")


def test_a_file_that_a_new_folder_has_too_is_kept_and_stops_no_replacement(tmp_path):
    """A subclass of a model brings its own module into the folder."""
    fill(tmp_path / "best", ["mine.py", "link.py"], "first")
    (tmp_path / "best" / "link").symlink_to("nowhere")
    for text in ("second", "third", "third", "third"):
        fill(tmp_path / "new", ["mine.py", "config.json", "link"], text)
        replace_folder(tmp_path / "new", tmp_path / "best", is_model_file)
        assert os.listdir(tmp_path) == ["best"]
    assert tree(tmp_path / "best") == {
        "mine.py": b"third mine.py",
        "mine.py.old-1": b"first mine.py",
        "mine.py.old-2": b"second mine.py",
        "link": b"third link",
        "link.old-2": b"second link",
        "link.py": b"first link.py",
        "config.json": b"third config.json",
    }
    assert os.readlink(tmp_path / "best" / "link.old-1") == "nowhere"


def test_a_linked_folder_is_left_alone(tmp_path):
    fill(tmp_path / "archive", OURS, "kept")
    before = tree(tmp_path / "archive")
    fill(tmp_path / "new", ["config.json"], "new")
    (tmp_path / "best").symlink_to(tmp_path / "archive")
    replace_folder(tmp_path / "new", tmp_path / "best", is_model_file)
    fill(tmp_path / "holder", ["config.json"], "old")
    (tmp_path / "holder" / "plots").symlink_to(tmp_path / "archive" / "plots")
    remove_own_files(tmp_path / "holder", is_model_file)
    assert tree(tmp_path / "archive") == before
    assert tree(tmp_path / "best") == {"config.json": b"new config.json"}


def test_temporary_files_of_dead_processes_are_removed(tmp_path):
    ours = [f"manifest.json.{dead_pid()}.tmp", f"unreadable.csv.{dead_pid()}.tmp"]
    kept = [f"manifest.json.{os.getpid()}.tmp", f"thesis.txt.{dead_pid()}.tmp", "manifest.json.tmp", "manifest.json"]
    fill(tmp_path, [*ours, *kept], "")
    remove_leftovers(tmp_path, lambda name: name in ("manifest.json", "unreadable.csv"))
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, error):
    def fails(path: Path) -> None:
        path.write_text("half")
        raise error

    (tmp_path / "file").write_text("whole")
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "file", fails)
    assert tree(tmp_path) == {"file": b"whole"}


def test_files_of_safetensors_have_the_permissions_of_other_files(tmp_path):
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "weights", lambda path: save_file({"x": np.zeros(2, np.float32)}, path))
    write_atomically(tmp_path / "text", lambda path: path.write_text("x"))
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 3 and len(set(modes.values())) == 1
