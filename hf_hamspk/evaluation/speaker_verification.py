"""Metric for the library `evaluate` that computes error rates and costs of speaker verification.

`evaluate.load` copies this file to another folder and scans its imports. The file may therefore import only installed
packages. It imports this package by its full name. Each line imports one package and has no comment.
`Features` and `Value` are classes of the library `datasets`. They are imported from the module of `evaluate` that also
imports them.
"""

import evaluate
import numpy as np
from evaluate.module import Features, Value
from evaluate.utils.file_utils import add_start_docstrings

from hf_hamspk.evaluation.calibration_metrics import actual_detection_cost, convex_hull, log_likelihood_ratio_cost
from hf_hamspk.evaluation.metrics import detection_errors

_DESCRIPTION = """\
Equal error rate (EER), minimum detection cost (minDCF) and minimum log-likelihood-ratio cost (minCllr) of speaker
verification. EER and minDCF are computed exactly, over all distinct thresholds. A trial is accepted if its score is
greater than or equal to the threshold. The EER is the larger of the miss rate and the false-alarm rate at the threshold
where the two rates are closest, without interpolation. The EER on the convex hull of the ROC curve is reported as well.
The detection costs count a miss and a false alarm with cost 1 each and are normalised by min(prior, 1 - prior). If the
scores are log-likelihood ratios, the result also contains their cost (Cllr) and the actual detection cost (actDCF) of
decisions at the Bayes threshold.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `float`): finite scores of the trials; a larger score means more similar recordings.
    references (`list` of `int`): 1 for a target trial (same speaker), 0 for an impostor trial.
    priors (`Sequence` of `float`): prior probabilities of a target trial for the detection costs, each strictly between
        0 and 1. Defaults to (0.01, 0.05).
    log_likelihood_ratios (`bool`): whether the predictions are natural log-likelihood ratios. Defaults to False.

Returns:
    `dict` of `float`:
        - eer: equal error rate, a fraction in [0, 1].
        - eer_threshold: threshold of the EER.
        - min_dcf_<prior>: normalised minimum detection cost for each prior, in [0, 1].
        - min_dcf_<prior>_threshold: threshold of the minDCF; inf if rejecting all trials is cheapest.
        - eer_convex_hull: equal error rate on the convex hull of the ROC curve, in [0, 0.5].
        - min_cllr: smallest Cllr, in bits, that a non-decreasing map of the scores can have, in [0, 1].
        - cllr: Cllr in bits, at least 0; 1 if every ratio is 0. Only with log_likelihood_ratios.
        - act_dcf_<prior>: normalised actual detection cost for each prior. Only with log_likelihood_ratios.

Examples:
    >>> import evaluate
    >>> from hf_hamspk.evaluation import METRIC_FILE
    >>> metric = evaluate.load(METRIC_FILE)
    >>> result = metric.compute(predictions=[0.9, 0.6, 0.4, 0.1], references=[1, 0, 1, 0])
    >>> result["eer"]
    0.5
"""

_CITATION = """\
@article{greenberg2020two,
    title = {Two decades of speaker recognition evaluation at the National Institute of Standards and Technology},
    author = {Greenberg, Craig S. and Mason, Lisa P. and Sadjadi, Seyed Omid and Reynolds, Douglas A.},
    journal = {Computer Speech \\& Language},
    volume = {60},
    year = {2020},
}
"""


@add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class SpeakerVerification(evaluate.Metric):
    """Metric of the library `evaluate` with the error rates and costs of speaker verification."""

    def _info(self) -> evaluate.MetricInfo:
        # `format="numpy"` would convert the scores to float32, and distinct scores could become equal.
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=Features({"predictions": Value("float64"), "references": Value("int64")}),
            reference_urls=["https://github.com/clovaai/voxceleb_trainer"],
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add a batch of scores and labels.

        Raises:
            ValueError: a label is not a whole number, or the two lengths differ.
        """
        _check_whole(references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one score and its label.

        Raises:
            ValueError: the label is not a whole number.
        """
        _check_whole(reference)
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _compute(self, predictions, references, priors=(0.01, 0.05), log_likelihood_ratios=False) -> dict[str, float]:
        errors = detection_errors(predictions, references)
        equal = errors.equal_error_rate()
        result = {"eer": equal.eer, "eer_threshold": equal.threshold}
        for prior in priors:
            cost = errors.minimum_detection_cost(prior)
            result[f"min_dcf_{float(prior)}"] = cost.cost
            result[f"min_dcf_{float(prior)}_threshold"] = cost.threshold
        hull = convex_hull(predictions, references)
        result["eer_convex_hull"] = hull.equal_error_rate().eer
        result["min_cllr"] = hull.log_likelihood_ratio_cost()
        if log_likelihood_ratios:
            result["cllr"] = log_likelihood_ratio_cost(predictions, references)
            for prior in priors:
                result[f"act_dcf_{float(prior)}"] = actual_detection_cost(predictions, references, prior).cost
        return result


def _check_whole(references) -> None:
    """Raise an error if a label is a fraction. The conversion to integers would truncate 0.7 to 0 without a warning."""
    # NumPy cannot read a tensor on an accelerator. The library `evaluate` copies such tensors itself.
    labels = np.asarray(references.detach().cpu() if hasattr(references, "detach") else references)
    if labels.dtype.kind == "f" and not (labels == np.trunc(labels)).all():
        raise ValueError(
            "references must be 0 (impostor) or 1 (target), got fractions. Pass the scores as predictions."
        )
