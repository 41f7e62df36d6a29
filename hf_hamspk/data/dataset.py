"""Training set of fixed-length crops with class indices.

All random choices of a sample depend only on (seed, epoch, sample). The index of an item includes the epoch, and each
item has its own random generator. A run that is resumed, or that uses another number of workers, ranks or accumulation
steps, therefore gets the same crops in the same global batches.
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

from ..audio_hamspk import SHORTEST_SECONDS, Channel, InputError, resample
from ..files.same import digest_of_files
from .audio import SAMPLING_RATE, read_utterance
from .augmentation import INT16_SCALE, SampleOther
from .crops import random_crop

logger = logging.getLogger(__name__)

SPEED_RANGE = (0.5, 2.0)
"""Range of speed factors. A change of more than an octave no longer sounds like a voice; 0.9 and 1.1 are usual."""

PERCENT_TOLERANCE = 1e-6
"""Largest deviation of a speed factor from a whole percent that is treated as a rounding error.

Other factors are not accepted, because the resampling filter grows with the terms of the reduced ratio of the sampling
rates. A factor of 0.9 takes less than a millisecond, a factor of 1.9999 takes seconds.
"""

DRAWS_OF_OTHER_SPEAKER = 8
"""Largest number of draws to find an utterance of another speaker for babble.

