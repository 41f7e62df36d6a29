"""Measure error rates, detection costs and their confidence intervals for a model on trial lists.

`hamspk evaluate` prints these measurements. The error rates of raw scores are measured on all trials whose files can be
read, whether or not the model is calibrated. The decisions of a calibrated model are measured only on the trials with
enough speech for a decision. The number of trials with too little speech is reported.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audio_hamspk import Channel, choose_channel
from ..calibration_hamspk import CHECKSUM, Calibration, OperatingPoint
from ..loading.models import SomeModel, given_model
from ..modeling_hamspk import SpeakerModelMixin
from ..verification_hamspk import speech_detector
from .calibration_metrics import actual_detection_cost, convex_hull, log_likelihood_ratio_cost
from .intervals import (
    CONFIDENCE,
    FEWEST_REPLICATES,
    FEWEST_SPEAKERS,
    REPLICATES,
    BootstrapResult,
    bootstrap,
    paired_test,
)
from .metrics import DetectionErrors, detection_errors
from .results import PLOT_FOLDER, EvaluationRecord, software
from .speakers import TrialSpeakers, find_speakers, group_trials, speaker_table
from .trials import Trials, check_official, check_trial_files, read_trials
from .verification import (
    PRIORS,
    PROTOCOLS,
    EmbeddedFiles,
    embed_files,
    enrol_models,
    score_ratios,
    score_trials,
    usable_trials,
)

RATIO = "log-likelihood ratio"
HISTOGRAM_BINS = 60

TrialListLike = Trials | str | os.PathLike[str]
AudioRoots = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]]


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation, such as the protocol, the priors and the confidence intervals.

    Example:
        ```python
        settings = EvaluationSettings(priors=(0.01,), replicates=0)
        print(settings.protocol, settings.priors)
        print(EvaluationSettings().confidence)
        ```

    Attributes:
        protocol: `"whole"` embeds whole utterances; `"paper"` also embeds five 3 s segments of each utterance.
        priors: prior probabilities of a target trial for minDCF and actDCF, each in (0, 1).
        replicates: number of bootstrap draws of the speakers for the confidence intervals, at least 100; 0 if no
            intervals are needed.
        confidence: confidence level of the intervals, in (0, 1).
        metadata: maps each file to its columns, as returned by `read_metadata`. The column `speaker_id` contains the
            speaker of the file.
        group_by: names of columns of `metadata`. For each value of these columns, the trials with this value are also
            measured separately.
        subtract_mean: whether to subtract the mean of the model's cohort from every embedding. The calibration does not
            apply to the resulting scores, so decisions are not measured.
        calibrated: whether to also measure the errors and costs of decisions, if the model is calibrated.
        progress: whether to show progress bars.
        channel: channel of the recordings to read; see `read_sound`.

    Raises:
        ValueError: the protocol is unknown, a number is out of range, or `group_by` is given without `metadata`.
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
    channel: Channel = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}.")
        choose_channel(None, self.channel)
        for prior in self.priors:
            if not 0 < prior < 1:
                raise ValueError(
                    f"prior must lie strictly between 0 and 1, got {prior}. Usual values are 0.01 and 0.05."
                )
        check_replicates(self.replicates)
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}. The usual value is 0.95.")
        if self.group_by and not self.metadata:
            raise ValueError(
                "group_by needs metadata that contains its columns, but got no metadata. Pass metadata (--metadata)."
            )


def check_replicates(replicates: int) -> None:
    """Check that the number of bootstrap draws is 0 (no intervals) or large enough for intervals.

    Raises:
        ValueError: the number is neither 0 nor at least `FEWEST_REPLICATES`.
    """
    if replicates != 0 and replicates < FEWEST_REPLICATES:
        raise ValueError(f"replicates must be 0 or at least {FEWEST_REPLICATES}, got {replicates}.")


# A generated `__eq__` would raise, because an array has no single truth value. Instances are compared by identity.
@dataclass(frozen=True, eq=False)
class ListEvaluation:
    """Result of evaluating a model on one trial list.

    Attributes:
        record: entry of the list in `evaluation.json`; the module `results` describes the keys.
        trials: the `N` trials whose files can be read.
        scores: `(N,)`, raw scores of `trials`.
        speakers: speakers of `trials`; None if unknown.
        decided: the `M` trials with enough speech for a decision; None if no decisions were measured.
        ratios: `(M,)`, log-likelihood ratios of `decided`; None if no decisions were measured.
    """

    record: dict[str, Any]
    trials: Trials
    scores: NDArray[np.float64]
    speakers: TrialSpeakers | None
    decided: Trials | None = None
    ratios: NDArray[np.float64] | None = None

    @property
    def eer(self) -> float:
        """Equal error rate of the raw scores, a fraction in [0, 1]."""
        return self.record["eer"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of `evaluate`: measurements of a model on one or several trial lists.

    Attributes:
        record: content of `evaluation.json`.
        lists: maps the name of each trial list to its result.
        points: operating points of the model's calibration; empty if the model is not calibrated.
    """

    record: EvaluationRecord
    lists: dict[str, ListEvaluation]
    points: tuple[OperatingPoint, ...] = ()

    def __getitem__(self, name: str) -> ListEvaluation:
        """Return the result on one trial list."""
        return self.lists[name]

    def write(self, folder: str | os.PathLike[str]) -> tuple[list[Path], list[str]]:
        """Write `evaluation.json`, `report.html` and `plots/` into a folder.

        Earlier measurements of the same weights in the folder are kept, unless this result contains new measurements
        of the same kind on a trial list with the same name.

        Args:
            folder: output folder. The folder of the model is the best choice, because `hamspk push` and the Space look
                for the record there.

        Returns:
            The paths of the written files, and one sentence for each replaced measurement.

        Raises:
            ValueError: the folder contains an `evaluation.json` that this package did not write.
        """
        # These imports load matplotlib, so they are delayed until plots are drawn.
        from .plots import draw_evaluation
        from .report import write_measurements

        return write_measurements(self.record, folder, lambda: draw_evaluation(self, Path(folder) / PLOT_FOLDER))


