"""Find the utterances in the sources of a preparation: folders, archives, lists and data sets."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from ..files.corpora import base_folder, cell_text, find_list, is_table, open_corpus_list
from ..files.recordings import LINKED_INSIDE, NOT_UTF8, is_text, links_inside
from ..files.tables import TableRow, join_segment, split_segment
from .archives import (
    ArchiveError,
    Member,
    Refused,
    all_parts,
    group_samples,
    is_part,
    list_zip,
    open_parts,
    sample_key,
)
from .listing import Listing, key_of
from .planning import PrepareOptions
from .streams import DataSetStream

LISTING_THREADS = 8
"""Number of folders that are listed at the same time. On a network disk, listing is mostly waiting."""

FOLDERS_AT_ONCE = 1000
"""Number of folders or table rows that are passed to the threads at once. This limits the memory for the results."""


ARCHIVE_SUFFIXES = (".zip", ".tar")
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

HUB_PREFIX = "hf://datasets/"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

KNOWN_SOURCES = (
    "a folder of audio files, a zip or tar archive or its parts (..._partaa), a CSV file, a file of JSON lines, a "
    "Kaldi folder, Parquet files, or a folder or Hub repository of `datasets`"
)


NO_FILE = "is not a regular file, but a folder, a pipe or a device"


def find_utterances(sources: Sequence[str], options: PrepareOptions) -> tuple[Listing, list[DataSetStream]]:
    """List the utterances of files and folders, and open data sets as streams.

    Args:
        sources: sources to search, see `prepare`.
        options: options of the preparation, see `PrepareOptions`.

    Returns:
        The listing and the streams.

    Raises:
        ValueError: a source does not exist, is of an unknown kind or cannot be listed.
    """
    listing = Listing()
    archives: list[Path] = []
    streams: list[DataSetStream] = []
    for source in sources:
        path = Path(source)
        if not path.exists():
            streams += _remote(source, options)
        elif is_table(source):
            list_table(listing, path, options)
        elif path.is_dir():
            _sort_directory(path, options, listing, archives, streams)
        elif not _sort_file(path, options, archives, streams):
            raise ValueError(f"{source} is not a known kind of source; give {KNOWN_SOURCES}")
    for parts in archive_sets(archives):
        list_archive(listing, parts)
    return listing, streams


def _sort_file(path: Path, options: PrepareOptions, archives: list[Path], streams: list[DataSetStream]) -> bool:
    """Add a file to `archives` or `streams`, depending on its kind. Return False if the kind is unknown."""
    name = path.name.lower()
    if is_part(path) or name.endswith(ARCHIVE_SUFFIXES):
        archives.append(path)
    elif name.endswith(COMPRESSED_SUFFIXES):
        raise ValueError(f"{path} is a compressed tar; unpack it (`tar xf {path.name}`) and give the folder")
    elif name.endswith(".parquet"):
        streams.append(DataSetStream(str(path), options.split, options.audio_column, options.speaker_column))
    else:
        return False
    return True


def _sort_directory(
    root: Path, options: PrepareOptions, listing: Listing, archives: list[Path], streams: list[DataSetStream]
) -> None:
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    files = {entry.name.lower(): entry for entry in entries if entry.is_file()}
    tables = any(name.endswith((".parquet", ".arrow")) or name == "state.json" for name in files)
    if tables or any((root / "data").glob("*.parquet")):
        streams.append(DataSetStream(str(root), options.split, options.audio_column, options.speaker_column))
        return
    place = find_list(root, options.split)
    if is_table(str(place)):
        list_table(listing, place, options)
        return
    if place != root:
        _sort_directory(place, options, listing, archives, streams)
        return
    endings = (*ARCHIVE_SUFFIXES, *COMPRESSED_SUFFIXES)
    folders = [entry.name for entry in entries if entry.is_dir()]
    packed = [
        entry for entry in entries if entry.is_file() and (is_part(entry) or entry.name.lower().endswith(endings))
    ]
    if packed and folders:
        raise ValueError(
            f"{root} contains archives ({packed[0].name}) and folders ({folders[0]}), perhaps with the same "
            "recordings; give either the archives or the folders"
        )
    for path in packed:
        _sort_file(path, options, archives, streams)
    if not packed:
        list_folder(listing, root)


def _remote(source: str, options: PrepareOptions) -> list[DataSetStream]:
    """Return the stream of a source that is not on this disk. The source must be a repository on the Hub."""
    repository = source.removeprefix(HUB_PREFIX)
    if _REPOSITORY.fullmatch(repository):
        return _repository(repository, options)
    if "://" in source and source.lower().endswith((".tar", *COMPRESSED_SUFFIXES)):
        raise _remote_tars(source)
    raise ValueError(f"source not found: {source}; give {KNOWN_SOURCES}")


def _remote_tars(source: str) -> ValueError:
    return ValueError(
        f"{source} contains remote tars, which cannot be copied into shards. Index them with "
        f"`hamspk prepare --index {source} OUTPUT`, or download them and give the local files"
    )


def _repository(repository: str, options: PrepareOptions) -> list[DataSetStream]:
    """Return the stream of a Hub repository at its current commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        found = HfApi().dataset_info(repository)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise ValueError(
            f"{repository} does not exist on this disk and cannot be reached as a data set on the Hub ({error}); check "
            "the name and the connection"
        ) from error
    files = [] if found.siblings is None else sorted(sibling.rfilename for sibling in found.siblings)
    tars = [file for file in files if file.lower().endswith((".tar", *COMPRESSED_SUFFIXES))]
    if tars and not any(file.endswith(".parquet") for file in files):
        # `datasets` would decode the audio in the tars, which requires torchcodec and FFmpeg.
        raise _remote_tars(HUB_PREFIX + repository)
    return [
        DataSetStream(repository, options.split, options.audio_column, options.speaker_column, revision=str(found.sha))
    ]


