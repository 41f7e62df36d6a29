"""Callbacks of transformers in the training loop of this package.

Subclasses of `transformers.TrainerCallback`, such as `EarlyStoppingCallback` and progress bars, receive the events in
the same order as from `transformers.Trainer`. The request `should_epoch_stop` has no effect. The state of a callback
that implements `ExportableState` is saved in every checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy

from .arguments import TrainingArguments
from .checkpoints import Progress
from .reporting import BEST_METRIC, plain_values

STATE_FILE = "trainer_state.json"
_REQUESTS = ("should_training_stop", "should_save", "should_evaluate", "should_log")


class CallbackArguments:
    """The arguments of a run, with the attribute names that callbacks of transformers use.

    Other attributes, such as `output_dir` and `learning_rate`, are read from `TrainingArguments`.

    Args:
        arguments: arguments of the run.
        evaluates: whether the run has development trials.
    """

    load_best_model_at_end = True  # The folder `best` always contains the best model.
    metric_for_best_model = BEST_METRIC
    greater_is_better = False
    eval_delay = 0
    logging_first_step = False
    disable_tqdm = False

    def __init__(self, arguments: TrainingArguments, evaluates: bool):
        self._arguments = arguments
        self.eval_strategy = IntervalStrategy.EPOCH if evaluates else IntervalStrategy.NO
        self.save_strategy, self.logging_strategy = IntervalStrategy.EPOCH, IntervalStrategy.STEPS
        self.logging_steps, self.num_train_epochs = arguments.log_steps, arguments.epochs
        self.per_device_train_batch_size = arguments.batch_size

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._arguments, name)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as a dictionary."""
        return dataclasses.asdict(self._arguments)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Return the arguments as a dictionary whose values are numbers, strings or booleans."""
        return plain_values(self.to_dict())

    def to_json_string(self) -> str:
        """Return the arguments as JSON."""
        return json.dumps(self.to_dict(), indent=2)


class Callbacks:
    """Callbacks of a run and their common state. The trainer calls the methods at the events of the run.

    Args:
        callbacks: instances or classes of `transformers.TrainerCallback`.
        arguments: arguments of the run.
        evaluates: whether the run has development trials.

    Attributes:
        state: `TrainerState` of transformers.
        control: `TrainerControl` of transformers, in which callbacks request what the loop does next.

    Raises:
        ValueError: an entry of `callbacks` is not a callback.
    """

    def __init__(
        self,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
        arguments: TrainingArguments,
        evaluates: bool,
    ):
        self.callbacks = [one() if isinstance(one, type) else one for one in callbacks]
        for one in self.callbacks:
            if not isinstance(one, TrainerCallback):
                raise ValueError(
                    f"callbacks must be instances or subclasses of transformers.TrainerCallback, got a "
                    f"{type(one).__name__}."
                )
        self.arguments = CallbackArguments(arguments, evaluates)
        self.state, self.control = TrainerState(num_train_epochs=arguments.epochs), TrainerControl()
        self.handed: dict[str, Any] = {}
        self._batches = 1

    def start(self, accelerator: Accelerator, model: Any, optimizer: Any, scheduler: Any) -> None:
        """Set the objects that callbacks receive, and report that the trainer was made."""
        self.handed = {
            "model": model,
            "processing_class": None,
            "optimizer": optimizer,
            "lr_scheduler": scheduler,
            "train_dataloader": None,
            "eval_dataloader": None,
        }
        self.state.is_local_process_zero = accelerator.is_local_main_process
        self.state.is_world_process_zero = accelerator.is_main_process
        self.call("on_init_end")

    def begin_epoch(self, progress: Progress, batches: int) -> None:
        """Report the beginning of an epoch.

        Args:
            progress: progress of the run.
            batches: number of global batches in an epoch.
        """
        self._batches = batches
        limit = self.arguments.max_steps
        steps = batches * self.arguments.num_train_epochs
        self.state.max_steps = min(limit, steps) if limit > 0 else steps
        if progress.batch == 0:
            self.call("on_epoch_begin")

    def begin_step(self) -> None:
        """Report the beginning of a step and clear the requests of the step before."""
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        self.call("on_step_begin")

    def end_step(self, progress: Progress) -> None:
        """Report the end of a step."""
        self._follow(progress)
        self.call("on_step_end")

    def _follow(self, progress: Progress) -> None:
        self.state.global_step = progress.step
        self.state.epoch = progress.epoch + progress.batch / self._batches

    def end_epoch(self, accelerator: Accelerator) -> None:
        """Report the end of an epoch."""
        self.control.should_evaluate = False
        self.call("on_epoch_end")
        self.agree(accelerator)

    def log(self, values: Mapping[str, Any], progress: Progress) -> None:
        """Add values to the history, and report them."""
        self.state.log_history.append(dict(values) | {"epoch": self.state.epoch, "step": progress.step})
        self.call("on_log", logs=dict(values))

    def note_best(self, value: float, step: int, folder: Path) -> None:
        """Record the best metric so far. As in transformers, callbacks see it from the next evaluation on."""
        self.state.best_metric, self.state.best_global_step = value, step
        self.state.best_model_checkpoint = str(folder)

    def call(self, event: str, **values: Any) -> None:
        """Call the method `event` of each callback.

        Raises:
            RuntimeError: a callback raised an error. It is the cause of this error.
        """
        for callback in self.callbacks:
            try:
                answer = getattr(callback, event)(self.arguments, self.state, self.control, **self.handed, **values)
            except Exception as error:
                raise RuntimeError(
                    f"The callback {type(callback).__name__} failed in {event}: {type(error).__name__}: {error}. "
                    "Correct the callback, and run the same command again to resume from the newest checkpoint."
                ) from error
            if answer is not None:
                self.control = answer

    def agree(self, accelerator: Accelerator, interrupted: bool = False) -> bool:
        """Share the requests of the callbacks among all ranks, and find out whether any rank was interrupted.

        Returns:
            Whether any rank was interrupted.
        """
        if accelerator.num_processes == 1:
            return interrupted
        flags = [interrupted, *(getattr(self.control, name) for name in _REQUESTS)]
        common = accelerator.reduce(torch.tensor(flags, dtype=torch.int32, device=accelerator.device), "sum")
        first, *rest = common.tolist()  # pyright: ignore[reportAttributeAccessIssue]
        for name, flag in zip(_REQUESTS, rest, strict=True):
            setattr(self.control, name, bool(flag))
        return bool(first)

    def save(self, folder: Path, progress: Progress) -> None:
        """Write `state` and the states of callbacks that implement `ExportableState` into a checkpoint folder."""
        self._follow(progress)
        exportable = [one for one in self.callbacks if isinstance(one, ExportableState)]
        state = dataclasses.replace(self.state, stateful_callbacks=exportable)
        state.save_to_json(str(folder / STATE_FILE))

    def restore(self, folder: Path) -> None:
        """Read the file that `save` wrote, if it exists. Callbacks without a saved state keep their initial state."""
        if not (folder / STATE_FILE).exists():
            return
        saved = TrainerState.load_from_json(str(folder / STATE_FILE))
        states: dict[str, list[Any]] = {
            name: list(value) if isinstance(value, list) else [value]
            for name, value in dict(saved.stateful_callbacks or {}).items()  # pyright: ignore
        }
        for callback in self.callbacks:
            waiting = states.get(type(callback).__name__)
            if waiting and isinstance(callback, ExportableState):
                for name, value in waiting.pop(0)["attributes"].items():
                    setattr(callback, name, value)
        saved.stateful_callbacks = None
        saved.__post_init__()
        self.state = saved