def evaluate(
    model: SomeModel,
    trials: TrialListLike | Sequence[TrialListLike] | Mapping[str, TrialListLike],
    audio_root: AudioRoots = ".",
    settings: EvaluationSettings | None = None,
    *,
    enrolment: str | os.PathLike[str] | None = None,
    compare: SomeModel | None = None,
) -> Evaluation:
    """Measure a model on trial lists: EER, minDCF and, if the model is calibrated, its decisions.

    Each file is embedded once, even if several lists name it.

    Args:
        model: model, its folder, or its name on the Hub.
        trials: one trial list or several, each as a path or `Trials`. The keys of a mapping become the names of the
            lists.
        audio_root: folder to which the file names in the lists are relative. If the folders differ, a sequence with one
            folder for each list, or a mapping from the names of the lists to folders.
        settings: settings of the evaluation; None uses the defaults.
        enrolment: path of the table with the files of each enrolment model; None if the lists name enrolment files.
        compare: second model, with which the first model is compared on the same trials; None for no comparison.

    Returns:
        The result. Its `record` is the content of `evaluation.json`. Its method `write` writes this file, a report and
        plots into a folder.

    Raises:
        ValueError: a model, a list or a file is missing, a list is malformed or lacks target or impostor trials, the
            metadata does not match the lists, or the two models cannot be compared.
    """
    settings = EvaluationSettings() if settings is None else settings
    lists = read_lists(trials, audio_root, enrolment)
    model = given_model(model)
    other = None if compare is None else given_model(compare)
    results = measure_lists(model, lists, audio_root, settings)
    record = EvaluationRecord.of_model(model)
    record.lists = {name: result.record for name, result in results.items()}
    if other is not None:
        _add_comparison(results, other, audio_root, settings)
    return Evaluation(record, results, () if model.calibration is None else model.calibration.operating_points)


