"""Metrics and trackers of a training run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..evaluation.evaluating import ListEvaluation
from .arguments import Recipe, TrainingArguments

BEST_METRIC = "eval_eer"
TENSORBOARD = "tensorboard"


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that trackers accept. Numbers, strings and booleans are kept; other values become text."""
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()}


def metrics_of(result: ListEvaluation) -> dict[str, float]:
    """Return the metrics of a trial list under the names that callbacks of transformers expect.

    Returns:
        A dictionary with `eval_eer`, a fraction, and `eval_min_dcf_P` for each prior `P`.
    """
    costs = {f"eval_min_dcf_{prior}": float(cost) for prior, cost in result.record["min_dcf"].items()}
    return {BEST_METRIC: float(result.eer)} | costs


def start_trackers(accelerator: Accelerator, args: TrainingArguments, recipe: Recipe) -> None:
    """Start the trackers of a run and send them the recipe.

    TensorBoard writes to `logs/` in the output folder. Other trackers receive the names of the project and of the run.
    """
    run = args.run_name if args.run_name is not None else Path(args.output_dir).resolve().name
    named: dict[str, dict[str, Any]] = {
        "trackio": {"name": run},
        "wandb": {"name": run},
        "swanlab": {"experiment_name": run},
        "mlflow": {"run_name": run},
        "comet_ml": {"experiment_config": {"name": run}},
    }
    chosen = list(accelerator.log_with)
    if not chosen:
        return
    local = [one for one in chosen if str(one) == TENSORBOARD]
    accelerator.log_with = local
    accelerator.init_trackers("logs")
    # `init_trackers` appends to `accelerator.trackers`, and starts all trackers in this list.
    started, accelerator.trackers = accelerator.trackers, []
    accelerator.log_with = [one for one in chosen if str(one) != TENSORBOARD]
    names = [str(one) for one in accelerator.log_with]
    options = {name: named[name] for name in names if name in named}
    accelerator.init_trackers(args.project, plain_values(recipe.as_dict()), options)
    accelerator.trackers = [*started, *accelerator.trackers]
    accelerator.log_with = chosen
