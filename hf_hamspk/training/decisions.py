"""The calibration of a trained model on its development trials."""

from ..calibration_hamspk import Calibration
from ..evaluation.calibration_metrics import actual_detection_cost, log_likelihood_ratio_cost
from ..evaluation.model_calibration import calibrate, choose_calibration
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


def summarise(result: VerificationResult, calibration: Calibration | None) -> dict[str, Any]:
    """The numbers of a trial list; with a calibration of bare scores also Cllr and those at its operating points."""
    summary = result.summary()
    if calibration is None:
        return summary
    ratios, labels = calibration.log_likelihood_ratio(result.scores), result.labels
    points = {}
    for point in calibration.operating_points:
        found = actual_detection_cost(ratios, labels, point.prior, point.cost_miss, point.cost_false_alarm)
        points[point.name] = {
            "threshold": point.threshold,
            "act_dcf": found.cost,
            "miss_rate": found.miss_rate,
            "false_alarm_rate": found.false_alarm_rate,
        }
    return summary | {"cllr": log_likelihood_ratio_cost(ratios, labels), "operating_points": points}
    return calibrate(scored, normalisation="none", audio=audio).calibration
