"""Write and read the folders of a training run. Each folder is either complete or absent.

```
output_dir/
  recipe.yaml               the recipe of the run
  checkpoints/step-00001200/  state to resume from: model, optimiser, random states, progress.json
  epochs/epoch-0012.safetensors  weights of the last epochs, to be averaged
  best/ last/ final/        models for `from_pretrained`
  adapter/                  the LoRA adapters of `final`, for PEFT
  metrics.jsonl  logs/      losses and dev error rates; TensorBoard
```
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.other import load as load_accelerate_file
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..folders.locks import RUN_LOCK, check_unlocked, lock_folder, read_lock
from ..folders.ownership import is_adapter_file, is_model_file, remove_own_files, replace_folder, restore_folder
from ..folders.writing import flush_folder, hash_file, write_atomically

PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"
RECIPE_COPY = "recipe.yaml"
LIST_FILE = "files.json"
"""Name of the file that lists the files of a checkpoint, or of the epoch weights, with their sizes and hashes."""
LIST_SCHEMA = 1
MODEL_FOLDERS = ("best", "last", "final")
ADAPTER_FOLDER = "adapter"
TRAINING = "hamspk train"
RECORDINGS = "training_recordings"
FROZEN_PART = "frozen_part"
DATA_FACTS = ("training_samples", "training_data", RECORDINGS)
"""Settings of a run that are known only when the data have been read."""
SCHEDULES_OF_ALL_EPOCHS = ("exponential",)
"""Learning rate schedules that depend on the number of epochs of the run."""
EXTENSION_HINT = (
    "A run with lr_schedule exponential cannot be extended, because its learning rate depends on the number of epochs. "
    "To train the finished model further, start a new run with initial_model: {}. "
)
RECORDINGS_HINT = (
    "Recordings were replaced or edited after the checkpoint was written. Restore the earlier recordings. To train the "
    "model further with the new recordings, start a new run with initial_model: {}. "
)

_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_EPOCH_FILE = re.compile(r"epoch-(\d{4,})\.safetensors")
_UNFINISHED_FILE = re.compile(r"(?:metrics\.jsonl|recipe\.yaml|files\.json|epoch-\d{4,}\.safetensors)\.\d+\.tmp|\.new")
# Names of the files that `Accelerator.save_state` writes, of `Callbacks.save`, and of this module.
_CHECKPOINT_FILE = re.compile(
    r"(?:model|pytorch_model)(?:_\d+)?\.(?:safetensors|bin)|(?:optimizer|scheduler|sampler)(?:_\d+)?\.bin|scaler\.pt|"
    r"random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl|progress\.json|files\.json|trainer_state\.json"
)
# Parts of the error messages of `torch.save` for a file that cannot be written.
_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container", "file write failed", "iostream error")
_RANDOM_STATES = {"random_state", "numpy_random_seed", "torch_manual_seed"}


@dataclass
class Progress:
    """Progress of a training run.

    Attributes:
        epoch: number of the current epoch, from 0.
        batch: number of finished global batches in the current epoch.
        step: number of finished optimiser steps.
        best_eer: lowest EER on the development trials so far, as a fraction; None if not measured.
        best_epoch: number of epochs that were finished when the lowest EER was measured; None if not measured.
        config: settings that must not change when the run is resumed (see `building.run_identity`).
        loss_sum: sum of the losses of the steps since the last log entry, averaged over the processes.
        loss_steps: number of steps since the last log entry.
        threads: number of threads of the run; None if unknown.
        listed: whether the checkpoint contains `files.json`. False for checkpoints of version 0.1.0.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_eer: float | None = None
    best_epoch: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_steps: int = 0
    threads: int | None = None
    listed: bool = False


# -- the output folder ------------------------------------------------------------------------------------------------


