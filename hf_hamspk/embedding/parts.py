"""Save the embeddings of a source in parts. A part is a file with the embeddings of consecutive utterances.

Part files are written atomically, so a part is either complete or absent. The division into parts does not depend on
the number of processes, so a run can be resumed with more or fewer processes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..folders.locks import RUN_LOCK, lock_folder
from ..folders.ownership import remove_own_files
from ..folders.ranks import RANK_LOCK, check_no_rank, describe_missing, hold_rank
from ..folders.writing import remove_leftovers
from .sources import DecodedUtterance, Source
from .stores import RemoteStore, is_url, open_store

PART_UTTERANCES = 128
"""Smallest number of utterances in a part, except the last part. After an interruption, each process repeats at most
one part."""

RUN_FILE = "run.json"
# Key in the metadata of a part under which the state of its pieces is stored.
_STATE = b"hamspk_state"
EMBEDDING = "hamspk embed"
_PART_FILE = re.compile(r"(?:part-\d{6,}\.parquet|run\.json)(?:\.\d+\.(?:tmp|unfinished))?|\.lock|" + RANK_LOCK)
_UNFINISHED_PART = re.compile(r"part-(\d+)\.parquet\.\d+\.tmp")


class EmbeddingParts:
    """Folder in which one embedding run saves its parts.

    Args:
        folder: path of the folder, or a URL of fsspec. It is created if it does not exist.
        sizes: number of utterances in each piece of the source; see `Source.sizes`.
        dimension: dimension D of the embeddings.
        run: names and values of all settings that change the embeddings. A run can be resumed only with the same
            settings. The values must be valid in JSON.

    Attributes:
        pieces: for each part, the range of numbers of its pieces.

    Raises:
        ValueError: the folder contains parts of a run with other settings, or other files.
    """

    def __init__(self, folder: Path | str, sizes: Sequence[int], dimension: int, run: dict[str, str | int]):
        self.store = open_store(folder)
        self.folder, self.sizes, self.dimension = folder, sizes, dimension
        self.pieces = list(_cut_parts(sizes))
        self.schema = pa.schema(
            [
                ("name", pa.string()),
                ("speaker", pa.string()),
                ("seconds", pa.float64()),
                ("embedding", pa.list_(pa.float32(), dimension)),
                ("reason", pa.string()),
            ]
        )
        self._begin(run | {"dimension": dimension, "part_utterances": PART_UTTERANCES})

    def _begin(self, run: dict[str, str | int]) -> None:
        if not is_url(self.folder):
            check_parts_folder(Path(self.folder))
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        try:
            found = json.loads(self.store.read(RUN_FILE).decode("utf-8"))
        except FileNotFoundError:
            # All processes of a run write the same content. A process on another machine can have the same process ID,
            # and may already have renamed the temporary file.
            with suppress(FileNotFoundError):
                self.store.write(RUN_FILE, json.dumps(run, indent=2).encode())
            return
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"{RUN_FILE} in {self.folder} is damaged. Move the folder away, and run the same command again."
            )
        if found != run:
            different = sorted(key for key in {*found, *run} if found.get(key) != run.get(key))
            if different == ["files"]:
                raise ValueError(
                    f"{self.folder} contains embeddings of an interrupted run with other recordings. Since it began, "
                    "files were added, removed or renamed, or the command names other recordings. To complete that "
                    "run, restore its files and repeat its original command. To embed the present recordings, "
                    "move the folder away when no rank is at work."
                )
            raise ValueError(
                f"{self.folder} contains embeddings of an interrupted run with different settings "
                f"({', '.join(different)}). Complete that run with its original settings, or move the folder away."
            )

    def path(self, part: int) -> Path:
        """Return the path of a part in a folder of this machine."""
        return Path(self.folder) / part_name(part)

    def exists(self, part: int) -> bool:
        """Return whether the file of a part exists. The audio files may have changed since it was written."""
        return self.store.exists(part_name(part))

    def is_done(self, part: int, state: str = "") -> bool:
        """Return whether a part is complete, and was made from files with the given state.

        Args:
            part: number of the part.
            state: present state of the pieces; see `Source.state`.
        """
        try:
            found = pq.read_schema(self.store.open(part_name(part))).metadata
        except (OSError, pa.ArrowException):
            return False
        return found is not None and found.get(_STATE) == state.encode()

    def utterances(self, part: int) -> int:
        """Return the number of utterances in a part."""
        return sum(self.sizes[piece] for piece in self.pieces[part])

    def write(
        self,
        part: int,
        utterances: Sequence[DecodedUtterance],
        seconds: Sequence[float],
        embeddings: Sequence[np.ndarray],
        state: str = "",
    ) -> None:
        """Save a part atomically.

        Args:
            part: number of the part.
            utterances: the `N` utterances of the part, without their waveforms.
            seconds: duration of each utterance.
            embeddings: float32 embedding `(D,)` of each utterance; an empty array if it could not be embedded.
            state: state of the pieces before they were read; see `Source.state`.
        """
        table = pa.table(
            {
                "name": [utterance.name for utterance in utterances],
                "speaker": [utterance.speaker for utterance in utterances],
                "seconds": list(seconds),
                "embedding": [row if len(row) else None for row in embeddings],
                "reason": [utterance.reason for utterance in utterances],
            },
            schema=self.schema,
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_STATE: state}), sink)
        self.store.write(part_name(part), sink.getvalue())

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """Yield the table of each part, in the order of the parts. If no columns are named, a table has all columns."""
        for part in range(len(self.pieces)):
            table = pq.ParquetFile(self.store.open(part_name(part))).read(list(columns) if columns else None)
            yield table.replace_schema_metadata(None)

    def failures(self) -> dict[str, str]:
        """Return a dictionary that maps the name of each utterance that could not be embedded to the reason."""
        return {
            name: reason
            for table in self.tables("name", "reason")
            for name, reason in zip(table["name"].to_pylist(), table["reason"].to_pylist(), strict=True)
            if reason is not None
        }

    def remove(self) -> None:
        """Delete the parts, and the folder unless it contains other files.

        Call this after the embeddings have been written elsewhere.
        """
        self.store.remove(is_part_file)


def part_name(part: int) -> str:
    """Return the name of the file of a part."""
    return f"part-{part:06d}.parquet"


def check_parts_folder(folder: Path) -> None:
    """Check that a folder is missing or empty, or contains parts of embeddings.

    Raises:
        ValueError: the path is a file, or the folder contains other files.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"A folder {folder} is needed for unfinished embeddings, but this path is a file. Move it.")
    if folder.is_dir() and not (folder / RUN_FILE).is_file():
        other = min((path.name for path in folder.iterdir() if not is_part_file(path.name)), default=None)
        if other is not None:
            raise ValueError(
                f"The folder {folder} is needed for unfinished embeddings, but contains other files ({other}). Choose "
                "another --output, or move the folder."
            )


