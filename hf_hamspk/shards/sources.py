"""Finding the utterances of a source: folders, archives and their parts, CSV files."""

import csv
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from .archives import MAX_HEADER, ArchiveError, Member, Refused, list_tar, list_zip, read_forwards
from .listing import Listing
from .parts import all_parts, is_part, open_parts

LISTING_THREADS = 8
"""Folders listed at once: on a network disk the time goes into waiting."""

FOLDERS_AT_ONCE = 1000
"""Folders handed to the threads together; with all 145,000 of VoxCeleb2 the results would pile up."""

SPEAKER_FIELDS = ("speaker", "speaker_id", "spk_id", "spk", "client_id")
"""Where the JSON beside an utterance, or a column of a data set, names the speaker; the first that is there."""

SPEAKER_SUFFIXES = (".cls", ".spk", ".json")
"""Members of a WebDataset tar that name the speaker of an utterance."""


def list_folder(listing: Listing, root: Path) -> None:
    """Every audio file below a folder; links are followed, each folder is read once."""
    container = listing.add_container("folder", [root])
    seen = {_identity(os.stat(root))}
    waiting = [""]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        while waiting:
            found: list[str] = []
            for start in range(0, len(waiting), FOLDERS_AT_ONCE):
                part = waiting[start : start + FOLDERS_AT_ONCE]
                for entries in pool.map(lambda name: _entries(root, name), part):
                    found += _sort_out(listing, container, entries, seen)
            waiting = found


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _entries(root: Path, folder: str) -> list[tuple[str, bool, os.stat_result | None, str]]:
    """Name, whether it is a folder, its stat (None where that fails) and the reason of the failure; sorted."""
    entries = []
    try:
        with os.scandir(root / folder) as scan:
            for entry in scan:
                if entry.name.startswith("."):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    entries.append((name, entry.is_dir(), entry.stat(), ""))
                except OSError as error:
                    entries.append((name, False, None, f"cannot be opened ({error.strerror}); is it a broken link?"))
    except OSError as error:
        return [(folder, False, None, f"the folder cannot be listed ({error.strerror})")]
    return sorted(entries, key=lambda entry: entry[0])