def list_folder(listing: Listing, root: Path) -> None:
    """Add every audio file in a folder and its subfolders. Each folder is read once, whatever links lead to it."""
    container = listing.add_container("folder", [root])
    top = os.path.realpath(root)
    seen = {_identity(os.stat(root))}
    waiting = [""]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        while waiting:
            found: list[str] = []
            for start in range(0, len(waiting), FOLDERS_AT_ONCE):
                part = waiting[start : start + FOLDERS_AT_ONCE]
                for entries in pool.map(lambda name: _entries(root, name, top), part):
                    found += _sort_out(listing, container, entries, seen)
            waiting = found


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _entries(root: Path, folder: str, top: str) -> list[tuple[str, bool, os.stat_result | None, str]]:
    """Return the files and folders in a folder, sorted by name.

    Args:
        root: folder of the source.
        folder: path of the folder to list, relative to `root`.
        top: real path of `root`.

    Returns:
        Four values for each file or folder: path relative to `root`; whether it is a folder; result of `stat`, or None
        if it is not read; and the reason why it is not read, or an empty string.
    """
    entries = []
    try:
        with os.scandir(root / folder) as scan:
            for entry in scan:
                if entry.name.startswith("."):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    if entry.is_symlink() and entry.is_dir() and links_inside(os.path.realpath(entry.path), top):
                        entries.append((name, False, None, LINKED_INSIDE))
                    else:
                        entries.append((name, entry.is_dir(), entry.stat(), ""))
                except OSError as error:
                    entries.append((name, False, None, f"cannot be opened ({error.strerror}); is it a broken link?"))
    except OSError as error:
        return [(folder, False, None, f"the folder cannot be listed ({error.strerror}); check its permissions")]
    return sorted(entries, key=lambda entry: entry[0])


