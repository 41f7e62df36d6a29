"""Find the utterances to embed in audio files, folders, a list of recordings, or shards."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..audio_hamspk import Channel
from ..files.corpora import base_folder, is_table, read_table
from ..files.recordings import FolderContents, find_audio
from ..shards.reading import open_shards
from .sources import AudioFiles, ShardedCorpus, Source


@dataclass(frozen=True)
class FoundSource:
    """Utterances that were found. They are opened later, when the sampling rate of the model is known.

    Attributes:
        open: function that takes a sampling rate in Hz and returns the source of the utterances.
        contents: files and folders that the searched folders contain.
        missing: dictionary that maps each path that does not exist or contains no audio to the reason.
    """

    open: Callable[[int], Source]
    contents: FolderContents = field(default_factory=FolderContents)
    missing: dict[str, str] = field(default_factory=dict)


def find_source(
    files: Sequence[str],
    audio_root: str | os.PathLike[str] | None = None,
    channel: Channel = None,
    audio_column: str | None = None,
    speaker_column: str | None = None,
) -> FoundSource:
    """Find the utterances in audio files and folders, in one list of recordings, or in one folder of shards.

    Args:
        files: audio files and folders; or one list of recordings, see `files.corpora`; or one folder of shards.
        audio_root: base folder of the paths in a list; None uses the folder of the list.
        channel: channel of the recordings to read; see `read_sound`.
        audio_column: column of the paths in a list; None selects the usual column of the format.
        speaker_column: column of the speakers in a list; None selects the usual column of the format.

    Raises:
        ValueError: a list cannot be read, or a folder of shards is combined with other files or with a channel.
    """
    if len(files) == 1 and is_table(files[0]):
        table = Path(files[0])
        names, speakers = read_table(table, audio_column, speaker_column, needs_speakers=False)
        root = base_folder(table) if audio_root is None else audio_root
        return FoundSource(lambda rate: AudioFiles(names, rate, root, speakers if speakers else None, channel))
    readers = [open_shards(name) for name in files]
    found = [reader for reader in readers if reader is not None]
    if found and len(files) > 1:
        raise ValueError(
            f"{found[0].folder} is a folder of shards. Embed it in a separate command, without other FILES."
        )
    if found and channel is not None:
        raise ValueError("--channel is for audio files; shards contain one channel. Remove it.")
    if found:
        return FoundSource(lambda rate: ShardedCorpus(found[0], rate))
    contents, missing = find_audio(files)
    return FoundSource(lambda rate: AudioFiles(contents.files, rate, channel=channel), contents, missing)
