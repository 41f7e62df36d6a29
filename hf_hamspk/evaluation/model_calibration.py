"""Calibrating a model on trials: which normalisation and quality measures help, and what is kept beside its weights.

What helps is decided by the Cllr of speakers that were not fitted on (see the module `calibrating`). The plainer choice
stays unless another one lowers it by `GAIN`, and would with other speakers, too: every step that depends on a cohort or
on quality measures is one more that other recordings can upset.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..audio_hamspk import MINIMUM_SPEECH
from ..calibration_hamspk import DEFAULT_OPERATING_POINTS, Calibration, Cohort, OperatingPoint, check_normalisation
from ..modeling_hamspk import HamSpkPreTrainedModel
from .calibrating import PAIRS_PER_PARAMETER, CalibrationTrials, FittedCalibration, fit
from .scored_trials import QUALITY_GROUPS, ScoredTrials, Setting
from .sufficiency import speaker_counts

# Sizes of the nearest part of the cohort that are tried for AS-norm, those below the cohort's.
TOPS = (20, 50, 100, 200, 400)
# Share of the held-out Cllr that a step must save: less is within what a few other speakers would change.
GAIN = 0.02
# A step must save something in this share of the draws of other speakers, and so many draws show it.
SURE, DRAWS = 0.95, 400
AUTO = "auto"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A setting, and how it does on held-out speakers.

    Attributes:
        setting: what went in.
        fitted: the map and the held-out ratios.
    """

    setting: Setting
    fitted: FittedCalibration


@dataclass(frozen=True, eq=False)
class ModelCalibration:
    """The calibration of a model, and how it was found.

    Attributes:
        calibration: for beside the weights.
        cohort: for beside the weights; None where scores are not normalised.
        trials: what the chosen setting was fitted on.
        chosen: the chosen candidate.
        candidates: all that were tried, the chosen one among them; the first is the plain score, or what was asked for.
    """

    calibration: Calibration
    cohort: Cohort | None
    trials: CalibrationTrials
    chosen: Candidate
    candidates: tuple[Candidate, ...]


def calibrate(
    scored: ScoredTrials,
    cohort: Cohort | None = None,
    normalisation: str = AUTO,
    top: int | None = None,
    quality: Sequence[str] = (),
    operating_points: Sequence[OperatingPoint] = DEFAULT_OPERATING_POINTS,
    minimum_speech: float = MINIMUM_SPEECH,
    audio: str = "",
    prior: float = 0.5,
) -> ModelCalibration:
    """Choose what helps, fit, and put together what belongs beside the weights.

    Args:
        scored: the pairs.
        cohort: for normalised scores; None goes without.
        normalisation: of `NORMALISATIONS`, or `"auto"`: none, or AS-norm where it helps.
        top: of `"as"`; None tries `TOPS`.
        quality: groups of `QUALITY_GROUPS`, or `("auto",)`: those that help.
        operating_points: that are kept, the first being the default.
        minimum_speech: seconds, kept in the calibration.
        audio: what the pairs are, in words.
        prior: where the fit is to be best, see `logistic_regression`.

    Raises:
        ValueError: too few pairs or speakers, unknown names, no cohort for a normalisation, or a model that does not
            tell these speakers apart.
    """
    _check_names(normalisation, quality)
    search = _Search(scored, cohort, tuple(operating_points), prior)
    tried = [search.attempt(Setting(kind, size)) for kind, size in _normalisations(cohort, normalisation, top)]
    chosen = _choose(tried, scored.features(Setting(), None), plain=normalisation == AUTO)
    if AUTO in quality:
        chosen = search.add_quality(chosen, tried)
    elif quality:
        chosen = search.attempt(Setting(chosen.setting.normalisation, chosen.setting.top, tuple(quality)))
        tried.append(chosen)
    setting, fitted = chosen.setting, chosen.fitted
    used = cohort if setting.normalisation != "none" else None
    trials = scored.features(setting, cohort)
    calibration = Calibration(
        fingerprint=scored.model.fingerprint(),
        similarity=scored.model.config.similarity,
        offset=fitted.map.offset,
        weights=fitted.map.weights,
        operating_points=fitted.operating_points,
        normalisation=setting.normalisation,
        top=setting.top,
        cohort=None if used is None else used.checksum,
        trials=len(trials),
        targets=trials.targets,
        speakers=trials.speaker_count,
        audio=audio,
        minimum_speech=minimum_speech,
    )
    return ModelCalibration(calibration, used, trials, chosen, tuple(tried))


