"""Copy data sets of `datasets`, which can only be read in order, so that their rows can be shuffled.

Mixing the speakers over all shards needs random access to every file. The encoded files are therefore copied, one after
the other, into segments in the progress folder. The segments need as much disk space as the source and are removed at
the end. Each segment is complete or absent, and stores the state of the stream after it, so an interrupted copy can be
resumed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets
from tqdm import tqdm

from .archives import (
    MAX_MEMBER,
    SPEAKER_FIELDS,
    Member,
    unsafe_name,
)
from .listing import Listing
from .writing import publish, write_atomically

SEGMENT_BYTES = 512 * 2**20
"""Size in bytes at which a segment ends. After a kill, at most this much is copied again."""

SEGMENT_ITEMS = 20_000
"""Number of files at which a segment ends, because their names are kept in memory."""

SPOOL_NAME = "spool.json"


class Item(NamedTuple):
    """One row of a data set.

    Attributes:
        key: key of the utterance.
        speaker: name of the speaker; None if the row names none.
        name: name of the file.
        content: bytes of the file; None if it cannot be used.
        reason: reason why the file cannot be used; None if it can.
    """

    key: str
    speaker: str | None
    name: str
    content: bytes | None
    reason: str = ""


class DataSetStream:
    """Stream of a data set of `datasets` with columns of audio and speakers.

    Args:
        path: Hub repository or folder, as for `datasets.load_dataset`; one Parquet file; or a folder that
            `save_to_disk` wrote.
        split: name of the split.
        audio_column: name of the audio column. None takes the only column that contains audio.
        speaker_column: name of the speaker column. None takes the first name of `SPEAKER_FIELDS` that exists.
        revision: revision of a Hub repository.
    """

    def __init__(
        self,
        path: str,
        split: str,
        audio_column: str | None = None,
        speaker_column: str | None = None,
        revision: str | None = None,
    ):
        self.path, self.split, self.revision = path, split, revision
        self.name = path if revision is not None else Path(path).name
        self.audio_column, self.speaker_column = audio_column, speaker_column
        if revision is None:
            files = [Path(path), *sorted(Path(path).rglob("*"))]
            stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files if file.is_file()]
            facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
            self.identity = hashlib.sha256(repr(facts).encode()).hexdigest()
        else:
            self.identity = f"{path}@{revision}"

    def read(self, state: Any) -> Iterator[tuple[Item, Callable[[], Any]]]:
        """Yield the rows after a state, each with a function that returns the state after that row.

        The state combines the state of the data set with the number of rows read. It can be stored as JSON. None is the
        start.
        """
        data = self._load()
        audio, speaker = self._columns(data)
        speaker_type = None if data.features is None else data.features.get(speaker)
        data = data.cast_column(audio, datasets.Audio(decode=False)) if _holds_audio(data, audio) else data
        number = 0
        if state is not None:
            number = state["rows"]
            data.load_state_dict(state["data"])
        for row in data:
            yield (
                self._item(number, row, audio, _speaker_name(row[speaker], speaker_type)),
                lambda number=number: {"rows": number + 1, "data": data.state_dict()},
            )
            number += 1

    def _load(self) -> datasets.IterableDataset:
        path = Path(self.path)
        if path.is_file():
            return _streaming(datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True))
        if (path / "state.json").is_file():
            return datasets.Dataset.load_from_disk(str(path)).to_iterable_dataset()
        return _streaming(datasets.load_dataset(self.path, split=self.split, streaming=True, revision=self.revision))

    def _columns(self, data: datasets.IterableDataset) -> tuple[str, str]:
        """Return the names of the audio column and the speaker column."""
        columns = [] if data.column_names is None else data.column_names
        audio = [self.audio_column] if self.audio_column is not None else [c for c in columns if _holds_audio(data, c)]
        speaker = [c for c in ((self.speaker_column,) if self.speaker_column else SPEAKER_FIELDS) if c in columns]
        if len(audio) != 1 or audio[0] not in columns:
            raise ValueError(
                f"{self.name} has the columns {', '.join(columns)}, and {len(audio)} of them contain audio, "
                "expected 1; name the right one with --audio-column"
            )
        if not speaker:
            raise ValueError(
                f"{self.name} has the columns {', '.join(columns)}, and none is "
                f"{self.speaker_column if self.speaker_column else ' or '.join(SPEAKER_FIELDS)}; name the right one "
                "with --speaker-column"
            )
        return audio[0], speaker[0]

    def _item(self, number: int, row: dict[str, Any], column: str, speaker: str | None) -> Item:
        given = row.get("__key__", row.get("key"))
        key = f"{self.split}/{number:09d}" if given is None else str(given)
        audio = row[column]
        content, path = (audio, "") if isinstance(audio, bytes) else (audio["bytes"], audio["path"])
        name = f"{key}{PurePosixPath('' if path is None else path).suffix}"
        reason = f"row {number} names no speaker" if speaker is None else unsafe_name(key)
        if content is None and path is not None and os.path.isfile(path):
            size = os.path.getsize(path)
            content = Path(path).read_bytes() if size <= MAX_MEMBER else bytes(0)
            reason = f"has {size} bytes, more than the {MAX_MEMBER} of one file" if size > MAX_MEMBER else reason
        if content is None:
            reason = f"row {number} contains no audio, and the file {path} does not exist"
        if reason is not None:
            return Item(key, speaker, f"{self.name}::{name}", None, reason)
        return Item(key, speaker, name, content)


def _streaming(data: Any) -> datasets.IterableDataset:
    """Return `data` unchanged if it is one streamed split.

    Raises:
        ValueError: `data` is anything else, such as a dictionary of several splits.
    """
    if not isinstance(data, datasets.IterableDataset):
        raise ValueError(f"expected one split of a data set, got {type(data).__name__}; name the split with --split")
    return data


def _holds_audio(data: datasets.IterableDataset, column: str) -> bool:
    """Return whether a column is of type `Audio`, or a structure of bytes and path as in Parquet files."""
    kind = None if data.features is None else data.features.get(column)
    return isinstance(kind, datasets.Audio) or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})


def _speaker_name(value: Any, kind: Any) -> str | None:
    if value is None or value == "":
        return None
    return str(kind.int2str(value)) if isinstance(kind, datasets.ClassLabel) else str(value)


def copy_streams(
    streams: Sequence[DataSetStream], listing: Listing, folder: Path, fingerprint: str, progress: bool
) -> None:
    """Copy the rows that are not copied yet, and add all rows to the listing.

    Args:
        streams: data sets to copy, in order.
        listing: listing that receives the utterances.
        folder: folder of the segments.
        fingerprint: digest of the sources and options. Segments with another fingerprint are refused.
        progress: show a bar on stderr.

    Raises:
        ValueError: the folder contains segments of another source.
        OSError: the source cannot be reached, or the disk is full.
    """
    note = folder / SPOOL_NAME
    if note.is_file() and json.loads(note.read_text())["fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder.parent} was begun with another source or other options; give the same again, or another folder, "
            "or start over (--restart)"
        )
    write_atomically(note, lambda path: path.write_text(json.dumps({"fingerprint": fingerprint})))
    with tqdm(desc="copying", unit="utt", disable=not progress) as bar:
        for number, stream in enumerate(streams):
            for path, facts in _segments(stream, number, folder):
                container = listing.add_container("tar", [path], stream.name)
                listing.refused += [(name, reason) for name, reason in facts["refused"]]
                for key, speaker, name, offset, size in facts["rows"]:
                    listing.add(container, Member(name, offset, size, size), speaker, key)
                bar.update(len(facts["rows"]))


def _segments(stream: DataSetStream, number: int, folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the segments of a stream: first the segments on the disk, then new ones as they are written."""
    items = None
    state = None
    for index in count():
        path = folder / f"spool-{number:04d}-{index:05d}.bin"
        note = path.with_suffix(".json")
        if note.is_file():
            facts = json.loads(note.read_text(encoding="utf-8"))
        else:
            items = stream.read(state) if items is None else items
            facts = _write_segment(items, path)
            text = json.dumps(facts)
            write_atomically(note, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        yield path, facts
        state = facts["state"]
        if facts["last"]:
            return


def _write_segment(items: Iterator[tuple[Item, Any]], path: Path) -> dict[str, Any]:
    """Copy files until the segment is full or the stream ends."""
    temporary = path.with_suffix(".tmp")
    rows, refused = [], []
    offset = 0
    last, get_state = True, None
    with open(temporary, "wb") as file:
        for item, state_after in items:
            get_state = state_after
            if item.content is None:
                refused.append((item.name, item.reason))
            else:
                file.write(item.content)
                rows.append((item.key, item.speaker, item.name, offset, len(item.content)))
                offset += len(item.content)
            if offset >= SEGMENT_BYTES or len(rows) + len(refused) >= SEGMENT_ITEMS:
                last = False
                break
    state = None if last or get_state is None else get_state()
    publish(temporary, path)
    return {"rows": rows, "refused": refused, "state": state, "last": last}
