"""Find the speakers of a trial list, and read other metadata of its files.

A trial list declares which pairs have the same speaker, but does not name the speakers. `find_speakers` reads the names
off the file names. The speaker is the folder, or the first part of the file name, that is the same on both sides of
every target trial and differs in every impostor trial. This is the first folder in VoxCeleb's
`id10270/x6uYqmx31kE/00001.wav`, the second folder in `corpus/speaker/utterance.flac`, and the part before the first
hyphen in `1089-134686-0000.flac`. Names without such a part need a table.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from .trials import Trials, first_names

PATH_COLUMN, SPEAKER_COLUMN = "path", "speaker_id"
# Columns of numbers with more values than this, such as ages, are cut into `PARTS` groups of about the same size.
MOST_VALUES = 8
PARTS = 4
_RANGE = re.compile(r"(\d+\.?\d*) ?- ?(\d+\.?\d*)")


# A generated `__eq__` would raise, as an array has no single truth value: compared by identity.
@dataclass(frozen=True, eq=False)
class TrialSpeakers:
    """Speakers of `N` trials.

    Attributes:
        names: names of the `S` speakers, sorted.
        enrolment: int32, shape `(N,)`, index into `names` of the speaker of the enrolment.
        test: int32, shape `(N,)`, index into `names` of the speaker of the test recording.

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
        """Return the speakers of the given trials; speakers without a trial are left out."""
        used, indices = np.unique(np.stack((self.enrolment[rows], self.test[rows])), return_inverse=True)
        enrolment, test = indices.reshape(2, -1).astype(np.int32)
        return TrialSpeakers(tuple(self.names[i] for i in used), enrolment, test)


def find_speakers(trials: Trials, table: Mapping[str, str] | None = None) -> TrialSpeakers:
    """Find the speakers of each trial in a table or in the file names (see the module).

    Args:
        trials: trials, at least one.
        table: maps every file of the list to its speaker; None reads the speakers off the file names.

    Raises:
        ValueError: there are no trials, a file is not in the table, the table contradicts a label, or no part of the
            file names agrees with all labels.
    """
    if not len(trials):
        raise ValueError("Expected at least one trial to find speakers in, got none.")
    trials = trials.single()
    row = {name: i for i, name in enumerate(trials.files)}
    sides = np.array([[row[name] for name in names] for names in (trials.enrolment, trials.test)])
    is_target = trials.labels == 1
    if table is not None:
        absent = [name for name in trials.files if name not in table]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(trials.files)} files of the trial list are not in the table of speakers "
                f"({first_names(absent, 3)}). Its column {PATH_COLUMN!r} must contain the file names of the list."
            )
        speakers = _index([table[name] for name in trials.files], sides)
        wrong = (speakers.enrolment == speakers.test) != is_target
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"{int(wrong.sum())} of {len(trials)} labels contradict the table of speakers. The first one is: "
                f"{trials.labels[first]} {trials.enrolment[first]} {trials.test[first]}. Correct the list or the table."
            )
        return speakers
    for candidate in _candidates(trials.files):
        speakers = _index(candidate, sides)
        if np.array_equal(speakers.enrolment == speakers.test, is_target):
            return speakers
    raise ValueError(
        "The speakers cannot be read off the names of the files: no folder, and no first part of a file name, is the "
        f"same in every target trial and different in every impostor trial ({first_names(trials.files, 3)}). Give a "
        f"table with the columns {PATH_COLUMN} and {SPEAKER_COLUMN} (--metadata)."
    )


def _candidates(files: Sequence[str]) -> list[list[str]]:
    """Return the candidate speakers of all files by each rule: the folders, outermost first, then the file name."""
    parts = [name.replace("\\", "/").split("/") for name in files]
    folders = [["/".join(p[: depth + 1]) for p in parts] for depth in range(min(map(len, parts)) - 1)]
    # Without its extension, so that a name without any separator is its own first part.
    return [*folders, [re.split(r"[-_.]", p[-1], maxsplit=1)[0] for p in parts]]


