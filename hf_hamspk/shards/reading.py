"""Read shards group by group from any location that fsspec can read: a folder, `hf://`, `s3://`, `https://`.

A group is a row group of a Parquet file, or a range of consecutive members of a tar. A group is fetched with one
request, for the byte range that the footer of the Parquet file or the index file of the tar declares. The footers and
indices of the most recently used shards stay in memory.
"""

import copy
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..audio_hamspk import InputError
from ..folders.errors import DAMAGED, explain_damage
from .fetching import Fetcher, RangesError, Retry
from .manifest import MANIFEST_NAME, Manifest, Shard

TAR_GROUP_BYTES = 4 << 20
"""Approximate size in bytes of a group in a tar, which contains about 40 utterances of 8 s in FLAC."""

FOOTER_BYTES = 64 << 10
"""Number of bytes that are first fetched from the end of a Parquet file, enough for the footer of 200 row groups."""

PARQUET_END = 8
"""Number of bytes after the footer: its length and the magic number."""

LAYOUTS_KEPT = 128
"""Number of shards whose footer or index stays in memory. For other shards, each group needs an additional request."""


class Group:
    """Utterances of one group in memory, with the recordings still encoded.

    Attributes:
        speakers: name of the speaker of each utterance.
        names: name of each utterance in reports.
    """

    def __init__(self, audio: "pa.Array | list[memoryview]", speakers: list[str], names: list[str], size: int):
        self._audio, self.speakers, self.names, self.nbytes = audio, speakers, names, size

    def __len__(self) -> int:
        return len(self.speakers)

    def audio(self, row: int) -> memoryview:
        """Return the encoded recording of an utterance as a view of the memory of the group."""
        if isinstance(self._audio, list):
            return self._audio[row]
        content = self._audio[row].as_buffer()
        return memoryview(b"") if content is None else memoryview(content)


