"""Samplers of training batches: global batches divided among ranks, and batches with a fixed number of speakers.

Both samplers draw at random from the seed and the epoch only, yield the same number of batches on every rank, and can
start at any batch of an epoch.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """Sampler that divides the global batches of one epoch among ranks and micro-batches.

    The order of the epoch is `numpy.random.default_rng((seed, epoch)).permutation(number_of_samples)`, unless `order`
    is given. Global batch `k` is the `k`-th group of `batch_size_global` consecutive samples in this order. The
    remaining samples are dropped. Within a global batch, micro-batch `a` of rank `r` is the contiguous slice number
    `a * world_size + r`. The samples of a global batch therefore do not depend on the number of ranks or accumulation
    steps, and every rank yields equally many micro-batches.

    Pass the sampler to a `DataLoader` as `batch_sampler`, with `collate` as `collate_fn`. Make a new sampler for each
    epoch.

    Example:
        ```python
        sampler = GlobalBatchSampler(100, 8, rank=0, world_size=2, accumulation_steps=1, seed=0, epoch=0)
        first_micro_batch = next(iter(sampler))
        ```

    Args:
        number_of_samples: length of the data set.
        batch_size_global: number of samples per optimiser step over all ranks, a multiple of
            `world_size * accumulation_steps`.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of ranks.
        accumulation_steps: number of micro-batches per optimiser step.
        seed: random seed, at least 0.
        epoch: number of the epoch, at least 0.
        start_batch: number of global batches of this epoch to skip, to resume within the epoch. The skipped batches are
            not decoded.
        order: sample numbers `(n,)` in the order of this epoch, where `n` is at least the number of samples in all
            complete global batches. An example is the order in which shards are streamed
            (`hf_hamspk.shards.EpochOrder`). None draws the permutation.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        number_of_samples: int,
        batch_size_global: int,
        rank: int,
        world_size: int,
        accumulation_steps: int,
        seed: int,
        epoch: int,
        start_batch: int = 0,
        order: np.ndarray | None = None,
    ):
        if min(batch_size_global, world_size, accumulation_steps) < 1 or min(seed, epoch) < 0:
            raise ValueError(
                "batch_size_global, world_size and accumulation_steps must be at least 1, seed and epoch at least 0, "
                f"got {batch_size_global}, {world_size}, {accumulation_steps}, {seed} and {epoch}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}.")
        slices = world_size * accumulation_steps
        if batch_size_global % slices:
            raise ValueError(
                f"The global batch size must be a multiple of {slices} ({world_size} ranks x {accumulation_steps} "
                f"accumulation steps), got {batch_size_global}. Use "
                f"{max(1, batch_size_global // slices) * slices}, for example."
            )
        if number_of_samples < batch_size_global:
            raise ValueError(
                f"{number_of_samples} samples do not fill one global batch of {batch_size_global}. Lower the batch "
                f"size to {number_of_samples} or less."
            )
        self.batches_per_epoch = number_of_samples // batch_size_global
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(
                f"start_batch must be from 0 to {self.batches_per_epoch} (the number of global batches in an epoch), "
                f"got {start_batch}. The data or the batch size may have changed since the run was interrupted."
            )
        self.number_of_samples = number_of_samples
        self.batch_size_global = batch_size_global
        self.micro_batch_size = batch_size_global // slices
        self.rank = rank
        self.world_size = world_size
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self.epoch = epoch
        self.start_batch = start_batch
        self.order = order

    def __len__(self) -> int:
        """Return the number of micro-batches that this rank yields."""
        return (self.batches_per_epoch - self.start_batch) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order
        if order is None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.number_of_samples)
        for batch in range(self.start_batch, self.batches_per_epoch):
            for micro_batch in range(self.accumulation_steps):
                slice_index = micro_batch * self.world_size + self.rank
                start = batch * self.batch_size_global + slice_index * self.micro_batch_size
                yield [(self.epoch, int(sample)) for sample in order[start : start + self.micro_batch_size]]


