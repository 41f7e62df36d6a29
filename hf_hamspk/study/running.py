"""Run a study: claim the next run, train it, and write its record.

A process claims a run by locking the folder of the run. Several processes can therefore share the runs, also on several
machines with a common file system. When a process ends, its lock is released. If a process was killed, the process that
claims the run next resumes it from its newest checkpoint.
"""

import contextlib
import copy
import dataclasses
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ..evaluation.results import checkout_commit
from ..folders.locks import lock_folder
from ..folders.writing import write_atomically
from ..geometry_hamspk import SpeakerHead
from ..training.arguments import Recipe, change_recipe, parse_fields
from ..training.checkpoints import average_epoch_weights
from ..training.frames import FrameStore
from ..training.frozen import DividedModel
from ..training.models import build_config
from ..training.trainer import Trainer
from .audio import StudyAudio, device_name, list_errors
from .controls import StudyModel, control_engine, similarity_range
from .plan import DERIVED, FINAL, TUNE, Run, Study
from .records import (
    LISTS_FILE,
    SCORES_FILE,
    check_study_folder,
    planned_runs,
    read_record,
    read_scores,
    write_record,
    write_scores,
    write_study_lists,
)

LOCK_FILE, TRAINING_FOLDER, PARTIAL_FILE, LOG_FILE = ".lock", "training", "partial.json", "log.txt"
MODEL_FOLDER = "model"
WORK = "hamspk study"
# Seconds after which a process looks for a free run again, while other processes hold all runs.
LOOK_SECONDS = 10.0
# Parts of messages of the trainer. The first says that the loss or the weights are not finite. The second says that the
# checkpoint has other settings, for example because another version of this package wrote it; the run begins again.
DIVERGENCE, OTHER_RUN = "diverged", "belongs to a run with other settings"


def run_study(
    study: Study,
    folder: str | os.PathLike[str],
    hours: float | None = None,
    runs: int | None = None,
    quiet: bool = False,
    keep_models: bool = False,
) -> int:
    """Make the runs of a study that are neither finished nor held by another process, until none is left.

    Args:
        study: study.
        folder: folder of the study, made if necessary.
        hours: number of hours after which no further run begins; None for no limit.
        runs: largest number of runs that this process makes; None for no limit.
        quiet: whether to show no progress bar.
        keep_models: whether to keep the model of each run of the stage `final`, in the subfolder `model` of its folder.

    Returns:
        The number of planned runs that are not finished.

    Raises:
        ValueError: the data or settings cannot be used, or the folder contains other files.
    """
    home = Path(folder)
    check_study_folder(home)
    home.mkdir(parents=True, exist_ok=True)
    began, made = time.monotonic(), 0
    recipe = parse_fields(study.recipe, "recipe")
    rate = build_config(recipe).sampling_rate
    audio = StudyAudio(recipe.data, study.dev, study.tests, study.folds, rate)
    if not (home / LISTS_FILE).exists():
        write_study_lists(home, audio.sounds.speakers())
    with tqdm(desc=study.name, unit="epoch", disable=quiet, smoothing=0.05, dynamic_ncols=True) as bar:
        while True:
            over = hours is not None and time.monotonic() - began > 3600 * hours
            if over or (runs is not None and made >= runs):
                break
            with _claim_next(study, home, bar) as (run, left):
                if run is not None:
                    _make_run(run, home / run.name, audio, bar, keep_models and run.stage == FINAL)
                    made += 1
            if run is None and not left:
                break
            if run is None:
                time.sleep(LOOK_SECONDS)
    return sum(read_record(home / run.name) is None for run in planned_runs(study, home))


@contextlib.contextmanager
def _claim_next(study: Study, home: Path, bar: tqdm) -> Iterator[tuple[Run | None, int]]:
    """Context manager that claims the first free run.

    Yields:
        The claimed run (None if other processes hold all unfinished runs), and the number of unfinished runs.
    """
    planned = planned_runs(study, home)
    waiting = [run for run in planned if read_record(home / run.name) is None]
    seeds = sum(head.seeds for head in study.heads.values())
    bar.total = sum(run.epochs for run in planned if run.stage == TUNE) + study.final.epochs * seeds
    bar.n = sum(run.epochs for run in planned) - sum(run.epochs for run in waiting)
    bar.refresh()
    with contextlib.ExitStack() as stack:
        for run in waiting:
            place = home / run.name
            place.mkdir(exist_ok=True)
            try:
                stack.enter_context(lock_folder(place / LOCK_FILE, place, WORK))
            except ValueError:
                continue  # Another process holds this run.
            # Another process may have finished it after the list was made.
            if read_record(place) is None:
                yield run, len(waiting)
                break
        else:
            yield None, len(waiting)


def recipe_of(run: Run, output_dir: Path) -> Recipe:
    """Return the training recipe of a run, with `scale` and `margin` computed from the derived values.

    Raises:
        ValueError: a key or value is invalid.
    """
    fields = run.recipe | {"output_dir": str(output_dir), "report_to": ["none"], "keep_checkpoints": 1}
    recipe = parse_fields(fields, f"the run {run.name}")
    given = {key: run.values[key] for key in DERIVED if key in run.values}
    if not given:
        return recipe
    full = similarity_range(build_config(recipe), run.control)
    changes = {}
    if "reach" in given:
        changes["scale"] = given["reach"] / full
    if "relative_margin" in given:
        changes["margin"] = given["relative_margin"] * full
    return change_recipe(recipe, changes)


