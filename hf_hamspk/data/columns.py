"""Utterances in the rows of `datasets`, with a column of audio and a column of speakers.

The reader of this package decodes the audio, because `datasets` would need torchcodec.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, DatasetDict, IterableDataset, Value, load_from_disk

from ..audio_hamspk import INTEGER_SCALE, SHORTEST_SECONDS, Channel, InputError
from ..files.corpora import SPEAKER_COLUMNS, choose_column
from ..files.same import digest_of_files, probe_bytes
from ..files.tables import clean_speaker
from .audio import SAMPLING_RATE, read_utterance
from .dataset import CorpusUtterances

AUDIO_COLUMNS = ("audio", "path")
"""Usual columns of audio, in the order in which they are tried."""

PROBED_AT_ONCE = 100
"""Number of rows whose recordings are compared at once."""

PROBED_ROWS = 4
"""Number of rows that are read when a data set is opened. If all of them are unusable, the data set is refused."""


@dataclass(frozen=True)
class Columns:
    """Columns of audio and speakers, and how their cells are read.

    Attributes:
        audio: name of the column of audio.
        speaker: name of the column of speakers.
        names: names of the speakers if the column contains class indices; None if it contains the speakers.
        sample_type: type of the samples if the column of audio contains samples and their type is known.
    """

    audio: str
    speaker: str
    names: Sequence[str] | None = None
    sample_type: str | None = None

    @classmethod
    def of_features(cls, audio: str, speaker: str, features: Mapping[str, Any] | None) -> "Columns":
        """Return the columns with these names, with the names of a `ClassLabel` and the type of the samples.

        Raises:
            ValueError: the column of audio contains integers of another width than 16 or 32 bits.
        """
        known = {} if features is None else features
        feature = known.get(speaker)
        names = list(feature.names) if isinstance(feature, ClassLabel) else None
        return cls(audio, speaker, names, _sample_type(known.get(audio), audio))

    def speaker_of(self, cell: Any, row: int) -> str:
        """Return the speaker in a cell.

        Raises:
            ValueError: the cell is empty, or contains neither text nor an integer.
        """
        if self.names is not None and isinstance(cell, int) and 0 <= cell < len(self.names):
            return clean_speaker(self.names[cell])
        if isinstance(cell, str | int | np.integer) and not isinstance(cell, bool):
            name = clean_speaker(str(cell))
            if name and (self.names is None or isinstance(cell, str)):
                return name
        raise ValueError(f"Row {row}: expected a speaker in the column {self.speaker!r}, got {cell!r}.")

    def speakers_in(self, dataset: Any) -> list[str]:
        """Return the speaker in each row of a `Dataset` or `IterableDataset`."""
        rows = dataset.select_columns([self.speaker])
        return [self.speaker_of(row[self.speaker], number) for number, row in enumerate(rows)]

    def source_of(self, row: Mapping[str, Any]) -> Any:
        """Return the recording of a row in a form that `read_utterance` accepts.

        If the recording is a list of samples, the column `sampling_rate` contains its sampling rate.
        """
        cell = row[self.audio]
        if isinstance(cell, list | np.ndarray):
            cell = {"array": cell, "sampling_rate": row.get("sampling_rate")}
        if isinstance(cell, Mapping) and isinstance(cell.get("array"), list):
            # Integers of a data set are Python integers, whose width is only known from the features.
            return dict(cell) | {"array": np.asarray(cell["array"], self.sample_type)}
        return cell

    def name_of(self, row: Mapping[str, Any], number: int) -> str:
        """Return the name of a recording for reports: its path, or the number of its row."""
        cell = row[self.audio]
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        return path if isinstance(path, str) and path else f"row {number}"


def find_columns(
    columns: Iterable[str], audio: str | None, speaker: str | None, features: Mapping[str, Any] | None
) -> Columns:
    """Find the columns of audio and speakers of a data set.

    Args:
        columns: names of all columns.
        audio: column of audio; None uses the first of `AUDIO_COLUMNS` that exists.
        speaker: column of speakers; None uses the first of `SPEAKER_COLUMNS` that exists.
        features: features of the data set by column; None if unknown.

    Raises:
        ValueError: there is no such column, or the column of audio contains integers of another width than 16 or 32
            bits. The message names the columns.
    """
    known = list(columns)
    chosen = choose_column(audio, AUDIO_COLUMNS, known, "The data set", "audio_column")
    named = choose_column(speaker, SPEAKER_COLUMNS, known, "The data set", "speaker_column")
    return Columns.of_features(chosen, named, features)


def columns_of(dataset: Any, audio: str | None, speaker: str | None) -> Columns:
    """Find the columns of a `Dataset` or `IterableDataset` as `find_columns` does.

    If the features of the data set are unknown, its first row names the columns.
    """
    names = dataset.column_names
    if names is None:
        names = list(next(iter(dataset.take(1)), {}))
    return find_columns(names, audio, speaker, dataset.features)


def _sample_type(feature: Any, column: str) -> str | None:
    """Return the type of the samples in a column of audio; None if it contains files or its type is unknown.

    Raises:
        ValueError: the samples are integers of another width than 16 or 32 bits, so their scale is unknown.
    """
    while feature is not None and not isinstance(feature, Value | Audio):
        feature = feature.get("array") if isinstance(feature, Mapping) else getattr(feature, "feature", None)
    kind = str(feature.dtype) if isinstance(feature, Value) else ""
    if "int" in kind and kind not in INTEGER_SCALE:
        raise ValueError(
            f"The column {column!r} contains {kind} samples. Expected floating point in [-1, 1], or integers of 16 or "
            "32 bits. Cast the column, for example to List(Value('int16')), or name another one with audio_column."
        )
    return kind if kind in INTEGER_SCALE else None


def without_decoding(dataset: Any, columns: Columns) -> Any:
    """Return a `Dataset` or `IterableDataset` whose audio column contains files or bytes instead of samples.

    A format such as that of `with_format("torch")` is removed; a transform of the user is kept.
    """
    features = dataset.features
    if not isinstance(dataset, Dataset) or dataset.format["type"] != "custom":
        dataset = dataset.with_format(None)
    if features is not None and isinstance(features.get(columns.audio), Audio):
        dataset = dataset.cast_column(columns.audio, replace(features[columns.audio], decode=False))
    return dataset


class DatasetUtterances(CorpusUtterances):
    """Source of utterances in the rows of a `datasets.Dataset`.

    The cells of the audio column are files (`Audio`, or paths as text), dictionaries with `array` and `sampling_rate`,
    or lists of samples beside a column `sampling_rate`.

    Args:
        dataset: data set with one row for each utterance.
        audio_column: column of audio; see `find_columns`.
        speaker_column: column of speakers (names, integers or `ClassLabel`); see `find_columns`.
        sampling_rate: sampling rate in Hz of the decoded waveforms.
        min_duration: duration in seconds below which a row counts as unreadable.
        cache_bytes: memory per process for decoded waveforms (see `SpeakerCrops`).
        channel: channel of the recordings to read; see `read_sound`.

    Raises:
        ValueError: a column or a speaker is missing, there are fewer than 2 speakers, or the first rows are unusable.
    """

    def __init__(
        self,
        dataset: Dataset,
        audio_column: str | None = None,
        speaker_column: str | None = None,
        sampling_rate: int = SAMPLING_RATE,
        min_duration: float = SHORTEST_SECONDS,
        cache_bytes: int = 0,
        channel: Channel = None,
    ):
        self.columns = columns_of(dataset, audio_column, speaker_column)
        dataset = without_decoding(dataset, self.columns)
        super().__init__(dataset, sampling_rate, min_duration, cache_bytes, channel)
        cells = dataset.select_columns([self.columns.speaker])[self.columns.speaker]
        self._speakers = [self.columns.speaker_of(cell, row) for row, cell in enumerate(cells)]
        require_speakers(self._speakers)
        self._probe()

    @property
    def speakers(self) -> list[str]:
        return sorted(set(self._speakers))

    def name(self, utterance: int) -> str:
        return self.columns.name_of(self.corpus[utterance], utterance)

    def speaker(self, utterance: int) -> str:
        return self._speakers[utterance]

    def source(self, utterance: int) -> Any:
        return self.columns.source_of(self.corpus[utterance])

    def fingerprint(self) -> str:
        return digest_of_rows(self._speakers)

    def contents(self) -> str:
        digest, files = hashlib.sha256(), []
        # As Arrow tables, so that the complete recordings are not copied.
        rows: Any = self.corpus.select_columns([self.columns.audio]).with_format("arrow")
        for table in rows.iter(batch_size=PROBED_AT_ONCE):
            for cell in table.column(0):
                found = _probe_cell(cell)
                if isinstance(found, str):
                    files.append(found)
                else:
                    digest.update(found)
        digest.update(digest_of_files(files).encode())
        return digest.hexdigest()

    def _probe(self) -> None:
        """Raise an error if the first rows are all unusable. The usual cause is a wrong column or type."""
        reasons = []
        for utterance in range(min(PROBED_ROWS, len(self))):
            try:
                source = self.source(utterance)
                read_utterance(source, self.sampling_rate, self.name(utterance), channel=self.channel)
                return
            except InputError as error:
                reasons.append(f"{self.name(utterance)}: {error.reason}")
        raise ValueError(
            f"The first {len(reasons)} rows of the data set have no usable audio in the column {self.columns.audio!r}: "
            f"{reasons[0]}. Give another audio_column, or correct the rows."
        )


def _probe_cell(cell: Any) -> bytes | str:
    """Return the size and a hash of the middle of the recording in `cell`, an Arrow value, or its path."""
    if isinstance(cell, pa.StructScalar):
        cell = next((cell[name] for name in ("bytes", "array", "path") if name in cell and cell[name].is_valid), cell)
    if not cell.is_valid or isinstance(cell, pa.StructScalar):
        return b"empty"
    if isinstance(cell, pa.BinaryScalar) and not isinstance(cell, pa.StringScalar):
        return probe_bytes(memoryview(cell.as_buffer()))
    if isinstance(cell, pa.ListScalar):
        values: Any = cell.values
        while pa.types.is_nested(values.type):
            values = values.flatten()
        return probe_bytes(memoryview(values.to_numpy(zero_copy_only=False).tobytes()))
    return str(cell)


def require_speakers(speakers: Sequence[str]) -> None:
    """Check that the rows of a data set have at least 2 speakers.

    Raises:
        ValueError: there are fewer.
    """
    if len(set(speakers)) < 2:
        found = f"only {speakers[0]!r} in {len(speakers)} rows" if speakers else "no rows"
        raise ValueError(f"Training needs at least 2 speakers, got {found}. Give another speaker_column, or more data.")


def digest_of_rows(speakers: Sequence[str]) -> str:
    """Return a digest of the speakers of all rows, in their order."""
    return hashlib.sha256("\n".join(speakers).encode()).hexdigest()


def load_saved_dataset(folder: str) -> Dataset | None:
    """Load a folder that `Dataset.save_to_disk` wrote; None if it is another folder or file.

    A saved `DatasetDict` must have a split `train`.

    Raises:
        ValueError: the folder is damaged, or has no split `train`.
    """
    path = Path(folder)
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return None
    try:
        saved = load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} looks like a saved data set, but cannot be loaded: {error}") from error
    if isinstance(saved, DatasetDict):
        if "train" not in saved:
            raise ValueError(
                f"{folder} has the splits {', '.join(map(str, saved))}, but no split 'train'. Name the folder of one "
                f"split, such as {path / str(next(iter(saved)))}."
            )
        saved = saved["train"]
    return saved


def is_dataset(data: Any) -> bool:
    """Return whether data is a `Dataset` of the library datasets; refuse a dictionary of splits.

    Raises:
        ValueError: `data` is a dictionary of splits.
    """
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ValueError(
            f"Expected one data set, got a dictionary with the splits {', '.join(map(str, data))}. Pass one of them, "
            "such as dataset['train']."
        )
    return isinstance(data, Dataset)


def is_stream(data: Any) -> bool:
    """Return whether data is an `IterableDataset` of the library datasets."""
    return isinstance(data, IterableDataset)


def sequential_order(utterances: int, factors: int) -> np.ndarray:
    """Return the samples of an epoch in the order of the rows.

    The epoch passes over the rows once for each speed factor. Row `i` of pass `p` has the factor number
    `(i + p) % factors`, so that all factors are mixed in every part of the epoch.

    Returns:
        Sample numbers of `SpeakerCrops`, `(utterances * factors,)`.
    """
    rows = np.arange(utterances)
    return np.concatenate([(rows + number) % factors * utterances + rows for number in range(factors)])
