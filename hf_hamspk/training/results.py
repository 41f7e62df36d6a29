"""The error rates of a run, as a table for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation.verification import PRIORS


def list_names(paths: Sequence[str]) -> dict[str, str]:
    """A short name for each trial list: that of the file, or the whole path where two files share it."""
    stems = [Path(path).stem for path in paths]
    return {path: stem if stems.count(stem) == 1 else path for path, stem in zip(paths, stems, strict=True)}


def format_results(results: dict[str, Any]) -> str:
    """A table of the error rates in `results.json`, one line for each trial list; empty where there are none."""
    rows = [("dev", results["dev"])] if "dev" in results else []
    rows += list(results.get("test", {}).items())
    if not rows:
        return ""
    points = next((list(row["operating_points"]) for _, row in rows if "operating_points" in row), [])
    heads = "".join(f"{f'minDCF({prior:g})':>15}" for prior in PRIORS)
    heads += "".join(f"{f'actDCF({name})':>19}" for name in points) + (f"{'Cllr':>8}" if points else "")
    lines = [f"{'trial list':<20}{'trials':>9}{'EER %':>9}{heads}"]
    for name, row in rows:
        costs = "".join(f"{row[f'min_dcf_{prior:g}']:>15.3f}" for prior in PRIORS)
        for point in points:
            costs += (
                f"{row['operating_points'][point]['act_dcf']:>19.3f}" if "operating_points" in row else f"{'-':>19}"
            )
        costs += f"{row['cllr']:>8.3f}" if "cllr" in row else ""
        lines.append(f"{name:<20}{row['trials']:>9}{100 * row['eer']:>9.2f}{costs}")
    return "\n".join(lines)