def _index(speaker_of_file: Sequence[str], sides: NDArray) -> TrialSpeakers:
    names, of_file = np.unique(np.array(speaker_of_file, dtype=object), return_inverse=True)
    enrolment, test = of_file[sides].astype(np.int32)
    return TrialSpeakers(tuple(str(name) for name in names), enrolment, test)


def read_metadata(path: str | PathLike[str]) -> dict[str, dict[str, str]]:
    """Read a CSV file with metadata of audio files: the column `path` and any other columns.

    Returns:
        A dictionary that maps each file to its other columns; cells are stripped of white space and may be empty.

    Raises:
        ValueError: the file is missing, is not UTF-8 or has no column `path`, a row has another number of cells than
            the header, or one file has two different rows.
    """
    table: dict[str, dict[str, str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if PATH_COLUMN not in header:
                raise ValueError(
                    f"{path}: expected a column {PATH_COLUMN!r} with the file names of the trial lists, found the "
                    f"columns {', '.join(header)}."
                )
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: expected {len(header)} cells, found {len(cells)}."
                    )
                row = dict(zip(header, map(str.strip, cells), strict=True))
                name = row.pop(PATH_COLUMN)
                if table.setdefault(name, row) != row:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {name} has two different rows. Delete one of them."
                    )
    except FileNotFoundError:
        raise ValueError(f"There is no table {path}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8, found other bytes: {error}.") from error
    return table


def speaker_table(metadata: Mapping[str, Mapping[str, str]]) -> dict[str, str] | None:
    """Return a dictionary that maps files to speakers, without empty cells; None if there is no `speaker_id` column."""
    if not all(SPEAKER_COLUMN in row for row in metadata.values()):
        return None
    return {name: row[SPEAKER_COLUMN] for name, row in metadata.items() if row[SPEAKER_COLUMN]}


def group_trials(
    trials: Trials, metadata: Mapping[str, Mapping[str, str]], columns: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """Group trials by the metadata of their files; both files of a trial must be in the group.

    Each value of a column is a group. Columns with many numbers, such as ages, are cut into up to four groups of about
    the same number of files; a range such as `20-30` counts as 25. Files that are not in the table, or have an empty
    cell, are in no group.

    Args:
        trials: the `N` trials.
        metadata: maps each file to its columns, from `read_metadata`.
        columns: names of columns, such as `gender`.

    Returns:
        A dictionary that maps the name of each group, `"column value"`, to a mask `(N,)`. The groups of a column are
        sorted, and groups without trials are left out.

    Raises:
        ValueError: the table does not have one of the columns.
    """
    groups: dict[str, NDArray[np.bool_]] = {}
    trials = trials.single()
    for column in columns:
        if not any(column in row for row in metadata.values()):
            known = sorted({name for row in metadata.values() for name in row})
            raise ValueError(f"The table has no column {column!r} to group by; it has {', '.join(known)}.")
        value_of = {name: metadata.get(name, {}).get(column, "") for name in trials.files}
        labels, value_of = _grouped_values(value_of)
        sides = [np.array([value_of[name] for name in names]) for names in (trials.enrolment, trials.test)]
        for code, label in enumerate(labels):
            mask = (sides[0] == code) & (sides[1] == code)
            if mask.any():
                groups[f"{column} {label}"] = mask
    return groups


def _grouped_values(value_of: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """Return the sorted names of the groups, and the index of the group of each file, -1 if it is in none."""
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
    """Return the values as finite numbers, ranges such as `20-30` as their middle; None if a value is neither."""
    try:
        parts = [[value] if (found := _RANGE.fullmatch(value)) is None else found.groups() for value in values]
        numbers = np.array([np.mean([float(part) for part in of_value]) for of_value in parts], dtype=np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
