"""Cohorts: embeddings of other speakers, with which scores are normalised.

The best cohort is made of speakers like the expected impostors: the training speakers, or others recorded like the
trials. No speaker of the cohort may be in the trials.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..calibration_hamspk import SMALLEST_COHORT, Cohort
from ..data.corpus import load_corpus
from ..geometry_hamspk import mean_direction
from ..modeling_hamspk import HamSpkPreTrainedModel
from .verification import embed_files

# More utterances hardly change the mean of a speaker, and embedding them takes time.
UTTERANCES = 5
# AS-norm uses the largest cohort scores only; beyond this many speakers they hardly change.
MOST_SPEAKERS = 2000


@dataclass(frozen=True)
class EmbeddedCohort:
    """A cohort with the names of its speakers.

    Attributes:
        cohort: one embedding for each speaker with a usable file.
        speakers: their names, in the order of the embeddings.
        failures: file to the reason why it could not be used.
    """

    cohort: Cohort
    speakers: tuple[str, ...]
    failures: dict[str, str]

    def without(self, speakers: Collection[str]) -> "EmbeddedCohort":
        """The cohort without the given speakers; only the last part of a path-like name is compared.

        Raises:
            ValueError: fewer than 2 speakers are left.
        """
        taken = {name.rpartition("/")[2] for name in speakers}
        rows = [i for i, name in enumerate(self.speakers) if name.rpartition("/")[2] not in taken]
        left_out = len(self.speakers) - len(rows)
        if not left_out:
            return self
        if len(rows) < SMALLEST_COHORT:
            raise ValueError(
                f"{left_out} of {len(self.speakers)} speakers of the cohort are in the trials, too. Give a cohort of "
                "other speakers, best those of the training."
            )
        cohort = Cohort(self.cohort.embeddings[rows], self.cohort.fingerprint, self.cohort.audio)
        return EmbeddedCohort(cohort, tuple(self.speakers[row] for row in rows), self.failures)


def find_cohort(
    source: str | os.PathLike[str], audio_root: str | os.PathLike[str] | None = None
) -> dict[str, list[str]]:
    """The files of a corpus that make a cohort: `choose_utterances` of `load_corpus`.

    Args:
        source: folder with a subfolder for each speaker, or CSV file with the columns path and speaker_id.
        audio_root: folder of the paths in the CSV file; None is the folder of the CSV file.

    Raises:
        ValueError: the corpus cannot be read, or has fewer than 2 speakers.
    """
    try:
        corpus = load_corpus(source, audio_root)
    except ValueError as error:
        raise ValueError(f"The cohort cannot be read (its paths are relative to the cohort root): {error}") from error
    return choose_utterances(corpus["path"], corpus["speaker"])


def choose_utterances(
    paths: Sequence[str], speakers: Sequence[str], utterances: int = UTTERANCES, most_speakers: int = MOST_SPEAKERS
) -> dict[str, list[str]]:
    """Choose the files of a corpus that make a cohort; the choice is deterministic.

    Files are evenly spaced over the sorted files of a speaker, so that they come from different recording sessions, and
    speakers evenly spaced over the sorted speakers if there are more than wanted.

    Args:
        paths: of the files.
        speakers: the speaker of each file.
        utterances: of each speaker, at most.
        most_speakers: number of speakers, at most.

    Returns:
        Speaker to files.

    Raises:
        ValueError: fewer than 2 speakers, or a number below 1.
    """
    if utterances < 1 or most_speakers < SMALLEST_COHORT:
        raise ValueError(
            f"A cohort needs at least 1 utterance of each of {SMALLEST_COHORT} speakers, got utterances {utterances} "
            f"and most_speakers {most_speakers}."
        )
    files: dict[str, list[str]] = {}
    for path, speaker in sorted(set(zip(paths, speakers, strict=True))):
        files.setdefault(speaker, []).append(path)
    if len(files) < SMALLEST_COHORT:
        raise ValueError(
            f"A cohort needs at least {SMALLEST_COHORT} speakers, and a useful one some hundred; got {len(files)}."
        )
    return {speaker: _spread(files[speaker], utterances) for speaker in _spread(sorted(files), most_speakers)}


def _spread(items: Sequence[str], most: int) -> list[str]:
    """Up to `most` of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * most)] for i in range(most)]


def embed_cohort(
    model: HamSpkPreTrainedModel, files: Mapping[str, Sequence[str]], audio: str = "", progress: bool = True
) -> EmbeddedCohort:
    """Embed files and average them by speaker.

    Args:
        model: embeds in evaluation mode.
        files: speaker to files, from `find_cohort`.
        audio: description of the recordings.
        progress: show a bar.

    Raises:
        ValueError: fewer than 2 speakers have a usable file.
    """
    embedded = embed_files(model, [file for own in files.values() for file in own], progress=progress)
    found = {file: rows[0] for file, rows in embedded.embeddings.items()}
    means = {
        speaker: mean_direction(torch.stack([found[file] for file in own if file in found]))
        for speaker, own in files.items()
        if any(file in found for file in own)
    }
    if len(means) < SMALLEST_COHORT:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(embedded.failures.items())[:3])
        raise ValueError(
            f"Of {len(files)} speakers of the cohort, {len(means)} have a usable file; at least {SMALLEST_COHORT} are "
            f"needed. {first}"
        )
    cohort = Cohort(torch.stack(list(means.values())), model.fingerprint(), audio)
    return EmbeddedCohort(cohort, tuple(means), embedded.failures)


def describe_cohort(source: str | os.PathLike[str], files: Mapping[str, Sequence[str]]) -> str:
    """What a cohort was made of, for `Cohort.audio`."""
    return f"{Path(source).name}: {len(files)} speakers, up to {UTTERANCES} utterances each"
