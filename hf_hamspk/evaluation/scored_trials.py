"""Trials whose files were embedded and measured, as a calibration sees them.

Letters: `N` trials, `M` files, `C` cohort embeddings, `D` embedding size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..audio_hamspk import MINIMUM_SPEECH, SpeechMeasures, measure_speech
from ..calibration_hamspk import (
    SCORE,
    Calibration,
    Cohort,
    CohortStatistics,
    Quality,
    apply_statistics,
    quality_features,
)
from ..data.audio import AudioError, read_audio
from ..modeling_hamspk import HamSpkPreTrainedModel
from .calibrating import CalibrationTrials
from .cohorts import statistics_of_files
from .matrix_scoring import score_pairs
from .speakers import TrialSpeakers, find_speakers
from .trials import Trials
from .verification import EmbeddedFiles

# Quality measures by the name that a user gives. The number of enrolment utterances is 1 in all pairs of files.
QUALITY_GROUPS = {
    "speech": ("log_speech_min", "log_speech_max"),
    "snr": ("snr_min", "snr_max"),
    "magnitude": ("magnitude_min", "magnitude_max"),
}
NO_SPEECH = "not enough speech"


@dataclass(frozen=True)
class Setting:
    """What goes into a log-likelihood ratio besides the score.

    Attributes:
        normalisation: of `normalisation.NORMALISATIONS`.
        top: of `"as"`.
        quality: names of `QUALITY_GROUPS`.
    """

    normalisation: str = "none"
    top: int | None = None
    quality: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = {"none": "score", "as": f"AS-norm ({self.top})"}.get(
            self.normalisation, f"{self.normalisation.upper()}-norm"
        )
        return " + ".join([name, *self.quality])

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, the score first."""
        return (SCORE, *(name for group in self.quality for name in QUALITY_GROUPS[group]))


def measure_files(
    names: Sequence[str], audio_root: str | PathLike[str], sampling_rate: int, progress: bool = True
) -> tuple[dict[str, SpeechMeasures], dict[str, str]]:
    """Measure the speech in audio files.

    Returns:
        File to what was found, and file to the reason why it could not be read.
    """
    measures, failures = {}, {}
    for name in tqdm(names, desc="measuring speech", unit="file", disable=not progress, leave=False):
        try:
            measures[name] = measure_speech(read_audio(Path(audio_root) / name, sampling_rate), sampling_rate)
        except AudioError as error:
            failures[name] = error.reason
    return measures, failures


class ScoredTrials:
    """The trials of a list that can be used, scored once, and whatever else is known of their files.

    Args:
        model: gives the similarity.
        trials: the list.
        embedded: their files.
        measures: file to what `measure_speech` found; None goes without quality measures and refuses no file.
        minimum_speech: seconds; files with less are left out, as they would get no decision.
        speaker_table: file to speaker; None goes by the names of the files.

    Attributes:
        trials: those that are left.
        speakers: of them.
        scores: `(N,)` float64, raw.
        skipped: file to the reason why its trials were left out.

    Raises:
        ValueError: target or impostor trials are missing, or the speakers cannot be told.
    """

    def __init__(
        self,
        model: HamSpkPreTrainedModel,
        trials: Trials,
        embedded: EmbeddedFiles,
        measures: Mapping[str, SpeechMeasures] | None = None,
        minimum_speech: float = MINIMUM_SPEECH,
        speaker_table: Mapping[str, str] | None = None,
    ):
        self.skipped = dict(embedded.failures)
        if measures is not None:
            self.skipped |= {
                name: f"{NO_SPEECH}: {measures[name].speech:.2f} s, at least {minimum_speech:g} s are needed"
                for name in trials.files
                if name in measures and measures[name].speech < minimum_speech
            }
        self.trials = trials.without(self.skipped)
        if not 0 < int(self.trials.labels.sum()) < len(self.trials):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.skipped.items())[:3])
            raise ValueError(
                f"Of {len(trials)} pairs {len(self.trials)} can be used, and they are not of both kinds (the same "
                f"speaker, different speakers). {reasons}"
            )
        self.speakers: TrialSpeakers = find_speakers(self.trials, speaker_table)
        self.model = model
        files = self.trials.files
        row = {name: i for i, name in enumerate(files)}
        self._rows = [torch.tensor([row[name] for name in side]) for side in (self.trials.enrolment, self.trials.test)]
        self._embeddings = torch.stack([embedded.embeddings[name][0] for name in files])
        self._quality = None if measures is None else self._measured([measures[name] for name in files])
        enrolment, test = (rows.numpy() for rows in self._rows)
        self.scores = score_pairs(model, self._embeddings[:, None], enrolment, test)

    def _measured(self, measures: Sequence[SpeechMeasures]) -> list[Quality]:
        """Quality of the enrolment and of the test side, with arrays `(N,)`."""
        speech, snr = (np.array([getattr(each, name) for each in measures]) for name in ("speech", "snr_db"))
        magnitude = self.model.magnitude(self._embeddings).double().numpy()
        return [Quality(speech[rows], snr[rows], magnitude[rows], np.ones(len(rows))) for rows in self._rows]

    def features(self, setting: Setting, cohort: Cohort | None) -> CalibrationTrials:
        """The trials as a calibration of this setting sees them.

        Raises:
            ValueError: the setting needs a cohort, or measures of speech, that are not there.
        """
        scores = torch.from_numpy(self.scores)
        if setting.normalisation != "none":
            if cohort is None:
                raise ValueError(
                    f"normalisation {setting.normalisation!r} needs a cohort: name recordings of some hundred other "
                    "speakers, best those of the training."
                )
            statistics = statistics_of_files(self.model, self._embeddings, cohort.embeddings, setting.top)
            mean, deviation = statistics.mean.double(), statistics.deviation.double()
            enrolment, test = (CohortStatistics(mean[rows], deviation[rows]) for rows in self._rows)
            scores = apply_statistics(scores, enrolment, test, setting.normalisation)
        values: dict[str, NDArray[np.float64]] = {SCORE: scores.numpy()}
        if setting.quality:
            if self._quality is None:
                raise ValueError("Quality measures need the speech of the files to be measured.")
            measured = quality_features(*self._quality)
            values |= {name: measured[name] for name in setting.features[1:]}
        speakers = np.stack([self.speakers.enrolment, self.speakers.test], axis=1)
        return CalibrationTrials(self.trials.labels, values, speakers)

    def ratios(self, calibration: Calibration, cohort: Cohort | None) -> NDArray[np.float64]:
        """Log-likelihood ratios `(N,)` by a calibration of the model.

        Raises:
            ValueError: it is of another model, or its cohort or the measures of speech are missing.
        """
        calibration.check_model(self.model.fingerprint(), self.model.config.similarity)
        quality = tuple(QUALITY_GROUPS) if calibration.needs_quality else ()
        features = self.features(Setting(calibration.normalisation, calibration.top, quality), cohort).features
        # Pairs of files have one enrolment utterance, whose logarithm is 0.
        features = {"log_enrolment_utterances": np.zeros(len(self.trials))} | features
        return calibration.log_likelihood_ratio(features[SCORE], features)
