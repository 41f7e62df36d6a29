"""Laws of the order of a streamed epoch: whole, the same for any number of ranks and workers, resumable anywhere."""

import re
from collections import Counter
from itertools import chain, product

import numpy as np
import pytest

from hf_hamspk.shards.order import EpochOrder, micro_batch_slots, worker_slots

SHARD_COUNTS = (1, 2, 3, 7, 8, 13, 19)


def group_sizes(shards: int, seed: int = 0) -> list[int]:
    """One to four groups a shard, of 0 to 9 utterances, the first of 9."""
    draw = np.random.default_rng((shards, seed))
    sizes = [int(draw.integers(0, 10)) for _ in range(shards) for _ in range(int(draw.integers(1, 5)))]
    return [*sizes, 9]


def dealt(
    order: EpochOrder, world_size: int, workers: int, accumulation: int = 1, first: int = 0, end: int | None = None
):
    """Per rank, its micro-batches, each put together from what its workers have."""
    end = order.batches if end is None else end
    ranks = []
    for rank in range(world_size):
        slots = micro_batch_slots(order.batch_size, rank, world_size, accumulation)
        ranks.append(
            [
                np.concatenate(
                    [
                        order.samples(batch, *worker_slots(start, stop, worker, max(1, workers)))
                        for worker in range(max(1, workers))
                    ]
                ).tolist()
                for batch in range(first, end)
                for start, stop in slots
            ]
        )
    return ranks


@pytest.mark.parametrize("shards", [pytest.param(n, marks=pytest.mark.slow if n > 8 else ()) for n in SHARD_COUNTS])
def test_an_epoch_is_the_corpus_less_a_remainder_below_one_global_batch(shards):
    """Ranks 1 to 8 x workers 0 to 4, stopped anywhere and resumed with other numbers: all give the same batches."""
    sizes = group_sizes(shards)
    draw = np.random.default_rng(shards)
    for world_size, workers in product(range(1, 9), range(5)):
        batch_size = world_size * int(draw.integers(1, 4))
        if sum(sizes) < batch_size:
            continue
        settings = {"lanes": int(draw.integers(1, 9)), "window": int(draw.integers(1, 5)), "factors": 1 + shards % 2}
        order = EpochOrder(sizes, batch_size, seed=3, epoch=int(draw.integers(5)), **settings)
        whole = dealt(order, world_size, workers)
        assert {len(batches) for batches in whole} == {order.batches}, "ranks differ in steps"
        seen = Counter(sample for batches in whole for batch in batches for sample in batch)
        left_out = order.left_out().tolist()
        assert len(left_out) == order.remainder < batch_size
        assert seen + Counter(left_out) == Counter(range(sum(sizes) * settings["factors"]))
        # Stopped before any batch, resumed by another number of ranks and workers, with a fresh object.
        stop = int(draw.integers(order.batches + 1))
        others = [count for count in range(1, 9) if batch_size % count == 0]
        resumed = EpochOrder(sizes, batch_size, 3, order.epoch, **settings)
        new_world, new_workers = int(draw.choice(others)), int(draw.integers(5))
        before = dealt(order, world_size, workers, end=stop)
        after = dealt(resumed, new_world, new_workers, first=stop)
        for batch in range(order.batches):
            ranks = [rank[batch] for rank in before] if batch < stop else [rank[batch - stop] for rank in after]
            assert [*chain(*ranks)] == order.samples(batch).tolist()


def test_stopped_at_every_batch_and_resumed():
    sizes = group_sizes(5)
    order = EpochOrder(sizes, 6, 1, 2, factors=3, lanes=4, window=2)
    straight = [order.samples(batch).tolist() for batch in range(order.batches)]
    for stop in range(order.batches + 1):
        fresh = EpochOrder(sizes, 6, 1, 2, factors=3, lanes=4, window=2)
        assert [fresh.samples(batch).tolist() for batch in range(stop, order.batches)] == straight[stop:]
    # Backwards, too: nothing depends on what was asked before.
    assert [order.samples(batch).tolist() for batch in reversed(range(order.batches))] == straight[::-1]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_accumulation_cuts_the_same_global_batches(accumulation):
    order = EpochOrder(group_sizes(13), 24, 0, 0, lanes=5)
    for world_size, workers in product((1, 2, 4), range(5)):
        ranks = dealt(order, world_size, workers, accumulation)
        for batch in range(order.batches):
            steps = range(batch * accumulation, (batch + 1) * accumulation)
            assert [s for step in steps for rank in ranks for s in rank[step]] == order.samples(batch).tolist()


