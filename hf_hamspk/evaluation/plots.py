"""Plots of an evaluation: DET curves, score histograms, detection costs over the Bayes threshold, and sweeps.

The plots use the object-oriented interface of matplotlib. They do not change its global state and need no display.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike, NDArray

from ..calibration_hamspk import OperatingPoint
from ..folders.recognising import GENERATOR
from ..folders.writing import write_atomically
from .calibration_metrics import convex_hull
from .evaluating import RATIO, Evaluation
from .metrics import DetectionErrors, detection_cost, detection_errors
from .sweeps import Sweep

# Palette of Okabe and Ito, whose colours remain distinct with colour blindness and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
_GREY = "#777777"
_DPI = 150
_NO_ERRORS = "no errors: every target score\nis above every impostor score"
# Usual labels of DET plots, in per cent.
_TICKS = (0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 90.0, 95.0, 99.0, 99.9)
# The axes extend beyond the equal error rates by these factors, so that the curves around them are in the middle.
_BELOW_EER, _ABOVE_EER = 1 / 20, 2.0
# The axes always cover 1 % to 40 %, so that the limits differ even for very few trials or an EER of 0 or 1.
_MOST_LOWER_PERCENT, _LEAST_UPPER_PERCENT = 1.0, 40.0
# Number of grid lines along an axis; they are closer together than pixels. Of a curve of ten million points, only the
# few thousand visible points are drawn.
_GRID_POINTS = 2000
_MOST_BINS = 100
# The axis covers at least the thresholds from -7 to 7 (priors from 99.9 % to 0.1 %).
_LEAST_COST_SPAN, _COST_POINTS = 7.0, 600
# Approximate width of the axes, and smallest distance of two names above them, in points.
_COST_WIDTH, _NAME_GAP = 460.0, 18.0
# Line that joins a name that was moved with the threshold to which it belongs.
_NAME_LINE = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0)}
# A cost above 1 is worse than ignoring the scores. Higher costs than these limits are not shown.
_LEAST_COST_TOP, _MOST_COST_TOP = 1.1, 2.0
# Approximate height of a legend line in the default font, in inches.
_LEGEND_LINE = 0.22


def plot_det(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: str | PathLike[str], title: str | None = None
) -> Path:
    """Draw the detection error trade-off (DET) curves of one or several systems.

    Both axes are scaled by the inverse of the normal distribution function, so that normally distributed scores give
    straight lines (A. Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997). A
    dot on each curve marks the equal error rate. The legend shows its value. A curve without errors is outside the
    axes, and a note says so.

    Args:
        curves: maps the name of each system to `(scores, labels)`, both of shape `(N,)` (see `detection_errors`).
        path: path of the PNG file; parent folders are created.
        title: title of the plot; None for no title.

    Returns:
        The path of the PNG file.

    Raises:
        ValueError: `curves` is empty, the path does not end in `.png`, or the scores or labels are invalid (see
            `detection_errors`).
    """
    if not curves:
        raise ValueError("curves is empty: pass at least one name with its (scores, labels).")
    target = png_path(path)
    errors = {name: detection_errors(scores, labels) for name, (scores, labels) in curves.items()}
    low, high = _det_limits(list(errors.values()))

    figure = new_figure(6.4, 6.5 + _LEGEND_LINE * len(curves))
    axes = figure.add_subplot(aspect="equal")
    diagonal = [_probit(low), _probit(high)]
    axes.plot(diagonal, diagonal, color=_GREY, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    for number, (name, points) in enumerate(errors.items()):
        colour = COLOURS[number % len(COLOURS)]
        style = LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)]
        _draw_det_curve(axes, name, points, (low, high), colour, style)
    ticks = [percent for percent in _TICKS if low <= percent / 100 <= high]
    places, names = [_probit(percent / 100) for percent in ticks], [f"{percent:g}" for percent in ticks]
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.set_xlim(*diagonal)
    axes.set_ylim(*diagonal)
    axes.set_xlabel("False alarms (%)")
    axes.set_ylabel("Misses (%)")
    _note_perfect(axes, errors)
    # The legend is outside the axes, because the curves of a weak and a strong system together leave no corner free.
    figure.legend(loc="outside lower center", frameon=False)
    return finish_plot(figure, axes, title, target)


def plot_score_histogram(
    scores: ArrayLike,
    labels: ArrayLike,
    path: str | PathLike[str],
    threshold: float | Mapping[str, float] | None = None,
    score_name: str = "cosine",
    title: str | None = None,
) -> Path:
    """Draw histograms of the target scores and of the impostor scores, each normalised to an area of 1.

    Args:
        scores: shape `(N,)`, finite scores.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        path: path of the PNG file; parent folders are created.
        threshold: finite score at which a vertical line is drawn, or a mapping from line labels to such scores; None
            for no line.
        score_name: name of the scores in the axis label.
        title: title of the plot; None for no title.

    Returns:
        The path of the PNG file.

    Raises:
        ValueError: a threshold is not finite, the path does not end in `.png`, or the scores or labels are invalid (see
            `detection_errors`).
    """
    target = png_path(path)
    lines = {} if threshold is None else threshold if isinstance(threshold, Mapping) else {"threshold": threshold}
    if not np.isfinite(list(lines.values())).all():
        raise ValueError(
            f"threshold must be finite to be drawn, got {threshold!r}. Leave out thresholds that are not finite."
        )
    errors = detection_errors(scores, labels)  # For its checks and counts.
    values, is_target = np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1
    # Twice the Rice rule for the smaller class, because the bins span both classes. More bins would have gaps.
    bins = min(_MOST_BINS, math.ceil(4 * min(errors.targets, errors.impostors) ** (1 / 3)))
    edges = np.histogram_bin_edges(values, bins=bins)

    figure = new_figure(7.2, 4.5)
    axes = figure.add_subplot()
    classes = (
        ("target", is_target, errors.targets, COLOURS[0]),
        ("impostor", ~is_target, errors.impostors, COLOURS[1]),
    )
    for name, chosen, count, colour in classes:
        density, _ = np.histogram(values[chosen], bins=edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(density, edges, color=colour, linewidth=1.4, label=f"{name} ({_counted(count)})")
    for number, (name, place) in enumerate(lines.items()):
        style = LINE_STYLES[(number + 1) % len(LINE_STYLES)]
        axes.axvline(place, color="black", linewidth=1.2, linestyle=style, label=f"{name} {place:.3g}")
    axes.set_xlabel(f"Score ({score_name})")
    axes.set_ylabel("Density")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    # The legend is above the axes, where it covers no histogram.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return finish_plot(figure, axes, title, target)


def plot_detection_costs(
    ratios: ArrayLike,
    labels: ArrayLike,
    path: str | PathLike[str],
    points: Sequence[OperatingPoint] = (),
    title: str | None = None,
) -> Path:
    """Draw the actual and the minimum detection cost of log-likelihood ratios over the Bayes threshold.

    The normalised cost of an operating point depends only on its Bayes threshold, which is shown on the horizontal
    axis. A gap between the two curves shows a calibration error. In the similar plots of N. Brümmer and E. de Villiers,
    "The BOSARIS toolkit", 2011, arXiv:1304.2865, the horizontal axis has the opposite sign.

    Args:
        ratios: shape `(N,)`, finite natural log-likelihood ratios.
        labels: shape `(N,)`, 1 for a target trial, 0 for an impostor trial.
        path: path of the PNG file; parent folders are created.
        points: operating points whose thresholds are marked by labelled lines.
        title: title of the plot; None for no title.

    Returns:
        The path of the PNG file.

    Raises:
        ValueError: the path does not end in `.png`, or the ratios or labels are invalid (see `detection_errors`).
    """
    target = png_path(path)
    errors, hull = detection_errors(ratios, labels), convex_hull(ratios, labels)
    widest = max([_LEAST_COST_SPAN, *(abs(point.threshold) + 1.0 for point in points)])
    thresholds = np.linspace(-widest, widest, _COST_POINTS)
    places = np.searchsorted(errors.thresholds, thresholds)
    actual, least = [], []
    for threshold, place in zip(thresholds, places, strict=True):
        prior = 1.0 / (1.0 + math.exp(threshold))
        rates = float(errors.false_negative_rate[place]), float(errors.false_positive_rate[place])
        actual.append(detection_cost(*rates, prior))
        least.append(float(detection_cost(hull.misses / hull.targets, hull.false_alarms / hull.impostors, prior).min()))

    figure = new_figure(7.2, 5.0)
    axes = figure.add_subplot()
    axes.axhline(1.0, color=_GREY, linewidth=0.8, linestyle=(0, (2, 3)), label="cost of ignoring the scores")
    axes.plot(thresholds, actual, color=COLOURS[1], linewidth=1.6, label="actual")
    axes.plot(thresholds, least, color=COLOURS[0], linewidth=1.6, linestyle="--", label="minimum")
    place = -math.inf
    for point in sorted(points, key=lambda point: point.threshold):
        axes.axvline(point.threshold, color="black", linewidth=0.9, linestyle=":")
        # Names are above the axes, where no curve is. Each is to the right of the previous name, so that it covers no
        # other name.
        own = point.threshold / (2 * widest) * _COST_WIDTH
        place = max(own, place + _NAME_GAP)
        axes.annotate(
            point.name,
            (point.threshold, 1.0),
            (place - own, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=35,
            ha="left",
            va="bottom",
            fontsize=8,
            arrowprops=_NAME_LINE if place > own else None,
        )
    axes.set_xlim(-widest, widest)
    axes.set_ylim(0, min(max(_LEAST_COST_TOP, 1.05 * max(actual)), _MOST_COST_TOP))
    axes.set_xlabel("Threshold of the operating point (log-likelihood ratio)")
    axes.set_ylabel("Normalised detection cost")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return finish_plot(figure, axes, title, target)


def plot_sweep(
    rates: Sequence[tuple[str, float | None, float, tuple[float, float] | None]],
    path: str | PathLike[str],
    title: str | None = None,
) -> Path:
    """Draw the equal error rate under several recording conditions, with its confidence limits.

    The conditions are evenly spaced, in the given order. A dotted line joins two neighbouring conditions if both have a
    strength.

    Args:
        rates: name, strength, equal error rate and confidence limits of each condition. The strength is a number such
            as a duration or a signal-to-noise ratio, or None if the condition has no such number. The limits are None
            if not measured. Rate and limits are fractions in [0, 1].
        path: path of the PNG file; parent folders are created.
        title: title of the plot; None for no title.

    Returns:
        The path of the PNG file.

    Raises:
        ValueError: `rates` is empty, or the path does not end in `.png`.
    """
    if not rates:
        raise ValueError("rates is empty: pass at least one condition.")
    target = png_path(path)
    figure = new_figure(max(4.8, 1.0 + 0.8 * len(rates)), 4.2)
    axes = figure.add_subplot()
    scale = [(strength, 100 * rate) for _, strength, rate, _ in rates]
    for place, ((left, low), (right, high)) in enumerate(itertools.pairwise(scale)):
        if left is not None and right is not None:
            axes.plot((place, place + 1), (low, high), color=COLOURS[0], linewidth=0.8, linestyle=":")
    highest = 0.0
    for place, (_, _, rate, limits) in enumerate(rates):
        low, high = (rate, rate) if limits is None else limits
        axes.vlines(place, 100 * low, 100 * high, color=COLOURS[0], linewidth=1.6)
        axes.plot(place, 100 * rate, color=COLOURS[0], marker="o", markersize=6.5)
        # The number is above the limits and on a white background, so that no line crosses it.
        axes.annotate(
            f"{100 * rate:.1f}",
            (place, 100 * high),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
        highest = max(highest, 100 * high)
    axes.set_xticks(range(len(rates)), [name for name, *_ in rates], rotation=30, ha="right")
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(0, 1.15 * highest if highest > 0 else 1.0)
    axes.set_ylabel("Equal error rate (%)")
    return finish_plot(figure, axes, title, target)


def draw_evaluation(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """Draw a DET plot of all trial lists and a score histogram of each list.

    If decisions of the calibrated model were measured on a list, also draw a histogram of its log-likelihood ratios and
    a plot of its detection costs.

    Returns:
        A dictionary that maps the name of each new file in the folder to its caption.
    """
    curves = {name: (result.scores, result.trials.labels) for name, result in evaluation.lists.items()}
    captions = {}
    if curves:
        captions["det.png"] = f"Detection error trade-off of the raw scores: {', '.join(curves)}"
        plot_det(curves, folder / "det.png")
    for name, result in evaluation.lists.items():
        kind, threshold = result.record["scores"], result.record["eer_threshold"]
        file = f"scores-{_file_stem(name)}.png"
        captions[file] = f"{name}: raw scores, with the threshold of the EER"
        plot_score_histogram(result.scores, result.trials.labels, folder / file, threshold, kind, name)
        if result.decided is not None and result.ratios is not None:
            of_decided = result.ratios, result.decided.labels
            thresholds = {point.name: point.threshold for point in evaluation.points}
            file = f"ratios-{_file_stem(name)}.png"
            captions[file] = f"{name}: log-likelihood ratios, with the thresholds of the operating points"
            plot_score_histogram(*of_decided, folder / file, thresholds, RATIO, name)
            file = f"costs-{_file_stem(name)}.png"
            captions[file] = f"{name}: detection costs over the threshold of the operating point"
            plot_detection_costs(*of_decided, folder / file, evaluation.points, name)
    return captions


def draw_sweep(sweep: Sweep, folder: Path) -> dict[str, str]:
    """Draw one plot for each kind of recording condition of a sweep.

    Conditions without an equal error rate are left out.

    Returns:
        A dictionary that maps the name of each new file in the folder to its caption.
    """
    captions = {}
    for kind, points in sweep.points.items():
        rates = [(p.condition, p.value, p.eer, p.eer_interval) for p in points if p.eer is not None]
        if rates:
            file = f"sweep-{_file_stem(sweep.name)}-{_file_stem(kind)}.png"
            captions[file] = f"{sweep.name}: EER over {kind}"
            plot_sweep(rates, folder / file, f"{sweep.name}: {kind}")
    return captions


def _file_stem(name: str) -> str:
    """Return a name in which hyphens replace the characters that are unsuitable for file names."""
    return re.sub(r"[^\w.-]+", "-", name).lstrip(".-")


def _draw_det_curve(
    axes: Axes, name: str, errors: DetectionErrors, limits: tuple[float, float], colour: str, style: str
) -> None:
    """Draw one DET curve and a dot at its equal error rate."""
    equal = errors.equal_error_rate()
    shown = _visible_points(errors, *limits)
    label = f"{name} (EER {100 * equal.eer:.2f} %)"
    axes.plot(
        [_probit(rate) for rate in errors.false_positive_rate[shown]],
        [_probit(rate) for rate in errors.false_negative_rate[shown]],
        color=colour,
        linestyle=style,
        linewidth=1.6,
        label=label,
    )
    point = int(np.searchsorted(errors.thresholds, equal.threshold))
    axes.plot(
        _probit(errors.false_positive_rate[point]),
        _probit(errors.false_negative_rate[point]),
        color=colour,
        marker="o",
        markersize=6.5,
        markeredgecolor="white",
        zorder=5,
    )


def _note_perfect(axes: Axes, errors: Mapping[str, DetectionErrors]) -> None:
    """Write a note for each system without errors into the axes, because its curve is outside them."""
    perfect = [name for name, points in errors.items() if points.equal_error_rate().eer == 0]
    notes = [f"{name}, {_NO_ERRORS}" if len(errors) > 1 else _NO_ERRORS for name in perfect]
    if notes:
        background = {"facecolor": "white", "edgecolor": "none", "pad": 4.0}
        # Other curves rarely come near this corner, because the rates of both errors are small there.
        corner = {"ha": "left", "va": "bottom", "transform": axes.transAxes, "fontsize": 9}
        axes.text(0.04, 0.04, "\n\n".join(notes), bbox=background, zorder=6, **corner)


def _visible_points(errors: DetectionErrors, low: float, high: float) -> NDArray[np.intp]:
    """Return the indices of the points that are drawn.

    A fine grid is laid over the axes. The drawn points are both ends of every step of the curve that crosses a grid
    line, and both ends of the curve.
    """
    normal = NormalDist()
    grid = np.array([normal.cdf(place) for place in np.linspace(_probit(low), _probit(high), _GRID_POINTS)])
    after_miss = np.searchsorted(errors.false_negative_rate, grid)
    after_false_alarm = np.searchsorted(-errors.false_positive_rate, -grid)
    last = errors.thresholds.size - 1
    after = np.concatenate((after_miss, after_false_alarm))
    return np.unique(np.clip(np.concatenate((after - 1, after, [0, last])), 0, last))


def _det_limits(curves: list[DetectionErrors]) -> tuple[float, float]:
    """Return the lower and upper limit of both axes as fractions; both limits are tick values."""
    rates = [100 * errors.equal_error_rate().eer for errors in curves]
    # An error rate of 0 only means that no error was observed. It is replaced by the smallest possible rate above 0.
    finest = min(100 / max(errors.targets, errors.impostors) for errors in curves)
    lowest = min(max(min(rates) * _BELOW_EER, finest), _MOST_LOWER_PERCENT)
    highest = max(max(rates) * _ABOVE_EER, _LEAST_UPPER_PERCENT)
    low = max((tick for tick in _TICKS if tick <= lowest), default=_TICKS[0])
    high = min((tick for tick in _TICKS if tick >= highest), default=_TICKS[-1])
    return low / 100, high / 100


def _probit(rate: float) -> float:
    """Return the standard normal quantile of a rate; rates of 0 and 1 give finite values outside the axes."""
    beyond = 1e-9  # This rate is below the lowest tick, and less than one error in any trial list.
    return NormalDist().inv_cdf(min(max(float(rate), beyond), 1.0 - beyond))


def _counted(count: int) -> str:
    """Format a number of trials, such as "1,000 trials"."""
    return f"{count:,} trial{'' if count == 1 else 's'}"


def png_path(path: str | PathLike[str]) -> Path:
    """Check that the path ends in `.png`, and create its parent folders."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"The plot is written as PNG, so path must end in .png, got {str(target)!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of the given size in inches, with margins that keep labels away from the border."""
    return Figure(figsize=(width, height), dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def finish_axes(axes: Axes) -> None:
    """Add a grid to axes, and remove the lines above them and to their right."""
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def finish_plot(figure: Figure, axes: Axes, title: str | None, target: Path) -> Path:
    """Add a grid and the title to a plot, write the PNG file and return its path."""
    finish_axes(axes)
    if title is not None:
        figure.suptitle(title)
    write_atomically(
        target, lambda path: FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": GENERATOR})
    )
    return target