def measure_lists(
    model: SpeakerModelMixin,
    lists: Mapping[str, Trials],
    audio_root: AudioRoots,
    settings: EvaluationSettings,
) -> dict[str, ListEvaluation]:
    """Embed each file of the lists once, and measure the model on every list.

    `audio_root` may name one folder for each list (see `evaluate`).
    """
    roots = roots_of_lists(lists, audio_root)
    measure = applies_calibration(model, settings)
    vad = speech_detector(model, model.calibration if measure else None)
    results = {}
    for root in dict.fromkeys(roots.values()):
        own = {name: trials for name, trials in lists.items() if roots[name] == root}
        files = sorted({file for trials in own.values() for file in trials.files})
        options = settings.protocol, settings.progress, measure
        embedded = embed_files(model, files, root, *options, channel=settings.channel, vad=vad)
        results |= {name: evaluate_list(model, trials, embedded, settings) for name, trials in own.items()}
    return {name: results[name] for name in lists}


def roots_of_lists(lists: Collection[str], audio_root: AudioRoots) -> dict[str, str]:
    """Return the base folder of each trial list.

    Args:
        lists: names of the lists, in their order.
        audio_root: one folder for all lists, or one for each list (see `evaluate`).

    Raises:
        ValueError: the number of folders differs from the number of lists, or a list has no folder.
    """
    if isinstance(audio_root, str | os.PathLike):
        return dict.fromkeys(lists, os.fspath(audio_root))
    if isinstance(audio_root, Mapping):
        absent = [name for name in lists if name not in audio_root]
        if absent:
            raise ValueError(f"audio_root has no folder for the list {absent[0]!r}. Add it, or give one folder.")
        return {name: os.fspath(audio_root[name]) for name in lists}
    if len(audio_root) not in (1, len(lists)):
        raise ValueError(
            f"audio_root (--audio-root) must name one folder, or one for each of the {len(lists)} trial lists, got "
            f"{len(audio_root)} folders."
        )
    folders = [os.fspath(folder) for folder in audio_root]
    return dict(zip(lists, folders * len(lists) if len(folders) == 1 else folders, strict=True))


def evaluate_list(
    model: SpeakerModelMixin, trials: Trials, embedded: EmbeddedFiles, settings: EvaluationSettings
) -> ListEvaluation:
    """Score a trial list whose files are already embedded, and compute its error rates and costs.

    Args:
        model: model whose similarity, calibration and cohort are used.
        trials: trial list.
        embedded: result of `embed_files` for at least the files of the list. If the decisions of a calibrated model are
            measured, `embed_files` must have been called with `measure=True`.
        settings: settings of the evaluation.

    Raises:
        ValueError: no target or no impostor trial remains, all scores are equal, the metadata lacks files of the list
            or contradicts its labels, or the mean of the cohort is to be subtracted and the model has no cohort.
    """
    embedded = embedded.part(trials.files)
    usable = usable_trials(trials, embedded.failures)
    mean = _cohort_mean(model) if settings.subtract_mean else None
    scores = score_trials(model, usable, enrol_models(usable, embedded), mean)
    speakers = _known_speakers(usable, settings)
    measuring = _Measuring(settings)
    record: dict[str, Any] = {
        "digest": list_digest(trials),
        "protocol": settings.protocol,
        "mean_subtracted": settings.subtract_mean,
        "skipped": len(trials) - len(usable),
        "unusable_files": embedded.failures,
        "scores": model.config.similarity,
        **measuring.measure(scores, usable, speakers),
    }
    decided, ratios = None, None
    calibration = model.calibration
    if calibration is not None and applies_calibration(model, settings):
        decided, ratios, record["decisions"] = _decide(model, usable, embedded, calibration, settings)
    known = None if isinstance(speakers, str) else speakers
    return ListEvaluation(record | software(model), usable, scores, known, decided, ratios)


