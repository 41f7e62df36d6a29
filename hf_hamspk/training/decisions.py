"""The calibration of a trained model on its development trials."""

from ..calibration_hamspk import Calibration
from ..evaluation.model_calibration import choose_calibration
from ..evaluation.scored_trials import ScoredTrials
from ..evaluation.trials import Trials
from ..evaluation.verification import EmbeddedFiles
from ..modeling_hamspk import HamSpkForXVector


def calibrate_on(model: HamSpkForXVector, trials: Trials, embedded: EmbeddedFiles, audio: str) -> Calibration:
    """A calibration of the raw scores, without normalisation and quality measures.

    Args:
        model: with its final weights.
        trials: of speakers that the model was not trained on.
        embedded: their files, from `embed_files` with `measure`.
        audio: description of the trials.

    Raises:
        ValueError: too few trials or speakers, unknown speakers, or a model that does not tell them apart.
    """
    scored = ScoredTrials(model, trials, embedded)
    return choose_calibration(scored, normalisation="none", audio=audio).calibration
