"""Threads that embed recordings at the same time, each with its share of the threads of torch."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

# `torch.set_num_threads` also changes the number that later threads begin with, so it is changed back under this lock.
_CHANGING = threading.Lock()


class EmbeddingThreads:
    """Pool of `at_once` threads. In each of them, torch computes with `threads // at_once` threads.

    Args:
        threads: number of threads of torch, all together.
        at_once: number of calls that run at the same time.
    """

    def __init__(self, threads: int, at_once: int):
        self.threads, self.at_once = threads, at_once
        self._pool = ThreadPoolExecutor(at_once, "embedding", _limit_torch, (threads // at_once,))
        all_started = threading.Barrier(at_once)
        with _CHANGING:
            before = torch.get_num_threads()
            try:
                # The pool starts a thread only if all others are busy.
                list(self._pool.map(lambda _: all_started.wait(), range(at_once)))
            except BaseException:
                all_started.abort()
                self._pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                torch.set_num_threads(before)

    def run(self, work: Callable[[int], Any], sizes: Sequence[int], room: int) -> list[Any]:
        """Return the results of `work(0)`, `work(1)` and so on, one for each of the sizes.

        The largest come first, so that the threads end at about the same time. The sizes of the calls that run at the
        same time are at most `room` together, or a call runs alone.

        Raises:
            Exception: the first error of a call. Calls that have not begun are left out then.
        """
        changed = threading.Condition()
        running: dict[int, int] = {}
        futures: dict[int, Future[Any]] = {}

        def call(number: int) -> Any:
            try:
                return work(number)
            finally:
                with changed:
                    del running[number]
                    changed.notify()

        for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
            with changed:
                changed.wait_for(
                    lambda size=sizes[number]: (
                        not running or (len(running) < self.at_once and sum(running.values()) + size <= room)
                    )
                )
                running[number] = sizes[number]
            if any(future.done() and future.exception() is not None for future in futures.values()):
                break
            futures[number] = self._pool.submit(call, number)
        return [future.result() for _, future in sorted(futures.items())]


def find_threads(threads: int | None, at_once: int) -> EmbeddingThreads | None:
    """Return a pool of threads; None if one recording at a time is embedded with the usual number of threads.

    Args:
        threads: number of threads; None uses as many threads as torch.
        at_once: number of recordings that are embedded at the same time.

    Raises:
        ValueError: a number is not a whole number, or `at_once` is not from 1 to the number of threads.
    """
    with _CHANGING:
        usual = torch.get_num_threads()
    count = usual if threads is None else threads
    if not (isinstance(count, int) and count >= 1):
        raise ValueError(f"threads must be a whole number of at least 1, got {count!r}.")
    if not (isinstance(at_once, int) and 1 <= at_once <= count):
        raise ValueError(f"at_once must be from 1 to the number of threads ({count}), got {at_once!r}.")
    return None if count == usual and at_once == 1 else EmbeddingThreads(count, at_once)


def _limit_torch(threads: int) -> None:
    """Let torch compute with so many threads in the calling thread."""
    # A thread takes over the number of the process at its first call of torch, so that call must come before.
    torch.get_num_threads()
    torch.set_num_threads(threads)
