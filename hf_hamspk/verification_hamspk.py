"""Several utterances of one speaker as one embedding, and the file that keeps it.

- `"mean"`: the mean direction, with the mean norm, which hyperbolic scoring looks at.
- `"length_weighted"`: the same, weighted by the seconds of speech of each utterance.
- `"barycentre"`: the point of the ball of least sum of squared distances (`poincare.karcher_mean`), for models that
  compare by hyperbolic distance; with a cosine model it uses the same ball, and its direction counts.

Letters: `N` utterances, `D` embedding size.

Recordings as a verifier hears them: distinct ones once, measured, and embedded where there is speech.

Letters: `L` samples, `N` recordings, `P` pairs, `C` cohort embeddings, `D` embedding size.

Are these recordings of one speaker? The answer with what it rests on, and what speaks against relying on it.

What the answer is for recordings that nobody should decide on:

- silence, steady noise, hum, clicks: "not enough speech"; score and log-likelihood ratio are None.
- 0.3 s of speech: the same.
- two people taking turns: a decision, and a warning where the model is calibrated and the recording long enough (see
  `recordings.find_voices`); it is a hint, not a diarisation.
- two people at once: a decision; nothing is noticed.
- the same recording twice: a decision, nearly always "same speaker", and a warning that it proves nothing.
- clipped: a decision, and a warning with the share of the samples.

Where there is not enough speech no score is given at all, lest somebody compare it with a threshold. Without a
calibration and without a threshold there is a score and no decision.

Letters: `P` pairs, `N` utterances, `C` cohort embeddings, `D` embedding size.

Who of the enrolled speakers is this, if anybody? Open-set identification: the unknown is refused.

The best of many candidates is always somebody, and the more are enrolled, the better the best impostor scores. So the
question comes in two: is it any of the enrolled, and which one? For a calibrated model with log-likelihood ratios
`l_i` of the `N` enrolled speakers, each as likely as the other, the ratio of "one of the enrolled" to "nobody of them"
is exactly the mean of the `exp(l_i)`, and its logarithm is what the threshold of the operating point is for: where one
candidate stands out it is `l_i - log N`. The second question is answered by the margin to the runner-up.

Letters: `N` enrolled speakers, `L` samples, `D` embedding size.

What a speaker model is for: embeddings of utterances, and how they are compared.

Letters: `B` enrolment embeddings, `K` test embeddings, `D` embedding size.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .audio_hamspk import (
    MINIMUM_SPEECH,
    SpeechMeasures,
    check_samples,
    check_waveform,
    is_number,
    length_batches,
    measure_speech,
)
from .calibration_hamspk import (
    Calibration,
    Cohort,
    OperatingPoint,
    Quality,
    Scorer,
    Scores,
    SpeakerModel,
    combine_qualities,
    load_array,
    save_array,
    shorten,
)
from .configuration_hamspk import HamSpkConfig
from .geometry_hamspk import (
    SMALLEST_NORM,
    BallPoints,
    at_least_float32,
    karcher_mean,
    length_mask,
    magnitude,
    normalize,
    project,
    score,
    score_matrix,
    to_features,
)

COMBINATIONS = ("mean", "length_weighted", "barycentre")
PROFILE_KIND = "speaker profile"
_DESCRIBED = (
    "name",
    "seconds",
    "snr_db",
    "magnitude",
    "combine",
    "fingerprint",
    "model_id",
    "revision",
    "recordings",
)
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
SAME, DIFFERENT, NOT_ENOUGH_SPEECH = "same speaker", "different speakers", "not enough speech"
IDENTIFIED, UNKNOWN, AMBIGUOUS = "identified", "unknown speaker", "ambiguous"
# Of log-likelihood ratios: the best must be three times likelier than the runner-up.
LEAST_MARGIN = math.log(3.0)
# Of scores, which have no scale of their own.
NO_MARGIN = 0.0
# Candidates in an answer.
CANDIDATES = 5
# Padded seconds of audio that `embed` sends through the model at once.
BATCH_SECONDS = 120.0


def mean_direction(embeddings: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean direction of embeddings `(N, D)`, with their mean norm: `(D,)`.

    Args:
        embeddings: at least one.
        weights: `(N,)`, at least 0; None for equal ones.

    Raises:
        ValueError: no embedding, weights that do not fit, or directions that cancel.
    """
    embeddings, shares = at_least_float32(embeddings), _shares(embeddings, weights)
    direction = (shares[:, None] * normalize(embeddings)).sum(0)
    if float(direction.detach().norm()) < SMALLEST_NORM:
        raise ValueError(
            "The directions of these embeddings cancel, so they have no mean. Are they of several speakers?"
        )
    return normalize(direction) * (shares * embeddings.norm(dim=-1)).sum()


