"""Read the segments that a diarisation found: who speaks from when to when.

A file of segments is one of these:

- an RTTM file: lines `SPEAKER RECORDING CHANNEL START DURATION <NA> <NA> NAME <NA> <NA>`, separated by blanks
  (https://github.com/nryant/dscore#rttm); lines of other types and comments (`;;`) are ignored;
- a CSV file (see `tables`) with the columns `start` and `end` (or `stop` or `duration`), and perhaps a column of
  speakers (`speaker_id`, `speaker`, `label`, ...) and a column of recordings (`path`, `file_name`, ...).

The recordings are given beside the file. A recording belongs to a row if the row has its name, with or without the
folder and the suffix. If the file names no recordings, and one recording is given, all rows belong to it.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from .corpora import FILE_COLUMNS, SPEAKER_COLUMNS
from .kaldi import text_lines
from .tables import SEGMENT_COLUMNS, Segment, clean_speaker, open_table, with_segments

RTTM_SUFFIX, RTTM_TYPE, RTTM_COMMENT = ".rttm", "SPEAKER", ";;"
# Numbers of words in a line of an RTTM file. Some programs leave out the last two, or three.
RTTM_WORDS = (8, 10)
RTTM_UNKNOWN = "<NA>"
RTTM_FORM = (
    "8 to 10 words `SPEAKER RECORDING CHANNEL START DURATION <NA> <NA> NAME <NA> <NA>` (names must not contain blanks)"
)


@dataclass(frozen=True)
class SpeakerSegment:
    """Segment of a recording in which one person speaks.

    Attributes:
        recording: path of the recording.
        speaker: name of the speaker; "" if the file names none.
        segment: start and end.
    """

    recording: str
    speaker: str
    segment: Segment


@dataclass
class SpeakerSegments:
    """Segments of the given recordings, and the rows that cannot be used.

    Attributes:
        found: segments, in the order of the file.
        skipped: maps the number of each line that cannot be used to the reason.
    """

    found: list[SpeakerSegment] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)


def read_speaker_segments(source: Path, recordings: Sequence[str]) -> SpeakerSegments:
    """Read the segments of recordings. Invalid rows, and rows of other recordings, are skipped.

    Args:
        source: RTTM file (`.rttm`) or CSV file.
        recordings: paths of the recordings.

    Raises:
        ValueError: the file is missing or has another format, two recordings have the same name, or no row can be used.
    """
    if not source.is_file():
        raise ValueError(f"File not found: {source}. Expected an RTTM file, or a CSV file with start and end.")
    rows = list(_rttm_rows(source) if source.suffix.lower() == RTTM_SUFFIX else _csv_rows(source))
    named = _recordings_by_name(recordings)
    is_alone = len(recordings) == 1 and not any(name for _, name, _, _ in rows)
    result = SpeakerSegments()
    for line, name, speaker, segment in rows:
        recording = recordings[0] if is_alone else named.get(name, named.get(PurePath(name).name))
        if isinstance(segment, str):
            result.skipped[line] = segment
        elif recording is None:
            result.skipped[line] = (
                f"none of the given recordings is named {name!r:.100}" if name else "the row names no recording"
            )
        else:
            result.found.append(SpeakerSegment(recording, speaker, segment))
    if not result.found:
        if not result.skipped:
            raise ValueError(f"{source} contains no segments: it has no rows. Give the result of a diarisation.")
        _check_named(source, [name for _, name, _, segment in rows if isinstance(segment, Segment)], recordings)
        line, reason = next(iter(result.skipped.items()))
        raise ValueError(f"{source} contains no segment of the given recordings (line {line}: {reason}).")
    return result


def _check_named(source: Path, names: Sequence[str], recordings: Sequence[str]) -> None:
    """Raise ValueError if the file names recordings, because it is called only if none of them was given."""
    other = next((name for name in names if name), None)
    if other is not None:
        raise ValueError(
            f"{source} has segments of the recording {other!r:.100}, but not of {recordings[0]!s:.200}. Give the file "
            "with the segments of this recording, or correct the name in it."
        )


def _recordings_by_name(recordings: Sequence[str]) -> dict[str, str]:
    """Map the path, the file name and the file name without suffix of each recording to its path.

    Raises:
        ValueError: two recordings have the same name.
    """
    stems = [PurePath(one).stem for one in recordings]
    twice = next((one for one in stems if stems.count(one) > 1), None)
    if twice is not None:
        raise ValueError(f"Two recordings are named {twice}. Run the command once for each of them.")
    names = [(one, PurePath(one).name, PurePath(one).stem) for one in recordings]
    return {name: own[0] for own in names for name in own}


def _rttm_rows(source: Path) -> Iterator[tuple[int, str, str, Segment | str]]:
    """Yield line number, recording, speaker, and the segment or the reason why the line is invalid."""
    for line, text in text_lines(source):
        words = text.split()
        if not words or words[0].startswith(RTTM_COMMENT) or (words[0].isupper() and words[0] != RTTM_TYPE):
            continue
        if words[0] != RTTM_TYPE or not RTTM_WORDS[0] <= len(words) <= RTTM_WORDS[1]:
            count = "1 word" if len(words) == 1 else f"{len(words)} words"
            yield line, "", "", f"expected {RTTM_FORM}, got {count} ({text.strip()[:60]!r})"
            continue
        start, duration = (_seconds(word) for word in words[3:5])
        found: Segment | str = (
            f"expected a start of at least 0 s and a duration above 0 s, got {words[3]!r:.60} and {words[4]!r:.60}"
        )
        if start is not None and duration is not None and (stop := round(start + duration, 6)) > start:
            found = Segment(start, stop)
        yield line, words[1], clean_speaker(words[7].removeprefix(RTTM_UNKNOWN)), found


def _seconds(text: str) -> float | None:
    """Return a time in seconds; None if the text is not a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _csv_rows(source: Path) -> Iterator[tuple[int, str, str, Segment | str]]:
    """Yield the same values as `_rttm_rows`, for a CSV file.

    Raises:
        ValueError: the file is not a CSV file with times.
    """
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            table = open_table(file, [*SEGMENT_COLUMNS, *SPEAKER_COLUMNS])
            if not any(name in table.columns for name in SEGMENT_COLUMNS):
                raise ValueError(
                    f"{source} must have the columns start and end, got {', '.join(table.columns)!s:.200}. Rename the "
                    f"columns, or give an RTTM file with the suffix {RTTM_SUFFIX}."
                )
            columns = [[name for name in usual if name in table.columns] for usual in (FILE_COLUMNS, SPEAKER_COLUMNS)]
            for row in with_segments(table):
                name, speaker = (cell if own and (cell := row.cells[own[0]]) is not None else "" for own in columns)
                if row.problem or row.segment is None or row.segment.stop is None:
                    problem = row.problem if row.problem else "expected a start and an end"
                    yield row.line, name, clean_speaker(speaker), problem
                else:
                    yield row.line, name, clean_speaker(speaker), row.segment
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is not a CSV file in UTF-8 ({error}). Save it as CSV in UTF-8.") from error
