"""Embed the files of a trial list once, score every trial, and compute error rates."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..audio_hamspk import CUSTOM, VOICED_OR_WHISPERED, Channel, InputError, SpeechMeasures, Vad, measure_speech
from ..calibration_hamspk import Calibration, Cohort, CohortStatistics, Quality, Scorer
from ..data.audio import log_warnings, read_utterance
from ..data.crops import even_segments
from ..data.fitting import NO_MEMORY, embed_what_fits
from ..geometry_hamspk import mean_direction
from ..modeling_hamspk import SpeakerModelMixin
from .matrix_scoring import score_pairs
from .metrics import detection_errors
from .trials import Trials

PROTOCOLS = ("whole", "paper")
PAPER_SEGMENTS = 5
# Length of a segment: 300 frames of 10 ms, and the rest of the last window, as in the code published with HAM-Softmax.
PAPER_SEGMENT_SAMPLES = 48240
# Seconds of decoded audio in memory at once while embedding. Files are sorted by length within this amount.
SECONDS_HELD = 1200.0
# Priors of a target trial in the published results.
PRIORS = (0.01, 0.05)


@dataclass
class EmbeddedFiles:
    """Embeddings of audio files, and the reasons why other files could not be embedded.

    Attributes:
        embeddings: maps each file to its embeddings, `(S, D)`. Row 0 is the embedding of the whole utterance. The other
            rows are the embeddings of its segments, if the protocol uses segments.
        failures: maps each unusable file to the reason.
        seconds: total duration of the embedded audio, in seconds.
        measures: maps each file to the speech measures of the recording; empty if not measured.
        detector: name of the detector that measured the speech; see `Calibration`.
    """

    embeddings: dict[str, Tensor] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    measures: dict[str, SpeechMeasures] = field(default_factory=dict)
    detector: str = VOICED_OR_WHISPERED

    def merge(self, others: Iterable["EmbeddedFiles"]) -> "EmbeddedFiles":
        """Add the results of other processes to this object, and return it."""
        for other in others:
            self.embeddings.update(other.embeddings)
            self.failures.update(other.failures)
            self.seconds += other.seconds
            self.measures.update(other.measures)
        return self

    def part(self, files: Collection[str]) -> "EmbeddedFiles":
        """Return a new object with the embeddings, failures and measures of the given files. Its `seconds` are 0."""
        wanted = frozenset(files)
        return EmbeddedFiles(
            embeddings={name: rows for name, rows in self.embeddings.items() if name in wanted},
            failures={name: reason for name, reason in self.failures.items() if name in wanted},
            measures={name: found for name, found in self.measures.items() if name in wanted},
            detector=self.detector,
        )

    def refuse_short(self, minimum_speech: float) -> "EmbeddedFiles":
        """Return a copy in which files with less than `minimum_speech` seconds of speech count as failures.

        Files whose speech was not measured are kept.
        """
        short = {
            name: f"not enough speech: {found.speech:.2f} s, at least {minimum_speech:g} s are needed"
            for name, found in self.measures.items()
            if found.speech < minimum_speech
        }
        kept = {name: rows for name, rows in self.embeddings.items() if name not in short}
        return EmbeddedFiles(kept, self.failures | short, self.seconds, self.measures, self.detector)


@dataclass(frozen=True)
class VerificationResult:
    """Error rates of a model on a trial list.

    Attributes:
        scores: `(N,)`, scores of the usable trials; larger scores mean more similar recordings.
        labels: `(N,)`, 1 for a target trial, 0 for an impostor trial.
        eer: equal error rate, a fraction in [0, 1].
        eer_threshold: threshold of the equal error rate.
        min_dcf: maps each prior of a target trial to the minimum detection cost.
        skipped: number of trials that were left out because a file could not be used.
        failures: maps each unusable file to the reason.
    """

    scores: np.ndarray
    labels: np.ndarray
    eer: float
    eer_threshold: float
    min_dcf: dict[float, float]
    skipped: int
    failures: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """Return the counts, error rates and costs as a dictionary that can be written as JSON."""
        return {
            "trials": len(self.labels),
            "targets": int(self.labels.sum()),
            "skipped_trials": self.skipped,
            "unusable_files": self.failures,
            "eer": self.eer,
            "eer_threshold": self.eer_threshold,
            **{f"min_dcf_{prior:g}": cost for prior, cost in self.min_dcf.items()},
        }


def embed_files(
    model: SpeakerModelMixin,
    names: Sequence[str],
    audio_root: str | os.PathLike[str] = ".",
    protocol: str = "whole",
    progress: bool = True,
    measure: bool = False,
    change: Callable[[str, np.ndarray], np.ndarray] | None = None,
    channel: Channel = None,
    vad: Vad = None,
) -> EmbeddedFiles:
    """Embed audio files in bounded memory.

    Args:
        model: model that embeds the files in evaluation mode; its training mode is not changed.
        names: paths of the files, absolute or relative to `audio_root`.
        audio_root: folder to which the paths are relative.
        protocol: `"whole"` to embed the whole utterance, or `"paper"` to embed the whole utterance and five segments of
            3 s.
        progress: whether to show a progress bar.
        measure: whether to measure the speech in each file as well (see `measure_speech`).
        change: function that receives the name and the waveform `(L,)` of a file and returns the waveform to embed;
            None embeds the files unchanged.
        channel: channel of the files to read; see `read_sound`.
        vad: detector of speech; see `measure_speech`. None uses `model.vad`.

    Returns:
        The embeddings. Files that cannot be used raise no error; they are listed in `failures`.

    Raises:
        ValueError: the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}.")
    rate = model.config.sampling_rate
    vad = model.vad if vad is None else vad
    result = EmbeddedFiles(detector=CUSTOM if callable(vad) else VOICED_OR_WHISPERED if vad is None else vad)
    chunk: dict[str, np.ndarray] = {}
    warnings: dict[str, list[str]] = {}
    pending = 0.0
    for name in tqdm(names, desc="embedding", unit="file", disable=not progress, leave=False):
        try:
            sound = read_utterance(Path(audio_root) / name, rate, channel=channel)
        except InputError as error:
            result.failures[name] = error.reason
            continue
        chunk[name] = sound.waveform
        if sound.warnings:
            warnings[name] = sound.warnings
        if change is not None:
            chunk[name] = change(name, chunk[name])
        if measure:
            result.measures[name] = measure_speech(chunk[name], rate, vad)
        pending += len(chunk[name]) / rate
        if pending > SECONDS_HELD:
            _embed_chunk(model, chunk, protocol, result)
            chunk, pending = {}, 0.0
    _embed_chunk(model, chunk, protocol, result)
    log_warnings(warnings)
    return result