@contextmanager
def lock_parts(folder: Path) -> Iterator[None]:
    """Context manager that removes the unfinished files of killed processes, and locks the folder of the parts.

    A folder that did not exist is removed at the end, if no part was written into it.

    Raises:
        ValueError: another process is embedding into the folder, or the folder contains other files.
    """
    check_parts_folder(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    check_no_rank(folder, folder)
    remove_leftovers(folder, is_part_file)
    try:
        with lock_folder(folder / RUN_LOCK, folder, EMBEDDING):
            try:
                yield
            finally:
                if made and folder.is_dir() and {path.name for path in folder.iterdir()} <= {RUN_FILE, RUN_LOCK}:
                    remove_own_files(folder, is_part_file)
    finally:
        # Folders that are not empty are kept.
        with suppress(OSError):
            for path in made[1:]:
                path.rmdir()


@contextmanager
def lock_parts_of_rank(folder: Path | str, rank: int, world_size: int) -> Iterator[None]:
    """Context manager that locks the folder of the parts for one rank. Other ranks can lock it at the same time.

    Unfinished files of the rank's parts are removed. At a URL, there are no locks: the rank is only marked as started.

    Args:
        folder: folder of the parts, or a URL of fsspec. It is created if it does not exist.
        rank: number of the rank, from 0.
        world_size: number of ranks.

    Raises:
        ValueError: the rank is already at work, the folder is locked (see `hold_rank`), or the folder contains other
            files.
    """
    if is_url(folder):
        RemoteStore(str(folder)).mark_rank(rank, world_size)
        yield
        return
    folder = Path(folder)
    check_parts_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with hold_rank(folder / RUN_LOCK, folder, EMBEDDING, rank, world_size):
        for path in folder.iterdir():
            found = _UNFINISHED_PART.fullmatch(path.name)
            if found and int(found[1]) % world_size == rank:
                path.unlink(missing_ok=True)
        yield


def check_complete(parts: EmbeddingParts, source: Source) -> None:
    """Check that all parts are complete.

    Args:
        parts: parts of the run.
        source: source of the utterances.

    Raises:
        ValueError: parts are missing, or their audio files have changed. The message names the ranks that must run.
    """
    total = len(parts.pieces)
    missing = [part for part in range(total) if not parts.is_done(part, source.state(parts.pieces[part]))]
    if missing:
        advice = describe_missing(parts.store.started(), missing, total, "parts", "hamspk embed ...")
        raise ValueError(
            f"{len(missing)} of the {total} parts in {parts.folder} are missing, or their audio files have changed. "
            f"{advice} Keep the other arguments. Then finish again."
        )


def is_part_file(name: str) -> bool:
    """Return whether a file in the folder of the parts belongs to this package."""
    return _PART_FILE.fullmatch(name) is not None


def _cut_parts(sizes: Sequence[int]) -> Iterator[range]:
    """Divide the pieces into ranges of at least `PART_UTTERANCES` utterances. The last range can have fewer."""
    first = held = 0
    for piece, size in enumerate(sizes):
        held += size
        if held >= PART_UTTERANCES:
            yield range(first, piece + 1)
            first, held = piece + 1, 0
    if first < len(sizes):
        yield range(first, len(sizes))
