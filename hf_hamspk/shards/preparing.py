"""Prepare a folder of shards from a source, and resume an interrupted preparation.

The order of the utterances and the number of shards are chosen before the first shard is made (see `planning`). Each
shard therefore depends only on this plan, and a preparation that was killed resumes with the missing shards. The
manifest is written last.

The table of utterances has about 150 bytes per utterance. It is a file that the worker processes map into memory. In
addition, each worker process keeps one row group and one decoded file in memory, however large the corpus is.
"""

import errno
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ..folders.ranks import check_rank, describe_missing, started_ranks
from ..folders.writing import remove_leftovers, write_atomically
from .listing import START_OVER
from .making import ShardRecord, load_record, record_path, run_workers
from .manifest import (
    MANIFEST_NAME,
    UNREADABLE_NAME,
    Manifest,
    format_unreadable,
    load_manifest,
)
from .owning import is_shard_file, lock_shards, lock_shards_of_rank, remove_progress, remove_shards, tidy_progress
from .planning import (
    FILES_NAMED,
    PLAN_NAME,
    PROGRESS_NAME,
    Plan,
    PrepareOptions,
    check_unchanged,
    describe_sources,
    load_plan,
    make_plan,
    save_plan,
    survey,
    survey_remarks,
)
from .sources import find_utterances
from .streams import copy_streams

logger = logging.getLogger(__name__)


def prepare(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: PrepareOptions | None = None,
    processes: int = 0,
    progress: bool = True,
    restart: bool = False,
) -> Manifest:
    """Write a corpus as a folder of shards.

    Files that cannot be used are left out and listed with the reason in `unreadable.csv`. The log counts the
    files that are not audio, by suffix, and warns about recordings that occur under two speakers. To resume a
    preparation that was interrupted, even by `kill -9`, call this function again with the same arguments.

    Args:
        sources: folders of audio files, zip or tar archives or their parts, lists of recordings, Parquet files, and
            folders or Hub repositories of the library `datasets`.
        output: folder for the shards. It is created if necessary. It must be empty or come from an earlier call.
        options: options of the shards, see `PrepareOptions`; None uses the defaults.
        processes: number of worker processes; 0 makes the shards in this process. With 1 or more, a script must call
            this function under `if __name__ == "__main__"`, because each worker process imports the script.
        progress: whether to show progress bars on stderr.
        restart: whether to remove the shards of an earlier preparation in `output` first.

    Returns:
        The manifest of the shards.

    Raises:
        ValueError: a source or an option cannot be used, or differs from the preparation that is resumed.
        OSError: the shards cannot be written, or worker processes were killed from outside several times.
        MissingDecoderError: a package for decoding is missing; install it and run the same command again.
    """
    output = Path(output)
    with lock_shards(output) as folder:
        plan = _begin(sources, output, options, progress, restart)
        if isinstance(plan, Manifest):
            remove_progress(output)
            return plan
        tidy_progress(folder)
        _make(plan, output, range(plan.shards), processes, progress)
        manifest = _finish(plan, output)
        remove_progress(output)
    return manifest


def plan_shards(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    options: PrepareOptions | None = None,
    progress: bool = True,
    restart: bool = False,
) -> int:
    """Write the plan of a preparation that several ranks carry out, and return the number of shards.

    A rank is a process on this machine or on another one. Call this function once. Then call `make_shards` once in
    each rank, and finally call `finish_shards` once. The shards and the manifest are the same, byte for byte, as those
    of `prepare`. All machines must see the sources and `output` under the same paths. Data sets of the library
    `datasets` are copied into `output` by this function.

    Args:
        sources: sources of the recordings, see `prepare`.
        output: folder for the shards, see `prepare`.
        options: options of the shards, see `PrepareOptions`; None uses the defaults.
        progress: whether to show progress bars on stderr.
        restart: whether to remove the shards of an earlier preparation in `output` first.

    Raises:
        ValueError: a source or an option cannot be used, differs from the earlier plan in `output`, or ranks are at
            work.
    """
    output = Path(output)
    with lock_shards(output) as folder:
        plan = _begin(sources, output, options, progress, restart)
        if isinstance(plan, Manifest):
            remove_progress(output)
            return len(plan.shards)
        tidy_progress(folder)
    return plan.shards


