"""Load corpora as a `datasets.Dataset` with the columns `path` and `speaker`.

A corpus is a CSV file or a folder `speaker/.../utterance.flac` as in VoxCeleb. The dataset is built in memory, so no
cache files are written. Its columns are plain strings, because an audio column would need torchcodec and FFmpeg.
"""

import csv
import difflib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset
from tqdm import tqdm

from ..audio_hamspk import SHORTEST_SECONDS, InputError
from .audio import AUDIO_SUFFIXES, read_utterance

NAMED_IN_ERRORS = 5
"""Number of files that a message lists, enough to recognise a pattern. Further files are only counted."""

CHECK_CHUNK = 1024
"""Number of files that are queued for the threads at once. A queue of a million files would take too much memory."""


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
        """Return counts and hours in one line, followed by one line for each of the first bad files."""
        speakers = len(speaker_labels(self.dataset))
        lines = [
            f"{len(self.dataset)} files of {speakers} speakers, {self.durations.sum() / 3600:.2f} h; "
            f"{len(self.bad)} files skipped"
        ]
        lines += [f"  {file.path}: {file.reason}" for file in self.bad[:NAMED_IN_ERRORS]]
        hidden = len(self.bad) - NAMED_IN_ERRORS
        return "\n".join([*lines, f"  and {hidden} more"] if hidden > 0 else lines)


def load_corpus(
    source: str | os.PathLike[str],
    audio_root: str | os.PathLike[str] | None = None,
    audio_column: str = "path",
    speaker_column: str = "speaker_id",
) -> Dataset:
    """Read the paths and speakers of a corpus and check that the files exist. Audio files are not opened.

    Args:
        source: CSV file in UTF-8 with a header, or a folder as in VoxCeleb. Each sub-folder is a speaker, and every
            file below it with one of the `AUDIO_SUFFIXES` is an utterance. The utterances are sorted by path.
        audio_root: base folder of the paths in a CSV file; None uses the folder of the CSV file. It is ignored if
            `source` is a folder.
        audio_column: name of the CSV column with the paths.
        speaker_column: name of the CSV column with the speakers.

    Returns:
        Dataset with the string columns `path` (including the base folder) and `speaker`.

    Raises:
        ValueError: the source, a column or a cell is missing, the corpus has no audio or fewer than 2 speakers, or an
            audio file does not exist.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(
            f"No corpus at {source}. Expected a CSV file or a folder with files speaker/.../utterance.flac."
        )
    if source.is_dir():
        paths, speakers = _scan_folder(source)
    else:
        root = source.parent if audio_root is None else Path(audio_root)
        paths, speakers = _read_table(source, root, audio_column, speaker_column)
        _require_files(paths, source, root)
    if len(set(speakers)) < 2:
        raise ValueError(
            f"{source} must have at least 2 speakers, got only {speakers[0]!r} in {len(paths)} files. A folder must "
            "contain files speaker/.../utterance.flac, and a CSV file must name the speakers in the column "
            f"{speaker_column!r}."
        )
    return Dataset.from_dict({"path": paths, "speaker": speakers})


def speaker_labels(dataset: Dataset) -> list[str]:
    """Return the distinct speakers of a corpus, sorted. The position in the list is the class index of the speaker."""
    return sorted(set(dataset["speaker"]))


def check_corpus(
    dataset: Dataset,
    full: bool = True,
    min_duration: float = SHORTEST_SECONDS,
    threads: int = 4,
    progress: bool = True,
) -> CorpusReport:
    """Check every file, and leave out the files that cannot be used for training.

    Args:
        dataset: dataset with the columns `path` and `speaker` (see `load_corpus`).
        full: whether to decode each file completely, which is needed to find NaN values, silence and damage. If False,
            only headers are read.
        min_duration: shortest accepted duration in seconds.
        threads: number of threads that check files (soundfile releases the interpreter lock while it decodes).
        progress: whether to show a progress bar on stderr.

    Returns:
        The usable rows with their durations, and the bad files with the reasons.

    Raises:
        ValueError: the files that can be used have fewer than 2 speakers.
    """
    paths: list[str] = list(dataset["path"])

    def check(path: str) -> float | str:
        try:
            return _duration(path, min_duration, full)
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


def _duration(path: str, min_duration: float, full: bool) -> float:
    """Return the duration in seconds of a usable file.

    If `full` is False and soundfile can read the header, the duration comes from the header. Otherwise the file is
    decoded.
    """
    if not full and os.path.isfile(path):
        try:
            duration = float(soundfile.info(path).duration)
            if duration >= min_duration:
                return duration
        except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError):
            pass  # The decoder below raises an error with the reason.
    return read_utterance(path, None, min_duration=min_duration).duration


def _scan_folder(root: Path) -> tuple[list[str], list[str]]:
    """Return the paths and speakers of a folder `speaker/.../utterance.flac`, sorted by path."""
    paths, speakers = [], []
    for speaker in sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = []
        for folder, _, names in os.walk(root / speaker, followlinks=True):
            # macOS creates files "._name.wav" that contain no audio.
            files += [
                os.path.join(folder, name)
                for name in names
                if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
            ]
        paths += sorted(files)
        speakers += [speaker] * len(files)
    if not paths:
        raise ValueError(
            f"No audio in {root}. Expected files speaker/.../utterance with one of the suffixes "
            f"{', '.join(AUDIO_SUFFIXES)}."
        )
    return paths, speakers


def _read_table(source: Path, root: Path, audio_column: str, speaker_column: str) -> tuple[list[str], list[str]]:
    """Return the paths (joined with `root`) and the speakers of a CSV file."""
    # load_dataset("csv") would turn the speaker "0012" into the number 12.
    paths, speakers = [], []
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            _require_column(audio_column, columns, source, "audio_column")
            _require_column(speaker_column, columns, source, "speaker_column")
            for row in reader:
                path, speaker = row[audio_column], row[speaker_column]
                if not path or not speaker:
                    raise ValueError(
                        f"{source}, line {reader.line_num}: expected values for {audio_column!r} and "
                        f"{speaker_column!r}, got {path!r} and {speaker!r}. Complete the line, or delete it."
                    )
                paths.append(str(root / path))
                speakers.append(speaker)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is not a CSV file in UTF-8 ({error}). Save it as CSV in UTF-8.") from error
    if not paths:
        raise ValueError(f"No audio in {source}. The file has a header but no rows.")
    return paths, speakers


def _require_column(name: str, columns: Sequence[str], source: Path, argument: str) -> None:
    if name in columns:
        return
    folded = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.4)
    hint = f"Did you mean {argument}={folded[near[0]]!r}?" if near else f"Name the right column with {argument}."
    raise ValueError(f"{source} has no column {name!r}. Its columns are [{', '.join(map(repr, columns))}]. {hint}")


def _require_files(paths: Iterable[str], source: Path, root: Path) -> None:
    paths = list(paths)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        named = "\n".join(f"  {path}" for path in missing[:NAMED_IN_ERRORS])
        raise ValueError(
            f"{len(missing)} of the {len(paths)} files in {source} do not exist below {root}. Set audio_root to the "
            f"folder that the paths are relative to, or delete the rows of the missing files. The first are:\n{named}"
        )
