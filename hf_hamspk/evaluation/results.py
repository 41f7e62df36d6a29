"""Read and write `evaluation.json`, which contains all measurements of one set of weights.

Training, `evaluate` and `sweep` write this file with the following content:

    {"schema": 2, "model": {...}, "lists": {NAME: {...}}, "sweeps": {NAME: {...}}, "training": {...}, "plots": {...}}

Rates are fractions, and intervals are `[low, high]`. If a measurement was not made, it is null or absent. NAME is the
name of a trial list.

- `model`: `name`, `fingerprint`, `parameters` (number of parameters), `similarity`.
- `lists`: maps each trial list to its measurements. Except for `decisions`, they are computed from the raw scores of
  **all** trials whose files can be read:
    - `digest` (hash of the list), `protocol`, `mean_subtracted`, `versions` and `commit` of the software, and `backend`
      (such as "onnx int8") of a result of `with_backend`;
    - `trials`, `targets`, `skipped` (number of trials with an unreadable file), `unusable_files` (maps each file to the
      reason), `speakers`;
    - `scores` ("cosine" or "hyperbolic"); `eer`, `eer_interval`, `eer_threshold` (without interpolation),
      `eer_convex_hull`; `min_dcf`, `min_dcf_interval` for each prior; `min_cllr`;
    - `confidence` and `replicates` of the intervals; `interval_note`, the reason if intervals were not measured;
    - `groups`: maps each group of trials to the same measurements on this group; `groups_left_out`: maps each group
      without target or without impostor trials to the reason;
    - `histogram`: edges of the bins, and numbers of targets and impostors in each bin;
    - `compared`: measurements of this model and of another model on the same trials, and their differences;
    - `decisions`: measurements of a calibrated model's log-likelihood ratios on the trials with enough speech for a
      decision. In addition to the keys of a list, `decisions` contains `calibration` (checksum), `normalisation`,
      `without_decision` and `share_without_decision` (number and share of the trials with too little speech),
      `short_files` (maps each file to the reason), `act_dcf`, `cllr`, their intervals, and `operating_points`. Each
      operating point contains the costs and error rates at its threshold, their intervals, and the error rates on the
      calibration trials (`nominal_...`).
- `sweeps`: maps each trial list to `digest`, `trials`, `targets`, `skipped`, `unusable_files`, `scores`, `confidence`,
  `replicates`, `versions`, `commit`, `backend`, and `conditions`, which maps each kind of condition to its points (see
  `SweepPoint`), measured on raw scores.
- `training`: `epochs`, `steps`, `processes`, `averaged` (files), `dev_list`, `best_dev_eer`, `best_dev_epoch`,
  `unreadable_files` (maps each file to the reason).
- `plots`: maps each file in the folder `plots` to its caption.

Schema 1, which version 0.1.0 wrote, can be read as well.
"""

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from ..audio_hamspk import is_number
from ..calibration_hamspk import is_same_model
from ..folders.recognising import check_replaceable, is_plot_file, is_report_file
from ..folders.writing import remove_leftovers, write_atomically
from ..loading.names import RUN_FOLDERS
from ..modeling_hamspk import SpeakerModelMixin

EVALUATION_FILE, REPORT_FILE, PLOT_FOLDER = "evaluation.json", "report.html", "plots"
# Names of the plots that `plots.py` draws.
_DRAWN = re.compile(r"det\.png|(?:scores|ratios|costs|sweep)-.+\.png")
EVALUATION_SCHEMA = 2
_RECORDED_PACKAGES = ("hf_hamspk", "torch", "transformers", "numpy")
# Keys of schema 1: keys of a list that also apply to its raw scores (key `raw`), then keys that apply to all lists.
_OF_LIST = ("skipped", "unusable_files", "groups_left_out")
_OF_ALL_LISTS = ("versions", "commit", "protocol", "mean_subtracted")


