"""Embeddings of the recordings in a table, with their labels, durations and signal-to-noise ratios."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..audio_hamspk import Channel, InputError, measure_speech
from ..data.audio import read_utterance
from ..data.fitting import NO_MEMORY, embed_what_fits
from ..files.corpora import base_folder, cell_text, open_corpus_list
from ..files.tables import clean_speaker, join_segment
from ..modeling_hamspk import HamSpkPreTrainedModel

# Seconds of audio that are decoded before they are embedded.
_CHUNK_SECONDS = 600.0


@dataclass(frozen=True)
class LabelledTable:
    """Rows of a list of recordings.

    Attributes:
        names: paths of the recordings, without repetitions.
        speakers: speaker of each recording.
        labels: for each column, the text of each recording; "" if the cell is empty.
        repetitions: number of rows in which each recording occurs.
    """

    names: list[str]
    speakers: list[str]
    labels: dict[str, list[str]]
    repetitions: list[int]


@dataclass(frozen=True)
class EmbeddedRecordings:
    """Embeddings of the usable recordings of a table.

    Attributes:
        table: rows of the usable recordings.
        embeddings: embeddings `(N, D)`, float64.
        seconds: durations `(N,)` in seconds.
        snr: signal-to-noise ratios of the speech `(N,)` in dB.
        unusable: dictionary that maps each recording that cannot be used to the reason.
    """

    table: LabelledTable
    embeddings: NDArray[np.float64]
    seconds: NDArray[np.float64]
    snr: NDArray[np.float64]
    unusable: dict[str, str]


def read_labelled_table(
    path: str | os.PathLike[str],
    labels: Sequence[str],
    audio_column: str | None = None,
    speaker_column: str | None = None,
) -> LabelledTable:
    """Read the recordings, speakers and labels of a list of recordings. A recording may occur in several rows.

    Args:
        path: CSV file or another list; see `files.corpora`.
        labels: names of the columns to read.
        audio_column, speaker_column: names of the columns with the paths and the speakers; None for the usual names.

    Raises:
        ValueError: the list cannot be read, a column or cell is missing, a column is empty, or two rows give different
            speakers or labels for the same recording.
    """
    rows: dict[str, tuple[str, ...]] = {}
    counts: dict[str, int] = {}
    with open_corpus_list(Path(path), audio_column, speaker_column) as listed:
        missing = [name for name in labels if name not in listed.columns]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}. Its columns are {', '.join(listed.columns)}.")
        for row in listed.rows:
            name, speaker = (cell_text(row.cells.get(column)) for column in (listed.audio, listed.speaker or ""))
            if row.problem or not name or not clean_speaker(speaker or ""):
                reason = row.problem or "expected a path and a speaker"
                raise ValueError(f"{path}, line {row.line}: {reason}. Correct the line, or delete it.")
            found = (clean_speaker(speaker or ""), *((cell_text(row.cells.get(one)) or "").strip() for one in labels))
            full = join_segment(name, row.segment)
            if rows.setdefault(full, found) != found:
                raise ValueError(
                    f"{path}, line {row.line}: an earlier line gives {full} another speaker or other labels. Correct "
                    "one of the lines."
                )
            counts[full] = counts.get(full, 0) + 1
    columns = {label: [row[1 + place] for row in rows.values()] for place, label in enumerate(labels)}
    if empty := [label for label, values in columns.items() if rows and not any(values)]:
        raise ValueError(f"{path}: the column {empty[0]!r} has no values. Remove it from the labels, or fill it.")
    return LabelledTable(list(rows), [row[0] for row in rows.values()], columns, list(counts.values()))


def embed_table(
    model: HamSpkPreTrainedModel,
    table: LabelledTable,
    root: str | os.PathLike[str],
    channel: Channel = None,
    progress: bool = True,
) -> EmbeddedRecordings:
    """Embed the recordings of a table. Recordings that cannot be used are left out.

    Args:
        model: model on its device.
        table: rows of the table.
        root: base folder of the paths.
        channel: channel of the recordings; see `read_sound`.
        progress: whether to show a progress bar.
    """
    rate = model.config.sampling_rate
    unusable: dict[str, str] = {}
    kept: list[tuple[int, float, float, Any]] = []
    waiting: list[tuple[int, NDArray[np.float32]]] = []

    def embed() -> None:
        found = embed_what_fits(model, [waveform for _, waveform in waiting])
        for (place, waveform), embedding in zip(waiting, found, strict=True):
            if embedding is None or not bool(torch.isfinite(embedding).all()):
                unusable[table.names[place]] = NO_MEMORY if embedding is None else "the embedding is not finite"
            else:
                snr = measure_speech(waveform, rate).snr_db
                kept.append((place, len(waveform) / rate, snr, embedding.double().numpy()))
        waiting.clear()

    for place, name in enumerate(tqdm(table.names, desc="embedding", unit="utt", disable=not progress, leave=False)):
        try:
            waiting.append((place, read_utterance(Path(root) / name, rate, name, channel=channel).waveform))
        except InputError as error:
            unusable[name] = error.reason
        if sum(len(waveform) for _, waveform in waiting) > _CHUNK_SECONDS * rate:
            embed()
    embed()
    if not kept:
        first = next(iter(unusable.items()))
        raise ValueError(f"None of the {len(table.names)} recordings can be used, for example {first[0]}: {first[1]}.")
    places = [place for place, *_ in kept]
    return EmbeddedRecordings(
        LabelledTable(
            [table.names[i] for i in places],
            [table.speakers[i] for i in places],
            {label: [values[i] for i in places] for label, values in table.labels.items()},
            [table.repetitions[i] for i in places],
        ),
        np.stack([embedding for *_, embedding in kept]),
        np.array([seconds for _, seconds, *_ in kept]),
        np.array([snr for _, _, snr, _ in kept]),
        unusable,
    )


def table_root(path: str | os.PathLike[str], given: str | None) -> Path:
    """Return the base folder of the paths in a table."""
    return base_folder(Path(path)) if given is None else Path(given)
