"""Speaker verification error rates as a module for `evaluate`.

`evaluate.load` copies this file elsewhere and scans its text: it must stand alone but for installed packages, so it
imports this package by its full name, one package per import line, no comment behind an import. `Features` and `Value`
are those of the datasets library, taken where evaluate uses them.
"""

import evaluate
import numpy as np
from evaluate.module import Features, Value
from evaluate.utils.file_utils import add_start_docstrings

from hf_hamspk.evaluation.calibration_metrics import actual_detection_cost, convex_hull, log_likelihood_ratio_cost
from hf_hamspk.evaluation.metrics import detection_errors

_DESCRIPTION = """\
Equal error rate (EER) and minimum detection cost (minDCF) of speaker verification, exact at every distinct threshold,
and the log-likelihood-ratio cost (Cllr) with its minimum. A trial is accepted if its score is greater than or equal to
the threshold. The EER is the larger of the two error rates at the operating point where they are nearest, without
interpolation; the one on the convex hull of the ROC curve is given beside it. The detection costs have unit costs and
are normalised by min(prior, 1 - prior). What only log-likelihood ratios have, Cllr and the actual detection cost
(actDCF) of decisions at the Bayes threshold, is given if the scores are said to be such.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `float`): scores of the trials, finite; greater = more likely the same speaker.
    references (`list` of `int`): 1 for a target trial (same speaker), 0 for an impostor trial.
    priors (`Sequence` of `float`): probabilities of a target trial for which to give the minDCF, each strictly between
        0 and 1. Defaults to (0.01, 0.05).
    log_likelihood_ratios (`bool`): whether the predictions are natural log-likelihood ratios, and not scores of any
        scale. Defaults to False.

Returns:
    `dict` of `float`:
        - eer: equal error rate, a fraction in [0, 1].
        - eer_threshold: the threshold at which it is reached.
        - min_dcf_<prior>: for each prior, the normalised minimum detection cost, in [0, 1].
        - min_dcf_<prior>_threshold: the threshold at which it is reached; inf where rejecting all is cheapest.
        - eer_convex_hull: equal error rate on the convex hull of the ROC curve, in [0, 0.5].
        - min_cllr: the Cllr, in bits, that the best non-decreasing map of the scores would leave, in [0, 1].
        - cllr: with log_likelihood_ratios, their Cllr in bits; 1 is what no information costs.
        - act_dcf_<prior>: with log_likelihood_ratios, the normalised detection cost of their decisions.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("hf_hamspk/evaluation/speaker_verification.py")
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
    """Error rates and costs of speaker verification for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        # No `format="numpy"`: it would hand the scores over in float32, and distinct scores could become ties.
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
            ValueError: if a label is not a whole number, or the two lengths differ.
        """
        _check_whole(references)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one score and its label.

        Raises:
            ValueError: if the label is not a whole number.
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
    """Refuse fractional labels: the integer feature would silently cut 0.7 down to 0."""
    # Tensors may lie on an accelerator, where NumPy cannot read them; evaluate fetches them itself.
    labels = np.asarray(references.detach().cpu() if hasattr(references, "detach") else references)
    if labels.dtype.kind == "f" and not (labels == np.trunc(labels)).all():
        raise ValueError("references must be 0 (impostor) or 1 (target), got fractions. Are the two inputs swapped?")
