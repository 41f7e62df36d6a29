"""Write the report of a study as text, HTML and JSON. This needs only the records of the runs, not models or audio."""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.report import TextRow, format_text, render_page
from ..folders.recognising import check_replaceable, is_plot_file, is_report_file, read_small_json
from ..folders.writing import write_atomically
from .plan import MEASURES, Study
from .plots import MEASURE_NAMES, PLOT_FILES, draw_study
from .statistics import MEAN
from .summary import summarise

TEXT_FILE, HTML_FILE, SUMMARY_FILE, PLOTS = "report.txt", "report.html", "summary.json", "plots"


def write_report(
    study: Study, folder: str | os.PathLike[str], open_tests: bool = False, progress: bool = True
) -> tuple[str, list[Path]]:
    """Write `summary.json`, `report.txt`, `report.html` and the folder `plots` into the folder of a study.

    Args:
        study: study.
        folder: folder of the study.
        open_tests: whether to open the test lists before all runs are finished; see `summary`.
        progress: whether to show a progress bar.

    Returns:
        The text of the report, and the paths of the files.

    Raises:
        ValueError: the folder is not the folder of a study, a record is damaged, or the report would replace a file
            that this package did not write.
    """
    home = Path(folder)
    _check_replaceable_report(home)
    summary = summarise(study, home, open_tests, progress)
    tables, remarks = study_tables(summary), study_remarks(summary)
    text = "\n\n".join(
        [*(f"{title}\n{format_text(rows)}" for title, rows in tables.items()), "\n".join(remarks)]
    ).rstrip()
    drawn = draw_study(summary, home / PLOTS)
    pictures = {
        caption: base64.b64encode((home / PLOTS / file).read_bytes()).decode("ascii") for file, caption in drawn.items()
    }
    runs = summary["runs"]
    facts = [f"{runs['finished']} of {runs['planned']} runs", f"{runs['hours']:g} hours", *runs["devices"]]
    page = render_page(study.name, "study", facts, tables, remarks, pictures)
    contents = {SUMMARY_FILE: json.dumps(summary, indent=1), TEXT_FILE: text, HTML_FILE: page}
    for name, content in contents.items():
        write_atomically(home / name, lambda path, content=content: path.write_text(content + "\n", encoding="utf-8"))
    return text, [home / name for name in contents]


def _check_replaceable_report(home: Path) -> None:
    """Raise a ValueError if writing the report would replace a file that this package did not write."""
    summary = home / SUMMARY_FILE
    check_replaceable(summary, _is_summary, "the summary of a study")
    check_replaceable(home / HTML_FILE, is_report_file, "the report of a study")
    check_replaceable(home / TEXT_FILE, lambda path: _is_summary(summary), "the report of a study")
    for name in PLOT_FILES:
        check_replaceable(home / PLOTS / name, is_plot_file, "a plot of a study")


def _is_summary(path: Path) -> bool:
    return {"measure", "runs", "curves"} <= read_small_json(path).keys()


def study_tables(summary: Mapping[str, Any]) -> dict[str, list[TextRow]]:
    """Return the tables of a study by title. The first row of each table contains the names of the columns."""
    tables = {
        "Tuning on the development lists": _tuning_table(summary),
        "Errors on the development lists": _curve_table(summary),
        "Errors on the test lists": _error_table(summary),
    }
    last = max((row["budget"] for row in summary.get("comparisons", [])), default=0)
    for measure in sorted(MEASURES, key=lambda one: one != summary["measure"]):
        name = MEASURE_NAMES[measure].split(" ")[0]
        tables[f"Comparisons by {name} after {last} epochs"] = _comparison_table(summary, measure, last)
    tables["Comparisons after fewer epochs, mean of the lists"] = _budget_table(summary, last)
    return {title: rows for title, rows in tables.items() if len(rows) > 1}