def _embed_chunk(model: SpeakerModelMixin, chunk: dict[str, np.ndarray], protocol: str, result: EmbeddedFiles) -> None:
    rate = model.config.sampling_rate
    rows = embed_what_fits(model, list(chunk.values()))
    result.failures.update({name: NO_MEMORY for name, row in zip(chunk, rows, strict=True) if row is None})
    chunk = {name: waveform for (name, waveform), row in zip(chunk.items(), rows, strict=True) if row is not None}
    if not chunk:
        return
    embeddings = torch.stack([row for row in rows if row is not None])[:, None]
    if protocol == "paper":
        segments = [part for w in chunk.values() for part in even_segments(w, PAPER_SEGMENT_SAMPLES, PAPER_SEGMENTS)]
        of_segments = model.embed_waveforms(segments).cpu().unflatten(0, (-1, PAPER_SEGMENTS))
        embeddings = torch.cat([embeddings, of_segments], dim=1)
    result.embeddings.update(zip(chunk, embeddings, strict=True))
    result.seconds += sum(len(waveform) for waveform in chunk.values()) / rate


def score_trials(
    model: SpeakerModelMixin, trials: Trials, embedded: EmbeddedFiles, mean: Tensor | None = None
) -> np.ndarray:
    """Score every trial with the similarity of the model.

    If the utterances have segments, the score of a trial is the average of two numbers: the score of the whole
    utterances, and the mean score over all pairs of segments. This is the published protocol of VoxCeleb1-O.

    Args:
        model: model whose similarity is used.
        trials: the `N` trials. Their files and enrolment models must all be in `embedded`.
        embedded: embeddings from `embed_files`, and from `enrol_models` if the trials have enrolment models.
        mean: `(D,)`, vector that is subtracted from every embedding before scoring; None subtracts nothing.

    Returns:
        The scores, `(N,)` float64.
    """
    table, enrolment, test = trial_rows(trials, embedded)
    return score_pairs(model, table, enrolment, test, mean)


