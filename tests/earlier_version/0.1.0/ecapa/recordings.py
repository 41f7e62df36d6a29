"""Recordings as a verifier hears them: distinct ones once, measured, and embedded where there is speech.

Letters: `L` samples, `N` recordings, `P` pairs, `C` cohort embeddings, `D` embedding size.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .calibration import Quality, combine_qualities
from .enrolment import leave_one_out_scores
from .inputs import check_samples
from .scorer import Scorer, SpeakerModel
from .speech import SpeechMeasures, measure_speech

# An enrolment recording with less is left out: not even a word.
SHORTEST_UTTERANCE = 0.3
# Below this much speech a decision is made with a warning.
SHORT_SPEECH = 3.0
# Below this the noise is heard all the time.
LOW_SNR_DB = 10.0
# Unclipped speech reaches its extreme in runs of equal samples hardly ever.
CLIPPED_SHARE = 1e-3
# Correlation of the samples of two recordings of equal length: one is the other, perhaps louder or in fewer bits.
SAME_SAMPLES = 0.999
# Pieces of a recording that are compared with each other, to hear several voices.
VOICE_SECONDS = 2.0
# Log-likelihood ratio, corrected for the number of pairs, below which two pieces are taken for two voices.
TWO_VOICES = -2.0


class Recording(NamedTuple):
    """A distinct recording.

    Attributes:
        digest: SHA-256 of the samples, as float32.
        samples: `(L,)` float32.
        measures: what was measured.
        embedding: `(D,)`, None where there is hardly any speech.
        pieces: `(N, D)` embeddings of consecutive pieces, at least two; None where there is not enough speech for two,
            or nobody asked.
    """

    digest: str
    samples: np.ndarray
    measures: SpeechMeasures
    embedding: Tensor | None
    pieces: Tensor | None


def listen(
    model: SpeakerModel, groups: Sequence[Sequence[np.ndarray]], sampling_rate: int, with_pieces: bool
) -> list[list[Recording]]:
    """Measure and embed the recordings of each group; a recording that comes again is not embedded again.

    Args:
        model: embeds.
        groups: recordings, each `(L,)` floating point.
        sampling_rate: the model's, in Hz.
        with_pieces: embed the pieces of long recordings, too.

    Raises:
        ValueError: a recording that is not one-dimensional or not floating point, or holds NaN or infinite samples; the
            message says which, counted over all groups.
    """
    digests: list[list[str]] = []
    samples: dict[str, np.ndarray] = {}
    count = 0
    for group in groups:
        digests.append([])
        for waveform in group:
            array = check_samples(waveform, count).to("cpu", torch.float32).numpy()
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            samples.setdefault(digest, array)
            digests[-1].append(digest)
            count += 1
    measures = {digest: measure_speech(array, sampling_rate) for digest, array in samples.items()}
    spoken = [digest for digest, measure in measures.items() if measure.speech >= SHORTEST_UTTERANCE]
    cuts = {digest: _cut(samples[digest], measures[digest], sampling_rate) if with_pieces else [] for digest in spoken}
    batch = [samples[digest] for digest in spoken] + [piece for digest in spoken for piece in cuts[digest]]
    embedded = model.embed(batch, sampling_rate) if batch else None
    recordings = {digest: Recording(digest, samples[digest], measures[digest], None, None) for digest in samples}
    if embedded is not None:
        at = len(spoken)
        for row, digest in enumerate(spoken):
            pieces = embedded[at : at + len(cuts[digest])]
            at += len(cuts[digest])
            found = {"embedding": embedded[row], "pieces": pieces if len(pieces) else None}
            recordings[digest] = recordings[digest]._replace(**found)
    return [[recordings[digest] for digest in group] for group in digests]


def _cut(samples: np.ndarray, measures: SpeechMeasures, sampling_rate: int) -> list[np.ndarray]:
    """Consecutive pieces of about `VOICE_SECONDS` of speech, or none if there are not two that hold any sound."""
    count = int(measures.speech / VOICE_SECONDS)
    if count < 2:
        return []
    pieces = np.array_split(samples, count)
    spoken = [piece for piece in pieces if measure_speech(piece, sampling_rate).speech >= VOICE_SECONDS / 2]
    return spoken if len(spoken) > 1 else []


def is_same_recording(first: Recording, second: Recording) -> bool:
    """Whether two recordings are the same samples, bit by bit or but for the level and a little rounding."""
    if first.digest == second.digest:
        return True
    if len(first.samples) != len(second.samples) or first.measures.speech == 0 or second.measures.speech == 0:
        return False
    left, right = first.samples.astype(np.float64), second.samples.astype(np.float64)
    return float(np.dot(left, right)) > SAME_SAMPLES * float(np.sqrt(np.dot(left, left) * np.dot(right, right)))


def warn_of(recording: Recording, label: str, with_length: bool = True) -> list[str]:
    """Sentences on what is wrong with a recording that holds speech.

    Args:
        recording: measured.
        label: what to call it, for example "The test".
        with_length: whether it must hold enough speech alone.
    """
    measures, sentences = recording.measures, []
    if with_length and measures.speech < SHORT_SPEECH:
        sentences.append(
            f"{label} holds {measures.speech:.1f} s of speech; below {SHORT_SPEECH:g} s errors are more frequent."
        )
    if measures.snr_db < LOW_SNR_DB:
        sentences.append(
            f"{label} is noisy: the speech is {measures.snr_db:.0f} dB above the noise; below {LOW_SNR_DB:g} dB errors "
            "are more frequent."
        )
    if measures.clipped >= CLIPPED_SHARE:
        sentences.append(
            f"{label} is clipped: {measures.clipped:.1%} of its samples are cut off. Record it at a lower level."
        )
    return sentences


def quality_of(recording: Recording, model: SpeakerModel) -> Quality:
    """The quality of a recording that holds speech.

    Raises:
        ValueError: it has no embedding.
    """
    if recording.embedding is None:
        raise ValueError("A recording without speech has no embedding, and no quality.")
    magnitude = float(model.magnitude(recording.embedding))
    return Quality(recording.measures.speech, recording.measures.snr_db, magnitude)


def warn_of_copies(recordings: Sequence[Recording], labels: Sequence[str]) -> list[str]:
    """Name the recordings that are another one again."""
    sentences = []
    for i, recording in enumerate(recordings):
        first = next((j for j in range(i) if is_same_recording(recordings[j], recording)), None)
        if first is not None:
            sentences.append(f"{labels[i]} is the same recording as {labels[first].lower()}: it adds nothing.")
    return sentences


def warn_of_cohesion(
    embeddings: Tensor,
    qualities: Sequence[Quality],
    labels: Sequence[str],
    combine: Callable[[Tensor], Tensor],
    scorer: Scorer,
) -> list[str]:
    """Name the utterances that the model takes for another speaker than the rest, each left out in turn.

    Args:
        embeddings: `(N, D)` of an enrolment.
        qualities: of each.
        labels: of each.
        combine: `(N - 1, D)` to `(D,)`.
        scorer: calibrated; without a calibration nothing says what does not fit, and nothing is said.
    """
    count = len(labels)
    if scorer.calibration is None or count < 2:
        return []
    rest = [combine_qualities([*qualities[:i], *qualities[i + 1 :]]) for i in range(count)]

    def ratios(others: Tensor, own: Tensor) -> Tensor:
        return torch.from_numpy(scorer.ratios(others, own, rest, qualities))

    fits = leave_one_out_scores(embeddings, combine, ratios)
    outside = [i for i in range(count) if float(fits[i]) < 0]
    if not outside:
        return []
    if count == 2 or len(outside) > count / 2:
        return [f"The {count} enrolment recordings do not fit each other: the model takes them for several speakers."]
    return [
        f"{labels[i]} does not fit the others: the model takes it for another speaker. Listen to it." for i in outside
    ]


def find_voices(recording: Recording, scorer: Scorer) -> float | None:
    """How much the pieces of a recording sound like one speaker, each of about 2 s of speech.

    It hears two speakers who take turns of some seconds, in recordings of a few to some twenty seconds; not two who
    speak at once or in turns shorter than a piece, nor those whom the model confuses. It is as good as the model and
    its calibration are on such short pieces: a hint.

    Returns:
        The smallest log-likelihood ratio between two pieces, plus the logarithm of the number of pairs, as the smallest
        of many is small by chance; None without a calibration, or where there are not two pieces.
    """
    pieces = recording.pieces
    if scorer.calibration is None or pieces is None:
        return None
    first, second = torch.triu_indices(len(pieces), len(pieces), 1).tolist()
    magnitudes = scorer.model.magnitude(pieces).tolist()
    of = [Quality(VOICE_SECONDS, recording.measures.snr_db, magnitude) for magnitude in magnitudes]
    ratios = scorer.ratios(pieces[first], pieces[second], [of[i] for i in first], [of[i] for i in second])
    return float(ratios.min()) + math.log(len(ratios))


def warn_of_voices(recording: Recording, label: str, scorer: Scorer) -> list[str]:
    """A sentence if a recording seems to hold several voices, one after the other."""
    ratio = find_voices(recording, scorer)
    if ratio is None or ratio >= TWO_VOICES:
        return []
    return [f"{label} seems to hold several voices: its pieces do not sound like one speaker. Listen to it."]