def check_output_folder(output_dir: Path) -> None:
    """Check that a folder is missing, is empty, or contains a training run of this package.

    Raises:
        ValueError: the path is a file, or the folder contains other files. The message names one of them.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir must be a folder, got the file {output_dir}. Choose another path.")
    if not output_dir.is_dir() or _contains_run(output_dir):
        return
    # A run that was killed at its start leaves an empty lock file.
    own = {path for path in [output_dir / RUN_LOCK] if path.is_file() and path.stat().st_size == 0}
    other = min((path.name for path in set(output_dir.iterdir()) - own), default=None)
    if other is not None:
        raise ValueError(
            f"output_dir {output_dir} contains other files ({other}) and no training run of this package. Choose an "
            "empty or a new folder."
        )


def _contains_run(output_dir: Path) -> bool:
    """Return whether a folder contains a training run. Runs of version 0.1.0 have no lock file."""
    if read_lock(output_dir / RUN_LOCK).get("work") == TRAINING:
        return True
    if not (output_dir / RECIPE_COPY).is_file():
        return False
    metrics = output_dir / METRICS_FILE
    with open(metrics, "rb") if metrics.is_file() else contextlib.nullcontext([b""]) as lines:
        first = _parse_metrics(next(iter(lines), b""))
    return first is not None or any((folder / PROGRESS_FILE).is_file() for folder in checkpoints(output_dir))


@contextlib.contextmanager
def lock_run(output_dir: Path) -> Iterator[None]:
    """Context manager that locks the output folder, and makes it if necessary.

    Raises:
        ValueError: another run writes into the folder, or the folder contains other files.
    """
    check_output_folder(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with lock_folder(output_dir / RUN_LOCK, output_dir, TRAINING):
        yield


def tidy_run(output_dir: Path) -> None:
    """Remove the unfinished files of a killed run, and complete calls of `replace_folder` that were interrupted."""
    for name in (*MODEL_FOLDERS, ADAPTER_FOLDER):
        is_own = is_adapter_file if name == ADAPTER_FOLDER else is_model_file
        remove_own_files(output_dir / f".{name}.new", is_own)
        restore_folder(output_dir / name, is_own)
    home = output_dir / "checkpoints"
    remove_own_files(home / ".unfinished", is_checkpoint_file)
    for old in home.glob(".step-*.old"):
        restore_folder(home / old.name.removeprefix(".").removesuffix(".old"), is_checkpoint_file)
    for place in ("*.tmp", "epochs/*.tmp", "epochs/.new"):
        for path in output_dir.glob(place):
            if _UNFINISHED_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], None], is_own: Callable[[str], bool] = is_model_file) -> None:
    """Write a model folder atomically. `write` fills a temporary folder, which is then renamed to `folder`.

    If `folder` already exists, the files in it that this package did not write are kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.new")
    remove_own_files(temporary, is_own)
    temporary.mkdir(exist_ok=True)
    try:
        with explain_write_errors(folder):
            write(temporary)
    except BaseException:
        remove_own_files(temporary, is_own)
        raise
    replace_folder(temporary, folder, is_own)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Context manager that turns each error of writing a file into an OSError that explains how to resume.

    Raises:
        OSError: a file could not be written, for example because the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(part in reason for part in _WRITE_ERRORS):
            raise
        raise OSError(
            f"{path} could not be written ({reason[:200]}). Check the free space of the disk and the permissions of "
            "the folder, and run the same command again. The run then resumes from its newest checkpoint."
        ) from error


def forget_run(output_dir: Path) -> None:
    """Remove the checkpoints, epoch weights and metrics of an earlier run, but not its models or other files."""
    for folder in checkpoints(output_dir):
        remove_own_files(folder, is_checkpoint_file)
    for name in ("checkpoints", "epochs"):
        folder = output_dir / name
        if name == "epochs" and folder.is_dir():
            for path in folder.iterdir():
                if path.name == LIST_FILE or _EPOCH_FILE.fullmatch(path.name):
                    path.unlink()
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    (output_dir / METRICS_FILE).unlink(missing_ok=True)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def is_checkpoint_file(name: str) -> bool:
    """Return whether this package writes a file with this name into a checkpoint folder."""
    return _CHECKPOINT_FILE.fullmatch(name) is not None


def checkpoints(output_dir: Path) -> list[Path]:
    """List the checkpoint folders, oldest first. Folders without any file of a checkpoint are left out."""
    found = []
    for folder in (output_dir / "checkpoints").glob("step-*"):
        step = _STEP_FOLDER.fullmatch(folder.name)
        if step and folder.is_dir() and any(is_checkpoint_file(path.name) for path in folder.iterdir()):
            found.append((int(step[1]), folder))
    return [folder for _, folder in sorted(found)]