@dataclass
class EvaluationRecord:
    """Content of `evaluation.json`: all measurements of one set of weights.

    Example:
        ```python
        record = EvaluationRecord({"name": "final", "fingerprint": "0a1b"}, {"dev": {"eer": 0.081, "trials": 3680}})
        record.write("runs/mine/final")
        print(EvaluationRecord.read("runs/mine/final/evaluation.json").lists["dev"]["eer"])
        ```

    Attributes:
        model: name, fingerprint, number of parameters and similarity of the model.
        lists: maps the name of each trial list to its measurements.
        sweeps: maps the name of each trial list to its measurements under several recording conditions.
        training: summary of the training run; None if the model was not trained by this package.
        plots: maps each file name in the folder `plots` to its caption.
    """

    model: dict[str, Any]
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    sweeps: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    plots: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_model(cls, model: SpeakerModelMixin, name: str | os.PathLike[str] | None = None) -> "EvaluationRecord":
        """Return a record that describes a model and does not contain any measurements yet.

        Args:
            model: model to measure.
            name: name on the Hub, or folder of the model; None uses the name from which the model was loaded. Of a
                folder, only its own name is recorded. For a folder inside a training run, the name of the run is
                recorded as well.
        """
        known_as = str(getattr(model, "name_or_path", "")) if name is None else os.fspath(name)
        encoder: Any = model.base_model
        return cls(
            {
                "name": _public_name(known_as) if known_as else "unnamed",
                "fingerprint": model.fingerprint(),
                # An ONNX session has no parameters.
                "parameters": encoder.num_parameters() if hasattr(encoder, "num_parameters") else 0,
                "similarity": model.config.similarity,
            }
        )

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the measured weights; None if unknown."""
        return self.model.get("fingerprint")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`; empty sections are left out."""
        sections = {"sweeps": self.sweeps, "training": self.training, "plots": self.plots}
        kept = {name: section for name, section in sections.items() if section}
        return {"schema": EVALUATION_SCHEMA, "model": self.model, "lists": self.lists, **kept}

    @classmethod
    def from_dict(cls, values: Any, where: str = "The record") -> "EvaluationRecord":
        """Check the content of an `evaluation.json` of schema 1 or 2, and return the record.

        Args:
            values: decoded content of `evaluation.json`.
            where: name of the file or record in error messages.

        Raises:
            ValueError: the schema is unknown, or a value has the wrong type or is out of range. The message names the
                value.
        """
        if not isinstance(values, Mapping):
            raise ValueError(
                f"{where} must contain a JSON object, got a {type(values).__name__}. Evaluate the model again."
            )
        schema = values.get("schema", 1)
        if schema not in (1, EVALUATION_SCHEMA):
            raise ValueError(
                f"{where} must have schema 1 or {EVALUATION_SCHEMA}, got {schema!r}. Update the package, or evaluate "
                "the model again."
            )
        if not isinstance(values.get("model"), Mapping) or not isinstance(values.get("lists"), Mapping):
            raise ValueError(f"{where} is not an evaluation: 'model' or 'lists' is missing. Evaluate the model again.")
        for section in ("sweeps", "plots", "training"):
            if not isinstance(values.get(section, {}), Mapping):
                raise ValueError(f"{where}: {section} must be a JSON object, got {values[section]!r:.80}.")
        for name, entry in values["lists"].items():
            if not isinstance(entry, Mapping) or not is_number(entry.get("eer")):
                raise ValueError(
                    f"{where} is not an evaluation: the list {name!r} has no number 'eer'. Evaluate the model again."
                )
        lists = _lists_of_schema_1(values) if schema == 1 else {k: dict(v) for k, v in values["lists"].items()}
        for name, entry in lists.items():
            _check_numbers(entry, f"{where}: lists: {name}")
        _check_sweeps(values.get("sweeps", {}), where)
        _check_numbers(values.get("training", {}), f"{where}: training")
        return cls(
            dict(values["model"]),
            lists,
            {name: dict(entry) for name, entry in values.get("sweeps", {}).items()},
            dict(values["training"]) if values.get("training") else None,
            {file: str(caption) for file, caption in values.get("plots", {}).items()},
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "EvaluationRecord":
        """Read `evaluation.json`.

        Raises:
            ValueError: the file is missing, is not JSON, or is invalid (see `from_dict`).
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"File not found: {path}. Create it with `hamspk evaluate`.") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as JSON: {error}. Evaluate the model again.") from error
        return cls.from_dict(values, str(path))

    def write(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write `evaluation.json` into a folder, and keep earlier measurements of the same weights.

        The kept measurements are also added to this record. Earlier measurements of a trial list with the same name are
        replaced. If the folder contains a record of another model, this record replaces the earlier one, and the plots
        of the earlier record are deleted.

        Args:
            folder: folder of the file; it is created if missing.

        Returns:
            One sentence for each replaced measurement.

        Raises:
            ValueError: the folder contains an `evaluation.json` that this package did not write.
        """
        path = Path(folder) / EVALUATION_FILE
        remarks: list[str] = []
        earlier = _read_earlier(path)
        if earlier is not None:
            if is_same_model(earlier.fingerprint, self.fingerprint):
                remarks = self._take_in(earlier)
            else:
                remarks = [f"{path} was replaced, because it contained measurements of other weights or settings."]
                for file in earlier.plots.keys() - self.plots.keys():
                    if _is_plot(file) and is_plot_file(path.parent / PLOT_FOLDER / file):
                        (path.parent / PLOT_FOLDER / file).unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, lambda name: name in (EVALUATION_FILE, REPORT_FILE))
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return remarks

    def _take_in(self, earlier: "EvaluationRecord") -> list[str]:
        """Add the measurements that only `earlier` contains, and return a sentence for each replaced measurement."""
        remarks = [
            f"{name}: the measurements on another trial list with this name were replaced."
            for name, entry in self.lists.items()
            if earlier.lists.get(name, entry).get("digest", entry.get("digest")) != entry.get("digest")
        ]
        for name, entry in self.sweeps.items():
            before = earlier.sweeps.get(name, {})
            if before.get("digest") == entry["digest"]:
                entry["conditions"] = before["conditions"] | entry["conditions"]
        self.lists = earlier.lists | self.lists
        self.sweeps = earlier.sweeps | self.sweeps
        self.plots = earlier.plots | self.plots
        self.training = earlier.training if self.training is None else self.training
        return remarks


