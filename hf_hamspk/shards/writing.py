"""Write one Parquet or tar shard under a temporary name, and rename it once it is complete and on disk."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..folders.writing import hash_file, publish, write_atomically
from .encoding import Encoded
from .manifest import MANIFEST_SCHEMA, TAR_INDEX, Shard, index_name

MAX_GROUP_BYTES = 64 * 2**20
"""Number of bytes of audio at which a row group ends, even if it has few utterances, to limit the memory needed."""


class ShardWriter(Protocol):
    """Interface of a writer of one shard."""

    def add(self, key: str, speaker: str, encoded: Encoded) -> None:
        """Add the next utterance."""
        ...

    def finish(self) -> Shard:
        """Close the shard, rename the file to its final name and return its manifest entry."""
        ...


def audio_schema(sampling_rate: int | None) -> pa.Schema:
    """Return the schema of a Parquet shard. Its metadata makes `datasets` read the column `audio` as `Audio`."""
    features = {
        "audio": {"_type": "Audio"} if sampling_rate is None else {"sampling_rate": sampling_rate, "_type": "Audio"},
        "speaker": {"dtype": "string", "_type": "Value"},
        "key": {"dtype": "string", "_type": "Value"},
        "duration": {"dtype": "float64", "_type": "Value"},
        "samples": {"dtype": "int64", "_type": "Value"},
    }
    return pa.schema(
        [
            ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("speaker", pa.string()),
            ("key", pa.string()),
            ("duration", pa.float64()),
            ("samples", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


class ParquetShard:
    """Writer of a Parquet shard.

    Args:
        path: path of the shard.
        temporary: path of the temporary file, which is renamed to `path` when the shard is complete.
        sampling_rate: sampling rate of all utterances in Hz; None if the utterances have different sampling rates.
        rows_per_group: number of utterances in a row group.
    """

    def __init__(self, path: Path, temporary: Path, sampling_rate: int | None, rows_per_group: int):
        self.path, self.temporary, self.rows_per_group = path, temporary, rows_per_group
        self.schema = audio_schema(sampling_rate)
        # The audio is already compressed, and column statistics would copy complete files into the footer.
        small = ["speaker", "key", "duration", "samples"]
        settings: dict[str, Any] = {
            "compression": {"audio.bytes": "NONE", "audio.path": "NONE"} | dict.fromkeys(small, "SNAPPY"),
            "use_dictionary": ["speaker"],
            "write_statistics": small,
        }
        self._writer = pq.ParquetWriter(temporary, self.schema, **settings)
        self._rows: list[dict] = []
        self._bytes = 0
        self._groups: list[int] = []
        self._seconds = 0.0

    def add(self, key: str, speaker: str, encoded: Encoded) -> None:
        """Add the next utterance."""
        audio = {"bytes": encoded.content, "path": f"{key}{encoded.suffix}"}
        self._rows.append(
            {"audio": audio, "speaker": speaker, "key": key, "duration": encoded.duration, "samples": encoded.samples}
        )
        self._bytes += len(encoded.content)
        self._seconds += encoded.duration
        if len(self._rows) >= self.rows_per_group or self._bytes >= MAX_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self.schema), row_group_size=len(self._rows))
            self._groups.append(len(self._rows))
            self._rows, self._bytes = [], 0

    def finish(self) -> Shard:
        """Close the shard, rename the file to its final name and return its manifest entry."""
        self._flush()
        self._writer.close()
        shard = Shard(
            self.path.name,
            sum(self._groups),
            self._groups,
            self.temporary.stat().st_size,
            hash_file(self.temporary),
            self._seconds,
        )
        publish(self.temporary, self.path)
        return shard


class TarShard:
    """Writer of a WebDataset tar and its index file.

    Args:
        path: path of the shard.
        temporary: path of the temporary file, which is renamed to `path` when the shard is complete.
    """

    def __init__(self, path: Path, temporary: Path):
        self.path, self.temporary = path, temporary
        self._file = open(temporary, "wb")  # noqa: SIM115
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        self._index: dict[str, list] = {name: [] for name in TAR_INDEX}

    def add(self, key: str, speaker: str, encoded: Encoded) -> None:
        """Add the next utterance."""
        self._member(f"{key}{encoded.suffix}", encoded.content)
        # A tar pads the data of each member to complete blocks.
        padded = -(-len(encoded.content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        offset = self._file.tell() - padded
        facts = {"speaker": speaker, "duration": encoded.duration, "samples": encoded.samples}
        self._member(f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())
        entry = {"key": key, **facts, "offset": offset, "size": len(encoded.content), "suffix": encoded.suffix}
        for name, value in entry.items():
            self._index[name].append(value)

    def _member(self, name: str, content: bytes) -> None:
        # TarInfo sets the time, owner and mode to constants, so the same utterances always give the same bytes.
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))
        self._tar.members = []  # type: ignore[attr-defined]

    def finish(self) -> Shard:
        """Close the shard, write its index file, rename the shard to its final name and return its manifest entry."""
        self._tar.close()
        self._file.close()
        index = self.path.with_name(index_name(self.path.name))
        text = json.dumps({"schema": MANIFEST_SCHEMA, **self._index}, ensure_ascii=False)
        write_atomically(index, lambda path: path.write_text(text, encoding="utf-8"))
        shard = Shard(
            self.path.name,
            len(self._index["key"]),
            [],
            self.temporary.stat().st_size,
            hash_file(self.temporary),
            float(sum(self._index["duration"])),
            index.name,
            hash_file(index),
        )
        publish(self.temporary, self.path)
        return shard
