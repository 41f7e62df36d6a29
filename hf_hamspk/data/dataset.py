"""The training set: fixed-length crops with class indices.

Everything random about a sample is a pure function of (seed, epoch, sample): the index that the data set takes carries
the epoch, and each item draws from a generator of its own. So a run that is resumed, or that uses another number of
workers, ranks or accumulation steps, sees the same crops in the same global batches.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from ..audio_hamspk import SHORTEST_SECONDS, InputError, resample
from .audio import SAMPLING_RATE, read_utterance
from .augmentation import SampleOther
from .crops import random_crop

logger = logging.getLogger(__name__)

SPEED_RANGE = (0.5, 2.0)
"""Speed factors accepted: beyond an octave the result is no voice. Usual are 0.9 and 1.1."""

PERCENT_TOLERANCE = 1e-6
"""Distance from a whole percent that is rounding. The filter of a resampling grows with the smallest terms of the ratio
of the rates: at 0.9 it takes under a millisecond, at 1.9999 seconds."""

DRAWS_OF_OTHER_SPEAKER = 8
"""Draws before another utterance of the same speaker is accepted as babble: with 2 equally frequent speakers that
happens to 1 in 256."""


INT16_SCALE = 32768.0
"""Full scale of 16-bit audio, as soundfile has it."""


class Utterances(Protocol):
    """The utterances of a training set, numbered from 0."""

    def __len__(self) -> int:
        """How many there are, those that cannot be read included."""
        ...

    @property
    def speakers(self) -> Sequence[str]:
        """The distinct speakers, sorted."""
        ...

    def name(self, utterance: int) -> str:
        """Name of an utterance in reports."""
        ...

    def speaker(self, utterance: int) -> str:
        """Who speaks."""
        ...

    def candidates(self, utterance: int) -> Iterable[int]:
        """The utterance, then those that replace it, in order, if it cannot be read."""
        ...

    def others(self, utterance: int) -> Sequence[int]:
        """The utterances to draw babble from for this one, among them this one."""
        ...

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        """A random crop, see `random_crop`: `(samples,)` float32.

        Raises:
            InputError: the utterance cannot be read. Its `name`, if it has one, says which file or shard.
        """
        ...

    def failed(self) -> list[str]:
        """Names of the utterances that could not be read so far, in this process and loader processes."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal; sources with the same utterances in the same order have the same."""
        ...


class CorpusUtterances:
    """Audio files, see `load_corpus`. Each is decoded whole and checked, and may be kept in memory.

    Args:
        corpus: columns `path` and `speaker`.
        sampling_rate: samples per second wanted.
        min_duration: seconds below which a file counts as unreadable.
        cache_bytes: budget per process for decoded waveforms, see `SpeakerCrops`.
    """

    def __init__(
        self,
        corpus: datasets.Dataset,
        sampling_rate: int = SAMPLING_RATE,
        min_duration: float = SHORTEST_SECONDS,
        cache_bytes: int = 0,
    ):
        self.corpus = corpus
        self.sampling_rate = sampling_rate
        self.min_duration = min_duration
        self.cache_bytes = cache_bytes
        self._cache: dict[int, np.ndarray] = {}
        self._cached_bytes = 0
        # Shared with the loader's worker processes, whose own memory never comes back.
        self._failed = torch.zeros(len(corpus), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.corpus)

    @property
    def speakers(self) -> list[str]:
        return sorted(set(self.corpus["speaker"]))

    def name(self, utterance: int) -> str:
        return str(self.corpus[utterance]["path"])

    def speaker(self, utterance: int) -> str:
        return self.corpus[utterance]["speaker"]

    def candidates(self, utterance: int) -> Iterable[int]:
        return ((utterance + step) % len(self) for step in range(len(self)))

    def others(self, utterance: int) -> range:
        return range(len(self))

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        try:
            waveform = self._read(utterance)
        except InputError:
            self._failed[utterance] = True
            raise
        return random_crop(waveform, samples, generator)

    def failed(self) -> list[str]:
        return [self.name(index) for index in torch.nonzero(self._failed).flatten().tolist()]

    def fingerprint(self) -> str:
        # Names without folders: the audio may be moved between a run and its resumption.
        rows = zip(self.corpus["path"], self.corpus["speaker"], strict=True)
        names = "\n".join(f"{Path(path).name} {speaker}" for path, speaker in rows)
        return hashlib.sha256(names.encode()).hexdigest()

    def _read(self, utterance: int) -> np.ndarray:
        kept = self._cache.get(utterance)
        if kept is None:
            waveform = read_utterance(self.name(utterance), self.sampling_rate, min_duration=self.min_duration).waveform
            if self.cache_bytes == 0:
                return waveform
            kept = np.clip(np.rint(waveform * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)
            if self._cached_bytes + kept.nbytes <= self.cache_bytes:
                self._cache[utterance] = kept
                self._cached_bytes += kept.nbytes
        return kept.astype(np.float32) / np.float32(INT16_SCALE)


class CropAugmentation(Protocol):
    """The interface of an augmentation of `SpeakerCrops`; `hf_hamspk.data.Augmentation` is one."""

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

    Example:
        ```python
        from hf_hamspk.data import load_corpus, speaker_labels

        corpus = load_corpus("corpus/train.csv", "corpus")
        labels = {speaker: index for index, speaker in enumerate(speaker_labels(corpus))}
        crop = SpeakerCrops(corpus, labels, crop_samples=16_000, seed=0)[0, 3]
        ```

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
            does not depend on earlier ones; for 16-bit mono files at `sampling_rate` this changes nothing.

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
        min_duration: float = SHORTEST_SECONDS,
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
            InputError: no file of the corpus can be read.
        """
        epoch, sample = index
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not one of the {len(self)} of this data set")
        generator = np.random.default_rng((self.seed, epoch, sample))
        factor_index, wanted = divmod(sample, len(self.utterances))
        factor = self.speed_factors[factor_index]
        # Cut before the change of speed: only the crop is resampled.
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
        except InputError as error:
            # A noise or room file: the crop stays clean.
            self._note_failure(error.name, error.reason)
            return crop

    def _cut(self, utterance: int, samples: int, generator: np.random.Generator) -> tuple[int, np.ndarray]:
        """The utterance, or the first readable one of those that take its place, and a random crop of it."""
        for candidate in self.utterances.candidates(utterance):
            try:
                return candidate, self.utterances.cut(candidate, samples, generator)
            except InputError as error:
                # Some errors name not the utterance but the shard that holds it.
                name = error.name if error.name else self.utterances.name(candidate)
                self._note_failure(name, error.reason)
        raise InputError(f"none of the {len(self.utterances)} files of the corpus can be read; run check_corpus on it")

    def note_failures(self, reasons: Mapping[str, str]) -> None:
        """Record failures that a loader process found and logged."""
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