def _sort_out(listing: Listing, container: int, entries: list, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Add the files, and yield the folders."""
    for name, is_folder, stat, reason in entries:
        if stat is None:
            listing.refuse(container, name, reason)
        elif is_folder and _identity(stat) in seen:
            listing.refuse(container, name, "is a second way to a folder that was listed already")
        elif is_folder:
            seen.add(_identity(stat))
            yield name
        elif not _is_text(name):
            listing.refuse(container, repr(name), "its name is not UTF-8; rename it")
        elif listing.is_audio(name):
            listing.add(container, Member(name, 0, stat.st_size, stat.st_size, check=stat.st_mtime_ns))


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def list_archive(listing: Listing, paths: Sequence[Path]) -> None:
    """The audio files of a zip or tar, whose parts may lie in several files.

    Raises:
        ValueError: it is neither, or cannot be read from its start.
    """
    with open_parts(paths) as file:
        magic = file.read(262)
        zipped = magic[:2] == b"PK"
        container = listing.add_container("zip" if zipped else "tar", paths)
        if not zipped and magic[257:262] != b"ustar":
            raise ValueError(f"{paths[0]} is neither a zip nor an uncompressed tar; unpack it and give the folder")
        file.seek(0)
        try:
            if zipped:
                _list_plain(listing, container, list_zip(file))
            else:
                _list_samples(listing, container, file)
        except ArchiveError as error:
            if zipped:
                raise ValueError(f"{listing.containers[container].name}: {error}") from error
            listing.refused.append((listing.containers[container].name, f"{error}; what came before is used"))


def _list_plain(listing: Listing, container: int, members: Iterator[Member | Refused]) -> None:
    for member in members:
        if isinstance(member, Refused):
            listing.refuse(container, member.name, member.reason)
        elif listing.is_audio(member.name):
            listing.add(container, member)


def _list_samples(listing: Listing, container: int, file: BinaryIO) -> None:
    """The utterances of a tar; in a WebDataset, the members of one key stand together and one names the speaker."""
    for member, speaker in group_samples(file, lambda bad: listing.refuse(container, bad.name, bad.reason)):
        if listing.is_audio(member.name):
            listing.add(container, member, speaker)


def group_samples(
    file: BinaryIO, refuse: Callable[[Refused], None], take: Callable[[Member], Any] = lambda member: member
) -> Iterator[tuple[Any, str | None]]:
    """Members of a tar, each with the speaker that a member of the same key names, or None.

    Args:
        file: the tar, which is read forwards only.
        refuse: called with what cannot be used.
        take: called for each member as it is reached, for its value; None leaves it out.
    """
    waiting: list[Any] = []
    key, speaker, failure = None, None, None
    try:
        for member in list_tar(file):
            if isinstance(member, Refused):
                refuse(member)
                continue
            own, suffix = sample_key(member.name)
            if own != key:
                yield from ((each, speaker) for each in waiting)
                waiting, key, speaker = [], own, None
            if suffix in SPEAKER_SUFFIXES and member.size <= MAX_HEADER:
                speaker = read_speaker(read_forwards(file, member), suffix)
            elif (value := take(member)) is not None:
                waiting.append(value)
    except ArchiveError as error:
        failure = error
    yield from ((each, speaker) for each in waiting)
    if failure is not None:
        raise failure


def sample_key(name: str) -> tuple[str, str]:
    """WebDataset's key of a member (its path up to the first dot of the file name) and the suffix after it."""
    match = re.fullmatch(r"((?:.*/)?[^/.]*)(\.[^/]*)?", name, re.DOTALL)
    key, suffix = (match[1], match[2]) if match is not None else (name, "")
    return key, "" if suffix is None else suffix.lower()


def read_speaker(content: bytes, suffix: str) -> str | None:
    """The speaker that a `.cls`, `.spk` or `.json` member names, or None."""
    try:
        text = content.decode("utf-8").strip()
        if suffix != ".json":
            return text if text else None
        values = json.loads(text)
    except ValueError:
        return None
    named = [str(values[name]) for name in SPEAKER_FIELDS if name in values] if isinstance(values, dict) else []
    return named[0] if named else None


def list_table(listing: Listing, source: Path, root: Path, audio_column: str, speaker_column: str) -> None:
    """The files that a CSV or JSONL file names; one that is not there is refused.

    Args:
        listing: what was found.
        source: a CSV file in UTF-8 with a header, or (`.jsonl`) an object in each line.
        root: folder that its paths are relative to.
        audio_column: column with the paths.
        speaker_column: column with the speakers.

    Raises:
        ValueError: it is no such file, or a column or cell is missing.
    """
    container = listing.add_container("folder", [root])
    with open(source, encoding="utf-8-sig", newline="") as file:
        try:
            reader, columns = _open_table(file)
            for name, option in ((audio_column, "--audio-column"), (speaker_column, "--speaker-column")):
                if name not in columns:
                    raise ValueError(
                        f"{source} has no column {name!r}, only {', '.join(map(repr, columns))}; name the right one "
                        f"with {option}"
                    )
            with ThreadPoolExecutor(LISTING_THREADS) as pool:
                for rows in _blocks(reader):
                    names = [row.get(audio_column) for row in rows]
                    for row, stat in zip(rows, pool.map(lambda name: _stat(root, name), names), strict=True):
                        speaker = row.get(speaker_column)
                        _add_row(listing, container, row.get(audio_column), speaker, stat)
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, csv.Error) as error:
            raise ValueError(f"{source} is not a CSV or JSONL file in UTF-8 ({error}); save it as one") from error


def _open_table(file: TextIO) -> tuple[Iterator[dict[str, Any]], list[str]]:
    """The rows of a table, and its columns."""
    if not file.name.endswith(".jsonl"):
        reader = csv.DictReader(file)
        return reader, [] if reader.fieldnames is None else list(reader.fieldnames)
    rows = (json.loads(line) for line in file if line.strip())
    first = next(rows, {})
    return itertools.chain([first] if first else [], rows), list(first.keys())


def _blocks(reader: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    block = []
    for row in reader:
        block.append(row)
        if len(block) == FOLDERS_AT_ONCE:
            yield block
            block = []
    yield block


def _stat(root: Path, name: Any) -> os.stat_result | None:
    try:
        return os.stat(root / name) if name else None
    except (OSError, ValueError, TypeError):
        return None


def _add_row(listing: Listing, container: int, name: Any, speaker: Any, stat: os.stat_result | None) -> None:
    if not isinstance(name, str) or not name or speaker in (None, ""):
        listing.refuse(container, str(name), f"its line in the table is not complete (the speaker is {speaker!r})")
    elif stat is None:
        listing.refuse(container, name, "no such file; check the path and the folder that it is relative to")
    else:
        name = name.replace(os.sep, "/")
        key = None if not os.path.isabs(name) and ".." not in name.split("/") else _inner_key(name)
        listing.add(container, Member(name, 0, stat.st_size, stat.st_size, check=stat.st_mtime_ns), str(speaker), key)


def _inner_key(name: str) -> str:
    """A key without the steps that lead out of a folder."""
    return sample_key("/".join(part for part in name.split("/") if part not in ("", ".", "..")))[0]


def archive_sets(paths: Sequence[Path]) -> list[list[Path]]:
    """Archives, each with all its parts; parts given one by one (as a shell does) come once."""
    sets: dict[Path, list[Path]] = {}
    for path in paths:
        parts = all_parts(path) if is_part(path) else [path]
        sets.setdefault(parts[0], parts)
    return list(sets.values())
