"""Records of the runs of a study: one folder for each run.

```
FOLDER/
  lists.npz                 labels and speakers of the trials, so that a report needs neither audio nor trial lists
  RUN/record.json           settings, errors on the development lists after some epochs, seconds, commit
  RUN/scores.npz            scores of the test trials, for runs of the stage `final`
  RUN/model/                model of the run, if models are kept
  RUN/training/             files of an unfinished run; deleted at the end of the run, with partial.json and log.txt
```
"""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.speakers import TrialSpeakers
from ..evaluation.trials import Trials
from ..folders.writing import write_atomically
from .plan import Run, Study

SCHEMA = 1
RECORD_FILE, SCORES_FILE, LISTS_FILE = "record.json", "scores.npz", "lists.npz"
# Scores are stored as whole multiples of this step, which halves the size of the files. The step is far below the
# differences that matter.
SCORE_STEP = 1e-3
# A run that diverged is recorded with the errors of a system that cannot tell speakers apart.
WORST = {"eer": 0.5, "min_cllr": 1.0}
# Names of the files that a study may contain before LISTS_FILE exists: runs, and the unfinished LISTS_FILE.
_OWN_NAME = re.compile(rf"(?:tune|final)-.+-[0-9a-f]{{8}}|{re.escape(LISTS_FILE)}\.\d+\.tmp")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished run; None if the run has not finished.

    Raises:
        ValueError: the record is damaged.
    """
    path = folder / RECORD_FILE
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != SCHEMA or not isinstance(content["curve"], list):
            raise ValueError("unknown schema")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a record of a study ({error}). Delete it to repeat the run.") from error
    return content


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the record of a run."""
    text = json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n"
    write_atomically(folder / RECORD_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def write_scores(path: Path, scores: Mapping[str, NDArray]) -> None:
    """Write the scores `(N,)` of each trial list, rounded to multiples of `SCORE_STEP`."""
    steps = {name: np.rint(values / SCORE_STEP).astype(np.int16) for name, values in scores.items()}
    write_atomically(path, lambda temporary: _save_arrays(temporary, steps))


def read_scores(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the scores that `write_scores` wrote. If the file does not exist, return {}.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return {}
    found = _load_arrays(path, f"Move the folder {path.parent} away to repeat the run.")
    return {name: steps * SCORE_STEP for name, steps in found.items()}


def _load_arrays(path: Path, cure: str) -> dict[str, NDArray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}). {cure}") from error


def _save_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    # With a file object, NumPy does not append .npz to the temporary name.
    with open(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(arrays))


def write_study_lists(folder: Path, lists: Mapping[str, tuple[Trials, TrialSpeakers]]) -> None:
    """Write the labels and speakers of trial lists."""
    arrays: dict[str, NDArray] = {}
    for name, (trials, speakers) in lists.items():
        arrays[f"{name}/labels"] = trials.labels
        arrays[f"{name}/speakers"] = np.array(speakers.names)
        arrays[f"{name}/enrolment"] = speakers.enrolment.astype(np.uint16)
        arrays[f"{name}/test"] = speakers.test.astype(np.uint16)
    write_atomically(folder / LISTS_FILE, lambda path: _save_arrays(path, arrays))


def read_study_lists(folder: str | os.PathLike[str]) -> dict[str, tuple[NDArray[np.int8], TrialSpeakers]]:
    """Read the labels and speakers that `write_study_lists` wrote, by the name of the list.

    Raises:
        ValueError: the file does not exist or is damaged.
    """
    path = Path(folder) / LISTS_FILE
    if not path.is_file():
        raise ValueError(f"{path} not found. Expected the folder of a study (--output).")
    found = _load_arrays(path, "Restore it from a copy, or choose another folder.")
    return {
        name: (
            found[f"{name}/labels"],
            TrialSpeakers(
                tuple(map(str, found[f"{name}/speakers"])),
                found[f"{name}/enrolment"].astype(np.int32),
                found[f"{name}/test"].astype(np.int32),
            ),
        )
        for name in dict.fromkeys(key.rpartition("/")[0] for key in found)
    }


def check_study_folder(folder: Path) -> None:
    """Check that a folder is missing, is empty, or contains a study.

    Raises:
        ValueError: the path is a file, or the folder contains other files. The message names one of them.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output of a study must be a folder, got the file {folder}. Choose another path.")
    if not folder.is_dir():
        return
    if (folder / LISTS_FILE).is_file():
        try:
            if read_study_lists(folder):
                return
        except (ValueError, KeyError, OSError):
            pass
    other = min((path.name for path in folder.iterdir() if not _OWN_NAME.fullmatch(path.name)), default=None)
    if other is not None:
        raise ValueError(
            f"{folder} contains other files ({other}) and no study of this package. Choose an empty or a new folder."
        )


def list_score(record: Mapping[str, Any], measure: str) -> float:
    """Return the mean of a measure over the development lists at the end of the run."""
    if record.get("diverged"):
        return WORST[measure]
    return float(np.mean([errors[measure] for errors in record["curve"][-1]["lists"].values()]))


def tuning_scores(study: Study, folder: Path) -> dict[str, dict[int, tuple[float, Run]]]:
    """Return the score of each finished setting (its mean over the folds), and one of the runs of the setting.

    Returns:
        For each head, a dictionary that maps the number of a setting to its score and run.
    """
    found: dict[str, dict[int, list[tuple[float, Run]]]] = {name: {} for name in study.heads}
    for run in study.tuning_runs():
        record = read_record(folder / run.name)
        if record is not None:
            found[run.head].setdefault(run.number, []).append((list_score(record, study.measure), run))
    needed = max(1, study.folds)
    return {
        head: {
            number: (float(np.mean([score for score, _ in folds])), folds[0][1])
            for number, folds in settings.items()
            if len(folds) == needed
        }
        for head, settings in found.items()
    }


def best_settings(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the values of the best setting of each head. Heads with unfinished settings are left out.

    A head without a search has a single setting without values, {}.
    """
    winners: dict[str, dict[str, Any]] = {
        name: {} for name, head in study.heads.items() if not head.search and head.like is None
    }
    for head, settings in tuning_scores(study, folder).items():
        if len(settings) == study.tuning.count:
            winners[head] = dict(min(settings.values(), key=lambda pair: pair[0])[1].values)
    return winners


def planned_runs(study: Study, folder: Path) -> list[Run]:
    """Return the runs of the study in their order. Final runs are included once their settings are known."""
    return [*study.tuning_runs(), *study.final_runs(best_settings(study, folder))]
