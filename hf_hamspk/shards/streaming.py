"""Stream training crops from shards, with only a few groups of utterances in memory at any time.

A group is a row group of a Parquet file or a range of consecutive members of a tar. Crops are drawn in the same way as
from audio files. Every rank does the same number of steps. An epoch covers the corpus except for a remainder that is
smaller than one global batch. The samples of a global batch depend only on the seed, the epoch and the shards. They do
not depend on the numbers of ranks, loader processes and accumulation steps, or on the step at which a run was
interrupted.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..audio_hamspk import InputError
from ..data.audio import SAMPLING_RATE, read_utterance
from ..data.dataset import SpeakerCrops, collate
from .crops import decode_crop
from .order import LANES, WINDOW, EpochOrder, micro_batch_slots, worker_slots
from .prefetching import READ_AHEAD_BYTES, GroupStore
from .reading import ShardReader, choose_shuffle

SHUFFLE_BYTES = 256 << 20
"""Memory budget in bytes for the groups that are shuffled together, in all processes of a run combined."""


def shuffle_of(reader: ShardReader) -> tuple[int, int]:
    """Return the number of lanes, and the number of groups in a window, with which `EpochOrder` shuffles the shards.

    Both numbers depend only on the manifest.
    """
    return choose_shuffle(reader.group_bytes, LANES, WINDOW, SHUFFLE_BYTES)


def place_of(reader: ShardReader, utterance: int) -> tuple[int, int]:
    """Return the number of the group that contains an utterance, and the row of the utterance in the group."""
    group = int(np.searchsorted(reader.first_utterance, utterance, side="right")) - 1
    return group, utterance - int(reader.first_utterance[group])


class ShardUtterances:
    """Source of utterances for `SpeakerCrops` that reads a folder of shards.

    Utterances are numbered in the order of the manifest. Babble noise is made from utterances of the same group,
    because they are already in memory. An utterance that cannot be read is replaced by the next one in its group. If a
    group cannot be read, its utterances are replaced by utterances of the groups that follow it in the epoch.

    Args:
        reader: reader of the shards.
        sampling_rate: sampling rate in Hz of the decoded crops.
        store: store of the groups in memory. None creates a store that keeps a few groups.
        order: order of the groups in the epoch. None uses the order of the manifest.
    """

    def __init__(
        self,
        reader: ShardReader,
        sampling_rate: int = SAMPLING_RATE,
        store: GroupStore | None = None,
        order: EpochOrder | None = None,
    ):
        self.reader, self.sampling_rate, self.order = reader, sampling_rate, order
        self._store = store

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_store": None}

    @property
    def store(self) -> GroupStore:
        """Return the store of the groups in memory."""
        if self._store is None:
            self._store = GroupStore(self.reader)
        return self._store

    def __len__(self) -> int:
        return self.reader.manifest.utterances

    @property
    def speakers(self) -> list[str]:
        return self.reader.manifest.speakers

    def name(self, utterance: int) -> str:
        group, row = place_of(self.reader, utterance)
        return self.store.get(group).names[row]

    def speaker(self, utterance: int) -> str:
        group, row = place_of(self.reader, utterance)
        return self.store.get(group).speakers[row]

    def candidates(self, utterance: int) -> Iterator[int]:
        group, row = place_of(self.reader, utterance)
        groups = range(len(self.reader.group_sizes)) if self.order is None else self.order.after(group)
        for candidate in (group, *groups):
            first, size = int(self.reader.first_utterance[candidate]), int(self.reader.group_sizes[candidate])
            for step in range(size):
                yield first + (row + step) % size
                if self.store.is_broken(candidate):
                    break

    def others(self, utterance: int) -> range:
        group, _ = place_of(self.reader, utterance)
        first = int(self.reader.first_utterance[group])
        return range(first, first + int(self.reader.group_sizes[group]))

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        group, row = place_of(self.reader, utterance)
        found = self.store.get(group)
        try:
            return decode_crop(found.audio(row), samples, generator, self.sampling_rate)
        except InputError as error:
            raise InputError(error.reason, f"{found.names[row]} ({self.reader.name_of(group)})") from error

    def failed(self) -> list[str]:
        # Loader processes send the reasons together with the samples.
        return []

    def fingerprint(self) -> str:
        # Besides the seed, the order of an epoch depends on the shards, the lanes and the window.
        lanes, window = shuffle_of(self.reader)
        return f"{self.reader.fingerprint()} in {lanes} lanes of {window} groups"

    def contents(self) -> str:
        # The fingerprint contains the hashes of the shards.
        return ""


class StreamedCrops(IterableDataset[dict[str, Any]]):
    """Iterable data set of the micro-batches of one rank in one epoch, divided among the loader processes.

    Each loader process yields a part of every micro-batch, as a dictionary from `collate`. If utterances could not be
    read since the process yielded its previous part, the dictionary also has the key `failures`, with a dictionary from
    the names of these utterances to the reasons. `DataLoader(..., batch_size=None)` returns the parts of the processes
    in turn, and `StreamedBatches` joins them into micro-batches.

    Args:
        crops: crops drawn from `ShardUtterances`.
        batch_size: number of samples in a global batch, over all ranks and accumulation steps.
        epoch: number of the epoch, at least 0.
        first_batch: number of global batches to skip at the start of the epoch.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of ranks.
        accumulation_steps: number of micro-batches in a global batch on each rank.
        read_ahead_bytes: number of bytes that each loader process fetches in advance.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        crops: SpeakerCrops,
        batch_size: int,
        epoch: int = 0,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        read_ahead_bytes: int = READ_AHEAD_BYTES,
    ):
        if not isinstance(crops.utterances, ShardUtterances):
            raise ValueError(
                f"crops must be drawn from shards, got crops of {type(crops.utterances).__name__}; pass "
                "SpeakerCrops(ShardUtterances(reader), ...)"
            )
        self.crops, self.reader = crops, crops.utterances.reader
        self.lanes, self.window = shuffle_of(self.reader)
        self.epoch, self.first_batch = epoch, first_batch
        self.order = EpochOrder(
            self.reader.group_sizes,
            batch_size,
            crops.seed,
            epoch,
            len(crops.speed_factors),
            self.lanes,
            self.window,
        )
        self.slots = micro_batch_slots(batch_size, rank, world_size, accumulation_steps)
        self.read_ahead_bytes = read_ahead_bytes
        if not 0 <= first_batch <= self.order.batches:
            raise ValueError(
                f"first_batch must be from 0 to {self.order.batches}, the number of global batches in an epoch, got "
                f"{first_batch}; use the same shards and batch size as the run that is resumed"
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        shares = shares_of_process(self.slots)
        lanes = sorted({lane for share in shares for lane in self.order.lanes_of(*share)})
        with GroupStore(self.reader, self.read_ahead_bytes) as store:
            crops = copy.copy(self.crops)
            crops.utterances = ShardUtterances(self.reader, crops.sampling_rate, store, self.order)
            store.plan(self.order, lanes, self.first_batch)
            yield from collate_shares(crops, self.epoch, self._samples(store, shares))

    def _samples(self, store: GroupStore, shares: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
        for batch in range(self.first_batch, self.order.batches):
            store.advance(batch)
            for share in shares:
                yield self.order.samples(batch, *share)


def shares_of_process(slots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the slots of this loader process in each micro-batch; see `worker_slots`."""
    process = get_worker_info()
    worker, workers = (0, 1) if process is None else (process.id, process.num_workers)
    return [worker_slots(start, stop, worker, workers) for start, stop in slots]


def collate_shares(
    crops: SpeakerCrops, epoch: int, shares: Iterable[Sequence[int] | np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Yield a batch of crops for each share of sample numbers, with new failures (see `StreamedCrops`)."""
    empty = {"input_values": torch.empty(0, *crops.item_shape), "labels": torch.empty(0, dtype=torch.int64)}
    reported = set(crops.failures)
    for samples in shares:
        items = [crops[epoch, int(sample)] for sample in samples]
        piece = collate(items) if items else empty
        news = {name: reason for name, reason in crops.failures.items() if name not in reported}
        reported |= news.keys()
        yield piece | ({"failures": news} if news else {})


class StreamedBatches:
    """Iterable of the micro-batches of one rank for a training loop.

    The attribute `epoch` is the number of the current epoch, and `batch` is the number of its finished global batches.
    Each iteration yields the remaining micro-batches of the epoch, and then sets both attributes to the start of the
    next epoch. To resume a run, set both attributes, and use the same shards, seed and batch size. The numbers of ranks
    and loader processes may differ from those of the interrupted run.

    Args:
        crops: crops drawn from `ShardUtterances`.
        batch_size: number of samples in a global batch, over all ranks and accumulation steps.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of ranks.
        accumulation_steps: number of micro-batches in a global batch on each rank.
        num_workers: number of loader processes.
        pin_memory: whether to copy the batches to pinned memory, which speeds up the transfer to a GPU.
    """

    def __init__(
        self,
        crops: SpeakerCrops,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation_steps: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.crops, self.batch_size = crops, batch_size
        self.rank, self.world_size, self.accumulation_steps = rank, world_size, accumulation_steps
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.epoch, self.batch = 0, 0
        self._stream()

    def _stream(self) -> StreamedCrops:
        return StreamedCrops(
            self.crops,
            self.batch_size,
            self.epoch,
            self.batch,
            self.rank,
            self.world_size,
            self.accumulation_steps,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of global batches in an epoch."""
        return len(self.crops) // self.batch_size

    @property
    def remainder(self) -> int:
        """Return the number of samples that each epoch leaves out, which is smaller than the batch size.

        Each epoch leaves out different samples.
        """
        return len(self.crops) % self.batch_size

    def __len__(self) -> int:
        """Return the number of micro-batches of this rank in a complete epoch."""
        return self.batches_per_epoch * self.accumulation_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        stream = self._stream()
        loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=self.num_workers,
            # Without this generator, the loader would draw its seed from the generator of masking and dropout.
            generator=torch.Generator(),
        )
        shares = max(1, self.num_workers)
        pieces = iter(loader)
        for done, group in enumerate(zip(*[pieces] * shares, strict=True), start=1):
            micro_batch = self._join(group)
            if done % self.accumulation_steps == 0:
                self.batch += 1
            yield micro_batch
        self.epoch, self.batch = self.epoch + 1, 0

    def _join(self, pieces: Iterable[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pieces = list(pieces)
        for piece in pieces:
            self.crops.note_failures(piece.pop("failures", {}))
        joined = (
            pieces[0]
            if len(pieces) == 1
            else {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        )
        return {name: tensor.pin_memory() for name, tensor in joined.items()} if self.pin_memory else joined


class NoiseShards:
    """Noise source that draws recordings from a folder of shards, each with the same probability.

    It implements `hf_hamspk.data.augmentation.NoiseSource`. Each draw fetches the complete group of a recording, unless
    the group is already in memory. Draws are therefore faster if the groups are small
    (`hamspk prepare --rows-per-group 4`).

    Args:
        reader: reader of the shards.
        sampling_rate: sampling rate of the recordings in Hz.
    """

    def __init__(self, reader: ShardReader, sampling_rate: int = SAMPLING_RATE):
        self.reader, self.sampling_rate = reader, sampling_rate
        self._store: GroupStore | None = None

    def __getstate__(self):
        return vars(self) | {"_store": None}

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        content, name = self._draw(generator)
        return decode_crop(content, samples, generator, self.sampling_rate, name)

    def whole(self, generator: np.random.Generator) -> np.ndarray:
        content, name = self._draw(generator)
        return read_utterance(bytes(content), self.sampling_rate, name, min_duration=0.0).waveform

    def _draw(self, generator: np.random.Generator) -> tuple[memoryview, str]:
        group, row = place_of(self.reader, int(generator.integers(self.reader.manifest.utterances)))
        if self._store is None:
            self._store = GroupStore(self.reader)
        found = self._store.get(group)
        return found.audio(row), found.names[row]
