"""Trial lists that a training run evaluates."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..evaluation.evaluating import list_names
from ..evaluation.trials import Trials, check_trial_files, read_trials
from .arguments import DataArguments

TrialSource = str | os.PathLike[str] | Trials


@dataclass(frozen=True)
class TrialLists:
    """Trial lists of a run, by name.

    Attributes:
        trials: trials of each list.
        titles: text that names each list in messages: its path, or its name if it was not read from a file.
        root: base folder of the files in the lists.
        dev: name of the list with which the best model is selected and the final model is calibrated; None if there is
            no such list.
        tests: names of the lists that are evaluated at the end.
    """

    trials: Mapping[str, Trials]
    titles: Mapping[str, str]
    root: str
    dev: str | None
    tests: tuple[str, ...]


def trial_root(data: DataArguments) -> str:
    """Return the base folder of the paths in the trial lists."""
    for root in (data.trial_root, data.audio_root):
        if root is not None:
            return root
    return "."


def gather_trial_lists(
    dev: TrialSource | None,
    tests: TrialSource | Sequence[TrialSource] | Mapping[str, TrialSource],
    root: str,
) -> TrialLists:
    """Read the development and test trial lists and check that their audio files exist.

    Args:
        dev: development list, as a path or `Trials`; None if there is no such list.
        tests: one test list, several lists, or a dictionary that maps names to lists. A list that is read from a file
            has the name of the file without the extension. Other lists are called `dev`, `test`, `test2`, ...
        root: base folder of the files in the lists.

    Raises:
        ValueError: a list is invalid, lacks target or impostor trials, or names a missing file, or two lists have the
            same name.
    """
    given: list[tuple[str | None, TrialSource]] = [] if dev is None else [(None, dev)]
    if isinstance(tests, Mapping):
        given += tests.items()
    else:
        given += [(None, source) for source in ([tests] if isinstance(tests, str | os.PathLike | Trials) else tests)]
    short = list_names([source for name, source in given if name is None and not isinstance(source, Trials)])
    unnamed = ("test" if number == 1 else f"test{number}" for number in itertools.count(1))
    names: list[str] = []
    sources: dict[str, str | Trials] = {}
    for name, source in given:
        source = source if isinstance(source, Trials) else os.fspath(source)
        if name is None:
            name = short[source] if isinstance(source, str) else "dev" if source is dev else next(unnamed)
        if sources.setdefault(name, source) != source:
            raise ValueError(
                f"Two trial lists have the name {name!r}. Pass test_trials as a dictionary with other names."
            )
        names.append(name)
    trials = {name: source if isinstance(source, Trials) else read_trials(source) for name, source in sources.items()}
    titles = {name: name if isinstance(source, Trials) else source for name, source in sources.items()}
    for name in trials:
        _check_trials(trials[name], titles[name], root)
    first = 0 if dev is None else 1
    return TrialLists(trials, titles, root, None if dev is None else names[0], tuple(dict.fromkeys(names[first:])))


def _check_trials(trials: Trials, title: str, root: str) -> None:
    targets = int(trials.labels.sum())
    if not 0 < targets < len(trials):
        raise ValueError(
            f"{title} has {targets} target and {len(trials) - targets} impostor trials, but error rates need both. "
            "Add lines that begin with 1 (target) or 0 (impostor)."
        )
    check_trial_files(trials, root)
