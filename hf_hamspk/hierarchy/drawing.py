"""Pictures of a hierarchy: Poincaré disks, histograms of radii, radii against numbers, and a dendrogram."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram

from ..evaluation.plots import COLOURS, finish_axes, finish_plot, new_figure, png_path
from .analysis import CENTRES, EMBEDDINGS, MEANS, MOST_POINTS, Measured, label_classes
from .measures import average_linkage
from .points import Points

PICTURE_FILES = ("disk.png", "radii.png", "relations.png", "dendrogram.png")
_OTHER = "#BBBBBB"
_MOST_DISKS = 4
_UNITS = {"SNR": "SNR (dB)", "seconds": "seconds of an utterance", "spread": "angle between utterances"}
_RADIUS_NAMES = {True: "hyperbolic radius", False: "norm"}


def draw_hierarchy(measured: Measured, folder: Path) -> dict[str, str]:
    """Draw the pictures of a hierarchy.

    Args:
        measured: result of `measure_hierarchy`.
        folder: folder for the PNG files.

    Returns:
        A dictionary that maps each file name to its caption.
    """
    name = main_set(measured)
    kind = "Poincaré disk" if measured.sets[name].space.is_ball else "Disk"
    drawers: dict[str, tuple[Callable[[Measured, Path], bool], str]] = {
        "disk.png": (_draw_disks, f"{kind} of {name}: two leading directions, true radius"),
        "radii.png": (_draw_radii, "Radii of centres and embeddings"),
        "relations.png": (_draw_relations, f"Radii of {name} against properties of the speakers"),
        "dendrogram.png": (_draw_dendrogram, f"Dendrogram of {name}, average linkage, with labels"),
    }
    return {file: caption for file, (draw, caption) in drawers.items() if draw(measured, png_path(folder / file))}


def main_set(measured: Measured) -> str:
    """Return the name of the set to draw: the centres, or the means of the speakers if there are no centres."""
    return CENTRES if CENTRES in measured.sets else MEANS


def _speakers_of(measured: Measured) -> NDArray[np.int64]:
    """Return the indices of the speakers whose points are drawn."""
    return measured.centre_speakers if CENTRES in measured.sets else np.arange(len(measured.speakers))


def _coloured(values: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the colour of each value, and the legend: the colour of each class by its name and size."""
    classes, names = label_classes(values)
    sizes = np.bincount(classes[classes >= 0], minlength=len(names))
    shown = sorted(range(len(names)), key=lambda one: -sizes[one])[: len(COLOURS)]
    if len(names) <= len(COLOURS):
        shown.sort()
    colour = {one: COLOURS[number] for number, one in enumerate(shown)}
    legend = {f"{names[one]} ({sizes[one]})": colour[one] for one in shown}
    others = int(sum(classes == -1)) + int(sum(sizes)) - int(sum(sizes[one] for one in shown))
    if others:
        legend[f"other or unknown ({others})"] = _OTHER
    return [colour.get(int(one), _OTHER) for one in classes], legend


def leading_angles(points: Points) -> NDArray[np.float64]:
    """Return the angles `(N,)` of points in the plane of the two directions in which they vary most."""
    positions = points.space.positions(points.vectors)
    centred = positions - positions.mean(0)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ rows[:2].T
    return np.arctan2(plane[:, 1], plane[:, 0])


def _draw_disks(measured: Measured, path: Path) -> bool:
    points, places = measured.sets[main_set(measured)], _speakers_of(measured)
    radius = np.linalg.norm(points.space.positions(points.vectors), axis=1)
    angle = leading_angles(points)
    shown = list(measured.labels)[:_MOST_DISKS] or [""]
    figure = new_figure(4.4 * len(shown), 5.4)
    sizes = 10 + 30 * measured.counts[places] / measured.counts[places].max()
    for number, label in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        values = [measured.labels[label][i] for i in places] if label else ["speakers"] * len(places)
        colours, legend = _coloured(values)
        turn = np.linspace(0, 2 * np.pi, 200)
        axes.plot(np.cos(turn), np.sin(turn), color="black", linewidth=1)
        axes.plot(radius.max() * np.cos(turn), radius.max() * np.sin(turn), ":", color="#777777", linewidth=0.8)
        axes.scatter(radius * np.cos(angle), radius * np.sin(angle), s=sizes, c=colours, alpha=0.7, linewidths=0)
        _add_legend(axes, legend)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(label, fontsize=10)
    finish_plot(figure, figure.axes[0], None, path)
    return True


