"""Summarise the records of a study: tuning, learning curves, errors on the test lists, and comparisons.

The test lists are opened once: when all planned runs are finished, or earlier if the user asks for it. No error on a
test list is computed before. The file `opened.json` records when the lists were opened, and how many runs were finished
then.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..evaluation.intervals import BAR_DELAY, draw_speakers, resample_errors
from ..evaluation.speakers import TrialSpeakers
from ..folders.writing import write_atomically
from .plan import FINAL, MEASURES, Run, Study
from .records import (
    SCORES_FILE,
    best_settings,
    planned_runs,
    read_record,
    read_scores,
    read_study_lists,
    tuning_scores,
)
from .statistics import FEWEST_SEEDS, MEAN, HeadComparison, compare_heads, expected_best, holm

OPENED_FILE = "opened.json"
SUMMARY_SCHEMA = 1

# Errors `(1 + R,)` by head, seed, list and measure.
SeedErrors = dict[str, dict[int, dict[str, dict[str, NDArray]]]]


def summarise(study: Study, folder: Path, open_tests: bool = False, progress: bool = True) -> dict[str, Any]:
    """Return the summary of a study as JSON values.

    Args:
        study: study.
        folder: folder of the study.
        open_tests: whether to open the test lists before all runs are finished.
        progress: whether to show a progress bar.

    Returns:
        A dictionary with `runs` (numbers of finished and planned runs, hours, commits, devices), `tuning`, `curves` and
        `opened`. If the test lists are open, it also has `errors` and `comparisons`.

    Raises:
        ValueError: the folder is not the folder of a study, or a record is damaged.
    """
    lists = read_study_lists(folder)
    planned = planned_runs(study, folder)
    records = {run.name: record for run in planned if (record := read_record(folder / run.name)) is not None}
    total = len(study.tuning_runs()) + sum(head.seeds for head in study.heads.values())
    opened = _open_tests(study, folder, len(records), total, open_tests)
    summary = {
        "schema": SUMMARY_SCHEMA,
        "study": study.name,
        "measure": study.measure,
        "confidence": study.confidence,
        "runs": {
            "finished": len(records),
            "planned": total,
            "hours": round(sum(record["seconds"] for record in records.values()) / 3600, 2),
            "cpu_hours": round(sum(record["cpu_seconds"] for record in records.values()) / 3600, 2),
            "commits": sorted({str(record.get("commit")) for record in records.values()}),
            "devices": sorted({str(record.get("device", "unknown")) for record in records.values()}),
            "diverged": sorted(name for name, record in records.items() if "diverged" in record),
        },
        "tuning": _summarise_tuning(study, folder),
        "curves": _learning_curves(planned, records),
        "opened": opened,
    }
    if opened is not None and study.tests:
        finals = [run for run in planned if run.stage == FINAL and run.name in records]
        scored = [(run, read_scores(folder / run.name / SCORES_FILE)) for run in finals]
        by_budget = {budget: _test_errors(study, scored, lists, budget, progress) for budget in study.final.budgets}
        summary["errors"] = {str(budget): _mean_errors(errors) for budget, errors in by_budget.items()}
        summary["comparisons"] = [
            row for budget, errors in by_budget.items() for row in _compare_all(study, errors, budget)
        ]
    return summary


def _open_tests(study: Study, folder: Path, finished: int, total: int, wanted: bool) -> dict[str, Any] | None:
    """Open the test lists if possible, and return the content of `opened.json`; None if the lists stay closed."""
    path, digest = folder / OPENED_FILE, _plan_digest(study)
    if path.is_file():
        opened = json.loads(path.read_bytes())
        return opened | {"changed_since": opened.get("digest") != digest, "finished_now": finished}
    if not wanted and finished < total:
        return None
    opened = {"date": time.strftime("%Y-%m-%d %H:%M"), "finished": finished, "planned": total, "digest": digest}
    write_atomically(path, lambda one: one.write_text(json.dumps(opened, indent=1) + "\n", encoding="utf-8"))
    return opened | {"changed_since": False, "finished_now": finished}


def _plan_digest(study: Study) -> str:
    return hashlib.sha256(json.dumps(study.source, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _summarise_tuning(study: Study, folder: Path) -> dict[str, Any]:
    winners, result = best_settings(study, folder), {}
    for head, settings in tuning_scores(study, folder).items():
        if not settings:
            continue
        scores = [score for score, _ in settings.values()]
        result[head] = {
            "settings": [
                {"number": number, "score": round(score, 6), "values": run.values}
                for number, (score, run) in sorted(settings.items())
            ],
            "best": winners.get(head),
            "expected_best": [round(one, 6) for one in expected_best(scores)],
        }
    return result


def _learning_curves(planned: Iterable[Run], records: dict[str, Any]) -> dict[str, Any]:
    """Return the mean and the standard deviation, over seeds, of the development errors by head and epoch."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {}
    for run in planned:
        if run.stage != FINAL or run.name not in records:
            continue
        for entry in records[run.name]["curve"]:
            means = {name: float(np.mean([one[name] for one in entry["lists"].values()])) for name in MEASURES}
            found.setdefault(run.head, {}).setdefault(entry["epoch"], []).append(means)
    return {
        head: {
            str(epoch): {"seeds": len(runs)}
            | {name: round(float(np.mean([run[name] for run in runs])), 6) for name in MEASURES}
            | {
                f"{name}_sd": round(float(np.std([run[name] for run in runs], ddof=1)), 6)
                for name in MEASURES
                if len(runs) > 1
            }
            for epoch, runs in epochs.items()
        }
        for head, epochs in found.items()
    }


