"""Combine the parts of a finished run, part by part, into one `.parquet`, `.safetensors` or `.npz` file."""

import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..folders.recognising import GENERATOR, check_replaceable, is_embeddings_file
from ..folders.writing import write_atomically
from .parts import EmbeddingParts

EMBEDDING_FORMATS = (".parquet", ".safetensors", ".npz")

ROW_GROUP = 16_384
"""Number of utterances in a row group of a `.parquet` file: 13 MB of embeddings of dimension 192."""

SAFETENSORS_HEADER_BYTES = 100_000_000
"""Largest header, in bytes, that readers of the format accept. It is enough for about a million names."""

SAFETENSORS_ALIGNMENT = 8
"""The header is padded to a multiple of this number of bytes."""


def write_embeddings(parts: EmbeddingParts, output: Path, about: dict[str, str]) -> int:
    """Write the embeddings of all parts into one file, in the order of the source.

    `.parquet` files have the columns `name`, `speaker`, `seconds` and `embedding`. `.safetensors` and `.npz` files
    contain one float32 array `(D,)` for each name.

    Args:
        parts: parts of the run, all complete.
        output: path of the file, whose suffix selects the format. An existing file of embeddings is replaced, and
            missing parent folders are created.
        about: metadata to store in the file. In `.npz` files, the metadata are stored as JSON in the archive comment.

    Returns:
        The number of embeddings. If there are none, no file is written.

    Raises:
        ValueError: the format is unknown or cannot store these names, or the output is an existing file that is not a
            file of embeddings.
    """
    writers = {".parquet": _write_parquet, ".safetensors": _write_safetensors, ".npz": _write_npz}
    if output.suffix not in writers:
        raise ValueError(f"The output must end in {' or '.join(writers)}, got {output.name}.")
    names = [name for table in _embedded(parts, "name") for name in table["name"].to_pylist()]
    if not names:
        return 0
    if output.suffix != ".parquet":
        _check_names(names, output.suffix)
    check_replaceable(output, is_embeddings_file, "a file of embeddings")
    output.parent.mkdir(parents=True, exist_ok=True)

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            writers[output.suffix](parts, names, file, about)

    write_atomically(output, write)
    return len(names)


def read_embeddings_metadata(file: BinaryIO, suffix: str) -> tuple[dict[str, str], int]:
    """Return the metadata of a file of embeddings and the number of its embeddings; ({}, 0) if it is damaged.

    Args:
        file: file that `write_embeddings` wrote, opened for reading.
        suffix: suffix of the file.
    """
    try:
        if suffix == ".parquet":
            found = pq.ParquetFile(file).metadata
            return {key.decode(): value.decode() for key, value in (found.metadata or {}).items()}, found.num_rows
        if suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return json.loads(archive.comment.partition(b" ")[2]), len(archive.namelist())
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return header.pop("__metadata__"), len(header)
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException, zipfile.BadZipFile):
        return {}, 0


def _embedded(parts: EmbeddingParts, *columns: str) -> Iterator[pa.Table]:
    """Yield a table for each part, with the given columns. Utterances without an embedding are left out."""
    for table in parts.tables(*columns, "reason"):
        yield table.filter(pc.field("reason").is_null()).drop_columns("reason")


def _rows(parts: EmbeddingParts) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield the names and the embeddings `(N, D)` of each part."""
    for table in _embedded(parts, "name", "embedding"):
        values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        yield table["name"].to_pylist(), values.reshape(-1, parts.dimension)


def _check_names(names: list[str], suffix: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"A {suffix} file needs a different name for each utterance, but {len(twice)} names occur more than once, "
            f"for example {twice[0]}. Run the same command again with an output that ends in .parquet. Embeddings that "
            "are already computed are reused."
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
    """Write a `.safetensors` file part by part. The safetensors library would need all tensors in memory.

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
            f"{SAFETENSORS_HEADER_BYTES}. Run the same command again with an output that ends in .parquet. "
            "Embeddings that are already computed are reused."
        )
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, values in _rows(parts):
        file.write(values.astype("<f4").tobytes())


def _write_npz(parts: EmbeddingParts, names: list[str], file: BinaryIO, about: dict[str, str]) -> None:
    # np.savez needs all arrays in memory, and it cannot store an array with the name "file".
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = f"{GENERATOR} {json.dumps(about)}".encode()
        for own, values in _rows(parts):
            for name, embedding in zip(own, values, strict=True):
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, embedding)
