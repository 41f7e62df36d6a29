"""Read tables of recordings: CSV files with commas, semicolons, tabs or bars.

A table can name segments of recordings. Its columns `start` (or `offset`) and `stop` (or `end`) contain times in
seconds; instead of `stop`, a table with `start` can contain `duration`. Tables of SpeechBrain contain numbers of
samples, which are recognised by their size (see `_counts_samples`).

The name of a segment is the path of the recording followed by a media fragment (https://www.w3.org/TR/media-frags/):
`call.wav#t=1.5,4` contains the samples from 1.5 s to 4 s, `call.wav#t=60` all samples from 60 s on, and
`call.wav#samples=0,48000` the first 48,000 samples. The function `read_utterance` reads only these samples.
"""

import csv
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

DELIMITERS = (",", ";", "\t", "|")
START_COLUMNS, STOP_COLUMNS, DURATION_COLUMN = ("start", "offset"), ("stop", "end"), "duration"
SEGMENT_COLUMNS = (*START_COLUMNS, *STOP_COLUMNS)

ROWS_COMPARED = 200
"""Number of rows that decide whether times are seconds or samples."""

SAMPLES_PER_SECOND = 100
"""Times are indices of samples if a segment has more of them than this per second of its recording.

The lowest sampling rate, 4000 Hz, is far above this number.
"""

# Characters without width that word processors and web pages add to names.
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
_FRAGMENT = re.compile(r"#(t|samples)=(\d+(?:\.\d+)?)(?:,(\d+(?:\.\d+)?))?")


class Segment(NamedTuple):
    """Part of a recording.

    Attributes:
        start: time of the first sample in seconds, or its index if `samples` is True.
        stop: time after the last sample in seconds, or its index; None for the end of the recording.
        samples: whether `start` and `stop` are indices of samples.
    """

    start: float
    stop: float | None
    samples: bool = False

    def __str__(self) -> str:
        stop = "" if self.stop is None else f",{_without_zeros(self.stop)}"
        return f"#{'samples' if self.samples else 't'}={_without_zeros(self.start)}{stop}"


