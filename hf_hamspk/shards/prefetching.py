"""Keep the groups of the current batches in memory, and fetch the groups of the next batches in advance."""

import copy
import heapq
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..audio_hamspk import InputError
from .order import EpochOrder, Read
from .reading import Group, ShardReader

FETCHES_AT_ONCE = 4
"""Number of concurrent requests per process, enough to hide the latency of a remote server."""

READ_AHEAD_BYTES = 64 << 20
"""Default number of bytes that each process fetches in advance, enough for some seconds of training."""

GROUPS_KEPT = 4
"""Number of groups that stay in memory if `GroupStore.plan` was not called."""

BROKEN_IN_A_ROW = 8
"""Number of unreadable groups in a row after which reading stops with an error."""


class GroupStore:
    """Store of the groups that an epoch needs. Background threads fetch groups in advance.

    A store is a context manager. Its threads end when the context ends.

    Args:
        reader: reader of the shards.
        read_ahead_bytes: number of bytes to fetch in advance. The groups in use take additional memory: the number of
            lanes, times the number of groups in a window, times the size of a group.
    """

    def __init__(self, reader: ShardReader, read_ahead_bytes: int = READ_AHEAD_BYTES):
        # The copy has its own connections, footers and stop event.
        self.reader = copy.copy(reader)
        self.read_ahead_bytes = read_ahead_bytes
        self._broken: dict[int, str] = {}
        self._broken_in_a_row = 0
        self._fetched: dict[int, Future[Group]] = {}
        # First and last batch that need each group.
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
        """End the threads and drop the groups."""
        self.reader.fetcher.stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._fetched.clear()
        self._uses.clear()

    def plan(self, order: EpochOrder, lanes: Iterable[int], batch: int) -> None:
        """Set the lanes that will be read, and start fetching their groups for global batch `batch` and later ones."""
        self._reads = heapq.merge(*(order.reads(lane, batch) for lane in lanes), key=lambda read: read.first)
        self._next = next(self._reads, None)
        self.advance(batch)

    def advance(self, batch: int) -> None:
        """Drop the groups that are not needed for global batch `batch` or later ones, and start fetching the next."""
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
        """Return a group, and fetch it first if it was not fetched in advance.

        Raises:
            InputError: the group cannot be read.
            ConnectionError: `BROKEN_IN_A_ROW` groups in a row cannot be read.
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
                f"{self._broken_in_a_row} groups in a row cannot be read from {self.reader.folder} (last error: "
                f"{error}). Check the network or the source, then run the same command again to resume from the last "
                "checkpoint"
            ) from error
        self._broken_in_a_row = 0
        return found

    def is_broken(self, group: int) -> bool:
        """Return True if an earlier attempt to read the group failed."""
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
