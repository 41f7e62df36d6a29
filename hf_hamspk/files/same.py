"""Find recordings that occur under two speakers, by their place on the disk and by their content."""

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
"""Number of files with the size of a file of another speaker up to which contents are compared.

In larger corpora, reading all of them would take too long. Files are still compared by their place on the disk.
"""

PROBE_BYTES = 4096
"""Number of bytes from the middle of a file that are compared first. The start of a file is often the same header."""

CHUNK_BYTES = 1 << 20

WHOLE = ""
"""Segment of a whole recording."""


class SharedRecording(NamedTuple):
    """Recording that occurs under two speakers.

    Attributes:
        path: path of the recording.
        speaker: its speaker.
        other_path: path of the same recording, perhaps the same path.
        other_speaker: its other speaker.
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

    Two recordings are the same if they are the same file (also by a link) and the same segment, or if they are whole
    files with the same bytes. Contents are compared only if at most `MOST_COMPARED` files have the size of a file of
    another speaker.

    Args:
        paths: paths of the recordings, perhaps with segments (see `tables`).
        speakers: speaker of each recording.

    Returns:
        One entry for each recording that has an earlier recording of another speaker with the same content.
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
        for digest in (_probe, _digest):
            prints = pool.map(digest, [paths[row] for row in compared])
            keyed = ((found, row) for found, row in zip(prints, compared, strict=True) if found)
            groups = _of_two_speakers(keyed, speakers)
            compared = [row for group in groups for row in group]
    return [*by_place, *_pairs(groups, paths, speakers)]


def _place(name: str) -> tuple[int, int, str, int] | None:
    """Return the device, the number, the segment and the size of a regular file; None if it is none."""
    path, segment = split_segment(name)
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    part = WHOLE if segment is None else str(segment)
    return (found.st_dev, found.st_ino, part, found.st_size) if S_ISREG(found.st_mode) else None


def _distinct_files(places: Iterable[tuple[int, tuple[int, int, str, int]]]) -> Iterator[tuple[int, int]]:
    """Yield the first row and the size of each whole, non-empty file."""
    seen: set[tuple[int, int]] = set()
    for row, (device, number, segment, size) in places:
        if segment == WHOLE and size > 0 and (device, number) not in seen:
            seen.add((device, number))
            yield row, size


def _of_two_speakers(keyed: Iterable[tuple[object, int]], speakers: Sequence[str]) -> list[list[int]]:
    """Group rows by their keys, and return the groups with more than one speaker."""
    groups: dict[object, list[int]] = defaultdict(list)
    for key, row in keyed:
        groups[key].append(row)
    return [rows for rows in groups.values() if any(speakers[row] != speakers[rows[0]] for row in rows)]


def _pairs(groups: Iterable[list[int]], paths: Sequence[str], speakers: Sequence[str]) -> Iterator[SharedRecording]:
    for rows in groups:
        for row in rows:
            if speakers[row] != speakers[rows[0]]:
                yield SharedRecording(paths[rows[0]], speakers[rows[0]], paths[row], speakers[row])


def _probe(path: str) -> bytes | None:
    """Return the size and the middle of a file; None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, (size - PROBE_BYTES) // 2))
            return size.to_bytes(8, "big") + hashlib.sha256(file.read(PROBE_BYTES)).digest()
    except OSError:
        return None


def _digest(path: str) -> bytes | None:
    """Return the SHA-256 hash of a file; None if it cannot be read."""
    total = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                total.update(chunk)
    except OSError:
        return None
    return total.digest()
