"""Compute the order of the samples in a streamed epoch, with the same result in every process.

Shards are read in groups of utterances (the row groups of a Parquet file, or consecutive members of a tar). With `N`
utterances, `V` speed factors and global batches of `B` samples, the order is computed in three steps:

1. The groups are permuted, and their samples get the positions `0` to `N V - 1`, one group after the other. The samples
   of a group at all speed factors have adjacent positions, so the group is fetched only once per epoch.
2. The epoch has `N V // B` global batches, which use the first `B (N V // B)` positions. These positions are divided
   into lanes, which are contiguous ranges with nearly equal lengths. Each global batch consists of the next few
   positions of every lane. It therefore mixes samples from as many distant groups as there are lanes, while every lane
   reads its groups in sequence.
3. Each lane is divided into windows of a few consecutive groups, and the positions in each window are permuted.

There is no shuffle buffer whose state must be saved: any global batch of any epoch can be computed directly. The
remaining positions, fewer than `B`, are left out. The samples at these positions differ from epoch to epoch.

A slot is the number of a sample within its global batch, from 0 to `B - 1`. Each slot belongs to the same lane in all
global batches. A rank or loader process that needs the slots `start` to `stop - 1` reads only the groups of the lanes
to which these slots belong.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

LANES = 32
"""Default number of lanes. More lanes would only take more memory, because each group already mixes the speakers."""

WINDOW = 4
"""Default number of consecutive groups in a lane that are shuffled together."""

GROUPS_KEY, WINDOW_KEY = 1, 2
"""Last numbers of the random seeds for permuting the groups and for shuffling a window.

