"""Write and read the folders of a training run. Each folder is either complete or absent.

```
output_dir/
  recipe.yaml               the recipe of the run
  checkpoints/step-00001200/  state to resume from: model, optimiser, random states, progress.json
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
    """Progress of a training run.

    Attributes:
        epoch: number of the current epoch, from 0.
        batch: number of finished global batches in the current epoch.
        step: number of finished optimiser steps.
        best_eer: lowest EER on the development trials so far, as a fraction; None if not measured.
        best_epoch: number of finished epochs at the lowest EER; None if not measured.
        config: settings that must not change when the run is resumed (see `building.run_identity`).
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_eer: float | None = None
    best_epoch: int | None = None
    config: dict[str, Any] = field(default_factory=dict)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder atomically: `write` fills a temporary folder, which is then renamed to `folder`.

    An existing folder is first renamed to `.NAME.old`. If the process is killed between the two renames, only the old
    folder remains, and a resumed run writes the new one again.
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
    """List the complete checkpoints, oldest first."""
    found = (output_dir / "checkpoints").glob("step-*")
    return sorted(folder for folder in found if (folder / PROGRESS_FILE).is_file())


def finish_checkpoint(unfinished: Path, output_dir: Path, progress: Progress, keep: int) -> None:
    """Rename a completed checkpoint to its final name, and remove all but the newest `keep` checkpoints."""
    (unfinished / PROGRESS_FILE).write_text(json.dumps(asdict(progress), indent=2))
    folder = output_dir / "checkpoints" / f"step-{progress.step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    for old in checkpoints(output_dir)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def read_progress(checkpoint: Path, expected: dict[str, Any]) -> Progress:
    """Read the progress of a checkpoint and check that the checkpoint belongs to this run.

    Args:
        checkpoint: checkpoint folder, one of `checkpoints`.
        expected: settings of the resuming run; see `building.run_identity`.

    Raises:
        ValueError: the checkpoint is damaged or has other settings. The message lists the differences.
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
            f"{checkpoint} belongs to a run with other settings and cannot be resumed:\n  "
            + "\n  ".join(differences)
            + ".\nChoose another output_dir, or use --resume false, which removes the checkpoints of the old run."
        )
    return progress


def damaged(path: Path, error: Exception) -> ValueError:
    """Return the error to raise for a checkpoint or a weights file that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"{path} is damaged ({type(error).__name__}: {reason}). Delete it and run the same command again. The run "
        "then resumes from the newest remaining checkpoint."
    )


def forget_run(output_dir: Path) -> None:
    """Remove the checkpoints, epoch weights and metrics of an earlier run, but not its models."""
    for name in ("checkpoints", "epochs"):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    (output_dir / METRICS_FILE).unlink(missing_ok=True)


def trim_metrics(output_dir: Path, step: int) -> None:
    """Remove metrics entries after `step`, because a resumed run writes them again."""
    file = output_dir / METRICS_FILE
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        # If the run was killed, the last line may be incomplete.
        whole = [line for line in lines if line.endswith("\n")]
        file.write_text("".join(line for line in whole if json.loads(line)["step"] <= step), encoding="utf-8")


def save_epoch_weights(model: nn.Module, output_dir: Path, epoch: int, keep: int) -> None:
    """Save the weights after `epoch` epochs, and remove all but the newest `keep` weights files."""
    folder = output_dir / "epochs"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / ".new")
    os.replace(folder / ".new", folder / f"epoch-{epoch:04d}.safetensors")
    for old in sorted(folder.glob("epoch-*.safetensors"))[:-keep]:
        old.unlink()


def average_epoch_weights(output_dir: Path, count: int) -> tuple[dict[str, Tensor], list[str]]:
    """Average the weights of the newest `count` epochs, including batch-norm statistics, as in the paper.

    Returns:
        The averaged state dict, in which integer tensors have the values of the newest epoch, and the names of the
        averaged files.

    Raises:
        ValueError: there are no weights, a file is damaged, or the average is not finite.
    """
    files = sorted((output_dir / "epochs").glob("epoch-*.safetensors"))[-count:]
    if not files:
        raise ValueError(
            f"Expected epoch weights to average in {output_dir / 'epochs'}, found none. Restore the deleted files, "
            "or train again with --resume false."
        )
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
        raise ValueError(
            f"The weights in {output_dir / 'epochs'} are not finite: the run diverged. Train again with a lower "
            "learning_rate or with max_grad_norm, in another output_dir or with --resume false."
        )
    return average, [file.name for file in files]
