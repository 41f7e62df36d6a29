"""Read and write `manifest.json`, which describes a folder of shards.

A prepared folder contains

- `shard-00000-of-00064.parquet` or `.tar`, ... : the utterances, in a random order that mixes the speakers over all
  shards. The shards have nearly the same number of utterances. A shard is empty if none of its files could be used.
- `shard-00000-of-00064.index.json` next to each tar: location of each member, for random access (see `TAR_INDEX`).
- `manifest.json`: the manifest. It is written last, so if it exists, the folder is complete.
- `unreadable.csv` (columns `path,reason`): the files of the source that were left out.

Parquet columns: `audio` (struct `bytes: binary, path: string`, which `datasets` reads as its `Audio`), `speaker`
(string, a name in `Manifest.speakers`), `key` (string, unique), `duration` (float64, seconds), `samples` (int64, at the
sampling rate of the stored audio). Rows are numbered consecutively over all row groups.

A tar has two members per utterance, in this order: `KEY.flac` (or `.opus`, or the suffix of the source) and `KEY.json`
with `{"speaker": ..., "duration": ..., "samples": ...}`.
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
"""Version number of the format of `manifest.json`. Files with another number cannot be read."""

RESTART_ADVICE = "run the command again with --restart"
"""Advice in errors about damaged files of the progress folder."""

MANIFEST_NAME = "manifest.json"
UNREADABLE_NAME = "unreadable.csv"
FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
"""Suffix of the shards in each format."""
CODECS = ("flac", "opus", "source")
TAR_INDEX = ("key", "speaker", "duration", "samples", "offset", "size", "suffix")
"""Columns of an index file, `{"schema": 1, "key": [...], ...}`, with one entry per utterance. `offset` and `size` give
the byte range of the audio in the tar, without the tar header. `suffix` includes the dot (".flac").
"""

FEW_SHARDS, SOME_SHARDS = 24, 96
"""Limits for rounding up the number of shards. It is rounded to a multiple of 8 up to 24 shards, of 24 up to 96 shards,
and of 48 for more shards.
"""


@dataclass(frozen=True)
class Shard:
    """Entry of the manifest for one shard.

    Attributes:
        file: name of the file in the folder; the URL of the file if `index_shards` made the manifest.
        rows: number of utterances; can be 0.
        row_groups: number of rows in each row group of a Parquet file, `rows` in total; empty for a tar.
        bytes: size of the file in bytes.
        sha256: SHA-256 hash of the file, hexadecimal; empty if `index_shards` made the manifest.
        seconds: total duration of the audio in seconds; 0 if `index_shards` made the manifest.
        index: name of the index file of a tar; None for Parquet.
        index_sha256: SHA-256 hash of the index file, hexadecimal; None for Parquet, empty if `index_shards` made the
            manifest.
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
    """Description of a folder of shards.

    Attributes:
        format: "parquet" or "webdataset".
        codec: "flac" or "opus"; "source" if the files of the source were stored unchanged.
        sampling_rate: sampling rate of the stored audio in Hz; None if the codec is "source", because files can differ.
        licence: licence of the source as the user gave it; empty if not given.
        source: description of the source.
        shards: the shards, in order.
        speakers: names of the speakers, sorted. The position in the list is the class label.
        speaker_utterances: number of utterances of each speaker, in the same order.
        utterances: number of utterances in all shards.
        seconds: total duration of the audio in seconds; 0 if `index_shards` made the manifest.
        unreadable: number of files that were left out and are listed in `unreadable.csv`.
        seed: random seed of the order of the utterances.
        fingerprint: hexadecimal digest of the source and the options. The same source and options give the same digest.
        columns: dictionary that maps "audio" and "speaker" to the names of these Parquet columns if `index_shards` made
            the manifest; otherwise empty, because the columns have the default names.
        schema: version number of the format.
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
        """Return the text of `manifest.json`."""
        return json.dumps({"schema": self.schema} | asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str = MANIFEST_NAME) -> "Manifest":
        """Parse and check the text of `manifest.json`.

        Raises:
            ValueError: the text is not a manifest, has another schema version, or contains counts that contradict one
                another.
        """
        try:
            values: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not JSON ({error}); prepare the folder again, or copy it again") from error
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != MANIFEST_SCHEMA:
            raise ValueError(
                f"{name} has schema {schema!r:.80}, expected {MANIFEST_SCHEMA}: it comes from another version of "
                "hf_hamspk or is not a manifest of shards; prepare the folder again"
            )
        try:
            shards = [Shard(**shard) for shard in values.pop("shards")]
            manifest = cls(shards=shards, **values)
            manifest._check(name)
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            reason = f"{error!s:.200}"
            raise ValueError(f"{name} is not a manifest of shards ({reason}); prepare the folder again") from error
        return manifest

    def _check(self, name: str) -> None:
        if self.format not in FORMATS or self.codec not in CODECS:
            raise ValueError(
                f"{name} has format {self.format!r:.80} and codec {self.codec!r:.80}; expected a format of "
                f"{', '.join(FORMATS)} and a codec of {', '.join(CODECS)}; prepare the folder again"
            )
        rows = sum(shard.rows for shard in self.shards)
        grouped = self.format != "parquet" or all(sum(shard.row_groups) == shard.rows for shard in self.shards)
        counted = self.utterances == rows == sum(self.speaker_utterances)
        if not (grouped and counted and len(self.speakers) == len(self.speaker_utterances)):
            raise ValueError(
                f"{name} contradicts itself: {self.utterances!s:.80} utterances, {rows} in the shards, "
                f"{sum(self.speaker_utterances)} by speaker; it was altered, so prepare the folder again"
            )


def load_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a local folder of shards.

    Raises:
        ValueError: the manifest does not exist or is invalid (see `Manifest.from_json`).
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"{path} not found: {folder} is not a folder of shards, or its preparation has not ended; "
            "make one with `hamspk prepare SOURCE OUTPUT`, or run the same command again to resume it"
        )
    return Manifest.from_json(path.read_bytes(), str(path))


def read_unreadable(folder: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the path and the reason of each file listed in `unreadable.csv`."""
    with open(Path(folder) / UNREADABLE_NAME, encoding="utf-8", newline="") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]


