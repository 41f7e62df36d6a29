"""Trainer based on Accelerate, for a single CPU as well as for many GPUs and machines.

The data of a step depend only on seed, epoch and sample number, not on the number of processes, workers or accumulation
steps. All ranks make the same number of steps. A killed run resumes from its newest checkpoint and ends with the same
weights as an uninterrupted run.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from ..evaluation.evaluating import Evaluation, EvaluationSettings, ListEvaluation, evaluate_list
from ..evaluation.results import EvaluationRecord
from ..evaluation.verification import EmbeddedFiles, embed_files
from ..folders.ownership import is_adapter_file
from ..folders.writing import write_atomically
from ..losses.engine import set_class_sampling, use_blocks
from ..modeling_hamspk import HamSpkForXVector
from ..publishing.push import push_to_hub
from .arguments import DataArguments, Recipe, TrainingArguments, change_recipe
from .building import (
    build_crops,
    build_optimizer,
    check_launch,
    check_optimizer,
    check_run,
    make_accelerator,
    on_main,
    recipe_in_effect,
    run_identity,
    run_settings,
    training_batches,
    views,
    without_gradient,
)
from .callbacks import Callbacks
from .centres import start_at_means, training_embeddings
from .checkpoints import (
    ADAPTER_FOLDER,
    FROZEN_PART,
    METRICS_FILE,
    RECIPE_COPY,
    Progress,
    average_epoch_weights,
    damaged,
    explain_write_errors,
    find_checkpoint,
    finish_checkpoint,
    forget_run,
    lock_run,
    prepare_checkpoint,
    read_progress,
    save_epoch_weights,
    tidy_run,
    trim_metrics,
    write_folder,
)
from .decisions import calibrate_on
from .divided import clip_gradient, divide_centres, whole_centres
from .frames import FrameCrops, FrameStore
from .frozen import DividedModel, check_frozen_part
from .interruption import EXIT_STATUS, Interruption
from .lora import (
    add_adapters,
    base_name,
    check_adapter_gradients,
    check_lora,
    has_adapters,
    merge_adapters,
    merged_copy,
    save_adapter,
)
from .memory import keep_freed_memory
from .meter import StepMeter
from .models import GivenModel, RecipeModel, gather_recipe
from .reporting import BEST_METRIC, metrics_of, start_trackers
from .schedules import learning_rate, margin
from .stages import RATE_FACTOR, BackboneStage, check_stages, fold_names
from .trial_lists import TrialLists, TrialSource, gather_trial_lists, trial_root

DIVERGED = "Train again with a lower learning_rate or with max_grad_norm, in another output_dir or with --resume false."


class Trainer:
    """Trainer for speaker models. It supports the callbacks and trackers of the Hugging Face libraries.

    Example:
        ```python
        from hf_hamspk import Trainer

        trainer = Trainer.from_recipe("recipe.yaml", epochs=1, output_dir="run")
        results = trainer.train()
        ```

    Args:
        model: model with any backbone and head. Unless the head was made for the training speakers, it is replaced by a
            new head of the same kind.
        args: arguments of the optimisation and the output; None uses the defaults.
        train_dataset: training data. It can be a `datasets.Dataset` or `IterableDataset` with a column of audio and a
            column of speakers, or anything that `DataArguments.train_data` accepts. None uses `data.train_data`.
        dev_trials: trial list with which the best model is selected, as a path or `Trials`. None uses
            `data.dev_trials`.
        test_trials: trial lists that are evaluated at the end: one list, several lists, or a dictionary that maps names
            to lists. None uses `data.test_trials`.
        data: arguments of the crops, the augmentation and the paths; None uses the defaults.
        speakers: training speakers in the order of the class indices; None reads them from the data.
        callbacks: instances or classes of `transformers.TrainerCallback`.
        optimizers: optimiser and learning rate scheduler, as for `transformers.Trainer`. Without an optimiser, the
            trainer makes the optimiser that `args` describes. A scheduler replaces the schedule of `args`; its method
            `step` is called after every step.
        accelerator: Accelerator of the run; None creates one from `args`.

    Raises:
        ValueError: the data or the trial lists cannot be used, the batch size is not divisible by the number of
            processes, the output folder contains other files, or its checkpoint is damaged or belongs to another run.
    """

    def __init__(
        self,
        model: HamSpkForXVector | RecipeModel,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        dev_trials: TrialSource | None = None,
        test_trials: TrialSource | Sequence[TrialSource] | Mapping[str, TrialSource] | None = None,
        *,
        data: DataArguments | None = None,
        speakers: Sequence[str] | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
        optimizers: tuple[torch.optim.Optimizer | None, LRScheduler | None] = (None, None),
        accelerator: Accelerator | None = None,
    ):
        source = model if isinstance(model, RecipeModel) else GivenModel(model)
        recipe = gather_recipe(source, args, train_dataset, data)
        self.accelerator = make_accelerator(recipe.training, source.config) if accelerator is None else accelerator
        check_launch(self.accelerator)
        self.recipe = recipe.with_precision(self.accelerator.mixed_precision)
        self.data, self.args = self.recipe.data, self.recipe.training
        self.output_dir = Path(self.args.output_dir)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        # Everything that can be checked without the audio is checked first, because reading all audio can take hours.
        check_run(self.args, self.accelerator.num_processes)
        check_stages(self.args, source.config)
        check_lora(self.args, source.config)
        check_frozen_part(self.recipe, source.config)
        self.settings = run_settings(self.recipe, source.config)
        self.checkpoint: Path | None = on_main(
            self.accelerator, lambda: find_checkpoint(self.output_dir, self.settings, self.args.resume, unlocked=True)
        )
        dev = self.data.dev_trials if dev_trials is None else dev_trials
        tests = self.data.test_trials if test_trials is None else test_trials
        self.lists = gather_trial_lists(dev, tests, trial_root(self.data))
        self.callbacks = Callbacks(callbacks, self.args, self.lists.dev is not None)
        self.crops, names = build_crops(
            self.recipe, source.config.sampling_rate, self._print, self.accelerator.is_local_main_process, speakers
        )
        self._build(source, names, optimizers)

    def _build(
        self, source: RecipeModel | GivenModel, speakers: list[str], optimizers: tuple[Any, LRScheduler | None]
    ) -> None:
        """Build the model for the training speakers, make its optimiser, and prepare both with the Accelerator."""
        set_seed(self.args.seed)
        model, said = source.build(speakers, self.args.keep_centres)
        if said is not None:
            self._print(said)
        if self.args.lora_rank:
            add_adapters(model, self.args)
        self.final_margin = model.head.margin
        self.identity = run_identity(self.recipe, model.config, self.crops)
        set_class_sampling(use_blocks(model.head), self.args.class_sampling)
        if self.args.shard_centres and self.accelerator.num_processes > 1:
            divide_centres(model, self.accelerator)
        if self.args.sync_batch_norm and self.accelerator.num_processes > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.divided = None if self.args.train_last_blocks is None else DividedModel(model, self.args.train_last_blocks)
        self.stage = BackboneStage(model, self.args.freeze_backbone_epochs)
        optimizer, self.scheduler = optimizers
        if optimizer is not None:
            check_optimizer(optimizer, model, self.args)
        optimizer = build_optimizer(self.args, model) if optimizer is None else optimizer
        if self.divided is not None:
            # The hash is compared when the run is resumed.
            self.identity |= {FROZEN_PART: None}
        if self.divided is not None and self.data.frame_folder is not None:
            self._use_frames(self.divided, self.data.frame_folder)
            model = self.divided
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Masking and dropout differ between ranks from here on.
        set_seed(self.args.seed, device_specific=True)
        self.progress = Progress(config=self.identity)
        self.meter = StepMeter(self.accelerator.device)
        if self.scheduler is not None:
            self.accelerator.register_for_checkpointing(self.scheduler)
        self.callbacks.start(self.accelerator, self.bare_model, self.optimizer, self.scheduler)

    def _use_frames(self, divided: DividedModel, folder: str) -> None:
        """Replace the training crops by crops of the frozen part's output, and compute this output if it is missing."""
        divided.model.to(self.accelerator.device)
        store = FrameStore(folder, divided)
        with self.accelerator.main_process_first():
            self.crops = crops = FrameCrops(self.crops, store, self.accelerator.is_local_main_process)
        self.identity |= {FROZEN_PART: store.prefix}
        if self.args.initial_centres == "mean" and self.checkpoint is None:
            embeddings, labels = crops.embeddings(store)
            norm, is_frozen = divided.model.hamspk.embedding_norm, self.args.freeze_batch_norm
            start_at_means(divided.model.head, training_embeddings(embeddings, norm, is_frozen), labels)
        self._print(
            f"The frames of {len(crops)} recordings take {crops.megabytes:.0f} MB in {store.folder}. The frames of "
            f"{store.computed} recordings were computed now."
        )

    @classmethod
    def from_recipe(
        cls,
        recipe: str | os.PathLike[str] | Recipe,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = (),
        **changes: Any,
    ) -> "Trainer":
        """Make a trainer from a recipe file or a recipe.

        Args:
            recipe: YAML file of `key: value` lines, or a `Recipe`. Relative paths in it are relative to the working
                directory.
            callbacks: instances or classes of `transformers.TrainerCallback`.
            changes: new values of recipe keys, as keyword arguments; None resets a key to its default.

        Raises:
            ValueError: the recipe is missing, a key is unknown, a value has the wrong type or is out of range, or the
                run cannot start (see `Trainer`).
        """
        changed = change_recipe(recipe, changes)
        return cls(RecipeModel(changed), changed.training, data=changed.data, callbacks=callbacks)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def train(self) -> EvaluationRecord:
        """Train to the end, average the weights of the last epochs, and evaluate on the development and test lists.

        If the process receives SIGTERM, it finishes the step, writes a checkpoint, and exits with the status 143. The
        run can then be resumed.

        Returns:
            The content of `final/evaluation.json`: results of each trial list, and information about the run.

        Raises:
            ValueError: another run writes into the output folder, or the run diverged.
            OSError: a file could not be written.
            RuntimeError: a callback failed.
        """
        with ExitStack() as stack:
            on_main(self.accelerator, lambda: stack.enter_context(lock_run(self.output_dir)))
            self.interruption = stack.enter_context(Interruption())
            with self._whole_centres():
                self._start()
            while not self._finished():
                self._train_epoch()
                if self._epoch_done():
                    with self._whole_centres():
                        self._end_epoch()
                else:
                    self._save_checkpoint()
            with self._whole_centres():
                return self._finish()

    def evaluate(self, trials: TrialSource | None = None) -> dict[str, float]:
        """Evaluate the current model on a trial list.

        Args:
            trials: path or `Trials`; None uses the development trials.

        Returns:
            Metrics, such as `eval_eer` (a fraction) and `eval_min_dcf_0.01`, on all processes.

        Raises:
            ValueError: there is no trial list, or it cannot be evaluated.
        """
        lists = self.lists
        if trials is not None:
            lists = gather_trial_lists(trials, (), self.lists.root)
        if lists.dev is None:
            raise ValueError("Expected trials or development trials, got neither. Pass trials.")
        with self._whole_centres():
            result = self._evaluate(lists.dev, lists=lists)
        metrics = on_main(self.accelerator, lambda: None if result is None else metrics_of(result))
        if metrics is None:
            raise ValueError(f"{lists.titles[lists.dev]} could not be evaluated. The reason was printed.")
        return metrics

    def push_to_hub(self, repository: str | None = None, private: bool | None = None) -> None:
        """Publish the folder `final` on the Hub, with code, weights and card.

        Args:
            repository: name `owner/name`; None uses `args.hub_model_id`.
            private: whether a new repository is private; None uses `args.hub_private`.

        Raises:
            ValueError, OSError: see `hf_hamspk.publishing.push_to_hub`.
        """
        name = self.args.hub_model_id if repository is None else repository
        if name is None:
            raise ValueError("Expected the name of a repository, got None. Pass it, or set hub_model_id.")
        private = self.args.hub_private if private is None else private
        on_main(self.accelerator, lambda: self._publish("final", name, private))

    def _publish(self, folder: str, repository: str, private: bool) -> None:
        push_to_hub(self.output_dir / folder, repository, private=private, run_folder=self.output_dir)

    def _start(self) -> None:
        found: Path | None = on_main(self.accelerator, self._begin_or_resume)
        if found is not None:
            self._load_checkpoint(found)
        on_main(self.accelerator, lambda: self._write_beginning(found is not None))
        start_trackers(self.accelerator, self.args, self.recipe)
        self.callbacks.call("on_train_begin")

    def _begin_or_resume(self) -> Path | None:
        """Remove unfinished files, and return the checkpoint to resume from.

        Another run may have written checkpoints after this trainer was made, so the folder is searched again.
        """
        tidy_run(self.output_dir)
        return find_checkpoint(self.output_dir, self.settings, self.args.resume, self.checkpoint)

    def _load_checkpoint(self, found: Path) -> None:
        self.progress = read_progress(found, self.identity)
        try:
            self.accelerator.load_state(str(found))
        # The readers of Accelerate raise many kinds of errors for a truncated or missing file.
        except Exception as error:
            raise damaged(found, error) from error
        self.callbacks.restore(found)
        self.progress.config = self.identity
        self.meter.restore(self.progress.loss_sum, self.progress.loss_steps)
        self._print(f"Resumed from {found} at epoch {self.progress.epoch}, step {self.progress.step}.")
        if self.progress.threads not in (None, torch.get_num_threads()):
            self._print(
                f"The checkpoint was written with {self.progress.threads} threads, but now there are "
                f"{torch.get_num_threads()}. Because of rounding errors, the weights can therefore differ from those "
                "of an uninterrupted run. To avoid this, set OMP_NUM_THREADS to the earlier number."
            )

    def _write_beginning(self, resumed: bool) -> None:
        """Write the recipe. Remove the metrics and checkpoints that the run will write again."""
        if resumed:
            removed = trim_metrics(self.output_dir, self.progress.step)
            if removed:
                self._print(f"{removed} lines of {METRICS_FILE} were not entries of a run and have been removed.")
        else:
            forget_run(self.output_dir)
        recipe = recipe_in_effect(self.recipe, self.bare_model.config, self.final_margin)
        text = yaml.safe_dump(recipe, sort_keys=False)
        write_atomically(self.output_dir / RECIPE_COPY, lambda path: path.write_text(text, encoding="utf-8"))

    def _train_epoch(self) -> None:
        batches = self._batches()
        total = self.batches_per_epoch
        self.callbacks.begin_epoch(self.progress, total)
        bar = tqdm(
            batches,
            desc=f"epoch {self.progress.epoch + 1}/{self.args.epochs}",
            initial=self.progress.batch,
            total=total,
            unit="step",
            disable=not self.accelerator.is_local_main_process,
        )
        self._set_training_mode()
        for micro_batches in self.meter.batches(bar):
            self.callbacks.begin_step()
            self.meter.add(self._train_step(micro_batches, self.progress.epoch + self.progress.batch / total))
            self.progress.batch += 1
            self.progress.step += 1
            self._end_step(bar)
            if self._stops_early():
                break

    def _end_step(self, bar: tqdm) -> None:
        """Log, evaluate, save or stop after a step if the arguments, a callback or SIGTERM request it."""
        control, step = self.callbacks.control, self.progress.step
        at_end = self._epoch_done()
        control.should_log |= step % self.args.log_steps == 0
        control.should_save |= bool(self.args.save_steps) and step % self.args.save_steps == 0
        self.callbacks.end_step(self.progress)
        interrupted = self.callbacks.agree(self.accelerator, self.interruption.requested)
        control = self.callbacks.control
        if control.should_log:
            bar.set_postfix(loss=f"{self._log_steps():.3f}")
        if control.should_evaluate and self.lists.dev is not None and not at_end:
            with self._whole_centres():
                self._evaluate_dev(self.lists.dev)
        if (control.should_save or interrupted) and not at_end:
            self._save_checkpoint()
        if interrupted:
            self._stop_for_signal(at_end)

    def _stop_for_signal(self, at_end: bool) -> None:
        """Exit after SIGTERM. If `at_end` is True, first finish the epoch and write its checkpoint."""
        if at_end:
            with self._whole_centres():
                self._end_epoch()
        self._print("Stopped by SIGTERM after a checkpoint. To resume, run the same command again.")
        self.accelerator.end_training()
        raise SystemExit(EXIT_STATUS)

    def _batches(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        """Return the remaining global batches of the epoch, each as a list of the micro-batches of this rank."""
        self.batches_per_epoch, micro_batches = training_batches(
            self.recipe, self.crops, self.progress.epoch, self.progress.batch, self.accelerator
        )
        steps = self.args.gradient_accumulation_steps
        return (list(group) for group in zip(*[micro_batches] * steps, strict=True))

    def _train_step(self, micro_batches: list[dict[str, torch.Tensor]], position: float) -> torch.Tensor:
        """Make one optimiser step.

        Returns:
            The mean loss of this rank, a scalar. For pairs, it is the sum of the mean losses of the clean and of the
            augmented crops.
        """
        self._set_schedules(position)
        loss = torch.zeros((), device=self.accelerator.device)
        passes = [view for batch in micro_batches for view in (views(batch) if self.crops.pairs else [batch])]
        for number, batch in enumerate(passes, start=1):
            batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            if number < len(passes):
                with self.accelerator.no_sync(self.model):
                    part = self._backward(batch, len(micro_batches))
                self.callbacks.call("on_substep_end")
            else:
                part = self._backward(batch, len(micro_batches))
            loss += part
        if self.args.max_grad_norm > 0:
            clip_gradient(self.model, self.bare_model.head, self.args.max_grad_norm, self.accelerator)
        if self.stage.starts(self.progress.epoch, self.progress.batch):
            self._warn_of_missing_gradients()
        self.callbacks.call("on_pre_optimizer_step")
        self.optimizer.step()
        self.callbacks.call("on_optimizer_step")
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return loss

    def _warn_of_missing_gradients(self) -> None:
        names = without_gradient(self.bare_model)
        check_adapter_gradients(names, self.bare_model)
        if names:
            self._print(
                f"These trainable parameters have no gradient in step {self.progress.step + 1}: {fold_names(names)}. "
                "They do not learn unless a later step uses them."
            )

    def _backward(self, batch: dict[str, torch.Tensor], parts: int) -> torch.Tensor:
        with self.accelerator.autocast():
            loss = self.model(**batch).loss / parts
        self.accelerator.backward(loss)
        return loss.detach()

    def _set_schedules(self, position: float) -> None:
        args = self.args
        self.bare_model.set_margin(margin(position, self.final_margin, args.margin_start_epoch, args.margin_end_epoch))
        if self.scheduler is not None:
            return
        rate = learning_rate(
            position,
            args.epochs,
            args.learning_rate,
            args.lr_schedule,
            args.lr_decay,
            args.final_learning_rate,
            args.warmup_epochs,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(RATE_FACTOR, 1.0)

    def _set_training_mode(self) -> None:
        self.model.train()
        if self.args.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self.stage.enter(self.progress.epoch)
        if self.divided is not None:
            self.divided.frozen_training_mode()

    @property
    def bare_model(self) -> HamSpkForXVector:
        """Return the model without the wrappers of Accelerate."""
        bare = self.accelerator.unwrap_model(self.model)
        return bare.model if isinstance(bare, DividedModel) else bare

    def _whole_centres(self) -> AbstractContextManager[None]:
        return whole_centres(self.bare_model.head, self.optimizer)

    def _finished(self) -> bool:
        return self.progress.epoch >= self.args.epochs or self._stops_early()

    def _stops_early(self) -> bool:
        """Return whether `max_steps` is reached or a callback requested the end of the training."""
        return 0 < self.args.max_steps <= self.progress.step or self.callbacks.control.should_training_stop

    def _epoch_done(self) -> bool:
        return self.progress.batch == self.batches_per_epoch

    # -- the end of an epoch ----------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        self.progress.epoch += 1
        self.progress.batch = 0
        self._keep_epoch_weights(self.progress.epoch)
        self.callbacks.end_epoch(self.accelerator)
        wanted = self.callbacks.control.should_evaluate or self.progress.epoch % self.args.evaluate_every == 0
        if self.lists.dev is not None and wanted:
            self._evaluate_dev(self.lists.dev)
        self._save_model("last")
        self._save_checkpoint()
        # Callbacks of one rank may have requested the end of the training.
        self.callbacks.agree(self.accelerator)
        if self.args.hub_strategy == "every_epoch" and self.args.push_to_hub:
            self._push_last()

    def _push_last(self) -> None:
        """Publish the folder `last`. A failed upload is reported, and the training continues."""
        if not self.accelerator.is_main_process:
            return
        try:
            self._publish("last", str(self.args.hub_model_id), self.args.hub_private)
        except (ValueError, OSError) as error:
            self._print(f"The upload after epoch {self.progress.epoch} failed: {error}. The training continues.")

    def _keep_epoch_weights(self, epoch: int) -> None:
        self._require_finite()
        if self.accelerator.is_main_process:
            save_epoch_weights(self.bare_model, self.output_dir, epoch, self.args.average_last)

    def _evaluate_dev(self, name: str) -> None:
        """Evaluate on the development trials, log and show the result, and save the model if it is the best so far."""
        result = self._evaluate(name)
        metrics = on_main(self.accelerator, lambda: None if result is None else metrics_of(result))
        if metrics is None:
            return
        self._log({key.replace("eval_", "dev_", 1): value for key, value in metrics.items()})
        eer = metrics[BEST_METRIC]
        self._print(f"epoch {self.progress.epoch}: dev EER {100 * eer:.2f} %")
        self.callbacks.call("on_evaluate", metrics=metrics)
        if self.progress.best_eer is None or eer < self.progress.best_eer:
            self.progress.best_eer, self.progress.best_epoch = eer, self.progress.epoch
            self.callbacks.note_best(eer, self.progress.step, self.output_dir / "best")
            record = self._new_record("best")
            if result is not None:
                record.lists[name] = result.record
            self._save_model("best", record)

    def _embed(self, name: str, measure: bool = False, lists: TrialLists | None = None) -> EmbeddedFiles:
        """Embed the files of a trial list. The files are divided among the ranks."""
        accelerator, lists = self.accelerator, self.lists if lists is None else lists
        mine = lists.trials[name].files[accelerator.process_index :: accelerator.num_processes]
        embedded = embed_files(
            self.bare_model,
            mine,
            lists.root,
            self.data.protocol,
            accelerator.is_local_main_process,
            measure,
            channel=self.data.channel,
        )
        if accelerator.num_processes > 1:
            first, *others = gather_object([embedded])
            embedded = first.merge(others)
        self._set_training_mode()
        return embedded

    def _evaluate(
        self, name: str, embedded: EmbeddedFiles | None = None, lists: TrialLists | None = None
    ) -> ListEvaluation | None:
        """Evaluate a trial list on the main process.

        Returns:
            The result; None on other processes, and None if the list cannot be evaluated.
        """
        lists = self.lists if lists is None else lists
        embedded = self._embed(name, lists=lists) if embedded is None else embedded
        if not self.accelerator.is_main_process:
            return None
        # Confidence intervals take time, and other processes would have to wait. `hamspk evaluate` computes them.
        settings = EvaluationSettings(protocol=self.data.protocol, replicates=0, progress=False)
        try:
            return evaluate_list(self.bare_model, lists.trials[name], embedded, settings)
        except ValueError as error:
            self._print(f"{lists.titles[name]} could not be evaluated: {error}")
            return None

    def _new_record(self, name: str) -> EvaluationRecord:
        """Make an evaluation record of the current model, with information about the run so far."""
        record = EvaluationRecord.of_model(merged_copy(self.bare_model), f"{self.output_dir.resolve().name}/{name}")
        record.training = {
            "epochs": self.progress.epoch,
            "steps": self.progress.step,
            "processes": self.accelerator.num_processes,
            "dev_list": self.lists.dev,
            "best_dev_eer": self.progress.best_eer,
            "best_dev_epoch": self.progress.best_epoch,
            "unreadable_files": dict(self.crops.failures),
        }
        return record

    def _save_model(self, name: str, record: EvaluationRecord | None = None) -> None:
        if not self.accelerator.is_main_process:
            return
        # transformers would show a progress bar for a single file.
        with_bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

        def write(folder: Path) -> None:
            merged_copy(self.bare_model).save_pretrained(folder)
            if record is not None:
                record.write(folder)

        write_folder(self.output_dir / name, write)
        if with_bar:
            logging.enable_progress_bar()

    def _save_checkpoint(self) -> None:
        self._require_finite()
        accelerator, progress = self.accelerator, self.progress
        progress.loss_sum, progress.loss_steps = self._mean_over_ranks(self.meter.loss_sum), self.meter.steps
        progress.threads = torch.get_num_threads()
        unfinished: Path = on_main(accelerator, lambda: prepare_checkpoint(self.output_dir))
        with self._whole_centres(), explain_write_errors(unfinished):
            accelerator.save_state(str(unfinished))
        on_main(accelerator, lambda: self.callbacks.save(unfinished, progress))
        accelerator.wait_for_everyone()
        on_main(
            accelerator,
            lambda: finish_checkpoint(unfinished, self.output_dir, progress, self.args.keep_checkpoints),
        )

        self.callbacks.call("on_save")

    # -- the end of the run -----------------------------------------------------------------------------------------

    def _finish(self) -> EvaluationRecord:
        """Average the last epochs into `final`, calibrate it, evaluate it, and write `final/evaluation.json`.

        A last epoch that `max_steps` ended early counts as one epoch of the average.
        """
        if self.progress.batch > 0:
            self._keep_epoch_weights(self.progress.epoch + 1)
            self._save_model("last")
        self.accelerator.wait_for_everyone()
        weights, files = average_epoch_weights(self.output_dir, self.args.average_last)
        self.bare_model.load_state_dict(weights)
        self.bare_model.set_margin(self.final_margin)
        if has_adapters(self.bare_model):
            self._finish_adapters()
        self._save_model("final")
        results: dict[str, ListEvaluation | None] = {}
        if self.lists.dev is not None:
            results[self.lists.dev] = self._calibrate(self.lists.dev)
        for name in self.lists.tests:
            if name not in results:
                # All processes must measure the same values, although only the main process calibrates.
                results[name] = self._evaluate(name, self._embed(name, measure=self.lists.dev is not None))
        record = self._new_record("final")
        record.training = (record.training or {}) | {"averaged": files}
        found = {name: result for name, result in results.items() if result is not None}
        record.lists = {name: result.record for name, result in found.items()}
        if self.crops.failures:
            count = len(self.crops.failures)
            self._print(f"{count} training files could not be read. They are listed in final/evaluation.json.")
        if self.accelerator.is_main_process:
            calibration = self.bare_model.calibration
            points = () if calibration is None else calibration.operating_points
            Evaluation(record, found, points).write(self.output_dir / "final")
        self.accelerator.wait_for_everyone()
        self.callbacks.call("on_train_end")
        self.accelerator.end_training()
        if self.args.push_to_hub:
            self.push_to_hub()
        return record

    def _finish_adapters(self) -> None:
        """Write the adapters into the folder `adapter`, and merge them into the model."""
        model, start = self.bare_model, self.recipe.model
        base = base_name(model, start.backbone, start.initial_model)
        if self.accelerator.is_main_process:
            folder = self.output_dir / ADAPTER_FOLDER
            write_folder(folder, lambda new: save_adapter(model, self.args, base, new), is_adapter_file)
        merge_adapters(model)

    def _calibrate(self, name: str) -> ListEvaluation | None:
        """Calibrate the final model on the development trials, and evaluate it on the same trials."""
        embedded = self._embed(name, measure=True)
        if self.accelerator.is_main_process:
            try:
                audio = Path(self.lists.titles[name]).name
                chosen = calibrate_on(self.bare_model, self.lists.trials[name], embedded, audio)
                self.bare_model.calibration = chosen.calibration
                for reason in chosen.left_out.values():
                    self._print(f"Left out of the calibration: {reason}")
                for warning in chosen.warnings():
                    self._print(f"Warning: {warning}")
            except ValueError as error:
                self._print(
                    f"The model 'final' is not calibrated and makes no decisions. "
                    f"{self.lists.titles[name]} cannot be used: {error}"
                )
            self._save_model("final")
        return self._evaluate(name, embedded)

    # -- logging ----------------------------------------------------------------------------------------------------

    def _require_finite(self) -> None:
        """Check that all weights are finite before they are saved.

        Raises:
            ValueError: a weight is not finite.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.bare_model.parameters()):
            raise ValueError(
                f"The weights are not finite after step {self.progress.step}: the run diverged. {DIVERGED}"
            )

    def _mean_over_ranks(self, value: torch.Tensor) -> float:
        mean = self.accelerator.reduce(value.clone(), reduction="mean")
        return mean.item()  # pyright: ignore[reportAttributeAccessIssue]

    def _log_steps(self) -> float:
        """Log the mean loss and the speed of the steps since the last entry, and return the mean loss.

        Raises:
            ValueError: the mean loss is not finite.
        """
        mean = self._mean_over_ranks(self.meter.loss_sum / self.meter.steps)
        if not math.isfinite(mean):
            raise ValueError(f"The loss is {mean} at step {self.progress.step}: the run diverged. {DIVERGED}")
        self._log(
            {
                "loss": mean,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "margin": self.bare_model.config.margin,
            }
            | self.meter.speed(self.args.batch_size)
        )
        self.meter.restore(0.0, 0)
        return mean

    def _log(self, values: dict[str, Any]) -> None:
        self.callbacks.log(values, self.progress)
        self.accelerator.log(values, step=self.progress.step)
        if self.accelerator.is_main_process:
            with open(self.output_dir / METRICS_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": self.progress.epoch, "step": self.progress.step} | values) + "\n")

    def _print(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)
