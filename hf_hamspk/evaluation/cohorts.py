"""Cohorts: the mean embeddings of other speakers, to normalise scores with, and the scores of files against them.

Best are speakers like the impostors to be expected: the training speakers, or others recorded like the trials. Nobody
of a cohort may be in the trials.

Letters: `M` embeddings, `C` cohort embeddings, `D` embedding size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..calibration_hamspk import SMALLEST_COHORT, Cohort
from ..modeling_hamspk import HamSpkPreTrainedModel
from ..verification_hamspk import mean_direction
from .verification import EmbeddedFiles, embed_files

# A mean over more moves little, and embedding them takes long.
UTTERANCES = 5
# The largest scores alone enter AS-norm, and beyond this many they hardly change.
MOST_SPEAKERS = 2000


@dataclass(frozen=True)
class EmbeddedCohort:
    """A cohort, and what became of the files.

    Attributes:
        cohort: one embedding for each speaker of whom a file could be read.
        speakers: their names, in the order of the embeddings.
        failures: name of a file to the reason why it could not be used.
    """

    cohort: Cohort
    speakers: tuple[str, ...]
    failures: dict[str, str]


def choose_utterances(
    paths: Sequence[str], speakers: Sequence[str], utterances: int = UTTERANCES, most_speakers: int = MOST_SPEAKERS
) -> dict[str, list[str]]:
    """Which files of a corpus make a cohort; always the same ones.

    Evenly spaced over the sorted files of a speaker, so that different recording sessions are among them, and over the
    sorted speakers where there are more than wanted.

    Args:
        paths: of the files.
        speakers: who speaks in each.
        utterances: of each speaker, at most.
        most_speakers: that are taken.

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
    """Embed the files and average them by speaker.

    Args:
        model: embeds in evaluation mode.
        files: speaker to files, from `choose_utterances`.
        audio: what the recordings are, in words.
        progress: show a bar.

    Raises:
        ValueError: files of fewer than 2 speakers could be read.
    """
    embedded = embed_files(model, [file for own in files.values() for file in own], progress=progress)
    return average_speakers(model, files, embedded, audio)


def average_speakers(
    model: HamSpkPreTrainedModel, files: Mapping[str, Sequence[str]], embedded: EmbeddedFiles, audio: str = ""
) -> EmbeddedCohort:
    """The cohort of files that are embedded already; arguments and errors as of `embed_cohort`."""
    found = {file: rows[0] for file, rows in embedded.embeddings.items()}
    means = {
        speaker: mean_direction(torch.stack([found[file] for file in own if file in found]))
        for speaker, own in files.items()
        if any(file in found for file in own)
    }
    if len(means) < SMALLEST_COHORT:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(embedded.failures.items())[:3])
        raise ValueError(
            f"Of {len(files)} speakers of the cohort, files of {len(means)} could be read; at least {SMALLEST_COHORT} "
            f"are needed. {first}"
        )
    cohort = Cohort(torch.stack(list(means.values())), model.fingerprint(), audio)
    return EmbeddedCohort(cohort, tuple(means), embedded.failures)
