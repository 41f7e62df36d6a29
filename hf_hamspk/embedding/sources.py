"""Read utterances from audio files or shards, one piece at a time.

A piece is the smallest unit that can be read: an audio file, or a group of utterances in a shard.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..audio_hamspk import Channel, InputError
from ..data.audio import read_utterance
from ..files.tables import split_segment
from ..shards.reading import ShardReader


@dataclass(frozen=True)
class DecodedUtterance:
    """Decoded utterance, or the reason why it cannot be used.

    Attributes:
        name: name of the utterance in the output.
        waveform: float32 samples `(L,)` in [-1, 1]; None if the utterance cannot be used.
        reason: reason why the utterance cannot be used; None if it can.
        speaker: name of the speaker; None if the source does not name one.
        warnings: warnings of `read_sound`.
    """

    name: str
    waveform: np.ndarray | None = None
    reason: str | None = None
    speaker: str | None = None
    warnings: Sequence[str] = ()


class Source(Protocol):
    """Interface of a source of utterances. A source is divided into pieces, which have a fixed order.

    The method `read` must be safe to call from several threads at once.
    """

    @property
    def sizes(self) -> Sequence[int]:
        """Return the number of utterances in each piece."""
        ...

    def fingerprint(self) -> str:
        """Return a hexadecimal digest. Sources with the same utterances in the same order have the same digest."""
        ...

    def state(self, pieces: Sequence[int]) -> str:
        """Return a digest of pieces that changes if one of their files is replaced or edited."""
        ...

    def read(self, piece: int) -> list[DecodedUtterance]:
        """Return all utterances of piece number `piece`. Unusable utterances have a reason instead of a waveform."""
        ...


class AudioFiles:
    """Source of audio files. Each file is one piece.

    Args:
        names: paths of the files, absolute or relative to `root`. A path may be followed by a segment (see
            `files.tables`). The paths are also the names of the utterances in the output.
        sampling_rate: sampling rate in Hz of the decoded waveforms.
        root: base folder of relative paths.
        speakers: speaker of each file; None if unknown.
        channel: channel to read; see `read_sound`.
    """

    def __init__(
        self,
        names: Sequence[str],
        sampling_rate: int,
        root: str | os.PathLike[str] = ".",
        speakers: Sequence[str] | None = None,
        channel: Channel = None,
    ):
        self.channel = channel
        self.names, self.sampling_rate, self.root = list(names), sampling_rate, Path(root)
        self.speakers = [None] * len(self.names) if speakers is None else list(speakers)
        self.sizes = [1] * len(self.names)

    def fingerprint(self) -> str:
        where = self.root if self.channel is None else f"{self.root}\0channel {self.channel}"
        digest = hashlib.sha256(str(where).encode())
        for name in self.names:
            digest.update(b"\0" + os.fsencode(name))
        for speaker in filter(None, self.speakers):
            digest.update(b"\0" + speaker.encode())
        return digest.hexdigest()

    def state(self, pieces: Sequence[int]) -> str:
        return _state_of_files([self.root / split_segment(self.names[piece])[0] for piece in pieces])

    def read(self, piece: int) -> list[DecodedUtterance]:
        name, speaker = self.names[piece], self.speakers[piece]
        try:
            sound = read_utterance(self.root / name, self.sampling_rate, name, channel=self.channel)
            return [DecodedUtterance(name, sound.waveform, speaker=speaker, warnings=sound.warnings)]
        except InputError as error:
            return [DecodedUtterance(name, reason=error.reason, speaker=speaker)]


class ShardedCorpus:
    """Source of the utterances in shards written by `hamspk prepare`. Each group of a shard is one piece.

    Args:
        reader: reader of the shards.
        sampling_rate: sampling rate in Hz of the decoded waveforms.
    """

    def __init__(self, reader: ShardReader, sampling_rate: int):
        self.reader, self.sampling_rate = reader, sampling_rate
        self.sizes = reader.group_sizes.tolist()

    def fingerprint(self) -> str:
        return self.reader.fingerprint()

    def state(self, pieces: Sequence[int]) -> str:
        files = dict.fromkeys(self.reader.file_of(piece) for piece in pieces)
        return _state_of_files([Path(self.reader.folder, file) for file in files])

    def read(self, piece: int) -> list[DecodedUtterance]:
        try:
            group = self.reader.read(piece)
        except InputError as error:
            place = self.reader.name_of(piece)
            return [DecodedUtterance(f"{place}, row {row}", reason=error.reason) for row in range(self.sizes[piece])]
        found = []
        for row, (name, speaker) in enumerate(zip(group.names, group.speakers, strict=True)):
            try:
                sound = read_utterance(bytes(group.audio(row)), self.sampling_rate, name)
                found.append(DecodedUtterance(name, sound.waveform, speaker=speaker, warnings=sound.warnings))
            except InputError as error:
                found.append(DecodedUtterance(name, reason=error.reason, speaker=speaker))
        return found


def _state_of_files(paths: Sequence[Path]) -> str:
    """Return a digest of the sizes and modification times of files. Files on a server are treated as missing."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            found = os.stat(path)
            digest.update(b"%d %d\n" % (found.st_size, found.st_mtime_ns))
        except (OSError, ValueError):
            digest.update(b"missing\n")
    return digest.hexdigest()