def barycentre(
    embeddings: Tensor, projection: str, curvature: float, clip_radius: float, weights: Tensor | None = None
) -> Tensor:
    """Embedding `(D,)` whose point in the ball has the least sum of squared distances to those of `(N, D)`.

    Args:
        embeddings: at least one.
        projection: as in `scoring.project`.
        curvature: as in `scoring.project`.
        clip_radius: as in `scoring.project`.
        weights: `(N,)`, at least 0; None for equal ones.
    """
    shares = _shares(embeddings, weights)
    points, _ = project(embeddings.double(), projection, curvature, clip_radius)
    mean = karcher_mean(BallPoints(*points), shares.double())
    return to_features(mean, projection, curvature).to(at_least_float32(embeddings).dtype)


def _shares(embeddings: Tensor, weights: Tensor | None) -> Tensor:
    if embeddings.ndim != 2 or embeddings.shape[0] == 0:
        raise ValueError(f"Expected embeddings of shape (N, D), N at least 1, got {tuple(embeddings.shape)}.")
    if weights is None:
        return torch.full(embeddings.shape[:1], 1 / embeddings.shape[0], device=embeddings.device)
    if weights.shape != embeddings.shape[:1] or not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
        raise ValueError(
            f"Expected {embeddings.shape[0]} weights of at least 0, not all of them 0, got {weights.tolist()}."
        )
    weights = at_least_float32(weights).to(embeddings.device)
    return weights / weights.sum()


def combine_embeddings(
    embeddings: Tensor,
    combine: str,
    seconds: Sequence[float] | None = None,
    projection: str = "released",
    curvature: float = 3.0,
    clip_radius: float = 1.0,
) -> Tensor:
    """Combine the embeddings of a speaker's utterances: `(N, D)` to `(D,)`.

    Args:
        embeddings: at least one.
        combine: `"mean"`, `"length_weighted"` or `"barycentre"`; see the module.
        seconds: of speech in each utterance, for `"length_weighted"`.
        projection: of `"barycentre"`, as in the model's configuration.
        curvature: likewise.
        clip_radius: likewise.

    Raises:
        ValueError: unknown way, no embedding, or seconds that are missing or do not fit.
    """
    if combine == "mean":
        return mean_direction(embeddings)
    if combine == "barycentre":
        return barycentre(embeddings, projection, curvature, clip_radius)
    if combine != "length_weighted":
        raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {combine!r}.")
    if seconds is None:
        raise ValueError("combine='length_weighted' needs the seconds of speech of each utterance.")
    return mean_direction(embeddings, torch.tensor(list(seconds), dtype=torch.float32, device=embeddings.device))


