"""Trial lists that a training run evaluates."""

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
        titles: path of each list, or its name if it was not read from a file; used in messages.
        root: base folder of the files in the lists.
        dev: name of the list that selects the best model and calibrates the final one; None without such a list.
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
        dev: development list, a path or `Trials`; None without such a list.
        tests: test lists: one list, several, or a dictionary from name to list. The name of a list in a file is the
            name of the file without the extension; others are called `dev`, `test`, `test2`, ...
        root: base folder of the files in the lists.

    Raises:
        ValueError: a list is invalid, lacks target or impostor trials, or names a missing file.
    """
    if isinstance(tests, str | os.PathLike | Trials):
        tests = [tests]
    named: list[tuple[str | None, TrialSource]] = [] if dev is None else [(None if _is_path(dev) else "dev", dev)]
    if isinstance(tests, Mapping):
        named += list(tests.items())
    else:
        for source in tests:
            unnamed = sum(not _is_path(one) for _, one in named[dev is not None :])
            name = f"test{unnamed + 1 if unnamed else ''}"
            named.append((None if _is_path(source) else "dev" if source is dev else name, source))
    short = list_names([os.fspath(source) for name, source in named if name is None and not isinstance(source, Trials)])
    names, trials, titles = [], {}, {}
    for name, source in named:
        title = name if isinstance(source, Trials) else os.fspath(source)
        name = short[os.fspath(source)] if name is None and not isinstance(source, Trials) else str(name)
        names.append(name)
        titles[name] = str(title)
        trials[name] = source if isinstance(source, Trials) else read_trials(source)
        _check_trials(trials[name], titles[name], root)
    first = 0 if dev is None else 1
    return TrialLists(trials, titles, root, None if dev is None else names[0], tuple(dict.fromkeys(names[first:])))


def _is_path(source: TrialSource) -> bool:
    return not isinstance(source, Trials)


def _check_trials(trials: Trials, title: str, root: str) -> None:
    targets = int(trials.labels.sum())
    if not 0 < targets < len(trials):
        raise ValueError(
            f"{title} has {targets} target and {len(trials) - targets} impostor trials; error rates need both. Add "
            "lines that begin with 1 (target) or 0 (impostor)."
        )
    check_trial_files(trials, root)
