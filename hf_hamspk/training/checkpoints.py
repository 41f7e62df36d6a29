"""Writes and reads the folders of a run; each is complete or absent.

```
output_dir/
  recipe.yaml               the recipe of the run
  checkpoints/step-00001200/  the state to resume from: model, optimiser, random states, progress.json
  epochs/epoch-0012.safetensors  weights of the last epochs, to be averaged
  best/ last/ final/        models that `from_pretrained` loads
  metrics.jsonl  logs/      losses and dev error rates; TensorBoard
```
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"


@dataclass
class Progress:
    """The position of a run.

    Attributes:
        epoch: the epoch in progress, from 0.
        batch: finished global batches of that epoch.
        step: finished optimiser steps.
        best_eer: lowest development EER so far, a fraction.
        best_epoch: epochs done when it was reached.
        config: the architecture and the arguments that a resumed run must share.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_eer: float | None = None
    best_epoch: int | None = None
    config: dict[str, Any] = field(default_factory=dict)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary folder, then rename it to `folder`, which is therefore never half written.

    A kill between the two renames leaves the old folder as `.NAME.old`; a resumed run writes the new one again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = (output_dir / "checkpoints").glob("step-*")
    return sorted(folder for folder in found if (folder / PROGRESS_FILE).is_file())


def finish_checkpoint(unfinished: Path, output_dir: Path, progress: Progress, keep: int) -> None:
    """Give a written checkpoint its final name, and remove all but the newest `keep`."""
    (unfinished / PROGRESS_FILE).write_text(json.dumps(asdict(progress), indent=2))
    folder = output_dir / "checkpoints" / f"step-{progress.step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    for old in checkpoints(output_dir)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def read_progress(checkpoint: Path, expected: dict[str, Any]) -> Progress:
    """Progress of a checkpoint, after a check that it belongs to this run.

    Args:
        checkpoint: a folder from `checkpoints`.
        expected: architecture and arguments of the run that resumes.

    Raises:
        ValueError: they differ; the message lists what.
    """
    try:
        progress = Progress(**json.loads((checkpoint / PROGRESS_FILE).read_text()))
    except (ValueError, TypeError, OSError) as error:
        raise damaged(checkpoint, error) from error
    differences = [
        f"{key}: {progress.config.get(key)!r} in the checkpoint, {expected.get(key)!r} now"
        for key in sorted(progress.config.keys() | expected.keys())
        if progress.config.get(key) != expected.get(key)
    ]
    if differences:
        raise ValueError(
            f"{checkpoint} is a checkpoint of another model or run, so it cannot be resumed:\n  "
            + "\n  ".join(differences)
            + ".\nChoose another output_dir, or pass --resume false, which removes the checkpoints of the old run."
        )
    return progress


def damaged(path: Path, error: Exception) -> ValueError:
    """The error for a checkpoint or a file of weights that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"{path} is damaged ({type(error).__name__}: {reason}). Delete it and give the same command again: the run "
        "then continues from the newest checkpoint that is left."
    )


def forget_run(output_dir: Path) -> None:
    """Remove the checkpoints, epoch weights and metrics of an earlier run; its models stay until they are replaced."""
    for name in ("checkpoints", "epochs"):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    (output_dir / METRICS_FILE).unlink(missing_ok=True)


def trim_metrics(output_dir: Path, step: int) -> None:
    """Remove the entries after `step`, which a resumed run writes again."""
    file = output_dir / METRICS_FILE
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill may have cut the last line.
        whole = [line for line in lines if line.endswith("\n")]
        file.write_text("".join(line for line in whole if json.loads(line)["step"] <= step), encoding="utf-8")


def save_epoch_weights(model: nn.Module, output_dir: Path, epoch: int, keep: int) -> None:
    """Save the weights after `epoch` epochs, and remove all but the newest `keep`."""
    folder = output_dir / "epochs"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / ".new")
    os.replace(folder / ".new", folder / f"epoch-{epoch:04d}.safetensors")
    for old in sorted(folder.glob("epoch-*.safetensors"))[:-keep]:
        old.unlink()


def average_epoch_weights(output_dir: Path, count: int) -> tuple[dict[str, Tensor], list[str]]:
    """The mean of the weights of the newest `count` epochs, batch-norm statistics included, as in the paper.

    Returns:
        The averaged state dict (whole numbers are the newest epoch's), and the names of the files.
    """
    files = sorted((output_dir / "epochs").glob("epoch-*.safetensors"))[-count:]
    if not files:
        raise ValueError(f"{output_dir / 'epochs'} holds no epoch weights to average.")
    total: dict[str, Tensor] = {}
    for file in files:
        try:
            weights = load_file(file)
        except (SafetensorError, OSError) as error:
            raise damaged(file, error) from error
        for name, tensor in weights.items():
            total[name] = total[name] + tensor if name in total and tensor.is_floating_point() else tensor
    average = {name: t / len(files) if t.is_floating_point() else t for name, t in total.items()}
    if not all(torch.isfinite(t).all() for t in average.values()):
        raise ValueError(f"The weights in {output_dir / 'epochs'} are not finite: the run diverged.")
    return average, [file.name for file in files]
