"""Measuring a model on trial lists: error rates, costs and their intervals, raw and calibrated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration_hamspk import OperatingPoint
from ..modeling_hamspk import HamSpkPreTrainedModel
from .calibration_metrics import actual_detection_cost, convex_hull, log_likelihood_ratio_cost
from .intervals import CONFIDENCE, FEWEST_SPEAKERS, REPLICATES, BootstrapResult, bootstrap
from .metrics import DetectionErrors, detection_errors
from .plots import plot_det, plot_detection_costs, plot_score_histogram
from .ratio_scoring import score_ratios
from .speakers import TrialSpeakers, find_speakers, group_trials, speaker_table
from .trials import Trials, check_official, check_trial_files, read_trials
from .verification import PRIORS, EmbeddedFiles, enrol_models, score_trials, usable_trials

RATIO = "log-likelihood ratio"
HISTOGRAM_BINS = 60


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and how.

    Attributes:
        protocol: of `verification.PROTOCOLS`, that the files were embedded with.
        priors: of a target, for minDCF and actDCF.
        replicates: for the intervals; 0 for none.
        confidence: of the intervals.
        metadata: file to columns, from `read_metadata`; with `speaker_id` it says who speaks.
        group_by: columns of it.
        subtract_mean: subtract the mean of the model's cohort from every embedding; scores are then not calibrated.
        calibrated: use the model's calibration if it has one.
        progress: show bars.
    """

    protocol: str = "whole"
    priors: Sequence[float] = PRIORS
    replicates: int = REPLICATES
    confidence: float = CONFIDENCE
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    group_by: Sequence[str] = ()
    subtract_mean: bool = False
    calibrated: bool = True
    progress: bool = True


# Arrays have no single truth value, so a generated `__eq__` would raise: compared by identity.
@dataclass(frozen=True, eq=False)
class ListEvaluation:
    """A model on one trial list.

    Attributes:
        record: the numbers, as in `evaluation.json`; see the module.
        trials: `N` of them, those that could be scored.
        raw: `(N,)` similarities.
        ratios: `(N,)` log-likelihood ratios; None where the model is not calibrated.
        speakers: of the trials; None where they cannot be told.
    """

    record: dict[str, Any]
    trials: Trials
    raw: NDArray[np.float64]
    ratios: NDArray[np.float64] | None
    speakers: TrialSpeakers | None

    @property
    def scores(self) -> NDArray[np.float64]:
        """What the model answers with: the ratios, or else the similarities."""
        return self.raw if self.ratios is None else self.ratios


@dataclass(frozen=True)
class _Measuring:
    """What is the same for the whole list, its raw scores and its groups."""

    settings: EvaluationSettings
    points: tuple[OperatingPoint, ...]

    def numbers(
        self,
        scores: NDArray[np.float64],
        labels: NDArray,
        speakers: TrialSpeakers | str,
        ratios: bool,
    ) -> dict[str, Any]:
        """The numbers of some trials; `speakers` may be the reason why they are unknown."""
        errors, hull = detection_errors(scores, labels), convex_hull(scores, labels)
        equal = errors.equal_error_rate()
        spread, note = self._spread(scores, labels, speakers, ratios)
        priors = {f"{prior:g}": prior for prior in self.settings.priors}
        record: dict[str, Any] = {
            "trials": len(labels),
            "targets": int(labels.sum()),
            "speakers": None if isinstance(speakers, str) else len(speakers.names),
            "eer": equal.eer,
            "eer_interval": _interval(spread, "eer"),
            "eer_threshold": equal.threshold,
            "eer_convex_hull": hull.equal_error_rate().eer,
            "min_dcf": {name: errors.minimum_detection_cost(prior).cost for name, prior in priors.items()},
            "min_dcf_interval": {name: _interval(spread, f"min_dcf prior {name}") for name in priors},
            "min_cllr": hull.log_likelihood_ratio_cost(),
        }
        if ratios:
            record |= {
                "act_dcf": {name: actual_detection_cost(scores, labels, p).cost for name, p in priors.items()},
                "act_dcf_interval": {name: _interval(spread, f"act_dcf prior {name}") for name in priors},
                "cllr": log_likelihood_ratio_cost(scores, labels),
                "cllr_interval": _interval(spread, "cllr"),
                "operating_points": {point.name: _at(point, scores, errors, labels, spread) for point in self.points},
            }
        else:
            record |= dict.fromkeys(
                ("act_dcf", "act_dcf_interval", "cllr", "cllr_interval", "operating_points"),
            )
        record |= {
            "confidence": None if spread is None else self.settings.confidence,
            "replicates": None if spread is None else self.settings.replicates - spread.left_out,
            "interval_note": note,
        }
        return record

    def _spread(
        self, scores: NDArray[np.float64], labels: NDArray, speakers: TrialSpeakers | str, ratios: bool
    ) -> tuple[BootstrapResult | None, str | None]:
        """The bootstrap, or else why there is none."""
        if self.settings.replicates == 0:
            return None, "none were asked for"
        if isinstance(speakers, str):
            return None, speakers
        if len(speakers.names) < FEWEST_SPEAKERS:
            return None, f"{len(speakers.names)} speakers are too few to resample; {FEWEST_SPEAKERS} are needed"
        priors = [OperatingPoint(f"prior {prior:g}", prior) for prior in self.settings.priors]
        points = [*priors, *(self.points if ratios else ())]
        options = self.settings.replicates, self.settings.confidence
        return bootstrap(scores, labels, speakers, points, ratios, *options, progress=self.settings.progress), None


