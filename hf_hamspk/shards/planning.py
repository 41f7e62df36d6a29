"""Assigns utterances to shards before the first is made, so that an interrupted run can continue."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..audio_hamspk import SHORTEST_SECONDS, InputError, MissingDecoderError
from ..data.audio import AUDIO_SUFFIXES, SAMPLING_RATE
from .archives import ArchiveError
from .encoding import OPUS_RATES, encode_file
from .listing import LAYOUTS, Container, Listing, MemberReader, differences, digest, name_utterances, strings
from .manifest import CODECS, FORMATS, even_shard_count
from .writing import write_atomically

PROGRESS_NAME = ".progress"
"""Folder in the output with the state of an unfinished run; it is removed at the end."""
PLAN_NAME, TABLE_NAME = "plan.json", "plan.arrow"

FILES_NAMED = 3
"""Files that a message names."""

PROBED = 48
"""Utterances encoded to guess the size of the corpus: their mean is within some ten per cent of that of all."""


@dataclass(frozen=True)
class PrepareOptions:
    """How shards are made. All of it is part of their fingerprint.

    Attributes:
        format: "parquet" or "webdataset".
        codec: "flac" (16 bit, lossless for 16-bit sources), "opus" (a fifth of the size, lossy) or "source" (the files
            as they are, decoded only to check them).
        sampling_rate: of the audio in the shards, samples per second.
        layout: one of `LAYOUTS`, or None to recognise it.
        speaker_level: under "folders", which folder of a path is the speaker, from 1.
        audio_column: of a CSV file or a data set; None for "path", or the column of audio type.
        speaker_column: of a CSV file or a data set; None for "speaker_id", or the first customary one.
        audio_root: folder that the paths of a CSV file are relative to; None is the folder of the file.
        split: of a data set.
        speakers: speakers to keep; None keeps all.
        shards: how many; None takes the size from `shard_bytes` and rounds to a number that divides well.
        shard_bytes: wanted size of a shard.
        rows_per_group: utterances in a row group of Parquet, the least that a reader must fetch.
        min_duration: seconds; shorter files are left out.
        licence: of the source; written into the manifest.
        seed: of the order of the utterances.
    """

    format: str = "parquet"
    codec: str = "flac"
    sampling_rate: int = SAMPLING_RATE
    layout: str | None = None
    speaker_level: int = 1
    audio_column: str | None = None
    speaker_column: str | None = None
    audio_root: str | None = None
    split: str = "train"
    speakers: tuple[str, ...] | None = None
    shards: int | None = None
    shard_bytes: int = 256 * 2**20
    rows_per_group: int = 64
    min_duration: float = SHORTEST_SECONDS
    licence: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (("format", self.format, FORMATS), ("codec", self.codec, CODECS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.codec == "opus" and self.sampling_rate not in OPUS_RATES:
            raise ValueError(f"Opus has the sampling rates {OPUS_RATES}, got {self.sampling_rate}")
        counts = (self.sampling_rate, self.speaker_level, self.shard_bytes, self.rows_per_group)
        if min(counts) < 1 or (self.shards is not None and self.shards < 1) or self.seed < 0:
            raise ValueError(
                "sampling_rate, speaker_level, shard_bytes, rows_per_group and shards must be at least 1 and seed at "
                f"least 0, got {counts}, {self.shards} and {self.seed}"
            )
        if self.min_duration < SHORTEST_SECONDS:
            raise ValueError(f"min_duration must be at least {SHORTEST_SECONDS} s, got {self.min_duration}")


@dataclass(frozen=True)
class Plan:
    """The plan of a preparation.

    Attributes:
        table: a row for each utterance, in the order of the shards, see `listing.LISTING_SCHEMA`.
        containers: folders and archives that hold them.
        shards: number of shards.
        source: as the user named it.
        fingerprint: of source and options.
        options: as given.
        refused: path and reason of files that are left out from the start.
    """

    table: pa.Table
    containers: list[Container]
    shards: int
    source: str
    fingerprint: str
    options: PrepareOptions
    refused: list[tuple[str, str]]

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the one after its last; shards differ by one row at most."""
        total = len(self.table)
        return shard * total // self.shards, (shard + 1) * total // self.shards

    def file_name(self, row: dict[str, Any]) -> str:
        """What reports call the file of a row."""
        return self.containers[row["container"]].file_name(row["name"])


@dataclass(frozen=True)
class Survey:
    """A listing in order.

    Attributes:
        table: the utterances by key, those of unwanted speakers left out.
        refused: path and reason of files that are none.
        fingerprint: of the utterances, the streams and the options, hexadecimal.
        listing: that it was made from.
    """

    table: pa.Table
    refused: list[tuple[str, str]]
    fingerprint: str
    listing: Listing


def survey(listing: Listing, options: PrepareOptions, streams: Sequence[str] = ()) -> Survey:
    """Put a listing in order.

    Args:
        listing: the utterances found.
        options: see `PrepareOptions`.
        streams: identities of the sources that are copied before they can be listed.
    """
    table, refused = name_utterances(listing, options.layout, options.speaker_level)
    if options.speakers is not None:
        wanted = set(options.speakers)
        table = table.filter(pa.array([speaker in wanted for speaker in strings(table, "speaker")], pa.bool_()))
    total = hashlib.sha256(digest(table).encode())
    total.update(json.dumps([*streams, dataclasses.asdict(options)], sort_keys=True).encode())
    return Survey(table, refused, total.hexdigest(), listing)


