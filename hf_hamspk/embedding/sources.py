"""Sources of utterances, read piece by piece: audio files, or groups of shards."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..audio_hamspk import InputError
from ..data.audio import read_utterance
from ..shards.reading import ShardReader


@dataclass(frozen=True)
class DecodedUtterance:
    """An utterance that was decoded, or the reason why not.

    Attributes:
        name: in the output.
        waveform: `(L,)` float32 in [-1, 1]; None if it cannot be used.
        reason: why it cannot be used; else None.
        speaker: None if the source does not name one.
    """

    name: str
    waveform: np.ndarray | None = None
    reason: str | None = None
    speaker: str | None = None


class Source(Protocol):
    """Utterances in pieces, in a fixed order. Pieces are read in several threads at once."""

    @property
    def sizes(self) -> Sequence[int]:
        """Utterances of each piece."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal; sources of the same utterances in the same order have the same."""
        ...

    def read(self, piece: int) -> list[DecodedUtterance]:
        """The utterances of a piece, as many as `sizes` says, those that cannot be used with the reason."""
        ...


class AudioFiles:
    """Audio files, each a piece.

    Args:
        names: in the output; paths, relative to `root` or absolute.
        sampling_rate: wanted, in Hz.
        root: folder of the names.
    """

    def __init__(self, names: Sequence[str], sampling_rate: int, root: str | os.PathLike[str] = "."):
        self.names, self.sampling_rate, self.root = list(names), sampling_rate, Path(root)
        self.sizes = [1] * len(self.names)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.root).encode())
        for name in self.names:
            digest.update(b"\0" + os.fsencode(name))
        return digest.hexdigest()

    def read(self, piece: int) -> list[DecodedUtterance]:
        name = self.names[piece]
        try:
            return [DecodedUtterance(name, read_utterance(self.root / name, self.sampling_rate, name).waveform)]
        except InputError as error:
            return [DecodedUtterance(name, reason=error.reason)]


class ShardedCorpus:
    """Shards that `hamspk prepare` wrote; each of their groups is a piece.

    Args:
        reader: of the shards.
        sampling_rate: wanted, in Hz.
    """

    def __init__(self, reader: ShardReader, sampling_rate: int):
        self.reader, self.sampling_rate = reader, sampling_rate
        self.sizes = reader.group_sizes.tolist()

    def fingerprint(self) -> str:
        return self.reader.fingerprint()

    def read(self, piece: int) -> list[DecodedUtterance]:
        try:
            group = self.reader.read(piece)
        except InputError as error:
            place = self.reader.name_of(piece)
            return [DecodedUtterance(f"{place}, row {row}", reason=error.reason) for row in range(self.sizes[piece])]
        found = []
        for row, (name, speaker) in enumerate(zip(group.names, group.speakers, strict=True)):
            try:
                waveform = read_utterance(bytes(group.audio(row)), self.sampling_rate, name).waveform
                found.append(DecodedUtterance(name, waveform, speaker=speaker))
            except InputError as error:
                found.append(DecodedUtterance(name, reason=error.reason, speaker=speaker))
        return found
