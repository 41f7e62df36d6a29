"""Groups in memory: those that the next batches need, fetched ahead of time, and no others."""

import copy
import heapq
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..audio_hamspk import InputError
from .order import EpochOrder, Read
from .reading import Group, ShardReader

FETCHES_AT_ONCE = 4
"""Requests of one process under way at a time: enough to hide the delay of a distant server."""

READ_AHEAD_BYTES = 64 << 20
"""Fetched before it is needed, per process: some seconds of training."""

GROUPS_KEPT = 4
"""Groups kept in memory when utterances are read one by one, without a plan."""

BROKEN_IN_A_ROW = 8
"""Groups, one after the other, that cannot be read before the whole source is given up."""


class GroupStore:
    """Keeps the groups of a plan in memory while it needs them, and fetches the next in background threads.

    Use it as a context manager; leaving it ends the threads.

    Args:
        reader: of the shards.
        read_ahead_bytes: fetched ahead of need. What is needed at once comes on top and is given by the order of the
            epoch: lanes x window x bytes of a group.
    """

    def __init__(self, reader: ShardReader, read_ahead_bytes: int = READ_AHEAD_BYTES):
        # A copy has connections, footers and a stop signal of its own.
        self.reader = copy.copy(reader)
        self.read_ahead_bytes = read_ahead_bytes
        self._broken: dict[int, str] = {}
        self._broken_in_a_row = 0
        self._fetched: dict[int, Future[Group]] = {}
        # First and last batch that need a group.
        self._uses: dict[int, tuple[int, int]] = {}
        self._reads: Iterator[Read] = iter(())
        self._next: Read | None = None
        self._batch: int | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "GroupStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and forget the groups."""
        self.reader.fetcher.stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._fetched.clear()
        self._uses.clear()

    def plan(self, order: EpochOrder, lanes: Iterable[int], batch: int) -> None:
        """Follow these lanes of an epoch from a global batch on."""
        self._reads = heapq.merge(*(order.reads(lane, batch) for lane in lanes), key=lambda read: read.first)
        self._next = next(self._reads, None)
        self.advance(batch)

    def advance(self, batch: int) -> None:
        """Drop groups that only earlier batches needed, and fetch the next ones."""
        self._batch = batch
        for group in [group for group, (_, last) in self._uses.items() if last < batch]:
            self._drop(group)
        ahead = sum(self._size(group) for group, (first, _) in self._uses.items() if first > batch)
        while self._next is not None:
            first, last, group = self._next
            if first > batch:
                ahead += self._size(group)
                if ahead > self.read_ahead_bytes:
                    break
            self._start(group, first, last)
            self._next = next(self._reads, None)

    def get(self, group: int) -> Group:
        """A group; it is fetched now if it was not fetched ahead.

        Raises:
            InputError: it cannot be read.
            ConnectionError: nor could those before it.
        """
        if group in self._broken:
            raise InputError(self._broken[group], self.reader.name_of(group))
        if group not in self._fetched:
            if self._batch is None and len(self._fetched) >= GROUPS_KEPT:
                self._drop(next(iter(self._fetched)))
            now = 0 if self._batch is None else self._batch
            self._start(group, now, now)
        try:
            found = self._fetched[group].result()
        except InputError as error:
            self._drop(group)
            self._broken[group] = error.reason
            self._broken_in_a_row += 1
            if self._broken_in_a_row < BROKEN_IN_A_ROW:
                raise
            raise ConnectionError(
                f"{self._broken_in_a_row} groups in a row cannot be read from {self.reader.folder}, the last: {error}. "
                "Check the network or the source, then give the same command again to resume from the last checkpoint"
            ) from error
        self._broken_in_a_row = 0
        return found

    def is_broken(self, group: int) -> bool:
        """Whether a group turned out to be one that cannot be read."""
        return group in self._broken

    def _size(self, group: int) -> int:
        return int(self.reader.group_bytes[group])

    def _start(self, group: int, first: int, last: int) -> None:
        if group not in self._fetched:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="shards")
            self._fetched[group] = self._pool.submit(self.reader.read, group)
        known = self._uses.get(group, (first, last))
        self._uses[group] = (min(first, known[0]), max(last, known[1]))

    def _drop(self, group: int) -> None:
        self._fetched.pop(group, None)
        self._uses.pop(group, None)
