"""Open the training data of a run."""

from collections.abc import Callable
from typing import Any

from ..data.corpus import check_corpus, load_corpus, speaker_labels
from ..shards.reading import open_shards
from ..shards.streaming import ShardUtterances
from .arguments import DataArguments


def open_corpus(data: DataArguments, rate: int, report: Callable[[str], None], progress: bool) -> tuple[Any, list[str]]:
    """Open the training utterances and list their speakers.

    Audio files are checked first. Shards are not, because they were checked when they were prepared.
    """
    reader = open_shards(str(data.train_data))
    if reader is not None:
        manifest = reader.manifest
        report(
            f"{manifest.utterances} utterances of {len(manifest.speakers)} speakers, {manifest.seconds / 3600:.2f} h, "
            f"in {len(manifest.shards)} shards at {reader.folder}"
        )
        if len(manifest.speakers) < 2:
            raise ValueError(f"Training needs at least 2 speakers, got {len(manifest.speakers)} in {reader.folder}.")
        return ShardUtterances(reader, rate), manifest.speakers
    corpus = load_corpus(str(data.train_data), data.audio_root, data.audio_column, data.speaker_column)
    if data.check_audio != "none":
        checked = check_corpus(corpus, data.check_audio == "full", progress=progress)
        report(checked.summary())
        corpus = checked.dataset
    return corpus, speaker_labels(corpus)
