"""Score the trials of a list, and compute the features that a calibration is fitted on.

In the shapes, `N` is the number of trials.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..audio_hamspk import MINIMUM_SPEECH
from ..calibration_hamspk import SCORE, Cohort, compare_with_cohort, trial_features
from ..modeling_hamspk import SpeakerModelMixin
from .calibrating import CalibrationTrials
from .matrix_scoring import score_pairs
from .speakers import TrialSpeakers, find_speakers
from .trials import Trials
from .verification import (
    EmbeddedFiles,
    enrol_models,
    measured_quality,
    select_quality,
    select_statistics,
    trial_rows,
    usable_trials,
)

# Groups of quality measures that a user can choose, with the features of each group. The number of enrolment utterances
# is not in any group.
QUALITY_GROUPS = {
    "speech": ("log_speech_min", "log_speech_max"),
    "snr": ("snr_min", "snr_max"),
    "magnitude": ("magnitude_min", "magnitude_max"),
}


@dataclass(frozen=True)
class CalibrationSetting:
    """Choice of the score normalisation and of the quality measures for a calibration.

    Attributes:
        normalisation: score normalisation, one of `NORMALISATIONS`.
        top: number of nearest cohort speakers for the normalisation `"as"`; None for other normalisations.
        quality: groups of quality measures, keys of `QUALITY_GROUPS`.
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
        """Names of the features of the calibration. The first feature is the score."""
        return (SCORE, *(name for group in self.quality for name in QUALITY_GROUPS[group]))


class ScoredTrials:
    """Usable trials of a list with their raw scores, their speakers and the quality measures of the recordings.

    Args:
        model: model whose similarity is used.
        trials: trial list.
        embedded: embeddings of the files, from `embed_files`. Quality measures are available only if `embed_files` was
            called with `measure=True`.
        minimum_speech: seconds of speech that a decision requires. Files with less measured speech are left out, with
            all their trials.
        speaker_table: maps each file to its speaker; None derives the speakers from the file names.

    Attributes:
        trials: the `N` usable trials.
        speakers: speakers of the usable trials.
        scores: `(N,)` float64, raw scores.
        skipped: maps each file whose trials were left out to the reason.
        detector: name of the detector that measured the speech.

    Raises:
        ValueError: no target or no impostor trial remains, or the speakers cannot be found (see `find_speakers`).
    """

    def __init__(
        self,
        model: SpeakerModelMixin,
        trials: Trials,
        embedded: EmbeddedFiles,
        minimum_speech: float = MINIMUM_SPEECH,
        speaker_table: Mapping[str, str] | None = None,
    ):
        self.detector = embedded.detector
        embedded = embedded.part(trials.files).refuse_short(minimum_speech)
        self.skipped = embedded.failures
        self.trials = usable_trials(trials, self.skipped)
        self.speakers: TrialSpeakers = find_speakers(self.trials, speaker_table)
        self.model = model
        embedded = enrol_models(self.trials, embedded)
        table, enrolment, test = trial_rows(self.trials, embedded)
        self.embeddings, self._rows = table[:, 0], (enrolment, test)
        self._quality = measured_quality(model, self.trials, embedded) if embedded.measures else None
        self.scores = score_pairs(model, table[:, :1], enrolment, test)

    def features(self, setting: CalibrationSetting, cohort: Cohort | None) -> CalibrationTrials:
        """Return the trials with the features that a calibration setting requires.

        Args:
            setting: score normalisation and quality measures.
            cohort: cohort of the model; None if the setting does not normalise scores.

        Raises:
            ValueError: the setting requires a cohort but `cohort` is None, or it requires quality measures but the
                speech in the files was not measured.
        """
        enrolment, test = self._rows
        statistics = quality = None
        if setting.normalisation != "none":
            if cohort is None:
                raise ValueError(
                    f"normalisation {setting.normalisation!r} needs a cohort. Give recordings of a few hundred other "
                    "speakers, preferably of the training speakers (--cohort)."
                )
            found = compare_with_cohort(self.model, self.embeddings, cohort.embeddings, setting.top)
            statistics = select_statistics(found, enrolment), select_statistics(found, test)
        if setting.quality:
            if self._quality is None:
                raise ValueError(
                    "Quality measures require that the speech in each file was measured. Call embed_files with "
                    "measure=True."
                )
            quality = select_quality(self._quality, enrolment), select_quality(self._quality, test)
        values = trial_features(torch.from_numpy(self.scores), setting.normalisation, statistics, quality)
        speakers = np.stack([self.speakers.enrolment, self.speakers.test], axis=1)
        return CalibrationTrials(self.trials.labels, {name: values[name] for name in setting.features}, speakers)
