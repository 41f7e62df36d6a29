"""Stream training crops from a `datasets.IterableDataset`, in the order of its rows.

Global batch `k` of an epoch consists of rows `k * B` to `(k + 1) * B - 1`. Every rank and every loader process reads
all rows without decoding them, and decodes only its own. The samples of a global batch therefore do not depend on the
numbers of ranks, loader processes and accumulation steps, or on the step at which a run was interrupted.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from ..audio_hamspk import Channel
from ..data.audio import SAMPLING_RATE, read_utterance
from ..data.columns import Columns, columns_of, digest_of_rows, require_speakers, without_decoding
from ..data.crops import random_crop
from ..data.dataset import SpeakerCrops
from .order import micro_batch_slots
from .streaming import StreamedBatches, collate_shares, shares_of_process

ROWS_AT_ONCE = 16
"""Number of rows that are fetched together, undecoded."""


class RowStream:
    """Rows of a streamed data set, with their number and their speakers.

    Args:
        dataset: streamed data set.
        audio_column: column of audio; see `find_columns`.
        speaker_column: column of speakers; see `find_columns`.
        count: number of rows of an epoch; 0 counts the rows in a pass over the speaker column.
        speakers: all speakers; None takes the names of a `ClassLabel`, or collects them in the same pass.
        shuffle: whether to set the epoch of the data set before each pass. Its shards, and its rows after
            `IterableDataset.shuffle`, then have another order in each pass. If False, all passes have the same order.

    Raises:
        ValueError: a column or a speaker is missing, or there are fewer than 2 speakers.
    """

    def __init__(
        self,
        dataset: Any,
        audio_column: str | None = None,
        speaker_column: str | None = None,
        count: int = 0,
        speakers: Sequence[str] | None = None,
        shuffle: bool = True,
    ):
        self.shuffle = shuffle
        self.columns = columns_of(dataset, audio_column, speaker_column)
        self.dataset = without_decoding(dataset, self.columns)
        known = self.columns.names if speakers is None else speakers
        self.counted = count == 0 or known is None
        if self.counted:
            found = self.columns.speakers_in(self.dataset)
            require_speakers(found)
            self.count, self.speakers, self.digest = len(found), sorted(set(found)), digest_of_rows(found)
        else:
            self.count, self.speakers = count, sorted(known or ())
            self.digest = digest_of_rows([str(count), *self.speakers])
            require_speakers(self.speakers)

    def rows(self, number: int) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of one pass.

        Args:
            number: number of the pass, from which the data set chooses its order if it is shuffled.

        Raises:
            ValueError: the data set has fewer rows than expected.
        """
        if self.shuffle:
            self.dataset.set_epoch(number)
        given = 0
        # Not `iter(dataset)`, which gives each loader process other rows.
        for rows in self.dataset.iter(batch_size=ROWS_AT_ONCE):
            for place in range(len(rows[self.columns.audio])):
                if given == self.count:
                    return
                given += 1
                yield {name: cells[place] for name, cells in rows.items()}
        if given < self.count:
            raise ValueError(
                f"The streamed data set has {given} rows, expected {self.count}. Set samples_per_epoch to at most "
                f"{given}, or to 0 to count the rows."
            )


