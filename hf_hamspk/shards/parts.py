"""Files that were split for download (`vox1_dev_wav_partaa`, `..._partab`, ...), read as one, without joining them."""

import bisect
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

_PART = re.compile(r"(?P<stem>.*[._-]part)(?P<letters>[a-z]{2})")

LETTERS = 26


class JoinedParts(io.RawIOBase):
    """Several files as one file to read and to seek in.

    Args:
        paths: in order.
    """

    def __init__(self, paths: Sequence[Path]):
        super().__init__()
        self._files = [open(path, "rb", buffering=0) for path in paths]  # noqa: SIM115
        self._ends = []
        total = 0
        for path in paths:
            total += path.stat().st_size
            self._ends.append(total)
        self._place = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of a file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """As of a file."""
        return self._place

    def readinto(self, buffer) -> int:
        """Fill the buffer from the part at this place; fewer bytes at the end of a part."""
        index = bisect.bisect_right(self._ends, self._place)
        if index == len(self._files):
            return 0
        start = self._ends[index - 1] if index else 0
        self._files[index].seek(self._place - start)
        count = self._files[index].readinto(buffer)
        self._place += count
        return count

    def close(self) -> None:
        """Close all parts."""
        for file in self._files:
            file.close()
        super().close()


def open_parts(paths: Sequence[Path]) -> BinaryIO:
    """One file, or several as one, buffered."""
    if len(paths) == 1:
        return open(paths[0], "rb")
    return cast(BinaryIO, io.BufferedReader(JoinedParts(paths), 2**16))


def is_part(path: Path) -> bool:
    """Whether a file is named as a part: `..._partaa`."""
    return _PART.fullmatch(path.name) is not None


def all_parts(path: Path) -> list[Path]:
    """The parts of the set that a part belongs to, from its folder, in order.

    Raises:
        ValueError: one between the first and the last is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem = match["stem"]
    found = {}
    for other in path.parent.iterdir():
        part = _PART.fullmatch(other.name)
        if part is not None and part["stem"] == stem:
            found[_number(part["letters"])] = other
    missing = [number for number in range(max(found) + 1) if number not in found]
    if missing:
        letters = divmod(missing[0], LETTERS)
        name = stem + "".join(chr(ord("a") + letter) for letter in letters)
        raise ValueError(
            f"{path.parent} has {len(found)} parts {stem}.., but not {name}; download it, or the archive has a hole"
        )
    return [found[number] for number in sorted(found)]


def _number(letters: str) -> int:
    return (ord(letters[0]) - ord("a")) * LETTERS + ord(letters[1]) - ord("a")
