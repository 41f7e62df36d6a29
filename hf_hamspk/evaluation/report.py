"""Format the record of an evaluation as text tables, and as one HTML file that contains all plots.

Both formats read only the `EvaluationRecord`, so they agree with `evaluation.json`. The HTML file needs no network, no
script and no other file.
"""

import base64
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..folders.recognising import GENERATOR
from ..folders.writing import write_atomically
from .intervals import FEWEST_SPEAKERS
from .results import EVALUATION_FILE, PLOT_FOLDER, REPORT_FILE, EvaluationRecord, check_record_folder

TextRow = list[str]
# Columns that are left-aligned.
_TEXT_COLUMNS = {
    *("setting", "trial list", "scores", "group", "operating point", "number", "file", "reason", "compared with"),
    *("condition", "note", "head", "comparison", "list", "measure", "values"),
}
# Largest numbers of unusable files that are named on the screen and in the HTML file. The record names all of them.
SHOWN_FILES, MOST_FILES = 100, 200


def write_measurements(
    record: EvaluationRecord, folder: str | os.PathLike[str], draw: Callable[[], Mapping[str, str]]
) -> tuple[list[Path], list[str]]:
    """Write the record, the plots and the report of an evaluation to a folder.

    Earlier measurements in the folder are kept if they were made on other trial lists with the same weights.

    Args:
        record: record to write; the kept earlier measurements are added to `record`.
        folder: folder for the files; it is created if missing.
        draw: function that draws the plots into the subfolder `plots` and returns a dictionary that maps each file name
            to its caption.

    Returns:
        The paths of the files, and a sentence about each earlier measurement that was replaced because the weights or
        the lists have changed.

    Raises:
        ValueError: the folder contains an `evaluation.json`, a report or a plot that this package did not write.
    """
    home = Path(folder)
    check_record_folder(home)
    remarks = record.write(home)
    drawn = draw()
    record.plots = record.plots | dict(drawn)
    record.write(home)
    files = [home / EVALUATION_FILE, write_html(record, home), *(home / PLOT_FOLDER / file for file in drawn)]
    return files, remarks


def result_table(record: EvaluationRecord) -> list[TextRow]:
    """Return the table of error rates as a header row and one or two rows for each trial list.

    The first row of a list is about its raw scores. The second row is about its log-likelihood ratios; it is left out
    if decisions were not measured.
    """
    priors, decides = _priors_of(record), _decides(record)
    head = ["trial list", "scores", "trials", *(["no decision"] if decides else []), "skipped", "speakers"]
    head += ["EER %", "threshold", *(f"minDCF({prior})" for prior in priors)]
    head += [*(f"actDCF({prior})" for prior in priors), "Cllr"] if decides else []
    rows = [[*head, "minCllr"]]
    for name, values in record.lists.items():
        for numbers in (values, values.get("decisions")):
            if numbers and "eer" in numbers:
                row = [name, scores_name(numbers), _count(numbers.get("trials"))]
                row += [_without(numbers)] if decides else []
                row += [_count(values.get("skipped")), _count(numbers.get("speakers"))]
                row += [
                    _percent(numbers["eer"], numbers.get("eer_interval")),
                    _decimal(numbers.get("eer_threshold"), 4),
                ]
                row += _cost_cells(numbers, "min_dcf", priors)
                if decides:
                    row += _cost_cells(numbers, "act_dcf", priors)
                    row.append(_decimal(numbers.get("cllr"), interval=numbers.get("cllr_interval")))
                rows.append([*row, _decimal(numbers.get("min_cllr"))])
    return rows


def group_table(record: EvaluationRecord) -> list[TextRow]:
    """Return the table of groups as a header row and a row for each group of each trial list.

    The error rates are computed from the raw scores. The Cllr is computed from the log-likelihood ratios; its column is
    left out if decisions were not measured.
    """
    priors, decides = _priors_of(record), _decides(record)
    head = ["trial list", "group", "trials", "targets", "speakers", "EER %", *(f"minDCF({prior})" for prior in priors)]
    rows = [[*head, *(["Cllr"] if decides else [])]]
    for name, values in record.lists.items():
        decisions = (values.get("decisions") or {}).get("groups") or {}
        for label, group in (values.get("groups") or decisions).items():
            row = [name, label, *(_count(group.get(key)) for key in ("trials", "targets", "speakers"))]
            row += [_percent(group.get("eer"), group.get("eer_interval")), *_cost_cells(group, "min_dcf", priors)]
            decided = decisions.get(label, {})
            rows.append(row + ([_decimal(decided.get("cllr"), 3, decided.get("cllr_interval"))] if decides else []))
    return rows


