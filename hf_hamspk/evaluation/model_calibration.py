"""Calibrating a model: from trials of your own recordings to decisions.

`calibrate` embeds the trials, tries score normalisation and quality measures, fits the map from scores to
log-likelihood ratios and measures how certain it is. Candidates are compared by the Cllr on held-out speakers (see the
module `calibrating`). A more complex candidate is taken only if it lowers the Cllr by `GAIN`, and would do so with
other speakers, too: each further step depends on a cohort or on quality measures, which other recordings can upset.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..audio_hamspk import MINIMUM_SPEECH
from ..calibration_hamspk import DEFAULT_OPERATING_POINTS, Calibration, Cohort, OperatingPoint, check_normalisation
from ..loading.models import load_model
from ..modeling_hamspk import HamSpkPreTrainedModel
from .calibrating import PAIRS_PER_PARAMETER, CalibrationTrials, FittedCalibration, fit
from .calibration_metrics import actual_detection_cost
from .cohorts import describe_cohort, embed_cohort, find_cohort
from .metrics import detection_errors
from .report import format_text
from .scored_trials import QUALITY_GROUPS, CalibrationSetting, ScoredTrials
from .speakers import read_metadata, speaker_table
from .sufficiency import Sufficiency, assess_size, speaker_counts
from .trials import Trials, check_trial_files, first_names, join_trials, read_trials
from .verification import embed_files

# Sizes of the nearest part of the cohort that are tried for AS-norm, if the cohort is larger.
TOPS = (20, 50, 100, 200, 400)
# Share of the held-out Cllr that a step must save: a few other speakers change it by less.
GAIN = 0.02
# A step must save something in this share of the draws of other speakers, of which there are so many.
SURE, DRAWS = 0.95, 400
AUTO, NONE = "auto", "none"
# Files named in the text of a report.
_FILES_LISTED = 5
# A training speaker at another speed, as the configuration of a model names it.
_AT_SPEED = re.compile(r"(.+)@\d+(\.\d+)?")


@dataclass(frozen=True, eq=False)
class CalibrationCandidate:
    """A setting and its performance on held-out speakers.

    Attributes:
        setting: normalisation and quality measures.
        fitted: the map and the held-out ratios.
    """

    setting: CalibrationSetting
    fitted: FittedCalibration


@dataclass(frozen=True, eq=False)
class ChosenCalibration:
    """The result of `choose_calibration`.

    Attributes:
        calibration: the calibration of the model.
        trials: the trials with the features of the chosen setting.
        chosen: the chosen candidate.
        candidates: all that were tried, the chosen one included; the first is the raw score, or the requested setting.
    """

    calibration: Calibration
    trials: CalibrationTrials
    chosen: CalibrationCandidate
    candidates: tuple[CalibrationCandidate, ...]


@dataclass(frozen=True, eq=False)
class CalibrationReport(ChosenCalibration):
    """What `calibrate` measured; `str(report)` is the text that `hamspk calibrate` prints.

    Attributes:
        model: the calibrated model.
        calibration: as set on the model.
        trials: the trials with the features of the chosen setting.
        chosen: the chosen candidate.
        candidates: all that were tried.
        sufficiency: how certain each threshold is, and how many speakers would be enough.
        skipped: file to the reason why its trials were left out.
        trained_on: speakers of the trials on which the model was trained; their scores are too good.
        cohort_skipped: file of the cohort to the reason why it was left out.
        cohort_left_out: number of speakers left out of the cohort, as they are in the trials.

    Example:
        ```python
        from hf_hamspk import HamSpkConfig, HamSpkModel
        from hf_hamspk.data.synthetic import make_corpus
        from hf_hamspk.evaluation import calibrate

        folder = make_corpus("some-speakers", speakers=10, utterances=4, test_share=0.8)
        model = HamSpkModel(HamSpkConfig(ecapa_channels=32, ecapa_output_channels=96, embedding_size=32)).eval()
        print(calibrate(model, folder / "trials.txt", folder, progress=False))
        ```
    """

    model: HamSpkPreTrainedModel
    sufficiency: Sufficiency
    skipped: dict[str, str]
    trained_on: list[str]
    cohort_skipped: dict[str, str]
    cohort_left_out: int

    def candidate_rows(self) -> list[list[str]]:
        """Header and a row for each candidate, measured on held-out speakers; `*` marks the chosen one."""
        points, labels = self.calibration.operating_points, self.trials.labels
        rows = [["", "setting", "Cllr", "EER %", *(f"actDCF {point.name}" for point in points)]]
        for candidate in self.candidates:
            ratios = candidate.fitted.held_out_ratios
            costs = [
                actual_detection_cost(ratios, labels, point.prior, point.cost_miss, point.cost_false_alarm).cost
                for point in points
            ]
            row = ["*" if candidate is self.chosen else "", str(candidate.setting), f"{candidate.fitted.cost:.4f}"]
            row.append(f"{100 * detection_errors(ratios, labels).equal_error_rate().eer:.2f}")
            rows.append(row + [f"{cost:.3f}" for cost in costs])
        return rows

    def operating_point_rows(self) -> list[list[str]]:
        """Header and a row for each operating point of the calibration."""
        rows = [["operating point", "prior", "costs", "threshold", "misses %", "false alarms %"]]
        for point in self.calibration.operating_points:
            rates = ["-" if rate is None else f"{100 * rate:.2f}" for rate in (point.miss_rate, point.false_alarm_rate)]
            costs = f"{point.cost_miss:g} : {point.cost_false_alarm:g}"
            rows.append([point.name, f"{point.prior:g}", costs, f"{point.threshold:.3f}", *rates])
        return rows

    def __str__(self) -> str:
        found = self.calibration
        lines = [
            f"{found.trials} pairs, {found.targets} of the same speaker, of {found.speakers} speakers; "
            f"{len(self.skipped)} files left out"
        ]
        lines += [f"  {file}: {reason}" for file, reason in list(self.skipped.items())[:_FILES_LISTED]]
        if len(self.skipped) > _FILES_LISTED:
            lines.append(f"  and {len(self.skipped) - _FILES_LISTED} more")
        if self.trained_on:
            lines.append(
                f"warning: the model was trained on {len(self.trained_on)} of these speakers "
                f"({first_names(self.trained_on)}): other speakers will score worse."
            )
        lines += ["", format_text(self.candidate_rows())]
        lines += ["Cllr and error rates are measured on held-out speakers; * marks the chosen setting.", ""]
        lines += [format_text(self.operating_point_rows()), "", *self.sufficiency.sentences()]
        if self.chosen.fitted.constant:
            lines.append(f"left out, as they are the same in all pairs: {', '.join(self.chosen.fitted.constant)}")
        return "\n".join(lines)


def calibrate(  # noqa: PLR0913 - the options of a command, by keyword
    model: HamSpkPreTrainedModel | str | os.PathLike[str],
    trials: Trials | str | os.PathLike[str] | Sequence[Trials | str | os.PathLike[str]],
    audio_root: str | os.PathLike[str] = ".",
    *,
    enrolment: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | Mapping[str, Mapping[str, str]] | None = None,
    cohort: str | os.PathLike[str] | Cohort | None = None,
    cohort_root: str | os.PathLike[str] | None = None,
    normalisation: str = AUTO,
    top: int | None = None,
    quality: str | Sequence[str] = AUTO,
    operating_points: Sequence[OperatingPoint] = DEFAULT_OPERATING_POINTS,
    minimum_speech: float = MINIMUM_SPEECH,
    progress: bool = True,
) -> CalibrationReport:
    """Calibrate a model with labelled pairs of recordings: measure, and set `model.calibration` and `model.cohort`.

    Use recordings like those to be decided on, of speakers that the model was not trained on: at least 20 pairs of each
    kind, better some dozens of speakers with a few recordings each. `model.save_pretrained` or
    `model.save_verification` writes the calibration beside the weights.

    Args:
        model: in evaluation mode; or its folder, or its name on the Hub, to load it from (see `report.model`).
        trials: one trial list or several, `Trials` or paths for `read_trials`.
        audio_root: folder of the files in the lists.
        enrolment: table of the files of each enrolment model, if the lists name models.
        metadata: table of the files with the column speaker_id, or a CSV file for `read_metadata`; None reads the
            speakers off the file names.
        cohort: recordings of some hundred other speakers (folder or CSV file for `find_cohort`), or a cohort of this
            model; None uses the cohort that the model has, if any. Speakers of the trials are left out.
        cohort_root: folder of the paths in the CSV file of `cohort`.
        normalisation: one of `NORMALISATIONS`, or `"auto"`: AS-norm if it helps.
        top: cohort scores on each side, for AS-norm; None tries `TOPS`.
        quality: `"auto"` for the measures that help, `"none"`, or some of `QUALITY_GROUPS`.
        operating_points: operating points of the calibration, the first being the default.
        minimum_speech: seconds of speech below which no decision is made; files with less are left out.
        progress: show bars.

    Returns:
        The candidates, the chosen one, and how certain its thresholds are.

    Raises:
        ValueError: a list or file is missing, an option is unknown, there are too few pairs or speakers, no cohort for
            a normalisation, or the model does not tell these speakers apart. The model is left as it was.
    """
    choices = _check_choices(normalisation, quality)
    given = [trials] if isinstance(trials, Trials | str | os.PathLike) else list(trials)
    pairs = join_trials([each if isinstance(each, Trials) else read_trials(each, enrolment) for each in given])
    check_trial_files(pairs, audio_root)
    table = metadata if metadata is None or isinstance(metadata, Mapping) else read_metadata(metadata)
    cohort_files = None if cohort is None or isinstance(cohort, Cohort) else find_cohort(cohort, cohort_root)
    model = model if isinstance(model, HamSpkPreTrainedModel) else load_model(model)
    embedded = embed_files(model, pairs.files, audio_root, progress=progress, measure=True)
    scored = ScoredTrials(model, pairs, embedded, minimum_speech, None if table is None else speaker_table(table))
    made, left_out = None, 0
    if cohort_files is not None:
        whole = embed_cohort(model, cohort_files, describe_cohort(str(cohort), cohort_files), progress)
        made = whole.without(scored.speakers.names)
        left_out = len(whole.speakers) - len(made.speakers)
    used = made.cohort if made is not None else cohort if isinstance(cohort, Cohort) else model.cohort
    found = choose_calibration(
        scored,
        used,
        normalisation,
        top,
        choices,
        operating_points,
        minimum_speech,
        ", ".join(_list_name(each) for each in given),
    )
    report = CalibrationReport(
        **vars(found),
        model=model,
        sufficiency=assess_size(found.trials, found.chosen.fitted.map, found.calibration.operating_points),
        skipped=scored.skipped,
        trained_on=known_speakers(model, scored.speakers.names),
        cohort_skipped={} if made is None else made.failures,
        cohort_left_out=left_out,
    )
    model.calibration, model.cohort = found.calibration, used
    return report


def _list_name(given: Trials | str | os.PathLike[str]) -> str:
    return f"{len(given)} trials" if isinstance(given, Trials) else Path(given).name


def choose_calibration(
    scored: ScoredTrials,
    cohort: Cohort | None = None,
    normalisation: str = AUTO,
    top: int | None = None,
    quality: str | Sequence[str] = (),
    operating_points: Sequence[OperatingPoint] = DEFAULT_OPERATING_POINTS,
    minimum_speech: float = MINIMUM_SPEECH,
    audio: str = "",
    prior: float = 0.5,
) -> ChosenCalibration:
    """Choose the setting that helps, and fit the calibration of a model.

    Args:
        scored: the trials.
        cohort: for normalised scores; None goes without.
        normalisation: as for `calibrate`, as `top`, `quality`, `operating_points` and `minimum_speech`.
        top: see there.
        quality: see there.
        operating_points: see there.
        minimum_speech: see there.
        audio: description of the trials.
        prior: of a target, for which the fit is optimal; see `logistic_regression`.

    Raises:
        ValueError: too few pairs or speakers, unknown names, no cohort for a normalisation, or a model that does not
            tell these speakers apart.
    """
    groups = _check_choices(normalisation, quality)
    search = _Search(scored, cohort, tuple(operating_points), prior)
    settings = [CalibrationSetting(kind, size) for kind, size in _normalisations(cohort, normalisation, top)]
    tried = [search.attempt(setting) for setting in settings]
    chosen = _choose(tried, scored.features(CalibrationSetting(), None), plain=normalisation == AUTO)
    if AUTO in groups:
        chosen = search.add_quality(chosen, tried)
    elif groups:
        chosen = search.attempt(CalibrationSetting(chosen.setting.normalisation, chosen.setting.top, groups))
        tried.append(chosen)
    setting, fitted = chosen.setting, chosen.fitted
    trials = scored.features(setting, cohort)
    calibration = Calibration(
        fingerprint=scored.model.fingerprint(),
        similarity=scored.model.config.similarity,
        offset=fitted.map.offset,
        weights=fitted.map.weights,
        operating_points=fitted.operating_points,
        normalisation=setting.normalisation,
        top=setting.top,
        cohort=None if setting.normalisation == "none" or cohort is None else cohort.checksum,
        trials=len(trials),
        targets=trials.targets,
        speakers=trials.speaker_count,
        audio=audio,
        minimum_speech=minimum_speech,
    )
    return ChosenCalibration(calibration, trials, chosen, tuple(tried))


def _check_choices(normalisation: str, quality: str | Sequence[str]) -> tuple[str, ...]:
    """The groups of quality measures, or `(AUTO,)`."""
    if normalisation not in (AUTO, "as"):
        check_normalisation(normalisation, None)
    names = (quality,) if isinstance(quality, str) else tuple(quality)
    unknown = [name for name in names if name not in (AUTO, NONE, *QUALITY_GROUPS)]
    if unknown:
        raise ValueError(f"Unknown quality measures {unknown}; known are {', '.join((AUTO, NONE, *QUALITY_GROUPS))}.")
    if len(names) > 1 and (AUTO in names or NONE in names):
        raise ValueError(f"The quality choices {AUTO} and {NONE} stand alone, got {' '.join(names)}.")
    return () if names == (NONE,) else names


def _normalisations(cohort: Cohort | None, normalisation: str, top: int | None) -> list[tuple[str, int | None]]:
    """The kinds and sizes to try, the plainest first."""
    if normalisation not in (AUTO, "as"):
        return [(normalisation, None)]
    plain: list[tuple[str, int | None]] = [("none", None)] if normalisation == AUTO else []
    if cohort is None:
        # AS-norm itself says that it needs a cohort.
        return plain if plain else [("as", TOPS[0] if top is None else top)]
    size = len(cohort.embeddings)
    tops = [top] if top is not None else [each for each in TOPS if each < size] or [size]
    return [*plain, *(("as", each) for each in tops)]


def _choose(candidates: Sequence[CalibrationCandidate], trials: CalibrationTrials, plain: bool) -> CalibrationCandidate:
    """The best candidate; if the first is the plain one, another must help."""
    best = min(candidates, key=lambda candidate: candidate.fitted.cost)
    return candidates[0] if plain and not _helps(best, candidates[0], trials) else best


def _helps(candidate: CalibrationCandidate, plainer: CalibrationCandidate, trials: CalibrationTrials) -> bool:
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
    """The part of the search that is the same for all settings."""

    scored: ScoredTrials
    cohort: Cohort | None
    operating_points: tuple[OperatingPoint, ...]
    prior: float

    def attempt(self, setting: CalibrationSetting) -> CalibrationCandidate:
        trials = self.scored.features(setting, self.cohort)
        return CalibrationCandidate(setting, fit(trials, setting.features, self.operating_points, self.prior))

    def add_quality(self, chosen: CalibrationCandidate, tried: list[CalibrationCandidate]) -> CalibrationCandidate:
        """Add the group of quality measures that helps most, as long as one helps and there are pairs enough."""
        targets = int(self.scored.trials.labels.sum())
        rarer = min(targets, len(self.scored.trials) - targets)
        while True:
            taken = chosen.setting.quality
            settings = [
                CalibrationSetting(chosen.setting.normalisation, chosen.setting.top, (*taken, name))
                for name in QUALITY_GROUPS
                if name not in taken
            ]
            candidates = [self.attempt(s) for s in settings if rarer >= PAIRS_PER_PARAMETER * (1 + len(s.features))]
            tried.extend(candidates)
            best = min(candidates, key=lambda candidate: candidate.fitted.cost, default=chosen)
            if best is chosen or not _helps(best, chosen, self.scored.features(CalibrationSetting(), None)):
                return chosen
            chosen = best


def known_speakers(model: HamSpkPreTrainedModel, speakers: Collection[str]) -> list[str]:
    """The speakers among these on which the model was trained, according to the labels in its configuration.

    A training speaker at another speed, `NAME@0.9`, counts as the speaker `NAME`.
    """
    trained = set()
    for label in map(str, (model.config.id2label or {}).values()):
        at_speed = _AT_SPEED.fullmatch(label)
        trained |= {label} if at_speed is None else {label, at_speed[1]}
    return sorted(name for name in speakers if name in trained or name.rpartition("/")[2] in trained)
