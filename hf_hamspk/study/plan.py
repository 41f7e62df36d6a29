"""Read the file of a study, and list its runs in their order.

A study compares training heads. It has two stages. In the stage `tune`, every head gets the same number of
settings, which are compared on the development lists or on held-out training speakers. In the stage `final`, the best
setting of every head is trained with several seeds. Seed `n` gives every head the same initial encoder, the same order
of the utterances, and the same crops and augmentation.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.yaml_files import load_yaml

TUNE, FINAL = "tune", "final"
MEASURES = ("min_cllr", "eer")
CONTROLS = ("angle", "rim", "exponential", "horosphere", "radial_margin")
# Keys of a recipe that depend on the machine and do not change the result of a run.
MACHINE_KEYS = (
    *("audio_root", "trial_root", "output_dir", "num_workers", "cache_megabytes", "cpu", "log_steps", "report_to"),
    *("check_audio", "keep_checkpoints", "save_steps", "frame_folder"),
)
# Keys of a recipe whose value is a path. Only the last part of the path belongs to the identity of a run.
PATH_KEYS = ("train_data", "initial_model")
# Keys of a recipe that a study sets itself.
OWN_KEYS = ("seed", "epochs", "output_dir", "resume", "dev_trials", "test_trials", "evaluate_every", "report_to")
# Values that a search can draw besides the keys of a recipe; see `Head`.
DERIVED = ("reach", "relative_margin")
# Square roots of primes are irrational, and no rational multiples of each other.
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
# The seeds of the tuning runs begin here, so that the final runs have other seeds.
FIRST_TUNING_SEED = 1000


@dataclass(frozen=True)
class SearchRange:
    """Range from which a value is drawn.

    Attributes:
        low, high: limits, with `low <= high`.
        logarithmic: whether the logarithm of the value is uniformly distributed. If False, the value itself is.
    """

    low: float
    high: float
    logarithmic: bool = False

    def at(self, share: float) -> float:
        """Return the value at a share of the range, from 0 (`low`) to 1 (`high`)."""
        if self.logarithmic:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True)
class Head:
    """One of the compared heads.

    Attributes:
        name: name in the study.
        recipe: keys of a training recipe that differ from the common recipe.
        search: ranges of the searched values, by name. A name is a key of a recipe, or one of two derived values.
            `reach` is the logit at an angle of 0 degrees minus the logit at 90 degrees; it determines the scale.
            `relative_margin` is the margin divided by the corresponding difference of the similarities. A head with
            neither `search` nor `like` is not tuned.
        like: name of the head whose best setting this head uses; None if the head has its own search.
        control: name of a control head (see `controls`), one of `CONTROLS`; None for the heads of the package.
        seeds: number of seeds in the stage `final`.
    """

    name: str
    recipe: dict[str, Any]
    search: dict[str, SearchRange]
    like: str | None
    control: str | None
    seeds: int


@dataclass(frozen=True)
class Stage:
    """Length of a stage, and the epochs after which its runs are evaluated.

    Attributes:
        count: number of settings of each head in the stage `tune`; number of seeds in the stage `final`.
        epochs: number of epochs of a run.
        evaluate: epochs after which the development lists are evaluated, ascending; the last one is `epochs`.
        budgets: epochs after which the test lists are scored as well. They are all in `evaluate`.
    """

    count: int
    epochs: int
    evaluate: tuple[int, ...]
    budgets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run of a study, which trains one model.

    Attributes:
        stage: `"tune"` or `"final"`.
        head: name of the head.
        number: number of the setting or of the seed, from 1.
        fold: number of the held-out fold of speakers; None if the development lists are used.
        recipe: keys of the training recipe without the derived values.
        values: drawn values, including the derived ones.
        control: see `Head`.
        evaluate, budgets: see `Stage`.
    """

    stage: str
    head: str
    number: int
    fold: int | None
    recipe: dict[str, Any]
    values: dict[str, Any]
    control: str | None
    evaluate: tuple[int, ...]
    budgets: tuple[int, ...]

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.evaluate[-1]

    @property
    def name(self) -> str:
        """Name of the folder of the run. Runs with different settings have different names."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.stage}-{self.head}-{self.number:02d}{fold}-{self.digest}"

    @property
    def digest(self) -> str:
        """Hash of everything that determines the result of the run, in 8 hexadecimal digits."""
        settings = {key: value for key, value in self.recipe.items() if key not in MACHINE_KEYS}
        settings |= {key: Path(str(settings[key])).name for key in PATH_KEYS if key in settings}
        if "frame_folder" in self.recipe:
            settings["frame_folder"] = True
        parts = [settings, self.values, self.control, self.fold, self.evaluate, self.budgets]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Study:
    """Content of the file of a study.

    Attributes:
        name: name of the study, which is the name of its file without the suffix.
        recipe: keys of a training recipe, common to all runs.
        dev, tests: paths of the development lists and of the test lists.
        folds: number of folds into which the training speakers are divided for tuning; 0 to tune on the lists `dev`.
        heads: the compared heads, by name, in the order of the file.
        tuning, final: settings of the two stages.
        comparisons: pairs of heads `(first, second)` of each family of comparisons, by the name of the family. The
            first head of a pair is tested against the second. p-values are corrected within a family.
        measure: primary measure, `"min_cllr"` or `"eer"`, which selects the settings.
        replicates, confidence: number of bootstrap replicates, and confidence level of the intervals.
        source: content of the file.
    """

    name: str
    recipe: dict[str, Any]
    dev: tuple[str, ...]
    tests: tuple[str, ...]
    folds: int
    heads: dict[str, Head]
    tuning: Stage
    final: Stage
    comparisons: dict[str, tuple[tuple[str, str], ...]]
    measure: str
    replicates: int
    confidence: float
    source: dict[str, Any] = field(default_factory=dict)

    def tuning_runs(self) -> list[Run]:
        """Return the runs of the stage `tune`: the first setting of all heads, then the second, and so on."""
        runs = []
        keys = list(dict.fromkeys(key for head in self.heads.values() for key in head.search))
        for number in range(1, self.tuning.count + 1):
            for head in self.heads.values():
                if not head.search:
                    continue
                shares = {key: setting_share(place, number) for place, key in enumerate(keys)}
                values = {key: _rounded(at.at(shares[key])) for key, at in head.search.items()}
                runs += [
                    self._run(TUNE, head, number, values, FIRST_TUNING_SEED + number, fold)
                    for fold in ([None] if self.folds == 0 else range(1, self.folds + 1))
                ]
        return runs

    def final_runs(self, winners: Mapping[str, Mapping[str, Any]]) -> list[Run]:
        """Return the runs of the stage `final` for the heads whose best setting is known, in the order of the seeds.

        If some heads have fewer seeds than others, the runs with the seeds that all heads share come first. Among them,
        the heads with the most seeds come first. The runs with the other seeds follow.

        Args:
            winners: values of the best setting of each head. Heads without a best setting are left out.
        """
        fewest, most = (limit(head.seeds for head in self.heads.values()) for limit in (min, max))
        ordered = sorted(
            ((seed, head) for head in self.heads.values() for seed in range(1, head.seeds + 1)),
            key=lambda pair: ((pair[0] - 1) // fewest, pair[1].seeds < most, pair[0]),
        )
        return [
            self._run(FINAL, head, seed, winners[base], seed, None)
            for seed, head in ordered
            if (base := head.like or head.name) in winners
        ]

    def _run(self, stage: str, head: Head, number: int, values: Mapping[str, Any], seed: int, fold: int | None) -> Run:
        numbers = self.tuning if stage == TUNE else self.final
        own = {key: value for key, value in values.items() if key not in head.recipe}
        recipe = self.recipe | head.recipe | {key: value for key, value in own.items() if key not in DERIVED}
        recipe |= {"seed": seed, "epochs": numbers.epochs}
        return Run(stage, head.name, number, fold, recipe, own, head.control, numbers.evaluate, numbers.budgets)


def setting_share(place: int, number: int) -> float:
    """Return where a setting lies in the range of a searched key: a share from 0 (the lower limit) to below 1.

    The settings are a Kronecker sequence, which covers the ranges more evenly than independent draws. The shares do
    not depend on the head, so that heads with the same ranges get the same values.

    Args:
        place: index of the key among all searched keys of the study, from 0.
        number: number of the setting, from 1.
    """
    return (0.5 + number * math.sqrt(PRIMES[place])) % 1


def _rounded(value: float) -> float:
    """Return a value rounded to four significant digits, so that the record contains the exact value of the run."""
    return float(f"{value:.4g}")


def read_study(path: str | os.PathLike[str]) -> Study:
    """Read the file of a study.

    Raises:
        ValueError: the file is missing, is not YAML, or a key or value is invalid.
    """
    if not Path(path).is_file():
        raise ValueError(f"Study not found: {os.fspath(path)}. Expected a YAML file.")
    try:
        content = load_yaml(path)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not YAML: {error}") from error
    try:
        return parse_study(Path(path).stem, content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def parse_study(name: str, content: Any) -> Study:
    """Return the study that the content of a file describes.

    Raises:
        ValueError: a key or value is invalid.
    """
    known = ("recipe", "dev_trials", "test_trials", "folds", "search", "heads", "tuning", "final")
    top = _keys_of(content, "the study", (*known, "comparisons", "measure", "replicates", "confidence"), known[:1])
    recipe = _keys_of(top["recipe"], "recipe")
    own = sorted(set(recipe) & set(OWN_KEYS))
    if own:
        raise ValueError(f"recipe must not contain {own[0]}, which the study sets itself.")
    folds = _whole(top.get("folds", 0), "folds", 0)
    dev, tests = (tuple(map(str, _list(top.get(key, []), key))) for key in ("dev_trials", "test_trials"))
    if folds == 1 or (folds == 0 and not dev):
        raise ValueError("Tuning needs development lists (dev_trials) or at least 2 folds (folds). Add one of the two.")
    tuning = _stage(top.get("tuning"), "tuning", "settings")
    final = _stage(top.get("final"), "final", "seeds")
    heads = _heads(top.get("heads"), top.get("search", {}), final.count)
    measure = top.get("measure", MEASURES[0])
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}.")
    confidence = _finite_number(top.get("confidence", 0.95), "confidence")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    return Study(
        name=name,
        recipe=recipe,
        dev=dev,
        tests=tests,
        folds=folds,
        heads=heads,
        tuning=tuning,
        final=final,
        comparisons=_families(top.get("comparisons", {}), heads),
        measure=measure,
        replicates=_whole(top.get("replicates", 1000), "replicates", 100),
        confidence=confidence,
        source=dict(content),
    )


def _heads(content: Any, common: Any, seeds: int) -> dict[str, Head]:
    """Return the heads of a study, by name."""
    shared = _ranges(common, "search")
    heads: dict[str, Head] = {}
    for name, given in _keys_of(content, "heads").items():
        where = f"heads, {name}"
        entry = _keys_of(given, where, ("recipe", "search", "like", "control", "seeds"))
        if not name.replace("_", "").isalnum():
            raise ValueError(f"{where}: the name must consist of letters, digits and underscores.")
        own = _keys_of(entry.get("recipe", {}), f"{where}, recipe")
        search = _ranges(entry.get("search", {}), f"{where}, search")
        like, control = entry.get("like"), entry.get("control")
        if control is not None and control not in CONTROLS:
            raise ValueError(f"{where}: control must be one of {', '.join(CONTROLS)}, got {control!r}.")
        if like is not None:
            if like not in heads or heads[like].like is not None or search:
                raise ValueError(
                    f"{where}: 'like' must name an earlier head with a search, and cannot be combined with 'search'."
                )
            own, search = heads[like].recipe | own, {}
        else:
            search = {key: value for key, value in (shared | search).items() if key not in own}
        count = _whole(entry.get("seeds", seeds), f"{where}, seeds", 1)
        heads[name] = Head(name, own, search, like, control, count)
    searched = {key for head in heads.values() for key in head.search}
    if len(searched) > len(PRIMES):
        raise ValueError(f"at most {len(PRIMES)} different keys can be searched, got {len(searched)}.")
    if not heads:
        raise ValueError("heads is empty; name at least one head.")
    return heads


def _families(content: Any, heads: Mapping[str, Head]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the pairs of heads of each family of comparisons."""
    families = {}
    for name, given in _keys_of(content, "comparisons").items():
        pairs = []
        for pair in _list(given, f"comparisons, {name}"):
            names = [str(one) for one in _list(pair, f"comparisons, {name}")]
            if len(names) != 2 or not set(names) <= set(heads) or names[0] == names[1]:
                raise ValueError(
                    f"comparisons, {name}: expected two different names from {', '.join(heads)}; got {pair!r:.100}."
                )
            pairs.append((names[0], names[1]))
        families[name] = tuple(pairs)
    return families


