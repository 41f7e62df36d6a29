"""Measure how much a calibration would change with other speakers, to decide whether it has enough pairs.

In each draw, speakers are drawn with replacement, as many as the trials contain. The calibration is then fitted again.
This is the bootstrap over speakers of N. Poh and S. Bengio, "Estimating the confidence interval of expected performance
curve in biometric authentication using joint bootstrap", ICASSP 2007. A target pair is weighted by the number of times
that its speaker was drawn, and an impostor pair by the product of these numbers for its two speakers. The spread of the
thresholds is inversely proportional to the square root of the number of speakers.
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

# There are fewer draws than for intervals of error rates, because each draw needs a fit, and only the spread is used.
FITTED_DRAWS = 200
# Largest acceptable uncertainty of a threshold, as a log-likelihood ratio (a factor of 1.6 in the likelihood ratio).
# This uncertainty raises the detection cost by a few per cent. A change of the recording conditions raises it by more.
ENOUGH = 0.5
# The quality measures at a threshold are averaged over this number of trials nearest to it.
NEAREST = 50


@dataclass(frozen=True)
class PointUncertainty:
    """Uncertainty of the threshold of an operating point.

    Attributes:
        name: name of the operating point.
        threshold: log-likelihood ratio at and above which a pair is accepted.
        half_width: half of the width of the confidence interval of the log-likelihood ratio at the threshold, at least
            0.
        score: score at the threshold, for a pair with the average quality measures of the trials near the threshold.
        score_interval: lower and upper confidence limit of the score at the threshold.
        speakers: estimated number of speakers with which `half_width` would be `ENOUGH`.
    """

    name: str
    threshold: float
    half_width: float
    score: float
    score_interval: tuple[float, float]
    speakers: int


@dataclass(frozen=True)
class Sufficiency:
    """Result of `assess_size`: the uncertainty of a calibration and the numbers of its pairs and speakers.

    Attributes:
        points: uncertainty of the threshold of each operating point.
        targets: number of target pairs.
        impostors: number of impostor pairs.
        speakers: number of speakers.
        replicates: number of bootstrap draws with both target and impostor pairs.
    """

    points: tuple[PointUncertainty, ...]
    targets: int
    impostors: int
    speakers: int
    replicates: int

    def sentences(self) -> list[str]:
        """Return one sentence on the uncertainty of the threshold of each operating point."""
        lines = []
        for point in self.points:
            low, high = point.score_interval
            text = (
                f"{point.name}: with {self.targets} target pairs of {self.speakers} speakers, the threshold at score "
                f"{point.score:.3f} ({low:.3f} to {high:.3f}) is uncertain by +-{point.half_width:.2f} in "
                "log-likelihood ratio"
            )
            if point.half_width <= ENOUGH:
                lines.append(f"{text}; this is enough")
                continue
            pairs = math.ceil(self.targets * point.speakers / self.speakers)
            lines.append(f"{text}; for +-{ENOUGH:g}, use {point.speakers} speakers or more ({pairs} target pairs)")
        return lines


def assess_size(
    trials: CalibrationTrials,
    fitted: AffineMap,
    operating_points: Sequence[OperatingPoint] = DEFAULT_OPERATING_POINTS,
    replicates: int = FITTED_DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> Sufficiency:
    """Measure the uncertainty of the thresholds of a calibration by a bootstrap over speakers.

    Args:
        trials: trials to which the calibration was fitted.
        fitted: map of the calibration, from `fit_map`.
        operating_points: operating points whose thresholds are measured.
        replicates: number of draws of the speakers, at least 2.
        seed: random seed of the draws.
        progress: whether to show a progress bar.

    Raises:
        ValueError: fewer than half of the draws, or fewer than 2 draws, contain both target and impostor pairs.
    """
    names = list(fitted.weights)
    draw = np.random.default_rng(seed)
    places = [_at_threshold(trials, fitted, point.threshold) for point in operating_points]
    ratios, scores = [], []
    for _ in tqdm(range(replicates), desc="drawing speakers", unit="draw", disable=not progress, leave=False):
        counts = speaker_counts(trials.speakers, draw)
        if not (counts[trials.labels == 1].any() and counts[trials.labels == 0].any()):
            continue
        again = fit_map(trials, names, counts=counts)
        now = np.array([float(again(place)) for place in places])
        ratios.append(now)
        # If the weight of the score is not positive in a draw, no score corresponds to the threshold.
        slope = again.weights[SCORE] if again.weights[SCORE] > 0 else np.nan
        wanted = np.array([point.threshold for point in operating_points])
        scores.append(np.array([float(place[SCORE]) for place in places]) + (wanted - now) / slope)
    if len(ratios) < max(2, replicates // 2):
        raise ValueError(
            f"Too few speakers to measure the uncertainty of the thresholds: only {len(ratios)} of {replicates} draws "
            f"of {trials.speaker_count} speakers contain both target and impostor pairs. Add speakers with two or more "
            "recordings."
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
    """Draw the speakers with replacement, and return the resulting weight of each trial, `(N,)`."""
    count = int(speakers.max()) + 1
    drawn = np.bincount(draw.integers(count, size=count), minlength=count).astype(np.float64)
    one_speaker = speakers[:, 0] == speakers[:, 1]
    return drawn[speakers[:, 0]] * np.where(one_speaker, 1.0, drawn[speakers[:, 1]])


def _at_threshold(trials: CalibrationTrials, fitted: AffineMap, threshold: float) -> dict[str, NDArray[np.float64]]:
    """Return the features of an average pair at the threshold.

    The quality measures are the means over the `NEAREST` trials whose log-likelihood ratios are nearest to the
    threshold. The score is chosen so that the log-likelihood ratio of the pair equals the threshold.
    """
    ratios = fitted(trials.features)
    near = np.argsort(np.abs(ratios - threshold))[:NEAREST]
    place = {name: np.asarray(trials.features[name][near].mean()) for name in fitted.weights}
    place[SCORE] = place[SCORE] + (threshold - fitted(place)) / fitted.weights[SCORE]
    return place