def format_unreadable(lines: Iterable[Sequence[str]]) -> str:
    """Return the text of `unreadable.csv` for pairs of path and reason."""
    rows: list[str] = []

    class Lines:
        @staticmethod
        def write(text: str) -> None:
            rows.append(text)

    csv.writer(Lines, lineterminator="\n").writerows([("path", "reason"), *lines])
    return "".join(rows)


def shard_name(index: int, count: int, container: str) -> str:
    """Return the file name of a shard, such as `shard-00003-of-00064.parquet`.

    Args:
        index: number of the shard, from 0.
        count: number of all shards.
        container: format of the shard, a key of `FORMATS`.
    """
    return f"shard-{index:05d}-of-{count:05d}{FORMATS[container]}"


def index_name(shard: str) -> str:
    """Return the name of the index file of a tar."""
    return f"{Path(shard).stem}.index.json"


def even_shard_count(wanted: float, utterances: int) -> int:
    """Round up the number of shards so that 2, 4 and 8 ranks get equal shares.

    With more than 24 shards, 3, 6 and 12 ranks also get equal shares; with more than 96 shards, also 16 ranks.

    Args:
        wanted: size of the corpus divided by the target size of a shard.
        utterances: number of utterances in the corpus, at least 1. The result is not larger than this number.
    """
    step = 48
    if wanted <= SOME_SHARDS:
        step = 8 if wanted <= FEW_SHARDS else 24
    count = step * max(1, math.ceil(wanted / step))
    # For a corpus of few utterances: the largest power of two that leaves no shard empty.
    return count if count <= utterances else 2 ** int(math.log2(utterances))
