"""Write the finished parts into one `.parquet`, `.safetensors` or `.npz` file, one part at a time."""

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
"""Number of utterances in a row group: 13 MB of embeddings of dimension 192."""

SAFETENSORS_HEADER_BYTES = 100_000_000
"""Longest header in bytes that readers of the format accept: about a million names."""

SAFETENSORS_ALIGNMENT = 8
"""The length of the header is a multiple of this number of bytes."""


def write_embeddings(parts: EmbeddingParts, output: Path, about: dict[str, str]) -> int:
    """Write the embeddings of all parts into one file, in the order of the source.

    `.parquet` files have the columns name, speaker, seconds and embedding. `.safetensors` and `.npz` files contain one
    float32 array `(D,)` per name.

    Args:
        parts: parts of the run, all complete.
        output: path of the file; the suffix selects the format. An existing file is replaced, and missing parent
            folders
            are created.
        about: metadata for `.parquet` and `.safetensors`.

    Returns:
        The number of embeddings. If it is 0, no file is written.

    Raises:
        ValueError: the format is unknown or cannot store these names.
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
    """Yield the named columns of the utterances that have an embedding, part by part."""
    for table in parts.tables(*columns, "reason"):
        yield table.filter(pc.field("reason").is_null()).drop_columns("reason")


def _rows(parts: EmbeddingParts) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield names and embeddings `(N, D)`, part by part."""
    for table in _embedded(parts, "name", "embedding"):
        values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield table["name"].to_pylist(), values.reshape(-1, parts.dimension)


def _check_names(names: list[str], suffix: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} names come more than once, the first is {twice[0]}. A {suffix} file has one array for each "
            "name. Run the same command again with an output that ends in .parquet; the embeddings are kept."
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
    """Write a `.safetensors` file part by part; the format's own library needs all tensors in memory.

    Source: https://huggingface.co/docs/safetensors.
    """
    size = 4 * parts.dimension
    header: dict[str, dict] = {"__metadata__": about}
    for i, name in enumerate(names):
        header[name] = {"dtype": "F32", "shape": [parts.dimension], "data_offsets": [i * size, (i + 1) * size]}
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % SAFETENSORS_ALIGNMENT)
    if len(encoded) > SAFETENSORS_HEADER_BYTES:
        raise ValueError(
            f"{len(names)} names need a header of {len(encoded)} bytes, but .safetensors allows "
            f"{SAFETENSORS_HEADER_BYTES}. Run the same command again with an output that ends in .parquet; "
            "the embeddings are kept."
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
