"""How many pairs are enough: how much a calibration would change if other speakers had been recorded.

The speakers are drawn with replacement, as many as there are, and the calibration is fitted again on each draw (the
bootstrap over speakers: N. Poh and S. Bengio, "Estimating the confidence interval of expected performance curve in
biometric authentication using joint bootstrap", ICASSP 2007). A pair of two speakers counts with the product of their
numbers in the draw, a pair of one speaker with its number. The spread shrinks with the square root of the number of
speakers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..calibration_hamspk import DEFAULT_OPERATING_POINTS, SCORE, OperatingPoint
from .calibrating import AffineMap, CalibrationTrials, fit_map
from .intervals import CONFIDENCE

# Fewer than for the intervals of error rates: every draw is a fit, and only its spread is used.
FITTED_DRAWS = 200
# A threshold that is uncertain by no more than this log-likelihood ratio, a factor of 1.6 in the odds, is enough. It
# costs a few per cent of the cost of the errors, less than recordings of another kind do.
ENOUGH = 0.5
# The quality measures at a threshold are averaged over this many trials near it.
NEAREST = 50


@dataclass(frozen=True)
class PointUncertainty:
    """How certain the threshold of an operating point is.

    Attributes:
        name: of the operating point.
        threshold: its log-likelihood ratio.
        half_width: of the confidence interval of the log-likelihood ratio of a pair at the threshold, above 0.
        score: the score at the threshold, with the quality measures of the trials near it.
        score_interval: its confidence interval.
        speakers: number of speakers that should be enough for a half-width of `ENOUGH`.
    """

    name: str
    threshold: float
    half_width: float
    score: float
    score_interval: tuple[float, float]
    speakers: int


@dataclass(frozen=True)
class Sufficiency:
    """Whether there are enough pairs and speakers to calibrate on.

    Attributes:
        points: one for each operating point.
        targets: number of target pairs.
        impostors: number of impostor pairs.
        speakers: number of speakers.
        replicates: number of bootstrap draws with pairs of both kinds.
    """

    points: tuple[PointUncertainty, ...]
    targets: int
    impostors: int
    speakers: int
    replicates: int

    def sentences(self) -> list[str]:
        """A sentence for each operating point."""
        lines = []
        for point in self.points:
            low, high = point.score_interval
            text = (
                f"{point.name}: with {self.targets} target pairs of {self.speakers} speakers the threshold, score "
                f"{point.score:.3f} ({low:.3f} to {high:.3f}), is uncertain by +-{point.half_width:.2f} in "
                "log-likelihood ratio"
            )
            if point.half_width <= ENOUGH:
                lines.append(f"{text}: enough")
                continue
            pairs = math.ceil(self.targets * point.speakers / self.speakers)
            lines.append(f"{text}; for +-{ENOUGH:g} aim at {point.speakers} speakers or more ({pairs} target pairs)")
        return lines


def assess_size(
    trials: CalibrationTrials,
    fitted: AffineMap,
    operating_points: Sequence[OperatingPoint] = DEFAULT_OPERATING_POINTS,
    replicates: int = FITTED_DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> Sufficiency:
    """Measure how certain the thresholds of a calibration are, by a bootstrap over speakers.

    Args:
        trials: the trials that it was fitted on.
        fitted: from `fit_map`.
        operating_points: their thresholds are measured.
        replicates: number of draws, at least 2.
        seed: of the draws.
        progress: show a bar.

    Raises:
        ValueError: fewer than half of the draws hold pairs of both kinds.
    """
    names = list(fitted.weights)
    draw = np.random.default_rng(seed)
    places = [_at_threshold(trials, fitted, point.threshold) for point in operating_points]
    ratios, scores = [], []
    for _ in tqdm(range(replicates), desc="how many are enough", unit="draw", disable=not progress, leave=False):
        counts = speaker_counts(trials.speakers, draw)
        if not (counts[trials.labels == 1].any() and counts[trials.labels == 0].any()):
            continue
        again = fit_map(trials, names, counts=counts)
        now = np.array([float(again(place)) for place in places])
        ratios.append(now)
        # If the score has no positive weight in a draw, no score reaches the threshold.
        slope = again.weights[SCORE] if again.weights[SCORE] > 0 else np.nan
        wanted = np.array([point.threshold for point in operating_points])
        scores.append(np.array([float(place[SCORE]) for place in places]) + (wanted - now) / slope)
    if len(ratios) < max(2, replicates // 2):
        raise ValueError(
            f"Only {len(ratios)} of {replicates} draws of {trials.speaker_count} speakers hold pairs of both kinds: "
            "too few speakers to measure how certain the thresholds are. Add speakers with two recordings or more."
        )
    spread = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * np.std(ratios, axis=0)
    edges = np.nanquantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    points = tuple(
        PointUncertainty(
            point.name,
            point.threshold,
            float(spread[i]),
            float(places[i][SCORE]),
            (float(edges[0, i]), float(edges[1, i])),
            math.ceil(trials.speaker_count * (spread[i] / ENOUGH) ** 2),
        )
        for i, point in enumerate(operating_points)
    )
    impostors = len(trials) - trials.targets
    return Sufficiency(points, trials.targets, impostors, trials.speaker_count, len(ratios))


def speaker_counts(speakers: NDArray, draw: np.random.Generator) -> NDArray[np.float64]:
    """The weight of each trial in one draw of the speakers, `(N,)`."""
    count = int(speakers.max()) + 1
    drawn = np.bincount(draw.integers(count, size=count), minlength=count).astype(np.float64)
    one_speaker = speakers[:, 0] == speakers[:, 1]
    return drawn[speakers[:, 0]] * np.where(one_speaker, 1.0, drawn[speakers[:, 1]])


def _at_threshold(trials: CalibrationTrials, fitted: AffineMap, threshold: float) -> dict[str, NDArray[np.float64]]:
    """Features of a pair at the threshold: means over the trials near it, with the score that reaches the threshold."""
    ratios = fitted(trials.features)
    near = np.argsort(np.abs(ratios - threshold))[:NEAREST]
    place = {name: np.asarray(trials.features[name][near].mean()) for name in fitted.weights}
    place[SCORE] = place[SCORE] + (threshold - fitted(place)) / fitted.weights[SCORE]
    return place
