"""Read a corpus table: a CSV file with the path and the speaker of each recording or segment."""

import csv
import difflib
from collections.abc import Sequence
from pathlib import Path

from .tables import clean_speaker, join_segment, open_table, with_segments

TABLE_SUFFIXES = (".csv", ".tsv")
"""Suffixes of the files that commands read as tables of recordings."""


def is_table(name: str) -> bool:
    """Return True if a file name has the suffix of a table of recordings."""
    return name.lower().endswith(TABLE_SUFFIXES)


def read_table(
    source: Path, audio_column: str = "path", speaker_column: str = "speaker_id", needs_speakers: bool = True
) -> tuple[list[str], list[str]]:
    """Read the names of the recordings and segments in a CSV file, and their speakers.

    Args:
        source: CSV file in UTF-8 with a header (see `tables.open_table`).
        audio_column: column of the paths.
        speaker_column: column of the speakers.
        needs_speakers: whether the table must name the speaker of each recording.

    Returns:
        The names and the speakers, one for each row. If the table names no speakers, the list of speakers is empty.

    Raises:
        ValueError: the file is not a CSV file in UTF-8, a column or a cell is missing, or a time is invalid.
    """
    names, speakers = [], []
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            table = open_table(file, (audio_column, speaker_column))
            _require_column(audio_column, table.columns, source, "audio_column")
            if needs_speakers:
                _require_column(speaker_column, table.columns, source, "speaker_column")
            expected = [name for name in (audio_column, speaker_column) if name in table.columns]
            for row in with_segments(table):
                cells = [row.cells[column] for column in expected]
                if row.problem:
                    raise ValueError(f"{source}, line {row.line}: {row.problem}")
                if not all(cells) or not clean_speaker(str(cells[-1])):
                    raise ValueError(
                        f"{source}, line {row.line}: expected values for {' and '.join(map(repr, expected))}, got "
                        f"{' and '.join(map(repr, cells))}. Complete the line, or delete it."
                    )
                names.append(join_segment(str(cells[0]), row.segment))
                speakers += [clean_speaker(str(cell)) for cell in cells[1:]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is not a CSV file in UTF-8 ({error}). Save it as CSV in UTF-8.") from error
    if not names:
        raise ValueError(f"No audio in {source}. The file has a header but no rows.")
    return names, speakers


def _require_column(name: str, columns: Sequence[str], source: Path, argument: str) -> None:
    if name in columns:
        return
    folded = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.4)
    hint = f"Did you mean {argument}={folded[near[0]]!r}?" if near else f"Name the right column with {argument}."
    raise ValueError(f"{source} has no column {name!r}. Its columns are [{', '.join(map(repr, columns))}]. {hint}")
