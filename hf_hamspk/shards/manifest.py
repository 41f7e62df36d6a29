"""`manifest.json`: the description of a folder of shards, which writers and readers of shards share.

A prepared folder holds

- `shard-00000-of-00064.parquet` or `.tar`, ... : the utterances, speakers mixed over all shards in a seeded order.
  Every shard is there and whole, also one without rows. The number of rows differs by a few from shard to shard.
- `shard-00000-of-00064.index.json` beside each tar: place of each member, for random access (see `TAR_INDEX`).
- `manifest.json`: this. It is written last, so if it exists, the folder is complete.
- `unreadable.csv` (columns `path,reason`): the files of the source that were left out.

Parquet columns: `audio` (struct `bytes: binary, path: string`, which `datasets` takes for its `Audio`), `speaker`
(string, a name of `Manifest.speakers`), `key` (string, unique), `duration` (float64, seconds), `samples` (int64, at the
rate of the stored audio). Row `i` of the file is row `i` of its row groups laid end to end.

Members of a tar, two for each utterance, in this order: `KEY.flac` (or `.opus`, or the suffix of the source) and
`KEY.json` with `{"speaker": ..., "duration": ..., "samples": ...}`.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST_SCHEMA = 1
"""Of `manifest.json`; another number is refused."""

MANIFEST_NAME = "manifest.json"
UNREADABLE_NAME = "unreadable.csv"
FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
"""Container to the suffix of its shards."""
CODECS = ("flac", "opus", "source")
TAR_INDEX = ("key", "speaker", "duration", "samples", "offset", "size", "suffix")
"""Columns of an index file, `{"schema": 1, "key": [...], ...}`, one entry for each utterance: `offset` and `size` are
bytes of the audio itself (not of its tar header) in the tar, `suffix` has its dot (".flac")."""

FEW_SHARDS, SOME_SHARDS = 24, 96
"""Up to these counts a multiple of 8, and then of 24, is near enough; more shards are a multiple of 48."""


@dataclass(frozen=True)
class Shard:
    """One shard.

    Attributes:
        file: its name in the folder.
        rows: number of utterances; may be 0.
        row_groups: rows of each row group of a Parquet file, which add up to `rows`; empty for a tar.
        bytes: size of the file.
        sha256: of the file, hexadecimal.
        seconds: of audio.
        index: name of the index file of a tar, None for Parquet.
        index_sha256: of the index file.
    """

    file: str
    rows: int
    row_groups: list[int]
    bytes: int
    sha256: str
    seconds: float
    index: str | None = None
    index_sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A folder of shards.

    Attributes:
        format: "parquet" or "webdataset".
        codec: "flac", "opus", or "source" for the bytes of the source as they were.
        sampling_rate: of the stored audio, samples per second; None if the codec is "source" (files may differ).
        licence: of the source, as the user gave it; empty if not given.
        source: description of the source.
        shards: in order.
        speakers: names, sorted; the place in the list is the label.
        speaker_utterances: number of utterances of each, in the same order.
        utterances: number of all.
        seconds: of all audio.
        unreadable: number of files left out, the lines of `unreadable.csv`.
        seed: of the order of the utterances.
        fingerprint: of the source and the options, hexadecimal: the same again gives the same.
        columns: name of the Parquet column with the "audio" and the "speaker", of shards that others made and
            `index_shards` describes; empty for those named so.
        schema: of this file.
    """

    format: str
    codec: str
    sampling_rate: int | None
    licence: str
    source: str
    shards: list[Shard]
    speakers: list[str]
    speaker_utterances: list[int]
    utterances: int
    seconds: float
    unreadable: int
    seed: int = 0
    fingerprint: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    schema: int = field(default=MANIFEST_SCHEMA)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps({"schema": self.schema} | asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str = MANIFEST_NAME) -> "Manifest":
        """Read and check the text of `manifest.json`.

        Raises:
            ValueError: it is no manifest, one of another schema, or one that contradicts itself.
        """
        try:
            values: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{name} is not JSON ({error}); prepare the folder again, or copy it again") from error
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != MANIFEST_SCHEMA:
            raise ValueError(
                f"{name} has schema {schema!r}, expected {MANIFEST_SCHEMA}: it comes from another version of "
                "hf_hamspk or is not a manifest of shards; prepare the folder again"
            )
        try:
            shards = [Shard(**shard) for shard in values.pop("shards")]
            manifest = cls(shards=shards, **values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{name} is no manifest of shards ({error}); prepare the folder again") from error
        manifest._check(name)
        return manifest

    def _check(self, name: str) -> None:
        if self.format not in FORMATS or self.codec not in CODECS:
            raise ValueError(
                f"{name} has format {self.format!r} and codec {self.codec!r}, expected one of {', '.join(FORMATS)} and "
                f"one of {', '.join(CODECS)}; prepare the folder again"
            )
        rows = sum(shard.rows for shard in self.shards)
        grouped = self.format != "parquet" or all(sum(shard.row_groups) == shard.rows for shard in self.shards)
        counted = self.utterances == rows == sum(self.speaker_utterances)
        if not (grouped and counted and len(self.speakers) == len(self.speaker_utterances)):
            raise ValueError(
                f"{name} contradicts itself: {self.utterances} utterances, {rows} in the shards, "
                f"{sum(self.speaker_utterances)} by speaker; it was altered: prepare the folder again"
            )


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a local folder of shards.

    Raises:
        ValueError: there is none, or it cannot be used, see `Manifest.from_json`.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"there is no {path}: {folder} is not a folder of shards, or its preparation has not ended; "
            "`hamspk prepare SOURCE OUTPUT` makes one, the same command again continues it"
        )
    return Manifest.from_json(path.read_bytes(), str(path))


def read_unreadable(folder: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Path and reason of each file that was left out."""
    with open(Path(folder) / UNREADABLE_NAME, encoding="utf-8", newline="") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]


def format_unreadable(lines: Iterable[Sequence[str]]) -> str:
    """The text of `unreadable.csv` from pairs of path and reason."""
    rows: list[str] = []

    class Lines:
        @staticmethod
        def write(text: str) -> None:
            rows.append(text)

    csv.writer(Lines, lineterminator="\n").writerows([("path", "reason"), *lines])
    return "".join(rows)


def shard_name(index: int, count: int, container: str) -> str:
    """File name of a shard: `shard-00003-of-00064.parquet`.

    Args:
        index: from 0.
        count: of all shards.
        container: a key of `FORMATS`.
    """
    return f"shard-{index:05d}-of-{count:05d}{FORMATS[container]}"


def index_name(shard: str) -> str:
    """Name of the index file beside a tar."""
    return f"{Path(shard).stem}.index.json"


def even_shard_count(wanted: float, utterances: int) -> int:
    """A number of shards, at least `wanted`, that 2, 4 and 8 ranks (and, of many shards, 3, 6, 12 and 16) divide.

    Args:
        wanted: bytes of the corpus over bytes of a shard.
        utterances: in the corpus, at least 1; no more shards than these are made.
    """
    step = 48
    if wanted <= SOME_SHARDS:
        step = 8 if wanted <= FEW_SHARDS else 24
    count = step * max(1, math.ceil(wanted / step))
    # A corpus of a few utterances: the largest power of two that leaves no shard empty.
    return count if count <= utterances else 2 ** int(math.log2(utterances))
