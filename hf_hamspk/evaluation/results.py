"""All numbers of a model on trial lists, as one record: `evaluation.json`, from which tables, plots and cards are made.

The record is `{"schema": 1, "model": {...}, "versions": {...}, "commit": ..., "protocol": ..., "lists": {name: ...}}`.
Rates are fractions, intervals `[low, high]`, what was not measured is None. Each list has

- `trials`, `targets`, `skipped` (trials left out), `unusable_files` (file to reason), `speakers`;
- `scores` (what was ranked: "cosine", "hyperbolic" or "log-likelihood ratio"), `normalisation`;
- `eer`, `eer_interval`, `eer_threshold` (step convention), `eer_convex_hull`; `min_dcf`, `min_dcf_interval` by prior;
  `min_cllr`;
- of a calibrated model `act_dcf`, `act_dcf_interval`, `cllr`, `cllr_interval`, and `operating_points`: costs and
  error rates at the thresholds of the model, with intervals, beside those of its calibration trials (`nominal_...`);
- `confidence`, `replicates`, `interval_note`: how the intervals were made, or why there are none;
- `raw`: of a calibrated model, the ranking numbers of its scores before normalisation and calibration;
- `groups`: label to the same numbers on the trials within a group; `groups_left_out`: label to reason;
- `histogram`: edges and counts of targets and impostors.
"""

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

from ..modeling_hamspk import HamSpkPreTrainedModel
from .evaluating import EvaluationSettings, ListEvaluation

SCHEMA = 1
# What a training run calls its models: no name of a model by itself.
RUN_FOLDERS = ("final", "best", "last")
_PACKAGES = ("hf_hamspk", "torch", "transformers", "numpy")


def evaluation_record(
    model: HamSpkPreTrainedModel, name: str, lists: Mapping[str, ListEvaluation], settings: EvaluationSettings
) -> dict[str, Any]:
    """The whole record; see the module.

    Args:
        model: that was evaluated.
        name: of the model on the Hub, or its folder, of which the last part is kept (the last two of a run's folder).
        lists: name to evaluation.
        settings: as of the lists.
    """
    return {
        "schema": SCHEMA,
        "model": {
            "name": _model_name(name),
            "fingerprint": model.fingerprint(),
            "parameters": sum(parameter.numel() for parameter in model.base_model.parameters()),
            "similarity": model.config.similarity,
        },
        "versions": {package: _version(package) for package in _PACKAGES},
        "commit": _commit(),
        "protocol": settings.protocol,
        "mean_subtracted": settings.subtract_mean,
        "lists": {list_name: evaluation.record for list_name, evaluation in lists.items()},
    }


def write_record(record: Mapping[str, Any], path: str | PathLike[str]) -> Path:
    """Write `evaluation.json`; parent folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return target


def read_record(path: str | PathLike[str]) -> dict[str, Any]:
    """Read `evaluation.json`.

    Raises:
        ValueError: no such file, no JSON, or of another schema.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}. `hamspk evaluate --output` writes one.") from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}. Evaluate anew.") from error
    found = record.get("schema") if isinstance(record, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{path} has schema {found!r}; this version reads {SCHEMA}. Evaluate anew.")
    return record


def _model_name(name: str) -> str:
    """Of a folder what is no secret of this machine."""
    folder = Path(name)
    if not folder.exists():
        return name
    parts = folder.resolve().parts
    return "/".join(parts[-2:] if parts[-1] in RUN_FOLDERS else parts[-1:])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this package runs from, marked if files differ; None where it is no checkout."""
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
