"""An evaluation for people: tables as text, and one HTML file that holds everything, pictures included.

Both are made of the record of `results` alone, so that they say what `evaluation.json` says. The HTML file needs no
network, no script and no other file.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from .intervals import FEWEST_SPEAKERS

Row = list[str]
# Of which a column is set flush left.
_TEXT_COLUMNS = {"setting", "trial list", "scores", "group", "operating point", "number", "file", "reason"}
# Unusable files that are named: on the screen, and in the HTML file; the record has them all.
FILES_SHOWN, MOST_FILES = 5, 200


def result_table(record: Mapping[str, Any]) -> list[Row]:
    """Head and a row for each trial list; of a calibrated model a second one for its raw scores."""
    lists = record["lists"]
    priors = list(next(iter(lists.values()))["min_dcf"])
    calibrated = any(values["cllr"] is not None for values in lists.values())
    head = ["trial list", "scores", "trials", "skipped", "speakers", "EER %", "threshold"]
    head += [f"minDCF({prior})" for prior in priors]
    head += [f"actDCF({prior})" for prior in priors] if calibrated else []
    head += ["Cllr", "minCllr"] if calibrated else ["minCllr"]
    rows = [head]
    for name, values in lists.items():
        if values.get("raw"):
            rows.append(_result_row(name, values["raw"] | {"skipped": values["skipped"]}, priors, calibrated))
        rows.append(_result_row(name, values, priors, calibrated))
    return rows


def _result_row(name: str, values: Mapping[str, Any], priors: Sequence[str], calibrated: bool) -> Row:
    row = [name, _scores(values), str(values["trials"]), str(values["skipped"]), _count(values.get("speakers"))]
    row += [_percent(values["eer"], values.get("eer_interval")), f"{values['eer_threshold']:.4f}"]
    row += _costs(values, "min_dcf", priors)
    if calibrated:
        row += [*_costs(values, "act_dcf", priors), _decimal(values.get("cllr"), values.get("cllr_interval"))]
    return [*row, _decimal(values["min_cllr"])]


def group_table(record: Mapping[str, Any]) -> list[Row]:
    """Head and a row for each group of each list; no row, no group."""
    lists = record["lists"]
    priors = list(next(iter(lists.values()))["min_dcf"])
    calibrated = any(values["cllr"] is not None for values in lists.values())
    rows = [
        ["trial list", "group", "trials", "targets", "speakers", "EER %", *(f"minDCF({prior})" for prior in priors)]
    ]
    rows[0] += ["Cllr"] if calibrated else []
    for name, values in lists.items():
        for label, group in values["groups"].items():
            row = [name, label, str(group["trials"]), str(group["targets"]), _count(group["speakers"])]
            row += [_percent(group["eer"], group["eer_interval"]), *_costs(group, "min_dcf", priors)]
            rows.append(row + ([_decimal(group["cllr"], group["cllr_interval"])] if calibrated else []))
    return rows


def point_table(record: Mapping[str, Any]) -> list[Row]:
    """Head and a row for each operating point of a calibrated model on each list."""
    head = ["trial list", "operating point", "prior", "costs", "threshold"]
    rows = [[*head, "actDCF", "minDCF", "misses %", "nominal", "false alarms %", "nominal"]]
    for name, values in record["lists"].items():
        for point, rates in (values["operating_points"] or {}).items():
            costs = f"{rates['cost_miss']:g} : {rates['cost_false_alarm']:g}"
            row = [name, point, f"{rates['prior']:g}", costs, f"{rates['threshold']:.3f}"]
            row += [_decimal(rates["act_dcf"]), _decimal(rates["min_dcf"])]
            row += [_percent(rates["miss_rate"], rates["miss_interval"]), _percent(rates["nominal_miss_rate"])]
            row += [
                _percent(rates["false_alarm_rate"], rates["false_alarm_interval"]),
                _percent(rates["nominal_false_alarm_rate"]),
            ]
            rows.append(row)
    return rows


def comparison_table(record: Mapping[str, Any]) -> list[Row]:
    """Head and a row for each number in which two models were compared on each list."""
    rows = [["trial list", "number", "this model", "other model", "difference", "p"]]
    for name, values in record["lists"].items():
        for number, compared in (values.get("compared") or {}).items():
            form = _percent if number == "eer" else _decimal
            label = {"eer": "EER %"}.get(number, number)
            row = [name, label, form(compared["this"]), form(compared["other"])]
            rows.append([*row, form(compared["difference"], compared["interval"]), f"{compared['p_value']:.3f}"])
    return rows


def notes(record: Mapping[str, Any]) -> list[str]:
    """What must be known to read the tables, a sentence or two each."""
    found = []
    measured = [values for values in record["lists"].values() if values["replicates"] is not None]
    if measured:
        share, replicates = f"{100 * measured[0]['confidence']:g} %", measured[0]["replicates"]
        found.append(f"In brackets: {share} intervals from {replicates} resamplings of the speakers.")
        if any(group["replicates"] is None for values in measured for group in values["groups"].values()):
            found.append(
                f"Groups of fewer than {FEWEST_SPEAKERS} speakers have no interval: they are too few to resample."
            )
    for name, values in record["lists"].items():
        if values["interval_note"] is not None:
            found.append(f"{name}: no intervals: {values['interval_note']}")
        if values["groups_left_out"]:
            labels = ", ".join(values["groups_left_out"])
            found.append(f"{name}: groups without both target and impostor trials are left out: {labels}.")
    if any(values["cllr"] is not None for values in record["lists"].values()):
        found.append("Nominal are the rates on the trials that the model was calibrated on.")
    if any(values["groups"] for values in record["lists"].values()):
        found.append("Both sides of a trial are of the group; trials between two groups are in none.")
    return found


def unusable_files(record: Mapping[str, Any]) -> dict[str, str]:
    """Files that could not be used in any list, with the reasons."""
    return {file: why for values in record["lists"].values() for file, why in values["unusable_files"].items()}


def format_text(rows: Sequence[Row]) -> str:
    """A table as text, columns aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = [name in _TEXT_COLUMNS for name in rows[0]]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if flush else cell.rjust(width)
            for cell, width, flush in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    )


