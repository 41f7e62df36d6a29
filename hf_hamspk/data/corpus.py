"""Load corpora as a `datasets.Dataset` with the columns `path` and `speaker`.

A corpus is a list of recordings (see `files.corpora`) or a folder `speaker/.../utterance.flac` as in VoxCeleb. The
dataset is built in memory, so no cache files are written. Its columns are plain strings, because an audio column would
need torchcodec and FFmpeg. A segment of a recording is a path with a media fragment (see `files.tables`).
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset
from tqdm import tqdm

from ..audio_hamspk import SHORTEST_SECONDS, Channel, InputError
from ..files.corpora import base_folder, find_list, is_table, read_table
from ..files.recordings import AUDIO_SUFFIXES, FolderContents, describe_ignored, find_recordings
from ..files.same import SharedRecording, describe_shared, find_shared
from ..files.tables import clean_speaker, split_segment
from .audio import read_utterance

logger = logging.getLogger(__name__)

NAMED_IN_ERRORS = 5
"""Number of files that a message lists, enough to recognise a pattern. Further files are only counted."""

NAMED_IN_REPORTS = 100
"""Number of files that a report lists with the reasons. Further files are only counted."""

MOST_MISSING = 0.5
"""Share of the files of a table that may be missing. If more are missing, the base folder is probably wrong."""

CHECK_CHUNK = 1024
"""Number of files that are queued for the threads at once. A queue of a million files would take too much memory."""


@dataclass(frozen=True)
class CorpusListing:
    """Result of `list_corpus`.

    Attributes:
        dataset: dataset with the string columns `path` and `speaker`.
        ignored: number of files in the folder that are not audio, for each suffix.
        skipped: reasons why files or sub-folders were not read, by path.
        shared: recordings that occur under two speakers.
    """

    dataset: Dataset
    ignored: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    shared: tuple[SharedRecording, ...] = ()

    def remarks(self) -> list[str]:
        """Return sentences about files that were not read and about recordings that occur under two speakers."""
        lines = describe_ignored(self.ignored)
        lines += [f"not read: {path}: {reason}" for path, reason in list(self.skipped.items())[:NAMED_IN_REPORTS]]
        if len(self.skipped) > NAMED_IN_REPORTS:
            lines.append(f"not read: {len(self.skipped) - NAMED_IN_REPORTS} more files and folders")
        return lines + describe_shared(self.shared, NAMED_IN_ERRORS)


@dataclass(frozen=True)
class BadFile:
    """File that cannot be used for training.

    Attributes:
        path: path of the file in the corpus.
        reason: reason why the file cannot be used.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class CorpusReport:
    """Result of `check_corpus`.

    Attributes:
        dataset: rows whose files can be used, in the original order.
        bad: files that cannot be used.
        durations: duration in seconds of each file in `dataset`, `(len(dataset),)` float64.
    """

    dataset: Dataset
    bad: tuple[BadFile, ...]
    durations: np.ndarray

    def summary(self) -> str:
        """Return the counts and hours in one line, and a line for each of the first `NAMED_IN_REPORTS` bad files."""
        speakers = len(speaker_labels(self.dataset))
        lines = [
            f"{len(self.dataset)} files of {speakers} speakers, {self.durations.sum() / 3600:.2f} h; "
            f"{len(self.bad)} files skipped"
        ]
        lines += [f"  {file.path}: {file.reason}" for file in self.bad[:NAMED_IN_REPORTS]]
        hidden = len(self.bad) - NAMED_IN_REPORTS
        return "\n".join([*lines, f"  and {hidden} more"] if hidden > 0 else lines)


def load_corpus(
    source: str | os.PathLike[str],
    audio_root: str | os.PathLike[str] | None = None,
    audio_column: str | None = None,
    speaker_column: str | None = None,
) -> Dataset:
    """Read the paths and speakers of a corpus. Audio files are not opened.

    The remarks of `CorpusListing.remarks` are logged as warnings.

    Args:
        source: list of recordings (CSV file, JSON lines, Kaldi folder, or audio folder of `datasets` with a metadata
            file; see `files.corpora`), or a folder as in VoxCeleb. Start and end times select segments. In a folder
            without a list, each sub-folder is a speaker, and every file below it with one of the `AUDIO_SUFFIXES` is an
            utterance. The utterances are sorted by path. Each sub-folder is visited once, even if links lead to it. If
            all sub-folders are splits of a data set, only `train` is used.
        audio_root: base folder of the paths in a list; None uses the folder of the list. It is ignored if `source` is a
            folder without a list.
        audio_column: name of the column with the paths; None uses the usual one of the format.
        speaker_column: name of the column with the speakers; None uses the usual one of the format.

    Returns:
        Dataset with the string columns `path` (including the base folder) and `speaker` (without surrounding blanks).

    Raises:
        ValueError: the source, a column or a cell is missing, a time is invalid, the corpus has no audio or fewer than
            2 speakers, or most of its files do not exist.
    """
    listing = list_corpus(source, audio_root, audio_column, speaker_column)
    for remark in listing.remarks():
        logger.warning("%s: %s", source, remark)
    return listing.dataset