def _without_zeros(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0").rstrip(".")


def split_segment(name: str) -> tuple[str, Segment | None]:
    """Return the path of a recording and its segment. The segment is None if the name has no media fragment."""
    place = name.rfind("#")
    found = None if place < 0 else _FRAGMENT.fullmatch(name, place)
    if found is None:
        return name, None
    return name[:place], Segment(float(found[2]), None if found[3] is None else float(found[3]), found[1] == "samples")


def clean_speaker(name: str) -> str:
    """Return the name of a speaker without surrounding or invisible characters, in the Unicode form NFC.

    `"so2451"` and `"so2451 "` are one speaker, and so are two spellings of `"José"` that look the same.
    """
    return unicodedata.normalize("NFC", name.translate(_INVISIBLE)).strip()


class TableRow(NamedTuple):
    """Row of a table.

    Attributes:
        line: number of its line in the file, counted from 1.
        cells: maps each column to its cell. Cells of a CSV file are stripped; missing cells are None.
        segment: segment of the recording; None for the whole recording.
        problem: reason why the row is invalid; "" if it is valid.
    """

    line: int
    cells: Mapping[str, Any]
    segment: Segment | None = None
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """Header and rows of an open CSV file.

    Attributes:
        columns: names of the columns.
        rows: iterator over the rows, whose segments are not determined yet (see `with_segments`).
        delimiter: character between the cells.
    """

    columns: list[str]
    rows: Iterator[TableRow]
    delimiter: str


def open_table(file: TextIO, expected: Sequence[str] = ()) -> Table:
    """Find the delimiter of a CSV file with a header, and return its columns and rows.

    Args:
        file: file that was opened with `encoding="utf-8-sig"` and `newline=""`.
        expected: names of columns that the table should have. The delimiter with which most of these names are found is
            used. If several delimiters find equally many, the one that yields the most columns is used.

    Raises:
        csv.Error, UnicodeDecodeError: the file is not a CSV file in UTF-8.
    """
    header = file.readline()
    split = {each: [cell.strip() for cell in next(csv.reader([header], delimiter=each), [])] for each in DELIMITERS}
    best = max(DELIMITERS, key=lambda each: (sum(name in split[each] for name in expected), len(split[each])))
    columns = [_plain_column(name, split[best]) for name in split[best]]
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise csv.Error(f"the column {twice!r} occurs twice")
    return Table(columns if any(columns) else [], _table_rows(file, columns, best), best)


def _plain_column(name: str, columns: Sequence[str]) -> str:
    """Return the name of a column. Columns of times may have capitals, such as `Start` and `End`."""
    small = name.casefold()
    return small if small in (*SEGMENT_COLUMNS, DURATION_COLUMN) and small not in columns else name


def _table_rows(file: TextIO, columns: list[str], delimiter: str) -> Iterator[TableRow]:
    reader = csv.reader(file, delimiter=delimiter)
    for cells in reader:
        if not any(cells):
            continue
        problem = ""
        # Some programs end every line with a delimiter.
        if any(cell.strip() for cell in cells[len(columns) :]):
            shown = "a tab" if delimiter == "\t" else repr(delimiter)
            problem = f"expected {len(columns)} cells, got {len(cells)}. Put a cell with {shown} into double quotes."
        values = [cell.strip() for cell in cells[: len(columns)]]
        yield TableRow(reader.line_num + 1, dict(itertools.zip_longest(columns, values)), None, problem)


def with_segments(table: Table) -> Iterator[TableRow]:
    """Yield the rows of a table with their segments. Rows with invalid times get a `problem`."""
    if not any(name in table.columns for name in SEGMENT_COLUMNS):
        yield from table.rows
        return
    comma = table.delimiter != ","
    first = list(itertools.islice(table.rows, ROWS_COMPARED))
    samples = _counts_samples([row.cells for row in first], comma)
    for row in itertools.chain(first, table.rows):
        yield _with_segment(row, samples, comma)


def json_row(line: int, cells: Mapping[str, Any]) -> TableRow:
    """Return a line of a JSONL file as a row with its segment."""
    return _with_segment(TableRow(line, cells), samples=False, decimal_comma=False)


def _with_segment(row: TableRow, samples: bool, decimal_comma: bool) -> TableRow:
    if row.problem:
        return row
    try:
        return row._replace(segment=row_segment(row.cells, samples, decimal_comma))
    except ValueError as error:
        return row._replace(problem=str(error))


def row_segment(row: Mapping[str, Any], samples: bool = False, decimal_comma: bool = False) -> Segment | None:
    """Return the segment that a row of a table names, or None if it names a whole recording.

    Args:
        row: cells of the row by column.
        samples: whether the times are indices of samples.
        decimal_comma: whether a comma is accepted in place of the decimal point.

    Raises:
        ValueError: a time is not a number of seconds, or the segment ends before it starts.
    """
    start = _time_of(row, START_COLUMNS, decimal_comma)
    stop = _time_of(row, STOP_COLUMNS, decimal_comma)
    if stop is None and start is not None and not samples:
        duration = _time_of(row, (DURATION_COLUMN,), decimal_comma)
        stop = None if duration is None else round(start + duration, 6)
    if start is None and stop is None:
        return None
    start = 0.0 if start is None else start
    if stop is not None and stop <= start:
        raise ValueError(f"expected a segment that ends after its start, got {start:g} to {stop:g}. Correct the times.")
    return Segment(start, stop, samples)


def _time_of(row: Mapping[str, Any], columns: Sequence[str], decimal_comma: bool) -> float | None:
    for name in columns:
        text = "" if row.get(name) is None else str(row[name]).strip()
        if text:
            try:
                value = float(text.replace(",", ".") if decimal_comma else text)
            except ValueError:
                value = math.nan
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"the column {name!r} must contain times in seconds, at least 0, got {text!r}. Correct the time, "
                    "or rename the column if it contains something else."
                )
            return value
    return None


def _counts_samples(rows: Sequence[Mapping[str, Any]], decimal_comma: bool) -> bool:
    """Return True if times are indices of samples, as in the tables of SpeechBrain.

    These tables also contain the duration of each recording in seconds. Times in seconds give a segment that is not
    longer than its recording. The times are indices if, in each row with an end time and a duration, they are integers
    and their difference is more than `SAMPLES_PER_SECOND` times the duration.
    """
    compared = 0
    for row in rows:
        try:
            start, stop, seconds = (
                _time_of(row, names, decimal_comma) for names in (START_COLUMNS, STOP_COLUMNS, (DURATION_COLUMN,))
            )
        except ValueError:
            return False
        if stop is None or seconds is None:
            continue
        start = 0.0 if start is None else start
        if start != int(start) or stop != int(stop) or stop - start <= SAMPLES_PER_SECOND * seconds:
            return False
        compared += 1
    return compared > 0


def join_segment(path: str | os.PathLike[str], segment: Segment | None) -> str:
    """Return the name of a segment: the path with a media fragment. The path of a whole recording is unchanged."""
    return os.fspath(path) if segment is None else f"{os.fspath(path)}{segment}"
