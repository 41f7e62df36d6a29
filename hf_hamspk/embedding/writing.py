"""Writing finished parts to one file, part by part: `.parquet`, `.safetensors` or `.npz`."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .parts import EmbeddingParts

EMBEDDING_FORMATS = (".parquet", ".safetensors", ".npz")

ROW_GROUP = 16_384
"""Utterances of a row group: 13 MB of embeddings of 192 numbers."""

SAFETENSORS_HEADER_BYTES = 100_000_000
"""The longest header that readers of the format accept: about a million names."""

SAFETENSORS_ALIGNMENT = 8
"""The length of the header is a multiple of this many bytes."""


def write_embeddings(parts: EmbeddingParts, output: Path, about: dict[str, str]) -> int:
    """Write the embeddings of complete parts, in the order of the source.

    `.parquet` has the columns name, speaker, seconds and embedding; the others hold a float32 array `(D,)` by name.

    Args:
        parts: all of them done.
        output: its suffix says the format; it replaces a file that is there. Parent folders are made.
        about: for the metadata of `.parquet` and `.safetensors`.

    Returns:
        The number of embeddings. Where it is 0, nothing is written.

    Raises:
        ValueError: an unknown format, or names that the format cannot hold.
    """
    writers = {".parquet": _write_parquet, ".safetensors": _write_safetensors, ".npz": _write_npz}
    if output.suffix not in writers:
        raise ValueError(f"The output must end in {', '.join(writers)}, got {output.name}.")
    names = [name for table in _embedded(parts, "name") for name in table["name"].to_pylist()]
    if not names:
        return 0
    if output.suffix != ".parquet":
        _check_names(names, output.suffix)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.unfinished")
    with open(unfinished, "wb") as file:
        writers[output.suffix](parts, names, file, about)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, output)
    return len(names)


def _embedded(parts: EmbeddingParts, *columns: str) -> Iterator[pa.Table]:
    """Some columns of the utterances that have an embedding, part by part."""
    for table in parts.tables(*columns, "reason"):
        yield table.filter(pc.field("reason").is_null()).drop_columns("reason")


def _rows(parts: EmbeddingParts) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and embeddings `(N, D)`, part by part."""
    for table in _embedded(parts, "name", "embedding"):
        values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield table["name"].to_pylist(), values.reshape(-1, parts.dimension)


def _check_names(names: list[str], suffix: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} names come more than once, the first is {twice[0]}, and {suffix} holds one array for each "
            "name. Nothing is lost: give the same command with an output that ends in .parquet."
        )


def _write_parquet(parts: EmbeddingParts, names: list[str], file: BinaryIO, about: dict[str, str]) -> None:
    schema = pa.schema([field for field in parts.schema if field.name != "reason"], metadata=about)
    held: list[pa.Table] = []
    with pq.ParquetWriter(file, schema) as writer:
        for table in _embedded(parts, *schema.names):
            held.append(table.cast(schema))
            if sum(len(part) for part in held) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
        if held:
            writer.write_table(pa.concat_tables(held))


def _write_safetensors(parts: EmbeddingParts, names: list[str], file: BinaryIO, about: dict[str, str]) -> None:
    """The format's own library wants all tensors in memory: https://huggingface.co/docs/safetensors."""
    size = 4 * parts.dimension
    header: dict[str, dict] = {"__metadata__": about}
    for i, name in enumerate(names):
        header[name] = {"dtype": "F32", "shape": [parts.dimension], "data_offsets": [i * size, (i + 1) * size]}
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % SAFETENSORS_ALIGNMENT)
    if len(encoded) > SAFETENSORS_HEADER_BYTES:
        raise ValueError(
            f"{len(names)} names make a header of {len(encoded)} bytes, and .safetensors allows "
            f"{SAFETENSORS_HEADER_BYTES}. Nothing is lost: give the same command with an output that ends in .parquet."
        )
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, values in _rows(parts):
        file.write(values.astype("<f4").tobytes())


def _write_npz(parts: EmbeddingParts, names: list[str], file: BinaryIO, about: dict[str, str]) -> None:
    # np.savez wants all arrays in memory, and takes the names as keyword arguments, where "file" is taken.
    with zipfile.ZipFile(file, "w") as archive:
        for own, values in _rows(parts):
            for name, embedding in zip(own, values, strict=True):
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, embedding)
