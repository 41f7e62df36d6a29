"""Check that the files, rows and samples of a folder of shards agree with its manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..audio_hamspk import InputError
from ..data.audio import read_utterance
from ..folders.errors import DAMAGED
from ..folders.writing import hash_file
from .archives import ArchiveError, Member, Refused, list_tar, read_forwards
from .making import worker_pool
from .manifest import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    TAR_INDEX,
    UNREADABLE_NAME,
    Manifest,
    Shard,
    load_manifest,
    read_unreadable,
)

DURATION_TOLERANCE = 1e-6
"""Largest accepted difference in seconds between a declared and a measured duration."""

NAMED_PROBLEMS = 20
"""Number of faults of one shard that are described; further faults are only counted."""


@dataclass(frozen=True)
class ShardFindings:
    """Content and faults of one shard.

    Attributes:
        problems: one sentence per fault; empty if the shard is correct.
        keys: 64-bit hash of each key, `(rows,)` uint64.
        speakers: number of utterances of each speaker.
    """

    problems: list[str]
    keys: np.ndarray
    speakers: dict[str, int]


def verify_shards(folder: str, processes: int = 0, progress: bool = True) -> list[str]:
    """Read a folder of shards completely, and check its hashes, counts, keys, speakers and samples.

    Args:
        folder: folder that `prepare` wrote.
        processes: number of worker processes; 0 checks the shards in this process.
        progress: whether to show a progress bar on stderr.

    Returns:
        One sentence per fault; empty if the folder is correct.

    Raises:
        ValueError: the manifest does not exist or is invalid (see `Manifest.from_json`).
    """
    manifest = load_manifest(folder)
    problems, keys = [], []
    speakers: Counter[str] = Counter()
    with tqdm(total=manifest.utterances, desc="verifying", unit="utt", disable=not progress) as bar:
        for shard, findings in zip(manifest.shards, _all_findings(folder, manifest, processes), strict=True):
            hidden = len(findings.problems) - NAMED_PROBLEMS
            problems += [f"{shard.file}: {problem}" for problem in findings.problems[:NAMED_PROBLEMS]]
            problems += [f"{shard.file}: {hidden} further faults"] if hidden > 0 else []
            keys.append(findings.keys)
            speakers.update(findings.speakers)
            bar.update(shard.rows)
    total = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
    if (twice := len(total) - len(np.unique(total))) > 0:
        problems.append(f"{twice} keys occur more than once")
    listed = dict(zip(manifest.speakers, manifest.speaker_utterances, strict=True))
    if dict(speakers) != listed:
        wrong = sorted(name for name in speakers.keys() | listed.keys() if speakers[name] != listed.get(name, 0))
        problems.append(
            f"{len(wrong)} speakers have a different number of utterances than {MANIFEST_NAME} declares, "
            f"the first is {wrong[0]}"
        )
    return problems + _leftover_problems(Path(folder), manifest)


def _all_findings(folder: str, manifest: Manifest, processes: int) -> Iterator[ShardFindings]:
    count = len(manifest.shards)
    if processes == 0:
        yield from (verify_shard(folder, manifest, index) for index in range(count))
        return
    with worker_pool(min(processes, count)) as pool:
        futures = [pool.submit(verify_shard, folder, None, index) for index in range(count)]
        for future in futures:
            yield future.result()


def _leftover_problems(folder: Path, manifest: Manifest) -> list[str]:
    problems = []
    try:
        listed = len(read_unreadable(folder))
    except (OSError, KeyError, ValueError) as error:
        problems.append(f"{UNREADABLE_NAME} cannot be read ({error})")
    else:
        if listed != manifest.unreadable:
            problems.append(
                f"{UNREADABLE_NAME} lists {listed} files, but {MANIFEST_NAME} declares {manifest.unreadable}"
            )
    known = {shard.file for shard in manifest.shards} | {shard.index for shard in manifest.shards}
    foreign = sorted(path.name for path in folder.glob("shard-*") if path.name not in known)
    return problems + [f"{name} is not listed in {MANIFEST_NAME}" for name in foreign]


def verify_shard(folder: str, manifest: Manifest | None, index: int) -> ShardFindings:
    """Read one shard completely and check it against the manifest.

    Args:
        folder: folder of the shards.
        manifest: manifest of the folder. None reads it from disk, which is faster than sending it to a worker.
        index: number of the shard.
    """
    manifest = load_manifest(folder) if manifest is None else manifest
    shard = manifest.shards[index]
    path = Path(folder) / shard.file
    problems: list[str] = []
    speakers: Counter[str] = Counter()
    keys = []
    seconds = 0.0
    if not path.is_file():
        return ShardFindings(["does not exist"], np.zeros(0, np.uint64), {})
    if (size := path.stat().st_size) != shard.bytes:
        problems.append(f"should have {shard.bytes} bytes, but has {size}")
    if hash_file(path) != shard.sha256:
        problems.append("its SHA-256 differs from the manifest")
    try:
        rows = (
            _parquet_rows(path, shard, problems) if manifest.format == "parquet" else _tar_rows(path, shard, problems)
        )
        for row in rows:
            keys.append(hash_key(row["key"]))
            speakers[row["speaker"]] += 1
            seconds += row["duration"]
            problems += _row_problems(row, manifest.sampling_rate)
    except (ArchiveError, OSError, pa.ArrowException, ValueError, KeyError) as error:
        problems.append(f"cannot be read to its end ({error})")
    if len(keys) != shard.rows:
        problems.append(f"should contain {shard.rows} utterances, but contains {len(keys)}")
    if abs(seconds - shard.seconds) > DURATION_TOLERANCE * max(1, len(keys)):
        problems.append(f"should contain {shard.seconds:.3f} s of audio, but contains {seconds:.3f} s")
    return ShardFindings(problems, np.array(keys, np.uint64), dict(speakers))


def hash_key(key: str) -> int:
    """Return a 64-bit hash of a key. The probability that any of ten million keys share a hash is 3e-6."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _row_problems(row: dict[str, Any], sampling_rate: int | None) -> Iterator[str]:
    try:
        sound = read_utterance(row["content"], None, row["key"])
    except InputError as error:
        yield str(error)
        return
    if sampling_rate is not None and sound.sampling_rate != sampling_rate:
        yield f"{row['key']}: has a sampling rate of {sound.sampling_rate} Hz, expected {sampling_rate} Hz"
    if len(sound.waveform) != row["samples"]:
        yield f"{row['key']}: has {len(sound.waveform)} samples, expected {row['samples']}"
    if abs(sound.duration - row["duration"]) > DURATION_TOLERANCE:
        yield f"{row['key']}: lasts {sound.duration:.6f} s, expected {row['duration']:.6f} s"


