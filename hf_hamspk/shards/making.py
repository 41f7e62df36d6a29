"""Make shards in several worker processes, and find the files that crash their decoder."""

import dataclasses
import json
import multiprocessing
import os
import signal
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..audio_hamspk import InputError, MissingDecoderError
from ..folders.errors import DAMAGED
from ..folders.writing import write_atomically
from .archives import ArchiveError
from .encoding import Encoded, encode_member
from .listing import MemberReader
from .manifest import Shard, shard_name
from .planning import Plan, load_plan
from .writing import ParquetShard, ShardWriter, TarShard

CRASH_REASON = "the decoder crashed or ran out of memory; convert the file or leave it out"

_PLACE = struct.Struct("<2q")


POLL_SECONDS = 0.5
"""Seconds between two updates of the progress bar."""

MAX_BREAKS = 3
"""Number of times in a row that worker processes can be killed from outside until the preparation stops with an error.

A common cause is too little memory.
"""


def record_path(progress: Path, shard: int) -> Path:
    """Return the path of the file that records a finished shard."""
    return progress / f"shard-{shard:05d}.json"


def place_path(progress: Path, shard: int) -> Path:
    """Return the path of the file in which a worker notes its progress in a shard."""
    return progress / f"at-{shard:05d}"


def read_place(progress: Path, shard: int) -> tuple[int, int] | None:
    """Return the number of finished rows of a shard, and the row of the plan that is being decoded (-1 if none).

    The result is None if the shard was not started.
    """
    try:
        return _PLACE.unpack(place_path(progress, shard).read_bytes())
    except (OSError, struct.error):
        return None


def crashed_path(progress: Path, shard: int) -> Path:
    """Return the path of the file that lists the rows of a shard whose decoding ended a worker process."""
    return progress / f"crashed-{shard:05d}.json"


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """Result of making one shard of the plan.

    Attributes:
        shard: entry of the shard for the manifest.
        speakers: number of utterances of each speaker.
        unreadable: path and reason of each file that was left out, in order.
    """

    shard: Shard
    speakers: dict[str, int]
    unreadable: list[tuple[str, str]]


def load_record(progress: Path, shard: int) -> ShardRecord | None:
    """Return the record of a finished shard; None if it is not finished or its record is damaged."""
    try:
        facts = json.loads(record_path(progress, shard).read_text(encoding="utf-8"))
        unreadable = [(path, reason) for path, reason in facts["unreadable"]]
        return ShardRecord(Shard(**facts["shard"]), facts["speakers"], unreadable)
    except (FileNotFoundError, *DAMAGED):
        # The shard is made again.
        return None


def make_shard(output: str, progress: str, index: int) -> int:
    """Make one shard, record it in the progress folder, and return `index`.

    The shard and its record get their final names only when they are complete.

    Args:
        output: folder for the shards.
        progress: progress folder, which contains the plan.
        index: number of the shard.

    Raises:
        SourceChanged: a file of the source is missing or was altered.
        MissingDecoderError: a package for decoding is missing.
        OSError: the shard cannot be written.
    """
    plan = load_plan(progress)
    name = shard_name(index, plan.shards, plan.options.format)
    temporary = Path(progress) / f"{name}.{os.getpid()}.tmp"
    try:
        writer = open_writer(plan, Path(output) / name, temporary)
        record = _fill_shard(plan, Path(progress), index, writer)
    except OSError:
        # An unfinished shard would keep the space that the user has to free if the disk is full.
        temporary.unlink(missing_ok=True)
        raise
    text = json.dumps(dataclasses.asdict(record), ensure_ascii=False)
    write_atomically(record_path(Path(progress), index), lambda path: path.write_text(text, encoding="utf-8"))
    return index


def _fill_shard(plan: Plan, progress: Path, index: int, writer: ShardWriter) -> ShardRecord:
    """Write the utterances of a shard, and return its record."""
    start, stop = plan.bounds(index)
    speakers: Counter[str] = Counter()
    unreadable = []
    crashed = read_crashed(progress, index)
    with MemberReader(plan.containers) as reader, _noting(progress, index) as note:
        for number, row in enumerate(plan.table.slice(start, stop - start).to_pylist()):
            note(number, start + number)
            result = CRASH_REASON if start + number in crashed else encode_row(plan, reader, row)
            note(number + 1, -1)
            if isinstance(result, str):
                unreadable.append((plan.file_name(row), result))
            else:
                writer.add(row["key"], row["speaker"], result)
                speakers[row["speaker"]] += 1
    return ShardRecord(writer.finish(), dict(speakers), unreadable)


def open_writer(plan: Plan, path: Path, temporary: Path) -> ShardWriter:
    """Return a writer for one shard in the format of the plan."""
    if plan.options.format == "webdataset":
        return TarShard(path, temporary)
    rate = None if plan.options.codec == "source" else plan.options.sampling_rate
    return ParquetShard(path, temporary, rate, plan.options.rows_per_group)


def encode_row(plan: Plan, reader: MemberReader, row: dict[str, Any]) -> Encoded | str:
    """Return the encoded audio of a row, or the reason why it is left out."""
    options = plan.options
    try:
        return encode_member(reader, row, options.codec, options.sampling_rate, options.min_duration, options.channel)
    except MissingDecoderError:
        raise
    except InputError as error:
        return error.reason
    except ArchiveError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error}); check the disk"
    except MemoryError:
        return "there is not enough memory to decode it; leave it out, or use fewer --processes"