def prepare_checkpoint(output_dir: Path) -> Path:
    """Return the folder for the next checkpoint. Files of an unfinished earlier checkpoint are removed from it."""
    unfinished = output_dir / "checkpoints" / ".unfinished"
    remove_own_files(unfinished, is_checkpoint_file)
    return unfinished


def finish_checkpoint(unfinished: Path, output_dir: Path, progress: Progress, keep: int) -> None:
    """Complete the checkpoint in the folder `unfinished`, rename the folder, and keep the newest `keep` checkpoints.

    `progress.json` and `files.json` are added. `files.json` is written last, when all other files are on disk.
    """
    with explain_write_errors(unfinished):
        (unfinished / PROGRESS_FILE).write_text(json.dumps(asdict(progress) | {"listed": True}, indent=2))
        write_file_list(unfinished, [path.name for path in unfinished.iterdir() if is_checkpoint_file(path.name)])
    replace_folder(unfinished, output_dir / "checkpoints" / f"step-{progress.step:08d}", is_checkpoint_file)
    flush_folder(output_dir / "checkpoints")
    for old in checkpoints(output_dir)[:-keep]:
        remove_own_files(old, is_checkpoint_file)


def write_file_list(folder: Path, names: Sequence[str]) -> None:
    """Flush the named files to disk, and write `files.json` with the size in bytes and the SHA-256 of each file."""
    files = {}
    for name in sorted(set(names) - {LIST_FILE}):
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
    text = json.dumps({"schema": LIST_SCHEMA, "files": files}, indent=1) + "\n"
    write_atomically(folder / LIST_FILE, lambda path: path.write_text(text))


def read_file_list(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Read the sizes and hashes of files from `files.json`.

    Returns:
        The entries by file name; None if the file does not exist.

    Raises:
        ValueError: the content is not a list of files.
    """
    path = folder / LIST_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        return {
            str(name): {"bytes": int(e["bytes"]), "sha256": str(e["sha256"])} for name, e in content["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{LIST_FILE} is not a list of files") from error


def check_listed_file(path: Path, entry: dict[str, Any]) -> None:
    """Check that a file has the listed size and hash.

    Raises:
        ValueError: the file is missing or has other content. The message does not name the folder.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {entry['bytes']}")
    if hash_file(path) != entry["sha256"]:
        raise ValueError(f"the content of {path.name} has changed")


def check_checkpoint(folder: Path) -> None:
    """Check that all files of a checkpoint have the sizes and hashes that `files.json` lists.

    A checkpoint of version 0.1.0 has no `files.json`. In this case, only the files of random states are checked,
    because Accelerate ignores errors when it reads these files.

    Raises:
        ValueError: a file is missing or damaged. If there is another checkpoint to resume from, the message names it.
    """
    try:
        listed = read_file_list(folder)
        if listed is None:
            _check_without_list(folder)
            return
        if PROGRESS_FILE not in listed:
            raise ValueError(f"{LIST_FILE} does not contain {PROGRESS_FILE}")
        for name, entry in listed.items():
            check_listed_file(folder / name, entry)
    except (ValueError, RecursionError, OSError) as error:
        raise damaged(folder, error) from error


def _check_without_list(folder: Path) -> None:
    progress = json.loads((folder / PROGRESS_FILE).read_bytes())
    if not isinstance(progress, dict) or progress.get("listed"):
        raise ValueError(f"{LIST_FILE} is missing")
    states = sorted(folder.glob("random_states_*.pkl"))
    if not states:
        raise ValueError("random_states_0.pkl is missing")
    for path in states:
        try:
            found = load_accelerate_file(path)
        # The unpickler raises many kinds of errors for a truncated or damaged file.
        except Exception as error:
            raise ValueError(f"{path.name} cannot be read") from error
        if not isinstance(found, dict) or not found.keys() >= _RANDOM_STATES:
            raise ValueError(f"{path.name} does not contain random states")


def find_checkpoint(
    output_dir: Path, settings: dict[str, Any], resume: bool, checked: Path | None = None, unlocked: bool = False
) -> Path | None:
    """Find the checkpoint to resume from, and check the output folder and the checkpoint.

    Args:
        output_dir: output folder of the run.
        settings: settings of the run that are known before the data are read; see `building.run_settings`.
        resume: whether to resume; False returns None after the check of the folder.
        checked: checkpoint whose files need not be checked again; None if there is none.
        unlocked: whether to also check that no other run has locked the folder.

    Returns:
        The newest checkpoint; None if there is none.

    Raises:
        ValueError: the folder contains other files or is in use, or the checkpoint is damaged or has other settings.
    """
    check_output_folder(output_dir)
    if unlocked:
        check_unlocked(output_dir / RUN_LOCK, output_dir)
    found = checkpoints(output_dir) if resume else []
    if not found:
        return None
    if found[-1] != checked:
        check_checkpoint(found[-1])
        progress = read_progress(found[-1], settings)
        _check_kept_weights(output_dir, progress.epoch, settings["epochs"], settings["average_last"])
    return found[-1]


def read_progress(checkpoint: Path, expected: dict[str, Any]) -> Progress:
    """Read the progress of a checkpoint and check that the checkpoint belongs to this run.

    Args:
        checkpoint: checkpoint folder, one of `checkpoints`.
        expected: settings of the run that resumes; see `building.run_identity`. Facts about the data are compared only
            if `expected` contains them.

    Raises:
        ValueError: the checkpoint is damaged or has other settings. The message lists the differences.
    """
    try:
        progress = Progress(**json.loads((checkpoint / PROGRESS_FILE).read_text()))
        found = dict(progress.config)
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise damaged(checkpoint, error) from error
    names = (found.keys() | expected.keys()) - ({*DATA_FACTS, FROZEN_PART} - expected.keys())
    if RECORDINGS not in found:
        # Checkpoints of earlier versions do not contain this setting.
        names.discard(RECORDINGS)
    if expected["lr_schedule"] not in SCHEDULES_OF_ALL_EPOCHS and found.get("lr_schedule") == expected["lr_schedule"]:
        _check_extension(checkpoint, progress, expected["epochs"])
        names.discard("epochs")
    differing = [key for key in sorted(names) if found.get(key) != expected.get(key)]
    if differing:
        lines = [f"{key}: {found.get(key)!r} in the checkpoint, {expected.get(key)!r} now" for key in differing]
        hint = EXTENSION_HINT.format(checkpoint.parents[1] / "final") if differing == ["epochs"] else ""
        hint = RECORDINGS_HINT.format(checkpoint.parents[1] / "last") if differing == [RECORDINGS] else hint
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings and cannot be resumed:\n  " + "\n  ".join(lines) + ".\n"
            f"{hint}Choose another output_dir, or use --resume false, which removes the checkpoints of the old run."
        )
    return progress


