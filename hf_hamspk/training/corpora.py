"""Open the training data of a run."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from ..data.columns import DatasetUtterances, is_dataset, is_stream, load_saved_dataset
from ..data.corpus import check_corpus, load_corpus, speaker_labels
from ..data.dataset import CorpusUtterances, Utterances
from ..shards.reading import open_shards
from ..shards.row_streams import RowStream, StreamUtterances
from ..shards.streaming import ShardUtterances
from .arguments import DataArguments

MEGABYTE = 1 << 20


def open_corpus(
    data: DataArguments,
    rate: int,
    report: Callable[[str], None],
    progress: bool,
    speakers: Sequence[str] | None = None,
) -> tuple[Any, list[str]]:
    """Open the training utterances and list their speakers.

    Audio files are checked first. Shards were checked when they were prepared. Data sets are not checked: if a row that
    cannot be read is drawn in training, the next row replaces it, and the row is reported.

    Args:
        data: arguments of the data.
        rate: sampling rate of the model in Hz.
        report: function that receives a summary.
        progress: whether to show a progress bar.
        speakers: all speakers, if known. A streamed data set is then not searched for speakers.

    Returns:
        A source of utterances for `SpeakerCrops`, and the sorted speakers.

    Raises:
        ValueError: the data cannot be used.
    """
    source, channel = data.train_data, data.channel
    if is_stream(source):
        stream = RowStream(
            source, data.audio_column, data.speaker_column, data.samples_per_epoch, speakers, data.shuffle
        )
        counted = "counted in a pass over the speakers" if stream.counted else "as stated"
        report(f"{stream.count} rows per epoch of {len(stream.speakers)} speakers in a streamed data set, {counted}")
        return StreamUtterances(stream, rate, channel), stream.speakers
    saved: Any = source if is_dataset(source) else load_saved_dataset(str(source)) if is_path(source) else None
    if saved is not None:
        cache = data.cache_megabytes * MEGABYTE
        columns = data.audio_column, data.speaker_column
        rows = DatasetUtterances(saved, *columns, rate, cache_bytes=cache, channel=channel)
        report(f"{len(rows)} rows of {len(rows.speakers)} speakers in a data set")
        return rows, rows.speakers
    if not is_path(source):
        if channel is not None:
            raise ValueError("channel is for recordings, but the training data is a source of utterances. Remove it.")
        return source, sorted(utterances_of(source).speakers)
    return open_files(data, rate, report, progress)


def is_path(source: Any) -> bool:
    """Return whether training data is given as a path or URL."""
    return isinstance(source, str | os.PathLike)


def utterances_of(source: Any) -> Utterances:
    """Check that an object has the interface `Utterances`, and return the object.

    Raises:
        ValueError: a method is missing.
    """
    missing = [name for name in ("speakers", "name", "speaker", "candidates", "cut") if not hasattr(source, name)]
    if missing:
        raise ValueError(
            "Expected training data as a datasets.Dataset, a datasets.IterableDataset, a path, or an object with the "
            f"interface hf_hamspk.data.Utterances, got a {type(source).__name__}."
        )
    return source


def open_files(data: DataArguments, rate: int, report: Callable[[str], None], progress: bool) -> tuple[Any, list[str]]:
    """Open shards or a corpus of audio files; see `open_corpus`."""
    reader = open_shards(str(data.train_data))
    if reader is not None:
        manifest = reader.manifest
        if data.channel is not None:
            raise ValueError("channel is for audio files; shards contain one channel. Remove it (--channel).")
        report(
            f"{manifest.utterances} utterances of {len(manifest.speakers)} speakers, {manifest.seconds / 3600:.2f} h, "
            f"in {len(manifest.shards)} shards at {reader.folder}"
        )
        if len(manifest.speakers) < 2:
            raise ValueError(f"Training needs at least 2 speakers, got {len(manifest.speakers)} in {reader.folder}.")
        return ShardUtterances(reader, rate), manifest.speakers
    corpus = load_corpus(str(data.train_data), data.audio_root, data.audio_column, data.speaker_column)
    if data.check_audio != "none":
        checked = check_corpus(corpus, data.check_audio == "full", progress=progress, channel=data.channel)
        report(checked.summary())
        corpus = checked.dataset
    files = CorpusUtterances(corpus, rate, cache_bytes=data.cache_megabytes * MEGABYTE, channel=data.channel)
    return files, speaker_labels(corpus)
