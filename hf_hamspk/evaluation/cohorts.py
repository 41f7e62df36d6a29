"""Make cohorts: embeddings of other speakers that score normalisation compares with each recording.

The best cohort resembles the expected impostors. It consists of the training speakers, or of other speakers under the
recording conditions of the trials. No speaker of the cohort may occur in the trials.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..audio_hamspk import Channel
from ..calibration_hamspk import SMALLEST_COHORT, Cohort
from ..data.corpus import load_corpus
from ..geometry_hamspk import mean_direction
from ..modeling_hamspk import SpeakerModelMixin
from .verification import embed_files

# Number of utterances of a speaker. More utterances hardly change the mean embedding, but take longer to embed.
UTTERANCES = 5
# Largest number of speakers. AS-norm uses only the largest cohort scores, which hardly change with more speakers.
MOST_SPEAKERS = 2000


@dataclass(frozen=True)
class EmbeddedCohort:
    """Cohort with the names of its speakers.

    Attributes:
        cohort: cohort with one embedding for each speaker who has a usable file.
        speakers: names of the speakers, in the order of the embeddings.
        failures: maps each unusable file to the reason.
    """

    cohort: Cohort
    speakers: tuple[str, ...]
    failures: dict[str, str]

    def without(self, speakers: Collection[str]) -> "EmbeddedCohort":
        """Return the cohort without the given speakers.

        Only the part of a name after its last slash is compared, so `dev/id1` and `id1` are the same speaker.

        Raises:
            ValueError: fewer than 2 speakers remain.
        """
        taken = {name.rpartition("/")[2] for name in speakers}
        rows = [i for i, name in enumerate(self.speakers) if name.rpartition("/")[2] not in taken]
        left_out = len(self.speakers) - len(rows)
        if not left_out:
            return self
        if len(rows) < SMALLEST_COHORT:
            raise ValueError(
                f"{left_out} of {len(self.speakers)} speakers of the cohort also occur in the trials. Without them, "
                f"fewer than {SMALLEST_COHORT} speakers remain. Use a cohort of other speakers, preferably the "
                "training speakers."
            )
        cohort = Cohort(self.cohort.embeddings[rows], self.cohort.fingerprint, self.cohort.audio)
        return EmbeddedCohort(cohort, tuple(self.speakers[row] for row in rows), self.failures)


def find_cohort(
    source: str | os.PathLike[str], audio_root: str | os.PathLike[str] | None = None
) -> dict[str, list[str]]:
    """Read a corpus and choose the files of a cohort with `choose_utterances`.

    Args:
        source: folder with a subfolder for each speaker, or list of recordings (see `files.corpora`).
        audio_root: folder to which the paths in the list are relative; None uses the folder of the list.

    Returns:
        A dictionary that maps each speaker to the chosen files.

    Raises:
        ValueError: the corpus cannot be read, or has fewer than 2 speakers.
    """
    try:
        corpus = load_corpus(source, audio_root)
    except ValueError as error:
        raise ValueError(
            f"The cohort cannot be read. Relative paths start at the cohort root (--cohort-root). {error}"
        ) from error
    return choose_utterances(corpus["path"], corpus["speaker"])


def choose_utterances(
    paths: Sequence[str], speakers: Sequence[str], utterances: int = UTTERANCES, most_speakers: int = MOST_SPEAKERS
) -> dict[str, list[str]]:
    """Choose the files for a cohort from a corpus. The choice is deterministic.

    The chosen files are evenly spaced over the sorted files of a speaker, so that they come from different recording
    sessions. If there are more than `most_speakers` speakers, the chosen speakers are evenly spaced over the sorted
    speakers.

    Args:
        paths: paths of the files.
        speakers: speaker of each file.
        utterances: largest number of files of one speaker, at least 1.
        most_speakers: largest number of speakers, at least 2.

    Returns:
        A dictionary that maps each chosen speaker to the chosen files.

    Raises:
        ValueError: there are fewer than 2 speakers, or `utterances` or `most_speakers` is too small.
    """
    if utterances < 1 or most_speakers < SMALLEST_COHORT:
        raise ValueError(
            f"utterances must be at least 1 and most_speakers at least {SMALLEST_COHORT}, got {utterances} and "
            f"{most_speakers}."
        )
    files: dict[str, list[str]] = {}
    for path, speaker in sorted(set(zip(paths, speakers, strict=True))):
        files.setdefault(speaker, []).append(path)
    if len(files) < SMALLEST_COHORT:
        raise ValueError(
            f"A cohort needs at least {SMALLEST_COHORT} speakers, got {len(files)}. A useful cohort has a few hundred."
        )
    return {speaker: _spread(files[speaker], utterances) for speaker in _spread(sorted(files), most_speakers)}


def _spread(items: Sequence[str], most: int) -> list[str]:
    """Return all items, or `most` evenly spaced items if there are more."""
    if len(items) <= most:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * most)] for i in range(most)]


def embed_cohort(
    model: SpeakerModelMixin,
    files: Mapping[str, Sequence[str]],
    audio: str = "",
    progress: bool = True,
    channel: Channel = None,
) -> EmbeddedCohort:
    """Embed the files of a cohort and average the embeddings of each speaker.

    Args:
        model: model that embeds the files; its training mode is not changed.
        files: maps each speaker to the files of this speaker, as returned by `find_cohort`.
        audio: description of the recordings, stored in the cohort.
        progress: whether to show a progress bar.
        channel: channel of the files to read; see `read_sound`.

    Raises:
        ValueError: fewer than 2 speakers have a usable file.
    """
    given = [file for own in files.values() for file in own]
    embedded = embed_files(model, given, progress=progress, channel=channel)
    found = {file: rows[0] for file, rows in embedded.embeddings.items()}
    means = {
        speaker: mean_direction(torch.stack([found[file] for file in own if file in found]))
        for speaker, own in files.items()
        if any(file in found for file in own)
    }
    if len(means) < SMALLEST_COHORT:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(embedded.failures.items())[:3])
        raise ValueError(
            f"A cohort needs at least {SMALLEST_COHORT} speakers with a usable file, got {len(means)} of {len(files)}. "
            f"{first}"
        )
    cohort = Cohort(torch.stack(list(means.values())), model.fingerprint(), audio)
    return EmbeddedCohort(cohort, tuple(means), embedded.failures)


def describe_cohort(source: str | os.PathLike[str], files: Mapping[str, Sequence[str]]) -> str:
    """Describe the recordings of a cohort in one line, for `Cohort.audio`."""
    return f"{Path(source).name}: {len(files)} speakers, up to {UTTERANCES} utterances each"
