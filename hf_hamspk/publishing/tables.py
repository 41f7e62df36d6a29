"""Tables and notes of a card, made from evaluation and calibration. Missing numbers appear as "not measured"."""

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "not measured"
# Cell of a measure that raw scores do not have, because it needs log-likelihood ratios.
NOT_DEFINED = "-"
CardRow = list[str]
Lists = Mapping[str, Mapping[str, Any]]


def cell(value: Any) -> str:
    """Return a value as text for one cell of a Markdown table."""
    return MISSING if value is None else " ".join(str(value).replace("|", "\\|").split())


def percent(value: float | None) -> str:
    """Format a fraction in per cent, with two decimals."""
    return MISSING if value is None else f"{100 * value:.2f}"


def decimal(value: float | None) -> str:
    """Format a number with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def with_interval(value: float | None, interval: Sequence[float] | None, form: Any = percent) -> str:
    """Format a number with its confidence interval, if it has one."""
    if value is None or interval is None:
        return form(value)
    return f"{form(value)} [{form(interval[0])}, {form(interval[1])}]"


def measured(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the mapping `values[key]`; an empty one if the key is missing or its value is not a mapping."""
    found = values.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def evaluated_lists(evaluation: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the evaluated trial lists by name; empty without an evaluation."""
    return {} if evaluation is None else measured(evaluation, "lists")


def priors(lists: Lists) -> list[str]:
    """Return the target priors at which a minDCF was measured on any list, in ascending order."""
    return sorted({prior for part in _measured_parts(lists) for prior in measured(part, "min_dcf")}, key=float)


def result_head(lists: Lists) -> CardRow:
    """Return the column names of the table of results."""
    columns = ["trial list", "scores", "trials", "targets", "speakers", "EER %"]
    columns += [f"minDCF({prior})" for prior in priors(lists)] + [f"actDCF({prior})" for prior in _actual_priors(lists)]
    return columns + (["Cllr"] if _any(lists, "cllr") else []) + (["minCllr"] if _any(lists, "min_cllr") else [])


def result_rows(lists: Lists, names: Mapping[str, str]) -> list[CardRow]:
    """Return the table of results: for each list, a row of raw scores and, if measured, one of log-likelihood ratios.

    Args:
        lists: evaluated trial lists.
        names: maps the name of a list to its title in the table.
    """
    return [
        [cell(names.get(name, name)), describe_scores(numbers), *_number_cells(numbers, lists)]
        for name, values in lists.items()
        for numbers in (values, measured(values, "decisions"))
        if numbers.keys() - {"note"}
    ]


def group_head(lists: Lists) -> CardRow:
    """Return the column names of the table of groups."""
    head = result_head(lists)
    return [head[0], "group", *head[2:]]


def card_group_rows(lists: Lists) -> list[CardRow]:
    """Return a table row of error rates for each group of speakers in each trial list.

    The error rates are measured on raw scores, or on log-likelihood ratios if only these were measured.
    """
    rows = []
    for name, values in lists.items():
        groups = measured(values, "groups")
        groups = groups if groups else measured(measured(values, "decisions"), "groups")
        rows += [[cell(name), cell(label), *_number_cells(group, lists)] for label, group in groups.items()]
    return rows


def sweep_rows(evaluation: Mapping[str, Any] | None) -> list[CardRow]:
    """Return a table row for each recording condition that was measured, such as a noise level."""
    sweeps = {} if evaluation is None else measured(evaluation, "sweeps")
    return [
        [
            *(cell(name), cell(f"{kind}: {point.get('condition')}"), cell(point.get("trials"))),
            with_interval(point.get("eer"), point.get("eer_interval")),
        ]
        for name, values in sweeps.items()
        for kind, points in measured(values, "conditions").items()
        for point in points
    ]


def _number_cells(values: Mapping[str, Any], lists: Lists) -> CardRow:
    smallest, actual = measured(values, "min_dcf"), measured(values, "act_dcf")
    of_smallest, of_actual = measured(values, "min_dcf_interval"), measured(values, "act_dcf_interval")
    row = [cell(values.get(name)) for name in ("trials", "targets", "speakers")]
    row.append(with_interval(values.get("eer"), values.get("eer_interval")))
    row += [with_interval(smallest.get(prior), of_smallest.get(prior), decimal) for prior in priors(lists)]
    costs = [(actual.get(prior), of_actual.get(prior)) for prior in _actual_priors(lists)]
    costs += [(values.get("cllr"), values.get("cllr_interval"))] if _any(lists, "cllr") else []
    row += [NOT_DEFINED if value is None else with_interval(value, interval, decimal) for value, interval in costs]
    return row + ([decimal(values.get("min_cllr"))] if _any(lists, "min_cllr") else [])


def _measured_parts(lists: Lists) -> list[Mapping[str, Any]]:
    """Return two mappings for each list: the measurements of its raw scores and of its decisions."""
    return [part for values in lists.values() for part in (values, measured(values, "decisions"))]


def _actual_priors(lists: Lists) -> list[str]:
    return sorted({prior for part in _measured_parts(lists) for prior in measured(part, "act_dcf")}, key=float)


def _any(lists: Lists, key: str) -> bool:
    return any(part.get(key) is not None for part in _measured_parts(lists))


def describe_scores(values: Mapping[str, Any]) -> str:
    """Return the kind of the scores with their normalisation, such as `cosine` or `log-likelihood ratio, AS-norm`."""
    normalisation, scores = values.get("normalisation"), values.get("scores")
    kind = "" if normalisation in (None, "none") else f"{str(normalisation).upper()}-norm"
    return cell(", ".join(part for part in (str(scores) if scores is not None else "", kind) if part)) or "not stated"


def point_rows(verification: Mapping[str, Any] | None) -> list[CardRow]:
    """Return a table row for each operating point: name, prior, costs, log-likelihood ratio threshold, error rates."""
    points = [] if verification is None else verification.get("operating_points", [])
    return [
        [
            cell(point.get("name")),
            cell(point.get("prior")),
            f"{point.get('cost_miss', 1.0):g} : {point.get('cost_false_alarm', 1.0):g}",
            decimal(point.get("threshold")),
            percent(point.get("miss_rate")),
            percent(point.get("false_alarm_rate")),
        ]
        for point in points
    ]


def point_flaws(verification: Mapping[str, Any] | None) -> list[str]:
    """Return a warning for each operating point that missed all target trials or accepted all impostor trials."""
    points = [] if verification is None else verification.get("operating_points", [])
    flaws = []
    for point in points:
        if point.get("miss_rate") == 1:
            flaws.append(f"**Do not use `{cell(point.get('name'))}`:** it missed all target trials.")
        elif point.get("false_alarm_rate") == 1:
            flaws.append(f"**Do not use `{cell(point.get('name'))}`:** it accepted all impostor trials.")
    return flaws


def point_rows_of_lists(lists: Lists) -> list[CardRow]:
    """Return a table row with error rates for each combination of trial list and operating point."""
    rows = []
    for name, values in lists.items():
        for point, rates in measured(measured(values, "decisions"), "operating_points").items():
            miss = with_interval(rates.get("miss_rate"), rates.get("miss_interval"))
            alarm = with_interval(rates.get("false_alarm_rate"), rates.get("false_alarm_interval"))
            rows.append([cell(name), cell(point), miss, alarm])
    return rows


def result_notes(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Return the remarks below the table of results, each of one or two sentences."""
    lists = evaluated_lists(evaluation)
    with_intervals = [values for values in lists.values() if values.get("eer_interval") is not None]
    notes = []
    if with_intervals:
        confidence, replicates = with_intervals[0].get("confidence"), with_intervals[0].get("replicates")
        share = "confidence" if confidence is None else f"{100 * confidence:g} % confidence"
        how = "" if replicates is None else f" from {replicates} resamplings of the speakers"
        notes.append(f"In brackets: {share} intervals{how}.")
    notes += [note for name, values in lists.items() for note in _list_notes(cell(name), values)]
    return notes + _origin_notes(lists)


def _list_notes(name: str, values: Mapping[str, Any]) -> list[str]:
    notes, left_out, decisions = [], measured(values, "groups_left_out"), measured(values, "decisions")
    if values.get("interval_note") is not None:
        notes.append(f"{name}: no intervals, because {cell(values['interval_note'])}.")
    if values.get("skipped"):
        notes.append(f"{name}: {values['skipped']} trials were left out, because a file could not be used.")
    if decisions.get("without_decision"):
        share = percent(decisions.get("share_without_decision"))
        notes.append(
            f"{name}: {decisions['without_decision']} trials ({share} %) have no decision, because a recording has too "
            "little speech. The row of raw scores includes these trials, but the row of log-likelihood ratios does not."
        )
    if decisions.get("note") is not None:
        notes.append(f"{name}: the decisions are left out, because {cell(decisions['note'])}.")
    if left_out:
        names = cell(", ".join(left_out))
        notes.append(f"{name}: groups without target trials or without impostor trials are left out: {names}.")
    return notes


def _origin_notes(lists: Lists) -> list[str]:
    """Return sentences that say with which software and protocol each trial list was measured.

    Lists with the same software and protocol share a sentence.
    """
    by_origin: dict[str, list[str]] = {}
    for name, values in lists.items():
        versions = measured(values, "versions")
        made = [f"{package} {version}" for package, version in versions.items() if version is not None]
        made += [f"{key} {values[key]}" for key in ("commit", "protocol", "backend") if values.get(key) is not None]
        if made:
            by_origin.setdefault(cell(", ".join(made)), []).append(name)
    several = len(by_origin) > 1
    return [
        f"{', '.join(map(cell, names))}: measured with {made}." if several else f"Measured with {made}."
        for made, names in by_origin.items()
    ]