def _parquet_rows(path: Path, shard: Shard, problems: list[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        if groups != shard.row_groups:
            problems.append(f"has row groups of {groups[:8]}... utterances, expected {shard.row_groups[:8]}...")
        for number in range(len(groups)):
            for row in file.read_row_group(number).to_pylist():
                yield row | {"content": row["audio"]["bytes"]}


def _tar_rows(path: Path, shard: Shard, problems: list[str]) -> Iterator[dict[str, Any]]:
    index = _read_index(path, shard, problems)
    places = dict(zip(index["key"], zip(index["offset"], index["size"], strict=True), strict=True))
    waiting: dict[str, Member] = {}
    with open(path, "rb") as file:
        for member in list_tar(file):
            if isinstance(member, Refused):
                problems.append(f"{member.name}: {member.reason}")
                continue
            key = member.name.rsplit(".", 1)[0]
            if not member.name.endswith(".json"):
                waiting[key] = member
                continue
            audio = waiting.pop(key, None)
            try:
                facts = dict(json.loads(read_forwards(file, member)))
            except DAMAGED as error:
                problems.append(f"{member.name} is not a JSON object ({type(error).__name__})")
                continue
            if audio is None:
                problems.append(f"{member.name}: its audio is missing")
                continue
            if places.get(key) != (audio.offset, audio.size):
                problems.append(
                    f"{key}: the index declares (offset, size) {places.get(key)}, but the tar has "
                    f"{(audio.offset, audio.size)}"
                )
            yield facts | {"key": key, "content": read_forwards(file, audio)}
    problems += [f"{key}: its .json member is missing" for key in waiting]


def _read_index(path: Path, shard: Shard, problems: list[str]) -> dict[str, list]:
    """Return the index of a tar. If it cannot be used, add the reason to `problems` and return empty columns."""
    file = path.with_name(str(shard.index))
    try:
        content = file.read_bytes()
        index = json.loads(content)
        if (
            index["schema"] == MANIFEST_SCHEMA
            and hash_file(file) == shard.index_sha256
            and set(TAR_INDEX) <= set(index)
        ):
            return index
        problems.append(f"{file.name} is not the index that was written with the tar")
    except (OSError, *DAMAGED) as error:
        problems.append(f"{file.name} cannot be read ({error})")
    return {name: [] for name in TAR_INDEX}