def _test_errors(
    study: Study,
    scored: list[tuple[Run, dict[str, NDArray[np.float64]]]],
    lists: dict[str, tuple[NDArray[np.int8], TrialSpeakers]],
    budget: int,
    progress: bool,
) -> SeedErrors:
    """Return the test errors of all runs after the epoch `budget`, by head, seed and list; see `resample_errors`.

    They are the errors on the original trials and for bootstrap draws of the test speakers. The draws are the same for
    all runs, so that the heads can be compared.
    """
    names = sorted({name.rpartition("@")[0] for _, scores in scored for name in scores})
    everyone = sorted({speaker for name in names for speaker in lists[name][1].names})
    draws, place = draw_speakers(len(everyone), study.replicates), {name: i for i, name in enumerate(everyone)}
    errors: SeedErrors = {}
    bar = tqdm(scored, desc=f"resampling, epoch {budget}", disable=not progress, leave=False, delay=BAR_DELAY)
    for run, scores in bar:
        for name in names:
            if f"{name}@{budget}" not in scores:
                continue
            labels, speakers = lists[name]
            own = draws[:, [place[speaker] for speaker in speakers.names]]
            resampled = resample_errors(scores[f"{name}@{budget}"], labels, speakers, own)
            errors.setdefault(run.head, {}).setdefault(run.number, {})[name] = resampled
    return errors


def _mean_errors(errors: SeedErrors) -> dict[str, Any]:
    """Return the mean errors over seeds by head and list, with the number of seeds."""
    result: dict[str, Any] = {}
    for head, seeds in errors.items():
        result[head] = {"seeds": len(seeds), "lists": {}}
        for name in next(iter(seeds.values())):
            result[head]["lists"][name] = {
                measure: round(float(np.mean([one[name][measure][0] for one in seeds.values()])), 6)
                for measure in MEASURES
            }
    return result


def _compare_all(study: Study, errors: SeedErrors, budget: int) -> list[dict[str, Any]]:
    """Return the comparisons of all families, on each list and over all lists; p-values are corrected per family."""
    rows = []
    for family, pairs in study.comparisons.items():
        usable = []
        for first, second in pairs:
            common = sorted(set(errors.get(first, {})) & set(errors.get(second, {})))
            if len(common) >= FEWEST_SEEDS:
                usable.append((first, second, common))
        if not usable:
            continue
        names = list(errors[usable[0][0]][usable[0][2][0]])
        for measure in MEASURES:
            for chosen in [*([name] for name in names), names]:
                found = [
                    compare_heads(
                        *({name: _of_seeds(errors[head], common, name, measure) for name in chosen} for head in pair),
                        confidence=study.confidence,
                    )
                    for *pair, common in usable
                ]
                corrected = holm([one.p_value for one in found])
                label = chosen[0] if len(chosen) == 1 else MEAN
                rows += [
                    {"family": family, "first": first, "second": second, "budget": budget, "list": label}
                    | {"measure": measure, **_comparison_values(one), "holm": round(p, 5)}
                    for (first, second, _), one, p in zip(usable, found, corrected, strict=True)
                ]
    return rows


def _of_seeds(seeds: dict[int, Any], common: list[int], name: str, measure: str) -> NDArray:
    return np.stack([seeds[seed][name][measure] for seed in common])


def _comparison_values(found: HeadComparison) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    errors = None if found.first is None or found.second is None else [round(found.first, 6), round(found.second, 6)]
    return {
        "errors": errors,
        "relative": round(found.relative, 5),
        "interval": [round(limit, 5) for limit in found.interval],
        "probability": round(found.probability, 4),
        "p": round(found.p_value, 5),
        "seeds": found.seeds,
    }