def _ranges(content: Any, where: str) -> dict[str, SearchRange]:
    ranges = {}
    for key, value in _keys_of(content, where).items():
        entries = _list(value, f"{where}, {key}")
        logarithmic = entries[2:] == ["log"]
        if len(entries) != 2 + logarithmic:
            raise ValueError(f"{where}, {key}: expected [low, high] or [low, high, log], got {value!r}.")
        low, high = (_finite_number(one, f"{where}, {key}") for one in entries[:2])
        if not low <= high or (logarithmic and low <= 0):
            raise ValueError(f"{where}, {key}: low must not exceed high, and must be above 0 for log; got {value!r}.")
        ranges[key] = SearchRange(low, high, logarithmic)
    return ranges


def _stage(content: Any, where: str, count: str) -> Stage:
    entry = _keys_of(content, where, (count, "epochs", "evaluate", "budgets"), (count, "epochs"))
    epochs = _whole(entry["epochs"], f"{where}, epochs", 1)
    lists = []
    for key in ("evaluate", "budgets"):
        given = [_whole(one, f"{where}, {key}", 1) for one in _list(entry.get(key, []), f"{where}, {key}")]
        lists.append(tuple(sorted({*given, epochs})))
        if lists[-1][-1] > epochs:
            raise ValueError(f"{where}, {key}: expected at most {epochs} (epochs), got {lists[-1][-1]}.")
    evaluate = tuple(sorted({*lists[0], *lists[1]}))
    return Stage(_whole(entry[count], f"{where}, {count}", 1), epochs, evaluate, lists[1] if count == "seeds" else ())


def _keys_of(content: Any, where: str, known: Sequence[str] = (), needed: Iterable[str] = ()) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must contain 'key: value' lines, got {type(content).__name__}.")
    unknown = [str(key) for key in content if known and key not in known]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r:.100}; the known keys are {', '.join(known)}.")
    missing = [key for key in needed if key not in content]
    if missing:
        raise ValueError(f"{where} must contain {missing[0]}.")
    return {str(key): value for key, value in content.items()}


def _list(content: Any, where: str) -> list[Any]:
    if not isinstance(content, list | tuple):
        raise ValueError(f"{where} must be a list, got {content!r:.100}.")
    return list(content)


def _finite_number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{where} must be a number, got {value!r:.100}.")
    return number


def _whole(value: Any, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where} must be a whole number of at least {least}, got {value!r:.100}.")
    return value
