"""Calibrate a model with trials of your own recordings, so that the model can make decisions.

`calibrate` embeds the recordings, fits maps from scores to log-likelihood ratios, and measures the uncertainty of the
resulting thresholds. Each candidate map uses one score normalisation and one set of quality measures. Candidates are
compared by the Cllr on held-out speakers (see the module `calibrating`). The simplest candidate uses only the raw
score. The other candidates depend on a cohort or on quality measures, which may be different for other recordings.
Therefore, a more complex candidate is chosen only if its Cllr is more than 2 % (`GAIN`) lower than the Cllr of a
simpler one, and also lower in nearly all random draws of the speakers.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audio_hamspk import MINIMUM_SPEECH, Channel
from ..calibration_hamspk import DEFAULT_OPERATING_POINTS, Calibration, Cohort, OperatingPoint, check_normalisation
from ..loading.models import given_model
from ..modeling_hamspk import SpeakerModelMixin
from .calibrating import PAIRS_PER_PARAMETER, CalibrationTrials, FittedCalibration, fit
from .calibration_metrics import actual_detection_cost
from .cohorts import describe_cohort, embed_cohort, find_cohort
from .metrics import detection_errors
from .repeats import Repeats, describe_own_pairs, find_repeats
from .report import format_text
from .scored_trials import QUALITY_GROUPS, CalibrationSetting, ScoredTrials
from .speakers import read_metadata, speaker_table
from .sufficiency import Sufficiency, assess_size, speaker_counts
from .trials import Trials, check_trial_files, first_names, join_trials, read_trials
from .verification import embed_files

# Numbers of nearest cohort speakers to try for AS-norm. Each is tried only if the cohort has more speakers.
TOPS = (20, 50, 100, 200, 400)
# A more complex candidate must lower the held-out Cllr by more than this share. Replacing a few speakers changes the
# Cllr by less.
GAIN = 0.02
# A more complex candidate must also lower the Cllr in at least the share SURE of DRAWS random draws of the speakers.
SURE, DRAWS = 0.95, 400
AUTO, NONE = "auto", "none"
# Largest absolute threshold, as a log-likelihood ratio. It is a likelihood ratio of 5e21, which no recordings give.
LARGEST_THRESHOLD = 50.0
# Cllr, in bits, if all log-likelihood ratios are 0 and so contain no information.
USELESS_COST = 1.0
# Largest number of left-out files that the text of a report lists.
_FILES_LISTED = 100
# Training label of a speaker whose recordings were sped up or slowed down.
_AT_SPEED = re.compile(r"(.+)@\d+(\.\d+)?")


@dataclass(frozen=True, eq=False)
class CalibrationCandidate:
    """Setting of a calibration, with its fitted map and its performance on held-out speakers.

    Attributes:
        setting: score normalisation and quality measures.
        fitted: fitted map and its held-out log-likelihood ratios.
    """

    setting: CalibrationSetting
    fitted: FittedCalibration


@dataclass(frozen=True, eq=False)
class ChosenCalibration:
    """Result of `choose_calibration`: the calibration, its trials and the candidates.

    Attributes:
        calibration: calibration of the model.
        trials: trials with the features that the chosen candidate uses.
        chosen: chosen candidate.
        candidates: all tried candidates, including the chosen one. The first candidate uses the raw score, or the
            requested normalisation.
        left_out: maps the name of each default operating point that was left out to the reason.
    """

    calibration: Calibration
    trials: CalibrationTrials
    chosen: CalibrationCandidate
    candidates: tuple[CalibrationCandidate, ...]
    left_out: dict[str, str]

    def warnings(self) -> list[str]:
        """Return sentences about a calibration or operating points that should not be used for decisions."""
        cost, lines = self.chosen.fitted.cost, []
        if not cost < USELESS_COST:
            lines.append(
                f"The calibration is worse than none: its Cllr on held-out speakers is {cost:.3f} bits, but it is "
                f"{USELESS_COST:g} bit if all log-likelihood ratios are 0. Do not use it. Check the labels, add pairs "
                "of more speakers, or use a better model."
            )
        for point in self.calibration.operating_points:
            if point.flaw:
                lines.append(f"{point.flaw} Do not use it.")
            elif (cost := held_out_cost(self.chosen, self.trials.labels, point)) > 1:
                lines.append(
                    f"The operating point {point.name} is worse than the same decision for all pairs: its actDCF on "
                    f"held-out speakers is {cost:.3f}, but the same decision for all pairs has an actDCF of 1. Do not "
                    "use it. Add pairs of more speakers, or use a better model."
                )
        return lines


def held_out_cost(candidate: CalibrationCandidate, labels: NDArray, point: OperatingPoint) -> float:
    """Return the normalised detection cost (actDCF) of a candidate at an operating point, on held-out speakers."""
    costs = point.prior, point.cost_miss, point.cost_false_alarm
    return actual_detection_cost(candidate.fitted.held_out_ratios, labels, *costs).cost


@dataclass(frozen=True, eq=False)
class CalibrationReport(ChosenCalibration):
    """Result of `calibrate`; `str(report)` is the text that `hamspk calibrate` prints.

    Attributes:
        model: calibrated model.
        calibration: calibration that was set on the model.
        trials: trials with the features that the chosen candidate uses.
        chosen: chosen candidate.
        candidates: all tried candidates, including the chosen one.
        left_out: maps the name of each default operating point that was left out to the reason.
        sufficiency: uncertainty of each threshold, and an estimate of how many speakers are enough.
        skipped: maps each unusable file to the reason. The trials with these files were left out.
        trained_on: speakers of the trials who also occur in the training data of the model. For other speakers, the
            error rates will be higher.
        cohort_skipped: maps each unusable file of the cohort to the reason.
        cohort_left_out: number of speakers who were left out of the cohort because they occur in the trials.
        own_pairs: enrolment and test of each pair of a recording with itself; these pairs were left out.

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

    model: SpeakerModelMixin
    sufficiency: Sufficiency
    skipped: dict[str, str]
    trained_on: list[str]
    cohort_skipped: dict[str, str]
    cohort_left_out: int
    own_pairs: tuple[tuple[str, str], ...]

    def candidate_rows(self) -> list[list[str]]:
        """Return a table of the candidates: a header row, then a row of held-out results for each candidate."""
        points, labels = self.chosen.fitted.operating_points, self.trials.labels
        rows = [["", "setting", "Cllr", "EER %", *(f"actDCF {point.name}" for point in points)]]
        for candidate in self.candidates:
            ratios = candidate.fitted.held_out_ratios
            costs = [held_out_cost(candidate, labels, point) for point in points]
            row = ["*" if candidate is self.chosen else "", str(candidate.setting), f"{candidate.fitted.cost:.4f}"]
            row.append(f"{100 * detection_errors(ratios, labels).equal_error_rate().eer:.2f}")
            rows.append(row + [f"{cost:.3f}" for cost in costs])
        return rows

    def operating_point_rows(self) -> list[list[str]]:
        """Return a table of the operating points of the calibration: a header row, then a row for each point."""
        rows = [["operating point", "prior", "costs", "threshold", "misses %", "false alarms %"]]
        for point in self.calibration.operating_points:
            rates = ["-" if rate is None else f"{100 * rate:.2f}" for rate in (point.miss_rate, point.false_alarm_rate)]
            costs = f"{point.cost_miss:g} : {point.cost_false_alarm:g}"
            rows.append([point.name, f"{point.prior:g}", costs, f"{point.threshold:.3f}", *rates])
        return rows

    def choice(self) -> str:
        """Return the sentences below the table of candidates. They explain why the marked candidate was chosen."""
        if len(self.candidates) == 1:
            return "* marks the setting of the calibration."
        best = min(self.candidates, key=lambda candidate: candidate.fitted.cost)
        if not self.chosen.fitted.cost > best.fitted.cost:
            return "* marks the chosen setting, which has the smallest Cllr."
        if len(self.chosen.setting.features) > len(best.setting.features):
            return f"* marks the requested setting. {best.setting} has a smaller Cllr."
        return (
            f"* marks the chosen setting. {best.setting} has a smaller Cllr, but normalisation or quality measures "
            f"are added only if they lower the Cllr by more than {100 * GAIN:g} %, and in at least {100 * SURE:g} % of "
            f"{DRAWS} random draws of the speakers. A smaller gain may be chance."
        )

    def warnings(self) -> list[str]:
        """Return warnings about left-out pairs, about training speakers, and about results that should not be used."""
        lines = []
        if self.own_pairs:
            lines.append(describe_own_pairs(self.own_pairs))
        if self.trained_on:
            lines.append(
                f"The model was trained on {len(self.trained_on)} of these speakers "
                f"({first_names(self.trained_on)}). Error rates of other speakers will be higher."
            )
        return lines + super().warnings()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that can be written as JSON; `hamspk calibrate --json` prints it."""
        found, (header, *rows) = self.calibration, self.candidate_rows()
        return {
            "pairs": found.trials,
            "target_pairs": found.targets,
            "speakers": found.speakers,
            "setting": str(self.chosen.setting),
            "cllr": self.chosen.fitted.cost,
            "candidates": {
                setting: dict(zip(header[2:], map(float, numbers), strict=True)) for _, setting, *numbers in rows
            },
            "operating_points": [asdict(point) | {"threshold": point.threshold} for point in found.operating_points],
            "operating_points_left_out": self.left_out,
            "uncertainty": self.sufficiency.sentences(),
            "skipped": self.skipped,
            "own_pairs": [list(pair) for pair in self.own_pairs],
            "trained_on": self.trained_on,
            "cohort_skipped": self.cohort_skipped,
            "cohort_left_out": self.cohort_left_out,
            "warnings": self.warnings(),
        }

    def __str__(self) -> str:
        found = self.calibration
        lines = [
            f"{found.trials} pairs of {found.speakers} speakers, {found.targets} of them target pairs; "
            f"{len(self.skipped)} files left out"
        ]
        lines += [f"  {file}: {reason}" for file, reason in list(self.skipped.items())[:_FILES_LISTED]]
        if len(self.skipped) > _FILES_LISTED:
            lines.append(f"  and {len(self.skipped) - _FILES_LISTED} more")
        lines += [f"warning: {warning}" for warning in self.warnings()]
        lines += ["", format_text(self.candidate_rows())]
        lines += ["Cllr and error rates are measured on held-out speakers.", self.choice(), ""]
        lines += [format_text(self.operating_point_rows())]
        lines += [f"left out: {reason}" for reason in self.left_out.values()]
        lines += ["", *self.sufficiency.sentences()]
        if self.chosen.fitted.constant:
            lines.append(f"quality measures without variation, left out: {', '.join(self.chosen.fitted.constant)}")
        return "\n".join(lines)


def calibrate(  # noqa: PLR0913 - the options of a command, by keyword
    model: SpeakerModelMixin | str | os.PathLike[str],
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
    operating_points: Sequence[OperatingPoint] | None = None,
    minimum_speech: float = MINIMUM_SPEECH,
    channel: Channel = None,
    progress: bool = True,
) -> CalibrationReport:
    """Calibrate a model with labelled pairs of recordings, and set `model.calibration` and `model.cohort`.

    The recordings should resemble the recordings of later decisions, and the model should not have been trained on
    their speakers. At least 20 target pairs and 20 impostor pairs are needed. Several dozen speakers with a few
    recordings each give a better calibration. Pairs of a recording with itself, and recordings that occur under two
    speakers, are left out and reported. Copies of a recording are found by their content. `model.save_pretrained` or
    `model.save_verification` saves the calibration in the folder of the weights. The calibration of a result of
    `with_backend` is saved with `report.calibration.save`.

    Args:
        model: model in evaluation mode, result of `with_backend`, folder of a model, or its name on the Hub. The
            attribute `model` of the returned report is the calibrated model.
        trials: one trial list or several, each `Trials` or a path for `read_trials`.
        audio_root: folder to which the file names in the lists are relative.
        enrolment: path of the table with the files of each enrolment model; None if the lists name enrolment files.
        metadata: CSV file for `read_metadata`, or a mapping from each file to its columns. The column `speaker_id`
            contains the speaker of the file. None infers the speakers from the file names.
        cohort: folder or list of recordings for `find_cohort` with a few hundred other speakers, or a `Cohort` of this
            model; None uses the model's cohort, if it has one. If files are given, speakers who occur in the trials
            are left out of the cohort.
        cohort_root: folder to which the paths in the list of `cohort` are relative.
        normalisation: one of `NORMALISATIONS`, or `"auto"`, which uses AS-norm if it helps.
        top: number of nearest cohort speakers for AS-norm, at least 2; None tries each number in `TOPS`.
        quality: `"auto"` to use the quality measures that help, `"none"` to use none, or keys of `QUALITY_GROUPS`.
        operating_points: operating points of the calibration; the first is the default. None uses those
            `DEFAULT_OPERATING_POINTS` that reject some impostors and accept some targets; the others are left out.
        minimum_speech: seconds of speech that a decision requires; files with less speech are left out.
        channel: channel to read, both of the recordings in the trials and of those in the cohort; see `read_sound`.
        progress: whether to show progress bars.

    Returns:
        A report of the candidates, of the chosen candidate and of the uncertainty of its thresholds.

    Raises:
        ValueError: a list or file is missing, an option is unknown, there are too few pairs or speakers, a
            normalisation lacks its cohort, the model does not tell these speakers apart, or all default operating
            points are left out. The model is not changed.
    """
    choices = _check_choices(normalisation, quality)
    _check_thresholds(() if operating_points is None else operating_points)
    given = [trials] if isinstance(trials, Trials | str | os.PathLike) else list(trials)
    pairs = join_trials([each if isinstance(each, Trials) else read_trials(each, enrolment) for each in given])
    check_trial_files(pairs, audio_root)
    table = metadata if metadata is None or isinstance(metadata, Mapping) else read_metadata(metadata)
    cohort_files = None if cohort is None or isinstance(cohort, Cohort) else find_cohort(cohort, cohort_root)
    speakers = None if table is None else speaker_table(table)
    repeats = find_repeats(pairs, audio_root, speakers)
    model = given_model(model)
    files = [name for name in repeats.trials.files if name not in repeats.shared]
    embedded = embed_files(model, files, audio_root, progress=progress, measure=True, channel=channel)
    embedded.failures.update(repeats.shared)
    made, left_out = None, 0
    with _explain_left_out(repeats):
        scored = ScoredTrials(model, repeats.trials, embedded, minimum_speech, speakers)
        if cohort_files is not None:
            whole = embed_cohort(model, cohort_files, describe_cohort(str(cohort), cohort_files), progress, channel)
            made = whole.without(scored.speakers.names)
            left_out = len(whole.speakers) - len(made.speakers)
        used = made.cohort if made is not None else cohort if isinstance(cohort, Cohort) else model.cohort
        audio = ", ".join(_list_name(each) for each in given)
        options = normalisation, top, choices, operating_points, minimum_speech, audio
        found = choose_calibration(scored, used, *options)
    report = CalibrationReport(
        **vars(found),
        model=model,
        sufficiency=assess_size(found.trials, found.chosen.fitted.map, found.calibration.operating_points),
        skipped=scored.skipped,
        trained_on=known_speakers(model, scored.speakers.names),
        cohort_skipped={} if made is None else made.failures,
        cohort_left_out=left_out,
        own_pairs=repeats.own_pairs,
    )
    model.calibration, model.cohort = found.calibration, used
    return report


@contextmanager
def _explain_left_out(repeats: Repeats) -> Iterator[None]:
    """Context manager that adds the number of left-out pairs to the error if too few pairs remain."""
    try:
        yield
    except ValueError as error:
        if not repeats.own_pairs:
            raise
        raise ValueError(f"{error} {describe_own_pairs(repeats.own_pairs)}") from error


def _list_name(given: Trials | str | os.PathLike[str]) -> str:
    return f"{len(given)} trials" if isinstance(given, Trials) else Path(given).name


def choose_calibration(
    scored: ScoredTrials,
    cohort: Cohort | None = None,
    normalisation: str = AUTO,
    top: int | None = None,
    quality: str | Sequence[str] = (),
    operating_points: Sequence[OperatingPoint] | None = None,
    minimum_speech: float = MINIMUM_SPEECH,
    audio: str = "",
    prior: float = 0.5,
) -> ChosenCalibration:
    """Choose the normalisation and quality measures that help, and fit the calibration of a model.

    Args:
        scored: scored trials.
        cohort: cohort for score normalisation; None tries raw scores only.
        normalisation: one of `NORMALISATIONS`, or `"auto"`, which uses AS-norm if it helps.
        top: number of nearest cohort speakers for AS-norm, at least 2; None tries each number in `TOPS`.
        quality: `"auto"` to use the quality measures that help, `"none"` to use none, or keys of `QUALITY_GROUPS`.
        operating_points: operating points of the calibration; the first is the default. None uses those
            `DEFAULT_OPERATING_POINTS` that reject some impostors and accept some targets; the others are left out.
        minimum_speech: seconds of speech that a decision requires.
        audio: description of the trials, stored in the calibration.
        prior: prior probability of a target trial for which the fit is optimal (see `logistic_regression`).

    Raises:
        ValueError: there are too few pairs or speakers, an option is unknown, a normalisation lacks its cohort, the
            model does not tell these speakers apart, or all default operating points are left out.
    """
    groups = _check_choices(normalisation, quality)
    points = DEFAULT_OPERATING_POINTS if operating_points is None else tuple(operating_points)
    _check_thresholds(points)
    search = _Search(scored, cohort, points, prior)
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
    left_out = {} if operating_points is not None else _useless_points(fitted.operating_points)
    calibration = Calibration(
        fingerprint=scored.model.fingerprint(),
        similarity=scored.model.config.similarity,
        offset=fitted.map.offset,
        weights=fitted.map.weights,
        operating_points=tuple(point for point in fitted.operating_points if point.name not in left_out),
        normalisation=setting.normalisation,
        top=setting.top,
        cohort=None if setting.normalisation == "none" or cohort is None else cohort.checksum,
        trials=len(trials),
        targets=trials.targets,
        speakers=trials.speaker_count,
        audio=audio,
        minimum_speech=minimum_speech,
        detector=scored.detector,
    )
    return ChosenCalibration(calibration, trials, chosen, tuple(tried), left_out)


def _useless_points(points: Sequence[OperatingPoint]) -> dict[str, str]:
    """Find the operating points that rejected all target trials or accepted all impostor trials.

    Returns:
        A dictionary that maps the name of each such operating point to its `flaw`, a sentence with the reason.

    Raises:
        ValueError: all `points` are such operating points.
    """
    found = {point.name: point.flaw for point in points if point.flaw is not None}
    if len(found) == len(points):
        raise ValueError(
            f"No operating point can be used. {' '.join(found.values())} Calibrate with more pairs or with a better "
            "model, or give an operating point of your own."
        )
    return found


def _check_thresholds(points: Sequence[OperatingPoint]) -> None:
    for point in points:
        if not abs(point.threshold) <= LARGEST_THRESHOLD:
            raise ValueError(
                f"The threshold of the operating point {point.name} is the log-likelihood ratio {point.threshold:.0f}, "
                f"but thresholds must lie between -{LARGEST_THRESHOLD:g} and {LARGEST_THRESHOLD:g}. Choose a prior and "
                "costs that are less extreme."
            )


def _check_choices(normalisation: str, quality: str | Sequence[str]) -> tuple[str, ...]:
    """Check the options; return the chosen groups of quality measures, or `(AUTO,)`."""
    if normalisation not in (AUTO, "as"):
        check_normalisation(normalisation, None)
    names = (quality,) if isinstance(quality, str) else tuple(quality)
    unknown = [name for name in names if name not in (AUTO, NONE, *QUALITY_GROUPS)]
    if unknown:
        raise ValueError(
            f"Unknown quality measures: {unknown}. Choose from {', '.join((AUTO, NONE, *QUALITY_GROUPS))}."
        )
    if len(names) > 1 and (AUTO in names or NONE in names):
        raise ValueError(f"The quality choices {AUTO} and {NONE} must stand alone, got {' '.join(names)}.")
    return () if names == (NONE,) else names


def _normalisations(cohort: Cohort | None, normalisation: str, top: int | None) -> list[tuple[str, int | None]]:
    """Return the normalisations to try, each with its number of nearest cohort speakers, the simplest first."""
    if normalisation not in (AUTO, "as"):
        return [(normalisation, None)]
    plain: list[tuple[str, int | None]] = [("none", None)] if normalisation == AUTO else []
    if cohort is None:
        # If AS-norm is requested without a cohort, the later fit raises an error about the missing cohort.
        return plain if plain else [("as", TOPS[0] if top is None else top)]
    size = len(cohort.embeddings)
    tops = [top] if top is not None else [each for each in TOPS if each < size] or [size]
    return [*plain, *(("as", each) for each in tops)]


def _choose(candidates: Sequence[CalibrationCandidate], trials: CalibrationTrials, plain: bool) -> CalibrationCandidate:
    """Return the candidate with the lowest Cllr.

    If `plain` is True and this candidate does not help (see `_helps`), return the first candidate instead.
    """
    best = min(candidates, key=lambda candidate: candidate.fitted.cost)
    return candidates[0] if plain and not _helps(best, candidates[0], trials) else best


def _helps(candidate: CalibrationCandidate, plainer: CalibrationCandidate, trials: CalibrationTrials) -> bool:
    """Return whether the Cllr of a candidate is enough below the Cllr of a plainer candidate to choose it.

    The Cllr must fall by more than the share `GAIN`. It must also fall in at least the share `SURE` of random draws of
    the speakers.
    """
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
    """Search for the best setting; all candidates use the same trials, cohort, operating points and prior."""

    scored: ScoredTrials
    cohort: Cohort | None
    operating_points: tuple[OperatingPoint, ...]
    prior: float

    def attempt(self, setting: CalibrationSetting) -> CalibrationCandidate:
        trials = self.scored.features(setting, self.cohort)
        return CalibrationCandidate(setting, fit(trials, setting.features, self.operating_points, self.prior))

    def add_quality(self, chosen: CalibrationCandidate, tried: list[CalibrationCandidate]) -> CalibrationCandidate:
        """Add the best group of quality measures repeatedly, until no group helps or the pairs are too few.

        Args:
            chosen: candidate without quality measures.
            tried: list to which all tried candidates are appended.

        Returns:
            The candidate with the added groups, or `chosen` if no group helps.
        """
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


def known_speakers(model: SpeakerModelMixin, speakers: Collection[str]) -> list[str]:
    """Return the given speakers who occur among the training labels in the configuration of the model.

    A label such as `NAME@0.9`, which speed perturbation adds in training, counts as the speaker `NAME`.
    """
    trained = set()
    for label in map(str, (model.config.id2label or {}).values()):
        at_speed = _AT_SPEED.fullmatch(label)
        trained |= {label} if at_speed is None else {label, at_speed[1]}
    return sorted(name for name in speakers if name in trained or name.rpartition("/")[2] in trained)
