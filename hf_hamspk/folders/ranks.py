"""Divide work among ranks: processes that start separately, on one machine or on several with a common folder.

Rank `R` of `N` does the pieces `R`, `R + N`, `R + 2 * N` and so on. All ranks share a lock on the folder, so that a
command that needs the folder alone is refused. Each rank also has a lock file of its own, so that it cannot run twice.
The name of this file contains the rank and the number of ranks. The file remains when the rank ends, so it also shows
which ranks have started.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .locks import check_unlocked, lock_folder, read_lock, share_folder

RANK_LOCK = r"rank-\d{5,}-of-\d{5,}\.lock"
"""Regular expression of the names of the lock files of ranks."""

RANKS_NAMED = 8
"""Largest number of ranks that an error message describes."""

_NUMBERS = re.compile(r"rank-(\d+)-of-(\d+)\.lock")


class StartedRank(NamedTuple):
    """Rank that has started. It may have ended since.

    Attributes:
        rank: number of the rank, from 0.
        world_size: number of ranks.
        started: time of the last start or end in nanoseconds.
    """

    rank: int
    world_size: int
    started: int


def rank_lock_name(rank: int, world_size: int) -> str:
    """Return the name of the lock file of a rank."""
    return f"rank-{rank:05d}-of-{world_size:05d}.lock"


def parse_rank_lock(name: str) -> tuple[int, int] | None:
    """Return the rank and the number of ranks in the name of a lock file; None for another name."""
    found = _NUMBERS.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2]))


def started_ranks(folder: Path) -> list[StartedRank]:
    """Return the ranks whose lock files are in a folder."""
    return [StartedRank(rank, count, path.stat().st_mtime_ns) for rank, count, path in _rank_locks(folder)]


def check_rank(rank: int, world_size: int) -> None:
    """Check the number of a rank and the number of ranks.

    Raises:
        ValueError: a number is out of range.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"The rank must be a number from 0 to the number of ranks minus 1, got rank {rank} of {world_size} "
            "(--rank, --world-size). With 4 ranks, give 0, 1, 2 and 3."
        )


@contextmanager
def hold_rank(lock: Path, output: Path, work: str, rank: int, world_size: int) -> Iterator[None]:
    """Context manager that locks a folder for one rank, together with other ranks.

    Args:
        lock: lock file of the folder. The lock file of the rank is beside it.
        output: folder or file that the ranks write, named in error messages.
        work: name of the command, such as "hamspk prepare".
        rank: number of the rank, from 0.
        world_size: number of ranks.

    Raises:
        ValueError: the rank is already at work, other ranks were started with another number of ranks, or another
            command needs the folder alone.
    """
    check_rank(rank, world_size)
    own = lock.with_name(rank_lock_name(rank, world_size))
    with share_folder(lock, output), lock_folder(own, output, f"{work}, rank {rank} of {world_size}"):
        for other, count, path in _rank_locks(lock.parent):
            if count != world_size and _is_held(path, output):
                raise ValueError(
                    f"Rank {other} of {count} is at work in {output}, so rank {rank} of {world_size} cannot start. "
                    f"Give the same --world-size to all ranks, or wait until the {count} ranks have ended."
                )
        yield


def check_no_rank(folder: Path, output: Path) -> None:
    """Check that no rank is at work.

    Args:
        folder: folder with the lock files.
        output: folder or file that the ranks write, named in the error message.

    Raises:
        ValueError: a rank is at work.
    """
    busy = [(rank, count, path) for rank, count, path in _rank_locks(folder) if _is_held(path, output)]
    if busy:
        rank, count, path = busy[0]
        holder = read_lock(path)
        raise ValueError(
            f"Rank {rank} of {count} is at work in {output} (process {holder.get('pid')} on {holder.get('host')}, "
            f"started {holder.get('started')}){f', and {len(busy) - 1} other ranks' if len(busy) > 1 else ''}. "
            "Wait until all ranks have ended."
        )


def describe_missing(
    started: Sequence[StartedRank], missing: Sequence[int], total: int, unit: str, command: str
) -> str:
    """Return sentences that name the ranks whose pieces are missing, and the commands that make these pieces.

    Args:
        started: ranks that have started, see `started_ranks`.
        missing: numbers of the missing pieces.
        total: number of all pieces.
        unit: name of the pieces, such as "shards".
        command: command of a rank, without its number and the number of ranks.
    """
    if not started:
        return (
            "No rank has started. Run each of N ranks, for example the first one of 4 with "
            f"`{command} --rank 0 --world-size 4`."
        )
    # After a change of the number of ranks, lock files of the earlier ranks are left.
    count = max(started, key=lambda one: one.started).world_size
    known = {one.rank for one in started if one.world_size == count}
    ranks = sorted({piece % count for piece in missing})
    sentences = []
    for rank in ranks[:RANKS_NAMED]:
        own = len(range(rank, total, count))
        left = sum(piece % count == rank for piece in missing)
        state = f"stopped after {own - left} of its {own} {unit}" if rank in known else "never started"
        sentences.append(f"Rank {rank} of {count} {state}: run `{command} --rank {rank} --world-size {count}`.")
    if len(ranks) > RANKS_NAMED:
        sentences.append(f"The same applies to the ranks {', '.join(map(str, ranks[RANKS_NAMED:]))}.")
    return " ".join(sentences)


def _rank_locks(folder: Path) -> list[tuple[int, int, Path]]:
    """Return the rank, the number of ranks and the path of each lock file in a folder."""
    if not folder.is_dir():
        return []
    found = [(parse_rank_lock(path.name), path) for path in folder.iterdir()]
    return sorted((*numbers, path) for numbers, path in found if numbers is not None)


def _is_held(path: Path, output: Path) -> bool:
    try:
        check_unlocked(path, output)
    except ValueError:
        return True
    return False
