"""Calibration of a trained model on its development trials."""

from ..evaluation.model_calibration import ChosenCalibration, choose_calibration
from ..evaluation.scored_trials import ScoredTrials
from ..evaluation.trials import Trials
from ..evaluation.verification import EmbeddedFiles
from ..modeling_hamspk import HamSpkForXVector


def calibrate_on(model: HamSpkForXVector, trials: Trials, embedded: EmbeddedFiles, audio: str) -> ChosenCalibration:
    """Fit a calibration to the scores of a trial list, without score normalisation.

    Args:
        model: model with its final weights.
        trials: trials of speakers that are not in the training set.
        embedded: embeddings of the trial files, made by `embed_files` with `measure=True`.
        audio: description of the recordings, stored in the calibration.

    Raises:
        ValueError: there are too few trials or speakers, the speakers are unknown, or the scores of targets are not
            above the scores of impostors.
    """
    scored = ScoredTrials(model, trials, embedded)
    return choose_calibration(scored, normalisation="none", audio=audio)
