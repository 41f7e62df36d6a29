"""Remove or replace the files that this package wrote, and keep all other files of a folder."""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .writing import hash_file

EARLIER_CODE = frozenset(
    f"{name}.py"
    for name in (
        *("blocks", "calibration", "comparison", "ecapa", "enrolment", "frontend", "fused", "heads", "identification"),
        *("inputs", "integrity", "lifting", "margins", "normalisation", "onnx_model", "poincare", "pooling"),
        *("recordings", "resampling", "scorer", "scoring", "sharding", "sounds", "speech", "verifier"),
    )
)
"""Code files of version 0.1.0 in model folders that no longer exist under these names."""

# The files in `checkpoints/.unfinished` and in `logs` have names of other packages.
_RUN_FILE = re.compile(
    r"\.lock|(?:recipe\.yaml|metrics\.jsonl)(?:\.\d+\.tmp)?|logs/(?:.+/)?(?:events\.out\.tfevents\..+|hparams\.yml)|"
    r"epochs/(?:epoch-\d+\.safetensors|files\.json)(?:\.\d+\.tmp)?|epochs/\.new|"
    r"checkpoints/(?:step-\d+|\.unfinished|\.step-\d+\.old)/[a-z_0-9]+\.(?:safetensors|bin|pt|pkl|json)"
)
_ADAPTER_FILE = re.compile(r"config\.json|adapter_config\.json|adapter_model\.safetensors")
_MODEL_FILE = re.compile(
    r"(?:config|generation_config|preprocessor_config|verification|evaluation)\.json|(?:cohort|overlap_detector)\.safetensors|report\.html|"
    r"model(?:-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|[a-z]+_hamspk\.py|"
    r"plots/(?:det|(?:scores|ratios|costs|sweep)-[^/]+)\.png"
)


def is_run_file(name: str) -> bool:
    """Return whether a training run writes a file with this name into its output folder.

    Args:
        name: path of the file in the output folder, with slashes.
    """
    place, _, rest = name.partition("/")
    place = place.strip(".").partition(".")[0]
    if place in ("best", "last", "final"):
        return is_model_file(rest)
    if place == "adapter":
        return is_adapter_file(rest)
    return _RUN_FILE.fullmatch(name) is not None


def is_model_file(name: str) -> bool:
    """Return whether this package writes a file with this name into a model folder.

    Args:
        name: path of the file in the model folder, with slashes.
    """
    return name in EARLIER_CODE or _MODEL_FILE.fullmatch(name) is not None


def is_adapter_file(name: str) -> bool:
    """Return whether this package writes a file with this name into the folder `adapter` of a training run."""
    return _ADAPTER_FILE.fullmatch(name) is not None


def files_in(folder: Path) -> Iterator[str]:
    """Yield the path of each file in a folder and its subfolders, relative to the folder, with slashes.

    A link to a folder counts as a file.
    """
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in [*files, *links]:
            yield Path(parent, name).relative_to(folder).as_posix()


def remove_own_files(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove the files of a folder that this package wrote, and the folders that are then empty.

    Args:
        folder: folder with the files. It is removed as well if no file is left. If `folder` is a link, only the link
            is removed.
        is_ours: function that returns whether a file is the package's own, given its path relative to the folder.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    emptied = {folder}
    for name in list(files_in(folder)):
        if is_ours(name):
            path = folder / name
            path.unlink(missing_ok=True)
            emptied |= {parent for parent in path.parents if parent.is_relative_to(folder)}
    for path in sorted(emptied, key=lambda path: len(path.parts), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def replace_folder(new: Path, folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Rename the folder `new` to `folder`. If `folder` exists, files in it that this package did not write are kept.

    An existing folder is first renamed to `.NAME.old`. If the process is killed before all kept files are moved from
    there to the new folder, the next call of this function or of `restore_folder` moves them.

    Args:
        new: complete new folder, beside `folder`.
        folder: path to replace.
        is_ours: function that returns whether a file is the package's own, given its path relative to the folder.
    """
    restore_folder(folder, is_ours)
    old = _old_folder(folder)
    if os.path.lexists(folder):
        os.replace(folder, old)
    os.replace(new, folder)
    _take_over(old, folder, is_ours)


def restore_folder(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Complete a call of `replace_folder` that was interrupted."""
    old = _old_folder(folder)
    if os.path.lexists(old) and not os.path.lexists(folder):
        os.replace(old, folder)
    elif os.path.lexists(old):
        _take_over(old, folder, is_ours)


def _old_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _take_over(old: Path, folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Move to `folder` the files of `old` that this package did not write, and remove the other files of `old`.

    A moved file is renamed to `NAME.old-1` if `folder` contains a file with this name and other content.
    """
    if old.is_symlink():
        old.unlink()
        return
    # In this order, files that were renamed earlier keep their names.
    for name in sorted(files_in(old), reverse=True):
        if not is_ours(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(old / name, _free_place(folder / name, old / name))
    # Folders that held only moved files are empty now.
    for parent, _, _ in os.walk(old, topdown=False):
        if not os.listdir(parent):
            os.rmdir(parent)
    remove_own_files(old, is_ours)


def _free_place(wanted: Path, file: Path) -> Path:
    """Return `wanted`, or a similar path to which `file` can be moved without overwriting other content."""
    others = (wanted.with_name(f"{wanted.name}.old-{number}") for number in itertools.count(1))
    return next(path for path in itertools.chain([wanted], others) if not os.path.lexists(path) or _same(path, file))


def _same(first: Path, second: Path) -> bool:
    regular = all(path.is_file() and not path.is_symlink() for path in (first, second))
    return regular and hash_file(first) == hash_file(second)