def format_report(record: Mapping[str, Any]) -> str:
    """Everything as text: the tables that have rows, the notes, and the first unusable files."""
    tables = (result_table(record), point_table(record), group_table(record), comparison_table(record))
    parts = [format_text(rows) for rows in tables if len(rows) > 1]
    found = notes(record)
    if found:
        parts.append("\n".join(found))
    bad = unusable_files(record)
    if bad:
        lines = [f"{len(bad)} files could not be used; their trials were skipped:"]
        lines += [f"  {file}: {reason}" for file, reason in list(bad.items())[:FILES_SHOWN]]
        lines += [f"  and {len(bad) - FILES_SHOWN} more"] if len(bad) > FILES_SHOWN else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def write_html(
    record: Mapping[str, Any], pictures: Mapping[str, str | PathLike[str]], path: str | PathLike[str]
) -> Path:
    """Write the report as one HTML file.

    Args:
        record: of `evaluation_record`.
        pictures: caption to PNG file; they are put into the report, in this order.
        path: of the HTML file; parent folders are made.
    """
    model = record["model"]
    bad = list(unusable_files(record).items())
    sections = [
        ("Error rates", result_table(record)),
        ("Decisions", point_table(record)),
        ("Groups", group_table(record)),
        ("Comparison of two models", comparison_table(record)),
        ("Files that could not be used", [["file", "reason"], *map(list, bad[:MOST_FILES])]),
    ]
    body = [f"<h1>{escape(model['name'])}</h1>", f"<p class=facts>{escape(_facts(record))}</p>"]
    for title, rows in sections:
        if len(rows) > 1:
            body += [f"<h2>{title}</h2>", _html_table(rows)]
    if len(bad) > MOST_FILES:
        body.append(f"<p class=facts>and {len(bad) - MOST_FILES} more</p>")
    body += [
        f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes(record))}</ul>",
        "<h2>Plots</h2><div class=plots>",
    ]
    for caption, file in pictures.items():
        data = base64.b64encode(Path(file).read_bytes()).decode("ascii")
        picture = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        body.append(f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    body += [
        "</div><h2>What the numbers mean</h2>",
        f"<dl>{''.join(f'<dt>{k}</dt><dd>{v}</dd>' for k, v in _GLOSSARY)}</dl>",
    ]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    head = f'<meta charset="utf-8"><title>{escape(model["name"])}: evaluation</title><style>{_STYLE}</style>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
    target.write_text(page, encoding="utf-8")
    return target


def _facts(record: Mapping[str, Any]) -> str:
    model = record["model"]
    facts = [f"{model['parameters']:,} parameters", f"compared by {model['similarity']}"]
    facts += [f"fingerprint {model['fingerprint'][:12]}", f"protocol {record['protocol']}"]
    facts += ["mean of the cohort subtracted"] if record["mean_subtracted"] else []
    facts += [f"{name} {number}" for name, number in record["versions"].items() if number is not None]
    return " · ".join(facts + ([f"commit {record['commit']}"] if record["commit"] is not None else []))


def _html_table(rows: Sequence[Row]) -> str:
    classes = [' class="text"' if name in _TEXT_COLUMNS else "" for name in rows[0]]

    def line(row: Row, tag: str) -> str:
        return (
            "<tr>" + "".join(f"<{tag}{c}>{_html_cell(x)}</{tag}>" for c, x in zip(classes, row, strict=True)) + "</tr>"
        )

    head, *others = rows
    body = "".join(line(row, "td") for row in others)
    return f"<div class=wide><table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table></div>"


def _html_cell(text: str) -> str:
    """The interval in small print below its number, as the tables are wide."""
    number, bracket, interval = text.partition(" [")
    return f"{escape(number)}<br><small>[{escape(interval)}</small>" if bracket else escape(text)


def _scores(values: Mapping[str, Any]) -> str:
    normalisation = values.get("normalisation", "none")
    return values["scores"] if normalisation == "none" else f"{values['scores']}, {normalisation.upper()}-norm"


def _count(value: int | None) -> str:
    return "?" if value is None else str(value)


def _costs(values: Mapping[str, Any], name: str, priors: Sequence[str]) -> Row:
    costs, intervals = values.get(name) or {}, values.get(f"{name}_interval") or {}
    return [_decimal(costs.get(prior), intervals.get(prior)) for prior in priors]


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    return _number(value, interval, lambda x: f"{100 * x:.2f}")


def _decimal(value: float | None, interval: Sequence[float] | None = None) -> str:
    return _number(value, interval, lambda x: f"{x:.3f}")


def _number(value: float | None, interval: Sequence[float] | None, form: Any) -> str:
    if value is None:
        return ""
    return form(value) if interval is None else f"{form(value)} [{form(interval[0])}, {form(interval[1])}]"


_GLOSSARY = (
    ("EER", "Equal error rate: misses and false alarms where both are equally frequent, at each list's own threshold."),
    (
        "minDCF(p)",
        "Cost of the errors where a target has the probability p, with the best threshold for this very list; 1 is the "
        "cost of ignoring the scores.",
    ),
    (
        "actDCF(p)",
        "The same cost with the decisions that the model takes: never below minDCF(p). Above 1, the scores do harm.",
    ),
    (
        "Cllr, minCllr",
        "Cost of the log-likelihood ratios over all applications, in bits, and what perfect calibration would leave of "
        "it; 1 is the cost of no information.",
    ),
    ("threshold", "Score at the EER, or of an operating point: a trial is accepted at or above it."),
    ("misses, false alarms", "Target trials that are refused, impostor trials that are accepted."),
    (
        "intervals",
        "The speakers are drawn anew, with replacement. They say what other speakers recorded alike would give, not "
        "what other recording conditions or another training run would.",
    ),
)
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
.facts, figcaption, li, small { color: GrayText; } .facts, figcaption, li { font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; line-height: 1.3; }
th, td { padding: .3rem .5rem; text-align: right; vertical-align: top; white-space: nowrap; }
td { border-bottom: 1px solid #8884; }
th { border-bottom: 2px solid #888; font-weight: 600; } .text { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1.2rem; }
figure { margin: 0; } img { max-width: 100%; background: white; border: 1px solid #8884; border-radius: 4px; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.2rem; }
"""
