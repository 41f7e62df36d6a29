"""The log-likelihood ratios that a calibrated model answers with, for the trials of a list.

As `Scorer` finds them pair by pair: the raw score, normalised with the cohort, mapped by the calibration
together with the quality of the recordings. Statistics against the cohort are made once for each file.
"""

import numpy as np
import torch

from ..calibration_hamspk import (
    Calibration,
    Cohort,
    CohortStatistics,
    Quality,
    Scorer,
    apply_statistics,
    quality_features,
)
from ..modeling_hamspk import HamSpkPreTrainedModel
from .cohorts import statistics_of_files
from .trials import Trials
from .verification import EmbeddedFiles, trial_rows


def score_ratios(
    model: HamSpkPreTrainedModel,
    trials: Trials,
    embedded: EmbeddedFiles,
    scores: np.ndarray,
    calibration: Calibration,
    cohort: Cohort | None = None,
) -> np.ndarray:
    """The log-likelihood ratios that a calibrated model answers with, from the raw scores of its trials.

    Args:
        model: the one that the calibration is of.
        trials: `N` of them, their files all in `embedded`.
        embedded: from `embed_files`, with `measure` if the calibration weighs the quality of recordings.
        scores: `(N,)`, from `score_trials`.
        calibration: of the model.
        cohort: of the model, where the calibration asks for normalised scores.

    Returns:
        `(N,)` natural log-likelihood ratios.

    Raises:
        ValueError: model, calibration and cohort do not belong together, or a measure that is needed is missing.
    """
    Scorer(model, calibration, cohort)  # For its checks that the three belong together.
    table, *sides = trial_rows(trials, embedded)
    if cohort is not None and calibration.normalisation != "none":
        statistics = statistics_of_files(model, table[:, 0], cohort.embeddings, calibration.top)
        of_enrolment, of_test = (
            CohortStatistics(statistics.mean[side].double(), statistics.deviation[side].double()) for side in sides
        )
        scores = apply_statistics(torch.from_numpy(scores), of_enrolment, of_test, calibration.normalisation).numpy()
    if not calibration.needs_quality:
        return calibration.log_likelihood_ratio(scores)
    files = list(embedded.embeddings)
    absent = [name for name in files if name not in embedded.measures]
    if absent:
        raise ValueError(
            f"The calibration weighs the quality of recordings, but {len(absent)} files were not measured."
        )
    measures = [embedded.measures[name] for name in files]
    speech, snr = (np.array([getattr(each, name) for each in measures]) for name in ("speech", "snr_db"))
    size = model.magnitude(table[:, 0]).double().numpy()
    utterances = np.array([len(trials.models.get(name, (name,))) for name in files])
    enrolment, test = (Quality(speech[side], snr[side], size[side], utterances[side]) for side in sides)
    return calibration.log_likelihood_ratio(scores, quality_features(enrolment, test))