def operating_point_table(record: EvaluationRecord) -> list[TextRow]:
    """Return the table of decisions as a header row and a row for each operating point on each trial list.

    Lists whose decisions were not measured have no rows.
    """
    head = ["trial list", "operating point", "prior", "costs", "threshold"]
    rows = [[*head, "actDCF", "minDCF", "misses %", "nominal", "false alarms %", "nominal"]]
    for name, values in record.lists.items():
        points = (values.get("decisions") or {}).get("operating_points") or {}
        for point, rates in points.items():
            costs = f"{rates.get('cost_miss', 1.0):g} : {rates.get('cost_false_alarm', 1.0):g}"
            row = [name, point, f"{rates.get('prior', math.nan):g}", costs]
            row += [_decimal(rates.get(key)) for key in ("threshold", "act_dcf", "min_dcf")]
            for kind in ("miss", "false_alarm"):
                row.append(_percent(rates.get(f"{kind}_rate"), rates.get(f"{kind}_interval")))
                row.append(_percent(rates.get(f"nominal_{kind}_rate")))
            rows.append(row)
    return rows


def comparison_table(record: EvaluationRecord) -> list[TextRow]:
    """Return the comparison with another model as a header row and a row for each compared number of each list.

    The header names the two models. If the lists were compared with different models, a last column names them.
    """
    rows: list[TextRow] = []
    others: list[str] = []
    for name, values in record.lists.items():
        for numbers in (values, values.get("decisions") or {}):
            compared = numbers.get("compared") or {}
            for number, found in (compared.get("numbers") or {}).items():
                form = _percent if number == "eer" else _decimal_of
                row = [name, scores_name(numbers), {"eer": "EER %"}.get(number, number)]
                row += [form(found["this"]), form(found["other"]), form(found["difference"], found["interval"])]
                others.append(_model_label(compared.get("model") or {}, record.model))
                rows.append([*row, f"{found['p_value']:.3f}", others[-1]])
    own = _model_label(record.model, {"name": others[0].partition(" [")[0]} if others else {})
    head = ["trial list", "scores", "number", own]
    if len(set(others)) > 1:
        return [[*head, "other model", "difference", "p", "compared with"], *rows]
    return [[*head, *others[:1], "difference", "p"], *(row[:-1] for row in rows)]


