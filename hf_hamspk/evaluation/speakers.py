"""Who speaks in the files of a trial list, and what else a table says of them.

A trial list says which pairs are of one speaker, not who that is. `find_speakers` reads it off the names: the speaker
is the folder, or the first part of the file name, that agrees in every target trial and differs in every impostor
trial. In VoxCeleb's `id10270/x6uYqmx31kE/00001.wav` that is the first folder, in `corpus/speaker/utterance.flac` the
second, in `1089-134686-0000.flac` the part before the first hyphen. Where names follow no such rule, a table tells.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from .trials import Trials

PATH_COLUMN, SPEAKER_COLUMN = "path", "speaker_id"
# Columns of numbers with more values than this are cut into as many equal parts as below, like ages.
MOST_VALUES = 8
PARTS = 4
_NAMES_SHOWN = 3
_RANGE = re.compile(r"(\d+\.?\d*) ?- ?(\d+\.?\d*)")


# Arrays have no single truth value, so a generated `__eq__` would raise: compared by identity.
@dataclass(frozen=True, eq=False)
class TrialSpeakers:
    """The speakers of `N` trials.

    Attributes:
        names: the `S` speakers, sorted.
        enrolment: int32, shape `(N,)`: index into `names` of the enrolment's speaker.
        test: int32, shape `(N,)`: of the test's speaker.
    """

    names: tuple[str, ...]
    enrolment: NDArray[np.int32]
    test: NDArray[np.int32]

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.enrolment)

    def select(self, rows: NDArray) -> "TrialSpeakers":
        """The speakers of some of the trials, without those that no trial is left of."""
        used, indices = np.unique(np.stack((self.enrolment[rows], self.test[rows])), return_inverse=True)
        enrolment, test = indices.reshape(2, -1).astype(np.int32)
        return TrialSpeakers(tuple(self.names[i] for i in used), enrolment, test)


def find_speakers(trials: Trials, table: Mapping[str, str] | None = None) -> TrialSpeakers:
    """Who speaks in each trial: by a table, or by the names of the files (see the module).

    Args:
        trials: at least one.
        table: file to speaker, for every file of the list; None to go by the names.

    Raises:
        ValueError: a file is not in the table, the table contradicts a label, or the names follow no rule that all
            labels agree with; the message says what to do.
    """
    if not len(trials):
        raise ValueError("There is no trial, and so no speaker.")
    trials = trials.single()
    row = {name: i for i, name in enumerate(trials.files)}
    sides = np.array([[row[name] for name in names] for names in (trials.enrolment, trials.test)])
    is_target = trials.labels == 1
    if table is not None:
        absent = [name for name in trials.files if name not in table]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(trials.files)} files of the trial list are not in the table of speakers: "
                f"{', '.join(absent[:_NAMES_SHOWN])}. Its column {PATH_COLUMN!r} must hold the names as the list does."
            )
        speakers = _index([table[name] for name in trials.files], sides)
        wrong = (speakers.enrolment == speakers.test) != is_target
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"{int(wrong.sum())} of {len(trials)} labels contradict the table of speakers, the first one: "
                f"{trials.labels[first]} {trials.enrolment[first]} {trials.test[first]}. Correct the list or the table."
            )
        return speakers
    for candidate in _candidates(trials.files):
        speakers = _index(candidate, sides)
        if np.array_equal(speakers.enrolment == speakers.test, is_target):
            return speakers
    raise ValueError(
        "Who speaks cannot be read off the names of the files: there is no folder, nor first part of a file name, that "
        f"agrees in every target trial and differs in every impostor trial ({', '.join(trials.files[:_NAMES_SHOWN])}). "
        f"Give a table with the columns {PATH_COLUMN} and {SPEAKER_COLUMN}."
    )


def _candidates(files: Sequence[str]) -> list[list[str]]:
    """What might name the speaker, outermost folder first; each a value for every file."""
    parts = [name.replace("\\", "/").split("/") for name in files]
    folders = [["/".join(p[: depth + 1]) for p in parts] for depth in range(min(map(len, parts)) - 1)]
    # Without its extension, so that a name without any separator is its own first part.
    return [*folders, [re.split(r"[-_.]", p[-1], maxsplit=1)[0] for p in parts]]


def _index(speaker_of_file: Sequence[str], sides: NDArray) -> TrialSpeakers:
    names, of_file = np.unique(np.array(speaker_of_file, dtype=object), return_inverse=True)
    enrolment, test = of_file[sides].astype(np.int32)
    return TrialSpeakers(tuple(str(name) for name in names), enrolment, test)


def read_metadata(path: str | PathLike[str]) -> dict[str, dict[str, str]]:
    """Read a CSV file about audio files: a header with `path`, and any other columns.

    Returns:
        File to its other columns; cells without white space around them, empty ones left in.

    Raises:
        ValueError: no such file, not UTF-8, no column `path`, a row of another length, or two rows that contradict
            each other about one file.
    """
    table: dict[str, dict[str, str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if PATH_COLUMN not in header:
                raise ValueError(
                    f"{path}: expected a column {PATH_COLUMN!r} with the files as the trial lists name them, found "
                    f"{', '.join(header)}."
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
                    raise ValueError(f"{path}, line {reader.line_num}: {name} is described twice, differently.")
    except FileNotFoundError:
        raise ValueError(f"There is no table {path}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8, found other bytes: {error}.") from error
    return table


def speaker_table(metadata: Mapping[str, Mapping[str, str]]) -> dict[str, str] | None:
    """File to speaker, of a table with the column `speaker_id`; None without that column."""
    if not all(SPEAKER_COLUMN in row for row in metadata.values()):
        return None
    return {name: row[SPEAKER_COLUMN] for name, row in metadata.items() if row[SPEAKER_COLUMN]}


def group_trials(
    trials: Trials, metadata: Mapping[str, Mapping[str, str]], columns: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """The trials both sides of which are of one group, for each value of each column.

    Numbers of many values, such as ages (`20-30` counts as 25), are cut into quarters of about as many files. Files
    that the table does not have, or whose cell is empty, are in no group.

    Args:
        trials: `N` of them.
        metadata: from `read_metadata`.
        columns: of it, such as `gender`.

    Returns:
        `"column value"` to a mask, shape `(N,)`; sorted within a column; groups that hold no trial are left out.

    Raises:
        ValueError: no row has such a column.
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
    """Labels of the groups in order, and file to the place of its group; -1 for none."""
    distinct = sorted({value for value in value_of.values() if value})
    numbers = _numbers(distinct)
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


def _numbers(values: Sequence[str]) -> NDArray[np.float64] | None:
    """The values as finite numbers, a range such as `20-30` by its middle; None where one is neither."""
    try:
        parts = [[value] if (found := _RANGE.fullmatch(value)) is None else found.groups() for value in values]
        numbers = np.array([np.mean([float(part) for part in of_value]) for of_value in parts], dtype=np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
