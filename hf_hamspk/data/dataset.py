"""The training set: fixed-length crops with class indices, and the sampler that deals them out to ranks.

Everything random about a sample is a pure function of (seed, epoch, sample): the index that the data set takes carries
the epoch, and each item draws from a generator of its own. So a run that is resumed, or that uses another number of
workers, ranks or accumulation steps, sees the same crops in the same global batches.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .audio import MIN_DURATION, SAMPLING_RATE, AudioError, resample
from .augmentation import SampleOther
from .utterances import CorpusUtterances, Utterances

logger = logging.getLogger(__name__)

SPEED_RANGE = (0.5, 2.0)
"""Speed factors accepted: beyond an octave the result is no voice. Usual are 0.9 and 1.1."""

PERCENT_TOLERANCE = 1e-6
"""Distance from a whole percent that is rounding. The filter of a resampling grows with the smallest terms of the ratio
of the rates: at 0.9 it takes under a millisecond, at 1.9999 seconds."""

DRAWS_OF_OTHER_SPEAKER = 8
"""Draws before another utterance of the same speaker is accepted as babble: with 2 equally frequent speakers that
happens to 1 in 256."""


class CropAugmentation(Protocol):
    """What `SpeakerCrops` asks of an augmentation; `hf_hamspk.data.Augmentation` is one."""

    def __call__(
        self, waveform: np.ndarray, generator: np.random.Generator, sample_other: SampleOther | None = None
    ) -> np.ndarray:
        """A new waveform of the same shape; everything random is drawn from `generator`."""
        ...


class SpeakerCrops(Dataset[dict[str, Any]]):
    """Map-style training set of random crops, indexed by (epoch, sample).

    Each speed factor other than the first makes new speakers. With `N` utterances and `K` speakers, sample
    `factor_index * N + utterance` is that utterance at that factor, and its label is
    `factor_index * K + label_of[speaker]`.

    An utterance that cannot be read is replaced by the next readable one (with the label of that one), counted in
    `failures` and logged once.

    Args:
        corpus: a table with the columns `path` and `speaker`, see `load_corpus`; or another source of utterances, which
            then has its own `sampling_rate`, `min_duration` and cache.
        label_of: class index of each speaker, the numbers 0 to `K - 1` once each.
        crop_samples: length of a crop, at least 1.
        seed: at least 0.
        speed_factors: speeds, the first 1.0, all different, whole percents between 0.5 and 2. Speed changes tempo and
            pitch.
        augmentation: applied to the crop, see `hf_hamspk.data.Augmentation`; None leaves it clean.
        pairs: each item holds the clean crop and an augmented copy of it, as in the released trainer.
        sampling_rate: samples per second of the crops.
        min_duration: seconds below which a file counts as unreadable.
        cache_bytes: budget per process for decoded waveforms, kept as 16-bit integers until it is spent (nothing is
            dropped again). 0 keeps none. Above 0 every waveform is rounded to 16 bits, kept or not, so that an item
            does not depend on what was read before; for 16-bit mono files at `sampling_rate` this changes nothing.

    Raises:
        ValueError: an argument is out of range, or a speaker of the corpus has no label.
    """

    def __init__(
        self,
        corpus: datasets.Dataset | Utterances,
        label_of: Mapping[str, int],
        crop_samples: int,
        seed: int,
        speed_factors: Sequence[float] = (1.0,),
        augmentation: CropAugmentation | None = None,
        *,
        sampling_rate: int = SAMPLING_RATE,
        min_duration: float = MIN_DURATION,
        cache_bytes: int = 0,
        pairs: bool = False,
    ):
        self.utterances: Utterances = (
            CorpusUtterances(corpus, sampling_rate, min_duration, cache_bytes)
            if isinstance(corpus, datasets.Dataset)
            else corpus
        )
        self.label_of = dict(label_of)
        self.crop_samples = crop_samples
        self.seed = seed
        self.speed_factors = tuple(float(factor) for factor in speed_factors)
        self.augmentation = augmentation
        self.pairs = pairs
        self.sampling_rate = sampling_rate
        if crop_samples < 1 or seed < 0 or cache_bytes < 0:
            raise ValueError(
                "crop_samples must be at least 1, seed and cache_bytes at least 0, "
                f"got {crop_samples}, {seed} and {cache_bytes}"
            )
        if pairs and augmentation is None:
            raise ValueError("pairs are of a clean crop and an augmented one: give an augmentation, too")
        self._check_arguments()
        self._reasons: dict[str, str] = {}

    def _check_arguments(self) -> None:
        if len(self.utterances) == 0:
            raise ValueError("the corpus has no rows; see load_corpus")
        if sorted(self.label_of.values()) != list(range(len(self.label_of))):
            raise ValueError(
                f"label_of must number its {len(self.label_of)} speakers 0 to {len(self.label_of) - 1}, once each; "
                "build it with {speaker: index for index, speaker in enumerate(speaker_labels(corpus))}"
            )
        unknown = sorted(set(self.utterances.speakers) - set(self.label_of))
        if unknown:
            raise ValueError(f"{len(unknown)} speakers of the corpus are not in label_of, the first is {unknown[0]!r}")
        low, high = SPEED_RANGE
        factors = self.speed_factors
        if not factors or factors[0] != 1.0 or len(set(factors)) < len(factors):
            raise ValueError(f"speed_factors must be different and begin with 1.0, got {factors}")
        if not all(low <= factor <= high for factor in factors):
            raise ValueError(f"speed_factors must lie between {low} and {high}, got {factors}")
        if any(abs(100 * factor - round(100 * factor)) > PERCENT_TOLERANCE for factor in factors):
            raise ValueError(
                f"speed_factors must be whole percents, got {factors}; finer ones take seconds to resample"
            )

    @property
    def number_of_labels(self) -> int:
        """Classes that a head needs: speakers times speed factors."""
        return len(self.label_of) * len(self.speed_factors)

    def labels(self) -> np.ndarray:
        """The class of each sample, `(len(self),)` int64."""
        one = np.array([self.label_of[self.utterances.speaker(i)] for i in range(len(self.utterances))])
        return np.concatenate([number * len(self.label_of) + one for number in range(len(self.speed_factors))])

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of the `input_values` of an item."""
        return (2, self.crop_samples) if self.pairs else (self.crop_samples,)

    @property
    def failures(self) -> dict[str, str]:
        """Name (or augmentation file) to reason for all that could not be read so far, in this and worker processes."""
        unexplained = "could not be read in a loader process, whose log has the reason"
        return dict.fromkeys(self.utterances.failed(), unexplained) | self._reasons

    def __len__(self) -> int:
        return len(self.utterances) * len(self.speed_factors)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """The crop of a sample in an epoch.

        Args:
            index: (epoch, sample), the sample from 0 to `len(self) - 1`.

        Returns:
            `input_values`: `(crop_samples,)` float32, of pairs `(2, crop_samples)`, the clean crop first; `labels`:
            int.

        Raises:
            IndexError: the sample is out of range.
            AudioError: no file of the corpus can be read.
        """
        epoch, sample = index
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not one of the {len(self)} of this data set")
        generator = np.random.default_rng((self.seed, epoch, sample))
        factor_index, wanted = divmod(sample, len(self.utterances))
        factor = self.speed_factors[factor_index]
        # Cut first, then sped up: only what is kept is resampled.
        utterance, crop = self._cut(wanted, int(np.ceil(self.crop_samples * factor)), generator)
        crop = self._speed_up(crop, factor)
        if self.augmentation is not None:
            augmented = self._augment(self.augmentation, crop, utterance, generator)
            crop = np.stack((crop, augmented)) if self.pairs else augmented
        label = factor_index * len(self.label_of) + self.label_of[self.utterances.speaker(utterance)]
        return {"input_values": crop, "labels": label}

    def _speed_up(self, crop: np.ndarray, factor: float) -> np.ndarray:
        """`(crop_samples,)`, a copy."""
        crop = resample(crop, round(self.sampling_rate * factor), self.sampling_rate)
        # The rounding of the rate can leave a fast crop a sample short.
        return np.resize(crop, self.crop_samples) if len(crop) != self.crop_samples else crop.copy()

    def _augment(
        self, augmentation: CropAugmentation, crop: np.ndarray, utterance: int, generator: np.random.Generator
    ) -> np.ndarray:
        speaker, pool = self.utterances.speaker(utterance), self.utterances.others(utterance)

        def sample_other(draws: np.random.Generator) -> np.ndarray:
            other = utterance
            for _ in range(DRAWS_OF_OTHER_SPEAKER):
                other = pool[int(draws.integers(len(pool)))]
                if self.utterances.speaker(other) != speaker:
                    break
            return self._cut(other, self.crop_samples, draws)[1]

        try:
            return augmentation(crop, generator, sample_other)
        except AudioError as error:
            # A noise or room file: the crop stays clean.
            self._note_failure(error.source, error.reason)
            return crop

    def _cut(self, utterance: int, samples: int, generator: np.random.Generator) -> tuple[int, np.ndarray]:
        """The utterance, or the first readable one of those that take its place, and a random crop of it."""
        for candidate in self.utterances.candidates(utterance):
            try:
                return candidate, self.utterances.cut(candidate, samples, generator)
            except AudioError as error:
                # The source of some errors is not the utterance but the shard that it lies in.
                name = error.source if error.source else self.utterances.name(candidate)
                self._note_failure(name, error.reason)
        raise AudioError(f"none of the {len(self.utterances)} files of the corpus can be read; run check_corpus on it")

    def note_failures(self, reasons: Mapping[str, str]) -> None:
        """Take over what a loader process found and logged."""
        self._reasons.update(reasons)

    def _note_failure(self, path: str, reason: str) -> None:
        if path not in self._reasons:
            self._reasons[path] = reason
            logger.warning("skipped in training: %s: %s", path, reason)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of `SpeakerCrops`.

    Returns:
        `input_values`: `(B, L)` float32, of pairs `(B, 2, L)`; `labels`: `(B,)` int64.
    """
    return {
        "input_values": torch.from_numpy(np.stack([item["input_values"] for item in items])),
        "labels": torch.tensor([item["labels"] for item in items], dtype=torch.int64),
    }


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """Deals the global batches of one epoch out to ranks and micro-batches.

    The epoch's order is `numpy.random.default_rng((seed, epoch)).permutation(number_of_samples)`, unless one is given.
    Global batch `k` is the `k`-th run of `batch_size_global` of it, the remainder is dropped. Within it, micro-batch
    `a` of rank `r` is the contiguous slice number `a * world_size + r`. Which samples make up a global batch therefore
    depends neither on the number of ranks nor on the accumulation, and every rank yields equally many micro-batches.

    Give it to a `DataLoader` as `batch_sampler`, with `collate`; make a new one for each epoch.

    Args:
        number_of_samples: length of the data set.
        batch_size_global: samples per optimiser step over all ranks; divisible by
            `world_size * accumulation_steps`.
        rank: from 0 to `world_size - 1`.
        world_size: number of ranks.
        accumulation_steps: micro-batches per optimiser step.
        seed: at least 0.
        epoch: at least 0.
        start_batch: global batches of this epoch to skip without decoding, to resume in its middle.
        order: another order of this epoch, `(n,)` with at least all full global batches, for example that in which
            shards are streamed (`hf_hamspk.shards.EpochOrder`); None draws the permutation.

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
                f"got {batch_size_global}, {world_size}, {accumulation_steps}, {seed} and {epoch}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
        slices = world_size * accumulation_steps
        if batch_size_global % slices:
            raise ValueError(
                f"a global batch of {batch_size_global} does not divide into {world_size} ranks x {accumulation_steps} "
                f"accumulation steps; use a multiple of {slices}, for example "
                f"{max(1, batch_size_global // slices) * slices}"
            )
        if number_of_samples < batch_size_global:
            raise ValueError(
                f"{number_of_samples} samples do not fill one global batch of {batch_size_global}; lower the batch "
                f"size to {number_of_samples} or less"
            )
        self.batches_per_epoch = number_of_samples // batch_size_global
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(
                f"start_batch must be from 0 to {self.batches_per_epoch}, the global batches of an epoch, got "
                f"{start_batch}; the data or the batch size may differ from those of the run to be resumed"
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
        """Micro-batches that this rank yields."""
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
