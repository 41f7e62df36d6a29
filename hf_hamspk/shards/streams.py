"""Copy data sets of the library `datasets` to disk, so that their rows can be shuffled.

A data set is streamed row by row, but mixing the speakers over all shards needs random access to every recording. The
encoded recordings are therefore copied into segment files in the progress folder. The segments need as much disk space
as the source and are removed when the preparation ends. A segment file is either complete or absent. The state of the
stream at the end of each segment is stored with it, so that an interrupted copy can be resumed.
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

from ..data.columns import Columns, without_decoding
from ..files.corpora import SPEAKER_COLUMNS
from ..folders.errors import explain_damage
from ..folders.writing import publish, write_atomically
from .archives import MAX_MEMBER, Member, unsafe_name
from .listing import Listing
from .manifest import RESTART_ADVICE

SEGMENT_BYTES = 512 * 2**20
"""Size in bytes at which a segment ends. If the copy is interrupted, at most one segment is copied again."""

SEGMENT_ITEMS = 20_000
"""Number of rows at which a segment ends. This limits the memory for their names."""

SEGMENT_FACTS = {"rows", "refused", "state", "last"}
"""Keys of the description of a segment."""

SPOOL_NAME = "spool.json"


class Item(NamedTuple):
    """Row of a data set with its encoded recording.

    Attributes:
        key: key of the utterance.
        speaker: name of the speaker; None if the row has no speaker.
        name: name of the file.
        content: bytes of the file; None if the file cannot be used.
        reason: reason why the file cannot be used; empty if it can.
    """

    key: str
    speaker: str | None
    name: str
    content: bytes | None
    reason: str = ""


class DataSetStream:
    """Stream of the rows of a data set that has an audio column and a speaker column.

    Args:
        path: Hub repository or folder that `datasets.load_dataset` can load, Parquet file, or folder written by
            `save_to_disk`.
        split: name of the split.
        audio_column: name of the audio column. None selects the only column that contains audio.
        speaker_column: name of the speaker column. None selects the first name in `SPEAKER_COLUMNS` that exists.
        revision: commit of a Hub repository; None for a local data set.
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
        """Yield pairs of a row and a function. The function returns the state of the stream after the row.

        Args:
            state: state from which to continue, as a function of an earlier call returned it; None reads from the
                start. A state contains the number of rows read and the state of the data set, and can be stored as
                JSON.
        """
        data = self._load()
        columns = self._columns(data)
        data = without_decoding(data, columns)
        number = 0
        if state is not None:
            number = state["rows"]
            data.load_state_dict(state["data"])
        for row in data:
            yield (
                self._item(number, row, columns),
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

    def _columns(self, data: datasets.IterableDataset) -> Columns:
        columns = [] if data.column_names is None else data.column_names
        audio = [self.audio_column] if self.audio_column is not None else [c for c in columns if _holds_audio(data, c)]
        expected = (self.speaker_column,) if self.speaker_column else SPEAKER_COLUMNS
        speaker = [column for column in expected if column in columns]
        if len(audio) != 1 or audio[0] not in columns:
            wanted = "exactly one audio column" if self.audio_column is None else f"the column {self.audio_column!r}"
            raise ValueError(
                f"{self.name}: expected {wanted} among the columns {', '.join(columns)}; select the audio column "
                "with --audio-column"
            )
        if not speaker:
            raise ValueError(
                f"{self.name}: expected a speaker column named {' or '.join(expected)} among the columns "
                f"{', '.join(columns)}; select the speaker column with --speaker-column"
            )
        return Columns.of_features(audio[0], speaker[0], data.features)

    def _item(self, number: int, row: dict[str, Any], columns: Columns) -> Item:
        given = row.get("__key__", row.get("key"))
        key = f"{self.split}/{number:09d}" if given is None else str(given)
        audio, cell = row[columns.audio], row[columns.speaker]
        content, path = (audio, "") if isinstance(audio, bytes) else (audio["bytes"], audio["path"])
        name = f"{key}{PurePosixPath('' if path is None else path).suffix}"
        try:
            speaker = None if cell is None or cell == "" else columns.speaker_of(cell, number)
            reason = f"row {number} has no speaker" if speaker is None else unsafe_name(key)
        except ValueError as error:
            speaker, reason = None, str(error)
        if content is None and path is not None and os.path.isfile(path):
            size = os.path.getsize(path)
            content = Path(path).read_bytes() if size <= MAX_MEMBER else bytes(0)
            reason = f"has {size} bytes, more than the limit of {MAX_MEMBER}" if size > MAX_MEMBER else reason
        if content is None:
            reason = f"row {number} contains neither audio nor the path of an existing file (its path is {path!r})"
        if reason is not None:
            return Item(key, speaker, f"{self.name}::{name}", None, reason)
        return Item(key, speaker, name, content)


def _streaming(data: Any) -> datasets.IterableDataset:
    """Return `data` if it is a single split in streaming mode.

    Raises:
        ValueError: `data` is anything else, such as a dictionary of several splits.
    """
    if not isinstance(data, datasets.IterableDataset):
        raise ValueError(f"expected one split of a data set, got {type(data).__name__}; select a split with --split")
    return data


def _holds_audio(data: datasets.IterableDataset, column: str) -> bool:
    """Return True if a column has the type `Audio` or is a structure with the fields `bytes` and `path`."""
    kind = None if data.features is None else data.features.get(column)
    return isinstance(kind, datasets.Audio) or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})


def copy_streams(
    streams: Sequence[DataSetStream], listing: Listing, folder: Path, fingerprint: str, progress: bool
) -> None:
    """Copy data sets into segment files, and add their rows to `listing`. Existing segments are not copied again.

    Args:
        streams: data sets to copy, in order.
        listing: listing that receives the utterances.
        folder: folder in which the segments are saved.
        fingerprint: digest of the sources and the options.
        progress: whether to show a progress bar on stderr.

    Raises:
        ValueError: the folder contains segments of another source or of other options.
        OSError: the source cannot be reached, or the disk is full.
    """
    note = folder / SPOOL_NAME
    with explain_damage(note, RESTART_ADVICE):
        earlier = json.loads(note.read_text(encoding="utf-8"))["fingerprint"] if note.is_file() else fingerprint
    if earlier != fingerprint:
        raise ValueError(
            f"the preparation in {folder.parent} was started with another source or other options; use the same ones, "
            "choose another output folder, or start over with --restart"
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
    """Write the missing segments of a stream, and yield the path and the description of every segment."""
    items = None
    state = None
    for index in count():
        path = folder / f"spool-{number:04d}-{index:05d}.bin"
        note = path.with_suffix(".json")
        if note.is_file():
            with explain_damage(note, RESTART_ADVICE):
                facts = json.loads(note.read_text(encoding="utf-8"))
                if not facts.keys() >= SEGMENT_FACTS:
                    raise ValueError(f"{', '.join(sorted(SEGMENT_FACTS - facts.keys()))} missing")
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
    """Copy rows to a segment file until it is full or the stream ends.

    Returns:
        Description of the segment: copied and refused rows, state of the stream, and whether the stream has ended.
    """
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