def check_record_folder(folder: Path) -> None:
    """Check that the files of an evaluation in a folder are missing, or were written by this package.

    Raises:
        ValueError: `evaluation.json`, `report.html` or a plot was not written by this package.
    """
    earlier = _read_earlier(folder / EVALUATION_FILE)
    plots = {} if earlier is None else earlier.plots
    check_replaceable(folder / REPORT_FILE, is_report_file, "an evaluation report")
    for file in (folder / PLOT_FOLDER).iterdir() if (folder / PLOT_FOLDER).is_dir() else ():
        if _DRAWN.fullmatch(file.name) and file.name not in plots:
            check_replaceable(file, is_plot_file, "a plot")


def _read_earlier(path: Path) -> EvaluationRecord | None:
    """Return the record that will be replaced; None if there is none. Raise an error if another program wrote it."""
    if not path.exists():
        return None
    try:
        return EvaluationRecord.read(path)
    except ValueError as error:
        raise ValueError(f"{error} The file was not changed. Choose another folder (--output).") from error


def record_folder(model: str | os.PathLike[str]) -> Path:
    """Return the folder for the record of a model.

    For a model in a local folder, this is the same folder. For a name on the Hub such as `owner/name`, it is
    `owner-name-evaluation` in the working directory.
    """
    folder = Path(model)
    return folder if folder.is_dir() else Path(f"{os.fspath(model).replace('/', '-')}-evaluation")


def software(model: SpeakerModelMixin) -> dict[str, Any]:
    """Return what the measurements of a model depend on beside its weights.

    These are the versions of packages, the commit of this package and, for a result of `with_backend`, the backend and
    the number format.
    """
    facts = {"versions": {name: _version_of(name) for name in _RECORDED_PACKAGES}, "commit": checkout_commit()}
    choice: Any = getattr(model, "choice", None)
    return facts if choice is None else facts | {"backend": f"{choice.backend} {choice.dtype}"}


