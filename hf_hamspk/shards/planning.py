"""Assign utterances to shards before the first shard is made, so that an interrupted run can be resumed."""

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

from ..audio_hamspk import SHORTEST_SECONDS, InputError, MissingDecoderError, choose_channel
from ..data.audio import SAMPLING_RATE
from ..files.recordings import AUDIO_SUFFIXES, count_suffixes, describe_ignored
from ..files.same import MOST_COMPARED, describe_shared, find_shared
from ..folders.errors import explain_damage
from ..folders.writing import write_atomically
from .archives import ArchiveError
from .encoding import OPUS_RATES, encode_member
from .listing import LAYOUTS, Container, Listing, MemberReader, differences, digest, name_utterances, strings
from .manifest import CODECS, FORMATS, RESTART_ADVICE, even_shard_count

PROGRESS_NAME = ".progress"
"""Name of the folder in the output that contains the state of an unfinished run. It is removed when the run ends."""
PLAN_NAME, TABLE_NAME = "plan.json", "plan.arrow"

FILES_NAMED = 3
"""Number of files that an error message names as examples."""

PROBED = 48
"""Number of utterances that are encoded to estimate the size of the corpus. The error is usually below 10 per cent."""


@dataclass(frozen=True)
class PrepareOptions:
    """Options for making shards. All options are part of the fingerprint of the manifest.

    Attributes:
        format: "parquet" or "webdataset".
        codec: "flac" (16 bit, lossless for 16-bit sources), "opus" (lossy, a fifth of the size) or "source" (files are
            kept unchanged and only decoded to check them).
        sampling_rate: sampling rate of the audio in the shards, in Hz.
        layout: one of `LAYOUTS`, or None to recognise the layout.
        speaker_level: level of the folder that names the speaker in the layout "folders", counted from 1.
        audio_column: audio column of a table or a data set. None selects the usual one of the format (see
            `files.corpora`), such as "path" in a CSV file, and the only audio column of a data set.
        speaker_column: speaker column of a table or a data set. None selects the usual one of the format, such as
            "speaker_id" in a CSV file, and in a data set the first name in `files.corpora.SPEAKER_COLUMNS` that exists.
        audio_root: folder that the paths in a list are relative to. None uses the folder of the list.
        split: name of the split of a data set.
        speakers: names of the speakers to keep; None keeps all.
        shards: number of shards. None derives it from `shard_bytes` with `manifest.even_shard_count`.
        shard_bytes: target size of a shard in bytes.
        rows_per_group: number of utterances in a row group of Parquet, the smallest unit that a reader fetches.
        min_duration: shortest duration in seconds; shorter files are left out.
        licence: licence of the source, which is written into the manifest.
        seed: random seed of the order of the utterances.
        channel: channel of the recordings to keep; see `read_sound`. None averages all channels.

    Raises:
        ValueError: an option is out of range.
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
    channel: str | int | None = None

    def __post_init__(self) -> None:
        choose_channel(None, self.channel)
        if self.channel is not None and self.codec == "source":
            raise ValueError(
                f'codec "source" copies files unchanged, so it cannot keep only the channel {self.channel!r}. Use the '
                "codec flac or opus."
            )
        for name, value, known in (("format", self.format, FORMATS), ("codec", self.codec, CODECS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.codec == "opus" and self.sampling_rate not in OPUS_RATES:
            raise ValueError(f"sampling_rate must be one of {OPUS_RATES} for Opus, got {self.sampling_rate}")
        counts = (self.sampling_rate, self.speaker_level, self.shard_bytes, self.rows_per_group)
        if min(counts) < 1 or (self.shards is not None and self.shards < 1) or self.seed < 0:
            raise ValueError(
                "sampling_rate, speaker_level, shard_bytes, rows_per_group and shards must be at least 1, and seed at "
                f"least 0, got {', '.join(map(str, counts))}, {self.shards} and {self.seed}, in this order"
            )
        if self.min_duration < SHORTEST_SECONDS:
            raise ValueError(f"min_duration must be at least {SHORTEST_SECONDS} s, got {self.min_duration}")


@dataclass(frozen=True)
class Plan:
    """Assignment of the utterances to shards, made before the first shard.

    Attributes:
        table: one row per utterance in the order of the shards, see `listing.LISTING_SCHEMA`.
        containers: folders and archives that contain the utterances.
        shards: number of shards.
        source: description of the source for the manifest.
        fingerprint: digest of the source and the options.
        options: options of the preparation, see `PrepareOptions`.
        refused: path and reason of each file that was left out before the first shard was made.
    """

    table: pa.Table
    containers: list[Container]
    shards: int
    source: str
    fingerprint: str
    options: PrepareOptions
    refused: list[tuple[str, str]]

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first row of a shard, and the row after its last. Shards differ by at most one row in size."""
        total = len(self.table)
        return shard * total // self.shards, (shard + 1) * total // self.shards

    def size(self, shard: int) -> int:
        """Return the number of rows of a shard."""
        start, stop = self.bounds(shard)
        return stop - start

    def file_name(self, row: dict[str, Any]) -> str:
        """Return the name of the file of a row, for messages and `unreadable.csv`."""
        return self.containers[row["container"]].file_name(row["name"])