def _check_extension(checkpoint: Path, progress: Progress, epochs: int) -> None:
    """Raise ValueError if a run has already trained for more than `epochs` epochs."""
    begun = progress.epoch + (progress.batch > 0)
    if begun > epochs:
        raise ValueError(
            f"{checkpoint} belongs to a run that has already begun epoch {begun}, but epochs is {epochs}. Set epochs "
            f"to at least {begun}, or choose another output_dir."
        )


def damaged(path: Path, error: Exception) -> ValueError:
    """Return the error to raise for an unreadable checkpoint. It names another checkpoint to resume from, if any."""
    reason = " ".join(str(error).split())[:200]
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    others = [folder.name for folder in checkpoints(path.parents[1]) if folder != path]
    cure = f"resumes from {others[-1]}" if others else "starts from the beginning"
    return ValueError(
        f"{path} is damaged ({kind}{reason}). Delete this folder and run the same command again. The run then {cure}."
    )


def trim_metrics(output_dir: Path, step: int) -> int:
    """Remove the entries after `step` from the metrics file, because a resumed run writes them again.

    Returns:
        The number of lines that were removed because they are not entries, such as lines of zeros after a power cut.
        If the last line is incomplete because the run was killed, it is removed but not counted.
    """
    file = output_dir / METRICS_FILE
    if not file.is_file():
        return 0
    lines = file.read_bytes().splitlines(keepends=True)
    entries = [(line, _parse_metrics(line)) for line in lines if line.endswith(b"\n")]
    kept = b"".join(line for line, entry in entries if entry is not None and entry["step"] <= step)
    write_atomically(file, lambda path: path.write_bytes(kept))
    return sum(entry is None for _, entry in entries)


