"""Read lists of the recordings of a corpus, with their speakers.

A list is one of these:

- a CSV file (see `tables`) with the columns `path` and `speaker_id`;
- a file of JSON lines in the format of NeMo (`audio_filepath`, `label` or `speaker`, `offset`, `duration`);
- `metadata.csv` or `metadata.jsonl` in an audio folder of the library `datasets` (`file_name`, column of speakers);
- a folder of Kaldi (see `kaldi`).
"""

import csv
import difflib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .kaldi import KALDI_COLUMNS, MOST_CHARACTERS, RECORDINGS_FILE, is_kaldi_folder, kaldi_rows, text_lines
from .recordings import is_text
from .tables import TableRow, clean_speaker, join_segment, json_row, open_table, with_segments

TABLE_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".json")
"""Suffixes of files with one JSON object per line. The manifests of NeMo mostly end in `.json`."""

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
"""File names of the table that describes the recordings in an audio folder of the library `datasets`."""

SPLIT_NAMES = {"train", "test", "validation", "valid", "val", "dev", "eval"}
"""Folders of the splits in an audio folder of the library `datasets`."""

SPEAKER_COLUMNS = ("speaker_id", "speaker", "spk_id", "spk", "client_id", "label")
"""Usual columns of speakers in data sets, audio folders and JSON lines, in the order in which they are tried."""

FILE_COLUMNS = ("audio_filepath", "file_name", "path")
"""Usual columns of paths in JSON lines, in the order in which they are tried."""


@dataclass(frozen=True)
class CorpusList:
    """Open list of recordings.

    Attributes:
        columns: names of all columns.
        audio: name of the column of paths.
        speaker: name of the column of speakers; None if the list has none.
        rows: iterator over the rows with their segments. Invalid rows have a `problem`.
    """

    columns: list[str]
    audio: str
    speaker: str | None
    rows: Iterator[TableRow]


def is_table(name: str) -> bool:
    """Return True if a path is a list of recordings: a file with such a suffix, a Kaldi folder, or its `wav.scp`."""
    path = Path(name)
    if path.is_dir():
        return is_kaldi_folder(path)
    return name.lower().endswith((*TABLE_SUFFIXES, *JSON_SUFFIXES)) or _is_scp(path)


def find_list(source: Path, split: str = "train") -> Path:
    """Return the list of recordings in a folder, or the folder to search for recordings if it contains no list.

    Args:
        source: folder, or a list, which is returned unchanged.
        split: sub-folder to use if all sub-folders are splits of a data set.
    """
    if not source.is_dir() or is_kaldi_folder(source):
        return source
    with os.scandir(source) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    folders = [entry.name for entry in entries if entry.is_dir()]
    if split in folders and SPLIT_NAMES.issuperset(folders):
        # Speakers of other splits must not be added.
        return find_list(source / split, split)
    files = {
        entry.name.lower(): source / entry.name
        for entry in sorted(entries, key=lambda one: one.name)
        if entry.is_file()
    }
    return next((files[name] for name in METADATA_NAMES if name in files and _names_files(files[name])), source)


def base_folder(source: Path) -> Path:
    """Return the folder to which the relative paths in a list refer."""
    return source if source.is_dir() else source.parent


@contextmanager
def open_corpus_list(
    source: Path,
    audio_column: str | None = None,
    speaker_column: str | None = None,
    needs_speakers: bool = True,
) -> Iterator[CorpusList]:
    """Open a list of recordings.

    Args:
        source: file or Kaldi folder, see the docstring of this module.
        audio_column: column of the paths; None uses the usual one of the format.
        speaker_column: column of the speakers; None uses the usual one of the format.
        needs_speakers: whether the list must have a column of speakers.

    Raises:
        ValueError: the file has another format, or a column is missing. Reading the rows raises it as well.
    """
    if source.is_dir() or _is_scp(source):
        rows = kaldi_rows(base_folder(source))
        yield CorpusList([*KALDI_COLUMNS], *KALDI_COLUMNS, rows)
        return
    if source.name.lower().endswith(JSON_SUFFIXES):
        columns, rows = _json_rows(source)
        yield _list_of_columns(source, columns, rows, (audio_column, speaker_column), FILE_COLUMNS, needs_speakers)
        return
    in_folder = source.name.lower() in METADATA_NAMES
    usual = ("file_name",) if in_folder else ("path",)
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            speakers = SPEAKER_COLUMNS if in_folder else SPEAKER_COLUMNS[:1]
            given = (audio_column, speaker_column)
            table = open_table(file, [name for name in (*given, *usual, *speakers) if name is not None])
            rows = with_segments(table)
            yield _list_of_columns(source, table.columns, rows, given, usual, needs_speakers, speakers)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is not a CSV file in UTF-8 ({error}). Save it as CSV in UTF-8.") from error


