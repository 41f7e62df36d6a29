"""Reading the bytes of one utterance from where a listing found it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .archives import MAX_MEMBER, ArchiveError, Member, read_member
from .listing import Container
from .parts import open_parts


class SourceChanged(ValueError):
    """A file is not what it was when the source was listed."""


class MemberReader:
    """Reads utterances of several containers, and keeps archives open. A context manager.

    Args:
        containers: see `Listing.containers`.
    """

    def __init__(self, containers: Sequence[Container]):
        self.containers = containers
        self._open: dict[int, BinaryIO] = {}

    def __enter__(self) -> "MemberReader":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The bytes of the utterance of a row of a listing.

        Raises:
            SourceChanged: it is gone or altered.
            ArchiveError: the archive is damaged, or the file too large.
            OSError: the disk fails.
        """
        container = self.containers[row["container"]]
        if container.kind == "folder":
            return _read_file(os.path.join(container.paths[0], row["name"]), row["size"], row["check"])
        if row["container"] not in self._open:
            try:
                self._open[row["container"]] = open_parts([Path(path) for path in container.paths])
            except FileNotFoundError as error:
                raise SourceChanged(
                    f"{container.paths[0]} (or a part of it) is gone; bring it back and give the same command"
                ) from error
        member = Member(row["name"], row["offset"], row["stored"], row["size"], row["method"], row["check"])
        return read_member(self._open[row["container"]], member, container.kind == "zip")


def _read_file(path: str, size: int, changed: int) -> bytes:
    if size > MAX_MEMBER:
        raise ArchiveError(f"has {size} bytes, more than the {MAX_MEMBER} of any utterance")
    try:
        # An unbuffered file reads what there is; a pipe or device in place of the file would never end.
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            if (stat.st_size, stat.st_mtime_ns) != (size, changed):
                raise SourceChanged(f"{path} was altered while it was being prepared; let it be, or begin anew")
            return file.read(size)
    except FileNotFoundError as error:
        raise SourceChanged(
            f"{path} is gone since the source was listed: was a disk taken off? Bring it back and give the same command"
        ) from error
