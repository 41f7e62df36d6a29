"""Check that a folder may receive shards, lock it, and remove the files of an earlier preparation and no others."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..folders.locks import lock_folder, read_lock
from ..folders.ownership import remove_own_files
from ..folders.ranks import RANK_LOCK, check_no_rank, hold_rank
from ..folders.writing import remove_leftovers
from .manifest import MANIFEST_NAME, UNREADABLE_NAME, load_manifest
from .planning import PLAN_NAME, PROGRESS_NAME

LOCK_NAME = "lock"
PREPARING = "hamspk prepare"
_SHARD = re.compile(r"shard-\d{5,}-of-\d{5,}\.(parquet|tar|index\.json)")
_PROGRESS_FILE = re.compile(
    r"lock|plan\.json|plan\.arrow|crashed(?:-\d+)?\.json|spool\.json|spool-\d+-\d+\.(?:bin|json|tmp)|shard-\d+\.json|at-\d+|"
    r".+\.\d+\.tmp|shard-\d+.*\.tmp|" + RANK_LOCK
)
# Unfinished files of one shard, in the progress folder or beside the shards.
_UNFINISHED = re.compile(
    r"at-(?P<place>\d+)|shard-(?P<shard>\d{5,})(?:-of-\d{5,}\.(?:parquet|tar|index\.json)|\.json)\.\d+\.tmp"
)


def check_shard_folder(output: Path) -> None:
    """Check that a folder is missing or empty, or contains shards or an unfinished preparation of this package.

    Raises:
        ValueError: the path is a file, the folder contains other files, or its manifest is not a manifest of shards.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is not a folder; choose a folder for the shards")
    if (output / MANIFEST_NAME).exists():
        load_manifest(output)
        return
    if output.is_dir() and not _is_unfinished(output / PROGRESS_NAME):
        other = min((path.name for path in output.iterdir()), default=None)
        if other is not None:
            raise ValueError(f"{output} contains files that are not shards ({other}); choose an empty or a new folder")


def _is_unfinished(folder: Path) -> bool:
    """Return whether a folder is the progress folder of a preparation. Version 0.1.0 wrote an empty lock file."""
    lock = folder / LOCK_NAME
    begun = read_lock(lock).get("work") == PREPARING or (lock.is_file() and lock.stat().st_size == 0)
    return begun or (folder / PLAN_NAME).is_file()


@contextmanager
def lock_shards(output: Path) -> Iterator[Path]:
    """Context manager that makes the progress folder of an output folder and locks it, and returns the progress folder.

    Temporary files of killed processes are removed.

    Raises:
        ValueError: another command or a rank writes into the folder, or it contains other files.
    """
    check_shard_folder(output)
    folder = output / PROGRESS_NAME
    folder.mkdir(parents=True, exist_ok=True)
    check_no_rank(folder, output)
    with lock_folder(folder / LOCK_NAME, output, PREPARING):
        remove_leftovers(output, is_shard_file)
        yield folder


@contextmanager
def lock_shards_of_rank(output: Path, rank: int, world_size: int) -> Iterator[Path]:
    """Context manager that locks an output folder for one rank, and returns the progress folder.

    Unfinished files of the rank's shards are removed. Other ranks can be at work in the same folder.

    Args:
        output: folder for the shards, with a plan.
        rank: number of the rank, from 0.
        world_size: number of ranks.

    Raises:
        ValueError: the rank is already at work, or the folder is locked (see `hold_rank`).
    """
    folder = output / PROGRESS_NAME
    with hold_rank(folder / LOCK_NAME, output, PREPARING, rank, world_size):
        for path in [*folder.iterdir(), *output.glob("*.tmp")]:
            found = _UNFINISHED.fullmatch(path.name)
            if found and int(found["place"] or found["shard"]) % world_size == rank:
                path.unlink(missing_ok=True)
        yield folder


def is_shard_file(name: str) -> bool:
    """Return whether this package writes a file with this name into a folder of shards."""
    return name in (MANIFEST_NAME, UNREADABLE_NAME) or _SHARD.fullmatch(name) is not None


def remove_progress(output: Path) -> None:
    """Remove the progress folder. Files that the package did not write are kept."""
    remove_own_files(output / PROGRESS_NAME, lambda name: _PROGRESS_FILE.fullmatch(name) is not None)


def tidy_progress(folder: Path) -> None:
    """Remove the unfinished files of an interrupted preparation from the progress folder."""
    for path in [*folder.glob("*.tmp"), *folder.glob("at-*")]:
        if _PROGRESS_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def remove_shards(output: Path) -> None:
    """Remove the files of a preparation and no others, first the manifest, which marks the folder as complete."""
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for name in os.listdir(output):
        if is_shard_file(name):
            (output / name).unlink()
    for path in (output / PROGRESS_NAME).iterdir():
        if path.name != LOCK_NAME and _PROGRESS_FILE.fullmatch(path.name):
            path.unlink()