def enrol_models(trials: Trials, embedded: EmbeddedFiles) -> EmbeddedFiles:
    """Return the embeddings of the files and of the enrolment models of the trials.

    The embedding of an enrolment model is the mean direction of the embeddings of its files. The duration and the
    amount of speech of an enrolment model are sums over its files. The other speech measures are means over its files.

    Args:
        trials: trials. The files of their enrolment models must all be in `embedded`.
        embedded: embeddings from `embed_files`. This object is not changed.

    Raises:
        ValueError: the embeddings of a model sum to 0, so they have no mean direction.
    """
    if not trials.models:
        return embedded
    embeddings, measures = dict(embedded.embeddings), dict(embedded.measures)
    for name, files in trials.models.items():
        rows = torch.stack([embedded.embeddings[file] for file in files])
        embeddings[name] = torch.stack([mean_direction(of_slot) for of_slot in rows.unbind(1)])
        found = [embedded.measures[file] for file in files if file in embedded.measures]
        if len(found) == len(files):
            duration, speech = (sum(getattr(each, key) for each in found) for key in ("duration", "speech"))
            means: dict[str, Any] = {
                key: float(np.mean([getattr(e, key) for e in found])) for key in ("snr_db", "clipped", "level_db")
            }
            measures[name] = SpeechMeasures(duration=duration, speech=speech, **means)
    return EmbeddedFiles(embeddings, embedded.failures, embedded.seconds, measures, embedded.detector)


def measured_quality(model: SpeakerModelMixin, trials: Trials, embedded: EmbeddedFiles) -> Quality:
    """Return the quality measures of all utterances and enrolment models.

    Args:
        model: model that computes the magnitude of an embedding.
        trials: trials. The number of utterances of each enrolment model follows from `trials.models`.
        embedded: embeddings of the `U` utterances and enrolment models, from `embed_files` with `measure=True`, and
            from `enrol_models` if the trials have enrolment models.

    Returns:
        The quality measures, each `(U,)`, in the order of `embedded.embeddings`.

    Raises:
        ValueError: the speech in a file was not measured.
    """
    absent = len(embedded.embeddings.keys() - embedded.measures.keys())
    if absent:
        raise ValueError(
            f"The calibration uses quality measures, but the speech in {absent} files was not measured. Call "
            "embed_files with measure=True."
        )
    measures = [embedded.measures[name] for name in embedded.embeddings]
    speech, snr = (np.array([getattr(each, name) for each in measures]) for name in ("speech", "snr_db"))
    magnitude = model.magnitude(torch.stack([rows[0] for rows in embedded.embeddings.values()])).double().numpy()
    utterances = np.array([len(trials.models.get(name, (name,))) for name in embedded.embeddings])
    return Quality(speech, snr, magnitude, utterances)


