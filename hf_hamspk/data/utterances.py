"""Where the utterances of a training set come from: what `SpeakerCrops` asks of a source, and the source for files."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import torch

from .audio import MIN_DURATION, SAMPLING_RATE, AudioError, read_audio
from .crops import random_crop

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
        """What a report calls an utterance."""
        ...

    def speaker(self, utterance: int) -> str:
        """Who speaks."""
        ...

    def candidates(self, utterance: int) -> Iterable[int]:
        """The utterance, then those that take its place, in turn, where one cannot be read."""
        ...

    def others(self, utterance: int) -> Sequence[int]:
        """The utterances to draw babble from for this one, among them this one."""
        ...

    def cut(self, utterance: int, samples: int, generator: np.random.Generator) -> np.ndarray:
        """A random crop, see `random_crop`: `(samples,)` float32.

        Raises:
            AudioError: the utterance cannot be read. Its `source`, where there is one, says what cannot.
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
        min_duration: float = MIN_DURATION,
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
        except AudioError:
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
            waveform = read_audio(self.name(utterance), self.sampling_rate, self.min_duration)
            if self.cache_bytes == 0:
                return waveform
            kept = np.clip(np.rint(waveform * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)
            if self._cached_bytes + kept.nbytes <= self.cache_bytes:
                self._cache[utterance] = kept
                self._cached_bytes += kept.nbytes
        return kept.astype(np.float32) / np.float32(INT16_SCALE)