If every draw gives the same speaker, the last utterance is used. With 2 equally frequent speakers, this happens in 1 of
256 cases.
"""


class Utterances(Protocol):
    """Interface of a source of training utterances. The utterances are numbered from 0."""

    def __len__(self) -> int:
        """Return the number of utterances, including unreadable ones."""
        ...

    @property
    def speakers(self) -> Sequence[str]:
        """Return the distinct speakers, sorted."""
        ...

    def name(self, utterance: int) -> str:
        """Return the name of an utterance for reports and errors."""
        ...

    def speaker(self, utterance: int) -> str:
        """Return the speaker of an utterance."""
        ...

    def candidates(self, utterance: int) -> Iterable[int]:
        """Return the utterance followed by its replacements, which are tried in this order until one can be read."""
        ...

    def others(self, utterance: int) -> Sequence[int]:
        """Return the candidates from which babble for this utterance is drawn; the utterance itself is one of them."""
        ...

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        """Return a random crop of an utterance, `(samples,)` float32 (see `random_crop`).

        Raises:
            InputError: the utterance cannot be read. The `name` of the error is the name of the file or the shard, or
                is empty.
        """
        ...

    def failed(self) -> list[str]:
        """Return the names of the utterances that this process or its loader processes could not read so far."""
        ...

    def fingerprint(self) -> str:
        """Return a hexadecimal digest. Sources with the same utterances in the same order have the same digest."""
        ...

    def contents(self) -> str:
        """Return a digest that changes if a recording is replaced under the same name, or "" if this is not checked."""
        ...


class CorpusUtterances:
    """Source of utterances in the audio files of a corpus (see `load_corpus`).

    Each file is decoded completely and checked. Decoded waveforms can be kept in memory.

    Args:
        corpus: dataset with the columns `path` and `speaker`.
        sampling_rate: sampling rate in Hz of the decoded waveforms.
        min_duration: duration in seconds below which a file counts as unreadable.
        cache_bytes: memory per process for decoded waveforms (see `SpeakerCrops`).
        channel: channel of the recordings to read; see `read_sound`.
    """

    def __init__(
        self,
        corpus: datasets.Dataset,
        sampling_rate: int = SAMPLING_RATE,
        min_duration: float = SHORTEST_SECONDS,
        cache_bytes: int = 0,
        channel: Channel = None,
    ):
        self.corpus = corpus
        self.channel = channel
        self.sampling_rate = sampling_rate
        self.min_duration = min_duration
        self.cache_bytes = cache_bytes
        self._cache: dict[int, np.ndarray] = {}
        self._cached_bytes = 0
        # A column is read once, because reading one row takes about a millisecond.
        self._speaker_column: list[str] | None = None
        # In shared memory, so that failures in the worker processes of the data loader are recorded as well.
        self._failed = torch.zeros(len(corpus), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.corpus)

    @property
    def speakers(self) -> list[str]:
        return sorted(set(self.corpus["speaker"]))

    def name(self, utterance: int) -> str:
        return str(self.corpus[utterance]["path"])

    def speaker(self, utterance: int) -> str:
        if self._speaker_column is None:
            self._speaker_column = list(self.corpus["speaker"])
        return self._speaker_column[utterance]

    def source(self, utterance: int) -> Any:
        """Return the recording of an utterance in a form that `read_utterance` accepts."""
        return self.name(utterance)

    def candidates(self, utterance: int) -> Iterable[int]:
        return ((utterance + step) % len(self) for step in range(len(self)))

    def others(self, utterance: int) -> range:
        return range(len(self))

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        return random_crop(self.whole(utterance), samples, generator)

    def whole(self, utterance: int) -> np.ndarray:
        """Return a complete utterance, `(L,)` float32.

        Raises:
            InputError: the utterance cannot be read.
        """
        try:
            return self._read(utterance)
        except InputError:
            self._failed[utterance] = True
            raise

    def failed(self) -> list[str]:
        return [self.name(index) for index in torch.nonzero(self._failed).flatten().tolist()]

    def fingerprint(self) -> str:
        # File names without folders, because the audio may be moved before a run is resumed.
        rows = zip(self.corpus["path"], self.corpus["speaker"], strict=True)
        names = "\n".join(f"{Path(path).name} {speaker}" for path, speaker in rows)
        return hashlib.sha256(names.encode()).hexdigest()

    def contents(self) -> str:
        return digest_of_files(self.corpus["path"])

    def _read(self, utterance: int) -> np.ndarray:
        kept = self._cache.get(utterance)
        if kept is None:
            name = self.name(utterance)
            source = self.source(utterance)
            waveform = read_utterance(source, self.sampling_rate, name, self.min_duration, self.channel).waveform
            if self.cache_bytes == 0:
                return waveform
            kept = np.clip(np.rint(waveform * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)
            if self._cached_bytes + kept.nbytes <= self.cache_bytes:
                self._cache[utterance] = kept
                self._cached_bytes += kept.nbytes
        return kept.astype(np.float32) / np.float32(INT16_SCALE)


class CropAugmentation(Protocol):
    """Interface of an augmentation of `SpeakerCrops`, such as `hf_hamspk.data.Augmentation`."""

    def __call__(
        self, waveform: np.ndarray, generator: np.random.Generator, sample_other: SampleOther | None = None
    ) -> np.ndarray:
        """Return a new waveform of the same shape. All random choices are drawn from `generator`."""
        ...


class SpeakerCrops(Dataset[dict[str, Any]]):
    """Map-style training set of random crops, indexed by (epoch, sample).

    Each speed factor other than the first adds new classes. With `N` utterances and `K` speakers, sample
    `factor_index * N + utterance` is that utterance at that factor, and its label is
    `factor_index * K + label_of[speaker]`.

    An utterance that cannot be read is replaced by the next readable utterance. The item then has the label of the
    replacement. The failure is recorded in `failures` and logged once.

    Example:
        ```python
        from hf_hamspk.data import load_corpus, speaker_labels

        corpus = load_corpus("corpus/train.csv", "corpus")
        labels = {speaker: index for index, speaker in enumerate(speaker_labels(corpus))}
        crop = SpeakerCrops(corpus, labels, crop_samples=16_000, seed=0)[0, 3]
        ```

    Args:
        corpus: dataset with the columns `path` and `speaker` (see `load_corpus`), or another source of utterances. Such
            a source must have the given `sampling_rate`, and `min_duration` and `cache_bytes` do not apply to it.
        label_of: class index of each speaker. The indices are 0 to `K - 1`, each used once.
        crop_samples: length of a crop in samples, at least 1.
        seed: random seed, at least 0.
        speed_factors: factors that change the speed, and thus tempo and pitch. They must be different multiples of 0.01
            between 0.5 and 2. The first must be 1.0.
        augmentation: augmentation of the crops (see `hf_hamspk.data.Augmentation`). None leaves the crops clean.
        pairs: whether each item contains the clean crop and an augmented copy of it, as in the code released with the
            paper.
        sampling_rate: sampling rate of the crops in Hz.
        min_duration: duration in seconds below which a file counts as unreadable.
        cache_bytes: memory in bytes per process for decoded waveforms, which are stored as 16-bit integers. When the
            memory is full, further waveforms are not stored. If 0, no waveform is stored. If above 0, every waveform is
            rounded to 16 bits, stored or not, so that an item does not depend on earlier items. The rounding does not
            change 16-bit mono files at `sampling_rate`.

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
                f"got {crop_samples}, {seed} and {cache_bytes}."
            )
        if pairs and augmentation is None:
            raise ValueError("pairs=True needs an augmentation for the second crop, got None. Pass augmentation.")
        self._check_arguments()
        self._reasons: dict[str, str] = {}

    def _check_arguments(self) -> None:
        if len(self.utterances) == 0:
            raise ValueError("Expected a corpus with at least 1 utterance, got none.")
        if sorted(self.label_of.values()) != list(range(len(self.label_of))):
            raise ValueError(
                f"label_of must map its {len(self.label_of)} speakers to the indices 0 to {len(self.label_of) - 1}, "
                "each used once. Build it with {speaker: index for index, speaker in "
                "enumerate(speaker_labels(corpus))}."
            )
        unknown = sorted(set(self.utterances.speakers) - set(self.label_of))
        if unknown:
            raise ValueError(
                "label_of must contain every speaker of the corpus. "
                f"{len(unknown)} speakers are missing, for example {unknown[0]!r}."
            )
        low, high = SPEED_RANGE
        factors = self.speed_factors
        if not factors or factors[0] != 1.0 or len(set(factors)) < len(factors):
            raise ValueError(f"speed_factors must be different and begin with 1.0, got {factors}.")
        if not all(low <= factor <= high for factor in factors):
            raise ValueError(f"speed_factors must be between {low} and {high}, got {factors}.")
        if any(abs(100 * factor - round(100 * factor)) > PERCENT_TOLERANCE for factor in factors):
            raise ValueError(
                f"speed_factors must be multiples of 0.01, got {factors}. Other factors take seconds to resample."
            )

    def labels(self) -> np.ndarray:
        """Return the class index of each sample, `(len(self),)` int64."""
        one = np.array([self.label_of[self.utterances.speaker(i)] for i in range(len(self.utterances))])
        return np.concatenate([number * len(self.label_of) + one for number in range(len(self.speed_factors))])

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Return the shape of the `input_values` of an item."""
        return (2, self.crop_samples) if self.pairs else (self.crop_samples,)

    @property
    def failures(self) -> dict[str, str]:
        """Return the reason for each utterance or augmentation file that could not be read, with its name as the key.

        Failures in the worker processes of the data loader are included.
        """
        unexplained = "could not be read in a loader process, whose log contains the reason"
        return dict.fromkeys(self.utterances.failed(), unexplained) | self._reasons

    def __len__(self) -> int:
        return len(self.utterances) * len(self.speed_factors)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        """Return the crop of a sample in an epoch.

        Args:
            index: (epoch, sample), with the sample from 0 to `len(self) - 1`.

        Returns:
            Dictionary with `input_values`, float32 `(crop_samples,)`, and `labels`, the class index as an int. For
            pairs, `input_values` is `(2, crop_samples)` with the clean crop first.

        Raises:
            IndexError: the sample is out of range.
            InputError: no file of the corpus can be read.
        """
        epoch, sample = index
        if not 0 <= sample < len(self):
            raise IndexError(f"The sample must be from 0 to {len(self) - 1}, got {sample}.")
        generator = np.random.default_rng((self.seed, epoch, sample))
        factor_index, wanted = divmod(sample, len(self.utterances))
        factor = self.speed_factors[factor_index]
        # The crop is cut before its speed is changed, so that only the crop is resampled.
        utterance, crop = self._cut(wanted, int(np.ceil(self.crop_samples * factor)), generator)
        crop = self._speed_up(crop, factor)
        if self.augmentation is not None:
            augmented = self._augment(self.augmentation, crop, utterance, generator)
            crop = np.stack((crop, augmented)) if self.pairs else augmented
        label = factor_index * len(self.label_of) + self.label_of[self.utterances.speaker(utterance)]
        return {"input_values": crop, "labels": label}

    def _speed_up(self, crop: np.ndarray, factor: float) -> np.ndarray:
        """Return a copy of the crop at another speed, `(crop_samples,)`."""
        crop = resample(crop, round(self.sampling_rate * factor), self.sampling_rate)
        # Because the rate is rounded, a fast crop can be one sample too short.
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
            # A file of noise or of a room response cannot be read. The crop stays clean.
            self._note_failure(error.name, error.reason)
            return crop

    def _cut(self, utterance: int, samples: int, generator: np.random.Generator) -> tuple[int, np.ndarray]:
        """Return the number of the utterance, or of its first readable replacement, and a random crop of it."""
        for candidate in self.utterances.candidates(utterance):
            try:
                return candidate, self.utterances.cut(candidate, samples, generator)
            except InputError as error:
                # Some errors name the shard that contains the utterance instead of the utterance.
                name = error.name if error.name else self.utterances.name(candidate)
                self._note_failure(name, error.reason)
        raise InputError(
            f"none of the {len(self.utterances)} files of the corpus can be read; run check_corpus to find the reasons"
        )

    def note_failures(self, reasons: Mapping[str, str]) -> None:
        """Record failures that a loader process has found and logged."""
        self._reasons.update(reasons)

    def _note_failure(self, path: str, reason: str) -> None:
        if path not in self._reasons:
            self._reasons[path] = reason
            logger.warning("Skipped in training: %s: %s", path, reason)


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of `SpeakerCrops` into a batch.

    Returns:
        Dictionary with `input_values`, float32 `(B, L)` or, for pairs, `(B, 2, L)`, and `labels`, int64 `(B,)`.
    """
    return {
        "input_values": torch.from_numpy(np.stack([item["input_values"] for item in items])),
        "labels": torch.tensor([item["labels"] for item in items], dtype=torch.int64),
    }