class SpeakerBatchSampler(Sampler[list[tuple[int, int]]]):
    """Sampler of batches of `speakers_per_batch` different speakers with `utterances_per_speaker` utterances each.

    This sampler suits losses that compare the utterances of a batch, and corpora in which some speakers have far more
    utterances than others. Every speaker is drawn once before any speaker is drawn again, in a new random order each
    time. The utterances of a speaker are drawn without repetition until all have been used. For a speaker with fewer
    than `utterances_per_speaker` utterances, some utterances are repeated (as different crops of `SpeakerCrops`).

    Pass the sampler to a `DataLoader` over `SpeakerCrops` as `batch_sampler`, with `collate` as `collate_fn`.

    Example:
        ```python
        labels = [0, 0, 1, 1, 2, 2]
        sampler = SpeakerBatchSampler(labels, speakers_per_batch=2, utterances_per_speaker=2, seed=0, epoch=0)
        first_batch = next(iter(sampler))
        ```

    Args:
        labels: class index of each sample.
        speakers_per_batch: number of speakers in a batch over all ranks, a multiple of `world_size` and at most the
            number of classes.
        utterances_per_speaker: number of utterances of each speaker, at least 1.
        seed: random seed, at least 0.
        epoch: number of the epoch, at least 0.
        batches: number of batches in an epoch. None uses the number of batches that the samples fill, at least 1.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of ranks.
        start_batch: number of batches of this epoch to skip.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        speakers_per_batch: int,
        utterances_per_speaker: int,
        seed: int,
        epoch: int,
        *,
        batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ):
        _check_rank(rank, world_size)
        classes = np.asarray(labels)
        if min(speakers_per_batch, utterances_per_speaker) < 1 or min(seed, epoch) < 0:
            raise ValueError(
                "speakers_per_batch and utterances_per_speaker must be at least 1, seed and epoch at least 0, got "
                f"{speakers_per_batch}, {utterances_per_speaker}, {seed} and {epoch}."
            )
        if speakers_per_batch % world_size:
            raise ValueError(
                f"{speakers_per_batch} speakers cannot be divided among {world_size} ranks. "
                f"Use a multiple of {world_size}."
            )
        order = np.argsort(classes, kind="stable")
        self._samples = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)
        if len(classes) == 0 or len(self._samples) < speakers_per_batch:
            raise ValueError(
                f"The labels must contain at least {speakers_per_batch} speakers to fill a batch, got "
                f"{len(self._samples) if len(classes) else 0}. Lower the number of speakers per batch."
            )
        size = speakers_per_batch * utterances_per_speaker
        self.batches = max(1, len(classes) // size) if batches is None else batches
        if not 0 <= start_batch <= self.batches:
            raise ValueError(
                f"start_batch must be from 0 to {self.batches} (the number of batches in an epoch), got {start_batch}."
            )
        self.speakers_per_batch, self.utterances_per_speaker = speakers_per_batch, utterances_per_speaker
        self.seed, self.epoch, self.start_batch = seed, epoch, start_batch
        share = speakers_per_batch // world_size
        self._own = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        """Return the number of remaining batches of the epoch."""
        return self.batches - self.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draws = np.random.default_rng((self.seed, self.epoch))
        waiting: dict[int, list[int]] = {}
        runs = itertools.islice(self._turns(draws), self.batches)
        for number, speakers in enumerate(runs):
            batch = [self._deal(int(speaker), waiting, draws) for speaker in speakers]
            if number >= self.start_batch:
                yield [(self.epoch, sample) for samples in batch[self._own] for sample in samples]

    def _turns(self, draws: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the speakers of one batch after another.

        A turn is a random order of all speakers. The speakers that do not fill a batch at the end of a turn come first
        in the next turn.
        """
        count, left = len(self._samples), np.empty(0, dtype=np.int64)
        while True:
            fresh = draws.permutation(count)
            # The speakers left over, fewer than a batch, move to the end of the new order. Then no batch contains a
            # speaker twice.
            twice = np.isin(fresh, left)
            turn = np.concatenate([left, fresh[~twice], fresh[twice]])
            full = len(turn) // self.speakers_per_batch * self.speakers_per_batch
            for start in range(0, full, self.speakers_per_batch):
                yield turn[start : start + self.speakers_per_batch]
            left = turn[full:]

    def _deal(self, speaker: int, waiting: dict[int, list[int]], draws: np.random.Generator) -> list[int]:
        """Return the next utterances of a speaker."""
        dealt: list[int] = []
        while len(dealt) < self.utterances_per_speaker:
            if not waiting.get(speaker):
                waiting[speaker] = draws.permutation(self._samples[speaker]).tolist()
            dealt.append(waiting[speaker].pop())
        return dealt


def _check_rank(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got rank {rank} and world_size {world_size}.")