def _make_run(run: Run, place: Path, audio: StudyAudio, bar: tqdm, keep_model: bool) -> None:
    """Train or resume a run, and write its record. If `keep_model` is True, keep its model."""
    watcher = Watcher(run, place, audio, bar)
    bar.set_postfix_str(run.name)
    reason = None
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(place / LOG_FILE, "a", encoding="utf-8"))
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(redirect(log))
        try:
            try:
                trainer = make_trainer(run, place / TRAINING_FOLDER, audio, [watcher])
            except ValueError as error:
                if OTHER_RUN not in str(error):
                    raise
                trainer = make_trainer(run, place / TRAINING_FOLDER, audio, [watcher], resume=False)
            watcher.kept |= _arithmetic(trainer.accelerator)
            trainer.train()
        # Errors of the callback arrive as a RuntimeError.
        except (ValueError, RuntimeError) as error:
            if DIVERGENCE not in str(error):
                raise
            reason = str(error)
        finally:
            # Without this, PyTorch compiles no further model after a few runs.
            torch.compiler.reset()
    content: dict[str, Any] = {
        "run": run.name,
        "stage": run.stage,
        "head": run.head,
        "number": run.number,
        "fold": run.fold,
        "values": run.values,
        "recipe": {key: value for key, value in run.recipe.items() if not isinstance(value, str) or "/" not in value},
        "control": run.control,
        **watcher.content(),
    }
    if keep_model and reason is None:
        shutil.rmtree(place / MODEL_FOLDER, ignore_errors=True)
        os.replace(place / TRAINING_FOLDER / "final", place / MODEL_FOLDER)
    write_record(place, content | ({} if reason is None else {"diverged": reason}))
    shutil.rmtree(place / TRAINING_FOLDER, ignore_errors=True)
    for name in (PARTIAL_FILE, LOG_FILE):
        (place / name).unlink(missing_ok=True)


def _arithmetic(accelerator: Any) -> dict[str, str]:
    """Return the precision and the compiler of a run, as set in the configuration of Accelerate."""
    plugin = accelerator.state.dynamo_plugin
    compiler = "no" if plugin is None else plugin.backend.value.lower()
    return {"mixed_precision": accelerator.mixed_precision, "dynamo_backend": compiler}


def make_trainer(
    run: Run, output_dir: Path, audio: StudyAudio, callbacks: list[TrainerCallback], resume: bool = True
) -> Trainer:
    """Return the trainer of a run. The trainer itself does not evaluate; the callback `Watcher` does."""
    recipe = recipe_of(run, output_dir)
    recipe.training.resume = resume
    data = dataclasses.replace(recipe.data, train_data=None, channel=None, dev_trials=None, test_trials=[])
    model = StudyModel(recipe, run.control)
    trainer = Trainer(model, recipe.training, audio.utterances(run.fold), data=data, callbacks=callbacks)
    if run.control is not None:
        cast(SpeakerHead, trainer.bare_model.head).engine = control_engine(run.control)
    return trainer


class Watcher(TrainerCallback):
    """Callback that evaluates the average of the weights of the last epochs, and keeps the results for the record.

    Args:
        run: run.
        place: folder of the run.
        audio: recordings of the study.
        bar: progress bar, which counts epochs.
    """

    def __init__(self, run: Run, place: Path, audio: StudyAudio, bar: tqdm):
        self.run, self.place, self.audio, self.bar = run, place, audio, bar
        self.clock = time.perf_counter(), time.process_time()
        path = place / PARTIAL_FILE
        self.kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"curve": []}
        self.earlier = self.kept.get("seconds", 0.0), self.kept.get("cpu_seconds", 0.0)
        self.losses: list[float] = []

    def content(self) -> dict[str, Any]:
        """Return the measurements of the run for its record."""
        used = time.perf_counter() - self.clock[0], time.process_time() - self.clock[1]
        seconds, cpu_seconds = (round(old + new, 1) for old, new in zip(self.earlier, used, strict=True))
        return self.kept | {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "commit": checkout_commit(),
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **unused: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **unused: Any) -> None:
        epoch = round(state.epoch)
        self.bar.update()
        if epoch not in self.run.evaluate:
            return
        weights, _ = average_epoch_weights(self.place / TRAINING_FOLDER, args.average_last)
        averaged = copy.deepcopy(model)
        averaged.load_state_dict(weights)
        sounds, names = self.audio.dev_sounds(self.run.fold)
        tests = self.audio.tests if epoch in self.run.budgets else []
        folder, frames = self.run.recipe.get("frame_folder"), None
        if folder is not None:
            frames = FrameStore(folder, DividedModel(averaged, args.train_last_blocks))
        scores = sounds.score(averaged, [*names, *tests], frames)
        if not all(np.isfinite(values).all() for values in scores.values()):
            raise ValueError(f"The scores after epoch {epoch} are not finite: the run {DIVERGENCE}.")
        entry = {
            "epoch": epoch,
            "loss": round(sum(self.losses) / len(self.losses), 4) if self.losses else None,
            "lists": {name: list_errors(scores[name], sounds.lists[name]) for name in names},
        }
        self.losses = []
        self.kept["curve"] = [old for old in self.kept["curve"] if old["epoch"] < epoch] + [entry]
        self.kept["device"] = device_name(averaged)
        if tests:
            path = self.place / SCORES_FILE
            # Only the scores of the test lists are computed here. The report computes the errors.
            write_scores(path, read_scores(path) | {f"{name}@{epoch}": scores[name] for name in tests})
        text = json.dumps(self.content())
        write_atomically(self.place / PARTIAL_FILE, lambda path: path.write_text(text, encoding="utf-8"))