@dataclass(frozen=True)
class Survey:
    """Sorted utterances of a listing, and the fingerprint of the preparation.

    Attributes:
        table: utterances of the speakers to keep, sorted by key, see `listing.LISTING_SCHEMA`.
        refused: path and reason of each file that cannot be used.
        fingerprint: hexadecimal digest of the utterances, the streams and the options.
        listing: listing that contains the utterances.
    """

    table: pa.Table
    refused: list[tuple[str, str]]
    fingerprint: str
    listing: Listing


def survey(listing: Listing, options: PrepareOptions, streams: Sequence[str] = ()) -> Survey:
    """Sort the utterances of a listing, keep the requested speakers, and compute the fingerprint.

    Args:
        listing: utterances that were found.
        options: options of the preparation, see `PrepareOptions`.
        streams: identities of the data sets that must be copied before their rows can be listed.
    """
    table, refused = name_utterances(listing, options.layout, options.speaker_level)
    if options.speakers is not None:
        wanted = set(options.speakers)
        table = table.filter(pa.array([speaker in wanted for speaker in strings(table, "speaker")], pa.bool_()))
    total = hashlib.sha256(digest(table).encode())
    facts = dataclasses.asdict(options)
    if facts["channel"] is None:
        # Fingerprints of shards that were made before this option existed remain valid.
        del facts["channel"]
    total.update(json.dumps([*streams, facts], sort_keys=True).encode())
    return Survey(table, refused, total.hexdigest(), listing)


def make_plan(found: Survey, options: PrepareOptions, source: str, fingerprint: str) -> Plan:
    """Shuffle the utterances, choose the number of shards, and return the plan.

    Args:
        found: utterances of all sources, see `Survey`.
        options: options of the preparation, see `PrepareOptions`.
        source: description of the source for the manifest.
        fingerprint: digest of the source and the options.

    Raises:
        ValueError: the source has no utterances, only one speaker, or fewer utterances than requested shards.
    """
    _check_survey(found, source)
    order = np.random.default_rng(options.seed).permutation(len(found.table))
    table = found.table.take(pa.array(order)).combine_chunks()
    plan = Plan(table, found.listing.containers, 1, source, fingerprint, options, found.refused)
    count = options.shards
    if count is None:
        count = even_shard_count(_mean_size(plan) * len(table) / options.shard_bytes, len(table))
    if count > len(table):
        raise ValueError(
            f"{count} shards were requested, but the source has only {len(table)} utterances; request fewer (--shards)"
        )
    return dataclasses.replace(plan, shards=count)


