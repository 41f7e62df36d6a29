"""One shard from its part of the plan: read, check, encode, write. Runs in a worker process."""

import dataclasses
import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.audio import AudioError
from .archives import ArchiveError
from .encoding import Encoded, encode_file
from .manifest import Shard, shard_name
from .members import MemberReader
from .planning import Plan, load_plan
from .writing import ParquetShard, ShardWriter, TarShard, write_atomically

CRASHED_NAME = "crashed.json"
"""In the progress folder: rows whose decoding ended a worker process."""

CRASH_REASON = (
    "the process that decoded it was ended, by a crash of the decoder or for want of memory; convert it or leave it out"
)

_PLACE = struct.Struct("<2q")


def record_path(progress: Path, shard: int) -> Path:
    """Where the record of a finished shard lies."""
    return progress / f"shard-{shard:05d}.json"


def place_path(progress: Path, shard: int) -> Path:
    """Where a worker notes which row of a shard it is at."""
    return progress / f"at-{shard:05d}"


def read_place(progress: Path, shard: int) -> tuple[int, int] | None:
    """Rows of a shard that are done, and the row being decoded (-1 for none); None where nobody has begun it."""
    try:
        return _PLACE.unpack(place_path(progress, shard).read_bytes())
    except (OSError, struct.error):
        return None


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What came of a part of the plan.

    Attributes:
        shard: for the manifest.
        speakers: utterances of each speaker.
        unreadable: path and reason of the files left out, in order.
    """

    shard: Shard
    speakers: dict[str, int]
    unreadable: list[tuple[str, str]]


def load_record(progress: Path, shard: int) -> ShardRecord | None:
    """The record of a finished shard, or None."""
    try:
        facts = json.loads(record_path(progress, shard).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    unreadable = [(path, reason) for path, reason in facts["unreadable"]]
    return ShardRecord(Shard(**facts["shard"]), facts["speakers"], unreadable)


def make_shard(output: str, progress: str, index: int) -> int:
    """Make one shard and its record, under their names only when whole; returns `index`.

    Raises:
        SourceChanged: a file is gone or altered.
        ImportError: a package for decoding is missing.
        OSError: the shard cannot be written.
    """
    plan = load_plan(progress)
    name = shard_name(index, plan.shards, plan.options.format)
    temporary = Path(progress) / f"{name}.{os.getpid()}.tmp"
    writer = open_writer(plan, Path(output) / name, temporary)
    start, stop = plan.bounds(index)
    speakers: Counter[str] = Counter()
    unreadable = []
    crashed = read_crashed(Path(progress))
    with MemberReader(plan.containers) as reader, _noting(Path(progress), index) as note:
        for number, row in enumerate(plan.table.slice(start, stop - start).to_pylist()):
            note(number, start + number)
            result = CRASH_REASON if start + number in crashed else encode_row(plan, reader, row)
            note(number + 1, -1)
            if isinstance(result, str):
                unreadable.append((plan.file_name(row), result))
            else:
                writer.add(row["key"], row["speaker"], result)
                speakers[row["speaker"]] += 1
    record = ShardRecord(writer.finish(), dict(speakers), unreadable)
    text = json.dumps(dataclasses.asdict(record), ensure_ascii=False)
    write_atomically(record_path(Path(progress), index), lambda path: path.write_text(text, encoding="utf-8"))
    return index


def open_writer(plan: Plan, path: Path, temporary: Path) -> ShardWriter:
    """The writer of the plan's format."""
    if plan.options.format == "webdataset":
        return TarShard(path, temporary)
    rate = None if plan.options.codec == "source" else plan.options.sampling_rate
    return ParquetShard(path, temporary, rate, plan.options.rows_per_group)


def encode_row(plan: Plan, reader: MemberReader, row: dict[str, Any]) -> Encoded | str:
    """The audio of a row, or why there is none."""
    options = plan.options
    try:
        content = reader.read(row)
        return encode_file(content, row["name"], options.codec, options.sampling_rate, options.min_duration)
    except AudioError as error:
        return error.reason
    except ArchiveError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error}); check the disk"
    except MemoryError:
        return "there is not enough memory to decode it; leave it out, or give fewer --processes"


def try_row(progress: str, row: int) -> int:
    """Decode one row, to see whether the process survives it."""
    plan = load_plan(progress)
    with MemberReader(plan.containers) as reader:
        encode_row(plan, reader, plan.table.slice(row, 1).to_pylist()[0])
    return row


def read_crashed(progress: Path) -> set[int]:
    """Rows whose decoding ended a process."""
    path = progress / CRASHED_NAME
    return set(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else set()


@contextmanager
def _noting(progress: Path, shard: int) -> Iterator[Any]:
    """Gives a function that notes rows done and row in hand, for the progress bar and against crashes."""
    path = place_path(progress, shard)
    with open(path, "wb", buffering=0) as file:

        def note(done: int, row: int) -> None:
            file.seek(0)
            file.write(_PLACE.pack(done, row))

        yield note
    path.unlink(missing_ok=True)