def try_row(progress: str, row: int) -> int:
    """Decode one row of the plan and return its number. A file that crashes the decoder ends this process."""
    plan = load_plan(progress)
    with MemberReader(plan.containers) as reader:
        encode_row(plan, reader, plan.table.slice(row, 1).to_pylist()[0])
    return row


def read_crashed(progress: Path, shard: int) -> set[int]:
    """Return the rows of a shard whose decoding crashed a worker process; none if the list is missing or damaged."""
    try:
        return set(json.loads(crashed_path(progress, shard).read_text(encoding="utf-8")))
    except (FileNotFoundError, *DAMAGED):
        # Rows that crash a process are found again.
        return set()


@contextmanager
def _noting(progress: Path, shard: int) -> Iterator[Any]:
    """Context manager that provides a function `note(done, row)`, which saves the progress in a shard to a file.

    `done` is the number of finished rows of the shard, and `row` is the row of the plan that is being decoded. The
    progress bar and the search for files that crash the decoder read this file.
    """
    path = place_path(progress, shard)
    with open(path, "wb", buffering=0) as file:

        def note(done: int, row: int) -> None:
            file.seek(0)
            file.write(_PLACE.pack(done, row))

        yield note
    path.unlink(missing_ok=True)


def run_workers(plan: Plan, output: Path, progress: Path, todo: list[int], processes: int, bar: tqdm) -> None:
    """Make the shards with the numbers `todo`, in this process or in worker processes.

    Args:
        plan: plan of the preparation.
        output: folder for the shards.
        progress: progress folder, which contains the plan.
        todo: numbers of the shards to make.
        processes: number of worker processes; 0 makes the shards in this process.
        bar: progress bar, which counts utterances.

    Raises:
        OSError: worker processes were killed from outside several times.
        SourceChanged, ImportError, OSError: a shard cannot be made (see `make_shard`); complete shards are kept.
    """
    if processes == 0:
        for index in todo:
            make_shard(str(output), str(progress), index)
            bar.update(plan.size(index))
        return
    before = bar.n
    left = set(todo)
    breaks = 0
    while left:
        try:
            _run_pool(plan, output, progress, left, processes, bar, before)
        except BrokenProcessPool as error:
            left.difference_update([index for index in left if load_record(progress, index) is not None])
            breaks = 0 if _find_crashing(progress, left) else breaks + 1
            if breaks >= MAX_BREAKS:
                raise OSError(
                    f"worker processes were killed {breaks} times from outside, probably because memory ran out; "
                    "run the same command again with fewer --processes"
                ) from error


def _run_pool(plan: Plan, output: Path, progress: Path, left: set[int], processes: int, bar: tqdm, before: int) -> None:
    """Make the shards in `left` in worker processes, and remove each number from `left` when its shard is finished."""
    sizes = {index: plan.size(index) for index in sorted(left)}
    finished = bar.total - before - sum(sizes.values())
    with worker_pool(min(processes, len(left))) as pool:
        waiting: dict[Future[int], int] = {
            pool.submit(make_shard, str(output), str(progress), index): index for index in sizes
        }
        while waiting:
            ready, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for future in ready:
                index = waiting.pop(future)
                future.result()
                left.discard(index)
                finished += sizes[index]
            places = [read_place(progress, index) for index in left]
            running = sum(place[0] for place in places if place is not None)
            bar.update(max(0, before + finished + running - bar.n))


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Context manager that provides a pool of worker processes, and ends these at once after an error."""
    others = set(multiprocessing.active_children())
    pool = make_pool(processes)
    try:
        yield pool
    except BaseException:
        # Do not wait for shards that take minutes.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_pool(processes: int) -> ProcessPoolExecutor:
    """Return a pool of worker processes.

    The workers are not forked from this process, because forking a process with threads can hang. If the system allows
    it, a server process imports the package once and is forked for each worker. Otherwise each worker is started as a
    new interpreter.
    """
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload([make_shard.__module__])
    return ProcessPoolExecutor(processes, context, initializer=_begin_worker)


def _begin_worker() -> None:
    """Set up a worker: leave Ctrl-C to the parent process, use one thread, and end when the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The command line cleans up on SIGTERM; a worker has nothing to clean up and ends at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    # Otherwise the workers of a killed parent process would wait for work forever.
    wait_for([sentinel])
    os._exit(1)


def _find_crashing(progress: Path, shards: Iterable[int]) -> bool:
    """Find the rows that crash the decoder, and add them to the list of crashed rows.

    Each row that was being decoded when the worker processes ended is decoded again in a separate process.

    Args:
        progress: progress folder.
        shards: numbers of the unfinished shards.

    Returns:
        True if at least one row crashed its process.
    """
    found = False
    for index in shards:
        crashed = read_crashed(progress, index)
        place = read_place(progress, index)
        place_path(progress, index).unlink(missing_ok=True)
        if place is None or place[1] < 0 or place[1] in crashed:
            continue
        try:
            with make_pool(1) as pool:
                pool.submit(try_row, str(progress), place[1]).result()
        except BrokenProcessPool:
            crashed.add(place[1])
            found = True
            text = json.dumps(sorted(crashed))
            write_atomically(crashed_path(progress, index), lambda path, text=text: path.write_text(text))
    return found
