"""Shards of noise, music, voices or room responses as a source of augmentation."""

import numpy as np

from ..data.audio import SAMPLING_RATE
from .crops import decode_crop
from .decoding import decode_audio
from .prefetching import GroupStore
from .reading import ShardReader


class NoiseShards:
    """The recordings of a folder of shards, each equally likely; an `hf_hamspk.data.noises.NoiseSource`.

    Each draw reads the group of its recording, unless it is one of the few in memory: small groups make it quick
    (`hamspk prepare --rows-per-group 4`).

    Args:
        reader: of the shards.
        sampling_rate: samples per second wanted.
    """

    def __init__(self, reader: ShardReader, sampling_rate: int = SAMPLING_RATE):
        self.reader, self.sampling_rate = reader, sampling_rate
        self._store: GroupStore | None = None

    def __getstate__(self):
        return vars(self) | {"_store": None}

    def crop(self, samples: int, generator: np.random.Generator) -> np.ndarray:
        return decode_crop(self._draw(generator)[0], samples, generator, self.sampling_rate)

    def whole(self, generator: np.random.Generator) -> np.ndarray:
        content, name = self._draw(generator)
        return decode_audio(bytes(content), name, self.sampling_rate, min_duration=0.0)

    def _draw(self, generator: np.random.Generator) -> tuple[memoryview, str]:
        utterance = int(generator.integers(self.reader.manifest.utterances))
        group = int(np.searchsorted(self.reader.first_utterance, utterance, side="right")) - 1
        if self._store is None:
            self._store = GroupStore(self.reader)
        found = self._store.get(group)
        row = utterance - int(self.reader.first_utterance[group])
        return found.audio(row), found.names[row]
