"""List the utterances of a source in a table, and read their bytes.

Each row of the table contains the key, the speaker and the location of one utterance. The table consists of Arrow
columns, because Python objects for a million utterances would take gigabytes.
"""

import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ..files.recordings import AUDIO_SUFFIXES, is_recording
from ..files.tables import clean_speaker, split_segment
from .archives import MAX_MEMBER, ArchiveError, Member, open_parts, read_member

LAYOUTS = ("voxceleb", "librispeech", "folders")
"""Rules for finding the name of the speaker in the path of a file.

- "voxceleb": a folder name, or the start of the file name, such as `id00012` (VoxCeleb, CN-Celeb).
- "librispeech": the first folder in `speaker/chapter/speaker-chapter-number`.
- "folders": the name of the folder at a level that the user chooses.
"""

SURE_SHARE = 0.95
"""Share of the files that must follow a layout for it to be recognised. A few stray files are common in a corpus."""

_VOXCELEB = re.compile(r"(?:^|/)(id\d{5})(?=[/-])")
_LIBRISPEECH = re.compile(r"(?:^|/)(\d+)/(\d+)/\1-\2-\d+[^/]*$")

LISTING_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("speaker", pa.string()),
        ("container", pa.int32()),
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("stored", pa.int64()),
        ("size", pa.int64()),
        ("method", pa.int8()),
        ("check", pa.int64()),
    ]
)
"""Columns of the table of utterances. `container` is an index into `Listing.containers`. The columns after it are the
fields of `archives.Member`. For a plain file, `check` is the modification time in nanoseconds.
"""

FLUSHED = 50_000
"""Number of rows that are collected as Python objects before they are converted to Arrow arrays."""

START_OVER = "start over with --restart (with ranks: --plan --restart)"
"""Advice at the end of error messages about a source that changed after it was listed."""


@dataclass(frozen=True)
class Container:
    """Folder or archive that contains utterances.

    Attributes:
        kind: "folder", "zip" or "tar". Files in a folder are named by their paths relative to this folder.
        paths: absolute path of the folder or archive; for a split archive, the paths of its parts in order.
        name: name of the container in reports.
    """

    kind: str
    paths: list[str]
    name: str

    def file_name(self, member: str) -> str:
        """Return the name of a file in the container, for messages and `unreadable.csv`."""
        return member if self.kind == "folder" else f"{self.name}::{member}"


@dataclass
class Listing:
    """Collection of the utterances of all sources, in the order in which they were found.

    Attributes:
        containers: folders and archives that contain the utterances.
        refused: path and reason of each file that cannot be used.
        ignored: number of files that are not audio, for each suffix.
    """

    containers: list[Container] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    _rows: list[tuple] = field(default_factory=list)
    _batches: list[pa.RecordBatch] = field(default_factory=list)

    def add_container(self, kind: str, paths: Sequence[str | os.PathLike[str]], name: str | None = None) -> int:
        """Add a folder or archive and return its index. The default name is the last part of the first path."""
        absolute = [os.path.abspath(path) for path in paths]
        self.containers.append(Container(kind, absolute, os.path.basename(absolute[0]) if name is None else name))
        return len(self.containers) - 1

    def add(self, container: int, member: Member, speaker: str | None = None, key: str | None = None) -> None:
        """Add an utterance. If the speaker or the key is None, `name_utterances` derives it from the path."""
        self._rows.append((key, speaker, container, *member))
        if len(self._rows) >= FLUSHED:
            self._flush()

    def refuse(self, container: int, name: str, reason: str) -> None:
        """Record a file that cannot be used, with the reason."""
        self.refused.append((self.containers[container].file_name(name), reason))

    def is_audio(self, name: str) -> bool:
        """Return True if a file has an audio suffix and is not hidden. Other files are counted in `ignored`."""
        audio = is_recording(name)
        if not audio:
            self.ignored[os.path.splitext(name)[1].lower()] += 1
        return audio

    def table(self) -> pa.Table:
        """Return the table of all utterances added so far, in the order in which they were added."""
        self._flush()
        return pa.Table.from_batches(self._batches, LISTING_SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, kind) for column, kind in zip(columns, LISTING_SCHEMA.types, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA))
            self._rows.clear()


def strings(table: pa.Table, column: str) -> Iterator[str | None]:
    """Yield the values of a column, one at a time."""
    values = table.column(column)
    for start in range(0, len(values), FLUSHED):
        yield from values.slice(start, FLUSHED).to_pylist()


