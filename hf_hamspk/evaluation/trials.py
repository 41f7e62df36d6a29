"""Read trial lists in the formats of VoxCeleb, VoxSRC, CN-Celeb and SITW, and check the sizes of official lists.

A trial is a pair of recordings with a label: target (same speaker) or impostor (different speakers). `read_trials`
recognises the format of a list by its first line:

- `label enrolment test`, where the label is 1 or 0: VoxCeleb1-O, -E and -H
  (https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html) and the validation lists of VoxSRC.
- `model test label`, where the label is 1 or 0 (CN-Celeb), `tgt` or `imp` (SITW), `target` or `nontarget` (Kaldi). An
  enrolment table with lines `model file [file ...]` names the enrolment files of each model. `enroll.map` of CN-Celeb
  names several files for each model; `enroll.lst` of CN-Celeb and `enroll-core.lst` of SITW name one. Without a table,
  the first field of each line of the trial list is a file name.

A file name can end in a segment of the recording, such as `call.wav#t=1.5,4` (see `files.tables`).

Lists without labels, such as the test lists of challenges, cannot be read.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files.tables import split_segment

LABELS = {"1": 1, "0": 0, "tgt": 1, "imp": 0, "target": 1, "nontarget": 0}
# Labels of each format. The key is the index of the label among the fields of a line.
_LABELS_AT = {0: {"1": 1, "0": 0}, 2: LABELS}
_FORMAT_AT = {
    0: "'label enrolment test' with the label 1 (target) or 0 (impostor)",
    2: f"'model test label' with the label one of {', '.join(LABELS)}",
}
_FORMATS = "'label enrolment test' (1 or 0 first) or 'model test label' (1, 0, tgt, imp, target or nontarget last)"


class MissingTrialFilesError(FileNotFoundError, ValueError):
    """Error raised if a trial list, an enrolment table or an audio file is missing."""


# A generated `__eq__` would raise, because an array has no single truth value. Instances are compared by identity.
@dataclass(frozen=True, eq=False)
class Trials:
    """List of `N` verification trials. After a call of `without`, `N` may be 0.

    Attributes:
        labels: int8, shape `(N,)`, 1 for a target trial, 0 for an impostor trial. The array is a read-only copy.
        enrolment: `N` names of enrolment files or enrolment models.
        test: `N` names of test files.
        models: maps each enrolment model to its files; names in `enrolment` that are not in `models` are files.

    Raises:
        ValueError: the lengths differ, a label is neither 0 nor 1, a model has no files, or a model has the name of a
            test file.

    Example:
        ```python
        from hf_hamspk.evaluation import Trials

        trials = Trials([1, 0], enrolment=["ann/1.wav", "ann/1.wav"], test=["ann/2.wav", "bob/1.wav"])
        print(len(trials), trials.files)  # 2 ('ann/1.wav', 'ann/2.wav', 'bob/1.wav')
        ```
    """

    labels: NDArray[np.int8]
    enrolment: tuple[str, ...]
    test: tuple[str, ...]
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = np.asarray(self.labels)
        if not given.shape == (len(self.enrolment),) == (len(self.test),):
            raise ValueError(
                "labels, enrolment and test must have one entry per trial, got labels of shape "
                f"{given.shape}, {len(self.enrolment)} enrolment and {len(self.test)} test names."
            )
        if not np.isin(given, (0, 1)).all():
            raise ValueError("labels must be 0 (impostor) or 1 (target), got other values.")
        used = {name: tuple(self.models[name]) for name in dict.fromkeys(self.enrolment) if name in self.models}
        for name in used:
            if not used[name] or name in self._test_names:
                raise ValueError(
                    f"The model {name!r} must have at least one file, and its name must not be the name of a test file."
                )
        object.__setattr__(self, "models", used)
        labels = given.astype(np.int8)
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "enrolment", tuple(self.enrolment))
        object.__setattr__(self, "test", tuple(self.test))

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.enrolment)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Sorted names of all enrolment files and test files, including the files of enrolment models."""
        of_models = {name for files in self.models.values() for name in files}
        return tuple(sorted((set(self.enrolment) - self.models.keys()) | of_models | self._test_names))

    @cached_property
    def _test_names(self) -> frozenset[str]:
        return frozenset(self.test)

    def single(self) -> "Trials":
        """Return the trials with each enrolment model replaced by its first file, for looking up metadata of files."""
        if not self.models:
            return self
        first = {name: files[0] for name, files in self.models.items()}
        return Trials(self.labels, tuple(first.get(name, name) for name in self.enrolment), self.test)

    def without(self, bad_files: Collection[str]) -> "Trials":
        """Return the trials that use none of the given files, in the same order.

        An enrolment model keeps its other files. If none of its files remain, its trials are dropped. The number of
        dropped trials is `len(trials) - len(trials.without(bad_files))`; report it with the results.

        Args:
            bad_files: names of the files to leave out; names that occur in no trial are ignored.

        Returns:
            The remaining trials, possibly none.

        Raises:
            ValueError: `bad_files` is one string instead of a collection of strings.
        """
        if isinstance(bad_files, str):
            raise ValueError(f"bad_files must be a collection of names, got one string. Pass [{bad_files!r}] instead.")
        bad = frozenset(bad_files)
        models = {name: tuple(f for f in files if f not in bad) for name, files in self.models.items()}
        bad |= {name for name, files in models.items() if not files}
        pairs = zip(self.enrolment, self.test, strict=True)
        kept = [row for row, (enrolment, test) in enumerate(pairs) if enrolment not in bad and test not in bad]
        return replace(self.select(kept), models=models)

    def select(self, rows: Sequence[int]) -> "Trials":
        """Return the trials with the given indices, in their order."""
        kept = list(rows)
        enrolment, test = (tuple(side[row] for row in kept) for side in (self.enrolment, self.test))
        return Trials(self.labels[kept], enrolment, test, self.models)