def _model_label(model: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the name of a model, followed by the start of its fingerprint if the other model has the same name."""
    name = str(model.get("name", "?"))
    return name if name != other.get("name") else f"{name} [{str(model.get('fingerprint', '?'))[:8]}]"


def sweep_table(record: EvaluationRecord) -> list[TextRow]:
    """Return the table of sweeps as a header row and a row for each recording condition of each sweep."""
    rows = [["trial list", "condition", "trials", "targets", "EER %"]]
    for name, values in record.sweeps.items():
        for kind, points in values["conditions"].items():
            for point in points:
                eer = _percent(point.get("eer"), point.get("eer_interval"))
                rows.append([name, f"{kind}: {point['condition']}", str(point["trials"]), str(point["targets"]), eer])
    return rows


def result_remarks(record: EvaluationRecord) -> list[str]:
    """Return the remarks that explain the tables, each in one or two sentences."""
    found = []
    every = list(record.lists.values())
    measured = [values for values in every if values.get("replicates") is not None]
    if measured:
        share, replicates = f"{100 * measured[0]['confidence']:g} %", measured[0]["replicates"]
        found.append(f"Values in brackets are {share} intervals from {replicates} resamplings of the speakers.")
        if any(group.get("replicates") is None for values in measured for group in values.get("groups", {}).values()):
            found.append(
                f"Groups with fewer than {FEWEST_SPEAKERS} speakers have no intervals, because so few speakers cannot "
                "be resampled reliably."
            )
    for name, values in record.lists.items():
        found += _list_remarks(name, values)
    if _decides(record):
        found.append("Nominal rates were measured on the trials with which the model was calibrated.")
    if any(values.get("groups") for values in every):
        found.append(
            "A group contains the trials whose two recordings both belong to it. Trials between two groups are in no "
            "group."
        )
    return found


def _list_remarks(name: str, values: Mapping[str, Any]) -> list[str]:
    found, decisions = [], values.get("decisions") or {}
    if values.get("interval_note") is not None:
        found.append(f"{name}: no intervals: {values['interval_note']}")
    if decisions.get("without_decision"):
        found.append(
            f"{name}: {decisions['without_decision']} trials get no decision, because a recording has too little "
            "speech. The row of log-likelihood ratios covers only the other trials."
        )
    for point, rates in (decisions.get("operating_points") or {}).items():
        if rates.get("miss_rate") == 1:
            found.append(f"{name}: the operating point {point} accepts nobody: it rejects all target trials.")
        elif rates.get("false_alarm_rate") == 1:
            found.append(f"{name}: the operating point {point} accepts everybody: it rejects no impostor trial.")
    if decisions.get("note") is not None:
        found.append(f"{name}: decisions were not measured: {decisions['note']}.")
    if values.get("groups_left_out"):
        labels = ", ".join(values["groups_left_out"])
        found.append(f"{name}: groups without both target and impostor trials are left out: {labels}.")
    return found


def unusable_files(record: EvaluationRecord) -> dict[str, str]:
    """Return a dictionary that maps each unusable file of all trial lists and sweeps to the reason."""
    entries = [*record.lists.values(), *record.sweeps.values()]
    return {file: why for values in entries for file, why in (values.get("unusable_files") or {}).items()}


def format_text(rows: Sequence[TextRow]) -> str:
    """Format a table as lines of text with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = [name in _TEXT_COLUMNS for name in rows[0]]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if flush else cell.rjust(width)
            for cell, width, flush in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    )


def format_report(record: EvaluationRecord) -> str:
    """Format a record as text that contains the non-empty tables, the remarks, and the first unusable files."""
    tables = (result_table, operating_point_table, group_table, comparison_table)
    parts = [format_text(rows) for rows in (table(record) for table in tables) if len(rows) > 1]
    found = result_remarks(record)
    if found:
        parts.append("\n".join(found))
    bad = unusable_files(record)
    if bad:
        lines = [f"{len(bad)} files could not be used; their trials were skipped:"]
        lines += [f"  {file}: {reason}" for file, reason in list(bad.items())[:SHOWN_FILES]]
        lines += [f"  and {len(bad) - SHOWN_FILES} more"] if len(bad) > SHOWN_FILES else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write_html(record: EvaluationRecord, folder: str | os.PathLike[str]) -> Path:
    """Write the tables and plots of a record to the file `report.html` in a folder.

    Args:
        record: record of the evaluation.
        folder: folder for the report, with the plots in its subfolder `plots`; missing plots are left out of the
            report.

    Returns:
        The path of `report.html`.
    """
    home = Path(folder)
    bad = list(unusable_files(record).items())
    sections = {
        "Error rates": result_table(record),
        "Decisions": operating_point_table(record),
        "Groups": group_table(record),
        "Comparison of two models": comparison_table(record),
        "Recording conditions": sweep_table(record),
        "Files that could not be used": [["file", "reason"], *map(list, bad[:MOST_FILES])],
    }
    pictures = {
        caption: base64.b64encode((home / PLOT_FOLDER / file).read_bytes()).decode("ascii")
        for file, caption in record.plots.items()
        if (home / PLOT_FOLDER / file).is_file()
    }
    page = render_page(
        record.model.get("name", "unnamed"),
        "evaluation",
        _model_facts(record),
        {title: rows for title, rows in sections.items() if len(rows) > 1},
        result_remarks(record),
        pictures,
        max(0, len(bad) - MOST_FILES),
    )
    home.mkdir(parents=True, exist_ok=True)
    write_atomically(home / REPORT_FILE, lambda path: path.write_text(page, encoding="utf-8"))
    return home / REPORT_FILE


