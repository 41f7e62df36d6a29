"""Lock a folder, so that only one command at a time writes into it.

The lock ends with the process that holds it, even if that process is killed. The lock file names the command and the
process that hold the lock. When the command ends, it deletes the details of the process from the file. The file
itself remains. If the command is killed, the file still names the process.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import name_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RUN_LOCK = ".lock"
PACKAGE_NAME = "hf_hamspk"
LOCK_BYTES = 512
# A longer file is not a lock file.
LONGEST_LOCK = 4096

_held: set[int] = set()


@contextlib.contextmanager
def lock_folder(path: Path, folder: Path, work: str) -> Iterator[None]:
    """Context manager that locks a folder.

    Args:
        path: path of the lock file, in an existing folder.
        folder: folder that is locked, named in the error message.
        work: name of the command, such as "hamspk train". Other processes name it in their error messages.

    Raises:
        ValueError: another process holds the lock. The message names the process, its computer and the start time.
        OSError: the lock file cannot be written.
    """
    handle = _take(path, folder)
    try:
        with name_file(path):
            _note(handle, {"package": PACKAGE_NAME, "work": work, **_this_process()})
        yield
    finally:
        # If the disk is full or the folder was removed, closing the file is enough to end the lock.
        with contextlib.suppress(OSError):
            _note(handle, {"package": PACKAGE_NAME, "work": work})
        _release(handle)


@contextlib.contextmanager
def share_folder(path: Path, folder: Path) -> Iterator[None]:
    """Context manager that shares a lock with other processes. Meanwhile, `lock_folder` raises an error.

    Args:
        path: path of the lock file, in an existing folder.
        folder: folder that is locked, named in the error message.

    Raises:
        ValueError: another process holds the lock and does not share it (see `lock_folder`).
    """
    handle = _take(path, folder, shared=True)
    try:
        yield
    finally:
        _release(handle)


def check_unlocked(path: Path, folder: Path) -> None:
    """Check that no process holds the lock of a folder.

    Raises:
        ValueError: another process holds the lock (see `lock_folder`).
    """
    if path.is_file():
        handle = _take(path, folder)
        _release(handle)


def read_lock(path: Path) -> dict[str, Any]:
    """Return the content of a lock file; {} if the file is missing or is not a lock file of this package."""
    try:
        if path.stat().st_size > LONGEST_LOCK:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("package") == PACKAGE_NAME else {}


def process_is_alive(pid: int) -> bool:
    """Return whether a process of this computer exists. On Windows, the result is always True."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _take(path: Path, folder: Path, shared: bool = False) -> int:
    """Open and lock a lock file, and return its file descriptor."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(handle)
        try:
            if not _lock_handle(handle, path, shared):
                raise ValueError(_describe_holder(path, folder))
            if _is_at(handle, path):
                return handle
        except BaseException:
            _release(handle)
            raise
        # The holder removed the file between the two steps, so the lock is on a file without a name.
        _release(handle)


def _release(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _lock_handle(handle: int, path: Path, shared: bool) -> bool:
    """Lock an open file, alone or together with other processes. Return False if another process holds the lock."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:
            pass  # This file system has no locks.
    holder = read_lock(path)
    if "pid" not in holder:
        return True
    return holder.get("host") == socket.gethostname() and not process_is_alive(int(holder["pid"]))


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _note(handle: int, content: dict[str, Any]) -> None:
    # The length is always the same. If the process is killed here, the file has either the old or the new content.
    text = json.dumps(content).encode().ljust(LOCK_BYTES)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text)
    os.ftruncate(handle, len(text))


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}


def _describe_holder(path: Path, folder: Path) -> str:
    holder = read_lock(path)
    who = "Another process"
    if "pid" in holder:
        who = f"{holder.get('work')} (process {holder['pid']} on {holder.get('host')}, started {holder.get('started')})"
    return f"{who} is writing into {folder}. Wait until it ends, stop it, or choose another folder."


def _close_in_child() -> None:
    # A forked worker process would otherwise keep the lock for a while after its parent was killed.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
