"""Folders for the parts of a run, on this machine or in a file system of fsspec, such as an object store.

Object stores have no locks. There, a rank is only marked as started, so that error messages can name missing ranks. If
the same rank runs twice at once, both processes write the same parts.
"""

import json
import time
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from ..folders.ownership import remove_own_files
from ..folders.ranks import StartedRank, check_rank, parse_rank_lock, rank_lock_name, started_ranks
from ..folders.writing import write_atomically


class LocalStore:
    """Folder on this machine, or on a disk that several machines share. A file in it is either complete or absent."""

    def __init__(self, folder: Path):
        self.folder = folder

    def open(self, name: str) -> Path:
        """Return the path of a file."""
        return self.folder / name

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError if it does not exist."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file. Other processes see it only when it is complete."""
        write_atomically(self.folder / name, lambda temporary: temporary.write_bytes(content))

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""
        return (self.folder / name).exists()

    def started(self) -> list[StartedRank]:
        """Return the ranks that have started; see `folders.ranks.started_ranks`."""
        return started_ranks(self.folder)

    def remove(self, is_ours: Any) -> None:
        """Remove the files that this package wrote, and the folder if it is then empty."""
        remove_own_files(self.folder, is_ours)


class RemoteStore:
    """Folder at a URL of fsspec, such as `s3://bucket/voices.parts`. It has the methods of `LocalStore`."""

    def __init__(self, url: str):
        self.system, self.root = fsspec.core.url_to_fs(url)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Return the names of all files."""
        self.system.invalidate_cache()
        try:
            return sorted(path.rsplit("/", 1)[-1] for path in self.system.ls(self.root, detail=False))
        except FileNotFoundError:
            return []

    def open(self, name: str) -> BinaryIO:
        """Return a file opened for reading. Raises OSError if it does not exist."""
        return self.system.open(self._path(name), "rb")

    def read(self, name: str) -> bytes:
        return self.system.cat_file(self._path(name))

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        self.system.makedirs(self.root, exist_ok=True)
        self.system.pipe_file(self._path(name), bytes(content))

    def put(self, file: Path, name: str) -> None:
        """Copy a file of this machine to the folder."""
        self.system.makedirs(self.root, exist_ok=True)
        self.system.put_file(str(file), self._path(name))

    def exists(self, name: str) -> bool:
        return self.system.exists(self._path(name))

    def started(self) -> list[StartedRank]:
        found = []
        for name in self.names():
            numbers = parse_rank_lock(name)
            if numbers is not None:
                found.append(StartedRank(*numbers, json.loads(self.read(name))["started"]))
        return found

    def remove(self, is_ours: Any) -> None:
        """Remove the files that this package wrote."""
        own = [name for name in self.names() if is_ours(name)]
        if own:
            self.system.rm([self._path(name) for name in own])

    def mark_rank(self, rank: int, world_size: int) -> None:
        """Mark a rank as started."""
        check_rank(rank, world_size)
        self.write(rank_lock_name(rank, world_size), json.dumps({"started": time.time_ns()}).encode())


def is_url(path: object) -> bool:
    """Return whether a path is a URL of fsspec, such as `s3://bucket/name`."""
    return "://" in str(path)


def open_store(folder: Path | str) -> LocalStore | RemoteStore:
    """Return the store of a folder or URL."""
    return RemoteStore(str(folder)) if is_url(folder) else LocalStore(Path(folder))