class ShardReader:
    """Reader of a folder of shards, which reads one group of utterances at a time.

    A reader can be copied and pickled. Connections, footers and indices are not copied.

    Args:
        folder: folder with `manifest.json`: a local path, or a URL that fsspec can read.
        retry: number of attempts and pauses between them, see `Retry`.
        storage_options: options of the fsspec file system, for example `{"token": ...}`.

    Attributes:
        manifest: manifest of the shards, see `Manifest`.
        group_sizes: number of utterances in each group, in the order of the shards: `(groups,)` int64.
        group_bytes: approximate size in bytes of each group: `(groups,)` int64.

    Raises:
        ValueError: the manifest does not exist or is invalid.
        InputError: the manifest cannot be fetched.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        retry: Retry = Retry(),  # noqa: B008 - immutable
        storage_options: Mapping[str, Any] | None = None,
    ):
        self.fetcher = Fetcher(folder, retry, storage_options)
        self.folder = self.fetcher.folder
        self._forget_process()
        self.manifest = Manifest.from_json(self.fetcher.fetch(MANIFEST_NAME), f"{self.folder}/{MANIFEST_NAME}")
        sizes = [group_rows(shard) for shard in self.manifest.shards]
        self.group_sizes = np.array([rows for shard in sizes for rows in shard], dtype=np.int64)
        self._shard_of = np.repeat(np.arange(len(sizes)), [len(shard) for shard in sizes])
        self._first_group = np.cumsum([0, *(len(shard) for shard in sizes)])
        self.first_utterance = np.cumsum(self.group_sizes) - self.group_sizes
        rates = np.array([shard.bytes / max(shard.rows, 1) for shard in self.manifest.shards])
        self.group_bytes = np.ceil(self.group_sizes * rates[self._shard_of]).astype(np.int64)

    def _forget_process(self) -> None:
        self._layouts: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_layouts", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.fetcher = copy.copy(self.fetcher)
        self._forget_process()

    def fingerprint(self) -> str:
        """Return a hexadecimal digest. It is the same for folders with the same shards in the same order."""
        shards = [[shard.sha256 if shard.sha256 else shard.file, group_rows(shard)] for shard in self.manifest.shards]
        return hashlib.sha256(json.dumps([shards, self.manifest.speakers]).encode()).hexdigest()

    def file_of(self, group: int) -> str:
        """Return the path of the shard of a group, relative to the folder."""
        return self.manifest.shards[int(self._shard_of[group])].file

    def name_of(self, group: int) -> str:
        """Return the name of a group for messages: the file of its shard, and its number in this shard."""
        return f"{self.file_of(group)}, group {group - int(self._first_group[self._shard_of[group]])}"

    def read(self, group: int) -> Group:
        """Fetch the utterances of a group.

        Raises:
            InputError: the group cannot be fetched, or is damaged. The attribute `name` of the error contains the
                result of `name_of(group)`.
            RangesError: the server does not support byte ranges.
        """
        number = int(self._shard_of[group])
        shard, place = self.manifest.shards[number], group - int(self._first_group[number])
        try:
            if self.manifest.format == "parquet":
                found = self._read_row_group(number, shard, place)
            else:
                found = self._read_members(number, shard, place)
        except InputError as error:
            raise InputError(error.reason, self.name_of(group)) from error
        except RangesError:
            raise
        except (pa.ArrowException, OSError, *DAMAGED) as error:
            raise InputError(
                f"is damaged or differs from the manifest ({type(error).__name__}: {error}); run `hamspk prepare "
                "--verify` on the folder, or copy the shard again",
                self.name_of(group),
            ) from error
        if len(found) != self.group_sizes[group]:
            raise InputError(
                f"has {len(found)} utterances, but the manifest declares {self.group_sizes[group]}; "
                "copy the shard again",
                self.name_of(group),
            )
        return found

    # -- Parquet ----------------------------------------------------------------------------------------------------

    def _read_row_group(self, number: int, shard: Shard, place: int) -> Group:
        footer = self._layout(number, self._fetch_footer)
        metadata = pq.read_metadata(pa.BufferReader(footer))
        start, end = _span(metadata.row_group(place))
        source = pa.PythonFile(_Range(self.fetcher.fetch(shard.file, start, end), start, shard.bytes), mode="r")
        # Pages with a checksum are checked. Arrow must not read ahead, because it would use threads that do not exist
        # in a forked loader process. The process could then wait forever.
        file = pq.ParquetFile(source, metadata=metadata, pre_buffer=False, page_checksum_verification=True)
        columns = self.manifest.columns
        speaker, own = columns.get("speaker", "speaker"), columns.get("audio", "audio")
        wanted = [name for name in (own, speaker, "key") if name in file.schema_arrow.names]
        table = file.read_row_group(place, columns=wanted, use_threads=False)
        audio = table.column(own).combine_chunks()
        if pa.types.is_struct(audio.type):
            audio = audio.field("bytes")
        if not (pa.types.is_binary(audio.type) or pa.types.is_large_binary(audio.type)):
            raise ValueError(f"the column {own!r} has the type {audio.type}, expected bytes")
        speakers = speaker_names(table, speaker)
        first = sum(shard.row_groups[:place])
        names = (
            table.column("key").to_pylist()
            if "key" in table.column_names
            else [f"{shard.file}, row {first + row}" for row in range(len(table))]
        )
        return Group(audio, speakers, names, audio.nbytes)

    def _fetch_footer(self, shard: Shard) -> bytes:
        """Return the end of a Parquet file, starting with its footer."""
        size = min(FOOTER_BYTES, shard.bytes)
        tail = self.fetcher.fetch(shard.file, shard.bytes - size, shard.bytes)
        length = int.from_bytes(tail[-PARQUET_END : -PARQUET_END + 4], "little") + PARQUET_END
        if tail[-4:] != b"PAR1" or length > shard.bytes:
            raise ValueError("it does not end like a Parquet file")
        return tail[-length:] if length <= size else self.fetcher.fetch(shard.file, shard.bytes - length, shard.bytes)

    # -- tar --------------------------------------------------------------------------------------------------------

    def _read_members(self, number: int, shard: Shard, place: int) -> Group:
        index = self._layout(number, self._fetch_index)
        sizes = group_rows(shard)
        first = sum(sizes[:place])
        rows = range(first, first + sizes[place])
        spans = [(index["offset"][row], index["offset"][row] + index["size"][row]) for row in rows]
        start, end = min(span[0] for span in spans), max(span[1] for span in spans)
        if not 0 <= start <= end <= shard.bytes:
            raise ValueError(f"its index points outside the {shard.bytes} bytes of the tar")
        content = memoryview(self.fetcher.fetch(shard.file, start, end))
        audio = [content[low - start : high - start] for low, high in spans]
        speakers = [index["speaker"][row] for row in rows]
        return Group(audio, speakers, [index["key"][row] for row in rows], len(content))

    def _fetch_index(self, shard: Shard) -> dict[str, Any]:
        if shard.index is None:
            raise ValueError("the manifest names no index file for this tar")
        columns = json.loads(self.fetcher.fetch(shard.index))
        lengths = {len(columns[name]) for name in ("key", "speaker", "offset", "size")}
        if lengths != {shard.rows}:
            raise ValueError(f"the columns of its index have {sorted(lengths)} entries, expected {shard.rows}")
        return columns

    def _layout(self, number: int, fetch: Any) -> Any:
        """Return the footer or the index of shard `number`, from memory, or with the function `fetch`."""
        with self._lock:
            if number in self._layouts:
                self._layouts.move_to_end(number)
                return self._layouts[number]
        layout = fetch(self.manifest.shards[number])
        with self._lock:
            self._layouts[number] = layout
            if len(self._layouts) > LAYOUTS_KEPT:
                self._layouts.popitem(last=False)
        return layout


def group_rows(shard: Shard) -> list[int]:
    """Return the number of utterances in each group of a shard.

    The utterances of a tar are divided evenly into groups of about `TAR_GROUP_BYTES`.
    """
    if shard.index is None or shard.rows == 0:
        return list(shard.row_groups)
    count = min(shard.rows, max(1, round(shard.bytes / TAR_GROUP_BYTES)))
    return [shard.rows * (place + 1) // count - shard.rows * place // count for place in range(count)]


def speaker_names(table: pa.Table, column: str = "speaker") -> list[str]:
    """Return the speaker of each row as text. The integers of a `ClassLabel` column are replaced by their names."""
    values = table.column(column).to_pylist()
    described = (table.schema.metadata if table.schema.metadata is not None else {}).get(b"huggingface")
    if values and isinstance(values[0], int) and described is not None:
        with explain_damage("the description of the columns (metadata huggingface)", "write the file again"):
            names = json.loads(described)["info"]["features"].get(column, {}).get("names")
        if names is not None:
            return [names[value] for value in values]
    return [str(value) for value in values]


def _span(row_group: Any) -> tuple[int, int]:
    """Return the byte range of a row group: the offset of its first byte, and the offset after its last."""
    columns = [row_group.column(index) for index in range(row_group.num_columns)]
    starts = [
        column.data_page_offset
        if column.dictionary_page_offset is None
        else min(column.dictionary_page_offset, column.data_page_offset)
        for column in columns
    ]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return min(starts), max(ends)


class _Range:
    """File object that provides only one byte range of a file. Reading other bytes raises a `ValueError`."""

    closed = False

    def __init__(self, content: bytes, start: int, size: int):
        self._content, self._start, self._size, self._position = memoryview(content), start, size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> memoryview:
        begin = self._position - self._start
        if begin < 0 or count < 0 or begin + count > len(self._content):
            raise ValueError(f"bytes {self._position} to {self._position + count} are outside the row group")
        self._position += count
        return self._content[begin : begin + count]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def open_shards(source: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> ShardReader | None:
    """Return the reader of a folder of shards, or None if the source is another kind of corpus.

    A URL is always treated as a folder of shards. A local path is a folder of shards if it contains `manifest.json`.
    The path of the manifest is also accepted.

    Raises:
        ValueError: the URL has no manifest, or the manifest is invalid.
        InputError: the manifest cannot be fetched.
    """
    text = os.fspath(source)
    if os.path.basename(text) == MANIFEST_NAME:
        text = os.path.dirname(text)
    if "://" not in text and not os.path.isfile(os.path.join(text, MANIFEST_NAME)):
        return None
    try:
        return ShardReader(text, storage_options=storage_options)
    except InputError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise ValueError(
            f"{text}/{MANIFEST_NAME} not found. To train on shards of other projects (Parquet, WebDataset), "
            f"run `hamspk prepare --index {text} OUTPUT` and use OUTPUT as the training data"
        ) from error


def choose_shuffle(group_bytes: Sequence[int] | np.ndarray, lanes: int, window: int, budget: int) -> tuple[int, int]:
    """Choose the lanes and windows for shuffling (see `order`) so that their groups fit into a memory budget.

    While an epoch is read, one window of groups in each lane is in memory. If the groups are large, first the number of
    groups in a window and then the number of lanes is reduced.

    Args:
        group_bytes: size in bytes of each group.
        lanes: desired number of lanes.
        window: desired number of groups in a window.
        budget: memory budget in bytes, for all processes of a run together.

    Returns:
        Number of lanes and number of groups in a window.
    """
    largest = max(1, int(np.max(group_bytes, initial=1)))
    fit = max(1, budget // largest)
    window = max(1, min(window, fit // lanes))
    return max(1, min(lanes, fit // window)), window