def find_layout(names: Iterable[str | None]) -> str:
    """Return the layout that at least `SURE_SHARE` of the names follow, or "folders" if no layout fits."""
    total = voxceleb = librispeech = 0
    for name in names:
        total += 1
        voxceleb += name is not None and _VOXCELEB.search(name) is not None
        librispeech += name is not None and _LIBRISPEECH.search(name) is not None
    if voxceleb >= SURE_SHARE * total:
        return "voxceleb"
    return "librispeech" if librispeech >= SURE_SHARE * total else "folders"


def speaker_of(name: str, layout: str, level: int) -> str | None:
    """Return the speaker named in the path of a file, or None if the path does not follow the layout.

    Args:
        name: path with forward slashes.
        layout: one of `LAYOUTS`.
        level: level of the folder that names the speaker in the layout "folders", counted from 1.
    """
    if layout == "folders":
        folders = name.split("/")[:-1]
        return folders[level - 1] if len(folders) >= level else None
    match = (_VOXCELEB if layout == "voxceleb" else _LIBRISPEECH).search(name)
    return None if match is None else match[1]


def key_of(name: str) -> str:
    """Return the key of a file: its path without the suffix.

    Dots in the file name become underscores, because in a tar a key ends at the first dot of the file name. The key of
    a segment also contains its times.
    """
    file, segment = split_segment(name)
    path = PurePosixPath(file)
    stem = path.stem if segment is None else f"{path.stem}-{str(segment)[1:]}"
    return str(path.with_name(stem.replace(".", "_")))


def name_utterances(listing: Listing, layout: str | None, level: int = 1) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Fill in missing keys and speakers, keep one file per utterance, and sort the utterances by key.

    Args:
        listing: utterances that were found.
        layout: one of `LAYOUTS`, or None to recognise the layout.
        level: level of the folder that names the speaker, see `speaker_of`.

    Returns:
        The table of utterances, and the path and reason of each file that was left out.

    Raises:
        ValueError: two sources contain an utterance with the same key.
    """
    table = listing.table()
    unnamed = (name for name, own in zip(strings(table, "name"), strings(table, "speaker"), strict=True) if own is None)
    layout = find_layout(unnamed) if layout is None else layout
    keys, speakers = [], []
    refused: list[tuple[str, str]] = []
    kept = array("q")
    given = zip(*(strings(table, column) for column in ("key", "speaker", "name")), strict=True)
    containers = table.column("container").to_numpy()
    for row, (key, speaker, name) in enumerate(given):
        path = "" if name is None else name
        own = speaker_of(path, layout, level) if speaker is None else speaker
        if own is None or not clean_speaker(own):
            expected = f"a folder at level {level}" if layout == "folders" else f"a path of the layout {layout}"
            file = listing.containers[int(containers[row])].file_name(path)
            refused.append((file, f"its path names no speaker: expected {expected}"))
            continue
        kept.append(row)
        keys.append(key_of(path) if key is None else key)
        speakers.append(clean_speaker(own))
    table = table.take(pa.array(np.frombuffer(kept, np.int64))) if len(kept) < len(table) else table
    table = table.set_column(0, "key", pa.array(keys, pa.string())).set_column(
        1, "speaker", pa.array(speakers, pa.string())
    )
    del keys, speakers
    table, second = _distinct(listing, table)
    return table, [*listing.refused, *refused, *second]


def _distinct(listing: Listing, table: pa.Table) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Sort the rows by key. Of rows with the same key, keep the one whose suffix is first in `AUDIO_SUFFIXES`.

    Returns:
        The rows that were kept, and the path and reason of each file that was left out.

    Raises:
        ValueError: two sources contain an utterance with the same key.
    """
    rank = {suffix: place for place, suffix in enumerate(AUDIO_SUFFIXES)}
    ranks = [rank.get(os.path.splitext(split_segment(str(name))[0])[1].lower(), 0) for name in strings(table, "name")]
    table = table.append_column("rank", pa.array(ranks, pa.int8()))
    table = table.sort_by([("key", "ascending"), ("rank", "ascending"), ("container", "ascending")])
    table = table.drop_columns(["rank"]).combine_chunks()
    kept = np.ones(len(table), dtype=bool)
    refused = []
    previous = None
    used = 0
    for row, key in enumerate(strings(table, "key")):
        if key != previous:
            previous, used = key, row
            continue
        first, second = (table.slice(place, 1).to_pylist()[0] for place in (used, row))
        if first["container"] != second["container"]:
            one, other = (listing.containers[entry["container"]].file_name(entry["name"]) for entry in (first, second))
            raise ValueError(
                f"{one} and {other} have the same key {key!r}, so the two sources overlap; prepare them separately"
            )
        kept[row] = False
        file = listing.containers[second["container"]].file_name(second["name"])
        reason = f"is a second file of the utterance {key}; {first['name']} is used instead"
        if first["name"] == second["name"]:
            speakers = first["speaker"], second["speaker"]
            under = f" for the speakers {speakers[0]} and {speakers[1]}" if speakers[0] != speakers[1] else ""
            reason = f"is listed twice{under}; only its first row is used"
        refused.append((file, reason))
    return (table if kept.all() else table.filter(pa.array(kept))), refused