def _decide(
    model: SpeakerModelMixin,
    usable: Trials,
    embedded: EmbeddedFiles,
    calibration: Calibration,
    settings: EvaluationSettings,
) -> tuple[Trials | None, NDArray[np.float64] | None, dict[str, Any]]:
    """Return the trials with enough speech for a decision, the log-likelihood ratios, and the measurements on them."""
    enough = embedded.refuse_short(calibration.minimum_speech)
    decided = usable.without(enough.failures)
    without = len(usable) - len(decided)
    record: dict[str, Any] = {
        "calibration": calibration.to_dict()[CHECKSUM],
        "scores": RATIO,
        "normalisation": calibration.normalisation,
        "without_decision": without,
        "share_without_decision": without / len(usable),
        "short_files": {file: why for file, why in enough.failures.items() if file not in embedded.failures},
    }
    if not 0 < int(decided.labels.sum()) < len(decided):
        record["note"] = (
            f"the {len(decided)} trials with enough speech for a decision do not include both target and impostor "
            "trials"
        )
        return None, None, record
    enrolled = enrol_models(decided, enough)
    scores = score_trials(model, decided, enrolled)
    ratios = score_ratios(model, decided, enrolled, scores, calibration, model.cohort)
    measuring = _Measuring(settings, calibration.operating_points, ratios=True)
    return decided, ratios, record | measuring.measure(ratios, decided, _known_speakers(decided, settings))


def applies_calibration(model: SpeakerModelMixin, settings: EvaluationSettings) -> bool:
    """Return whether decisions are measured. The model must be calibrated, and the settings must allow decisions."""
    wanted = settings.calibrated and settings.protocol == "whole" and not settings.subtract_mean
    return wanted and model.calibration is not None and model.usable_calibration()[0] is not None


@dataclass(frozen=True)
class _Measuring:
    """Evaluator of raw scores or of log-likelihood ratios. For ratios, it also evaluates the operating points.

    Attributes:
        settings: settings of the evaluation.
        points: operating points of the calibration; used only for log-likelihood ratios.
        ratios: whether the scores are log-likelihood ratios.
    """

    settings: EvaluationSettings
    points: tuple[OperatingPoint, ...] = ()
    ratios: bool = False

    def measure(self, scores: NDArray[np.float64], trials: Trials, speakers: TrialSpeakers | str) -> dict[str, Any]:
        """Return the measurements on all trials and on each group, and a histogram of the scores."""
        record = self.numbers(scores, trials.labels, speakers)
        groups: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for label, mask in group_trials(trials, self.settings.metadata, self.settings.group_by).items():
            if not 0 < int(trials.labels[mask].sum()) < int(mask.sum()):
                left_out[label] = f"its {int(mask.sum())} trials do not include both target and impostor trials"
                continue
            within = speakers if isinstance(speakers, str) else speakers.select(mask)
            groups[label] = self.numbers(scores[mask], trials.labels[mask], within)
        return record | {"groups": groups, "groups_left_out": left_out, "histogram": _histogram(scores, trials.labels)}

    def numbers(self, scores: NDArray[np.float64], labels: NDArray, speakers: TrialSpeakers | str) -> dict[str, Any]:
        """Return the measurements on the given trials.

        If the speakers are unknown, `speakers` is a text that gives the reason.
        """
        errors, hull = detection_errors(scores, labels), convex_hull(scores, labels)
        equal = errors.equal_error_rate()
        spread, note = self._spread(scores, labels, speakers)
        priors = {f"{prior:g}": prior for prior in self.settings.priors}
        record: dict[str, Any] = {
            "trials": len(labels),
            "targets": int(labels.sum()),
            "speakers": None if isinstance(speakers, str) else len(speakers.names),
            "eer": equal.eer,
            "eer_interval": _limits(spread, "eer"),
            "eer_threshold": equal.threshold,
            "eer_convex_hull": hull.equal_error_rate().eer,
            "min_dcf": {name: errors.minimum_detection_cost(prior).cost for name, prior in priors.items()},
            "min_dcf_interval": {name: _limits(spread, f"min_dcf prior {name}") for name in priors},
            "min_cllr": hull.log_likelihood_ratio_cost(),
        }
        if self.ratios:
            record |= {
                "act_dcf": {name: actual_detection_cost(scores, labels, p).cost for name, p in priors.items()},
                "act_dcf_interval": {name: _limits(spread, f"act_dcf prior {name}") for name in priors},
                "cllr": log_likelihood_ratio_cost(scores, labels),
                "cllr_interval": _limits(spread, "cllr"),
                "operating_points": {point.name: _at(point, scores, errors, labels, spread) for point in self.points},
            }
        return record | {
            "confidence": None if spread is None else self.settings.confidence,
            "replicates": None if spread is None else self.settings.replicates - spread.left_out,
            "interval_note": note,
        }

    def _spread(
        self, scores: NDArray[np.float64], labels: NDArray, speakers: TrialSpeakers | str
    ) -> tuple[BootstrapResult | None, str | None]:
        """Return the result of the bootstrap and None, or None and the reason why intervals are not measured."""
        if self.settings.replicates == 0:
            return None, "none were requested"
        if isinstance(speakers, str):
            return None, speakers
        if len(speakers.names) < FEWEST_SPEAKERS:
            return None, f"{len(speakers.names)} speakers are too few to resample; {FEWEST_SPEAKERS} are needed"
        points = [*_prior_points(self.settings), *self.points]
        options = self.settings.replicates, self.settings.confidence
        return bootstrap(scores, labels, speakers, points, self.ratios, *options, progress=self.settings.progress), None


