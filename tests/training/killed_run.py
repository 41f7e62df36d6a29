"""A run on a data set that may be killed: what each process of it does, for tests."""

import hashlib
import os
import signal
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import load_from_disk
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_hamspk import DataArguments, HamSpkConfig, HamSpkForXVector, Trainer, TrainingArguments

TINY = {"ecapa_channels": 16, "ecapa_output_channels": 48, "pooling_channels": 16, "embedding_size": 16}


class Run(NamedTuple):
    """What all processes of a run have in common."""

    saved: Path
    trials: Path
    folder: Path
    kind: str
    world_size: int = 1
    port: int = 0
    killed_at: int = 0


class Count(TrainerCallback, ExportableState):
    """Counts steps over resumptions."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


class Kill(TrainerCallback):
    """Kills its process, as `kill -9` does, in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Record(TrainerCallback):
    """Writes a line `step sample` for every sample of every step that this process trains on, and `0 begin` first."""

    def __init__(self, file: Path):
        self.file, self.step = file, 0

    def on_init_end(self, args, state, control, model, **kwargs):
        model.register_forward_pre_hook(self.note, with_kwargs=True)
        with open(self.file, "a") as file:
            file.write("0 begin\n")

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step + 1

    def note(self, module, args, batch):
        if module.training:
            with open(self.file, "a") as file:
                for wave, label in zip(batch["input_values"], batch["labels"], strict=True):
                    digest = hashlib.sha256(wave.numpy().tobytes()).hexdigest()[:16]
                    file.write(f"{self.step} {digest}-{int(label)}\n")


def train(run: Run, rank: int = 0) -> None:
    """One process of a run."""
    if run.world_size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": run.world_size, "LOCAL_WORLD_SIZE": run.world_size}
        os.environ |= {name: str(value) for name, value in ranks.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(run.port)}
    os.environ |= {"ACCELERATE_USE_CPU": "true", "TRACKIO_DIR": str(run.folder.parent / "trackio")}
    torch.set_num_threads(1)
    data = load_from_disk(str(run.saved))
    if run.kind == "stream":
        data = data.to_iterable_dataset(num_shards=2).shuffle(seed=5, buffer_size=8)
    torch.manual_seed(3)
    run.folder.mkdir(exist_ok=True)
    count, record = Count(), Record(run.folder.parent / f"{run.folder.name}-{rank}.txt")
    trainer = Trainer(
        HamSpkForXVector(HamSpkConfig(**TINY)),
        TrainingArguments(
            output_dir=str(run.folder),
            epochs=3,
            batch_size=8,
            log_steps=1,
            save_steps=2,
            cpu=True,
            report_to=["tensorboard", "trackio"],
            project="killed",
            run_name=run.folder.name,
        ),
        data,
        dev_trials=str(run.trials),
        data=DataArguments(crop_seconds=0.5, trial_root=str(run.trials.parent / "audio")),
        callbacks=[Kill(run.killed_at), count, record, EarlyStoppingCallback(early_stopping_patience=9)],
    )
    trainer.train()
    (run.folder.parent / f"{run.folder.name}-{rank}.steps").write_text(f"{trainer.progress.step} {count.steps}")
