"""Compare recordings by device and inode number, and by content."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from stat import S_ISREG
from typing import NamedTuple

from .tables import split_segment

READING_THREADS = 8

MOST_COMPARED = 100_000
"""Largest number of files of the same size as a file of another speaker whose contents are compared.

Reading more files would take too long. They are still compared by device and inode number.
"""

PROBE_BYTES = 4096
"""Number of bytes from the middle of a file that are compared first. The start of a file is often the same header."""

WHOLE = ""
"""Segment of a whole recording."""


class SharedRecording(NamedTuple):
    """Recording that occurs under two speakers.

    Attributes:
        path: first path of the recording in the list.
        speaker: speaker that the list gives for this first path.
        other_path: later path of the recording, under another speaker; it can equal `path`.
        other_speaker: speaker that the list gives for the later path.
    """

    path: str
    speaker: str
    other_path: str
    other_speaker: str

    def __str__(self) -> str:
        if self.path == self.other_path:
            return f"{self.path} occurs under two speakers, {self.speaker} and {self.other_speaker}"
        return f"{self.path} ({self.speaker}) and {self.other_path} ({self.other_speaker}) are the same recording"


def find_shared(paths: Sequence[str], speakers: Sequence[str]) -> list[SharedRecording]:
    """Return the recordings that occur under two speakers.

    Two paths are the same recording if they lead to the same file (perhaps through a link) and name the same segment,
    or if they name whole files with the same bytes. Only files of equal size under different speakers can have the same
    bytes. If there are more than `MOST_COMPARED` such files, no bytes are compared.

    Args:
        paths: paths of the recordings, perhaps with segments (see `tables`).
        speakers: speaker of each recording.

    Returns:
        One entry for each path whose recording occurs earlier in `paths` and first occurs under another speaker.
    """
    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = enumerate(pool.map(_place, paths))
        places = [(row, place) for row, place in found if place is not None]
        same_place = _of_two_speakers(((place[:3], row) for row, place in places), speakers)
        by_place = list(_pairs(same_place, paths, speakers))
        same_size = _of_two_speakers(((size, row) for row, size in _distinct_files(places)), speakers)
        compared = [row for group in same_size for row in group]
        if len(compared) > MOST_COMPARED:
            return by_place
        for digest in (probe_file, _digest):
            prints = pool.map(digest, [paths[row] for row in compared])
            keyed = ((found, row) for found, row in zip(prints, compared, strict=True) if found)
            groups = _of_two_speakers(keyed, speakers)
            compared = [row for group in groups for row in group]
    return [*by_place, *_pairs(groups, paths, speakers)]


def first_copies(paths: Sequence[str]) -> dict[str, str]:
    """Find the recordings that occur under several paths, and return a dictionary from each later path to the first.

    Args:
        paths: different paths of recordings, perhaps with segments. They are compared as in `find_shared`.
    """
    first = {found.other_path: found.path for found in reversed(find_shared(paths, paths))}
    # The first copy of a link can itself be a copy of an earlier file.
    return {path: first.get(earlier, earlier) for path, earlier in first.items()}


def describe_shared(shared: Sequence[SharedRecording], named: int) -> list[str]:
    """Return warnings about recordings that occur under two speakers.

    There is one warning for each recording, but at most `named`. If there are more recordings, a last warning gives
    the number of the remaining ones.
    """
    lines = [f"warning: {each}" for each in shared[:named]]
    if len(shared) > named:
        lines.append(f"warning: {len(shared) - named} more recordings occur under two speakers")
    return lines


def _place(name: str) -> tuple[int, int, str, int] | None:
    """Return device, inode number, segment and size of a file; None if `name` is not a regular file."""
    path, segment = split_segment(name)
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    part = WHOLE if segment is None else str(segment)
    return (found.st_dev, found.st_ino, part, found.st_size) if S_ISREG(found.st_mode) else None


def _distinct_files(places: Iterable[tuple[int, tuple[int, int, str, int]]]) -> Iterator[tuple[int, int]]:
    """Yield the row and the size of each file that is listed without a segment and is not empty, once per file."""
    seen: set[tuple[int, int]] = set()
    for row, (device, number, segment, size) in places:
        if segment == WHOLE and size > 0 and (device, number) not in seen:
            seen.add((device, number))
            yield row, size


def _of_two_speakers(keyed: Iterable[tuple[object, int]], speakers: Sequence[str]) -> list[list[int]]:
    """Group pairs of a key and a row by the key, and return the rows of each group with more than one speaker."""
    groups: dict[object, list[int]] = defaultdict(list)
    for key, row in keyed:
        groups[key].append(row)
    return [rows for rows in groups.values() if any(speakers[row] != speakers[rows[0]] for row in rows)]


def _pairs(groups: Iterable[list[int]], paths: Sequence[str], speakers: Sequence[str]) -> Iterator[SharedRecording]:
    for rows in groups:
        for row in rows:
            if speakers[row] != speakers[rows[0]]:
                yield SharedRecording(paths[rows[0]], speakers[rows[0]], paths[row], speakers[row])


def probe_bytes(content: memoryview) -> bytes:
    """Return the size of a recording in memory and the hash of `PROBE_BYTES` in its middle."""
    begin = max(0, (len(content) - PROBE_BYTES) // 2)
    return len(content).to_bytes(8, "big") + hashlib.sha256(content[begin : begin + PROBE_BYTES]).digest()


def probe_file(path: str) -> bytes | None:
    """Return the size of a file and the hash of `PROBE_BYTES` in its middle; None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, (size - PROBE_BYTES) // 2))
            return size.to_bytes(8, "big") + hashlib.sha256(file.read(PROBE_BYTES)).digest()
    except OSError:
        return None


def digest_of_files(paths: Iterable[str]) -> str:
    """Return a digest of the sizes of files and of the bytes in their middles.

    The digest does not depend on the folders and the modification times of the files.

    Args:
        paths: paths of recordings, perhaps with segments (see `tables`). Each file is read once.
    """
    files = dict.fromkeys(split_segment(path)[0] for path in paths)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(READING_THREADS) as pool:
        # A pipe would block the reader.
        for found in pool.map(lambda path: probe_file(path) if os.path.isfile(path) else None, files):
            digest.update(b"unreadable" if found is None else found)
    return digest.hexdigest()


def _digest(path: str) -> bytes | None:
    """Return the SHA-256 hash of a file; None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