def make_shards(
    output: str | os.PathLike[str], rank: int, world_size: int, processes: int = 0, progress: bool = True
) -> int:
    """Make the shards `rank`, `rank + world_size`, ... of a plan, and return the number of shards that were made.

    Shards that an earlier call finished are kept. To resume after an interruption, even by `kill -9`, call this
    function again with the same arguments. After all ranks have ended, they can start again with another `world_size`.

    Args:
        output: folder for the shards, with the plan that `plan_shards` wrote.
        rank: number of the rank, from 0 to `world_size - 1`.
        world_size: number of ranks.
        processes: number of worker processes of this rank, see `prepare`.
        progress: whether to show a progress bar on stderr.

    Raises:
        ValueError: there is no plan, the rank is already at work, or other ranks use another number of ranks.
        OSError, MissingDecoderError: a shard cannot be made, see `prepare`.
    """
    output = Path(output)
    check_rank(rank, world_size)
    if _finished(output) is not None:
        return 0
    with lock_shards_of_rank(output, rank, world_size) as folder:
        plan = load_plan(folder)
        return _make(plan, output, range(rank, plan.shards, world_size), processes, progress)


def count_shards(output: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the number of shards of a plan, and how many of them are complete.

    Args:
        output: folder for the shards, see `plan_shards`.

    Raises:
        ValueError: there is no plan.
    """
    output = Path(output)
    manifest = _finished(output)
    if manifest is not None:
        return len(manifest.shards), len(manifest.shards)
    plan = load_plan(output / PROGRESS_NAME)
    return plan.shards, sum(load_record(output / PROGRESS_NAME, index) is not None for index in range(plan.shards))


def is_finished(output: str | os.PathLike[str]) -> bool:
    """Return whether a folder has the manifest of finished shards."""
    return (Path(output) / MANIFEST_NAME).is_file()


def finish_shards(output: str | os.PathLike[str]) -> Manifest:
    """Write the manifest of shards that ranks made, and return it.

    Args:
        output: folder for the shards, see `plan_shards`.

    Raises:
        ValueError: a rank has never started or was interrupted, a rank is at work, or there is no plan. The message
            names the ranks, and the commands that make the missing shards.
    """
    output = Path(output)
    manifest = _finished(output)
    if manifest is not None:
        return manifest
    with lock_shards(output) as folder:
        plan = load_plan(folder)
        missing = [index for index in range(plan.shards) if load_record(folder, index) is None]
        if missing:
            advice = describe_missing(started_ranks(folder), missing, plan.shards, "shards", f"hamspk prepare {output}")
            raise ValueError(
                f"{len(missing)} of the {plan.shards} shards of {output} are missing. {advice} Then finish again."
            )
        manifest = _finish(plan, output)
        # No rank is at work, so unfinished files are those of killed ranks, perhaps of other machines.
        remove_leftovers(output, is_shard_file, locked=True)
        remove_progress(output)
    return manifest


def _finished(output: Path) -> Manifest | None:
    """Return the manifest of a finished preparation; None if there is a plan that ranks carry out.

    Raises:
        ValueError: the folder contains neither a plan nor a manifest.
    """
    if (output / PROGRESS_NAME / PLAN_NAME).is_file():
        return None
    if is_finished(output):
        return load_manifest(output)
    raise ValueError(f"{output} contains no plan. Run `hamspk prepare SOURCE {output} --plan` first.")


def _begin(
    sources: Sequence[str | os.PathLike[str]],
    output: Path,
    options: PrepareOptions | None,
    progress: bool,
    restart: bool,
) -> Plan | Manifest:
    """Return the plan, or the manifest if the preparation is complete. The folder must be locked."""
    if restart:
        remove_shards(output)
    try:
        named = [os.fspath(source) for source in sources]
        return _plan(named, output, PrepareOptions() if options is None else options, progress)
    except BaseException:
        if not (output / PROGRESS_NAME / PLAN_NAME).exists():
            remove_progress(output)
        raise


def _make(plan: Plan, output: Path, shards: range, processes: int, progress: bool) -> int:
    """Make those of the given shards that are missing, and return their number."""
    folder = output / PROGRESS_NAME
    todo = [index for index in shards if load_record(folder, index) is None]
    total, left = (sum(map(plan.size, some)) for some in (shards, todo))
    bar = tqdm(total=total, initial=total - left, desc="preparing", unit="utt", smoothing=0.05, disable=not progress)
    with bar, _advice_where_full(output):
        run_workers(plan, output, folder, todo, processes, bar)
    return len(todo)


@contextmanager
def _advice_where_full(output: Path) -> Iterator[None]:
    """Context manager that adds advice to the error that is raised when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = (
            "finished shards are kept; free some space and run the same command again, or start over with --restart "
            "--codec opus"
        )
        raise OSError(error.errno, f"{os.strerror(error.errno)} ({advice})", str(output)) from error


def _plan(sources: list[str], output: Path, options: PrepareOptions, progress: bool) -> Plan | Manifest:
    """Return a new plan, the plan of an interrupted run, or the manifest of a finished run."""
    folder = output / PROGRESS_NAME
    listing, streams = find_utterances(sources, options)
    found = survey(listing, options, [stream.identity for stream in streams])
    for remark in survey_remarks(found):
        logger.warning("%s: %s", describe_sources(sources), remark)
    if is_finished(output):
        manifest = load_manifest(output)
        if found.fingerprint != manifest.fingerprint:
            raise ValueError(
                f"{output} contains shards of another source or with other options ({manifest.source}, "
                f"{manifest.format}, {manifest.codec}, {manifest.utterances} utterances), or files of the source were "
                "added, removed or altered since then; choose another folder, or replace the shards with --restart"
            )
        return manifest
    if (folder / PLAN_NAME).is_file():
        plan = load_plan(folder)
        check_unchanged(plan, found, options, output)
        return plan
    if streams:
        copy_streams(streams, listing, folder, found.fingerprint, progress)
    everything = survey(listing, options) if streams else found
    plan = make_plan(everything, options, describe_sources(sources), found.fingerprint)
    save_plan(plan, folder)
    return plan


def _finish(plan: Plan, output: Path) -> Manifest:
    """Collect the records of the shards, write the list of unreadable files, and then write the manifest."""
    folder = output / PROGRESS_NAME
    records = [load_record(folder, index) for index in range(plan.shards)]
    shards, unreadable = [], list(plan.refused)
    speakers: Counter[str] = Counter()
    for index, record in enumerate(records):
        if record is None or not _is_there(output, record):
            record_path(folder, index).unlink(missing_ok=True)
            raise OSError(
                f"shard {index} of {output} was removed or altered while other shards were made; run the same command "
                "again"
            )
        shards.append(record.shard)
        unreadable += record.unreadable
        speakers.update(record.speakers)
    options = plan.options
    if not speakers:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in unreadable[:FILES_NAMED])
        raise ValueError(
            f"all {len(unreadable)} files were left out, so there are no utterances ({reasons}). Correct the source or "
            f"the options, and {START_OVER}"
        )
    manifest = Manifest(
        format=options.format,
        codec=options.codec,
        sampling_rate=None if options.codec == "source" else options.sampling_rate,
        licence=options.licence,
        source=plan.source,
        shards=shards,
        speakers=sorted(speakers),
        speaker_utterances=[speakers[name] for name in sorted(speakers)],
        utterances=sum(shard.rows for shard in shards),
        seconds=sum(shard.seconds for shard in shards),
        unreadable=len(unreadable),
        seed=options.seed,
        fingerprint=plan.fingerprint,
    )
    for name, text in ((UNREADABLE_NAME, format_unreadable(unreadable)), (MANIFEST_NAME, manifest.to_json())):
        write_atomically(output / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    return manifest


def _is_there(output: Path, record: ShardRecord) -> bool:
    files = [record.shard.file] if record.shard.index is None else [record.shard.file, record.shard.index]
    return all((output / file).is_file() for file in files) and (
        (output / record.shard.file).stat().st_size == record.shard.bytes
    )
