"""Making shards in several processes: a bar, an end that leaves nobody behind, and decoders that crash."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import torch
from tqdm import tqdm

from .making import CRASHED_NAME, load_record, make_shard, place_path, read_crashed, read_place, try_row
from .planning import Plan
from .writing import write_atomically

POLL_SECONDS = 0.5
"""Between two looks at the workers' notes, for the bar."""

MAX_BREAKS = 3
"""Times that a worker may be ended without a file that does it again: then it is memory, or somebody who kills."""


def run_workers(plan: Plan, output: Path, progress: Path, todo: list[int], processes: int, bar: tqdm) -> None:
    """Make the shards `todo`; with 0 processes, in this one.

    Raises:
        RuntimeError: workers were ended again and again.
        SourceChanged, ImportError, OSError: see `make_shard`; shards that are whole stay.
    """
    if processes == 0:
        for index in todo:
            make_shard(str(output), str(progress), index)
            start, stop = plan.bounds(index)
            bar.update(stop - start)
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
                    f"worker processes were ended {breaks} times from outside, likely for want of memory; give fewer "
                    "--processes, and the same command goes on"
                ) from error


def _run_pool(plan: Plan, output: Path, progress: Path, left: set[int], processes: int, bar: tqdm, before: int) -> None:
    """Make shards until none is left; those that are done leave `left`."""
    sizes = {index: plan.bounds(index)[1] - plan.bounds(index)[0] for index in sorted(left)}
    finished = bar.total - before - sum(sizes.values())
    others = set(multiprocessing.active_children())
    pool = make_pool(min(processes, len(left)))
    try:
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
    except BaseException:
        # Whatever ended this, nobody waits for shards that take minutes.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_pool(processes: int) -> ProcessPoolExecutor:
    """Fresh processes: forking this one, with its threads, may hang. Where it can be, one imports and is forked."""
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload([make_shard.__module__])
    return ProcessPoolExecutor(processes, context, initializer=_begin_worker)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The command line also turns SIGTERM into an orderly end; for a worker the plain one is right.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    # Without this, workers of a killed parent wait for work for ever.
    wait_for([sentinel])
    os._exit(1)


def _find_crashing(progress: Path, shards: Iterable[int]) -> bool:
    """Decode each row that was in a worker's hands in a process of its own; note those that end it.

    Returns:
        Whether there was one.
    """
    crashed = read_crashed(progress)
    found = False
    for index in shards:
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
            write_atomically(progress / CRASHED_NAME, lambda path, text=text: path.write_text(text))
    return found
