"""Train on shards with the same crops as from files, with only a few groups in memory at any time.

Every rank does the same number of steps. An epoch covers the complete corpus, less fewer samples than one global
batch. The samples of a global batch depend only on seed, epoch and shards. They do not depend on the number of ranks,
loader processes and accumulation steps, or on the step at which a run was interrupted.
"""

import copy
from collections.abc import Iterable, Iterator
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
"""Bytes of audio that the shuffling of an epoch keeps in memory, over all processes of a run together."""


def shuffle_of(reader: ShardReader) -> tuple[int, int]:
    """Return the lanes and the window for shuffling these shards (see `EpochOrder`).

    They depend on the manifest only.
    """
    return choose_shuffle(reader.group_bytes, LANES, WINDOW, SHUFFLE_BYTES)


class ShardUtterances:
    """Utterances of a folder of shards in the order of the manifest, as a source for `SpeakerCrops`.

    Babble is drawn from the group of the utterance, which is in memory already. An utterance that cannot be read is
    replaced by the next one of its group. A group that cannot be read is replaced by the groups that follow it in the
    epoch.

    Args:
        reader: reader of the shards.
        sampling_rate: sampling rate in Hz of the decoded crops.
        store: store of the groups in memory. None makes one that keeps a few groups.
        order: order of the epoch that is read. None takes the order of the manifest.
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
        group, row = self._place(utterance)
        return self.store.get(group).names[row]

    def speaker(self, utterance: int) -> str:
        group, row = self._place(utterance)
        return self.store.get(group).speakers[row]

    def candidates(self, utterance: int) -> Iterator[int]:
        group, row = self._place(utterance)
        groups = range(len(self.reader.group_sizes)) if self.order is None else self.order.after(group)
        for candidate in (group, *groups):
            first, size = int(self.reader.first_utterance[candidate]), int(self.reader.group_sizes[candidate])
            for step in range(size):
                yield first + (row + step) % size
                if self.store.is_broken(candidate):
                    break

    def others(self, utterance: int) -> range:
        group, _ = self._place(utterance)
        first = int(self.reader.first_utterance[group])
        return range(first, first + int(self.reader.group_sizes[group]))

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        group, row = self._place(utterance)
        found = self.store.get(group)
        try:
            return decode_crop(found.audio(row), samples, generator, self.sampling_rate)
        except InputError as error:
            raise InputError(error.reason, f"{found.names[row]} ({self.reader.name_of(group)})") from error

    def failed(self) -> list[str]:
        # The reasons travel with the samples of loader processes.
        return []

    def fingerprint(self) -> str:
        # Besides the seed, the order of an epoch depends on these.
        lanes, window = shuffle_of(self.reader)
        return f"{self.reader.fingerprint()} in {lanes} lanes of {window} groups"

    def _place(self, utterance: int) -> tuple[int, int]:
        group = int(np.searchsorted(self.reader.first_utterance, utterance, side="right")) - 1
        return group, utterance - int(self.reader.first_utterance[group])


class StreamedCrops(IterableDataset[dict[str, Any]]):
    """Micro-batches of one rank in one epoch, divided among the loader processes.

    Each process yields its share of every micro-batch: a dictionary from `collate`, with `failures` added if there are
    new
    ones. The shares of a `DataLoader(..., batch_size=None)` come in turn, and `StreamedBatches` joins them.

    Args:
        crops: crops of `ShardUtterances`.
        batch_size: number of samples in a global batch, over all ranks and accumulation steps.
        epoch: number of the epoch, at least 0.
        first_batch: number of global batches of this epoch to skip.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of ranks.
        accumulation_steps: number of micro-batches in a global batch on each rank.
        read_ahead_bytes: number of bytes that each process fetches in advance.

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
            raise ValueError("crops must be of shards; pass SpeakerCrops(ShardUtterances(reader), ...)")
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
                f"first_batch must be from 0 to {self.order.batches}, the global batches of an epoch, got "
                f"{first_batch}; the shards or the batch size may differ from those of the run to be resumed"
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        process = get_worker_info()
        worker, workers = (0, 1) if process is None else (process.id, process.num_workers)
        shares = [worker_slots(start, stop, worker, workers) for start, stop in self.slots]
        lanes = sorted({lane for share in shares for lane in self.order.lanes_of(*share)})
        with GroupStore(self.reader, self.read_ahead_bytes) as store:
            crops = copy.copy(self.crops)
            crops.utterances = ShardUtterances(self.reader, crops.sampling_rate, store, self.order)
            reported = set(crops.failures)
            store.plan(self.order, lanes, self.first_batch)
            for batch in range(self.first_batch, self.order.batches):
                store.advance(batch)
                for share in shares:
                    samples = self.order.samples(batch, *share)
                    piece = self._collate([crops[self.epoch, int(sample)] for sample in samples])
                    news = {name: reason for name, reason in crops.failures.items() if name not in reported}
                    reported |= news.keys()
                    yield piece | ({"failures": news} if news else {})

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        if items:
            return collate(items)
        return {
            "input_values": torch.empty(0, *self.crops.item_shape),
            "labels": torch.empty(0, dtype=torch.int64),
        }


class StreamedBatches:
    """Micro-batches of one rank for a training loop, epoch after epoch.

    Each iteration runs from the present place to the end of the epoch and then moves to the start of the next one. The
    place is `epoch` and `batch` (number of global batches done). Set both to resume a run with the same shards, seed
    and
    batch size; the number of ranks and processes may differ.

    Args:
        crops: crops of `ShardUtterances`.
        batch_size: number of samples in a global batch, over all ranks and accumulation steps.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of ranks.
        accumulation_steps: number of micro-batches in a global batch on each rank.
        num_workers: number of loader processes.
        pin_memory: copy the batches to pinned memory, from which a GPU reads faster.
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
        """Return the number of samples that an epoch leaves out, fewer than a global batch.

        The samples differ from epoch to epoch.
        """
        return len(self.crops) % self.batch_size

    def __len__(self) -> int:
        """Return the number of micro-batches of a complete epoch on this rank."""
        return self.batches_per_epoch * self.accumulation_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        stream = self._stream()
        loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=self.num_workers,
            # Its own generator: the loader otherwise draws a seed from the one that masking and dropout use.
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
    """Recordings of a folder of shards as an `hf_hamspk.data.augmentation.NoiseSource`; each is equally likely.

    A draw reads the group of its recording, unless the group is in memory. Small groups make it fast
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
        utterance = int(generator.integers(self.reader.manifest.utterances))
        group = int(np.searchsorted(self.reader.first_utterance, utterance, side="right")) - 1
        if self._store is None:
            self._store = GroupStore(self.reader)
        found = self._store.get(group)
        row = utterance - int(self.reader.first_utterance[group])
        return found.audio(row), found.names[row]
