"""Load corpora as a `datasets.Dataset` with the columns `path` and `speaker`.

A corpus is a CSV file or a folder `speaker/.../utterance.flac` as in VoxCeleb. The tables are built in memory from
plain
string columns. No files are written beside the audio, and the columns are not declared as audio, which would need
torchcodec and FFmpeg.
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
"""Number of files that a message lists, enough to recognise a pattern; further files are only counted."""

CHECK_CHUNK = 1024
"""Number of files given to the threads at once. A queue of a million files would take too much memory."""


@dataclass(frozen=True)
class BadFile:
    """File that cannot be used.

    Attributes:
        path: path of the file in the corpus.
        reason: reason why it cannot be used, and how to correct it.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class CorpusReport:
    """Result of `check_corpus`.

    Attributes:
        dataset: rows whose files can be used, in their order.
        bad: files that were left out.
        durations: duration in seconds of each file that was kept, `(len(dataset),)` float64.
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
    """Read the table of a corpus and check that its files exist. Audio files are not opened.

    Args:
        source: CSV file in UTF-8 with a header, or a folder as in VoxCeleb. The first level of the folder names the
            speaker, and every file below it with one of the `AUDIO_SUFFIXES` is an utterance. They are sorted by path.
        audio_root: folder that the paths of a CSV file are relative to. None takes the folder of the CSV file. If
            `source`
            is a folder, this is ignored.
        audio_column: column of the CSV file with the paths.
        speaker_column: column of the CSV file with the speakers.

    Returns:
        Dataset with the string columns `path` (joined with the root, not resolved) and `speaker`.

    Raises:
        ValueError: the source, a column or a cell is missing, there is no audio, there are fewer than 2 speakers, or
            files in the table do not exist.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"no corpus at {source}: give a CSV file or a folder speaker/.../utterance.flac")
    if source.is_dir():
        paths, speakers = _scan_folder(source)
    else:
        root = source.parent if audio_root is None else Path(audio_root)
        paths, speakers = _read_table(source, root, audio_column, speaker_column)
        _require_files(paths, source, root)
    if len(set(speakers)) < 2:
        raise ValueError(
            f"{source} has the one speaker {speakers[0]!r} in {len(paths)} files, at least 2 are needed; a folder must "
            "be laid out as speaker/.../utterance.flac, a CSV file must name the speaker in "
            f"column {speaker_column!r}"
        )
    return Dataset.from_dict({"path": paths, "speaker": speakers})


def speaker_labels(dataset: Dataset) -> list[str]:
    """Return the distinct speakers of a corpus, sorted. The place in the list is the class index of the speaker."""
    return sorted(set(dataset["speaker"]))


def check_corpus(
    dataset: Dataset,
    full: bool = True,
    min_duration: float = SHORTEST_SECONDS,
    threads: int = 4,
    progress: bool = True,
) -> CorpusReport:
    """Open every file and leave out those that cannot be used, so that training runs without them.

    Args:
        dataset: dataset with the columns `path` and `speaker`, see `load_corpus`.
        full: decode each file completely, which is needed to find NaN, silence and damage. False reads only the
            headers.
        min_duration: shortest accepted duration in seconds.
        threads: number of files opened at the same time (soundfile releases the interpreter lock while it decodes).
        progress: show a progress bar on stderr.

    Returns:
        The rows that are left, the bad files with reasons, and the durations.

    Raises:
        ValueError: no file can be used, or the files that can be used have fewer than 2 speakers.
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
    # Without a bad file the rows stay as they are: an index over all of them would slow every read.
    report = CorpusReport(dataset.select(kept) if bad else dataset, bad, durations)
    if len(set(report.dataset["speaker"])) < 2:
        raise ValueError(f"fewer than 2 speakers are left after the audio check\n{report.summary()}")
    return report


def _duration(path: str, min_duration: float, full: bool) -> float:
    """Return the duration in seconds of a usable file.

    If `full` is False and soundfile can read the file, the duration comes from the header, otherwise from the samples.
    """
    if not full and os.path.isfile(path):
        try:
            duration = float(soundfile.info(path).duration)
            if duration >= min_duration:
                return duration
        except (soundfile.SoundFileError, OSError, TypeError, ValueError, RuntimeError):
            pass  # Decoding it gives the reason.
    return read_utterance(path, None, min_duration=min_duration).duration


def _scan_folder(root: Path) -> tuple[list[str], list[str]]:
    """Return paths and speakers of a folder `speaker/.../utterance.flac`, sorted by path."""
    paths, speakers = [], []
    for speaker in sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = []
        for folder, _, names in os.walk(root / speaker, followlinks=True):
            # macOS leaves "._name.wav" files without audio.
            files += [
                os.path.join(folder, name)
                for name in names
                if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith(".")
            ]
        paths += sorted(files)
        speakers += [speaker] * len(files)
    if not paths:
        raise ValueError(
            f"no audio in {root}: expected speaker/.../utterance with one of the suffixes {', '.join(AUDIO_SUFFIXES)}"
        )
    return paths, speakers


def _read_table(source: Path, root: Path, audio_column: str, speaker_column: str) -> tuple[list[str], list[str]]:
    """Return paths (joined with `root`) and speakers of a CSV file."""
    # The csv module and not load_dataset("csv"): that one turns the speaker "0012" into the number 12.
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
                        f"{source}, line {reader.line_num}: {audio_column!r} is {path!r} and {speaker_column!r} is "
                        f"{speaker!r}, both must be filled; complete the line or delete it"
                    )
                paths.append(str(root / path))
                speakers.append(speaker)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is not a CSV file in UTF-8 ({error}); save it as one") from error
    if not paths:
        raise ValueError(f"no audio in {source}: it has a header but no rows")
    return paths, speakers


def _require_column(name: str, columns: Sequence[str], source: Path, argument: str) -> None:
    if name in columns:
        return
    folded = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.4)
    hint = f"; did you mean {argument}={folded[near[0]]!r}?" if near else f"; name the right one with {argument}"
    raise ValueError(f"{source} has no column {name!r}, only {', '.join(map(repr, columns))}{hint}")


def _require_files(paths: Iterable[str], source: Path, root: Path) -> None:
    paths = list(paths)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        named = "\n".join(f"  {path}" for path in missing[:NAMED_IN_ERRORS])
        raise ValueError(
            f"{len(missing)} of the {len(paths)} files in {source} do not exist below {root}; set audio_root to the "
            f"folder that the paths are relative to, or delete the rows. The first of them:\n{named}"
        )
