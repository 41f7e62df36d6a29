"""Write the report of a hierarchy as text, HTML and JSON, with its pictures."""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.report import TextRow, format_text, render_page
from ..folders.recognising import check_replaceable, is_plot_file, is_report_file, read_small_json
from ..folders.writing import write_atomically
from .analysis import SHAPE_STATISTICS, Measured
from .drawing import PICTURE_FILES, draw_hierarchy

NUMBERS_FILE, WORDS_FILE, PAGE_FILE, PICTURES = "hierarchy.json", "hierarchy.txt", "hierarchy.html", "plots"
_SHAPE_NAMES = {
    "delta_largest": "2 delta / diameter",
    "delta_mean": "mean delta / mean distance",
    "cophenetic": "cophenetic correlation",
    "distortion": "distortion of the tree",
}


def write_hierarchy_report(
    measured: Measured, folder: str | os.PathLike[str], name: str = "hierarchy"
) -> tuple[str, list[Path]]:
    """Write `hierarchy.json`, `hierarchy.txt`, `hierarchy.html` and the folder `plots`.

    Args:
        measured: result of `measure_hierarchy`.
        folder: folder for the files, made if necessary.
        name: heading of the report.

    Returns:
        The text of the report, and the paths of the files.

    Raises:
        ValueError: the report would replace a file that this package did not write.
    """
    home = Path(folder)
    check_report_folder(home)
    home.mkdir(parents=True, exist_ok=True)
    drawn = draw_hierarchy(measured, home / PICTURES)
    pictures = {
        caption: base64.b64encode((home / PICTURES / file).read_bytes()).decode("ascii")
        for file, caption in drawn.items()
    }
    tables, remarks = hierarchy_tables(measured.record), hierarchy_remarks(measured.record)
    text = "\n\n".join([*(f"{title}\n{format_text(rows)}" for title, rows in tables.items()), "\n".join(remarks)])
    page = render_page(name, "hierarchy", hierarchy_facts(measured.record), tables, remarks, pictures)
    contents = {NUMBERS_FILE: json.dumps(measured.record, indent=1), WORDS_FILE: text, PAGE_FILE: page}
    for file, content in contents.items():
        write_atomically(home / file, lambda path, content=content: path.write_text(content + "\n", encoding="utf-8"))
    return text, [home / file for file in contents]


def check_report_folder(home: Path) -> None:
    """Raise a ValueError if the report would replace a file that this package did not write."""
    if home.exists() and not home.is_dir():
        raise ValueError(f"The report needs a folder, but {home} is a file. Choose another path.")
    numbers = home / NUMBERS_FILE
    check_replaceable(numbers, _is_numbers_file, "the record of a hierarchy")
    check_replaceable(home / WORDS_FILE, lambda path: _is_numbers_file(numbers), "the report of a hierarchy")
    check_replaceable(home / PAGE_FILE, is_report_file, "the report of a hierarchy")
    for name in PICTURE_FILES:
        check_replaceable(home / PICTURES / name, is_plot_file, "a plot of a hierarchy")


def _is_numbers_file(path: Path) -> bool:
    return {"schema", "shape", "trees", "radius_relations"} <= read_small_json(path).keys()


def hierarchy_tables(record: Mapping[str, Any]) -> dict[str, list[TextRow]]:
    """Return the tables of a record by title. The first row of each table contains the names of the columns."""
    tables = {
        "Radii": _radius_table(record),
        "Shape of the distances": _shape_table(record),
        "Radii and properties of speakers and recordings": _relation_table(record),
        "Dendrograms and labels": _tree_table(record),
    }
    return {title: rows for title, rows in tables.items() if len(rows) > 1}


def hierarchy_facts(record: Mapping[str, Any]) -> list[str]:
    """Return short texts about the model and the recordings."""
    counts, model = record["counts"], record.get("model", {})
    facts = [f"{counts['speakers']} speakers, {counts['recordings']} recordings, {counts['centres']} centres"]
    if model:
        space = model["space"]
        setting = "" if space["name"] in ("sphere", "euclidean") else f", c = {space['curvature']:g}"
        facts += [
            f"head {model['head']}",
            f"space {space['name']}{setting}",
            f"fingerprint {model['fingerprint'][:12]}",
        ]
    return facts


def hierarchy_remarks(record: Mapping[str, Any]) -> list[str]:
    """Return sentences that explain the tables."""
    settings, counts = record["settings"], record["counts"]
    remarks = [
        "Points of the null distribution 'uniform' have the radii of the measured points and uniformly distributed "
        "directions. Points of 'matched' have directions with the mean and covariance of the measured directions. p "
        "is the probability that points of the null distribution are at least as similar to a tree, estimated "
        f"from {settings['draws']} draws."
        if settings["draws"]
        else "The shape of the distances was not measured, because the number of draws is 0.",
        f"Relations compare ranks. p is estimated from {settings['permutations']} permutations, within speakers or "
        "labels where the table says so. Holm's p is corrected for all rows of the table.",
    ]
    remarks += [f"Left out: {one}." for one in record.get("left_out", ())]
    if not counts["centres"]:
        remarks.append("The head has no centres of these speakers, so no centres are measured.")
    if counts["unusable"]:
        names = list(record["unusable_files"].items())
        remarks.append(f"{counts['unusable']} recordings cannot be used, for example {names[0][0]}: {names[0][1]}.")
    return remarks


def _radius_table(record: Mapping[str, Any]) -> list[TextRow]:
    rows = [["points", "5 %", "median", "95 %", "relative spread"]]
    for name, one in record["radii"].items():
        rows.append([name, *(f"{one[key]:.4g}" for key in ("low", "median", "high", "relative_spread"))])
    return rows


def _shape_table(record: Mapping[str, Any]) -> list[TextRow]:
    rows = [["points", "statistic", "value", "uniform", "p uniform", "matched", "p matched"]]
    for name, shape in record["shape"].items():
        for key in SHAPE_STATISTICS:
            one = shape[key]
            nulls = [cell for kind in ("uniform", "matched") for cell in _null_cells(one[kind])]
            rows.append([name, _SHAPE_NAMES[key], f"{one['value']:.3f}", *nulls])
    return rows


def _null_cells(null: Mapping[str, float]) -> TextRow:
    return [f"{null['mean']:.3f}", f"{null['p']:.3f}"]


def _relation_table(record: Mapping[str, Any]) -> list[TextRow]:
    rows = [["points", "property", "within", "number", "statistic", "value", "null", "p", "Holm"]]
    for row in record["radius_relations"]:
        cells = [row["points"], row["what"], row["within"] or "", str(row["count"]), row["kind"]]
        rows.append([*cells, *(f"{row[key]:.3f}" for key in ("value", "null", "p", "holm"))])
    return rows


def _tree_table(record: Mapping[str, Any]) -> list[TextRow]:
    names = ("points", "label", "within", "number", "classes")
    rows = [[*names, "purity", "null", "p", "Holm", "agreement", "null ", "p ", "Holm "]]
    for row in record["trees"]:
        cells = [row["points"], row["label"], row["within"] or "", str(row["count"]), str(row["classes"])]
        numbers = [f"{row[one][key]:.3f}" for one in ("purity", "agreement") for key in ("value", "null", "p", "holm")]
        rows.append([*cells, *numbers])
    return rows