def survey_remarks(found: Survey) -> list[str]:
    """Return sentences about files that were not read and about recordings that occur under two speakers."""
    lines = describe_ignored(found.listing.ignored)
    # In larger corpora, the names would take too much memory.
    if len(found.table) <= MOST_COMPARED:
        paths, speakers = [], []
        for row in found.table.select(["container", "name", "speaker"]).to_pylist():
            container = found.listing.containers[row["container"]]
            if container.kind == "folder":
                paths.append(os.path.join(container.paths[0], row["name"]))
                speakers.append(row["speaker"])
        lines += describe_shared(find_shared(paths, speakers), FILES_NAMED)
    return lines


def _check_survey(found: Survey, source: str) -> None:
    table = found.table
    reasons = "; ".join(f"{path}: {reason}" for path, reason in found.refused[:FILES_NAMED])
    if not len(table):
        others = count_suffixes(found.listing.ignored)
        raise ValueError(
            f"no utterance in {source}: {len(found.refused)} audio files cannot be used"
            f"{f' ({reasons})' if reasons else ''}; other files: {others if others else 'none'}; "
            f"the names of audio files must end in {', '.join(AUDIO_SUFFIXES)}"
        )
    speakers = table["speaker"].unique().to_pylist()
    if len(speakers) < 2:
        raise ValueError(
            f"{source} has only the speaker {speakers[0]!r} in {len(table)} utterances, but at least 2 speakers are "
            "needed; if this name is not a speaker, set the level of the speaker's folder with --speaker-level, or "
            "use a CSV file" + (f". {len(found.refused)} files cannot be used ({reasons})" if found.refused else "")
        )


def _mean_size(plan: Plan) -> float:
    """Return the mean size in bytes of an encoded utterance, estimated from the first utterances of the plan.

    If none of them can be read, return the mean size of their files in the source.
    """
    sizes = []
    rows = plan.table.slice(0, PROBED).to_pylist()
    options = plan.options
    with MemberReader(plan.containers) as reader:
        for row in rows:
            try:
                kind = options.codec, options.sampling_rate, options.min_duration, options.channel
                encoded = encode_member(reader, row, *kind)
            except MissingDecoderError:
                raise
            except (InputError, ArchiveError, OSError):
                continue
            sizes.append(len(encoded.content))
    return float(np.mean(sizes)) if sizes else float(np.mean([row["size"] for row in rows]))


def save_plan(plan: Plan, folder: Path) -> None:
    """Write a plan to the progress folder. `plan.json` is written last, so if it exists, the plan is complete."""

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
    """Read a plan from the progress folder. Its table stays on disk and is mapped into memory.

    Raises:
        ValueError: the plan or its table is damaged.
    """
    with explain_damage(Path(folder) / PLAN_NAME, RESTART_ADVICE):
        return _load_plan(folder)


def _load_plan(folder: str | os.PathLike[str]) -> Plan:
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
    """Check that an unfinished plan was made from the same source with the same options.

    Raises:
        ValueError: the source or the options differ; the message names the differences.
    """
    # JSON turns tuples into lists, so both are converted before they are compared.
    old, new = (json.loads(json.dumps(dataclasses.asdict(each))) for each in (plan.options, options))
    changed = [f"{name} was {old[name]!r} and is {new[name]!r}" for name in old if old[name] != new[name]]
    cure = "use the same source and options as before, choose another output folder, or start over with --restart"
    if changed:
        raise ValueError(f"the preparation in {output} was started with other options: {'; '.join(changed)}; {cure}")
    if found.fingerprint != plan.fingerprint:
        added, lost, altered, names = differences(plan.table, found.table)
        raise ValueError(
            f"the source has changed since the preparation in {output} was started: {added} utterances were added, "
            f"{lost} are missing, {altered} are altered (such as {', '.join(names)}); {cure}"
        )


def describe_sources(sources: Sequence[str]) -> str:
    """Return the names of the sources for the manifest: complete URLs, but only the last part of local paths."""
    return ", ".join(source if "://" in source else Path(source).absolute().name for source in sources)
