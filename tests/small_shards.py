"""Folders of shards small enough for tests, written by hand: readers are tested without the writer."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from hf_hamspk.shards.manifest import Manifest, Shard, index_name, shard_name

RATE = 16_000


def recording(utterance: int, samples: int) -> np.ndarray:
    """Noise on 16-bit steps, another for each utterance."""
    draw = np.random.default_rng(utterance)
    return draw.integers(-8000, 8000, samples).astype(np.int16)


def encoded(waveform: np.ndarray, kind: str = "FLAC", subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, waveform, RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


def lengths(utterances: int, low: int = 1_500, high: int = 4_000) -> list[int]:
    return np.random.default_rng(utterances).integers(low, high, utterances).tolist()


def make_shards(
    folder: Path,
    groups: list[list[int]],
    container: str = "parquet",
    speakers: int = 5,
    samples: tuple[int, int] = (1_500, 4_000),
    replace: dict[int, bytes] | None = None,
) -> list[dict]:
    """Shards with these row groups each; returns the utterances in order: key, speaker, content.

    Args:
        replace: contents to write in the place of some utterances.
    """
    total = sum(map(sum, groups))
    rows = [
        {
            "key": f"utt{number:04d}",
            "speaker": f"s{number * 7 % speakers}",
            "content": (replace or {}).get(number, None) or encoded(recording(number, length)),
            "samples": length,
        }
        for number, length in enumerate(lengths(total, *samples))
    ]
    make_shards_of(folder, rows, groups, container)
    return rows


def make_shards_of(folder: Path, rows: list[dict], groups: list[list[int]], container: str = "parquet") -> None:
    """Shards of given utterances, in order, with these row groups each, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, first = [], 0
    for number, sizes in enumerate(groups):
        own = rows[first : first + sum(sizes)]
        first += len(own)
        name = shard_name(number, len(groups), container)
        write = write_parquet if container == "parquet" else write_tar
        shards.append(write(folder, name, own, sizes))
    names = sorted({row["speaker"] for row in rows})
    manifest = Manifest(
        format=container,
        codec="flac",
        sampling_rate=RATE,
        licence="",
        source="test",
        shards=shards,
        speakers=names,
        speaker_utterances=[sum(row["speaker"] == name for row in rows) for name in names],
        utterances=len(rows),
        seconds=sum(row["samples"] for row in rows) / RATE,
        unreadable=0,
    )
    (folder / "manifest.json").write_text(manifest.to_json())


def write_parquet(folder: Path, name: str, rows: list[dict], sizes: list[int]) -> Shard:
    schema = pa.schema(
        [
            ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("speaker", pa.string()),
            ("key", pa.string()),
            ("duration", pa.float64()),
            ("samples", pa.int64()),
        ]
    )
    first = 0
    with pq.ParquetWriter(folder / name, schema, write_page_checksum=True) as writer:
        for size in filter(None, sizes):
            own = rows[first : first + size]
            first += size
            table = {
                "audio": [{"bytes": row["content"], "path": f"{row['key']}.flac"} for row in own],
                "speaker": [row["speaker"] for row in own],
                "key": [row["key"] for row in own],
                "duration": [row["samples"] / RATE for row in own],
                "samples": [row["samples"] for row in own],
            }
            writer.write_table(pa.table(table, schema=schema), row_group_size=max(size, 1))
    return as_shard(folder, name, rows, [size for size in sizes if size])


def write_tar(folder: Path, name: str, rows: list[dict], sizes: list[int]) -> Shard:
    index: dict[str, list] = {column: [] for column in ("key", "speaker", "duration", "samples", "offset", "size")}
    with tarfile.open(folder / name, "w") as tar:
        for row in rows:
            facts = {"speaker": row["speaker"], "duration": row["samples"] / RATE, "samples": row["samples"]}
            for suffix, content in ((".flac", row["content"]), (".json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(row["key"] + suffix)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                if suffix == ".flac":
                    values = (row["key"], *facts.values(), tar.offset - -(-len(content) // 512) * 512, len(content))
                    for column, value in zip(index, values, strict=True):
                        index[column].append(value)
    suffixes = {"schema": 1, "suffix": [".flac"] * len(rows)}
    (folder / index_name(name)).write_text(json.dumps(index | suffixes))
    return as_shard(folder, name, rows, [], index_name(name))


def as_shard(folder: Path, name: str, rows: list[dict], sizes: list[int], index: str | None = None) -> Shard:
    content = (folder / name).read_bytes()
    seconds = sum(row["samples"] for row in rows) / RATE
    return Shard(
        name, len(rows), sizes, len(content), hashlib.sha256(content).hexdigest(), seconds, index, index and ""
    )