def _at(
    point: OperatingPoint,
    scores: NDArray[np.float64],
    errors: DetectionErrors,
    labels: NDArray,
    spread: BootstrapResult | None,
) -> dict[str, Any]:
    """Return the error rates, actDCF and minDCF at an operating point of the calibration."""
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
        "miss_interval": _limits(spread, f"miss_rate {point.name}"),
        "nominal_miss_rate": point.miss_rate,
        "false_alarm_rate": actual.false_alarm_rate,
        "false_alarm_interval": _limits(spread, f"false_alarm_rate {point.name}"),
        "nominal_false_alarm_rate": point.false_alarm_rate,
    }


def read_lists(
    trials: TrialListLike | Sequence[TrialListLike] | Mapping[str, TrialListLike],
    audio_root: AudioRoots = ".",
    enrolment: str | os.PathLike[str] | None = None,
    official: Sequence[str] = (),
) -> dict[str, Trials]:
    """Read trial lists and check that their audio files exist.

    Args:
        trials: one trial list or several, each as a path or `Trials`. The keys of a mapping become the names of the
            lists.
        audio_root: folder to which the file names in the lists are relative, or one folder for each list (see
            `evaluate`).
        enrolment: path of the table with the files of each enrolment model; None if the lists name enrolment files.
        official: for each trial list, the key in `OFFICIAL_LISTS` with which its size is checked; empty to check no
            sizes.

    Returns:
        A dictionary that maps a short name of each list to its trials.

    Raises:
        ValueError: the audio folder, a trial list or an audio file is missing, a list is malformed, or a list does not
            have the size of its official list.
    """
    named = _named_lists(trials)
    roots = roots_of_lists(named, audio_root)
    for root in roots.values():
        if not Path(root).is_dir():
            raise ValueError(f"Folder not found: {root} (audio_root, --audio-root).")
    if official and len(official) != len(named):
        raise ValueError(
            f"--official must name one official list for each trial list: expected {len(named)}, got {len(official)}."
        )
    lists = {}
    for number, (name, one) in enumerate(named.items()):
        lists[name] = one if isinstance(one, Trials) else read_trials(one, enrolment)
        if official:
            check_official(lists[name], official[number], name if isinstance(one, Trials) else one)
        check_trial_files(lists[name], roots[name])
    return lists


def _named_lists(
    trials: TrialListLike | Sequence[TrialListLike] | Mapping[str, TrialListLike],
) -> dict[str, TrialListLike]:
    if isinstance(trials, Mapping):
        return {str(name): one for name, one in trials.items()}
    several = [trials] if isinstance(trials, Trials | str | os.PathLike) else list(trials)
    if not several:
        raise ValueError("Expected at least one trial list, got none. Name a trial list.")
    names = list_names([one for one in several if not isinstance(one, Trials)])
    of_trials = iter(f"trials{'' if number == 1 else f' {number}'}" for number in range(1, len(several) + 1))
    return {next(of_trials) if isinstance(one, Trials) else names[os.fspath(one)]: one for one in several}


