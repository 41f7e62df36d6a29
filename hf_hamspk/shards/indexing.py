"""Write an index for shards that other projects made, without copying their audio.

With the index, Parquet files of `datasets` and WebDataset tars (members such as `KEY.m4a` and `KEY.cls`) can be
streamed like prepared shards. Indexing has three disadvantages: the recordings are not checked by decoding, the
utterances of a speaker can follow one another instead of being mixed, and m4a takes longer to decode than FLAC.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfApi
from tqdm import tqdm

from ..files.corpora import SPEAKER_COLUMNS
from ..files.recordings import AUDIO_SUFFIXES
from ..folders.writing import write_atomically
from .archives import ArchiveError, Member, Refused, group_samples, sample_key
from .manifest import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    UNREADABLE_NAME,
    Manifest,
    Shard,
    format_unreadable,
    index_name,
    load_manifest,
    shard_name,
)
from .owning import lock_shards, remove_progress
from .planning import PLAN_NAME, PROGRESS_NAME
from .reading import speaker_names
from .sources import HUB_PREFIX

AT_ONCE = 4
"""Number of shards that are read at the same time. Most of the time is spent waiting for a remote server."""


def index_shards(
    sources: Sequence[str],
    output: str | os.PathLike[str],
    audio_column: str | None = None,
    speaker_column: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    licence: str = "",
    progress: bool = True,
) -> Manifest:
    """Write a manifest of existing shards, and an index file for each tar. The shards are not copied.

    Only the footer and the speaker column of a Parquet file are read. A tar has no list of its members, so it is read
    completely, even over the network.

    Args:
        sources: Parquet files or tars, but not both. Each source is the path or URL of a file or folder that fsspec can
            read; `*` is a wildcard. A Hub repository `hf://datasets/user/name` is pinned to its current commit.
        output: folder for the manifest and the index files. Use it as `train_data` in a training recipe.
        audio_column: audio column of Parquet files. None selects "audio" or else the first column of bytes.
        speaker_column: speaker column of Parquet files. None selects the first name in `SPEAKER_COLUMNS` that exists.
        storage_options: options of the fsspec file system.
        licence: licence of the shards, which is written into the manifest.
        progress: whether to show a progress bar on stderr.

    Returns:
        The manifest of the shards.

    Raises:
        ValueError: the sources contain no Parquet files or tars, contain both, or contain no audio with speakers, or
            the output folder contains other files or prepared shards.
    """
    files = _find(sources, {} if storage_options is None else dict(storage_options))
    output = Path(output)
    with lock_shards(output):
        _check_no_shards(output)
        try:
            manifest, refused = _index_files(files, sources, output, (audio_column, speaker_column), licence, progress)
            text = format_unreadable(refused)
            write_atomically(output / UNREADABLE_NAME, lambda path: path.write_text(text, encoding="utf-8"))
            write_atomically(output / MANIFEST_NAME, lambda path: path.write_text(manifest.to_json(), encoding="utf-8"))
        finally:
            remove_progress(output)
    return manifest


def _check_no_shards(output: Path) -> None:
    """Raise ValueError if a folder contains prepared shards, whose manifest the index would replace."""
    if (output / MANIFEST_NAME).exists() and any(shard.sha256 for shard in load_manifest(output).shards):
        raise ValueError(f"{output} contains prepared shards; choose an empty or a new folder for the index")
    if (output / PROGRESS_NAME / PLAN_NAME).exists():
        raise ValueError(f"{output} contains an unfinished preparation; choose an empty or a new folder for the index")


def _index_files(
    files: Sequence[tuple[Any, str]],
    sources: Sequence[str],
    output: Path,
    wanted: tuple[str | None, str | None],
    licence: str,
    progress: bool,
) -> tuple[Manifest, list[tuple[str, str]]]:
    """Return the manifest of existing shards, and the path and reason of each recording that cannot be used."""
    container = "parquet" if files[0][1].endswith(".parquet") else "webdataset"
    speakers: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    columns: dict[str, str] = {}

    def index(numbered: tuple[int, tuple[Any, str]]) -> tuple[Shard, Counter[str], list[tuple[str, str]]]:
        number, (filesystem, path) = numbered
        if container == "webdataset":
            return _index_tar(filesystem, path, output, shard_name(number, len(files), container))
        found = _choose_columns(filesystem, path, *wanted)
        columns.update(found)
        return *_index_parquet(filesystem, path, found["speaker"]), []

    shards = []
    with ThreadPoolExecutor(AT_ONCE) as pool, tqdm(total=len(files), unit="shard", disable=not progress) as bar:
        for shard, own, bad in pool.map(index, enumerate(files)):
            shards.append(shard)
            speakers += own
            refused += bad
            bar.update()
    if not speakers:
        raise ValueError(
            f"no audio with a speaker in {len(files)} files from {', '.join(sources)}; each recording needs a speaker "
            "in a column of its Parquet file, or in a .cls, .spk or .json member of its tar"
        )
    names = sorted(speakers)
    manifest = Manifest(
        format=container,
        codec="source",
        sampling_rate=None,
        licence=licence,
        source=f"shards of other projects: {', '.join(sources)}",
        shards=shards,
        speakers=names,
        speaker_utterances=[speakers[name] for name in names],
        utterances=speakers.total(),
        seconds=0.0,
        unreadable=len(refused),
        columns=columns,
    )
    return manifest, refused


def _find(sources: Sequence[str], options: dict[str, Any]) -> list[tuple[Any, str]]:
    """Return the fsspec file system and the path of each shard in the sources."""
    files = []
    for source in sources:
        filesystem, path = fsspec.core.url_to_fs(_at_commit(source, options), **options)
        if "*" in path:
            found = sorted(filesystem.glob(path))
        elif path.endswith((".parquet", ".tar")):
            found = [path]
        else:
            found = sorted(name for name in filesystem.find(path) if name.endswith((".parquet", ".tar")))
        files += [(filesystem, name) for name in found]
    kinds = {path.rsplit(".", 1)[1] for _, path in files}
    if len(kinds) != 1:
        raise ValueError(
            f"expected either Parquet files or tars in {', '.join(sources)}, found "
            f"{' and '.join(sorted(kinds)) if kinds else 'none'}; narrow the sources down, for example with *.parquet"
        )
    return files


def _at_commit(source: str, options: dict[str, Any]) -> str:
    """Return the address of a Hub repository with its current commit, so that byte offsets in its files stay valid.

    Other addresses, and addresses with a commit, are returned unchanged.
    """
    user, _, rest = source.removeprefix(HUB_PREFIX).partition("/")
    name, slash, inner = rest.partition("/")
    if not source.startswith(HUB_PREFIX) or "@" in name:
        return source
    hub = HfApi(endpoint=options.get("endpoint"), token=options.get("token"))
    return f"{HUB_PREFIX}{user}/{name}@{hub.dataset_info(f'{user}/{name}').sha}{slash}{inner}"


def _address(filesystem: Any, path: str) -> str:
    """Return the URL of a file, with the absolute path if the file is local."""
    return (
        f"file://{os.path.abspath(path)}"
        if isinstance(filesystem, LocalFileSystem)
        else filesystem.unstrip_protocol(path)
    )


def _open_parquet(filesystem: Any, path: str) -> pq.ParquetFile:
    # Arrow requests only the bytes that it needs; reading ahead would also fetch audio.
    options = {} if isinstance(filesystem, LocalFileSystem) else {"cache_type": "none"}
    return pq.ParquetFile(filesystem.open(path, "rb", **options))


def _choose_columns(filesystem: Any, path: str, audio: str | None, speaker: str | None) -> dict[str, str]:
    with _open_parquet(filesystem, path) as file:
        schema = file.schema_arrow
    if audio is None:
        fitting = [field.name for field in schema if str(field.type).startswith(("struct<bytes: binary", "binary"))]
        audio = next(iter([name for name in fitting if name == "audio"] + fitting), None)
    if speaker is None:
        speaker = next((name for name in SPEAKER_COLUMNS if name in schema.names), None)
    if audio not in schema.names or speaker not in schema.names or audio is None or speaker is None:
        raise ValueError(
            f"{path} has the columns {', '.join(schema.names)}; select the audio column with --audio-column and the "
            "speaker column with --speaker-column"
        )
    return {"audio": audio, "speaker": speaker}


def _index_parquet(filesystem: Any, path: str, speaker: str) -> tuple[Shard, Counter[str]]:
    with _open_parquet(filesystem, path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        names = Counter(speaker_names(file.read(columns=[speaker], use_threads=False), speaker))
    size = int(filesystem.info(path)["size"])
    return Shard(_address(filesystem, path), sum(groups), groups, size, "", 0.0), names


def _index_tar(
    filesystem: Any, path: str, output: Path, name: str
) -> tuple[Shard, Counter[str], list[tuple[str, str]]]:
    address = _address(filesystem, path)
    refused: list[tuple[str, str]] = []

    def refuse(bad: Refused) -> None:
        refused.append((f"{address}/{bad.name}", bad.reason))

    def take(member: Member) -> Member | None:
        return member if member.name.lower().endswith(AUDIO_SUFFIXES) else None

    rows: list[dict[str, Any]] = []
    with filesystem.open(path, "rb") as file:
        try:
            for member, speaker in group_samples(file, refuse, take):
                if speaker is None:
                    refuse(Refused(member.name, "has no .cls, .spk or .json member that contains its speaker"))
                    continue
                key, suffix = sample_key(member.name)
                rows.append(
                    {"key": key, "speaker": speaker, "duration": 0.0, "samples": 0}
                    | {"offset": member.offset, "size": member.size, "suffix": suffix}
                )
        except ArchiveError as error:
            refused.append((address, f"{error}; only the members before this place are used"))
    columns = {column: [row[column] for row in rows] for column in (rows[0] if rows else ("key", "speaker"))}
    text = json.dumps({"schema": MANIFEST_SCHEMA} | columns, ensure_ascii=False)
    own = index_name(name)
    write_atomically(output / own, lambda target: target.write_text(text, encoding="utf-8"))
    size = int(filesystem.info(path)["size"])
    return Shard(address, len(rows), [], size, "", 0.0, own, ""), Counter(row["speaker"] for row in rows), refused