def read_trials(path: str | PathLike[str], enrolment: str | PathLike[str] | None = None) -> Trials:
    """Read a trial list in one of the formats described in the docstring of the module.

    Fields are separated by white space, blank lines are ignored, and the order of the trials is kept. All commands read
    trial lists with this function.

    Args:
        path: path of the list, a UTF-8 text file.
        enrolment: path of the table with the enrolment files of each model; None if the list names enrolment files.

    Returns:
        The trials, at least one. A model with one file is replaced by this file.

    Raises:
        MissingTrialFilesError: the list or the table is missing. It is a FileNotFoundError and a ValueError.
        ValueError: the list is empty, is not UTF-8 or has an unknown format, a line differs in format from the first
            line, or a model is not in the table. If a line is invalid, the message contains its number.
    """
    labels, place = bytearray(), -1
    sides: tuple[list[str], list[str]] = ([], [])
    # A name occurs in many trials. To save memory in lists of millions of trials, equal names share one string object.
    names: dict[str, str] = {}
    for number, fields in _lines(path, "trial list"):
        if place < 0:
            place = _find_label(path, number, fields)
        if len(fields) != 3 or fields[place] not in _LABELS_AT[place]:
            raise ValueError(f"{path}, line {number}: expected {_FORMAT_AT[place]}, {_found(fields, place)}.")
        labels.append(LABELS[fields.pop(place)])
        for side, name in zip(sides, fields, strict=True):
            side.append(names.setdefault(name, name))
    if not labels:
        raise ValueError(f"{path}: expected at least one line {_FORMATS}, but the file is empty.")
    trials = Trials(np.frombuffer(labels, dtype=np.int8), tuple(sides[0]), tuple(sides[1]))
    return trials if enrolment is None else _with_models(trials, path, enrolment)


