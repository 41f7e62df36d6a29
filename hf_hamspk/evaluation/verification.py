"""Scores of a model on a trial list: embed each file once, score every trial, compute error rates."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..audio_hamspk import InputError, SpeechMeasures, measure_speech
from ..calibration_hamspk import Calibration, Cohort, Quality, Scorer
from ..data.audio import read_utterance
from ..data.crops import even_segments
from ..geometry_hamspk import mean_direction
from ..modeling_hamspk import HamSpkPreTrainedModel
from .matrix_scoring import score_pairs
from .metrics import detection_errors
from .trials import Trials

PROTOCOLS = ("whole", "paper")
PAPER_SEGMENTS = 5
# 300 frames of 10 ms and the rest of the last window, as in the released code.
PAPER_SEGMENT_SAMPLES = 48240
# Decoded audio held at once while embedding; files are sorted by length within it.
SECONDS_HELD = 1200.0
# The priors of the published results.
PRIORS = (0.01, 0.05)


@dataclass
class EmbeddedFiles:
    """Embeddings of audio files.

    Attributes:
        embeddings: name to `(S, D)`: row 0 is the whole utterance, the others the segments of the protocol, if any.
        failures: name to the reason why the file could not be used.
        seconds: duration of the embedded audio.
        measures: name to the speech measures of the recording, if they were measured.
    """

    embeddings: dict[str, Tensor] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    measures: dict[str, SpeechMeasures] = field(default_factory=dict)

    def merge(self, others: Iterable["EmbeddedFiles"]) -> "EmbeddedFiles":
        """Add the files that other processes embedded."""
        for other in others:
            self.embeddings.update(other.embeddings)
            self.failures.update(other.failures)
            self.seconds += other.seconds
            self.measures.update(other.measures)
        return self

    def part(self, files: Collection[str]) -> "EmbeddedFiles":
        """The embeddings, failures and measures of the given files; without the seconds."""
        wanted = frozenset(files)
        return EmbeddedFiles(
            embeddings={name: rows for name, rows in self.embeddings.items() if name in wanted},
            failures={name: reason for name, reason in self.failures.items() if name in wanted},
            measures={name: found for name, found in self.measures.items() if name in wanted},
        )

    def refuse_short(self, minimum_speech: float) -> "EmbeddedFiles":
        """Move measured files with less speech than this, in seconds, to the failures."""
        short = {
            name: f"not enough speech: {found.speech:.2f} s, at least {minimum_speech:g} s are needed"
            for name, found in self.measures.items()
            if found.speech < minimum_speech
        }
        kept = {name: rows for name, rows in self.embeddings.items() if name not in short}
        return EmbeddedFiles(kept, self.failures | short, self.seconds, self.measures)


@dataclass(frozen=True)
class VerificationResult:
    """Error rates of a model on a trial list.

    Attributes:
        scores: `(N,)` of the trials that could be scored, larger for more similar recordings.
        labels: `(N,)` 1 for target, 0 for impostor.
        eer: equal error rate, a fraction.
        eer_threshold: score at which it is reached.
        min_dcf: prior of a target to minimum detection cost.
        skipped: number of trials left out, as a file could not be used.
        failures: unusable file to reason.
    """

    scores: np.ndarray
    labels: np.ndarray
    eer: float
    eer_threshold: float
    min_dcf: dict[float, float]
    skipped: int
    failures: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """The numbers as a dictionary for JSON."""
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
    model: HamSpkPreTrainedModel,
    names: Sequence[str],
    audio_root: str | os.PathLike[str] = ".",
    protocol: str = "whole",
    progress: bool = True,
    measure: bool = False,
    change: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> EmbeddedFiles:
    """Embed audio files in bounded memory.

    Args:
        model: embeds in evaluation mode; its training mode is not changed.
        names: paths, relative to `audio_root` or absolute.
        audio_root: folder of the names.
        protocol: `"whole"` (the utterance) or `"paper"` (the utterance and five 3 s segments).
        progress: show a bar.
        measure: measure the speech in each file as well (`measure_speech`).
        change: maps name and waveform `(L,)` to the waveform that is embedded; None embeds the files unchanged.

    Raises:
        ValueError: unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}.")
    rate = model.config.sampling_rate
    result = EmbeddedFiles()
    chunk: dict[str, np.ndarray] = {}
    pending = 0.0
    for name in tqdm(names, desc="embedding", unit="file", disable=not progress, leave=False):
        try:
            chunk[name] = read_utterance(Path(audio_root) / name, rate).waveform
        except InputError as error:
            result.failures[name] = error.reason
            continue
        if change is not None:
            chunk[name] = change(name, chunk[name])
        if measure:
            result.measures[name] = measure_speech(chunk[name], rate)
        pending += len(chunk[name]) / rate
        if pending > SECONDS_HELD:
            _embed_chunk(model, chunk, protocol, result)
            chunk, pending = {}, 0.0
    _embed_chunk(model, chunk, protocol, result)
    return result


def _embed_chunk(
    model: HamSpkPreTrainedModel, chunk: dict[str, np.ndarray], protocol: str, result: EmbeddedFiles
) -> None:
    rate = model.config.sampling_rate
    embeddings = model.embed_waveforms(list(chunk.values())).cpu()[:, None]
    if protocol == "paper":
        segments = [part for w in chunk.values() for part in even_segments(w, PAPER_SEGMENT_SAMPLES, PAPER_SEGMENTS)]
        of_segments = model.embed_waveforms(segments).cpu().unflatten(0, (-1, PAPER_SEGMENTS))
        embeddings = torch.cat([embeddings, of_segments], dim=1)
    result.embeddings.update(zip(chunk, embeddings, strict=True))
    result.seconds += sum(len(waveform) for waveform in chunk.values()) / rate


