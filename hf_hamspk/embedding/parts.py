"""Finished embeddings: parts of a fixed run of utterances, each in a file that is complete or absent.

The parts do not depend on the number of processes, so that a run can be resumed by more or fewer of them.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .sources import DecodedUtterance

PART_UTTERANCES = 128
"""Utterances of a part, at least: after a kill, each process repeats at most one part."""

RUN_FILE = "run.json"


class EmbeddingParts:
    """A folder of parts.

    Args:
        folder: created if absent.
        sizes: utterances of each piece of the source.
        dimension: D.
        run: everything that the embeddings depend on, by name; values that JSON holds.

    Attributes:
        pieces: the pieces of each part.

    Raises:
        ValueError: the folder holds parts of another run.
    """

    def __init__(self, folder: Path, sizes: Sequence[int], dimension: int, run: dict[str, str | int]):
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
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / RUN_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            # All processes of a run write the same.
            _replace(path, json.dumps(run, indent=2).encode())
            return
        except ValueError:
            found = {}
        if found != run:
            different = sorted(key for key in {*found, *run} if found.get(key) != run.get(key))
            raise ValueError(
                f"{self.folder} holds the embeddings of an interrupted run, which differs in "
                f"{', '.join(different)}. Give the same command as that run to complete it, or delete the folder."
            )

    def path(self, part: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{part:06d}.parquet"

    def is_done(self, part: int) -> bool:
        """Whether a part is there, whole."""
        return self.path(part).exists()

    def utterances(self, part: int) -> int:
        """Utterances of a part."""
        return sum(self.sizes[piece] for piece in self.pieces[part])

    def write(
        self,
        part: int,
        utterances: Sequence[DecodedUtterance],
        seconds: Sequence[float],
        embeddings: Sequence[np.ndarray],
    ) -> None:
        """Keep a part; in place at once.

        Args:
            part: its number.
            utterances: `N` of them, without their waveforms.
            seconds: of each.
            embeddings: `(D,)` float32 of each; empty if it has none.
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
        pq.write_table(table, sink)
        _replace(self.path(part), sink.getvalue())

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """The parts in order; some columns, or all."""
        for part in range(len(self.pieces)):
            yield pq.ParquetFile(self.path(part)).read(list(columns) if columns else None)

    def failures(self) -> dict[str, str]:
        """Name to reason of the utterances without embedding."""
        return {
            name: reason
            for table in self.tables("name", "reason")
            for name, reason in zip(table["name"].to_pylist(), table["reason"].to_pylist(), strict=True)
            if reason is not None
        }

    def remove(self) -> None:
        """Delete the folder, once its content is elsewhere."""
        shutil.rmtree(self.folder)


def _cut_parts(sizes: Sequence[int]) -> Iterator[range]:
    """Runs of pieces that hold `PART_UTTERANCES` or more; the last may hold fewer."""
    first = held = 0
    for piece, size in enumerate(sizes):
        held += size
        if held >= PART_UTTERANCES:
            yield range(first, piece + 1)
            first, held = piece + 1, 0
    if first < len(sizes):
        yield range(first, len(sizes))


def _replace(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file atomically: after a kill or a power cut it is complete or absent."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