def _sort_out(listing: Listing, container: int, entries: list, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Add the audio files of a folder to the listing, and yield its subfolders."""
    for name, is_folder, stat, reason in entries:
        if stat is None:
            listing.refuse(container, name, reason)
        elif is_folder and _identity(stat) in seen:
            listing.refuse(container, name, LINKED_INSIDE)
        elif is_folder:
            seen.add(_identity(stat))
            yield name
        elif not is_text(name):
            listing.refuse(container, repr(name), NOT_UTF8)
        elif listing.is_audio(name):
            if S_ISREG(stat.st_mode):
                listing.add(container, Member(name, 0, stat.st_size, stat.st_size, check=stat.st_mtime_ns))
            else:
                listing.refuse(container, name, NO_FILE)


def list_archive(listing: Listing, paths: Sequence[Path]) -> None:
    """Add the audio files in a zip or tar to `listing`. The archive may be split into several files.

    If a tar is damaged, only the audio files before the damaged place are added.

    Raises:
        ValueError: the archive is neither a zip nor a tar, or it is a damaged zip.
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
            listing.refused.append(
                (listing.containers[container].name, f"{error}; only the members before this place are used")
            )


def _list_plain(listing: Listing, container: int, members: Iterator[Member | Refused]) -> None:
    for member in members:
        if isinstance(member, Refused):
            listing.refuse(container, member.name, member.reason)
        elif listing.is_audio(member.name):
            listing.add(container, member)


def _list_samples(listing: Listing, container: int, file: BinaryIO) -> None:
    """Add the utterances in a tar to `listing`.

    If the tar is a WebDataset, the members of an utterance follow one another, and one of them contains the speaker.
    """
    for member, speaker in group_samples(file, lambda bad: listing.refuse(container, bad.name, bad.reason)):
        if listing.is_audio(member.name):
            listing.add(container, member, speaker)


def list_table(listing: Listing, source: Path, options: PrepareOptions) -> None:
    """Add the audio files in a list of recordings to `listing`; missing files, to `listing.refused`.

    Args:
        listing: listing that receives the utterances.
        source: list of recordings, see `files.corpora`.
        options: options of the preparation, with the columns and the base folder.

    Raises:
        ValueError: the list has an unknown format, or a column is missing.
    """
    root = base_folder(source) if options.audio_root is None else Path(options.audio_root)
    container = listing.add_container("folder", [root])
    with (
        open_corpus_list(source, options.audio_column, options.speaker_column) as listed,
        ThreadPoolExecutor(LISTING_THREADS) as pool,
    ):
        for rows in _blocks(listed.rows):
            names = [cell_text(row.cells.get(listed.audio)) for row in rows]
            stats = pool.map(lambda name: _stat(root, name), names)
            for row, name, stat in zip(rows, names, stats, strict=True):
                if row.problem:
                    listing.refuse(container, str(name), f"its row in the table is invalid: {row.problem}")
                else:
                    part = join_segment(name, row.segment) if name else name
                    _add_row(listing, container, part, cell_text(row.cells.get(listed.speaker or "")), stat)


def _blocks(reader: Iterator[TableRow]) -> Iterator[list[TableRow]]:
    block = []
    for row in reader:
        block.append(row)
        if len(block) == FOLDERS_AT_ONCE:
            yield block
            block = []
    yield block


def _stat(root: Path, name: str | None) -> os.stat_result | None:
    try:
        return os.stat(root / split_segment(name)[0]) if name else None
    except (OSError, ValueError):
        return None


def _add_row(
    listing: Listing, container: int, name: str | None, speaker: str | None, stat: os.stat_result | None
) -> None:
    if not name or not speaker:
        listing.refuse(
            container,
            str(name),
            f"its row in the table is incomplete: expected a path and a speaker, got {name!r} and {speaker!r}",
        )
    elif stat is not None and not S_ISREG(stat.st_mode):
        listing.refuse(container, name, NO_FILE)
    elif stat is None:
        listing.refuse(container, name, "no such file; check the path and its base folder")
    else:
        name = name.replace(os.sep, "/")
        file, segment = split_segment(name)
        key = None if not os.path.isabs(file) and ".." not in file.split("/") else _inner_key(file)
        if key is not None and segment is not None:
            key = key_of(join_segment(f"{key}.", segment))
        listing.add(container, Member(name, 0, stat.st_size, stat.st_size, check=stat.st_mtime_ns), speaker, key)


def _inner_key(name: str) -> str:
    """Return the key of a path after removing `.`, `..` and a leading slash."""
    return sample_key("/".join(part for part in name.split("/") if part not in ("", ".", "..")))[0]


def archive_sets(paths: Sequence[Path]) -> list[list[Path]]:
    """Group the files of archives. Each group consists of one file, or of all parts of a split archive.

    If several parts of an archive are given, for example by a wildcard, the archive is returned only once.
    """
    sets: dict[Path, list[Path]] = {}
    for path in paths:
        parts = all_parts(path) if is_part(path) else [path]
        sets.setdefault(parts[0], parts)
    return list(sets.values())