def _add_legend(axes: Any, legend: dict[str, str]) -> None:
    for name, colour in legend.items():
        axes.scatter([], [], s=25, c=colour, label=name)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.02), frameon=False, fontsize=7, ncols=2 if len(legend) <= 4 else 4
    )


def _draw_radii(measured: Measured, path: Path) -> bool:
    names = [name for name in (CENTRES, EMBEDDINGS) if name in measured.sets]
    figure = new_figure(4.6 * len(names), 3.6)
    for number, name in enumerate(names):
        axes, points = figure.add_subplot(1, len(names), number + 1), measured.sets[name]
        radii = points.radii
        low, high = float(radii.min()), float(radii.max())
        pad = 0.05 * (high - low) if high > low * (1 + 1e-6) else 0.05 * high
        # With an odd number of bins, equal radii lie in the middle of one.
        axes.hist(radii, bins=41, range=(low - pad, high + pad), color=COLOURS[number])
        axes.set_xlabel(f"{_RADIUS_NAMES[points.space.is_ball]} of the {name}")
        axes.set_ylabel("number")
        if number < len(names) - 1:
            finish_axes(axes)
    finish_plot(figure, figure.axes[-1], None, path)
    return True


def _draw_relations(measured: Measured, path: Path) -> bool:
    points, places = measured.sets[main_set(measured)], _speakers_of(measured)
    numbers = {name: values[places] for name, values in measured.numbers.items()}
    numbers = {name: values for name, values in numbers.items() if len(np.unique(values[np.isfinite(values)])) > 1}
    if not numbers:
        return False
    label = measured.record["settings"]["within"] or next(iter(measured.labels), "")
    values = [measured.labels[label][i] for i in places] if label in measured.labels else ["speakers"] * len(places)
    colours, legend = _coloured(values)
    figure = new_figure(3.1 * len(numbers), 3.9)
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(places))
    for number, (name, given) in enumerate(numbers.items()):
        axes = figure.add_subplot(1, len(numbers), number + 1)
        shown = given + jitter if name == "utterances" else given
        axes.scatter(shown, points.radii, s=9, c=colours, alpha=0.6, linewidths=0)
        axes.set_xlabel(_UNITS.get(name, name))
        if number == 0:
            axes.set_ylabel(f"{_RADIUS_NAMES[points.space.is_ball]} of the {main_set(measured)}")
        finish_axes(axes)
    for name, colour in legend.items():
        figure.axes[0].scatter([], [], s=25, c=colour, label=name)
    figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=4)
    finish_plot(figure, figure.axes[-1], None, path)
    return True


def _draw_dendrogram(measured: Measured, path: Path) -> bool:
    name, places = main_set(measured), _speakers_of(measured)
    kept = np.random.default_rng(0).permutation(len(places))[:MOST_POINTS]
    points = measured.sets[name].take(kept)
    tree = dendrogram(average_linkage(points.distances()), no_plot=True)
    labels = list(measured.labels)
    figure = new_figure(10, 3.6 + 0.35 * len(labels))
    grid = figure.add_gridspec(1 + len(labels), 1, height_ratios=[10, *[0.8] * len(labels)])
    top = figure.add_subplot(grid[0])
    for x, y in zip(tree["icoord"], tree["dcoord"], strict=True):
        top.plot(x, y, color="#333333", linewidth=0.6)
    top.set_xlim(0, 10 * len(kept))
    top.set_xticks([])
    top.set_ylabel("distance")
    for number, label in enumerate(labels):
        colours, legend = _coloured([measured.labels[label][i] for i in places[kept]])
        axes = figure.add_subplot(grid[number + 1])
        rgb = [[int(colours[i][at : at + 2], 16) for at in (1, 3, 5)] for i in tree["leaves"]]
        axes.imshow(np.array([rgb], np.uint8), aspect="auto", extent=(0, 10 * len(kept), 0, 1), interpolation="none")
        axes.set_yticks([0.5], [label])
        axes.set_xticks([])
        for key, colour in legend.items():
            axes.scatter([], [], s=20, marker="s", c=colour, label=key)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=6, ncols=4)
    finish_plot(figure, top, None, path)
    return True
