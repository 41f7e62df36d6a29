"""The plots: files are written, what they show agrees with the metrics, no global state, bad input refused."""

import itertools
import re
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from hf_hamspk.calibration_hamspk import OperatingPoint
from hf_hamspk.evaluation import plots
from hf_hamspk.evaluation.calibration_metrics import actual_detection_cost
from hf_hamspk.evaluation.metrics import detection_errors, equal_error_rate, minimum_detection_cost


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    labels = rng.random(4000) < 0.5
    return rng.normal(size=4000) + 3 * labels, labels


@pytest.fixture
def figures(monkeypatch):
    """The figures that the plots make, to be looked into."""
    made = []

    class Watched(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(plots, "Figure", Watched)
    return made


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_det_is_written_and_gives_the_equal_error_rate(tmp_path, scored, figures):
    path = plots.plot_det({"one": scored, "two": (-scored[0], scored[1])}, tmp_path / "new" / "det.png", title="Both")
    assert path == tmp_path / "new" / "det.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert imread(path).std() > 0.01
    expected = [100 * equal_error_rate(sign * scored[0], scored[1]).eer for sign in (1, -1)]
    assert texts(figures[0].legends[0]) == [f"one (EER {expected[0]:.2f} %)", f"two (EER {expected[1]:.2f} %)"]


@pytest.mark.slow
def test_det_says_of_a_curve_without_errors_why_it_is_not_seen(tmp_path, scored, figures):
    perfect = [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]
    plots.plot_det({"mine": perfect}, tmp_path / "det.png")
    plots.plot_det({"mine": perfect, "other": scored}, tmp_path / "det.png")
    plots.plot_det({"other": scored}, tmp_path / "det.png")
    note = "no errors: every target score is above every impostor score"
    notes = [[" ".join(text.get_text().split()) for text in figure.axes[0].texts] for figure in figures]
    assert notes == [[note], [f"mine, {note}"], []]
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("False alarms (%)", "Misses (%)")
    assert texts(figures[0].legends[0]) == ["mine (EER 0.00 %)"]


def test_det_curve_lies_on_the_operating_points(tmp_path, scored, figures):
    stats = pytest.importorskip("scipy.stats")
    plots.plot_det({"one": scored}, tmp_path / "det.png")
    axes = figures[0].axes[0]
    curve = next(line for line in axes.lines if str(line.get_label()).startswith("one"))
    errors = detection_errors(*scored)
    possible = set(zip(errors.misses.tolist(), errors.false_alarms.tolist(), strict=True))
    drawn = stats.norm.cdf(np.asarray(curve.get_ydata())), stats.norm.cdf(np.asarray(curve.get_xdata()))
    misses = np.rint(drawn[0] * errors.targets).astype(int).tolist()
    false_alarms = np.rint(drawn[1] * errors.impostors).astype(int).tolist()
    assert set(zip(misses, false_alarms, strict=True)) <= possible
    assert len(misses) > 100
    dot = next(line for line in axes.lines if line.get_marker() == "o")
    rates = stats.norm.cdf([np.asarray(dot.get_xdata())[0], np.asarray(dot.get_ydata())[0]])
    assert max(rates) == pytest.approx(equal_error_rate(*scored).eer, rel=1e-9)
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        label.get_text() for label in axes.get_yticklabels()
    ]


def test_thinning_moves_no_curve_by_a_pixel(scored):
    rng = np.random.default_rng(1)
    labels = rng.random(300_000) < 0.2
    errors = detection_errors(rng.normal(size=300_000) + 2.5 * labels, labels)
    shown = plots._visible_points(errors, 0.0001, 0.4)
    assert len(shown) < 9000
    for rates in (errors.false_negative_rate, errors.false_positive_rate):
        inside = (rates[shown] > 0.0001) & (rates[shown] < 0.4)
        places = np.array([plots._probit(rate) for rate in rates[shown][inside]])
        skipped = np.diff(shown[inside]) > 1
        # 800 pixels span the axis: a gap with skipped points in it is less than half of one.
        span = plots._probit(0.4) - plots._probit(0.0001)
        assert np.abs(np.diff(places))[skipped].max() < span / 1600


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1]),
        ([4, 3, 2, 1], [0, 0, 1, 1]),
        ([1, 2], [1, 0]),
        ([0.1, 0.2, 0.15], [0, 1, 1]),
    ],
)
def test_degenerate_scores_are_drawn(tmp_path, scores, labels):
    assert plots.plot_det({"few": (scores, labels)}, tmp_path / "det.png").is_file()
    assert plots.plot_score_histogram(scores, labels, tmp_path / "scores.png", threshold=0.0).is_file()


