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
"""Numbers of samples per second of the recording above which times are samples. The lowest sampling rate is 4000 Hz."""

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
        stop = "" if self.stop is None else f",{_number(self.stop)}"
        return f"#{'samples' if self.samples else 't'}={_number(self.start)}{stop}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")


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


@dataclass(frozen=True)
class Table:
    """Open table.

    Attributes:
        columns: names of the columns.
        rows: line number and cells of each row. The cells are stripped; missing cells are None.
        delimiter: character between the cells.
    """

    columns: list[str]
    rows: Iterator[tuple[int, dict[str, str | None]]]
    delimiter: str


def open_table(file: TextIO, expected: Sequence[str] = ()) -> Table:
    """Find the delimiter of a CSV file with a header, and return its columns and rows.

    Args:
        file: file that was opened with `encoding="utf-8-sig"` and `newline=""`.
        expected: names of columns that the table should have. The delimiter that gives most of them is used, and of
            several such delimiters the one that gives the most columns.

    Raises:
        ValueError: a row has more cells than the header. This error is raised while the rows are read.
        csv.Error, UnicodeDecodeError: the file is not a CSV file in UTF-8.
    """
    header = file.readline()
    split = {each: [cell.strip() for cell in next(csv.reader([header], delimiter=each), [])] for each in DELIMITERS}
    best = max(DELIMITERS, key=lambda each: (sum(name in split[each] for name in expected), len(split[each])))
    columns = split[best]
    return Table(columns if any(columns) else [], _rows(file, columns, best), best)


def _rows(file: TextIO, columns: list[str], delimiter: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    reader = csv.reader(file, delimiter=delimiter)
    for cells in reader:
        if not any(cells):
            continue
        line = reader.line_num + 1
        surplus = [cell for cell in cells[len(columns) :] if cell.strip()]
        if surplus:
            raise ValueError(
                f"{file.name}, line {line}: expected {len(columns)} cells, got {len(cells)}. Put a cell that contains "
                f"{'a tab' if delimiter == chr(9) else repr(delimiter)} into double quotes."
            )
        values = [cell.strip() for cell in cells[: len(columns)]]
        yield line, dict(itertools.zip_longest(columns, values))


def has_segments(columns: Sequence[str]) -> bool:
    """Return True if a table has a column of times (see the module docstring)."""
    return any(name in columns for name in SEGMENT_COLUMNS)


def with_segments(table: Table) -> Iterator[tuple[int, dict[str, str | None], Segment | None]]:
    """Yield the line number, the cells and the segment of each row. The segment is None for a whole recording.

    Raises:
        ValueError: a time is not a number of seconds, or a segment ends before it starts; the message names the line.
    """
    if not has_segments(table.columns):
        yield from ((line, row, None) for line, row in table.rows)
        return
    comma = table.delimiter != ","
    first = list(itertools.islice(table.rows, ROWS_COMPARED))
    samples = _counts_samples([row for _, row in first], comma)
    for line, row in itertools.chain(first, table.rows):
        try:
            yield line, row, row_segment(row, samples, comma)
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from None


def row_segment(row: Mapping[str, Any], samples: bool = False, decimal_comma: bool = False) -> Segment | None:
    """Return the segment that a row of a table names, or None if it names a whole recording.

    Args:
        row: cells of the row by column.
        samples: whether the times are indices of samples.
        decimal_comma: whether a comma is accepted in place of the decimal point.

    Raises:
        ValueError: a time is not a number of seconds, or the segment ends before it starts.
    """
    start = _time(row, START_COLUMNS, decimal_comma)
    stop = _time(row, STOP_COLUMNS, decimal_comma)
    if stop is None and start is not None and not samples:
        duration = _time(row, (DURATION_COLUMN,), decimal_comma)
        stop = None if duration is None else round(start + duration, 6)
    if start is None and stop is None:
        return None
    start = 0.0 if start is None else start
    if stop is not None and stop <= start:
        raise ValueError(f"expected a segment that ends after its start, got {start:g} to {stop:g}. Correct the times.")
    return Segment(start, stop, samples)


def _time(row: Mapping[str, Any], columns: Sequence[str], decimal_comma: bool) -> float | None:
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

    These tables also contain the duration of the recording in seconds. A segment in seconds is never longer than this,
    and a segment in samples has thousands of times as many samples as the recording has seconds, or at least hundreds
    if it is a short part of it.
    """
    compared = 0
    for row in rows:
        try:
            start, stop, seconds = (
                _time(row, names, decimal_comma) for names in (START_COLUMNS, STOP_COLUMNS, (DURATION_COLUMN,))
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
