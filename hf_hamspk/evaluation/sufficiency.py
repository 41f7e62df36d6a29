"""How many pairs are enough: how far a calibration would move if other speakers had been recorded.

The speakers are drawn anew with replacement, as many as there are, and the calibration is fitted again (the bootstrap
over speakers: N. Poh and S. Bengio, "Estimating the confidence interval of expected performance curve in biometric
authentication using joint bootstrap", ICASSP 2007). A pair of two speakers counts as often as both were drawn, a pair
of one speaker as often as that one. The spread shrinks with the square root of the number of speakers.
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

REPLICATES = 200
CONFIDENCE = 0.95
# Enough: a threshold that is uncertain by no more than this log-likelihood ratio, a factor of 1.6 in the odds. It costs
# a few per cent of what the errors cost, less than recordings of another kind do.
ENOUGH = 0.5
# Trials around a threshold that say what the quality measures are there.
NEAREST = 50


@dataclass(frozen=True)
class PointUncertainty:
    """How sure a threshold is.

    Attributes:
        name: of the operating point.
        threshold: on the log-likelihood ratio.
        half_width: of the confidence interval of the log-likelihood ratio of a pair at the threshold, above 0.
        score: at which that ratio is reached, with the quality measures of the trials near the threshold.
        score_interval: its confidence interval.
        speakers: that should be enough for a half-width of `ENOUGH`.
    """

    name: str
    threshold: float
    half_width: float
    score: float
    score_interval: tuple[float, float]
    speakers: int


@dataclass(frozen=True)
class Sufficiency:
    """Whether the pairs are enough.

    Attributes:
        points: by operating point.
        targets: target pairs.
        impostors: impostor pairs.
        speakers: speakers of them.
        replicates: bootstrap draws that could be fitted on.
    """

    points: tuple[PointUncertainty, ...]
    targets: int
    impostors: int
    speakers: int
    replicates: int

    def sentences(self) -> list[str]:
        """One for each operating point."""
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
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: bool = False,
) -> Sufficiency:
    """Bootstrap the calibration over speakers.

    Args:
        trials: those that it was fitted on.
        fitted: from `fit_map`.
        operating_points: whose thresholds are looked at.
        replicates: draws, at least 2.
        seed: of the draws.
        progress: show a bar.

    Raises:
        ValueError: hardly any draw holds pairs of both kinds.
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
        # A draw in which the score says nothing has its threshold nowhere.
        slope = again.weights[SCORE] if again.weights[SCORE] > 0 else np.nan
        wanted = np.array([point.threshold for point in operating_points])
        scores.append(np.array([float(place[SCORE]) for place in places]) + (wanted - now) / slope)
    if len(ratios) < max(2, replicates // 2):
        raise ValueError(
            f"Only {len(ratios)} of {replicates} draws of {trials.speaker_count} speakers hold pairs of both kinds: "
            "too few speakers to say how sure the thresholds are. Add speakers with two recordings or more."
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
    """How often each trial counts in one draw of the speakers, `(N,)`."""
    count = int(speakers.max()) + 1
    drawn = np.bincount(draw.integers(count, size=count), minlength=count).astype(np.float64)
    one_speaker = speakers[:, 0] == speakers[:, 1]
    return drawn[speakers[:, 0]] * np.where(one_speaker, 1.0, drawn[speakers[:, 1]])


def _at_threshold(trials: CalibrationTrials, fitted: AffineMap, threshold: float) -> dict[str, NDArray[np.float64]]:
    """Features of a pair whose log-likelihood ratio is the threshold: the mean of those near it, the score adjusted."""
    ratios = fitted(trials.features)
    near = np.argsort(np.abs(ratios - threshold))[:NEAREST]
    place = {name: np.asarray(trials.features[name][near].mean()) for name in fitted.weights}
    place[SCORE] = place[SCORE] + (threshold - fitted(place)) / fitted.weights[SCORE]
    return place