def leave_one_out_scores(
    embeddings: Tensor, combine: Callable[[Tensor], Tensor], score: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Score each utterance against the combination of the others: how well it fits them, `(N,)`.

    Args:
        embeddings: `(N, D)`, N at least 2.
        combine: `(N - 1, D)` to `(D,)`.
        score: `(N, D)` and `(N, D)` to `(N,)`.

    Raises:
        ValueError: a single utterance, which has nothing to fit.
    """
    count = embeddings.shape[0]
    if count < 2:
        raise ValueError(f"Cohesion needs at least 2 utterances, got {count}.")
    others = [combine(torch.cat([embeddings[:i], embeddings[i + 1 :]])) for i in range(count)]
    return score(torch.stack(others), embeddings)


@dataclass(frozen=True, eq=False)
class SpeakerProfile:
    """An enrolled speaker. It is biometric data: keep it as such.

    Attributes:
        name: of the speaker; None where nobody gave one.
        embedding: `(D,)` float32 on the CPU, finite.
        seconds: of speech, by utterance.
        snr_db: mean over the utterances.
        magnitude: mean over the utterances; see `scoring.magnitude`.
        combine: how the utterances were combined.
        fingerprint: of the model.
        model_id: where the model was loaded from: a name on the Hub, or the last part of a folder's path.
        revision: commit of the model on the Hub, None for a folder.
        recordings: SHA-256 of the samples of each utterance, by which a recording that comes back is known.
        warnings: sentences of the enrolment; not saved.
    """

    name: str | None
    embedding: Tensor = field(repr=False)
    seconds: tuple[float, ...]
    snr_db: float
    magnitude: float
    combine: str
    fingerprint: str
    model_id: str | None = None
    revision: str | None = None
    recordings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.embedding.ndim != 1 or not bool(torch.isfinite(self.embedding).all()):
            raise ValueError(f"A profile holds one finite embedding (D,), got shape {tuple(self.embedding.shape)}.")
        numbers = (*self.seconds, self.snr_db, self.magnitude)
        if not self.seconds or not all(is_number(number) for number in numbers):
            raise ValueError(
                f"A profile needs the seconds of at least one utterance and finite measures, got {numbers}."
            )
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine!r}.")
        object.__setattr__(self, "embedding", self.embedding.detach().to("cpu", torch.float32).contiguous())

    @property
    def utterances(self) -> int:
        """How many were combined."""
        return len(self.seconds)

    @property
    def quality(self) -> Quality:
        """For the calibration."""
        return Quality(sum(self.seconds), self.snr_db, self.magnitude, self.utterances)

    def check_model(self, fingerprint: str) -> None:
        """Refuse to be compared by another model than the one that made it.

        Raises:
            ValueError: names both.
        """
        if self.fingerprint != fingerprint:
            whose = "This profile" if self.name is None else f"The profile of {self.name!r}"
            model = "another model" if self.model_id is None else f"the model {self.model_id}"
            raise ValueError(
                f"{whose} was made by {model} ({shorten(self.fingerprint)}), not by the one at hand "
                f"({shorten(fingerprint)}): embeddings of two models cannot be compared. Load that model, or enrol the "
                "speaker anew."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file: the tensor `embedding`, and all else as a description with checksum."""
        description = {key: getattr(self, key) for key in _DESCRIBED} | {"kind": PROFILE_KIND}
        save_array(path, "embedding", self.embedding.numpy(), description)

    @classmethod
    def load(cls, path: str | os.PathLike, fingerprint: str | None = None) -> "SpeakerProfile":
        """Read a profile.

        Args:
            path: what `save` wrote.
            fingerprint: of the model it is for; None to take it as it is.

        Raises:
            ValueError: no such file, altered, no profile, or of another model.
        """
        array, description = load_array(path, "embedding")
        if description.pop("kind", None) != PROFILE_KIND or description.keys() != set(_DESCRIBED):
            raise ValueError(f"{os.fspath(path)} is no speaker profile: it describes {sorted(description)}.")
        values: dict[str, Any] = description
        for key in ("seconds", "recordings"):
            values[key] = tuple(values[key])
        profile = cls(embedding=torch.from_numpy(np.array(array)), **values)
        if fingerprint is not None:
            profile.check_model(fingerprint)
        return profile


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


@dataclass(frozen=True)
class Verification:
    """The answer.

    Attributes:
        score: similarity of the embeddings, larger is more alike; None where there is not enough speech.
        normalised_score: with the cohort; None where the calibration asks for none.
        log_likelihood_ratio: natural logarithm; None where the model is not calibrated.
        decision: `SAME`, `DIFFERENT`, `NOT_ENOUGH_SPEECH`; None where nobody calibrated the model or gave a threshold.
        operating_point: its name; None where a threshold was given, or nothing was decided.
        threshold: "same speaker" at or above it: of the log-likelihood ratio, or of the score where the caller gave it.
        enrolment_speech: seconds of speech of each enrolment recording.
        test_speech: seconds of speech of the test recording.
        warnings: sentences.
    """

    score: float | None
    normalised_score: float | None
    log_likelihood_ratio: float | None
    decision: str | None
    operating_point: str | None
    threshold: float | None
    enrolment_speech: list[float]
    test_speech: float
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


class _Enrolled(NamedTuple):
    """One side of a pair, as a profile if there is enough speech, and the recordings if there are any."""

    profile: SpeakerProfile | None
    recordings: list[Recording]
    seconds: list[float]
    warnings: list[str]


class _Decider(NamedTuple):
    """What decides: an operating point of the calibration, a threshold on the score, or nothing."""

    point: OperatingPoint | None
    threshold: float | None


class SpeakerVerifier:
    """Verifies with one model, whose weights must not change meanwhile.

    Args:
        model: embeds and compares.
        calibration: turns scores into log-likelihood ratios; None for scores alone.
        cohort: for the score normalisation that the calibration was measured with.
        check_voices: look for several voices in long recordings; about doubles the time.

    Raises:
        ValueError: the calibration or the cohort is of another model, or the calibration was measured with a cohort
            that is missing or is not this one.
    """

    def __init__(
        self,
        model: SpeakerModel,
        calibration: Calibration | None = None,
        cohort: Cohort | None = None,
        check_voices: bool = True,
    ):
        self.model = model
        self.calibration = calibration
        self.check_voices = check_voices
        self.minimum_speech = MINIMUM_SPEECH if calibration is None else calibration.minimum_speech
        self._scorer = Scorer(model, calibration, cohort)
        self.fingerprint = self._scorer.fingerprint

    def enrol(
        self,
        waveforms: Sequence[np.ndarray],
        sampling_rate: int,
        combine: str = "mean",
        name: str | None = None,
    ) -> SpeakerProfile:
        """Make a profile of a speaker.

        Args:
            waveforms: recordings of the speaker, each `(L,)` in [-1, 1], of any lengths.
            sampling_rate: of all of them, in Hz; must be the model's.
            combine: `"mean"`, `"length_weighted"` or `"barycentre"`.
            name: of the speaker.

        Returns:
            The profile; its `warnings` say what is wrong with the recordings.

        Raises:
            ValueError: no recording, not enough speech in all of them, or what `verify` refuses.
        """
        self._check_rate(sampling_rate)
        recordings = self._listen([list(waveforms)], sampling_rate)[0]
        enrolled = self._enrol(recordings, combine, name)
        if enrolled.profile is None:
            raise ValueError(
                f"Not enough speech to enrol anybody: {sum(enrolled.seconds):.1f} s in {len(recordings)} recordings; "
                f"{self.minimum_speech:g} s are needed, and some ten are better."
            )
        return enrolled.profile

    def verify(
        self,
        enrolment: Sequence[np.ndarray] | SpeakerProfile,
        test: np.ndarray,
        sampling_rate: int,
        operating_point: str | OperatingPoint | None = None,
        threshold: float | None = None,
        combine: str = "mean",
    ) -> Verification:
        """Compare a recording with those of a speaker, or with a profile.

        Args:
            enrolment: recordings, each `(L,)` in [-1, 1], or a profile.
            test: `(L,)`.
            sampling_rate: of all of them, in Hz; must be the model's.
            operating_point: a name of the calibration's, or one of your own; None is the calibration's first.
            threshold: decide on the score instead; for models that nobody calibrated, or on one's own authority.
            combine: of the enrolment recordings; see the module `enrolment`.

        Raises:
            ValueError: a recording that is not one-dimensional or not floating point, or holds NaN or infinite samples;
                no recording; another sampling rate; a profile of another model; an operating point that is not there;
                an operating point and a threshold. Silence and short recordings are no error.
        """
        return self.verify_pairs([(enrolment, test)], sampling_rate, operating_point, threshold, combine)[0]

    def verify_pairs(
        self,
        pairs: Sequence[tuple[Sequence[np.ndarray] | SpeakerProfile, np.ndarray]],
        sampling_rate: int,
        operating_point: str | OperatingPoint | None = None,
        threshold: float | None = None,
        combine: str = "mean",
    ) -> list[Verification]:
        """As `verify`, for many pairs; each distinct recording is measured and embedded once, batched by length."""
        self._check_rate(sampling_rate)
        decider = self._decider(operating_point, threshold)
        for enrolment, _ in pairs:
            if isinstance(enrolment, SpeakerProfile):
                enrolment.check_model(self.fingerprint)
        groups = [[*([] if isinstance(e, SpeakerProfile) else e), test] for e, test in pairs]
        heard = self._listen(groups, sampling_rate)
        sides = [
            (
                _from_profile(enrolment)
                if isinstance(enrolment, SpeakerProfile)
                else self._enrol(recordings[:-1], combine, None),
                recordings[-1],
            )
            for (enrolment, _), recordings in zip(pairs, heard, strict=True)
        ]
        return self._answers(sides, decider)

    def _check_rate(self, sampling_rate: int) -> None:
        if sampling_rate != self.model.config.sampling_rate:
            raise ValueError(
                f"This model works at {self.model.config.sampling_rate} Hz, the audio has {sampling_rate} Hz. Resample "
                "it first, for example with torchaudio.functional.resample."
            )

    def _listen(self, groups: list[list[np.ndarray]], sampling_rate: int) -> list[list[Recording]]:
        # Without a calibration nothing says how unlike the pieces of one voice may be.
        return listen(self.model, groups, sampling_rate, self.check_voices and self.calibration is not None)

    def _decider(self, operating_point: str | OperatingPoint | None, threshold: float | None) -> "_Decider":
        if threshold is not None:
            if operating_point is not None:
                raise ValueError(
                    f"Give operating_point ({operating_point!r}, a threshold on the log-likelihood ratio) or threshold "
                    f"({threshold}, on the score), not both."
                )
            if not is_number(threshold):
                raise ValueError(f"threshold must be a finite number, got {threshold!r}.")
            return _Decider(None, float(threshold))
        if self.calibration is None:
            if operating_point is not None:
                name = operating_point if isinstance(operating_point, str) else operating_point.name
                raise ValueError(
                    f"There is no operating point {name!r}: this model is not calibrated. Calibrate it (`hamspk "
                    "calibrate`), or give threshold=, on the score."
                )
            return _Decider(None, None)
        if isinstance(operating_point, OperatingPoint):
            return _Decider(operating_point, None)
        return _Decider(self.calibration.operating_point(operating_point), None)

    def _combine(self, embeddings: Tensor, combine: str, seconds: Sequence[float]) -> Tensor:
        config = self.model.config
        curvature = 1.0 if config.curvature is None else float(config.curvature)
        return combine_embeddings(embeddings, combine, seconds, config.projection, curvature, float(config.clip_radius))

    def _enrol(self, recordings: list[Recording], combine: str, name: str | None) -> "_Enrolled":
        if not recordings:
            raise ValueError("An enrolment needs at least one recording; got none.")
        labels = [_label(position, len(recordings)) for position in range(len(recordings))]
        seconds = [recording.measures.speech for recording in recordings]
        used = [i for i, recording in enumerate(recordings) if recording.embedding is not None]
        if sum(seconds[i] for i in used) < self.minimum_speech:
            return _Enrolled(None, recordings, seconds, [])
        warnings = [
            f"{labels[i]} was left out: it holds {seconds[i]:.1f} s of speech."
            for i in range(len(recordings))
            if i not in used
        ]
        for i in used:
            # Several short utterances make a long enrolment.
            sentences = warn_of(recordings[i], labels[i], with_length=len(used) == 1)
            warnings += [*sentences, *warn_of_voices(recordings[i], labels[i], self._scorer)]
        embeddings = torch.stack([e for i in used if (e := recordings[i].embedding) is not None])
        spoken = [seconds[i] for i in used]
        qualities = [quality_of(recordings[i], self.model) for i in used]
        named = [labels[i] for i in used]
        # What is left out is weighed alike, so that the weights need not be told of it.
        way = "mean" if combine == "length_weighted" else combine
        warnings += warn_of_cohesion(
            embeddings, qualities, named, lambda part: self._combine(part, way, ()), self._scorer
        )
        warnings += warn_of_copies([recordings[i] for i in used], named)
        quality = combine_qualities(qualities)
        profile = SpeakerProfile(
            name=name,
            embedding=self._combine(embeddings, combine, spoken),
            seconds=tuple(spoken),
            snr_db=float(quality.snr_db),
            magnitude=float(quality.magnitude),
            combine=combine,
            fingerprint=self.fingerprint,
            model_id=_model_id(self.model.config.name_or_path),
            revision=getattr(self.model.config, "_commit_hash", None),
            recordings=tuple(recordings[i].digest for i in used),
            warnings=tuple(warnings),
        )
        return _Enrolled(profile, recordings, seconds, warnings)

    def _answers(self, sides: "list[tuple[_Enrolled, Recording]]", decider: "_Decider") -> list[Verification]:
        enough = [
            i
            for i, (enrolled, test) in enumerate(sides)
            if enrolled.profile is not None
            and test.embedding is not None
            and test.measures.speech >= self.minimum_speech
        ]
        scores = self._score([sides[i] for i in enough]) if enough else None
        place = {i: row for row, i in enumerate(enough)}
        return [
            self._answer(*side, decider, None if i not in place or scores is None else _row(scores, place[i]))
            for i, side in enumerate(sides)
        ]

    def _score(self, sides: "list[tuple[_Enrolled, Recording]]") -> Scores:
        profiles = [enrolled.profile for enrolled, _ in sides if enrolled.profile is not None]
        tests = [test.embedding for _, test in sides if test.embedding is not None]
        enrolment = torch.stack([profile.embedding for profile in profiles]).to(self.model.device)
        return self._scorer.scores(
            enrolment,
            torch.stack(tests),
            [profile.quality for profile in profiles],
            [quality_of(test, self.model) for _, test in sides],
        )

    def _answer(
        self, enrolled: "_Enrolled", test: Recording, decider: "_Decider", scores: "_PairScores | None"
    ) -> Verification:
        if scores is None:
            return self._refusal(enrolled, test)
        warnings = [*enrolled.warnings, *warn_of(test, "The test"), *warn_of_voices(test, "The test", self._scorer)]
        warnings += self._warn_of_pair(enrolled, test)
        threshold, name, decision = decider.threshold, None, None
        compared: float | None = scores.raw
        if decider.point is not None:
            threshold, name, compared = decider.point.threshold, decider.point.name, scores.log_likelihood_ratio
        if threshold is not None and compared is not None:
            decision = SAME if compared >= threshold else DIFFERENT
        return Verification(
            score=scores.raw,
            normalised_score=scores.normalised,
            log_likelihood_ratio=scores.log_likelihood_ratio,
            decision=decision,
            operating_point=name,
            threshold=threshold,
            enrolment_speech=enrolled.seconds,
            test_speech=test.measures.speech,
            warnings=warnings,
        )

    def _refusal(self, enrolled: "_Enrolled", test: Recording) -> Verification:
        missing = []
        if enrolled.profile is None:
            missing.append(f"The enrolment holds {sum(enrolled.seconds):.1f} s of speech")
        if test.measures.speech < self.minimum_speech:
            missing.append(f"The test holds {test.measures.speech:.1f} s of speech")
        warnings = [f"{sentence}; {self.minimum_speech:g} s are needed for a decision." for sentence in missing]
        return Verification(
            None, None, None, NOT_ENOUGH_SPEECH, None, None, enrolled.seconds, test.measures.speech, warnings
        )

    def _warn_of_pair(self, enrolled: "_Enrolled", test: Recording) -> list[str]:
        warnings, profile = [], enrolled.profile
        same = [
            _label(i, len(enrolled.recordings))
            for i, recording in enumerate(enrolled.recordings)
            if is_same_recording(recording, test)
        ]
        if not same and profile is not None and test.digest in profile.recordings:
            same = ["A recording of the profile"]
        for label in same:
            warnings.append(f"{label} and the test are the same recording: that they agree says nothing of a speaker.")
        calibration = self.calibration
        if calibration is None or profile is None or profile.utterances == calibration.enrolment_utterances:
            return warnings
        if "log_enrolment_utterances" not in calibration.weights:
            warnings.append(
                f"The enrolment has {profile.utterances} recordings, the calibration was measured with "
                f"{calibration.enrolment_utterances}: the log-likelihood ratio is less exact."
            )
        return warnings


class _PairScores(NamedTuple):
    raw: float
    normalised: float | None
    log_likelihood_ratio: float | None


def _row(scores: Scores, row: int) -> _PairScores:
    return _PairScores(*(None if column is None else float(column[row]) for column in scores))  # pyright: ignore


def _from_profile(profile: SpeakerProfile) -> _Enrolled:
    return _Enrolled(profile, [], list(profile.seconds), list(profile.warnings))


def _label(position: int, count: int) -> str:
    return "The enrolment" if count == 1 else f"Enrolment recording {position + 1}"


def _model_id(name: str | None) -> str | None:
    """Where a model came from, without the folders of this machine."""
    return (os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name) if name else None


@dataclass(frozen=True)
class Candidate:
    """An enrolled speaker, compared with a recording.

    Attributes:
        name: of the speaker.
        score: similarity of the embeddings, larger is more alike.
        normalised_score: with the cohort; None where the calibration asks for none.
        log_likelihood_ratio: natural logarithm; None where the model is not calibrated.
    """

    name: str
    score: float
    normalised_score: float | None
    log_likelihood_ratio: float | None


@dataclass(frozen=True)
class Identification:
    """The answer.

    Attributes:
        speaker: name of the enrolled speaker; None unless the decision is `IDENTIFIED`.
        decision: `IDENTIFIED`, `UNKNOWN`, `AMBIGUOUS` (one of the enrolled, but the runner-up is too near),
            `NOT_ENOUGH_SPEECH`; None where nobody calibrated the model or gave a threshold.
        candidates: the best, best first.
        enrolled_ratio: natural log-likelihood ratio of "one of the enrolled" to "nobody of them"; None where the model
            is not calibrated.
        operating_point: its name; None where a threshold was given, or nothing was decided.
        threshold: of `enrolled_ratio`, or of the best score where the caller gave it.
        margin: that the best must have over the runner-up, in log-likelihood ratios or in scores likewise.
        enrolled: how many speakers were compared.
        test_speech: seconds of speech of the recording.
        warnings: sentences.
    """

    speaker: str | None
    decision: str | None
    candidates: list[Candidate]
    enrolled_ratio: float | None
    operating_point: str | None
    threshold: float | None
    margin: float | None
    enrolled: int
    test_speech: float
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


class _Rule(NamedTuple):
    """What decides: a threshold on the ratio (with the name of its operating point) or on the score, and the margin."""

    on_ratio: bool
    threshold: float | None
    name: str | None
    margin: float


class SpeakerIdentifier:
    """Identifies among enrolled speakers with one model, whose weights must not change meanwhile.

    Args:
        model: embeds and compares.
        profiles: at least one, each with a name of its own.
        calibration: turns scores into log-likelihood ratios; None for scores alone.
        cohort: for the score normalisation that the calibration was measured with.
        check_voices: look for several voices in long recordings; about doubles the time.

    Raises:
        ValueError: no profile, a profile without a name or with that of another, or a profile, calibration or cohort of
            another model.
    """

    def __init__(
        self,
        model: SpeakerModel,
        profiles: Sequence[SpeakerProfile],
        calibration: Calibration | None = None,
        cohort: Cohort | None = None,
        check_voices: bool = True,
    ):
        self.model = model
        self.calibration = calibration
        self.check_voices = check_voices
        self.minimum_speech = MINIMUM_SPEECH if calibration is None else calibration.minimum_speech
        self._scorer = Scorer(model, calibration, cohort)
        if not profiles:
            raise ValueError("Nobody is enrolled: give at least one profile.")
        for profile in profiles:
            profile.check_model(self._scorer.fingerprint)
        self.names = [profile.name for profile in profiles if profile.name is not None]
        if len(self.names) < len(profiles):
            raise ValueError(
                f"{len(profiles) - len(self.names)} of {len(profiles)} profiles have no name; enrol with one."
            )
        twice = sorted(name for name, number in Counter(self.names).items() if number > 1)
        if twice:
            raise ValueError(
                f"Several profiles are named {', '.join(twice)}: each would be the other's runner-up. Enrol a speaker "
                "once, from all recordings."
            )
        self.profiles = list(profiles)
        self._embeddings = torch.stack([profile.embedding for profile in profiles]).to(model.device)
        self._qualities = [profile.quality for profile in profiles]

    def identify(
        self,
        waveforms: Sequence[np.ndarray],
        sampling_rate: int,
        operating_point: str | OperatingPoint | None = None,
        threshold: float | None = None,
        margin: float | None = None,
        candidates: int = CANDIDATES,
    ) -> list[Identification]:
        """Say of each recording whose it is.

        Args:
            waveforms: recordings, each `(L,)` in [-1, 1], each of one speaker.
            sampling_rate: of all of them, in Hz; must be the model's.
            operating_point: its prior is the probability that the speaker is any of the enrolled; a name of the
                calibration's, None is its first.
            threshold: decide on the score of the best instead; for models that nobody calibrated.
            margin: at least 0, that the best must have over the runner-up: of log-likelihood ratios (default log 3), or
                of scores where `threshold` is given (default 0).
            candidates: how many the answer names at most.

        Raises:
            ValueError: another sampling rate, a recording that is not one-dimensional or not floating point, or holds
                NaN or infinite samples, or a way to decide that does not exist. Silence is no error.
        """
        if sampling_rate != self.model.config.sampling_rate:
            raise ValueError(
                f"This model works at {self.model.config.sampling_rate} Hz, the audio has {sampling_rate} Hz. Resample "
                "it first, for example with torchaudio.functional.resample."
            )
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}.")
        rule = self._rule(operating_point, threshold, margin)
        with_pieces = self.check_voices and self.calibration is not None
        heard = listen(self.model, [list(waveforms)], sampling_rate, with_pieces)[0]
        return [self._answer(recording, rule, candidates) for recording in heard]

    def _rule(
        self, operating_point: str | OperatingPoint | None, threshold: float | None, margin: float | None
    ) -> _Rule:
        if margin is not None and not (is_number(margin) and margin >= 0):
            raise ValueError(f"margin must be a number of at least 0, got {margin!r}.")
        if threshold is not None:
            if operating_point is not None:
                raise ValueError("Give operating_point or threshold, not both.")
            if not is_number(threshold):
                raise ValueError(f"threshold must be a finite number, got {threshold!r}.")
            return _Rule(False, float(threshold), None, NO_MARGIN if margin is None else margin)
        if self.calibration is None:
            if operating_point is not None or margin is not None:
                raise ValueError(
                    "This model is not calibrated: it has no operating point, and a margin alone refuses nobody. "
                    "Calibrate it (`hamspk calibrate`), or give threshold=, on the score."
                )
            return _Rule(False, None, None, NO_MARGIN)
        point = operating_point
        if not isinstance(point, OperatingPoint):
            point = self.calibration.operating_point(point)
        return _Rule(True, point.threshold, point.name, LEAST_MARGIN if margin is None else margin)

    def _answer(self, recording: Recording, rule: _Rule, candidates: int) -> Identification:
        speech, count = recording.measures.speech, len(self.profiles)
        if recording.embedding is None or speech < self.minimum_speech:
            warning = f"The recording holds {speech:.1f} s of speech; {self.minimum_speech:g} s are needed to decide."
            return Identification(None, NOT_ENOUGH_SPEECH, [], None, None, None, None, count, speech, [warning])
        found = self._scorer.scores(
            self._embeddings,
            recording.embedding.expand(count, -1),
            self._qualities,
            [quality_of(recording, self.model)] * count,
        )
        ratios = found.log_likelihood_ratio
        compared = ratios if rule.on_ratio and ratios is not None else found.raw
        # The first of equals, so that the answer is always the same.
        order = np.argsort(-compared, kind="stable")
        best = int(order[0])
        enrolled_ratio = None if ratios is None else float(np.logaddexp.reduce(ratios) - math.log(count))
        decision = None
        if rule.threshold is not None:
            evidence = enrolled_ratio if rule.on_ratio and enrolled_ratio is not None else float(compared[best])
            decision = IDENTIFIED if evidence >= rule.threshold else UNKNOWN
            if decision == IDENTIFIED and count > 1 and compared[best] - compared[order[1]] < rule.margin:
                decision = AMBIGUOUS
        return Identification(
            speaker=self.names[best] if decision == IDENTIFIED else None,
            decision=decision,
            candidates=[self._candidate(found, int(row)) for row in order[:candidates]],
            enrolled_ratio=enrolled_ratio,
            operating_point=rule.name,
            threshold=rule.threshold,
            margin=None if rule.threshold is None else rule.margin,
            enrolled=count,
            test_speech=speech,
            warnings=self._warnings(recording),
        )

    def _candidate(self, found: Scores, row: int) -> Candidate:
        return Candidate(self.names[row], *(None if column is None else float(column[row]) for column in found))  # pyright: ignore

    def _warnings(self, recording: Recording) -> list[str]:
        warnings = [*warn_of(recording, "The recording"), *warn_of_voices(recording, "The recording", self._scorer)]
        for profile in self.profiles:
            if recording.digest in profile.recordings:
                warnings.append(
                    f"{profile.name} was enrolled with this very recording: that they agree says nothing of a speaker."
                )
        return warnings