def _lists_of_schema_1(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert the lists of schema 1, in which the key `raw` contains the raw scores of a calibrated model."""
    shared = {key: values[key] for key in _OF_ALL_LISTS if key in values}
    lists = {}
    for name, entry in values["lists"].items():
        own = {key: value for key, value in entry.items() if key != "raw" and value is not None}
        compared = own.pop("compared", None)
        if isinstance(entry.get("raw"), Mapping):
            of_list = {key: own.pop(key) for key in _OF_LIST if key in own}
            own = of_list | dict(entry["raw"]) | {"decisions": own}
        if compared is not None:
            own["compared"] = {"model": values.get("compared_with", {}), "numbers": compared}
        lists[name] = shared | own
    return lists


def _check_numbers(values: Any, where: str) -> None:
    """Raise if a value of a nested record has the wrong type or is out of range."""
    for key, value in _object(values, where).items():
        place = f"{where}: {key}"
        if value is None:
            continue
        if key in ("groups", "operating_points", "numbers"):
            for name, part in _object(value, place).items():
                _check_numbers(part, f"{place}: {name}")
        elif key in ("decisions", "compared"):
            _check_numbers(value, place)
        elif key in _BY_PRIOR and isinstance(value, Mapping):
            for prior, number in value.items():
                _check_numbers({key: number}, f"{place}: {prior}")
        elif key in _CHECKS:
            fits, expected = _CHECKS[key]
            _require_value(fits(value), place, expected, value)


def _check_sweeps(sweeps: Mapping[str, Any], where: str) -> None:
    for name, entry in sweeps.items():
        place = f"{where}: sweeps: {name}"
        _check_numbers(entry, place)
        for kind, points in _object(entry.get("conditions"), f"{place}: conditions").items():
            _require_value(isinstance(points, list), f"{place}: {kind}", "a list of points", points)
            for point in points:
                _check_numbers(point, f"{place}: {kind}")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    _require_value(isinstance(value, Mapping), where, "a JSON object", value)
    return value


def _require_value(fits: bool, where: str, expected: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{where} must be {expected}, got {value!r:.80}. Evaluate the model again.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_cost(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and value[0] <= value[1]


def _is_histogram(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(k), list) for k in ("edges", *_CLASSES)):
        return False
    edges = value["edges"]
    rising = all(map(is_number, edges)) and all(low < high for low, high in itertools.pairwise(edges))
    return rising and all(len(value[k]) == len(edges) - 1 and all(map(_is_count, value[k])) for k in _CLASSES)


_CLASSES = ("targets", "impostors")
_COUNT, _SHARE = (_is_count, "a whole number of at least 0"), (_is_share, "a number between 0 and 1")
_COST, _SCORE = (_is_cost, "a number of at least 0"), (is_number, "a finite number")
_TEXT = (lambda value: isinstance(value, str), "text")
_LIMITS = (_is_interval, "[low, high]")
# Keys whose value may be a mapping from each prior to a number.
_BY_PRIOR = ("min_dcf", "act_dcf", "min_dcf_interval", "act_dcf_interval")
# For each key, a function that checks its value, and a description of the expected value.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("trials", "targets", "skipped", "speakers", "replicates", "without_decision"), _COUNT),
    **dict.fromkeys(("epochs", "steps", "processes", "best_dev_epoch"), _COUNT),
    **dict.fromkeys(("eer", "eer_convex_hull", "confidence", "share_without_decision", "best_dev_eer"), _SHARE),
    **dict.fromkeys(("miss_rate", "false_alarm_rate", "nominal_miss_rate", "nominal_false_alarm_rate"), _SHARE),
    **dict.fromkeys(("cllr", "min_cllr", "act_dcf", "min_dcf"), _COST),
    **dict.fromkeys(("eer_threshold", "threshold"), _SCORE),
    **dict.fromkeys(("eer_interval", "cllr_interval", "min_dcf_interval", "act_dcf_interval"), _LIMITS),
    **dict.fromkeys(("miss_interval", "false_alarm_interval", "interval"), _LIMITS),
    **dict.fromkeys(
        ("digest", "scores", "normalisation", "interval_note", "protocol", "backend", "note", "dev_list"), _TEXT
    ),
    "histogram": (_is_histogram, "increasing edges and the numbers of targets and impostors between them"),
}


def _is_plot(file: str) -> bool:
    """Return whether the text is the name of a PNG file without folders."""
    return PurePosixPath(file).name == file and Path(file).name == file and file.endswith(".png")


def _public_name(name: str) -> str:
    """Return the name of a model without the parent folders on this machine."""
    folder = Path(name)
    if not folder.exists():
        return name
    parts = folder.resolve().parts
    # The name of a folder within a training run does not identify the model without the name of the run.
    return "/".join(parts[-2:] if parts[-1] in RUN_FOLDERS else parts[-1:])


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def checkout_commit() -> str | None:
    """Return the commit of this package, marked if files were changed; None if it is not in a Git checkout."""
    package = Path(__file__).resolve().parents[1]
    try:
        found = [
            subprocess.run(
                ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (
                ("rev-parse", "--show-toplevel"),
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", "."),
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    if Path(found[0]).resolve() != package.parent:
        return None
    return found[1] + ("+changes" if found[2] else "")
