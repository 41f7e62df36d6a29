"""Find the speakers of a trial list, and read other metadata of its files.

A trial list declares which pairs of recordings have the same speaker, but does not name the speakers. `find_speakers`
derives the speakers from the paths of the files. It tries the folders first, from the outermost folder inwards, and
then the beginning of the file name. It chooses the first of these parts that is the same in both paths of every
target trial and differs between the two paths of every impostor trial. In VoxCeleb's `id10270/x6uYqmx31kE/00001.wav`,
this part is the first folder. In `corpus/speaker/utterance.flac`, it is the second folder. In `1089-134686-0000.flac`,
it is the part of the file name before the first hyphen. If no part of the paths agrees with all labels, a table of the
speakers is needed.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from ..files.tables import clean_speaker, join_segment, open_table, with_segments
from .trials import Trials, first_names

PATH_COLUMN, SPEAKER_COLUMN = "path", "speaker_id"
# A column with more distinct numbers than this, such as ages, is divided into PARTS groups of about the same size.
MOST_VALUES = 8
PARTS = 4
_RANGE = re.compile(r"(\d+\.?\d*) ?- ?(\d+\.?\d*)")


# Instances are compared by identity: a generated `__eq__` would compare arrays, and their truth value is ambiguous.
@dataclass(frozen=True, eq=False)
class TrialSpeakers:
    """Speakers of the two recordings of each of `N` trials.

    Attributes:
        names: names of the speakers, sorted.
        enrolment: int32, shape `(N,)`, index into `names` of the speaker of each enrolment.
        test: int32, shape `(N,)`, index into `names` of the speaker of each test recording.

    Example:
        ```python
        from hf_hamspk.evaluation import Trials, find_speakers

        speakers = find_speakers(Trials([1, 0], ["ann/1.wav", "ann/1.wav"], ["ann/2.wav", "bob/1.wav"]))
        print(speakers.names, speakers.test)  # ('ann', 'bob') [0 1]
        ```
    """

    names: tuple[str, ...]
    enrolment: NDArray[np.int32]
    test: NDArray[np.int32]

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.enrolment)

    def select(self, rows: NDArray) -> "TrialSpeakers":
        """Return the speakers of a subset of the trials.

        Speakers who do not occur in the subset are left out.

        Args:
            rows: indices or boolean mask of the trials in the subset.
        """
        used, indices = np.unique(np.stack((self.enrolment[rows], self.test[rows])), return_inverse=True)
        enrolment, test = indices.reshape(2, -1).astype(np.int32)
        return TrialSpeakers(tuple(self.names[i] for i in used), enrolment, test)


def find_speakers(trials: Trials, table: Mapping[str, str] | None = None) -> TrialSpeakers:
    """Find the speakers of each trial in a table or in the file names (see the module docstring).

    Args:
        trials: trial list with at least one trial.
        table: maps every file of the list to its speaker; None derives the speakers from the file names.

    Raises:
        ValueError: the list is empty, a file is not in the table, the table contradicts a label, or the labels of the
            trials contradict the speakers that the folders or the beginnings of the file names suggest.
    """
    if not len(trials):
        raise ValueError("The trial list is empty: expected at least one trial.")
    trials = trials.single()
    row = {name: i for i, name in enumerate(trials.files)}
    sides = np.array([[row[name] for name in names] for names in (trials.enrolment, trials.test)])
    is_target = trials.labels == 1
    if table is not None:
        absent = [name for name in trials.files if name not in table]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(trials.files)} files of the trial list are not in the table of speakers "
                f"({first_names(absent, 3)}). The column {PATH_COLUMN!r} of the table must contain every file name of "
                "the list."
            )
        speakers = _index([table[name] for name in trials.files], sides)
        wrong = (speakers.enrolment == speakers.test) != is_target
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"{int(wrong.sum())} of {len(trials)} labels contradict the table of speakers. The first such trial "
                f"is: {trials.labels[first]} {trials.enrolment[first]} {trials.test[first]}. Correct the list or the "
                "table."
            )
        return speakers
    for candidate in _candidates(trials.files):
        speakers = _index(candidate, sides)
        if np.array_equal(speakers.enrolment == speakers.test, is_target):
            return speakers
    raise ValueError(
        "The speakers cannot be derived from the file names: no folder and no beginning of the file names is the same "
        "in both files of every target trial and different in the two files of every impostor trial "
        f"({first_names(trials.files, 3)}). Give a table with the columns {PATH_COLUMN} and {SPEAKER_COLUMN} "
        "(--metadata)."
    )


def _candidates(files: Sequence[str]) -> list[list[str]]:
    """Return several lists, each with a possible speaker for every file.

    The first lists use the folders as speakers, one list for each depth, from the outermost folder inwards. The last
    list uses the file names up to the first hyphen, underscore or dot.
    """
    parts = [name.replace("\\", "/").split("/") for name in files]
    folders = [["/".join(p[: depth + 1]) for p in parts] for depth in range(min(map(len, parts)) - 1)]
    # The dot is a separator too, so that the first part of "ann.wav" is "ann".
    return [*folders, [re.split(r"[-_.]", p[-1], maxsplit=1)[0] for p in parts]]


def _index(speaker_of_file: Sequence[str], sides: NDArray) -> TrialSpeakers:
    names, of_file = np.unique(np.array(speaker_of_file, dtype=object), return_inverse=True)
    enrolment, test = of_file[sides].astype(np.int32)
    return TrialSpeakers(tuple(str(name) for name in names), enrolment, test)


def read_metadata(path: str | PathLike[str]) -> dict[str, dict[str, str]]:
    """Read the metadata of audio files from a CSV file with the column `path` and any other columns.

    The cells are separated by commas, semicolons, tabs or bars. If the table has columns of times (see `files.tables`),
    each row with times describes a segment, whose name is the path with the times, as in `call.wav#t=1.5,4`.

    Returns:
        A dictionary that maps each file or segment to a dictionary of its other columns. Values are stripped of white
        space and may be empty.

    Raises:
        ValueError: the file is missing, is not UTF-8 or has no column `path`, a row does not have as many cells as the
            header, a time is invalid, or an audio file has two different rows.
    """
    table: dict[str, dict[str, str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            opened = open_table(file, (PATH_COLUMN, SPEAKER_COLUMN))
            if PATH_COLUMN not in opened.columns:
                raise ValueError(
                    f"{path}: expected a column {PATH_COLUMN!r} with the file names of the trial lists, found the "
                    f"columns {', '.join(opened.columns)}."
                )
            for row in with_segments(opened):
                found = sum(cell is not None for cell in row.cells.values())
                if row.problem or found != len(opened.columns):
                    reason = row.problem if row.problem else f"expected {len(opened.columns)} cells, got {found}."
                    raise ValueError(f"{path}, line {row.line}: {reason}")
                cells = dict(row.cells)
                name = join_segment(cells.pop(PATH_COLUMN), row.segment)
                if SPEAKER_COLUMN in cells:
                    cells[SPEAKER_COLUMN] = clean_speaker(cells[SPEAKER_COLUMN])
                if table.setdefault(name, cells) != cells:
                    raise ValueError(f"{path}, line {row.line}: {name} has two different rows. Delete one of them.")
    except FileNotFoundError:
        raise ValueError(f"Table not found: {path}. Expected a CSV file.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8 ({error}). Save it in UTF-8.") from error
    return table


def speaker_table(metadata: Mapping[str, Mapping[str, str]]) -> dict[str, str] | None:
    """Return a dictionary that maps each file to its speaker; None if the metadata has no column `speaker_id`.

    Files whose speaker is empty are left out.
    """
    if not all(SPEAKER_COLUMN in row for row in metadata.values()):
        return None
    return {name: row[SPEAKER_COLUMN] for name, row in metadata.items() if row[SPEAKER_COLUMN]}


def group_trials(
    trials: Trials, metadata: Mapping[str, Mapping[str, str]], columns: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """Group trials by the metadata of their files.

    Each value of a column forms a group, which contains the trials whose two files both have this value. Columns with
    many distinct numbers, such as ages, are divided into up to four groups of about the same number of files. A range
    such as `20-30` counts as 25. Files that have no metadata or an empty value belong to no group.

    Args:
        trials: the `N` trials.
        metadata: maps each file to a dictionary of its columns, from `read_metadata`.
        columns: names of the columns that form groups, such as `gender`.

    Returns:
        A dictionary that maps the name of each group, `"column value"`, to a mask `(N,)`. The groups of a column are
        sorted, and groups without trials are left out.

    Raises:
        ValueError: the metadata does not contain one of the columns.
    """
    groups: dict[str, NDArray[np.bool_]] = {}
    trials = trials.single()
    for column in columns:
        if not any(column in row for row in metadata.values()):
            known = sorted({name for row in metadata.values() for name in row})
            raise ValueError(f"The table has no column {column!r} to group by. Its columns are {', '.join(known)}.")
        value_of = {name: metadata.get(name, {}).get(column, "") for name in trials.files}
        labels, value_of = _grouped_values(value_of)
        sides = [np.array([value_of[name] for name in names]) for names in (trials.enrolment, trials.test)]
        for code, label in enumerate(labels):
            mask = (sides[0] == code) & (sides[1] == code)
            if mask.any():
                groups[f"{column} {label}"] = mask
    return groups


def _grouped_values(value_of: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """Divide files into groups by their values.

    Returns:
        The sorted names of the groups, and a dictionary that maps each file to the index of its group, or to -1 if the
        file belongs to no group.
    """
    distinct = sorted({value for value in value_of.values() if value})
    numbers = _as_numbers(distinct)
    if numbers is None or len(distinct) <= MOST_VALUES:
        distinct = distinct if numbers is None else [distinct[i] for i in np.argsort(numbers, kind="stable")]
        place = {value: i for i, value in enumerate(distinct)}
        return distinct, {name: place.get(value, -1) for name, value in value_of.items()}
    number_of = dict(zip(distinct, numbers.tolist(), strict=True))
    known = np.array([number_of[value] for value in value_of.values() if value])
    limits = np.unique(np.quantile(known, np.arange(1, PARTS) / PARTS, method="lower"))
    place = {value: int(np.searchsorted(limits, number_of[value])) for value in distinct}
    codes = np.searchsorted(limits, numbers)
    labels = [
        f"{numbers[codes == code].min():g} to {numbers[codes == code].max():g}" for code in range(len(limits) + 1)
        if (codes == code).any()
    ]  # fmt: skip
    return labels, {name: place.get(value, -1) for name, value in value_of.items()}


def _as_numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    """Convert values to finite numbers. A range such as `20-30` is converted to its midpoint.

    Returns:
        The numbers, or None if a value is neither a number nor a range.
    """
    try:
        parts = [[value] if (found := _RANGE.fullmatch(value)) is None else found.groups() for value in values]
        numbers = np.array([np.mean([float(part) for part in of_value]) for of_value in parts], dtype=np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
