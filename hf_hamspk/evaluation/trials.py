"""Trial lists in the format of VoxCeleb: one trial per line, `label enrolment test`.

The label is 1 for a target trial (same speaker) and 0 for an impostor trial; the two others are names of audio files,
relative to the folder of the corpus, without white space. Format: the verification lists of
https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FORMAT = "'label enrolment test', the label being 1 (target) or 0 (impostor)"
# Enough to recognise a wrong root folder or extension, few enough to be read.
_NAMES_SHOWN = 5


class MissingTrialFilesError(FileNotFoundError, ValueError):
    """Files that a trial list names do not exist."""


# An array has no single truth value, so a generated `__eq__` would raise: compared by identity.
@dataclass(frozen=True, eq=False)
class Trials:
    """`N` verification trials; `N` may be 0 after `without`.

    Attributes:
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial; kept as a read-only int8 copy.
        enrolment: `N` names of enrolment files.
        test: `N` names of test files.
        models: enrolment name to the files that it is enrolled from, for the names that are no files themselves.

    Raises:
        ValueError: if the three lengths differ, a label is neither 0 nor 1, or a model has no files or is a test file.
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
                raise ValueError(f"The model {name!r} must have at least one file, and its name must be no test file.")
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
        """The distinct names of enrolment and test files, sorted; of models their files."""
        of_models = {name for files in self.models.values() for name in files}
        return tuple(sorted((set(self.enrolment) - self.models.keys()) | of_models | self._test_names))

    @cached_property
    def _test_names(self) -> frozenset[str]:
        return frozenset(self.test)

    def single(self) -> "Trials":
        """The same trials with the first file of each model in its place, for what a file's name or row tells."""
        if not self.models:
            return self
        first = {name: files[0] for name, files in self.models.items()}
        return Trials(self.labels, tuple(first.get(name, name) for name in self.enrolment), self.test)

    def without(self, bad_files: Collection[str]) -> "Trials":
        """Drop every trial that names one of the given files; order is kept.

        A model is enrolled from its other files; its trials are dropped where none is left.

        The number of dropped trials is `len(trials) - len(trials.without(bad_files))`: report it beside the result.

        Args:
            bad_files: names as they stand in the list. Names that no trial uses are allowed.

        Returns:
            The remaining trials, perhaps none.

        Raises:
            ValueError: if `bad_files` is one string instead of a collection of them.
        """
        if isinstance(bad_files, str):
            raise ValueError(f"bad_files must be a collection of names, got one string. Pass [{bad_files!r}] instead.")
        bad = frozenset(bad_files)
        models = {name: tuple(f for f in files if f not in bad) for name, files in self.models.items()}
        bad |= {name for name, files in models.items() if not files}
        pairs = zip(self.enrolment, self.test, strict=True)
        kept = [row for row, (enrolment, test) in enumerate(pairs) if enrolment not in bad and test not in bad]
        return Trials(
            labels=self.labels[kept],
            enrolment=tuple(self.enrolment[row] for row in kept),
            test=tuple(self.test[row] for row in kept),
            models=models,
        )


def read_trials(path: str | PathLike[str]) -> Trials:
    """Read a trial list.

    Fields are separated by white space, blank lines are ignored, and the order of the trials is kept.

    Args:
        path: a UTF-8 text file with lines `label enrolment test`.

    Returns:
        The trials, at least one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line has not three fields, a label is neither 0 nor 1, the file has no trial or is not UTF-8
            text. The message gives the file, the line number, what was expected and what was found.
    """
    labels = bytearray()
    enrolment: list[str] = []
    test: list[str] = []
    # A file is named in many trials: one string object for each name keeps a long list small.
    names: dict[str, str] = {}
    # utf-8-sig also reads the byte order mark that some editors write.
    with open(path, encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != 3 or fields[0] not in ("0", "1"):
                    raise ValueError(_line_message(path, number, line, fields))
                labels.append(fields[0] == "1")
                enrolment.append(names.setdefault(fields[1], fields[1]))
                test.append(names.setdefault(fields[2], fields[2]))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: expected UTF-8 text with lines {_FORMAT}, found other bytes: {error}."
            ) from error
    if not enrolment:
        raise ValueError(f"{path}: expected at least one line {_FORMAT}, found none: the file is empty.")
    return Trials(labels=np.frombuffer(labels, dtype=np.int8), enrolment=tuple(enrolment), test=tuple(test))


def check_trial_files(trials: Trials, audio_root: str | PathLike[str]) -> None:
    """Make sure that every file named in a trial list exists, before hours are spent on the first of them.

    Args:
        trials: the trial list.
        audio_root: folder to which the names are relative.

    Raises:
        MissingTrialFilesError: both a FileNotFoundError and a ValueError, if files are missing. The message gives
            their number and the first five names in sorted order.
    """
    root = Path(audio_root)
    missing = [name for name in trials.files if not (root / name).is_file()]
    if not missing:
        return
    shown = ", ".join(missing[:_NAMES_SHOWN])
    more = ", ..." if len(missing) > _NAMES_SHOWN else ""
    raise MissingTrialFilesError(
        f"{len(missing)} of {len(trials.files)} files of the trial list are missing under {root}: {shown}{more}. "
        "Names in the list are relative to the audio root: check the root and the file extension, or drop these "
        "trials with Trials.without and report their number."
    )


def _line_message(path: str | PathLike[str], number: int, line: str, fields: list[str]) -> str:
    """Say what is wrong with a line that is not a trial."""
    if len(fields) != 3:
        what = f"found {len(fields)} field{'s' if len(fields) > 1 else ''}"
    else:
        what = f"found the label {fields[0]!r}"
    return f"{path}, line {number}: expected {_FORMAT}, {what}: {line.strip()!r}."