class StreamUtterances:
    """Source of utterances for `SpeakerCrops` that holds the rows of one global batch of a stream.

    A row that cannot be read is replaced by the next one of the same global batch. Babble is made from the rows of the
    same global batch.

    Args:
        stream: rows of the data set.
        sampling_rate: sampling rate in Hz of the decoded crops.
        channel: channel of the recordings to read; see `read_sound`.
    """

    def __init__(self, stream: RowStream, sampling_rate: int = SAMPLING_RATE, channel: Channel = None):
        self.stream, self.sampling_rate, self.channel = stream, sampling_rate, channel
        self._rows: dict[int, Mapping[str, Any]] = {}

    def fill(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Set the rows of the current global batch, by the number of the row."""
        self._rows = dict(rows)

    def __len__(self) -> int:
        return self.stream.count

    @property
    def speakers(self) -> list[str]:
        return self.stream.speakers

    def name(self, utterance: int) -> str:
        return self._columns.name_of(self._rows[utterance], utterance)

    def speaker(self, utterance: int) -> str:
        return self._columns.speaker_of(self._rows[utterance][self._columns.speaker], utterance)

    def candidates(self, utterance: int) -> Iterable[int]:
        numbers = list(self._rows)
        first = numbers.index(utterance)
        return numbers[first:] + numbers[:first]

    def others(self, utterance: int) -> Sequence[int]:
        return list(self._rows)

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        row = self._rows[utterance]
        source = self._columns.source_of(row)
        sound = read_utterance(source, self.sampling_rate, self.name(utterance), channel=self.channel)
        return random_crop(sound.waveform, samples, generator)

    def failed(self) -> list[str]:
        # Loader processes send the reasons together with the samples.
        return []

    def fingerprint(self) -> str:
        return self.stream.digest

    def contents(self) -> str:
        # This would need a pass over all recordings of the stream.
        return ""

    @property
    def _columns(self) -> Columns:
        return self.stream.columns


class StreamedRows(IterableDataset[dict[str, Any]]):
    """Iterable data set of the micro-batches of one rank in one epoch, divided among the loader processes.

    Args:
        crops: crops drawn from `StreamUtterances`.
        batch_size: number of samples in a global batch, over all ranks and accumulation steps.
        epoch: number of the epoch, at least 0.
        first_batch: number of global batches to skip at the start of the epoch.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of ranks.
        accumulation_steps: number of micro-batches in a global batch on each rank.

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
    ):
        if not isinstance(crops.utterances, StreamUtterances):
            raise ValueError(f"crops must be drawn from a stream, got crops of {type(crops.utterances).__name__}")
        self.crops, self.stream = crops, crops.utterances.stream
        self.batch_size, self.epoch, self.first_batch = batch_size, epoch, first_batch
        self.slots = micro_batch_slots(batch_size, rank, world_size, accumulation_steps)
        self.batches = len(crops) // batch_size
        if self.batches < 1:
            raise ValueError(
                f"{len(crops)} samples do not fill one global batch of {batch_size}; lower the batch size to "
                f"{len(crops)} or less"
            )
        if not 0 <= first_batch <= self.batches:
            raise ValueError(f"first_batch must be from 0 to {self.batches}, got {first_batch}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        crops = copy.copy(self.crops)
        crops.utterances = utterances = StreamUtterances(self.stream, crops.sampling_rate)
        yield from collate_shares(crops, self.epoch, self._samples(utterances))

    def _samples(self, utterances: StreamUtterances) -> Iterator[list[int]]:
        shares = shares_of_process(self.slots)
        for batch in itertools.islice(self._global_batches(), self.first_batch, None):
            utterances.fill({row: content for _, row, content in batch})
            for start, stop in shares:
                yield [sample for sample, _, _ in batch[start:stop]]

    def _global_batches(self) -> Iterator[list[tuple[int, int, Mapping[str, Any]]]]:
        """Yield each global batch as triples of sample number, row number and row."""
        factors, count = len(self.crops.speed_factors), self.stream.count
        batch: list[tuple[int, int, Mapping[str, Any]]] = []
        for number in range(factors):
            for row, content in enumerate(self.stream.rows(self.epoch * factors + number)):
                batch.append(((row + number) % factors * count + row, row, content))
                if len(batch) == self.batch_size:
                    yield batch
                    batch = []


class RowBatches(StreamedBatches):
    """Iterable of the micro-batches of one rank over a streamed data set; see `StreamedBatches`."""

    def _stream(self) -> StreamedRows:
        return StreamedRows(
            self.crops, self.batch_size, self.epoch, self.batch, self.rank, self.world_size, self.accumulation_steps
        )