class SpeakerComparison(nn.Module):
    """Embedding and scoring, mixed into the models: what all of them do alike once they are trained."""

    config: HamSpkConfig
    device: torch.device
    base_model: nn.Module
    calibration: Calibration | None = None
    cohort: Cohort | None = None

    def embed(
        self,
        waveforms: Sequence[np.ndarray | Tensor | Sequence[float]],
        sampling_rate: int,
        batch_seconds: float = BATCH_SECONDS,
    ) -> Tensor:
        """Embed utterances of any lengths, in evaluation mode, batched by length.

        Args:
            waveforms: mono utterances, each `(L,)` in [-1, 1].
            sampling_rate: of all of them, in Hz; must be the model's.
            batch_seconds: padded audio of one forward pass, in seconds.

        Returns:
            `(len(waveforms), D)` float32 on the model's device, in the order given. An embedding does not depend on the
            others.

        Raises:
            ValueError: another sampling rate, a waveform that is not one-dimensional, shorter than 0.1 s, of integers,
                silent, or that holds NaN or infinite samples; the message names its position.
        """
        if sampling_rate != self.config.sampling_rate:
            raise ValueError(
                f"This model works at {self.config.sampling_rate} Hz, the audio has {sampling_rate} Hz. Resample it "
                "first, for example with torchaudio.functional.resample."
            )
        tensors = [check_waveform(waveform, i, sampling_rate) for i, waveform in enumerate(waveforms)]
        sizes = [tensor.shape[0] for tensor in tensors]
        embeddings = torch.empty(len(tensors), self.config.embedding_size, device=self.device)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for batch in length_batches(sizes, int(batch_seconds * sampling_rate)):
                    lengths = torch.tensor([sizes[i] for i in batch])
                    values = nn.utils.rnn.pad_sequence([tensors[i] for i in batch], batch_first=True).to(self.device)
                    mask = None
                    if lengths[0] != lengths[-1]:
                        mask = length_mask(lengths, values.shape[1]).to(self.device)
                    embeddings[batch] = self.base_model(values, attention_mask=mask).embeddings.float()
        finally:
            self.train(was_training)
        return embeddings

    def score(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """Score pairs of embeddings, row by row, as the configuration says (`similarity`); larger is more alike.

        Args:
            enrolment: `(..., D)`.
            test: `(..., D)`.

        Returns:
            `(...)`: the cosine, or minus the hyperbolic distance.
        """
        return score(enrolment, test, **self._scoring())

    def score_matrix(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """Score all of `enrolment` `(..., B, D)` against all of `test` `(..., K, D)`: `(..., B, K)`."""
        return score_matrix(enrolment, test, **self._scoring())

    def magnitude(self, embeddings: Tensor) -> Tensor:
        """Distance of embeddings `(..., D)` from the origin, `(...)`: their norm, or their hyperbolic radius."""
        return magnitude(embeddings, **self._scoring())

    def fingerprint(self) -> str:
        """What this model is: the same for the same weights, with or without head, in float32 or bfloat16.

        Returns:
            SHA-256, in hexadecimal, over name, shape and values, rounded to bfloat16, of the parameters and buffers
            that make the embedding. Computed at each call, as weights may change; 0.1 s for 20 million on a CPU. A
            float16 or quantised load has rounded otherwise and has another fingerprint.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.base_model.state_dict().items()):
            # Counters of batches do not enter an embedding.
            if tensor.is_floating_point():
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                values = tensor.detach().to(torch.bfloat16).contiguous().cpu()
                digest.update(values.view(torch.int16).numpy())
        return digest.hexdigest()

    def verifier(self, check_voices: bool = True) -> SpeakerVerifier:
        """What answers whether recordings are of one speaker, with the calibration and the cohort of this model.

        Raises:
            ValueError: they are of other weights, for example of those before further training.
        """
        return SpeakerVerifier(self, self.calibration, self.cohort, check_voices)

    def identifier(self, profiles: Sequence[SpeakerProfile], check_voices: bool = True) -> SpeakerIdentifier:
        """What answers who of the enrolled speakers a recording is of, if any.

        Raises:
            ValueError: no profile, a profile without a name of its own, or anything of another model.
        """
        return SpeakerIdentifier(self, profiles, self.calibration, self.cohort, check_voices)

    def _scoring(self) -> dict:
        config = self.config
        return {
            "similarity": config.similarity,
            "projection": config.projection,
            "curvature": config.curvature,
            "clip_radius": config.clip_radius,
        }
