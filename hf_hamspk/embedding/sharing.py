"""Share the embedding of a corpus among processes (ranks), on one machine or on several with a common folder."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..calibration_hamspk import is_same_model
from ..folders.ranks import check_rank
from ..modeling_hamspk import SpeakerModelMixin
from .extracting import Speed, extract
from .parts import RUN_FILE, EmbeddingParts, check_complete, lock_parts, lock_parts_of_rank
from .sources import Source
from .stores import RemoteStore, is_url, open_store
from .writing import read_embeddings_metadata, write_embeddings


def parts_folder(output: str | os.PathLike[str]) -> Path | str:
    """Return the path or URL of the folder in which finished embeddings are kept until the output is written."""
    if is_url(output):
        folder, _, name = str(output).rpartition("/")
        return f"{folder}/{Path(name).with_suffix('.parts')}"
    return Path(output).with_suffix(".parts")


def write_output(parts: EmbeddingParts, output: str | os.PathLike[str], about: dict[str, str]) -> int:
    """Write the embeddings of all parts into one file (see `write_embeddings`). The output may be a URL of fsspec.

    Raises:
        ValueError: a file exists at the URL; see also `write_embeddings`.
    """
    if not is_url(output):
        return write_embeddings(parts, Path(output), about)
    folder, _, name = str(output).rpartition("/")
    store = RemoteStore(folder)
    _check_new(store, name, output)
    with tempfile.TemporaryDirectory() as scratch:
        count = write_embeddings(parts, Path(scratch, name), about)
        if count:
            store.put(Path(scratch, name), name)
    return count


def _check_new(store: RemoteStore, name: str, output: str | os.PathLike[str]) -> None:
    if store.exists(name):
        raise ValueError(f"{output} already exists, and files at a URL are not replaced. Choose another name.")


def describe_embeddings(
    model: SpeakerModelMixin, source: Source, precision: str = "float32", name: str = ""
) -> dict[str, str]:
    """Return the metadata of a file of embeddings: the model, the precision, and a digest of the utterances.

    Args:
        model: model, in float32.
        source: source of the utterances.
        precision: number format of the computation.
        name: name of the model.
    """
    about = {"model": name, "fingerprint": model.fingerprint(), "precision": precision}
    return about | {"recordings": source.fingerprint()}


def count_finished(
    model: SpeakerModelMixin, source: Source, output: str | os.PathLike[str], precision: str = "float32"
) -> int | None:
    """Return the number of embeddings in the output if the output is complete; None otherwise.

    An output is complete if it contains the embeddings of this model for these recordings, and no other run has begun
    since it was written. Changes in the content of the recordings are not noticed. The arguments are those of
    `open_embedding_parts`.
    """
    if open_store(parts_folder(output)).exists(RUN_FILE):
        return None
    about, count = _read_about(output)
    expected = describe_embeddings(model, source, precision)
    return count if all(about.get(key) == value for key, value in expected.items() if key != "model") else None


def check_output_of(
    model: SpeakerModelMixin, source: Source, output: str | os.PathLike[str], precision: str = "float32"
) -> None:
    """Raise ValueError if an output was made in another way, as far as the file says.

    The arguments are those of `open_embedding_parts`.
    """
    expected = describe_embeddings(model, source, precision)
    about = expected | _read_about(output)[0]
    if not is_same_model(about["fingerprint"], expected["fingerprint"]):
        made = "by another model or int8 file"
    elif about["precision"] != precision:
        made = f"in {about['precision']} instead of {precision}"
    elif about["recordings"] != expected["recordings"]:
        made = "from other recordings, or with other paths, order, speakers or channel"
    else:
        return
    raise ValueError(
        f"{output} is not replaced, because it was made {made}. Choose another file, or replace it with --replace."
    )


def _read_about(output: str | os.PathLike[str]) -> tuple[dict[str, str], int]:
    """Return the metadata of an output and the number of its embeddings; ({}, 0) if it is missing or damaged."""
    folder, _, name = str(output).rpartition("/") if is_url(output) else (Path(output).parent, "", Path(output).name)
    store = open_store(folder)
    if not store.exists(name):
        return {}, 0
    opened = store.open(name)
    with open(opened, "rb") if isinstance(opened, Path) else opened as file:
        return read_embeddings_metadata(file, Path(name).suffix)


def open_embedding_parts(
    model: SpeakerModelMixin, source: Source, output: str | os.PathLike[str], precision: str = "float32"
) -> EmbeddingParts:
    """Return the parts of a run, after checking that an interrupted run in the same folder has the same settings.

    The folder must be locked. Call this function before the precision of the model is changed.

    Args:
        model: model, in float32.
        source: source of the utterances.
        output: path of the file of embeddings.
        precision: number format of the computation, "float32" or "bfloat16".
    """
    run: dict[str, str | int] = {
        "weights": model.fingerprint(),
        "files": source.fingerprint(),
        "precision": precision,
    }
    return EmbeddingParts(parts_folder(output), source.sizes, model.config.embedding_size, run)


@contextmanager
def complete_parts(
    model: SpeakerModelMixin, source: Source, output: str | os.PathLike[str], precision: str = "float32"
) -> Iterator[EmbeddingParts]:
    """Context manager that locks the folder of the parts, and returns the parts if all are complete.

    The arguments are those of `open_embedding_parts`. At a URL there are no locks.

    Raises:
        ValueError: a rank has never started, was interrupted or is at work. The message names the rank.
    """
    folder = parts_folder(output)
    with lock_parts(folder) if isinstance(folder, Path) else nullcontext():
        parts = open_embedding_parts(model, source, output, precision)
        check_complete(parts, source)
        yield parts


def change_precision(model: SpeakerModelMixin, precision: str) -> None:
    """Convert the weights of a model to bfloat16 if `precision` is "bfloat16". A `BackendModel` stays unchanged."""
    if precision == "bfloat16":
        torch.nn.Module.to(model, dtype=torch.bfloat16)


def embed_share(
    model: SpeakerModelMixin,
    source: Source,
    output: str | os.PathLike[str],
    rank: int,
    world_size: int,
    precision: str = "float32",
    **options: Any,
) -> Speed:
    """Embed the part of a corpus that belongs to one rank, and return the speed of the rank.

    The embeddings are kept in a folder beside `output`. Call this function in each rank, with the same arguments except
    `rank`. When all ranks have ended, call `finish_embeddings` once. To resume after an interruption, even by
    `kill -9`, call this function again. If the output is already complete (see `count_finished`), it does nothing.

    Args:
        model: model in float32, on the device of this rank. Its precision is changed to `precision`.
        source: source of the utterances, at the sampling rate of the model. All ranks need the same source.
        output: path of the file of embeddings, in a folder that all ranks share, or a URL of fsspec, such as
            `s3://bucket/voices.parquet`. At a URL there are no locks: do not run the same rank twice at once.
        rank: number of the rank, from 0 to `world_size - 1`.
        world_size: number of ranks.
        precision: number format of the computation, "float32" or "bfloat16". A `BackendModel` has its own number
            format. For it, `precision` is only a name of the computation, which must be the same in all ranks.
        options: further arguments of `extract`.

    Raises:
        ValueError: the rank is already at work, the settings or `world_size` differ from those of other ranks, or
            another file exists at the URL.

    Example:
        ```python
        from hf_hamspk import HamSpkModel
        from hf_hamspk.embedding import AudioFiles, embed_share, finish_embeddings

        model = HamSpkModel.from_pretrained("model").eval()
        source = AudioFiles(["a.wav", "b.wav", "c.wav"], model.config.sampling_rate)
        for rank in range(2):  # usually in two jobs
            embed_share(model, source, "voices.parquet", rank, 2, progress=False)
        count, failures = finish_embeddings(model, source, "voices.parquet")
        ```
    """
    check_rank(rank, world_size)
    if count_finished(model, source, output, precision) is not None:
        return Speed()
    if is_url(output):
        folder, _, name = str(output).rpartition("/")
        _check_new(RemoteStore(folder), name, output)
    with lock_parts_of_rank(parts_folder(output), rank, world_size):
        parts = open_embedding_parts(model, source, output, precision)
        change_precision(model, precision)
        return extract(model, source, parts, rank=rank, world_size=world_size, **options)


def finish_embeddings(
    model: SpeakerModelMixin,
    source: Source,
    output: str | os.PathLike[str],
    precision: str = "float32",
    name: str = "",
) -> tuple[int, dict[str, str]]:
    """Write the file of embeddings after all ranks have ended, and remove the folder of the parts.

    If the output is already complete (see `count_finished`), it is kept, and the returned dictionary is empty.

    Args:
        model: model, in float32.
        source: source of the utterances.
        output: path or URL of the file of embeddings.
        precision: number format with which the ranks computed the embeddings.
        name: name of the model, which is stored in the file.

    Returns:
        The number of embeddings, and a dictionary that maps each utterance without an embedding to the reason.

    Raises:
        ValueError: a rank has never started, was interrupted or is at work. The message names the rank.
    """
    finished = count_finished(model, source, output, precision)
    if finished is not None:
        return finished, {}
    with complete_parts(model, source, output, precision) as parts:
        count = write_output(parts, output, describe_embeddings(model, source, precision, name))
        failures = parts.failures()
        parts.remove()
    return count, failures