def make_plan(found: Survey, options: PrepareOptions, source: str, fingerprint: str) -> Plan:
    """Order the utterances and settle the number of shards.

    Args:
        found: all utterances.
        options: see `PrepareOptions`.
        source: as the user named it.
        fingerprint: of source and options.

    Raises:
        ValueError: there are no utterances, only one speaker, or fewer utterances than shards were asked for.
    """
    _check_survey(found, source)
    order = np.random.default_rng(options.seed).permutation(len(found.table))
    table = found.table.take(pa.array(order)).combine_chunks()
    plan = Plan(table, found.listing.containers, 1, source, fingerprint, options, found.refused)
    count = options.shards
    if count is None:
        count = even_shard_count(_mean_size(plan) * len(table) / options.shard_bytes, len(table))
    if count > len(table):
        raise ValueError(f"{count} shards were asked for, but there are only {len(table)} utterances")
    return dataclasses.replace(plan, shards=count)


def _check_survey(found: Survey, source: str) -> None:
    table = found.table
    reasons = "; ".join(f"{path}: {reason}" for path, reason in found.refused[:FILES_NAMED])
    if not len(table):
        others = ", ".join(
            f"{count} {suffix if suffix else 'without an ending'}"
            for suffix, count in found.listing.ignored.most_common(FILES_NAMED)
        )
        raise ValueError(
            f"no utterance in {source}: {len(found.refused)} files were refused{f' ({reasons})' if reasons else ''}, "
            f"other files: {others if others else 'none'}; audio ends in {', '.join(AUDIO_SUFFIXES)}"
        )
    speakers = table["speaker"].unique().to_pylist()
    if len(speakers) < 2:
        raise ValueError(
            f"{source} has the one speaker {speakers[0]!r} in {len(table)} utterances, at least 2 are needed; if that "
            "is no speaker, say which folder of a path is (--speaker-level), or give a CSV file"
            + (f". {len(found.refused)} files were refused ({reasons})" if found.refused else "")
        )


def _mean_size(plan: Plan) -> float:
    """Mean bytes of an utterance in a shard, from a few of them; of the source if none can be read."""
    sizes = []
    rows = plan.table.slice(0, PROBED).to_pylist()
    options = plan.options
    with MemberReader(plan.containers) as reader:
        for row in rows:
            try:
                content = reader.read(row)
                encoded = encode_file(content, row["name"], options.codec, options.sampling_rate, options.min_duration)
            except MissingDecoderError:
                raise
            except (InputError, ArchiveError, OSError):
                continue
            sizes.append(len(encoded.content))
    return float(np.mean(sizes)) if sizes else float(np.mean([row["size"] for row in rows]))


def save_plan(plan: Plan, folder: Path) -> None:
    """Write a plan below the progress folder; `plan.json` last."""

    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, plan.table.schema) as writer:
            writer.write_table(plan.table, max_chunksize=2**16)

    write_atomically(folder / TABLE_NAME, write)
    facts = {
        "containers": [dataclasses.asdict(container) for container in plan.containers],
        "shards": plan.shards,
        "source": plan.source,
        "fingerprint": plan.fingerprint,
        "options": dataclasses.asdict(plan.options),
        "refused": plan.refused,
    }
    text = json.dumps(facts, indent=1)
    write_atomically(folder / PLAN_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def load_plan(folder: str | os.PathLike[str]) -> Plan:
    """Read a plan; its table stays on disk and is mapped into memory."""
    facts = json.loads((Path(folder) / PLAN_NAME).read_text(encoding="utf-8"))
    with pa.memory_map(str(Path(folder) / TABLE_NAME)) as source:
        table = pa.ipc.open_file(source).read_all()
    options = facts.pop("options")
    if options["speakers"] is not None:
        options["speakers"] = tuple(options["speakers"])
    containers = [Container(**container) for container in facts.pop("containers")]
    refused = [(path, reason) for path, reason in facts.pop("refused")]
    return Plan(table, containers, options=PrepareOptions(**options), refused=refused, **facts)


def check_unchanged(plan: Plan, found: Survey, options: PrepareOptions, output: Path) -> None:
    """Refuse to continue a plan that was made from another source or with other options.

    Raises:
        ValueError: with the differences.
    """
    # Through JSON, which knows no tuples.
    old, new = (json.loads(json.dumps(dataclasses.asdict(each))) for each in (plan.options, options))
    changed = [f"{name} was {old[name]!r} and is {new[name]!r}" for name in old if old[name] != new[name]]
    cure = f"give the same again, or another folder than {output}, or start over (--restart)"
    if changed:
        raise ValueError(f"{output} was begun with other options: {'; '.join(changed)}; {cure}")
    if found.fingerprint != plan.fingerprint:
        added, lost, altered, names = differences(plan.table, found.table)
        raise ValueError(
            f"the source has changed since {output} was begun: {added} utterances were added, {lost} are missing, "
            f"{altered} are altered (such as {', '.join(names)}); {cure}"
        )


def describe_sources(sources: Sequence[str]) -> str:
    """What the manifest calls the source: names without the folders of this machine."""
    return ", ".join(source if "://" in source else Path(source).absolute().name for source in sources)
