"""Write files atomically, and compute the hash of a file."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from .errors import name_file
from .locks import process_is_alive

_TEMPORARY = re.compile(r"(?P<name>.+)\.(?P<pid>\d{1,10})\.(?:tmp|unfinished)")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the folder of `path`, flush it to disk and rename it to `path`.

    The file has the permissions of other new files, even if `write` makes a file that only its owner can read, as
    safetensors does.

    Args:
        path: final path of the file; an existing file is replaced.
        write: function that writes the file; it is called with the temporary path.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. The error names the file.
    """
    temporary = temporary_path(path)
    try:
        with name_file(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            if temporary.stat().st_mode != mode:
                temporary.chmod(mode)
            publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: Path) -> Path:
    """Return the name under which this process writes a file before the file is complete."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path, is_ours: Callable[[str], bool], locked: bool = False) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Args:
        folder: folder to search, without its subfolders.
        is_ours: function that returns whether this package writes a file with the given final name into the folder.
        locked: whether no other process, on any machine, writes these files. Otherwise the files of processes that
            exist on this machine are kept.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and is_ours(found["name"]) and path.is_file() and (locked or not process_is_alive(int(found["pid"]))):
            path.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Flush a file to disk and rename it to `path`. Even after a crash, `path` is never a partly written file."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk, so that new and renamed files survive a crash."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open folders.
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 hash of a file as a hexadecimal string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