def evaluate_list(
    model: HamSpkPreTrainedModel, trials: Trials, embedded: EmbeddedFiles, settings: EvaluationSettings
) -> ListEvaluation:
    """Score a trial list and measure everything.

    A calibrated model is judged by the log-likelihood ratios that it answers with, if the protocol is that of its
    calibration (whole utterances); its files with too little speech for an answer are left out and counted.

    Args:
        model: gives similarity, calibration and cohort.
        trials: the list.
        embedded: at least its files, from `embed_files`, with `measure` for a calibrated model.
        settings: what is measured.

    Raises:
        ValueError: no target or no impostor trial is left, all scores are equal, the metadata lacks speakers of the
            list or contradicts it, or there is no cohort whose mean could be subtracted.
    """
    calibration = model.calibration if settings.calibrated and applies_calibration(model, settings) else None
    embedded = embedded.part(trials.files)
    if calibration is not None:
        embedded = embedded.refuse_short(calibration.minimum_speech)
    usable = usable_trials(trials, embedded.failures)
    embedded = enrol_models(usable, embedded)
    raw = score_trials(model, usable, embedded, _cohort_mean(model) if settings.subtract_mean else None)
    ratios = None
    if calibration is not None:
        ratios = score_ratios(model, usable, embedded, raw, calibration, model.cohort)
    speakers = _speakers(usable, settings)
    measuring = _Measuring(settings, () if calibration is None else calibration.operating_points)
    scores = raw if ratios is None else ratios
    record = {
        "skipped": len(trials) - len(usable),
        "unusable_files": embedded.failures,
        "scores": model.config.similarity if ratios is None else RATIO,
        "normalisation": "none" if calibration is None else calibration.normalisation,
        **measuring.numbers(scores, usable.labels, speakers, ratios is not None),
    }
    if ratios is not None:
        numbers = measuring.numbers(raw, usable.labels, speakers, False)
        record["raw"] = {"scores": model.config.similarity} | {k: v for k, v in numbers.items() if v is not None}
    record["groups"], record["groups_left_out"] = {}, {}
    for label, mask in group_trials(usable, settings.metadata, settings.group_by).items():
        if not 0 < int(usable.labels[mask].sum()) < int(mask.sum()):
            record["groups_left_out"][label] = f"its {int(mask.sum())} trials are not of both kinds"
            continue
        within = speakers if isinstance(speakers, str) else speakers.select(mask)
        record["groups"][label] = measuring.numbers(scores[mask], usable.labels[mask], within, ratios is not None)
    record["histogram"] = _histogram(scores, usable.labels)
    return ListEvaluation(record, usable, raw, ratios, None if isinstance(speakers, str) else speakers)