def read_enrolment(path: str | PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read an enrolment table with lines `model file [file ...]`. Several lines of one model are joined.

    Returns:
        A dictionary that maps each model to its files.

    Raises:
        MissingTrialFilesError: the table is missing. It is a FileNotFoundError and a ValueError.
        ValueError: the table is empty or is not UTF-8, a line has no file, or a line names a segment of a file, as in
            `enroll-assist.lst` of SITW.
    """
    models: dict[str, dict[str, None]] = {}
    for number, fields in _lines(path, "enrolment table"):
        if len(fields) < 2:
            found = " ".join(fields)
            raise ValueError(f"{path}, line {number}: expected 'model file [file ...]', found {found!r}.")
        if len(fields) == 4 and _is_decimal(fields[2]) and _is_decimal(fields[3]):
            raise ValueError(
                f"{path}, line {number}: expected files, found a segment, {fields[2]} to {fields[3]} s of "
                f"{fields[1]}. Save the segments as separate files and name these files."
            )
        models.setdefault(fields[0], {}).update(dict.fromkeys(fields[1:]))
    if not models:
        raise ValueError(f"{path}: expected lines 'model file [file ...]', but the file is empty.")
    return {name: tuple(files) for name, files in models.items()}


def join_trials(lists: Sequence[Trials]) -> Trials:
    """Join the trials of several lists. A pair that occurs more than once is kept only once.

    Raises:
        ValueError: a pair has two different labels, or an enrolment model has different files in two lists.
    """
    labels: dict[tuple[str, str], int] = {}
    models: dict[str, tuple[str, ...]] = {}
    for trials in lists:
        for name, files in trials.models.items():
            if models.setdefault(name, files) != files:
                raise ValueError(
                    f"The model {name} has different enrolment files in two lists. Rename it in one of them."
                )
        for label, *pair in zip(trials.labels.tolist(), trials.enrolment, trials.test, strict=True):
            if labels.setdefault((pair[0], pair[1]), label) != label:
                raise ValueError(
                    f"The pair {pair[0]} {pair[1]} is labelled 0 in one place and 1 in another. Correct one label."
                )
    return Trials(np.array(list(labels.values())), tuple(a for a, _ in labels), tuple(b for _, b in labels), models)


def check_trial_files(trials: Trials, audio_root: str | PathLike[str]) -> None:
    """Check that every file named in a trial list exists.

    Files that exist but cannot be read, such as damaged files and broken links, are found when they are embedded. Their
    trials are then left out and counted.

    Args:
        trials: trial list.
        audio_root: folder to which the file names are relative.

    Raises:
        MissingTrialFilesError: files are missing. It is a FileNotFoundError and a ValueError. Its message contains the
            number of missing files and the first five names in sorted order.
    """
    root = Path(audio_root)
    paths = {name: root / split_segment(name)[0] for name in trials.files}
    missing = [name for name, path in paths.items() if not os.path.lexists(path) or path.is_dir()]
    if missing:
        raise MissingTrialFilesError(
            f"{len(missing)} of {len(trials.files)} files of the trial list are missing under {root}: "
            f"{first_names(missing)}. Names in the list are relative to the audio root. Check the root (--audio-root) "
            "and the file extension, or delete the lines of these files from the list."
        )


def first_names(names: Sequence[str], most: int = 5) -> str:
    """Format the first of several names for a message, such as `a, b, c, ...`."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


@dataclass(frozen=True)
class OfficialList:
    """Size of a published trial list.

    Attributes:
        title: name of the list in reports.
        trials: number of trials.
        targets: number of target trials; None if not checked.
        models: number of distinct enrolment models or enrolment files; None if not checked.
    """

    title: str
    trials: int
    targets: int | None = None
    models: int | None = None


OFFICIAL_LISTS: Mapping[str, OfficialList] = {
    "vox1-o-cleaned": OfficialList("VoxCeleb1-O (cleaned)", 37_611),
    "vox1-o": OfficialList("VoxCeleb1-O (original)", 37_720),
    "vox1-e-cleaned": OfficialList("VoxCeleb1-E (cleaned)", 579_818),
    "vox1-e": OfficialList("VoxCeleb1-E (original)", 581_480),
    "vox1-h-cleaned": OfficialList("VoxCeleb1-H (cleaned)", 550_894),
    "vox1-h": OfficialList("VoxCeleb1-H (original)", 552_536),
    "cnceleb-eval": OfficialList("CN-Celeb evaluation", 3_484_292, 17_755, 196),
}
"""Sizes of published lists. Lists of SITW and VoxSRC are not included, because they differ by year and condition."""


def official_title(trials: Trials) -> str | None:
    """Return the title of the official list with the same number of trials; None if no list has this number."""
    found = [official.title for official in OFFICIAL_LISTS.values() if official.trials == len(trials)]
    return found[0] if found else None


def check_official(trials: Trials, name: str, path: str | PathLike[str] = "the list") -> None:
    """Check that a trial list has the size of an official list.

    Args:
        trials: trial list.
        name: key of `OFFICIAL_LISTS`.
        path: name of the trial list in error messages.

    Raises:
        ValueError: the key is unknown, or the number of trials, targets or models differs. The message contains the
            found and the expected numbers.
    """
    if name not in OFFICIAL_LISTS:
        raise ValueError(f"Unknown official list: {name!r}. Choose one of {', '.join(OFFICIAL_LISTS)}.")
    official = OFFICIAL_LISTS[name]
    found = {"trials": len(trials), "targets": int(trials.labels.sum()), "models": len(set(trials.enrolment))}
    wrong = [
        f"{found[key]:,} {key} instead of {wanted:,}"
        for key in found
        if (wanted := getattr(official, key)) is not None and wanted != found[key]
    ]
    if wrong:
        other = official_title(trials)
        hint = "Check that the file is complete." if other is None else f"It has the size of {other}."
        raise ValueError(f"{path} is not {official.title}: {', '.join(wrong)}. {hint}")


def _lines(path: str | PathLike[str], kind: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that is not blank. Error messages call the file `kind`."""
    if not Path(path).is_file():
        where = "" if Path(path).is_absolute() else f" (relative to the folder {Path.cwd()})"
        raise MissingTrialFilesError(f"There is no {kind} {path}{where}.")
    # utf-8-sig skips the byte order mark that some editors write.
    with open(path, encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if fields := line.split():
                    yield number, fields
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected UTF-8 text, found other bytes: {error}.") from error


def _find_label(path: str | PathLike[str], number: int, fields: list[str]) -> int:
    """Return the index of the label among the fields of a line. Raise an error if the format is unknown."""
    if len(fields) == 3:
        for place, labels in _LABELS_AT.items():
            if fields[place] in labels:
                return place
    raise ValueError(f"{path}, line {number}: expected lines {_FORMATS}, {_found(fields)}.")


def _found(fields: list[str], place: int | None = None) -> str:
    """Describe a line that is not a trial, for an error message; `place` is the expected index of the label."""
    line = " ".join(fields)
    if len(fields) != 3:
        return f"found {len(fields)} field{'s' if len(fields) > 1 else ''}: {line!r}"
    return f"found {line!r}" if place is None else f"found the label {fields[place]!r}: {line!r}"


def _with_models(trials: Trials, path: str | PathLike[str], enrolment: str | PathLike[str]) -> Trials:
    """Add the models of an enrolment table to the trials of the list `path`."""
    files = read_enrolment(enrolment)
    absent = sorted(set(trials.enrolment) - files.keys())
    if absent:
        raise ValueError(
            f"{len(absent)} models of {path} are not in {enrolment}: {first_names(absent)}. Pass the enrolment table "
            "of this trial list."
        )
    single = {name: of_model[0] for name, of_model in files.items() if len(of_model) == 1}
    several = {name: of_model for name, of_model in files.items() if len(of_model) > 1}
    return Trials(trials.labels, tuple(single.get(name, name) for name in trials.enrolment), trials.test, several)


def _is_decimal(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