The seeds of crops have three numbers, and numpy pads them with zeros. The seeds here have five numbers and do not end
in 0, so they never equal a seed of a crop.
"""


class Read(NamedTuple):
    """Group that a lane reads, and the global batches that need it.

    Attributes:
        first: first global batch that may need the group.
        last: last global batch that may need the group.
        group: number of the group in the order of the manifest.
    """

    first: int
    last: int
    group: int


class EpochOrder:
    """Order of the samples in the global batches of an epoch. The module docstring explains lanes, windows and slots.

    With `N` utterances, sample number `v * N + u` is utterance `u` at speed factor number `v`, as in
    `hf_hamspk.data.SpeakerCrops`. Utterances are numbered in the order of the groups. The memory is proportional to the
    number of groups.

    Args:
        group_sizes: number of utterances in each group; 0 is allowed.
        batch_size: number of samples in a global batch, at least 1.
        seed: random seed, at least 0.
        epoch: number of the epoch, at least 0.
        factors: number of speed factors, at least 1.
        lanes: number of lanes, at least 1; at most `batch_size` are used.
        window: number of groups in a lane that are shuffled together, at least 1.

    Attributes:
        batches: number of global batches in the epoch.
        remainder: number of samples that the epoch leaves out, below `batch_size`; see `left_out`.

    Raises:
        ValueError: an argument is out of range, or the samples do not fill one global batch.
    """

    def __init__(
        self,
        group_sizes: Sequence[int] | np.ndarray,
        batch_size: int,
        seed: int,
        epoch: int,
        factors: int = 1,
        lanes: int = LANES,
        window: int = WINDOW,
    ):
        sizes = np.asarray(group_sizes, dtype=np.int64)
        if min(batch_size, factors, lanes, window) < 1 or min(seed, epoch) < 0:
            raise ValueError(
                "batch_size, factors, lanes and window must be at least 1, and seed and epoch at least 0, got "
                f"{batch_size=}, {factors=}, {lanes=}, {window=}, {seed=} and {epoch=}"
            )
        if sizes.ndim != 1 or (len(sizes) and sizes.min() < 0):
            raise ValueError(
                "group_sizes must be a list with the number of utterances in each group, integers of at least 0"
            )
        self.utterances, self.factors, self.batch_size = int(sizes.sum()), factors, batch_size
        self.batches, self.remainder = divmod(self.utterances * factors, batch_size)
        if self.batches == 0:
            raise ValueError(
                f"{self.utterances * factors} samples do not fill one global batch of {batch_size}; lower the batch "
                f"size to {self.utterances * factors} or less"
            )
        self.seed, self.epoch, self.window = seed, epoch, window
        self.lanes = min(lanes, batch_size)
        self._sizes, self._first_utterance = sizes, np.cumsum(sizes) - sizes
        permuted = np.random.default_rng((seed, epoch, 0, 0, GROUPS_KEY)).permutation(np.flatnonzero(sizes))
        self._groups = permuted
        self._ends = np.cumsum(sizes[permuted] * factors)
        # First slot of each lane, and `batch_size` at the end.
        self._slots = np.arange(self.lanes + 1, dtype=np.int64) * batch_size // self.lanes
        self._windows: dict[int, tuple[int, int, np.ndarray]] = {}

    def lanes_of(self, start: int, stop: int) -> range:
        """Return the numbers of the lanes to which the slots `start` to `stop - 1` belong."""
        if start >= stop:
            return range(0)
        first, last = np.searchsorted(self._slots, (start, stop - 1), side="right") - 1
        return range(int(first), int(last) + 1)

    def samples(self, batch: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the numbers of the samples in the slots `start` to `stop - 1` of a global batch.

        Args:
            batch: number of the global batch, from 0.
            start: first slot.
            stop: slot after the last; None means all further slots.

        Returns:
            Sample numbers, `(stop - start,)` int64.

        Raises:
            ValueError: the batch or a slot is out of range.
        """
        stop = self.batch_size if stop is None else stop
        if not (0 <= batch < self.batches and 0 <= start <= stop <= self.batch_size):
            raise ValueError(
                f"the number of the global batch must be below {self.batches}, and start and stop must be from 0 to "
                f"{self.batch_size}, got batch {batch}, start {start} and stop {stop}"
            )
        parts = [np.empty(0, dtype=np.int64)]
        for lane in self.lanes_of(start, stop):
            first, last = int(self._slots[lane]), int(self._slots[lane + 1])
            begin = self.batches * first + batch * (last - first)
            parts.append(self._lane_positions(lane, begin + max(start - first, 0), begin + min(stop, last) - first))
        return self._at(np.concatenate(parts))

    def reads(self, lane: int, batch: int = 0) -> Iterator[Read]:
        """Yield the groups that a lane reads for global batch `batch` and all later ones, in the order of their use."""
        first_slot, end_slot = int(self._slots[lane]), int(self._slots[lane + 1])
        begin, width = self.batches * first_slot, end_slot - first_slot
        position, end = begin + batch * width, self.batches * end_slot
        while position < end:
            low, high = self._window_bounds(lane, position)
            places = np.searchsorted(self._ends, (low, high - 1), side="right")
            for place in range(int(places[0]), int(places[1]) + 1):
                yield Read((low - begin) // width, (high - 1 - begin) // width, int(self._groups[place]))
            position = high

    def after(self, group: int) -> Iterator[int]:
        """Yield each other group once: the groups after `group` in this epoch, and then the groups before `group`."""
        place = int(np.flatnonzero(self._groups == group)[0])
        for step in range(1, len(self._groups)):
            yield int(self._groups[(place + step) % len(self._groups)])

    def left_out(self) -> np.ndarray:
        """Return the numbers of the samples that are in no global batch of this epoch, `(remainder,)` int64."""
        return self._at(np.arange(self.batches * self.batch_size, self.utterances * self.factors))

    def _window_bounds(self, lane: int, position: int) -> tuple[int, int]:
        """Return the first position, and the position after the last, of the window with `position` in a lane."""
        window = int(np.searchsorted(self._ends, position, side="right")) // self.window
        last = min((window + 1) * self.window, len(self._ends)) - 1
        low = int(self._ends[window * self.window - 1]) if window else 0
        begin, end = (self.batches * int(slot) for slot in self._slots[lane : lane + 2])
        return max(low, begin), min(int(self._ends[last]), end)

    def _lane_positions(self, lane: int, begin: int, end: int) -> np.ndarray:
        """Return, for the positions `begin` to `end - 1` of a lane, the positions before shuffling."""
        parts = []
        while begin < end:
            low, high, order = self._windows.get(lane, (0, 0, np.empty(0, dtype=np.int64)))
            if not low <= begin < high:
                low, high = self._window_bounds(lane, begin)
                # If two lanes share a window, each shuffles its own range with its own seed, because `low` differs.
                generator = np.random.default_rng((self.seed, self.epoch, low, 0, WINDOW_KEY))
                order = low + generator.permutation(high - low)
                self._windows[lane] = (low, high, order)
            parts.append(order[begin - low : min(end, high) - low])
            begin = min(end, high)
        return np.concatenate(parts)

    def _at(self, positions: np.ndarray) -> np.ndarray:
        """Return the samples at the given positions."""
        places = np.searchsorted(self._ends, positions, side="right")
        groups = self._groups[places]
        sizes = self._sizes[groups]
        factors, rows = np.divmod(positions - (self._ends[places] - sizes * self.factors), sizes)
        return factors * self.utterances + self._first_utterance[groups] + rows


def micro_batch_slots(batch_size: int, rank: int, world_size: int, accumulation_steps: int) -> list[tuple[int, int]]:
    """Return which slots of a global batch belong to each micro-batch of a rank.

    The global batch is divided into `world_size * accumulation_steps` slices of equal size. Micro-batch `a` of rank `r`
    is slice number `a * world_size + r`, as in `hf_hamspk.data.GlobalBatchSampler`.

    Returns:
        First slot of each micro-batch, and the slot after its last.

    Raises:
        ValueError: the rank is out of range, or the global batch cannot be divided equally.
    """
    slices = world_size * accumulation_steps
    if min(world_size, accumulation_steps) < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"expected a rank from 0 to world_size - 1 and at least 1 accumulation step, got rank {rank} of "
            f"{world_size} and {accumulation_steps} steps"
        )
    if batch_size % slices:
        raise ValueError(
            f"a global batch of {batch_size} does not divide into {world_size} ranks x {accumulation_steps} "
            f"accumulation steps; use a multiple of {slices}, for example {max(1, batch_size // slices) * slices}"
        )
    size = batch_size // slices
    starts = [(step * world_size + rank) * size for step in range(accumulation_steps)]
    return [(start, start + size) for start in starts]


def worker_slots(start: int, stop: int, worker: int, workers: int) -> tuple[int, int]:
    """Divide the slots `start` to `stop - 1` among the loader processes, and return the slots of process `worker`.

    Each process has contiguous slots. The numbers of slots differ by at most 1.

    Returns:
        First slot of the process, and the slot after its last.
    """
    size = stop - start
    return start + size * worker // workers, start + size * (worker + 1) // workers