def read_lists(
    paths: list[str], audio_root: str, enrolment: str | None = None, official: list[str] | None = None
) -> dict[str, Trials]:
    """Trial lists by a short name, their files all there.

    Raises:
        ValueError: the folder, a list or a file of a list is missing, a list is malformed, or is not the official one.
    """
    if not Path(audio_root).is_dir():
        raise ValueError(f"There is no folder {audio_root} (--audio-root).")
    stems = [Path(path).stem for path in paths]
    expected = [] if official is None else official
    if expected and len(expected) != len(paths):
        raise ValueError(
            f"--official must name one list for each of the {len(paths)} trial lists, got {len(expected)}."
        )
    lists = {}
    for number, (path, stem) in enumerate(zip(paths, stems, strict=True)):
        trials = read_trials(path, enrolment)
        if expected:
            check_official(trials, expected[number], path)
        check_trial_files(trials, audio_root)
        lists[stem if stems.count(stem) == 1 else path] = trials
    return lists


def applies_calibration(model: HamSpkPreTrainedModel, settings: EvaluationSettings) -> bool:
    """Whether the model is calibrated for scores as these settings make them."""
    return model.calibration is not None and settings.protocol == "whole" and not settings.subtract_mean


def draw_plots(results: Mapping[str, ListEvaluation], folder: Path, model: HamSpkPreTrainedModel) -> dict[str, Path]:
    """Caption to file: a DET plot of all lists; of each, the scores, and of a calibrated model the costs."""
    curves: dict[str, Any] = {name: (result.scores, result.trials.labels) for name, result in results.items()}
    plots = {"Detection error trade-off": plot_det(curves, folder / "det.png")}
    for name, result in results.items():
        file = f"{name.replace('/', '-').lstrip('.-')}.png"
        scores, labels, kind = result.scores, result.trials.labels, result.record["scores"]
        threshold = result.record["eer_threshold"]
        plots[f"{name}: scores, and the threshold of the EER"] = plot_score_histogram(
            scores, labels, folder / f"scores-{file}", threshold, kind, name
        )
        if result.ratios is not None and model.calibration is not None:
            points = model.calibration.operating_points
            plots[f"{name}: cost of the decisions at every operating point"] = plot_detection_costs(
                scores, labels, folder / f"costs-{file}", points, name
            )
    return plots


def _at(
    point: OperatingPoint,
    scores: NDArray[np.float64],
    errors: DetectionErrors,
    labels: NDArray,
    spread: BootstrapResult | None,
) -> dict[str, Any]:
    """Error rates and cost at an operating point of the calibration, beside the least cost that any threshold has."""
    costs = point.prior, point.cost_miss, point.cost_false_alarm
    actual = actual_detection_cost(scores, labels, *costs)
    return {
        "prior": point.prior,
        "cost_miss": point.cost_miss,
        "cost_false_alarm": point.cost_false_alarm,
        "threshold": point.threshold,
        "act_dcf": actual.cost,
        "min_dcf": errors.minimum_detection_cost(*costs).cost,
        "miss_rate": actual.miss_rate,
        "miss_interval": _interval(spread, f"miss_rate {point.name}"),
        "nominal_miss_rate": point.miss_rate,
        "false_alarm_rate": actual.false_alarm_rate,
        "false_alarm_interval": _interval(spread, f"false_alarm_rate {point.name}"),
        "nominal_false_alarm_rate": point.false_alarm_rate,
    }


def _speakers(trials: Trials, settings: EvaluationSettings) -> TrialSpeakers | str:
    """The speakers, or why they are unknown; a table that does not fit is refused."""
    table = speaker_table(settings.metadata) if settings.metadata else None
    if table is not None:
        return find_speakers(trials, table)
    try:
        return find_speakers(trials)
    except ValueError as error:
        return str(error)


def _cohort_mean(model: HamSpkPreTrainedModel):
    if model.cohort is None:
        raise ValueError(
            "The mean to subtract is that of the model's cohort, and this model has none. `hamspk calibrate` gives it "
            "one, or leave the mean in."
        )
    return model.cohort.embeddings.mean(0)


def _interval(spread: BootstrapResult | None, name: str) -> list[float] | None:
    return None if spread is None else list(spread.interval(name))


def _histogram(scores: NDArray[np.float64], labels: NDArray) -> dict[str, list[float] | list[int]]:
    edges = np.histogram_bin_edges(scores, bins=HISTOGRAM_BINS)
    targets, impostors = (np.histogram(scores[labels == kind], bins=edges)[0].tolist() for kind in (1, 0))
    return {"edges": edges.tolist(), "targets": targets, "impostors": impostors}