def list_corpus(
    source: str | os.PathLike[str],
    audio_root: str | os.PathLike[str] | None = None,
    audio_column: str | None = None,
    speaker_column: str | None = None,
) -> CorpusListing:
    """Read a corpus as `load_corpus` does, and also return which files were not read or occur under two speakers.

    Raises:
        ValueError: the corpus cannot be read (see `load_corpus`).
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(
            f"No corpus at {source}. Expected a CSV file, a file of JSON lines, a Kaldi folder, or a folder with files "
            "speaker/.../utterance.flac."
        )
    contents = FolderContents()
    place = find_list(source)
    if place.is_dir() and not is_table(str(place)):
        speakers = _scan_folder(place, contents)
        paths = contents.files
    else:
        root = base_folder(place) if audio_root is None else Path(audio_root)
        names, speakers = read_table(place, audio_column, speaker_column)
        paths = [str(root / name) for name in names]
        _require_files(paths, place, root)
    if len(set(speakers)) < 2:
        raise ValueError(
            f"{source} must have at least 2 speakers, got only {speakers[0]!r} in {len(paths)} files. A folder must "
            "contain files speaker/.../utterance.flac, and a list must name the speakers in a column, by default "
            "'speaker_id'."
        )
    dataset = Dataset.from_dict({"path": paths, "speaker": speakers})
    return CorpusListing(dataset, contents.ignored, contents.skipped, tuple(find_shared(paths, speakers)))


def speaker_labels(dataset: Dataset) -> list[str]:
    """Return the distinct speakers of a corpus, sorted. The position in the list is the class index of the speaker."""
    return sorted(set(dataset["speaker"]))


def check_corpus(
    dataset: Dataset,
    full: bool = True,
    min_duration: float = SHORTEST_SECONDS,
    threads: int = 4,
    progress: bool = True,
    channel: Channel = None,
) -> CorpusReport:
    """Check every file, and leave out the files that cannot be used for training.

    Args:
        dataset: dataset with the columns `path` and `speaker` (see `load_corpus`).
        full: whether to decode each file completely, which is needed to find NaN values, silence and damage. If False,
            only headers are read.
        min_duration: shortest accepted duration in seconds.
        threads: number of threads that check files (soundfile releases the interpreter lock while it decodes).
        progress: whether to show a progress bar on stderr.
        channel: channel of the recordings that is used; see `read_sound`. Files without it are bad.

    Returns:
        The usable rows with their durations, and the bad files with the reasons.

    Raises:
        ValueError: the files that can be used have fewer than 2 speakers.
    """
    paths: list[str] = list(dataset["path"])

    def check(path: str) -> float | str:
        try:
            return _duration(path, min_duration, full, channel)
        except InputError as error:
            return error.reason

    found: list[float | str] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(paths), desc="checking audio", unit="file", disable=not progress) as bar,
    ):
        for start in range(0, len(paths), CHECK_CHUNK):
            for result in pool.map(check, paths[start : start + CHECK_CHUNK]):
                found.append(result)
                bar.update()
    bad = tuple(BadFile(path, result) for path, result in zip(paths, found, strict=True) if isinstance(result, str))
    kept = [index for index, result in enumerate(found) if not isinstance(result, str)]
    durations = np.array([result for result in found if not isinstance(result, str)], dtype=np.float64)
    # If no file is bad, `select` is not called, because its index would slow down every read.
    report = CorpusReport(dataset.select(kept) if bad else dataset, bad, durations)
    if len(set(report.dataset["speaker"])) < 2:
        raise ValueError(f"Fewer than 2 speakers are left after the audio check:\n{report.summary()}")
    return report


def _duration(path: str, min_duration: float, full: bool, channel: Channel) -> float:
    """Return the duration in seconds of a usable file.

    If `full` is False, no channel is chosen and soundfile can read the header, the duration comes from the header.
    Otherwise the file is decoded.
    """
    if not full and channel is None and os.path.isfile(path):
        try:
            duration = float(soundfile.info(path).duration)
            if duration >= min_duration:
                return duration
        except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError):
            pass  # The decoder below raises an error with the reason.
    return read_utterance(path, None, min_duration=min_duration, channel=channel).duration


def _scan_folder(root: Path, contents: FolderContents) -> list[str]:
    """Add the recordings of a folder `speaker/.../utterance.flac` to `contents`, and return their speakers."""
    speakers = []
    found = find_recordings(root)
    for path in found.files:
        folders = Path(path).relative_to(root).parts[:-1]
        if not folders:
            contents.skipped[path] = "lies in no folder of a speaker; move it into the folder of its speaker"
        else:
            contents.files.append(path)
            speakers.append(clean_speaker(folders[0]))
    contents.ignored, contents.skipped = found.ignored, found.skipped | contents.skipped
    if not contents.files:
        others = "".join(f" {remark[0].upper()}{remark[1:]}." for remark in describe_ignored(found.ignored))
        raise ValueError(
            f"No audio in {root}. Expected files speaker/.../utterance with one of the suffixes "
            f"{', '.join(AUDIO_SUFFIXES)}.{others}"
        )
    return speakers


def _require_files(paths: Sequence[str], source: Path, root: Path) -> None:
    """Raise if most of the files are missing. `check_corpus` reports single missing files."""
    missing = [path for path in paths if not os.path.lexists(split_segment(path)[0])]
    if len(missing) > MOST_MISSING * len(paths):
        named = "\n".join(f"  {path}" for path in missing[:NAMED_IN_ERRORS])
        raise ValueError(
            f"{len(missing)} of the {len(paths)} files in {source} do not exist below {root}. Set audio_root to the "
            f"folder that the paths are relative to, or delete the rows of the missing files. The first are:\n{named}"
        )