def digest(table: pa.Table) -> str:
    """Return the SHA-256 hash of the rows as a hexadecimal string. Moving the source does not change the hash."""
    total = hashlib.sha256()
    for batch in table.select(["key", "speaker", "name", "size", "check"]).to_batches(FLUSHED):
        columns = [column.to_pylist() for column in batch.columns]
        total.update("\n".join("\t".join(map(str, row)) for row in zip(*columns, strict=True)).encode())
        total.update(b"\n")
    return total.hexdigest()


def differences(old: pa.Table, new: pa.Table) -> tuple[int, int, int, list[str]]:
    """Compare two tables, and return the numbers of added, missing and changed utterances and some of their keys."""

    def entries(table: pa.Table) -> dict[str, tuple]:
        columns = [list(table.column(name).to_pylist()) for name in ("key", "speaker", "name", "size", "check")]
        return {row[0]: row[1:] for row in zip(*columns, strict=True)}

    before, after = entries(old), entries(new)
    added = sorted(after.keys() - before.keys())
    lost = sorted(before.keys() - after.keys())
    changed = sorted(key for key in before.keys() & after.keys() if before[key] != after[key])
    return len(added), len(lost), len(changed), [*added[:2], *lost[:2], *changed[:2]]


class SourceChanged(ValueError):
    """Error for a file that was altered or removed after the source was listed."""


class MemberReader:
    """Context manager that reads utterances from folders and archives. Archives stay open until the context ends.

    Args:
        containers: containers of the utterances, see `Listing.containers`.
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
        """Return the bytes of the utterance in a row of a listing.

        Raises:
            SourceChanged: the file was removed or altered.
            ArchiveError: the archive is damaged, or the file is too large.
            OSError: the file cannot be read from the disk.
        """
        container = self.containers[row["container"]]
        if container.kind == "folder":
            path = os.path.join(container.paths[0], split_segment(row["name"])[0])
            return _read_file(path, row["size"], row["check"])
        if row["container"] not in self._open:
            try:
                self._open[row["container"]] = open_parts([Path(path) for path in container.paths])
            except FileNotFoundError as error:
                raise SourceChanged(
                    f"{container.paths[0]} or a later part of the archive is missing; restore it and run the same "
                    f"command again, or {START_OVER}"
                ) from error
        member = Member(row["name"], row["offset"], row["stored"], row["size"], row["method"], row["check"])
        return read_member(self._open[row["container"]], member, container.kind == "zip")

    def segment(self, row: Mapping[str, Any]) -> str | None:
        """Return the path of a segment for `read_utterance`, or None if a row contains a whole recording.

        Raises:
            SourceChanged: the file was removed or altered.
            OSError: the file cannot be opened.
        """
        path = os.path.join(self.containers[row["container"]].paths[0], row["name"])
        file, segment = split_segment(path)
        if segment is None or self.containers[row["container"]].kind != "folder":
            return None
        _open_unchanged(file, row["size"], row["check"]).close()
        return path


def _read_file(path: str, size: int, changed: int) -> bytes:
    if size > MAX_MEMBER:
        raise ArchiveError(f"has {size} bytes, more than the limit of {MAX_MEMBER}")
    with _open_unchanged(path, size, changed) as file:
        return file.read(size)


def _open_unchanged(path: str, size: int, changed: int) -> BinaryIO:
    """Open a file, and check that it has the size and the modification time that were listed."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError as error:
        raise SourceChanged(
            f"{path} was removed after the source was listed; restore it (is its disk mounted?) and run the same "
            f"command again, or {START_OVER}"
        ) from error
    # Check the size before reading, because a larger file may have replaced the listed one.
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (size, changed):
        file.close()
        raise SourceChanged(f"{path} was altered after the source was listed; restore it, or {START_OVER}")
    return file