def list_names(paths: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """Return a short name for each trial list: its file name without the extension.

    If two lists have the same file name, parent folders are added until the names differ. The names are published with
    the record, so they contain no other parts of the paths.

    Args:
        paths: paths of the lists. If a path occurs twice, it gets only one name.

    Returns:
        A dictionary that maps each path to the name, such as `{"lists/dev.txt": "dev"}`.
    """
    parts = {os.fspath(path): Path(os.path.abspath(path)).with_suffix("").parts for path in paths}
    names = {}
    for path, own in parts.items():
        others = {other for other in parts.values() if other != own}
        length = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        names[path] = "/".join(own[-length:])
    return names


def list_digest(trials: Trials) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 hash of the labels and names in a trial list."""
    digest = hashlib.sha256(trials.labels.tobytes())
    for names in (trials.enrolment, trials.test, *([name, *files] for name, files in trials.models.items())):
        digest.update("\n".join(names).encode() + b"\0")
    return digest.hexdigest()[:16]


def _add_comparison(
    results: Mapping[str, ListEvaluation],
    other: SpeakerModelMixin,
    audio_root: AudioRoots,
    settings: EvaluationSettings,
) -> None:
    """Compare the raw scores and log-likelihood ratios of two models, and add the differences to the records."""
    for name, result in results.items():
        if result.speakers is None or result.record["replicates"] is None:
            raise ValueError(
                f"The comparison of two models (--compare) needs confidence intervals, but {name} has no intervals: "
                f"{result.record['interval_note']}"
            )
    others = measure_lists(other, {name: result.trials for name, result in results.items()}, audio_root, settings)
    model = EvaluationRecord.of_model(other).model
    for name, result in results.items():
        second = others[name]
        if result.speakers is None or len(second.trials) != len(result.trials):
            raise ValueError(
                f"The two models cannot be compared on {name}, because some of its files are usable for only one of "
                "the models. Leave these files out of the list."
            )
        numbers = _compared(second.scores, result.scores, result.trials, result.speakers, settings)
        result.record["compared"] = {"model": model, "numbers": numbers}
        # Decisions can be compared only if the same trials have enough speech for both models.
        one, two = result.decided, second.decided
        if one is not None and two is not None and list_digest(one) == list_digest(two):
            speakers = _known_speakers(one, settings)
            numbers = _compared(second.ratios, result.ratios, one, speakers, settings)
            result.record["decisions"]["compared"] = {"model": model, "numbers": numbers}


def _compared(
    first: Any, second: Any, trials: Trials, speakers: Any, settings: EvaluationSettings
) -> dict[str, dict[str, Any]]:
    """Return each measure of two models on the same trials, with the difference, its interval and its p-value."""
    options = settings.replicates, settings.confidence
    tested = paired_test(first, second, trials.labels, speakers, _prior_points(settings), False, *options)
    return {
        number.replace("min_dcf prior ", "minDCF(") + (")" if number.startswith("min_dcf") else ""): {
            "this": found.second,
            "other": found.first,
            "difference": found.difference,
            "interval": list(found.interval),
            "p_value": found.p_value,
        }
        for number, found in tested.items()
    }


def _prior_points(settings: EvaluationSettings) -> list[OperatingPoint]:
    return [OperatingPoint(f"prior {prior:g}", prior) for prior in settings.priors]


def _known_speakers(trials: Trials, settings: EvaluationSettings) -> TrialSpeakers | str:
    """Return the speakers, or the reason why they are unknown. Raise if the metadata does not match the trials."""
    table = speaker_table(settings.metadata) if settings.metadata else None
    if table is not None:
        return find_speakers(trials, table)
    try:
        return find_speakers(trials)
    except ValueError as error:
        return str(error)


def _cohort_mean(model: SpeakerModelMixin):
    if model.cohort is None:
        raise ValueError(
            "The mean of the model's cohort cannot be subtracted, because this model has no cohort. Add one with "
            "`hamspk calibrate --cohort`, or do not subtract the mean."
        )
    return model.cohort.embeddings.mean(0)


def _limits(spread: BootstrapResult | None, name: str) -> list[float] | None:
    return None if spread is None else list(spread.interval(name))


def _histogram(scores: NDArray[np.float64], labels: NDArray) -> dict[str, list[float] | list[int]]:
    edges = np.histogram_bin_edges(scores, bins=HISTOGRAM_BINS)
    targets, impostors = (np.histogram(scores[labels == kind], bins=edges)[0].tolist() for kind in (1, 0))
    return {"edges": edges.tolist(), "targets": targets, "impostors": impostors}