def read_table(
    source: Path,
    audio_column: str | None = None,
    speaker_column: str | None = None,
    needs_speakers: bool = True,
) -> tuple[list[str], list[str]]:
    """Read the names of the recordings and segments in a list, and their speakers.

    Args:
        source: list of recordings (see `open_corpus_list`).
        audio_column: column of the paths; None uses the usual one of the format.
        speaker_column: column of the speakers; None uses the usual one of the format.
        needs_speakers: whether the list must name the speaker of each recording.

    Returns:
        The names and the speakers, one for each row. If the list names no speakers, the list of speakers is empty.

    Raises:
        ValueError: the list has an unknown format, a column or a cell is missing, or a time is invalid.
    """
    names, speakers = [], []
    with open_corpus_list(source, audio_column, speaker_column, needs_speakers) as listed:
        expected = [name for name in (listed.audio, listed.speaker) if name is not None]
        for row in listed.rows:
            cells = [cell_text(row.cells.get(column)) for column in expected]
            if row.problem:
                raise ValueError(f"{source}, line {row.line}: {row.problem}")
            if not all(cells) or not clean_speaker(cells[-1] or ""):
                raise ValueError(
                    f"{source}, line {row.line}: expected values for {' and '.join(map(repr, expected))}, got "
                    f"{' and '.join(f'{row.cells.get(name)!r:.100}' for name in expected)}. Complete the line, or "
                    "delete it."
                )
            names.append(join_segment(cells[0] or "", row.segment))
            speakers += [clean_speaker(cell or "") for cell in cells[1:]]
    if not names:
        raise ValueError(f"No audio in {source}. The file has a header but no rows.")
    return names, speakers


def cell_text(cell: Any) -> str | None:
    """Return the text of a cell: a text or an integer. Other values give None."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    return cell if isinstance(cell, str) and "\0" not in cell and is_text(cell) else None


def choose_column(given: str | None, usual: Sequence[str], columns: Sequence[str], source: str, argument: str) -> str:
    """Return the column to use: the given one, or the first of the usual ones that exists.

    Args:
        given: name from the user; None for the usual names.
        usual: usual names.
        columns: all columns.
        source: description of the data, for the message.
        argument: name of the argument that names the column, for the message.

    Raises:
        ValueError: the column does not exist. The message names all columns and a similar one.
    """
    wanted = usual if given is None else (given,)
    found = next((name for name in wanted if name in columns), None)
    if found is not None:
        return found
    folded = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(wanted[0].casefold(), list(folded), n=1, cutoff=0.4)
    hint = (
        f"Did you mean {argument}={folded[near[0]]!r}?"
        if near
        else (f"Name the right column with {argument} (--{argument.replace('_', '-')}).")
    )
    raise ValueError(
        f"{source} has no column {' or '.join(map(repr, wanted))}. Its columns are [{', '.join(map(repr, columns))}]. "
        f"{hint}"
    )


def _list_of_columns(
    source: Path,
    columns: Sequence[str],
    rows: Iterator[TableRow],
    given: tuple[str | None, str | None],
    usual: Sequence[str],
    needs_speakers: bool,
    speakers: Sequence[str] = SPEAKER_COLUMNS,
) -> CorpusList:
    audio = choose_column(given[0], usual, columns, str(source), "audio_column")
    speaker: str | None = None
    if needs_speakers or given[1] is not None or any(name in columns for name in speakers):
        speaker = choose_column(given[1], speakers, columns, str(source), "speaker_column")
    return CorpusList(list(columns), audio, speaker, rows)


def _is_scp(path: Path) -> bool:
    return path.name == RECORDINGS_FILE and path.is_file()


def _names_files(metadata: Path) -> bool:
    """Return True if a `metadata.csv` or `.jsonl` names audio files. Some corpora give this name to other tables."""
    with open(metadata, encoding="utf-8-sig", errors="replace") as file:
        return "file_name" in file.readline(MOST_CHARACTERS)


def _json_rows(source: Path) -> tuple[list[str], Iterator[TableRow]]:
    """Return the names of the columns of a file of JSON lines, and its rows."""
    rows = _json_objects(source)
    first = next(rows, None)
    if first is None:
        return [], iter(())
    return list(first[1]), (json_row(line, cells) for line, cells in itertools.chain([first], rows))


def _json_objects(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in text_lines(source):
        if not text.strip():
            continue
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{source}, line {line}: expected one JSON object per line, got something else "
                f"({str(error)[:100]}). Correct the line, or delete it."
            ) from error
        if not isinstance(content, dict):
            raise ValueError(
                f"{source}, line {line}: expected one JSON object per line, got a {type(content).__name__}. Correct "
                "the line, or delete it."
            )
        yield line, content