def render_page(
    title: str,
    kind: str,
    facts: Sequence[str],
    sections: Mapping[str, Sequence[TextRow]],
    remarks: Sequence[str],
    pictures: Mapping[str, str],
    unnamed_files: int = 0,
) -> str:
    """Return an HTML page with tables and plots, which needs no other file.

    Args:
        title: heading of the page.
        kind: kind of the report, for the title of the window.
        facts: short texts below the heading.
        sections: maps the heading of each table to its rows; the first row has the names of the columns.
        remarks: sentences after the tables.
        pictures: maps the caption of each plot to its PNG file in base64.
        unnamed_files: number of unusable files that are left out of the last table.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        kind=kind,
        generator=GENERATOR,
        facts=facts,
        sections=sections,
        text_columns=_TEXT_COLUMNS,
        unnamed_files=unnamed_files,
        remarks=remarks,
        pictures=pictures,
    )


def _model_facts(record: EvaluationRecord) -> list[str]:
    model, facts = record.model, []
    if "parameters" in model:
        facts.append(f"{model['parameters']:,} parameters")
    if "similarity" in model:
        facts.append(f"compared by {model['similarity']}")
    facts.append(f"fingerprint {str(record.fingerprint)[:12]}")
    measured = [*record.lists.values(), *record.sweeps.values()]
    protocols = sorted({values["protocol"] for values in record.lists.values() if values.get("protocol")})
    facts += [f"protocol {protocol}" for protocol in protocols]
    facts += ["mean of the cohort subtracted"] if any(v.get("mean_subtracted") for v in measured) else []
    facts += [f"backend {backend}" for backend in sorted({v["backend"] for v in measured if v.get("backend")})]
    newest = measured[-1] if measured else {}
    facts += [f"{name} {number}" for name, number in (newest.get("versions") or {}).items() if number is not None]
    return facts + ([f"commit {newest['commit']}"] if newest.get("commit") is not None else [])


def scores_name(values: Mapping[str, Any]) -> str:
    """Return the name of the kind of scores, such as "cosine" or "log-likelihood ratio, AS-norm"."""
    normalisation = values.get("normalisation") or "none"
    scores = str(values.get("scores", "?"))
    return scores if normalisation == "none" else f"{scores}, {normalisation.upper()}-norm"


def _priors_of(record: EvaluationRecord) -> list[str]:
    """Return all priors for which a trial list has a detection cost, in ascending order."""
    return sorted({prior for values in record.lists.values() for prior in values.get("min_dcf") or {}}, key=float)


def _decides(record: EvaluationRecord) -> bool:
    return any(values.get("decisions") for values in record.lists.values())


def _without(values: Mapping[str, Any]) -> str:
    """Format the number and the share of the trials without a decision; empty if they are unknown."""
    count, share = values.get("without_decision"), values.get("share_without_decision")
    return "" if count is None or share is None else f"{count} ({100 * share:.1f} %)"


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)


def _cost_cells(values: Mapping[str, Any], name: str, priors: Sequence[str]) -> TextRow:
    costs, intervals = values.get(name) or {}, values.get(f"{name}_interval") or {}
    return [_decimal(costs.get(prior), 3, intervals.get(prior)) for prior in priors]


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    return _with_limits(value, interval, lambda x: f"{100 * x:.2f}")


def _decimal(value: float | None, digits: int = 3, interval: Sequence[float] | None = None) -> str:
    return _with_limits(value, interval, lambda x: f"{x:.{digits}f}")


def _decimal_of(value: float | None, interval: Sequence[float] | None = None) -> str:
    return _decimal(value, 3, interval)


def _with_limits(value: float | None, interval: Sequence[float] | None, form: Callable[[float], str]) -> str:
    if value is None:
        return ""
    return form(value) if interval is None else f"{form(value)} [{form(interval[0])}, {form(interval[1])}]"
