"""Error rates on a trial list as `compute_metrics` of `transformers.Trainer`."""

import os
from typing import Any

from ..evaluation.evaluating import EvaluationSettings, evaluate_list
from ..evaluation.trials import Trials
from ..evaluation.verification import embed_files
from ..modeling_hamspk import HamSpkPreTrainedModel
from .reporting import metrics_of
from .trial_lists import gather_trial_lists


class TrialMetrics:
    """Function that evaluates a model on a trial list. Pass it to `transformers.Trainer` as `compute_metrics`.

    Each call embeds the recordings of the list with the current weights. The predictions that the trainer passes are
    not used. Every process embeds all recordings, so that all processes get the same metrics.

    Example:
        ```python
        from hf_hamspk import TrialMetrics

        def make_metrics(model, pairs):
            return TrialMetrics(model, pairs, audio_root="people/")  # compute_metrics of transformers.Trainer
        ```

    Args:
        model: model that is trained.
        trials: trial list, as a path or `Trials`.
        audio_root: base folder of the paths in the list.
        protocol: evaluation protocol, `"whole"` or `"paper"` (see `DataArguments.protocol`).

    Raises:
        ValueError: the list is invalid, lacks target or impostor trials, or names a missing file.
    """

    def __init__(
        self,
        model: HamSpkPreTrainedModel,
        trials: str | os.PathLike[str] | Trials,
        audio_root: str | os.PathLike[str] = ".",
        protocol: str = "whole",
    ):
        self.model, self.root = model, os.fspath(audio_root)
        lists = gather_trial_lists(trials, (), self.root)
        self.trials = lists.trials[str(lists.dev)]
        self.settings = EvaluationSettings(protocol=protocol, replicates=0, calibrated=False, progress=False)

    def __call__(self, prediction: Any = None) -> dict[str, float]:
        """Evaluate the model.

        Returns:
            A dictionary with `eer`, a fraction, and `min_dcf_P` for each prior `P`. The trainer adds the prefix
            `eval_`.

        Raises:
            ValueError: too few recordings can be used.
        """
        embedded = embed_files(self.model, self.trials.files, self.root, self.settings.protocol, progress=False)
        result = evaluate_list(self.model, self.trials, embedded, self.settings)
        return {name.removeprefix("eval_"): value for name, value in metrics_of(result).items()}
