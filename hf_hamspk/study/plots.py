"""Plots of a study: learning curves, search budgets, and relative differences of heads with intervals."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..evaluation.plots import COLOURS, LINE_STYLES, finish_plot, new_figure, png_path
from .statistics import MEAN

MEASURE_NAMES = {"min_cllr": "minCllr (bits)", "eer": "EER (%)"}
_SCALE = {"min_cllr": 1.0, "eer": 100.0}
_ROW_HEIGHT = 0.32
PLOT_FILES = ("curves.png", "search.png", "differences.png", "budgets.png")


def draw_study(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw all plots for which a study has data.

    Args:
        summary: summary of the study, from `summarise`.
        folder: folder for the PNG files.

    Returns:
        A dictionary that maps each file name to its caption.
    """
    measure = summary["measure"]
    name = MEASURE_NAMES[measure].split(" ")[0]
    drawers: dict[str, tuple[Callable[[Mapping[str, Any], Path], bool], str]] = {
        "curves.png": (_draw_curves, f"{name} on the development lists after each budget, mean of the seeds"),
        "search.png": (_draw_search, f"Expected best {name} on the development lists for a search of n settings"),
        "differences.png": (_draw_differences, f"Relative difference of {name}, mean of the test lists, last budget"),
        "budgets.png": (_draw_budgets, f"Relative difference of {name}, mean of the test lists, against the budget"),
    }
    return {file: caption for file, (draw, caption) in drawers.items() if draw(summary, png_path(folder / file))}


def _draw_curves(summary: Mapping[str, Any], path: Path) -> bool:
    measure = summary["measure"]
    lines = {
        f"{head} ({max(one['seeds'] for one in epochs.values())})": (
            [int(epoch) for epoch in epochs],
            [_SCALE[measure] * one[measure] for one in epochs.values()],
        )
        for head, epochs in summary["curves"].items()
    }
    return _draw_lines(lines, "epochs", MEASURE_NAMES[measure], path, "head (seeds)")


def _draw_search(summary: Mapping[str, Any], path: Path) -> bool:
    measure = summary["measure"]
    lines = {
        head: (
            list(range(1, len(found["expected_best"]) + 1)),
            [_SCALE[measure] * value for value in found["expected_best"]],
        )
        for head, found in summary["tuning"].items()
    }
    return _draw_lines(lines, "number of settings", MEASURE_NAMES[measure], path, "head")


def _draw_budgets(summary: Mapping[str, Any], path: Path) -> bool:
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for row in _primary_rows(summary):
        epochs, values = lines.setdefault(f"{row['first']} - {row['second']}", ([], []))
        epochs.append(row["budget"])
        values.append(100 * row["relative"])
    return _draw_lines(lines, "epochs", "relative difference (%)", path, "comparison", zero=True)


def _draw_lines(
    lines: Mapping[str, tuple[list[int], list[float]]], x: str, y: str, path: Path, title: str, zero: bool = False
) -> bool:
    """Draw one line for each entry of `lines`, and return whether there was any entry."""
    if not lines:
        return False
    figure = new_figure(7.5, 4.6)
    axes = figure.add_subplot()
    if zero:
        axes.axhline(0, color="black", linewidth=0.8)
    for number, (name, (places, values)) in enumerate(lines.items()):
        colour, style = COLOURS[number % len(COLOURS)], LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)]
        axes.plot(places, values, style, color=colour, marker="o", markersize=3.5, label=name)
    axes.set_xticks(sorted({place for places, _ in lines.values() for place in places}))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure.legend(loc="outside right upper", frameon=False, title=title)
    finish_plot(figure, axes, None, path)
    return True


def _draw_differences(summary: Mapping[str, Any], path: Path) -> bool:
    rows = _primary_rows(summary)
    rows = [row for row in rows if row["budget"] == max(one["budget"] for one in rows)][::-1]
    if not rows:
        return False
    figure = new_figure(7.5, 1.2 + _ROW_HEIGHT * len(rows))
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=0.8)
    level = round(1 - summary["confidence"], 5)
    for place, row in enumerate(rows):
        colour = COLOURS[0 if row["holm"] <= level else 1]
        axes.plot([100 * limit for limit in row["interval"]], [place, place], color=colour, linewidth=2)
        axes.plot(100 * row["relative"], place, "o", color=colour)
    labels = [f"{row['first']} - {row['second']} ({row['seeds']} seeds, p {row['holm']:.3f})" for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("relative difference (%); below 0 the first head is better")
    finish_plot(figure, axes, None, path)
    return True


def _primary_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons by the primary measure, averaged over all lists."""
    rows = summary.get("comparisons", [])
    return [row for row in rows if row["list"] == MEAN and row["measure"] == summary["measure"]]