def score_trials(
    model: HamSpkPreTrainedModel, trials: Trials, embedded: EmbeddedFiles, mean: Tensor | None = None
) -> np.ndarray:
    """Score every trial with the similarity of the model.

    With segments, the score is the mean of the score of the whole utterances and of the mean score over all pairs of
    segments: the published protocol of VoxCeleb1-O.

    Args:
        model: gives the similarity.
        trials: all their files are in `embedded`.
        embedded: from `embed_files`.
        mean: `(D,)`, subtracted from every embedding first; None for none.

    Returns:
        `(N,)` float64.
    """
    table, enrolment, test = trial_rows(trials, embedded)
    return score_pairs(model, table, enrolment, test, mean)


def enrol_models(trials: Trials, embedded: EmbeddedFiles) -> EmbeddedFiles:
    """Add the enrolment models of the trials, each as the mean direction of the embeddings of its files.

    The speech of a model is the sum over its files, its other measures are means.

    Args:
        trials: all files of their models are in `embedded`.
        embedded: from `embed_files`; not changed.

    Raises:
        ValueError: the embeddings of a model cancel.
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
            means = {key: float(np.mean([getattr(e, key) for e in found])) for key in ("snr_db", "clipped", "level_db")}
            measures[name] = SpeechMeasures(duration=duration, speech=speech, **means)
    return EmbeddedFiles(embeddings, embedded.failures, embedded.seconds, measures)


def measured_quality(model: HamSpkPreTrainedModel, trials: Trials, embedded: EmbeddedFiles) -> Quality:
    """Quality of every utterance and enrolled model, with arrays `(U,)` in the order of `embedded`.

    Args:
        model: gives the magnitude of an embedding.
        trials: say how many utterances a model is enrolled from.
        embedded: from `embed_files` with `measure`, and `enrol_models`.

    Raises:
        ValueError: a file was not measured.
    """
    absent = len(embedded.embeddings.keys() - embedded.measures.keys())
    if absent:
        raise ValueError(f"The calibration weighs the quality of recordings, but {absent} files were not measured.")
    measures = [embedded.measures[name] for name in embedded.embeddings]
    speech, snr = (np.array([getattr(each, name) for each in measures]) for name in ("speech", "snr_db"))
    magnitude = model.magnitude(torch.stack([rows[0] for rows in embedded.embeddings.values()])).double().numpy()
    utterances = np.array([len(trials.models.get(name, (name,))) for name in embedded.embeddings])
    return Quality(speech, snr, magnitude, utterances)


def score_ratios(
    model: HamSpkPreTrainedModel,
    trials: Trials,
    embedded: EmbeddedFiles,
    scores: np.ndarray,
    calibration: Calibration,
    cohort: Cohort | None = None,
) -> np.ndarray:
    """The log-likelihood ratios of a calibrated model, from the raw scores of its trials.

    Each file is compared with the cohort once, however many trials it is in.

    Args:
        model: the model of the calibration.
        trials: `N` of them, their files all in `embedded`.
        embedded: from `embed_files`, with `measure` if the calibration weighs the quality of recordings.
        scores: `(N,)`, from `score_trials`.
        calibration: of the model.
        cohort: of the model; None if the calibration is of scores that are not normalised.

    Returns:
        `(N,)` natural log-likelihood ratios.

    Raises:
        ValueError: model, calibration and cohort do not belong together, or a measure that is needed is missing.
    """
    scorer = Scorer(model, calibration, cohort)
    table, enrolment, test = trial_rows(trials, embedded)
    found = scorer.statistics(table[:, 0])
    statistics = None if found is None else (found.rows(enrolment), found.rows(test))
    quality = None
    if calibration.needs_quality:
        of_files = measured_quality(model, trials, embedded)
        quality = of_files.rows(enrolment), of_files.rows(test)
    return scorer.calibrated(torch.from_numpy(scores), statistics, quality)[1]


def trial_rows(trials: Trials, embedded: EmbeddedFiles) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """All embeddings `(U, S, D)` in the order of `embedded`, and the rows `(N,)` of the enrolments and of the tests."""
    row = {name: i for i, name in enumerate(embedded.embeddings)}
    enrolment, test = (
        np.fromiter((row[name] for name in side), np.int64, len(side)) for side in (trials.enrolment, trials.test)
    )
    return torch.stack(list(embedded.embeddings.values())), enrolment, test


def usable_trials(trials: Trials, failures: Mapping[str, str]) -> Trials:
    """The trials without unusable files.

    Args:
        trials: the list.
        failures: unusable file to reason.

    Raises:
        ValueError: no target or no impostor trial is left; the message gives the first reasons.
    """
    usable = trials.without(failures)
    if not 0 < int(usable.labels.sum()) < len(usable):
        first = "; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:3])
        raise ValueError(
            f"Of {len(trials)} trials, {len(usable)} can be scored, and they are not of both kinds (target and "
            f"impostor). Unusable files: {len(failures)}. {first}"
        )
    return usable


def verify_trials(
    model: HamSpkPreTrainedModel, trials: Trials, embedded: EmbeddedFiles, priors: Sequence[float] = PRIORS
) -> VerificationResult:
    """Score the trials whose files could be embedded, and compute EER and minDCF.

    Raises:
        ValueError: no target or no impostor trial is left, or all scores are equal.
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
