"""Check that the evaluation, the calibration and the cohort belong to the weights beside them."""

from pathlib import Path

from ..calibration_hamspk import is_same_model
from ..evaluation.results import EVALUATION_FILE
from ..loading.models import quiet_transformers
from ..modeling_hamspk import HamSpkModel
from .facts import CardFacts
from .tables import measured


def check_origin(folder: Path, facts: CardFacts) -> None:
    """Check that evaluation, calibration and cohort belong to the weights of the model in `folder`.

    Raises:
        ValueError: the model cannot be loaded, or a file belongs to other weights; the message names the file.
    """
    evaluated = None if facts.evaluation is None else measured(facts.evaluation, "model").get("fingerprint")
    if evaluated is None and facts.verification is None and facts.cohort is None:
        return
    try:
        with quiet_transformers():
            fingerprint = HamSpkModel.from_pretrained(folder).fingerprint()
    except OSError as error:
        raise ValueError(f"The model in {folder} cannot be loaded: {error}") from error
    if evaluated is not None and not is_same_model(evaluated, fingerprint):
        raise ValueError(
            f"{EVALUATION_FILE} was measured with other weights or another configuration than those in {folder}. "
            "Evaluate this model with `hamspk evaluate`, or give the folder of the model that was evaluated."
        )
