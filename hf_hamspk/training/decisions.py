"""The calibration of a trained model on its development trials."""

from ..calibration_hamspk import Calibration
from ..evaluation.model_calibration import choose_calibration
from ..evaluation.scored_trials import ScoredTrials
from ..evaluation.trials import Trials
from ..evaluation.verification import EmbeddedFiles
from ..modeling_hamspk import HamSpkForXVector


def calibrate_on(model: HamSpkForXVector, trials: Trials, embedded: EmbeddedFiles, audio: str) -> Calibration:
    """A calibration of the bare scores: what `hamspk calibrate` adds to it, a user's own recordings must show.

    Args:
        model: whose weights will not change any more.
        trials: of speakers that the model was not trained on.
        embedded: their files, measured.
        audio: what the trials are, in words.

    Raises:
        ValueError: too few trials or speakers, speakers that cannot be told, or a model that does not tell them apart.
    """
    scored = ScoredTrials(model, trials, embedded)
    return choose_calibration(scored, normalisation="none", audio=audio).calibration
