"""Trial lists as VoxCeleb, VoxSRC, CN-Celeb and SITW publish them, and the sizes that official lists have.

The format is recognised by the first line:

- `label enrolment test`, the label being 1 or 0: VoxCeleb1-O, -E and -H, and the validation lists of VoxSRC;
- `model test label`, the label being 1 or 0 (CN-Celeb), `tgt` or `imp` (SITW), `target` or `nontarget`. A table
  `model file [file ...]` says what each model is enrolled from: `enroll.map` of CN-Celeb names several utterances each,
  `enroll.lst` of CN-Celeb and `enroll-core.lst` of SITW one.

Lists without labels, as those of a challenge, cannot be evaluated here and are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from .trials import Trials, read_trials

LABELS = {"1": 1, "0": 0, "tgt": 1, "imp": 0, "target": 1, "nontarget": 0}
_FORMATS = "'label enrolment test' (1 or 0 first) or 'model test label' (1, 0, tgt, imp, target or nontarget last)"
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class OfficialList:
    """What is known of a published list.

    Attributes:
        title: as a report names it.
        trials: their number.
        targets: of them, where known.
        models: distinct enrolments, where known.
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
"""The sizes of the published lists. Those of SITW and VoxSRC differ by year and condition and are not checked."""


def read_protocol(path: str | PathLike[str], enrolment: str | PathLike[str] | None = None) -> Trials:
    """Read a trial list of any of the formats above.

    Args:
        path: the list.
        enrolment: the table of its models; None where the first field is a file itself. A list `label enrolment test`
            may name models, too.

    Returns:
        The trials. A model of one file goes by the name of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the list has another format, a line differs from the first, or a model is not in the table. The
            message gives the line.
    """
    files = {} if enrolment is None else read_enrolment(enrolment)
    first = _first_fields(path)
    if len(first) == 3 and first[0] in ("0", "1"):
        trials = read_trials(path)
    elif len(first) == 3 and first[2] in LABELS:
        trials = _read_label_last(path)
    else:
        raise ValueError(f"{path}: expected lines {_FORMATS}, the first line is {' '.join(first)!r}.")
    if enrolment is None:
        return trials
    absent = sorted(set(trials.enrolment) - files.keys())
    if absent:
        shown = ", ".join(absent[:_NAMES_SHOWN])
        raise ValueError(f"{len(absent)} models of {path} are not in {enrolment}: {shown}. Is it the right table?")
    single = {name: of_model[0] for name, of_model in files.items() if len(of_model) == 1}
    several = {name: of_model for name, of_model in files.items() if len(of_model) > 1}
    names = tuple(single.get(name, name) for name in trials.enrolment)
    return Trials(trials.labels, names, trials.test, several)


def read_enrolment(path: str | PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Read a table of models, a line `model file [file ...]` for each; the lines of a model add up.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has no file, or a segment of one (`enroll-assist.lst` of SITW), or the table is empty.
    """
    models: dict[str, dict[str, None]] = {}
    for number, fields in _lines(path):
        if len(fields) < 2:
            found = " ".join(fields)
            raise ValueError(f"{path}, line {number}: expected 'model file [file ...]', found {found!r}.")
        if len(fields) == 4 and _is_number(fields[2]) and _is_number(fields[3]):
            raise ValueError(
                f"{path}, line {number}: it enrols from a segment, {fields[2]} to {fields[3]} s of {fields[1]}. Cut "
                "the segments out into files of their own, and name those."
            )
        models.setdefault(fields[0], {}).update(dict.fromkeys(fields[1:]))
    if not models:
        raise ValueError(f"{path}: expected lines 'model file [file ...]', the file is empty.")
    return {name: tuple(files) for name, files in models.items()}


def official_title(trials: Trials) -> str | None:
    """Title of the official list that has the size of this one; None for another size."""
    found = [official.title for official in OFFICIAL_LISTS.values() if official.trials == len(trials)]
    return found[0] if found else None


def check_official(trials: Trials, name: str, path: str | PathLike[str] = "the list") -> None:
    """Refuse a list that does not have the size of an official one.

    Args:
        trials: the list.
        name: of `OFFICIAL_LISTS`.
        path: what the error calls the list.

    Raises:
        ValueError: unknown name, or other numbers of trials, targets or models; the message gives both.
    """
    if name not in OFFICIAL_LISTS:
        raise ValueError(f"There is no official list {name!r}; known are {', '.join(OFFICIAL_LISTS)}.")
    official = OFFICIAL_LISTS[name]
    found = {"trials": len(trials), "targets": int(trials.labels.sum()), "models": len(set(trials.enrolment))}
    wrong = [
        f"{found[key]:,} {key} instead of {wanted:,}"
        for key in found
        if (wanted := getattr(official, key)) is not None and wanted != found[key]
    ]
    if wrong:
        other = official_title(trials)
        hint = "Is it complete?" if other is None else f"It has the size of {other}."
        raise ValueError(f"{path} is not {official.title}: {', '.join(wrong)}. {hint}")


def _first_fields(path: str | PathLike[str]) -> list[str]:
    for _, fields in _lines(path):
        return fields
    raise ValueError(f"{path}: expected lines {_FORMATS}, the file is empty.")


def _read_label_last(path: str | PathLike[str]) -> Trials:
    labels = bytearray()
    enrolment: list[str] = []
    test: list[str] = []
    # A name occurs in many trials: one string object for each keeps a list of millions small.
    names: dict[str, str] = {}
    for number, fields in _lines(path):
        if len(fields) != 3 or fields[2] not in LABELS:
            raise ValueError(
                f"{path}, line {number}: expected 'model test label' with the label one of {', '.join(LABELS)}, found "
                f"{' '.join(fields)!r}."
            )
        labels.append(LABELS[fields[2]])
        enrolment.append(names.setdefault(fields[0], fields[0]))
        test.append(names.setdefault(fields[1], fields[1]))
    return Trials(np.frombuffer(labels, dtype=np.int8), tuple(enrolment), tuple(test))


def _lines(path: str | PathLike[str]):
    """Number and fields of each line that is not blank."""
    with open(Path(path), encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if fields := line.split():
                    yield number, fields
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected UTF-8 text, found other bytes: {error}.") from error


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
