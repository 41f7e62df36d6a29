"""Find pairs of a recording with itself, and recordings that occur under two speakers, in a trial list.

The score of a recording with itself says nothing about the similarity of two recordings of a speaker. If a recording
occurs under two speakers, some of its labels are wrong. A calibration that is fitted to such pairs is wrong, so
`calibrate` leaves them out. Copies are found by content (see `files.same`); trimmed or re-encoded copies are not found.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..files.same import first_copies
from .speakers import find_speakers
from .trials import Trials


@dataclass(frozen=True)
class Repeats:
    """Repeated recordings of a trial list.

    Attributes:
        trials: trials without pairs of a recording with itself.
        own_pairs: enrolment and test of each pair of a recording with itself.
        shared: maps each file whose recording occurs under two speakers to a sentence that names the other file.
    """

    trials: Trials
    own_pairs: tuple[tuple[str, str], ...]
    shared: dict[str, str]


def describe_own_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a sentence about the pairs of a recording with itself that were left out."""
    return f"{len(pairs)} pairs of a recording with itself were left out, for example {' '.join(pairs[0])}."


def find_repeats(
    trials: Trials, audio_root: str | os.PathLike[str] = ".", speaker_table: Mapping[str, str] | None = None
) -> Repeats:
    """Find pairs of a recording with itself, and recordings that occur under two speakers.

    A pair with an enrolment model counts as a pair of a recording with itself if the test recording is one of the files
    of the model.

    Args:
        trials: trial list.
        audio_root: folder to which the file names are relative.
        speaker_table: maps each file to its speaker; None derives the speakers from the file names. If they cannot be
            derived, `shared` is empty.
    """
    paths = {name: os.path.join(audio_root, name) for name in trials.files}
    copies = first_copies(list(paths.values()))
    recording = {name: copies.get(path, path) for name, path in paths.items()}
    enrolled = {name: {recording[file] for file in trials.models.get(name, (name,))} for name in trials.enrolment}
    own = [recording[test] in enrolled[name] for name, test in zip(trials.enrolment, trials.test, strict=True)]
    others = trials.select([row for row, is_own in enumerate(own) if not is_own])
    pairs = [(trials.enrolment[row], trials.test[row]) for row, is_own in enumerate(own) if is_own]
    return Repeats(others, tuple(pairs), _under_two_speakers(others, recording, speaker_table))


def _under_two_speakers(
    trials: Trials, recording: Mapping[str, str], speaker_table: Mapping[str, str] | None
) -> dict[str, str]:
    """Return a sentence for each file of the trials whose recording also occurs under another speaker."""
    try:
        speakers = find_speakers(trials, speaker_table)
    except ValueError:
        return {}
    speaker_of: dict[str, str] = {}
    for names, numbers in ((trials.enrolment, speakers.enrolment), (trials.test, speakers.test)):
        for name, number in zip(names, numbers.tolist(), strict=True):
            for file in trials.models.get(name, (name,)):
                speaker_of[file] = speakers.names[number]
    groups: dict[str, list[str]] = defaultdict(list)
    for name in speaker_of:
        groups[recording[name]].append(name)
    found = {}
    for group in groups.values():
        for name in group:
            other = next((one for one in group if speaker_of[one] != speaker_of[name]), None)
            if other is not None:
                found[name] = (
                    f"is the same recording as {other}, but the speakers are {speaker_of[name]} and "
                    f"{speaker_of[other]}; correct the list or the files"
                )
    return found