def test_a_lane_reads_what_its_samples_need_and_when():
    sizes = np.array(group_sizes(19))
    for lanes, window, factors, batch_size in ((1, 1, 1, 1), (4, 2, 1, 8), (8, 3, 2, 11), (64, 4, 3, 5)):
        order = EpochOrder(sizes, batch_size, 5, 1, factors, lanes, window)
        group_of = np.repeat(np.arange(len(sizes)), sizes)
        for lane, start in product(range(order.lanes), (0, order.batches // 2, order.batches - 1)):
            slots = [slot for slot in range(batch_size) if lane in order.lanes_of(slot, slot + 1)]
            reads = list(order.reads(lane, start))
            assert [read.first for read in reads] == sorted(read.first for read in reads)
            for batch in range(start, order.batches):
                samples = order.samples(batch, slots[0], slots[-1] + 1)
                announced = {read.group for read in reads if read.first <= batch <= read.last}
                assert set(group_of[samples % sum(sizes)]) <= announced
            held = max(sum(read.first <= batch <= read.last for read in reads) for batch in range(start, order.batches))
            # Two windows where one ends and the next begins in a batch, more where a batch spans several.
            widest = len(slots) // min(sizes[sizes > 0]) + 2
            assert held <= window * widest


def test_all_groups_but_the_borders_are_read_by_one_lane():
    sizes = [20] * 400
    order = EpochOrder(sizes, 64, 0, 0, lanes=16)
    readers = Counter(read.group for lane in range(16) for read in order.reads(lane))
    assert len(readers) == 400 and max(readers.values()) <= 2
    assert sum(count > 1 for count in readers.values()) <= 15


def test_batches_mix_far_apart_places_and_epochs_differ():
    sizes = [25] * 200
    orders = [EpochOrder(sizes, 64, seed, epoch, lanes=16) for seed, epoch in product((0, 1), (0, 1))]
    assert len({tuple(order.samples(0)) for order in orders}) == 4
    assert len({tuple(sorted(order.left_out())) for order in orders}) == 4
    for order in orders:
        groups = [len(set(order.samples(batch) // 25)) for batch in range(order.batches)]
        assert min(groups) >= 24, "a batch of 64 comes from 16 lanes of 4 groups each"
    # The groups that meet in a batch are as far apart on the disk as those of a random order: N / 3 in the mean.
    order = np.concatenate([orders[0].samples(batch) for batch in range(orders[0].batches)])
    apart = np.abs(np.diff(order))[np.diff(order // 25) != 0]
    assert apart.mean() == pytest.approx(5_000 / 3, rel=0.05)


def test_the_order_stays_what_it_is():
    """A run that an earlier version began is resumed in the same order."""
    order = EpochOrder([3, 0, 2, 4, 1, 3], 4, seed=1, epoch=2, factors=2, lanes=2, window=2)
    batches = [order.samples(batch).tolist() for batch in range(order.batches)]
    assert batches == [
        *([6, 18, 25, 14], [7, 5, 15, 13], [19, 8, 2, 10], [20, 9, 11, 12], [21, 22, 23, 24], [1, 0, 3, 4]),
    ]
    assert order.left_out().tolist() == [16, 17]
    assert list(order.after(3)) == [4, 0, 5, 2]
    assert list(order.reads(0)) == list(order.reads(0, 0)) == [(0, 4, 3), (0, 4, 4), (5, 5, 0)]
    assert list(order.reads(1)) == [(0, 4, 0), (0, 4, 5), (5, 5, 2)]
    # Windows of one group end within the epoch, so that reading from a later batch leaves some out.
    narrow = EpochOrder([4] * 6, 4, seed=1, epoch=0, lanes=1, window=1)
    assert list(narrow.reads(0)) == list(narrow.reads(0, 0)) and len(list(narrow.reads(0, 1))) == 5


def test_factors_cover_each_utterance_at_each_speed():
    order = EpochOrder([4, 0, 5, 3], 5, 0, 0, factors=3, lanes=2)
    samples = [s for batch in range(order.batches) for s in order.samples(batch)]
    assert sorted([*samples, *order.left_out()]) == list(range(36))
    assert order.remainder == 1


def test_groups_after_a_group():
    order = EpochOrder([3, 0, 3, 3, 3], 4, 0, 0)
    for group in (0, 2, 3, 4):
        assert sorted([group, *order.after(group)]) == [0, 2, 3, 4]


def test_a_million_utterances_need_no_table_of_them():
    order = EpochOrder([40] * 27_500, 256, 0, 0)
    assert len(order.samples(4_000)) == 256
    held = sum(array.nbytes for array in vars(order).values() if isinstance(array, np.ndarray))
    assert held < 1_100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 4], 8, 0, 0), "7 samples do not fill one global batch of 8; lower the batch size to 7 or less"),
        (([], 8, 0, 0), "0 samples do not fill one global batch of 8"),
        (
            ([3, -4], 1, 0, 0),
            "group_sizes must be a list with the number of utterances in each group, integers of at least 0",
        ),
        (
            ([3], 1, -1, 0),
            "seed and epoch at least 0, got batch_size=1, factors=1, lanes=32, window=4, seed=-1 and epoch=0",
        ),
        (([3], 1, 0, 0, 1, 0), "batch_size, factors, lanes and window must be at least 1"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EpochOrder(*arguments)


def test_batches_slots_and_ranks_that_are_refused():
    order = EpochOrder([3, 4], 2, 0, 0)
    for batch, start, stop in ((3, 0, 2), (-1, 0, 2), (0, 1, 3)):
        with pytest.raises(ValueError, match="global batch must be below 3, and start and stop must be from 0 to 2"):
            order.samples(batch, start, stop)
    with pytest.raises(ValueError, match="does not divide into 3 ranks x 1 accumulation steps; use a multiple of 3"):
        micro_batch_slots(10, 0, 3, 1)
    with pytest.raises(ValueError, match="got rank 2 of 2 and 1 steps"):
        micro_batch_slots(10, 2, 2, 1)