def score_ratios(
    model: SpeakerModelMixin,
    trials: Trials,
    embedded: EmbeddedFiles,
    scores: np.ndarray,
    calibration: Calibration,
    cohort: Cohort | None = None,
) -> np.ndarray:
    """Convert the raw scores of trials to log-likelihood ratios with the calibration of a model.

    Each file is compared with the cohort once, even if it occurs in many trials.

    Args:
        model: model to which the calibration belongs.
        trials: the `N` trials. Their files and enrolment models must all be in `embedded`.
        embedded: embeddings from `embed_files`, and from `enrol_models` if the trials have enrolment models. If the
            calibration uses quality measures, `embed_files` must have been called with `measure=True`.
        scores: `(N,)`, raw scores from `score_trials`.
        calibration: calibration of the model.
        cohort: cohort of the model; None if the calibration does not normalise scores.

    Returns:
        The natural log-likelihood ratios, `(N,)`.

    Raises:
        ValueError: model, calibration and cohort do not belong together, or a quality measure is missing.
    """
    scorer = Scorer(model, calibration, cohort)
    table, enrolment, test = trial_rows(trials, embedded)
    found = scorer.statistics(table[:, 0])
    statistics = None if found is None else (select_statistics(found, enrolment), select_statistics(found, test))
    quality = None
    if calibration.needs_quality:
        of_files = measured_quality(model, trials, embedded)
        quality = select_quality(of_files, enrolment), select_quality(of_files, test)
    return scorer.calibrated(torch.from_numpy(scores), statistics, quality)[1]


def select_statistics(statistics: CohortStatistics, index: np.ndarray) -> CohortStatistics:
    """Return the cohort statistics of the embeddings with the row numbers `index`, in this order."""
    return CohortStatistics(statistics.mean[index], statistics.deviation[index])


def select_quality(quality: Quality, index: np.ndarray) -> Quality:
    """Return the quality measures of the utterances with the row numbers `index`. The measures must be arrays."""
    return Quality(*(np.asarray(column)[index] for column in vars(quality).values()))


def trial_rows(trials: Trials, embedded: EmbeddedFiles) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the embeddings of all utterances and enrolment models, and the indices of each trial's two embeddings.

    Returns:
        The embeddings `(U, S, D)`, and the indices `(N,)` of the enrolment and of the test utterance of each trial.
    """
    row = {name: i for i, name in enumerate(embedded.embeddings)}
    enrolment, test = (
        np.fromiter((row[name] for name in side), np.int64, len(side)) for side in (trials.enrolment, trials.test)
    )
    return torch.stack(list(embedded.embeddings.values())), enrolment, test


def usable_trials(trials: Trials, failures: Mapping[str, str]) -> Trials:
    """Return the trials in which no file is unusable.

    Args:
        trials: trial list.
        failures: maps each unusable file to the reason.

    Raises:
        ValueError: no target or no impostor trial remains. The message contains the first three reasons.
    """
    usable = trials.without(failures)
    if not 0 < int(usable.labels.sum()) < len(usable):
        first = "; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:3])
        raise ValueError(
            f"The {len(usable)} of {len(trials)} trials that can be scored do not include both target and impostor "
            f"trials. Correct the trial list or the files. {len(failures)} files cannot be used. {first}"
        )
    return usable


def verify_trials(
    model: SpeakerModelMixin, trials: Trials, embedded: EmbeddedFiles, priors: Sequence[float] = PRIORS
) -> VerificationResult:
    """Score the trials whose files could be embedded, and compute the EER and the minDCF.

    Raises:
        ValueError: no target or no impostor trial remains, or all scores are equal.
    """
    usable = usable_trials(trials, embedded.failures)
    scores = score_trials(model, usable, enrol_models(usable, embedded))
    errors = detection_errors(scores, usable.labels)
    equal = errors.equal_error_rate()
    return VerificationResult(
        scores=scores,
        labels=usable.labels,
        eer=equal.eer,
        eer_threshold=equal.threshold,
        min_dcf={prior: errors.minimum_detection_cost(prior).cost for prior in priors},
        skipped=len(trials) - len(usable),
        failures=embedded.failures,
    )