def _parse_metrics(line: bytes) -> dict[str, Any] | None:
    """Return the entry in a line of `metrics.jsonl`; None if the line is not an entry."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbered = isinstance(entry, dict) and isinstance(entry.get("step"), int) and isinstance(entry.get("epoch"), int)
    return entry if numbered else None


# -- weights of the last epochs ---------------------------------------------------------------------------------------


def save_epoch_weights(model: nn.Module, output_dir: Path, epoch: int, keep: int) -> None:
    """Save the weights after `epoch` epochs, add their hash to `files.json`, and keep the newest `keep` files."""
    folder = output_dir / "epochs"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path = folder / f"epoch-{epoch:04d}.safetensors"
    with explain_write_errors(path):
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
        entry = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        kept = epoch_files(output_dir)[-keep:]
        try:
            earlier = read_file_list(folder)
        except ValueError:
            earlier = None
        files = {} if earlier is None else {name: e for name, e in earlier.items() if folder / name in kept}
        text = json.dumps({"schema": LIST_SCHEMA, "files": files | {path.name: entry}}, indent=1) + "\n"
        write_atomically(folder / LIST_FILE, lambda temporary: temporary.write_text(text))
    for old in epoch_files(output_dir)[:-keep]:
        old.unlink()


def epoch_files(output_dir: Path) -> list[Path]:
    """List the files with weights of epochs, oldest first."""
    found = [(_EPOCH_FILE.fullmatch(path.name), path) for path in (output_dir / "epochs").glob("epoch-*.safetensors")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def average_epoch_weights(output_dir: Path, count: int) -> tuple[dict[str, Tensor], list[str]]:
    """Average the weights of the newest `count` epochs, including batch-norm statistics, as in the paper.

    Returns:
        The averaged state dict, and the names of the averaged files. Integer tensors are not averaged; they have the
        values of the newest epoch.

    Raises:
        ValueError: weights are missing, a file is damaged, or the average is not finite.
    """
    files = epoch_files(output_dir)[-count:]
    if not files:
        raise ValueError(
            f"Expected epoch weights to average in {output_dir / 'epochs'}, found none. Restore the deleted files, "
            "or train again with --resume false."
        )
    _check_epoch_files(files, count)
    total: dict[str, Tensor] = {}
    for file in files:
        try:
            weights = load_file(file)
        except (SafetensorError, OSError) as error:
            raise damaged_weights(file, error) from error
        for name, tensor in weights.items():
            total[name] = total[name] + tensor if name in total and tensor.is_floating_point() else tensor
    average = {name: t / len(files) if t.is_floating_point() else t for name, t in total.items()}
    if not all(torch.isfinite(t).all() for t in average.values()):
        raise ValueError(
            f"The weights in {output_dir / 'epochs'} are not finite: the run diverged. Train again with a lower "
            "learning_rate or with max_grad_norm, in another output_dir or with --resume false."
        )
    return average, [file.name for file in files]


def _check_epoch_files(files: Sequence[Path], count: int) -> None:
    """Check that the weights of the last `count` epochs exist and match `files.json`."""
    newest = _epoch_of(files[-1])
    wanted = [files[-1].with_name(f"epoch-{epoch:04d}.safetensors") for epoch in range(1, newest + 1)][-count:]
    try:
        listed = read_file_list(files[0].parent)
    except ValueError as error:
        raise damaged_weights(files[0].parent / LIST_FILE, error) from error
    for file in wanted:
        try:
            if file not in files:
                raise ValueError("the file is missing, but is needed for the average of the last epochs")
            if listed is not None and file.name in listed:
                check_listed_file(file, listed[file.name])
        except ValueError as error:
            raise damaged_weights(file, error) from error


def _check_kept_weights(output_dir: Path, finished: int, epochs: int, count: int) -> None:
    """Check the saved weights of those finished epochs that are among the last `count` epochs of the run."""
    needed = min(count, count - (epochs - finished))
    files = [file for file in epoch_files(output_dir) if _epoch_of(file) <= finished]
    if needed > 0 and finished > 0 and files:
        _check_epoch_files(files, needed)


def _epoch_of(file: Path) -> int:
    return int(file.stem.removeprefix("epoch-"))


def damaged_weights(path: Path, error: Exception) -> ValueError:
    """Return the error to raise for weights of an epoch that cannot be read."""
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"{path} is damaged ({reason}). Restore it from a copy, or train again with --resume false or in another "
        "output_dir."
    )