def study_remarks(summary: Mapping[str, Any]) -> list[str]:
    """Return sentences about the state of a study."""
    runs, opened = summary["runs"], summary["opened"]
    remarks = [
        f"{runs['finished']} of {runs['planned']} runs are finished, in {runs['hours']:g} hours "
        f"({runs['cpu_hours']:g} hours of processor time)."
    ]
    if runs["diverged"]:
        remarks.append(f"{len(runs['diverged'])} runs diverged and count as the worst: {', '.join(runs['diverged'])}.")
    if opened is None:
        remarks.append("The test lists are closed until all runs are finished; --open opens them now.")
    else:
        remarks.append(
            f"The test lists were opened on {opened['date']} with {opened['finished']} of {opened['planned']} runs "
            "finished."
        )
        if opened["changed_since"]:
            remarks.append("The file of the study has been changed since then.")
    if summary.get("comparisons"):
        remarks.append(
            "A relative difference below 0 means that the first head has lower errors. Intervals and p-values are "
            "computed by resampling seeds and speakers. P is the probability that a run of the first head is better "
            "than the run of the second head with the same seed. Holm's p-values are corrected within a family, list "
            "and measure."
        )
    return remarks


def _percent_of(value: float) -> str:
    return f"{100 * value:.2f}"


def _error_text(measure: str, value: float) -> str:
    return _percent_of(value) if measure == "eer" else f"{value:.3f}"


def _tuning_table(summary: Mapping[str, Any]) -> list[TextRow]:
    name = MEASURE_NAMES[summary["measure"]]
    rows = [["head", "settings", f"best {name}", f"median {name}", "values"]]
    for head, found in summary["tuning"].items():
        settings = sorted(found["settings"], key=lambda one: one["score"])
        values = ", ".join(f"{key} {value:g}" for key, value in settings[0]["values"].items())
        middle = settings[len(settings) // 2]["score"]
        scores = [_error_text(summary["measure"], score) for score in (settings[0]["score"], middle)]
        rows.append([head, str(len(settings)), *scores, values])
    return rows


def _curve_table(summary: Mapping[str, Any]) -> list[TextRow]:
    epochs = sorted({int(epoch) for curve in summary["curves"].values() for epoch in curve})
    rows = [["head", "measure", "seeds", *(f"epoch {epoch}" for epoch in epochs)]]
    for measure in MEASURES:
        for head, curve in summary["curves"].items():
            cells = []
            for epoch in epochs:
                one = curve.get(str(epoch))
                spread = None if one is None else one.get(f"{measure}_sd")
                more = "" if spread is None else f" ({_error_text(measure, spread)})"
                cells.append("" if one is None else f"{_error_text(measure, one[measure])}{more}")
            rows.append([head, MEASURE_NAMES[measure], str(max(one["seeds"] for one in curve.values())), *cells])
    return rows


def _error_table(summary: Mapping[str, Any]) -> list[TextRow]:
    budgets = summary.get("errors", {})
    names = sorted({name for heads in budgets.values() for found in heads.values() for name in found["lists"]})
    rows = [["head", "epochs", "seeds", *(f"{name} {label}" for name in names for label in ("minCllr", "EER (%)"))]]
    for budget, heads in budgets.items():
        for head, found in heads.items():
            cells = [
                _error_text(measure, found["lists"][name][measure]) if name in found["lists"] else ""
                for name in names
                for measure in MEASURES
            ]
            rows.append([head, budget, str(found["seeds"]), *cells])
    return rows


def _comparison_table(summary: Mapping[str, Any], measure: str, budget: int) -> list[TextRow]:
    rows = [["comparison", "list", "errors", "difference (%)", "P", "p", "Holm's p", "seeds"]]
    for row in summary.get("comparisons", []):
        if row["measure"] == measure and row["budget"] == budget:
            errors = row["errors"]
            shown = "" if errors is None else " / ".join(_error_text(measure, error) for error in errors)
            rows.append([f"{row['first']} - {row['second']}", row["list"], shown, *_difference_cells(row)])
    return rows


def _budget_table(summary: Mapping[str, Any], last: int) -> list[TextRow]:
    rows = [["comparison", "measure", "epochs", "difference (%)", "P", "p", "Holm's p", "seeds"]]
    for row in summary.get("comparisons", []):
        if row["list"] == MEAN and row["budget"] < last:
            pair = f"{row['first']} - {row['second']}"
            rows.append([pair, MEASURE_NAMES[row["measure"]], str(row["budget"]), *_difference_cells(row)])
    return rows


def _difference_cells(row: Mapping[str, Any]) -> TextRow:
    low, high = (f"{100 * limit:+.1f}" for limit in row["interval"])
    return [
        f"{100 * row['relative']:+.1f} [{low}, {high}]",
        f"{row['probability']:.2f}",
        f"{row['p']:.3f}",
        f"{row['holm']:.3f}",
        str(row["seeds"]),
    ]