def test_many_curves_are_told_apart(tmp_path, scored, figures):
    plots.plot_det({f"system {number}": scored for number in range(9)}, tmp_path / "det.png")
    curves = [line for line in figures[0].axes[0].lines if str(line.get_label()).startswith("system")]
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 9


def test_histogram_is_written_with_counts_and_threshold(tmp_path, scored, figures):
    scores, labels = scored
    path = plots.plot_score_histogram(
        scores, labels, str(tmp_path / "scores.png"), threshold=1.5, score_name="negative distance", title="Scores"
    )
    assert imread(path).std() > 0.01
    axes = figures[0].axes[0]
    assert texts(axes.get_legend()) == [
        f"target ({labels.sum():,} trials)",
        f"impostor ({(~labels).sum():,} trials)",
        "threshold 1.5",
    ]
    assert axes.get_xlabel() == "Score (negative distance)"
    for patch in axes.patches:
        density, edges, _ = patch.get_data()
        assert np.sum(density * np.diff(edges)) == pytest.approx(1.0)


def test_costs_are_those_at_the_bayes_thresholds(tmp_path, scored, figures):
    ratios, labels = 3 * (scored[0] - 1.5), scored[1]
    points = (OperatingPoint("balanced", 0.5), OperatingPoint("rare", 0.0001))
    path = plots.plot_detection_costs(ratios, labels, tmp_path / "costs.png", points, "Costs")
    assert imread(path).std() > 0.01
    axes = figures[0].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    thresholds = np.asarray(lines["actual"].get_xdata())
    assert thresholds[-1] == -thresholds[0] > points[1].threshold
    for place in (10, 300, 590):
        prior = 1 / (1 + np.exp(thresholds[place]))
        actual = actual_detection_cost(ratios, labels, prior).cost
        assert lines["actual"].get_ydata()[place] == pytest.approx(actual)
        assert lines["minimum"].get_ydata()[place] == pytest.approx(minimum_detection_cost(ratios, labels, prior).cost)
    assert [text.get_text() for text in axes.texts] == ["balanced", "rare"]


def test_names_of_near_operating_points_do_not_cover_each_other(tmp_path, scored, figures):
    points = [OperatingPoint(name, prior) for name, prior in (("c", 0.45), ("a", 0.5), ("b", 0.48), ("far", 0.01))]
    plots.plot_detection_costs(3 * (scored[0] - 1.5), scored[1], tmp_path / "costs.png", points)
    shown = figures[0].axes[0].texts
    assert [text.get_text() for text in shown] == ["a", "b", "c", "far"]
    edges = [Text.get_window_extent(text).x0 for text in shown]  # of the names alone, without their lines
    assert all(right - left > 30 for left, right in itertools.pairwise(edges)), "pixels at 150 dpi"
    assert [text.arrow_patch is None for text in shown] == [True, False, False, True]


def test_a_sweep_joins_strengths_and_nothing_else(tmp_path, figures):
    rates = [
        ("as it is", None, 0.1, None),
        ("1 s", 1.0, 0.2, (0.15, 0.25)),
        ("2 s", 2.0, 0.15, None),
        ("MP3", None, 0.1, None),
    ]
    plots.plot_sweep(rates, tmp_path / "sweep.png")
    axes = figures[0].axes[0]
    joined = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 1]
    assert joined == [(1, 2)]
    assert [text.get_text() for text in axes.texts] == ["10.0", "20.0", "15.0", "10.0"]
    assert axes.get_ylim()[1] > 25
    with pytest.raises(ValueError, match=re.escape("rates is empty: pass at least one condition.")):
        plots.plot_sweep([], tmp_path / "sweep.png")


def test_bad_input_is_refused(tmp_path, scored):
    with pytest.raises(ValueError, match=re.escape("curves is empty: pass at least one name")):
        plots.plot_det({}, tmp_path / "det.png")
    with pytest.raises(ValueError, match=re.escape("path must end in .png")):
        plots.plot_det({"one": scored}, tmp_path / "det.pdf")
    with pytest.raises(ValueError, match=re.escape("targets are missing")):
        plots.plot_det({"one": ([1.0], [0])}, tmp_path / "det.png")
    with pytest.raises(ValueError, match=re.escape("threshold must be finite to be drawn, got inf.")):
        plots.plot_score_histogram(*scored, tmp_path / "scores.png", threshold=float("inf"))
    with pytest.raises(ValueError, match=re.escape("1 of 2 scores are NaN")):
        plots.plot_score_histogram([float("nan"), 1.0], [0, 1], tmp_path / "scores.png")
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_not_touched(tmp_path, scored):
    before = "matplotlib.pyplot" in sys.modules
    plots.plot_det({"one": scored}, tmp_path / "det.png")
    plots.plot_score_histogram(*scored, tmp_path / "scores.png")
    assert ("matplotlib.pyplot" in sys.modules) == before