def _check_names(normalisation: str, quality: Sequence[str]) -> None:
    if normalisation not in (AUTO, "as"):
        check_normalisation(normalisation, None)
    unknown = [name for name in quality if name not in (AUTO, *QUALITY_GROUPS)]
    if unknown:
        raise ValueError(f"Unknown quality measures {unknown}; known are {', '.join((AUTO, *QUALITY_GROUPS))}.")


def _normalisations(cohort: Cohort | None, normalisation: str, top: int | None) -> list[tuple[str, int | None]]:
    """The kinds and sizes to try, the plainest first."""
    if normalisation not in (AUTO, "as"):
        return [(normalisation, None)]
    plain: list[tuple[str, int | None]] = [("none", None)] if normalisation == AUTO else []
    if cohort is None:
        # What needs one says so.
        return plain if plain else [("as", TOPS[0] if top is None else top)]
    size = len(cohort.embeddings)
    tops = [top] if top is not None else [each for each in TOPS if each < size] or [size]
    return [*plain, *(("as", each) for each in tops)]


def _choose(candidates: Sequence[Candidate], trials: CalibrationTrials, plain: bool) -> Candidate:
    """The best; where the first is the plain one, another has to help."""
    best = min(candidates, key=lambda candidate: candidate.fitted.cost)
    return candidates[0] if plain and not _helps(best, candidates[0], trials) else best


def _helps(candidate: Candidate, plainer: Candidate, trials: CalibrationTrials) -> bool:
    """Whether a candidate saves `GAIN`, and something in nearly all draws of the speakers with replacement."""
    if not candidate.fitted.cost < (1 - GAIN) * plainer.fitted.cost:
        return False
    sign = np.where(trials.labels == 1, -1.0, 1.0)
    saved = np.logaddexp(0, sign * plainer.fitted.held_out_ratios) - np.logaddexp(
        0, sign * candidate.fitted.held_out_ratios
    )
    draw, helped, drawn = np.random.default_rng(0), 0, 0
    for _ in range(DRAWS):
        counts = speaker_counts(trials.speakers, draw)
        kinds = [counts * (trials.labels == kind) for kind in (0, 1)]
        if all(kind.any() for kind in kinds):
            drawn += 1
            helped += sum(float(np.average(saved, weights=kind)) for kind in kinds) > 0
    return helped >= SURE * drawn


@dataclass(frozen=True)
class _Search:
    """What does not change while settings are tried."""

    scored: ScoredTrials
    cohort: Cohort | None
    operating_points: tuple[OperatingPoint, ...]
    prior: float

    def attempt(self, setting: Setting) -> Candidate:
        trials = self.scored.features(setting, self.cohort)
        return Candidate(setting, fit(trials, setting.features, self.operating_points, self.prior))

    def add_quality(self, chosen: Candidate, tried: list[Candidate]) -> Candidate:
        """Add the group that helps most, as long as one helps and there are pairs enough for it."""
        targets = int(self.scored.trials.labels.sum())
        rarer = min(targets, len(self.scored.trials) - targets)
        while True:
            taken = chosen.setting.quality
            settings = [
                Setting(chosen.setting.normalisation, chosen.setting.top, (*taken, name))
                for name in QUALITY_GROUPS
                if name not in taken
            ]
            candidates = [self.attempt(s) for s in settings if rarer >= PAIRS_PER_PARAMETER * (1 + len(s.features))]
            tried.extend(candidates)
            best = min(candidates, key=lambda candidate: candidate.fitted.cost, default=chosen)
            if best is chosen or not _helps(best, chosen, self.scored.features(Setting(), None)):
                return chosen
            chosen = best


def known_speakers(model: HamSpkPreTrainedModel, speakers: Collection[str]) -> list[str]:
    """Of these speakers, those that the model was trained on, as far as its configuration names them."""
    trained = {str(name).partition("@")[0] for name in (model.config.id2label or {}).values()}
    return sorted(name for name in speakers if name in trained or name.rpartition("/")[2] in trained)
