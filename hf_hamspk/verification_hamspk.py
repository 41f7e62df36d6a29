"""Verification and identification: decisions about recordings, with warnings if a decision is unreliable.

`SpeakerVerifier` decides whether two recordings are of the same speaker. It treats difficult recordings as follows:

- Silence, steady noise, hum, clicks, or too little speech (by default less than 1 s): the decision is "not enough
  speech". No score is returned, so that it cannot be compared with a threshold by mistake.
- Two people who take turns: a decision, with a warning if the model is calibrated and the recording is long enough
  (see `lowest_piece_ratio`). The warning does not replace diarisation.
- Two people who speak at the same time: if the model has a detector (`OverlapDetector`), a decision with a warning, or
  on request the decision "several voices" without a score. Otherwise they are not detected.
- The same recording twice: a decision, nearly always "same speaker", with a warning that it proves nothing.
- Clipped recordings: a decision, with a warning that contains the share of clipped samples.

Without a calibration and without a threshold, only a score is returned.

`SpeakerIdentifier` decides which enrolled speaker, if any, is speaking. The best score grows with the number of
enrolled speakers even if none of them is speaking, so a first decision is whether the speaker is enrolled. Given
the log-likelihood ratios `l_i` of `N` enrolled speakers with equal priors, the likelihood ratio of "one of the enrolled
speakers" to "none of them" is the mean of `exp(l_i)`. The logarithm of this ratio is compared with the threshold of the
operating point. If candidate `i` is far better than the others, the logarithm is about `l_i - log N`. If the speaker is
enrolled, the margin between the two best candidates decides whether the best one is named.

Symbols in shapes: `L` samples, `N` recordings, utterances or enrolled speakers, `D` embedding size.
"""

import functools
import hashlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .audio_hamspk import (
    CUSTOM,
    MINIMUM_SPEECH,
    Channel,
    InputError,
    Limits,
    Sound,
    SpeechMeasures,
    Vad,
    choose_channel,
    is_number,
    make_limits,
    measure_speech,
    read_sound,
    require_sound,
)
from .calibration_hamspk import (
    Calibration,
    Cohort,
    DecisionRule,
    OperatingPoint,
    Quality,
    Scorer,
    Scores,
    SpeakerModel,
    check_same_model,
    combine_qualities,
    decision_rule,
    load_array,
    save_array,
)
from .geometry_hamspk import COMBINATIONS, as_tensor, combine_embeddings

PROFILE_KIND, PROFILE_SUFFIX = "speaker profile", ".safetensors"
# Largest number of enrolment recordings: more of them hardly improve a profile.
MOST_ENROLMENTS = 100
# Seconds of speech below which an enrolment recording is ignored: it contains less than a word.
SHORTEST_UTTERANCE = 0.3
# Seconds of speech below which a decision has a warning.
SHORT_SPEECH = 3.0
# Signal-to-noise ratio in dB below which a decision has a warning.
LOW_SNR_DB = 10.0
# Correlation above which two recordings of equal length are the same one, up to level and rounding.
SAME_SAMPLES = 0.999
# Seconds of speech in each piece of a recording; the pieces are compared to detect several voices.
VOICE_SECONDS = 2.0
# Log-likelihood ratio of two pieces, corrected for the number of pairs, below which a warning reports two voices.
TWO_VOICES = -2.0
SAME, DIFFERENT, NOT_ENOUGH_SPEECH = "same speaker", "different speakers", "not enough speech"
# Decision about a recording in which two people speak at once, and the value of `check_voices` that asks for it.
SEVERAL_VOICES, REFUSE = "several voices", "refuse"
IDENTIFIED, UNKNOWN, AMBIGUOUS = "identified", "unknown speaker", "ambiguous"
# Least lead over the runner-up: a factor of 3 in likelihood ratios, or 0 for scores, which have no fixed scale.
LEAST_MARGIN, NO_MARGIN = math.log(3.0), 0.0
# Number of candidates in the answer of an identification.
CANDIDATES = 5


@dataclass(frozen=True, eq=False)
class SpeakerProfile:
    """Profile of an enrolled speaker. It is biometric data and must be protected.

    Example:
        ```python
        profile = model.enrol(["anna1.wav", "anna2.wav"], name="anna")
        profile.save("anna.safetensors")
        print(model.verify(profile, "test.wav").decision)
        ```

    Attributes:
        name: name of the speaker; None if not given.
        embedding: finite float32 embedding `(D,)` on the CPU.
        seconds: seconds of speech in each utterance.
        snr_db: mean signal-to-noise ratio of the utterances in dB.
        magnitude: mean distance of the utterances' embeddings from the origin.
        combine: method that combined the utterances; see `geometry_hamspk.COMBINATIONS`.
        fingerprint: fingerprint of the model.
        model_id: name of the model on the Hub, or the name of its folder.
        revision: commit of the model on the Hub; None for a folder.
        recordings: SHA-256 of the samples of each utterance, used to detect a test recording that was also enrolled.
        warnings: sentences about the enrolment. Profiles that version 0.1.0 saved have none.
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
        embedding = as_tensor(self.embedding)
        if embedding.ndim != 1 or not bool(torch.isfinite(embedding).all()):
            raise ValueError(f"A profile needs one finite embedding (D,), got shape {tuple(embedding.shape)}.")
        numbers = (*self.seconds, self.snr_db, self.magnitude)
        if not self.seconds or not all(is_number(number) for number in numbers):
            raise ValueError(f"Expected at least one utterance, finite seconds, SNR and magnitude, got {numbers}.")
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine!r}.")
        object.__setattr__(self, "embedding", embedding.detach().to("cpu", torch.float32).contiguous())

    @property
    def utterances(self) -> int:
        """Number of utterances that were combined."""
        return len(self.seconds)

    @property
    def quality(self) -> Quality:
        """Quality measures of the enrolment, which a calibration can use."""
        return Quality(sum(self.seconds), self.snr_db, self.magnitude, self.utterances)

    def check_model(self, fingerprint: str) -> None:
        """Raise a ValueError if the profile was made by a model with another fingerprint."""
        whose = "This profile" if self.name is None else f"The profile of {self.name!r}"
        model = "" if self.model_id is None else f" (model {self.model_id})"
        check_same_model(self.fingerprint, fingerprint, whose + model, "enrol the speaker again")

    def save(self, path: str | os.PathLike) -> None:
        """Write the profile to a safetensors file with the embedding, the other fields and a checksum."""
        described = {key: x for key, x in vars(self).items() if key not in ("embedding", "warnings")}
        description = described | {"kind": PROFILE_KIND} | ({"warnings": self.warnings} if self.warnings else {})
        save_array(path, "embedding", self.embedding.numpy(), description)

    @classmethod
    def load(cls, path: str | os.PathLike, fingerprint: str | None = None) -> "SpeakerProfile":
        """Read a saved profile; raise a ValueError if it is damaged or has another fingerprint than `fingerprint`."""
        array, description = load_array(path, "embedding")
        warnings = description.setdefault("warnings", [])
        expected = {one.name for one in fields(cls)} - {"embedding"}
        if description.pop("kind", None) != PROFILE_KIND or description.keys() != expected:
            raise ValueError(f"{os.fspath(path)} is not a profile. It has the fields {sorted(description)!s:.200}.")
        try:
            if not isinstance(warnings, list) or not all(isinstance(x, str) and x.isprintable() for x in warnings):
                raise ValueError("Its warnings are not a list of printable sentences.")
            values: Any = description | {key: tuple(description[key]) for key in ("seconds", "recordings", "warnings")}
            profile = cls(embedding=torch.from_numpy(np.array(array)), **values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is not a speaker profile. {str(error)[:400]}") from error
        if fingerprint is not None:
            profile.check_model(fingerprint)
        return profile


def enrolment_warnings(profile: SpeakerProfile) -> list[str]:
    """Return the warnings of a profile, each with a prefix that says that it is about the enrolment."""
    when = "At the enrolment" if profile.name is None else f"At the enrolment of {profile.name}"
    return [f"{when}: {warning}" for warning in profile.warnings]


class MeasuredRecording(NamedTuple):
    """A recording `samples` `(L,)` with the SHA-256 of the samples, its measurements, and the warnings of `read_sound`.

    The embedding `(D,)` is None if there is too little speech. The embeddings `(N, D)` of consecutive pieces are None
    if there are fewer than two pieces, or if they were not requested. `overlap` is the result of an `OverlapDetector`.
    """

    digest: str
    samples: np.ndarray
    measures: SpeechMeasures
    embedding: Tensor | None
    pieces: Tensor | None
    warnings: list[str]
    overlap: float = 0.0

    def quality(self, model: SpeakerModel) -> Quality:
        """Return the quality measures of the recording, which a calibration can use."""
        if self.embedding is None:
            raise ValueError("The recording has too little speech for an embedding and for quality measures.")
        return Quality(self.measures.speech, self.measures.snr_db, float(model.magnitude(self.embedding)))


def read_recording(
    source: Any, rate: int, label: str, limits: Limits | None, sampling_rate: int | None, strict: bool = False
) -> Sound:
    """Read a recording with `read_sound`. If `source` is already a `Sound`, it is returned unchanged."""
    # `isinstance` would fail: an installed package and the code in a model's folder have different `Sound` classes.
    if not (hasattr(source, "waveform") and hasattr(source, "warnings")):
        return read_sound(source, rate, label, limits, sampling_rate, strict)
    if strict:
        require_sound(source.waveform, rate, label)
    return source


def read_enrolment_side(
    source: Any, rate: int, limits: Limits | None = None, sampling_rate: int | None = None
) -> "list[Sound] | SpeakerProfile":
    """Read the enrolment of a pair: a recording, a list of recordings, a profile, or the path of a profile."""
    if hasattr(source, "check_model"):
        return source
    is_path = isinstance(source, str | os.PathLike) and str(source).endswith(PROFILE_SUFFIX)
    if is_path and make_limits(limits).remote:
        return SpeakerProfile.load(source)
    several = list(source) if isinstance(source, list | tuple) else [source]
    if not 0 < len(several) <= MOST_ENROLMENTS:
        raise InputError(f"An enrolment needs at least one recording and at most {MOST_ENROLMENTS}, got {len(several)}")
    return [
        read_recording(one, rate, _enrolment_label(position, len(several)), limits, sampling_rate)
        for position, one in enumerate(several)
    ]


def measure_and_embed(
    model: SpeakerModel, groups: Sequence[Sequence[Sound]], with_pieces: bool, vad: Vad = None
) -> list[list[MeasuredRecording]]:
    """Return measurements and embedding of each recording of each group; identical recordings are embedded once.

    If `with_pieces` is True, the pieces of a recording are embedded as well; see `_spoken_pieces`.
    """
    keys = [[hashlib.sha256(sound.waveform.tobytes()).hexdigest() for sound in group] for group in groups]
    sounds = dict(zip(itertools.chain(*keys), itertools.chain(*groups), strict=True))
    measures = {key: measure_speech(sound.waveform, sound.sampling_rate, vad) for key, sound in sounds.items()}
    spoken = [key for key, found in measures.items() if found.speech >= SHORTEST_UTTERANCE]
    pieces = {key: _spoken_pieces(sounds[key], measures[key], vad) if with_pieces else [] for key in spoken}
    batch = [sounds[key].waveform for key in spoken] + [piece for key in spoken for piece in pieces[key]]
    embedded = model.embed_waveforms(batch)
    embeddings = dict(zip(spoken, embedded, strict=False))
    parts = embedded[len(spoken) :].split([len(pieces[key]) for key in spoken])
    of_pieces = {key: part for key, part in zip(spoken, parts, strict=True) if len(part)}

    def measured(key: str, sound: Sound) -> MeasuredRecording:
        found = measures[key], embeddings.get(key), of_pieces.get(key)
        return MeasuredRecording(key, sound.waveform, *found, sound.warnings)

    return [[measured(*pair) for pair in zip(own, group, strict=True)] for own, group in zip(keys, groups, strict=True)]


def _spoken_pieces(sound: Sound, measures: SpeechMeasures, vad: Vad) -> list[np.ndarray]:
    """Cut a recording into pieces with about 2 s of speech each; return an empty list if fewer than two have speech."""
    count = int(measures.speech / VOICE_SECONDS)
    if count < 2:
        return []
    pieces = np.array_split(sound.waveform, count)
    seconds = [measure_speech(piece, sound.sampling_rate, vad).speech for piece in pieces]
    spoken = [piece for piece, speech in zip(pieces, seconds, strict=True) if speech >= VOICE_SECONDS / 2]
    return spoken if len(spoken) > 1 else []


def is_same_recording(first: MeasuredRecording, second: MeasuredRecording) -> bool:
    """Return whether two recordings have the same samples, apart from level and rounding."""
    if first.digest == second.digest:
        return True
    if len(first.samples) != len(second.samples) or first.measures.speech == 0 or second.measures.speech == 0:
        return False
    left, right = first.samples.astype(np.float64), second.samples.astype(np.float64)
    return float(np.dot(left, right)) > SAME_SAMPLES * float(np.sqrt(np.dot(left, left) * np.dot(right, right)))


def quality_warnings(recording: MeasuredRecording, label: str, with_length: bool = True) -> list[str]:
    """Return warnings about noise in a recording and, if `with_length`, about too little speech."""
    measures, sentences = recording.measures, []
    if with_length and measures.speech < SHORT_SPEECH:
        # Otherwise, 2.96 s would be printed as 3.0 s.
        seconds = min(measures.speech, SHORT_SPEECH - 0.1)
        sentences.append(f"{label} has {seconds:.1f} s of speech. Errors are more frequent below {SHORT_SPEECH:g} s.")
    if measures.snr_db < LOW_SNR_DB:
        noisy = f"{label} is noisy: the speech is {measures.snr_db:.0f} dB above the noise."
        sentences.append(f"{noisy} Errors are more frequent below {LOW_SNR_DB:g} dB.")
    if measures.is_whispered:
        sentences.append(f"{label} has no voiced speech. It is whispered, or noise, so errors are more frequent.")
    return sentences


def pieces_warnings(seconds: float, label: str, longest: float) -> list[str]:
    """Return a warning if a recording is longer than `longest` seconds and is therefore embedded in pieces."""
    if seconds <= longest:
        return []
    return [f"{label} lasts {seconds:.0f} s. It was embedded in pieces of at most {longest:g} s, which were averaged."]


def overlap_warnings(seconds: float, label: str) -> list[str]:
    """Return a warning if two people speak at once in a recording for `seconds`; empty if 0."""
    return [f"{label} contains two voices: two people speak at once for {seconds:.1f} s."] if seconds else []


def copy_warnings(recordings: Sequence[MeasuredRecording], labels: Sequence[str]) -> list[str]:
    """Return a warning for each recording that is the same as an earlier one."""
    sentences = []
    for i, recording in enumerate(recordings):
        first = next((j for j in range(i) if is_same_recording(recordings[j], recording)), None)
        if first is not None:
            sentences.append(f"{labels[i]} is the same recording as {labels[first].lower()} and adds no information.")
    return sentences


def cohesion_warnings(
    embeddings: Tensor,
    qualities: Sequence[Quality],
    labels: Sequence[str],
    combine: Callable[[Tensor], Tensor],
    scorer: Scorer,
) -> list[str]:
    """Return warnings about enrolment utterances that seem to be of another speaker than the others.

    Each of the embeddings `(N, D)` is compared with the combination of the others, and the two groups in which they
    differ most are compared with each other. Without a calibration, no threshold is known, and the list is empty.
    """
    count = len(labels)
    if scorer.calibration is None or count < 2:
        return []
    rest = [combine_qualities([*qualities[:i], *qualities[i + 1 :]]) for i in range(count)]
    fits = leave_one_out_scores(embeddings, combine, lambda *pair: torch.tensor(scorer.ratios(*pair, rest, qualities)))
    outside = [i for i, fit in enumerate(fits) if float(fit) < 0]
    groups, ratio = _compare_groups(embeddings, qualities, combine, scorer)
    if (ratio < 0 and outside not in groups) or (outside and (count == 2 or len(outside) > count / 2)):
        return [f"The {count} enrolment recordings do not fit each other and may be of several speakers. Check them."]
    said = "does not fit the other recordings and may be of another speaker. Listen to it."
    return [f"{labels[i]} {said}" for i in outside]


def _compare_groups(
    embeddings: Tensor, qualities: Sequence[Quality], combine: Callable[[Tensor], Tensor], scorer: Scorer
) -> tuple[list[list[int]], float]:
    """Divide the embeddings where they vary most; return both groups and their ratio, which is inf if one is single."""
    directions = F.normalize(embeddings, dim=-1)
    varying = directions - directions.mean(0)
    is_first = varying @ torch.linalg.svd(varying, full_matrices=False)[2][0] > 0
    # The larger group is the enrolment, so that the order of the recordings does not matter.
    groups = sorted((side.nonzero()[:, 0].tolist() for side in (is_first, ~is_first)), key=lambda g: (-len(g), g))
    if len(groups[1]) < 2:
        return groups, math.inf
    first, second = (combine(embeddings[group])[None] for group in groups)
    of = ([combine_qualities([qualities[i] for i in group])] for group in groups)
    return groups, scorer.ratios(first, second, *of).item()


def leave_one_out_scores(
    embeddings: Tensor, combine: Callable[[Tensor], Tensor], score: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the score `(N,)` of each embedding `(N, D)`, N at least 2, against the combination of the others."""
    count = embeddings.shape[0]
    if count < 2:
        raise ValueError(f"Leave-one-out scores need at least 2 utterances, got {count}.")
    others = [combine(torch.cat([embeddings[:i], embeddings[i + 1 :]])) for i in range(count)]
    return score(torch.stack(others), embeddings)


def lowest_piece_ratio(recording: MeasuredRecording, scorer: Scorer) -> float | None:
    """Return the smallest log-likelihood ratio of two pieces of a recording, plus the logarithm of the number of pairs.

    The smallest of many ratios is low by chance. Each piece contains about 2 s of speech. The ratio is low if two
    speakers take turns of several seconds in a recording of up to about 20 s. It does not reveal people who speak at
    the same time or in shorter turns. The result is None without a calibration or without two pieces.
    """
    pieces = recording.pieces
    if scorer.calibration is None or pieces is None:
        return None
    first, second = torch.triu_indices(len(pieces), len(pieces), 1).tolist()
    magnitudes = scorer.model.magnitude(pieces).tolist()
    of = [Quality(VOICE_SECONDS, recording.measures.snr_db, size) for size in magnitudes]
    ratios = scorer.ratios(pieces[first], pieces[second], [of[i] for i in first], [of[i] for i in second])
    return float(ratios.min()) + math.log(len(ratios))


@dataclass(frozen=True)
class Verification:
    """Result of a verification: whether two recordings are of the same speaker.

    Example:
        ```python
        answer = model.verify("enrolment.wav", "test.wav")
        print(answer.decision, answer.log_likelihood_ratio, answer.operating_point)
        print(answer.warnings)
        ```

    Attributes:
        score: similarity of the embeddings, larger for more similar voices; None if a recording is not compared.
        normalised_score: score after normalisation with the cohort; None if the calibration uses no cohort.
        log_likelihood_ratio: natural log-likelihood ratio; None if the model is not calibrated.
        decision: `SAME`, `DIFFERENT`, `NOT_ENOUGH_SPEECH` or `SEVERAL_VOICES`; None without a calibration and without a
            threshold.
        operating_point: name of the operating point; None if a threshold was given, or nothing was decided.
        threshold: smallest log-likelihood ratio (or score, if a threshold was given) for the decision "same speaker".
        enrolment_speech: seconds of speech of each enrolment recording.
        test_speech: seconds of speech of the test recording.
        warnings: sentences about the recordings and the comparison.
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
        """Return the fields as a dictionary that JSON can represent."""
        return asdict(self)


class _Enrolled(NamedTuple):
    """Enrolment of a pair: profile (None if it has too little speech) and recordings (empty if a profile was given)."""

    profile: SpeakerProfile | None
    recordings: list[MeasuredRecording]
    seconds: list[float]
    warnings: list[str]


def speech_detector(model: Any, calibration: Calibration | None) -> Vad:
    """Return `model.vad` or, if it is None, the detector that the calibration was measured with."""
    vad = getattr(model, "vad", None)
    if vad is not None or calibration is None or calibration.detector == CUSTOM:
        return vad
    return calibration.detector


class _CalibratedModel:
    """Base class of `SpeakerVerifier` and `SpeakerIdentifier`: a model with its calibration and cohort.

    The weights of the model must not change while the object is in use.

    Args:
        model, calibration, cohort: see `Scorer`.
        check_voices: whether to check recordings for several voices. The check uses the calibration, and the model's
            `overlap_detector` if it has one. It about doubles the time for long recordings. "refuse" also refuses
            recordings in which the detector finds two people who speak at once.
    """

    def __init__(
        self,
        model: SpeakerModel,
        calibration: Calibration | None = None,
        cohort: Cohort | None = None,
        check_voices: bool | str = True,
    ):
        self.model, self.rate = model, model.config.sampling_rate
        self.detector = getattr(model, "overlap_detector", None)
        if check_voices not in (True, False, REFUSE):
            raise InputError(f"check_voices must be True, False or {REFUSE!r}, got {check_voices!r}.")
        if check_voices == REFUSE and self.detector is None:
            missing = "--voices refuse (check_voices='refuse') needs an overlap detector, but the model has none."
            raise InputError(f"{missing} Store one beside the model with `hamspk convert FILE --into MODEL`.")
        self.calibration, self.check_voices = calibration, check_voices
        self.minimum_speech = MINIMUM_SPEECH if calibration is None else calibration.minimum_speech
        self.scorer = Scorer(model, calibration, cohort)
        self.fingerprint = self.scorer.fingerprint

    def _measure(self, groups: Sequence[Sequence[Sound]]) -> list[list[MeasuredRecording]]:
        # Without a calibration, no threshold separates the pieces of one voice from several voices.
        with_pieces = bool(self.check_voices) and self.calibration is not None
        found = measure_and_embed(self.model, groups, with_pieces, speech_detector(self.model, self.calibration))
        return self.detector.mark(found, self.rate) if self.detector is not None and self.check_voices else found

    def _has_enough(self, recording: MeasuredRecording) -> bool:
        return recording.embedding is not None and recording.measures.speech >= self.minimum_speech

    def _refuses(self, *recordings: MeasuredRecording) -> bool:
        return self.check_voices == REFUSE and any(recording.overlap for recording in recordings)

    def _warnings(self, recording: MeasuredRecording, label: str, with_length: bool = True) -> list[str]:
        sentences = [*recording.warnings, *quality_warnings(recording, label, with_length)]
        sentences += pieces_warnings(recording.measures.duration, label, self.model.config.longest_piece)
        ratio = lowest_piece_ratio(recording, self.scorer)
        sentences += overlap_warnings(recording.overlap, label)
        if ratio is not None and ratio < TWO_VOICES:
            said = "seems to contain several voices: parts of it do not sound like one speaker. Listen to it."
            sentences.append(f"{label} {said}")
        return sentences

    def _rule_warnings(self, rule: DecisionRule) -> list[str]:
        """Return warnings about a speech detector other than the calibration's, and about the operating point."""
        sentences, calibration, flaw = [], self.calibration, getattr(rule.point, "flaw", None)
        has_own = getattr(self.model, "vad", None) is not None
        if calibration is not None and has_own != (calibration.detector == CUSTOM):
            sentences.append(
                "The calibration was measured with another detector of speech (model.vad), so decisions are less "
                "reliable. Set model.vad to the detector of the calibration, or calibrate again."
            )
        return [*sentences, flaw] if flaw else sentences


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison: the scores of all pairs of recordings.

    Example:
        ```python
        comparison = model.compare(["a.wav", "b.wav", "c.wav"])
        print(comparison.scores[0, 1])
        print(comparison.warnings)
        ```

    Attributes:
        scores: score of each pair, `(N, N)` float64, larger for more similar voices; NaN if one of the two recordings
            has too little speech.
        log_likelihood_ratios: ratio of each pair, `(N, N)` float64, NaN as in `scores`; None without a calibration.
        speech: seconds of speech of each recording.
        warnings: sentences about problems of the recordings, which are numbered from 1.
    """

    scores: np.ndarray
    log_likelihood_ratios: np.ndarray | None
    speech: list[float]
    warnings: list[str]


class SpeakerVerifier(_CalibratedModel):
    """Verifier of pairs of recordings with one model; `model.verifier()` returns one."""

    def enrol(
        self,
        recordings: Sequence[Any],
        sampling_rate: int | None = None,
        combine: str = "mean",
        name: str | None = None,
        limits: Limits | None = None,
        channel: Channel = None,
    ) -> SpeakerProfile:
        """Create the profile of a speaker from recordings; its `warnings` describe problems of the recordings.

        Args:
            recordings: recordings of the speaker, in any form that `read_sound` accepts.
            name: name of the speaker.
            sampling_rate, combine, limits, channel: see `SpeakerModelMixin.verify`.

        Raises:
            ValueError: there is no recording, a recording cannot be used, they contain too little speech in all, or
                `check_voices` is "refuse" and two people speak at once in one of them.
        """
        sounds: Any = read_enrolment_side(list(recordings), self.rate, choose_channel(limits, channel), sampling_rate)
        measured = self._measure([sounds])[0]
        for position, recording in enumerate(measured):
            if self._refuses(recording):
                raise InputError(*overlap_warnings(recording.overlap, _enrolment_label(position, len(measured))))
        enrolled = self._enrol(measured, combine, name)
        if enrolled.profile is None:
            raise ValueError(
                f"Not enough speech to enrol a speaker: at least {self.minimum_speech:g} s are needed, got "
                f"{sum(enrolled.seconds):.1f} s in {len(enrolled.seconds)} recordings. Ten seconds are better."
            )
        return enrolled.profile

    def verify(self, enrolment: Any, test: Any, *options: Any, **named: Any) -> Verification:
        """Verify one pair; for the arguments see `verify_pairs`."""
        return self.verify_pairs([(enrolment, test)], *options, **named)[0]

    def verify_pairs(
        self,
        pairs: Iterable[tuple[Any, Any]],
        sampling_rate: int | None = None,
        operating_point: str | OperatingPoint | None = None,
        threshold: float | None = None,
        combine: str = "mean",
        limits: Limits | None = None,
        channel: Channel = None,
    ) -> list[Verification]:
        """Verify pairs; see `SpeakerModelMixin.verify`. Recordings are embedded in batches, each only once."""
        rule = decision_rule(self.calibration, operating_point, threshold)
        limits, read = choose_channel(limits, channel), []
        for enrolment, test in pairs:
            enrolled = read_enrolment_side(enrolment, self.rate, limits, sampling_rate)
            if not isinstance(enrolled, list):
                enrolled.check_model(self.fingerprint)
            read.append((enrolled, read_recording(test, self.rate, "The test", limits, sampling_rate)))
        measured = self._measure([[*(e if isinstance(e, list) else []), test] for e, test in read])
        sides = []
        for (enrolled, _), (*recordings, test) in zip(read, measured, strict=True):
            if isinstance(enrolled, list):
                sides.append((self._enrol(recordings, combine, None), test))
            else:
                sides.append((_Enrolled(enrolled, [], list(enrolled.seconds), enrolment_warnings(enrolled)), test))
        return self._answers(sides, rule)

    def compare(
        self,
        recordings: Iterable[Any],
        sampling_rate: int | None = None,
        limits: Limits | None = None,
        channel: Channel = None,
    ) -> Comparison:
        """Score all pairs of recordings; see `SpeakerModelMixin.compare`."""
        limits = choose_channel(limits, channel)
        numbered = ((one, f"Recording {number}") for number, one in enumerate(recordings, 1))
        sounds = [read_recording(one, self.rate, label, limits, sampling_rate) for one, label in numbered]
        measured, count = self._measure([sounds])[0], len(sounds)
        scores, ratios = (np.full((count, count), np.nan) for _ in range(2))
        rows = [i for i, recording in enumerate(measured) if self._has_enough(recording)]
        if rows:
            table = torch.stack([e for i in rows if (e := measured[i].embedding) is not None])
            qualities = [measured[i].quality(self.model) for i in rows]
            first, second = (axis.ravel().tolist() for axis in np.indices((len(rows), len(rows))))
            of_first, of_second = ([qualities[i] for i in axis] for axis in (first, second))
            found, place = self.scorer.scores(table[first], table[second], of_first, of_second), np.ix_(rows, rows)
            scores[place] = found.raw.reshape(len(rows), -1)
            if found.log_likelihood_ratio is not None:
                ratios[place] = found.log_likelihood_ratio.reshape(len(rows), -1)
        named = [(recording, f"Recording {number}") for number, recording in enumerate(measured, 1)]
        warnings = [sentence for recording, label in named for sentence in self._warnings(recording, label)]
        speech = [recording.measures.speech for recording in measured]
        return Comparison(scores, None if self.calibration is None else ratios, speech, warnings)

    def _combine(self, embeddings: Tensor, combine: str, seconds: Sequence[float]) -> Tensor:
        config = self.model.config
        curvature = 1.0 if config.curvature is None else float(config.curvature)
        return combine_embeddings(embeddings, combine, seconds, config.projection, curvature, float(config.clip_radius))

    def _enrol(self, recordings: list[MeasuredRecording], combine: str, name: str | None) -> _Enrolled:
        labels = [_enrolment_label(position, len(recordings)) for position in range(len(recordings))]
        seconds = [recording.measures.speech for recording in recordings]
        used = [i for i, recording in enumerate(recordings) if recording.embedding is not None]
        if sum(seconds[i] for i in used) < self.minimum_speech:
            return _Enrolled(None, recordings, seconds, [])
        ignored = [i for i in range(len(recordings)) if i not in used]
        warnings = [f"{labels[i]} was ignored: it has only {seconds[i]:.1f} s of speech." for i in ignored]
        for i in used:
            # Several short utterances together are long enough.
            warnings += self._warnings(recordings[i], labels[i], with_length=len(used) == 1)
        embeddings = torch.stack([e for i in used if (e := recordings[i].embedding) is not None])
        spoken, named = [seconds[i] for i in used], [labels[i] for i in used]
        qualities = [recordings[i].quality(self.model) for i in used]
        # Leave-one-out combinations are not weighted by length.
        unweighted = "mean" if combine == "length_weighted" else combine
        combined = functools.partial(self._combine, combine=unweighted, seconds=())
        warnings += cohesion_warnings(embeddings, qualities, named, combined, self.scorer)
        warnings += copy_warnings([recordings[i] for i in used], named)
        quality = combine_qualities(qualities)
        measured = tuple(spoken), float(quality.snr_db), float(quality.magnitude)
        config, digests = self.model.config, tuple(recordings[i].digest for i in used)
        origin = self.fingerprint, _model_id(config.name_or_path), getattr(config, "_commit_hash", None)
        embedding = self._combine(embeddings, combine, spoken)
        profile = SpeakerProfile(name, embedding, *measured, combine, *origin, digests, tuple(warnings))
        return _Enrolled(profile, recordings, seconds, warnings)

    def _answers(self, sides: list[tuple[_Enrolled, MeasuredRecording]], rule: DecisionRule) -> list[Verification]:
        whole = {i: (e.profile, t) for i, (e, t) in enumerate(sides) if e.profile is not None and self._has_enough(t)}
        scored = {}
        if whole:
            profiles, tests = zip(*whole.values(), strict=True)
            scores = self.scorer.scores(
                torch.stack([profile.embedding for profile in profiles]).to(self.model.device),
                torch.stack([test.embedding for test in tests]),
                [profile.quality for profile in profiles],
                [test.quality(self.model) for test in tests],
            )
            scored = {i: _score_row(scores, row) for row, i in enumerate(whole)}
        ones = enumerate(sides)
        return [self._answer(*one, rule, scored[i]) if i in scored else self._refusal(*one) for i, one in ones]

    def _answer(
        self, enrolled: _Enrolled, test: MeasuredRecording, rule: DecisionRule, scores: tuple[float, Any, Any]
    ) -> Verification:
        accepted, has_score = rule.accepts(scores[0], scores[2]), not self._refuses(*enrolled.recordings, test)
        answer = None if accepted is None else (SAME if accepted else DIFFERENT)
        decided = (*scores, answer, rule.name, rule.threshold)
        if not has_score:
            decided = (None, None, None, SEVERAL_VOICES, None, None)
        of_test = [*self._warnings(test, "The test"), *self._pair_warnings(enrolled, test)]
        warnings = [*enrolled.warnings, *of_test, *self._rule_warnings(rule)]
        return Verification(*decided, enrolled.seconds, test.measures.speech, warnings)

    def _refusal(self, enrolled: _Enrolled, test: MeasuredRecording) -> Verification:
        missing = []
        if enrolled.profile is None:
            missing.append(f"The enrolment has {sum(enrolled.seconds):.1f} s of speech")
        if test.measures.speech < self.minimum_speech:
            missing.append(f"The test has {test.measures.speech:.1f} s of speech")
        of_reader = [sentence for recording in (*enrolled.recordings, test) for sentence in recording.warnings]
        needed = [f"{sentence}; a decision needs at least {self.minimum_speech:g} s." for sentence in missing]
        seconds, speech = enrolled.seconds, test.measures.speech
        return Verification(None, None, None, NOT_ENOUGH_SPEECH, None, None, seconds, speech, [*needed, *of_reader])

    def _pair_warnings(self, enrolled: _Enrolled, test: MeasuredRecording) -> list[str]:
        profile, recordings, calibration = enrolled.profile, enrolled.recordings, self.calibration
        copies = [i for i, recording in enumerate(recordings) if is_same_recording(recording, test)]
        same = [_enrolment_label(i, len(recordings)) for i in copies]
        if not same and profile is not None and test.digest in profile.recordings:
            same = ["A recording of the profile"]
        warnings = [f"{label} and the test are the same recording, so the score proves nothing." for label in same]
        if calibration is None or profile is None or profile.utterances == calibration.enrolment_utterances:
            return warnings
        if "log_enrolment_utterances" not in calibration.weights:
            fitted = f"but the calibration was measured with {calibration.enrolment_utterances} per enrolment"
            less = "The log-likelihood ratio is less accurate."
            warnings.append(f"The enrolment has {profile.utterances} recordings, {fitted}. {less}")
        return warnings


def _score_row(scores: Scores, row: int) -> tuple[float, Any, Any]:
    """Return the raw score, normalised score and log-likelihood ratio of one pair; None if not computed."""
    raw, normalised, ratio = (None if column is None else float(column[row]) for column in scores)
    return cast(float, raw), normalised, ratio


def _enrolment_label(position: int, count: int) -> str:
    return "The enrolment" if count == 1 else f"Enrolment recording {position + 1}"


def _model_id(name: str | None) -> str | None:
    """Return the name of a model on the Hub unchanged, and of a local folder only its last part; None if unnamed."""
    return (os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name) if name else None


@dataclass(frozen=True)
class IdentificationCandidate:
    """Scores of a recording against the enrolled speaker `name`; for the other fields see `Verification`."""

    name: str
    score: float
    normalised_score: float | None
    log_likelihood_ratio: float | None


@dataclass(frozen=True)
class Identification:
    """Result of an identification: which enrolled speaker, if any, is speaking.

    Example:
        ```python
        profiles = [model.enrol(["anna1.wav"], name="anna"), model.enrol(["bert.wav"], name="bert")]
        answer = model.identify("test.wav", profiles)
        print(answer.decision, answer.speaker)
        ```

    Attributes:
        speaker: name of the enrolled speaker; None unless the decision is `IDENTIFIED`.
        decision: `IDENTIFIED`, `UNKNOWN`, `AMBIGUOUS` (an enrolled speaker, but the two best candidates are too
            close), `NOT_ENOUGH_SPEECH` or `SEVERAL_VOICES`; None without a calibration and without a threshold.
        candidates: best candidates, the best one first.
        enrolled_ratio: natural log-likelihood ratio of "one of the enrolled speakers" to "none of them"; None if the
            model is not calibrated.
        operating_point: name of the operating point; None if a threshold was given, or nothing was decided.
        threshold: threshold on `enrolled_ratio`, or on the best score if a threshold was given.
        margin: smallest lead over the second candidate for `IDENTIFIED`, in log-likelihood ratios or in scores.
        enrolled: number of enrolled speakers.
        test_speech: seconds of speech of the recording.
        warnings: sentences about the recording and the comparison.
    """

    speaker: str | None
    decision: str | None
    candidates: list[IdentificationCandidate]
    enrolled_ratio: float | None
    operating_point: str | None
    threshold: float | None
    margin: float | None
    enrolled: int
    test_speech: float
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can represent."""
        return asdict(self)


class SpeakerIdentifier(_CalibratedModel):
    """Identifier of the speakers of profiles with different names; `model.identifier(profiles)` returns one."""

    def __init__(
        self,
        model: SpeakerModel,
        profiles: Sequence[SpeakerProfile],
        calibration: Calibration | None = None,
        cohort: Cohort | None = None,
        check_voices: bool | str = True,
    ):
        super().__init__(model, calibration, cohort, check_voices)
        if not profiles:
            raise ValueError("Expected at least one profile, got none. Enrol a speaker first.")
        for profile in profiles:
            profile.check_model(self.fingerprint)
        self.names = [profile.name for profile in profiles if profile.name is not None]
        if len(self.names) < len(profiles):
            unnamed = len(profiles) - len(self.names)
            raise ValueError(f"{unnamed} of {len(profiles)} profiles have no name; give one when enrolling.")
        twice = ", ".join(sorted(name for name, number in Counter(self.names).items() if number > 1))
        if twice:
            raise ValueError(f"Several profiles are named {twice}. Enrol each speaker once, from all recordings.")
        self.profiles, self.enrolled = list(profiles), len(profiles)
        self._embeddings = torch.stack([profile.embedding for profile in profiles]).to(model.device)
        self._qualities = [profile.quality for profile in profiles]

    def identify(
        self,
        recordings: Sequence[Any],
        sampling_rate: int | None = None,
        operating_point: str | OperatingPoint | None = None,
        threshold: float | None = None,
        margin: float | None = None,
        candidates: int = CANDIDATES,
        limits: Limits | None = None,
        channel: Channel = None,
    ) -> list[Identification]:
        """Identify the speaker of each recording.

        Args:
            recordings: recordings of one speaker each, in any form that `read_sound` accepts.
            operating_point: see `SpeakerModelMixin.verify`; its prior is the probability that the speaker is enrolled.
            threshold: threshold on the best score, instead of an operating point.
            margin: smallest lead of the best candidate over the second, at least 0, in log-likelihood ratios (default
                log 3), or in scores if `threshold` is given (default 0).
            candidates: largest number of candidates in the answer.
            sampling_rate, limits, channel: see `SpeakerModelMixin.verify`.

        Raises:
            ValueError: a recording cannot be used, or the operating point does not exist. Silence is not an error.
        """
        if not is_number(candidates) or candidates != int(candidates) or candidates < 1:
            raise ValueError(f"candidates must be an integer of at least 1, got {candidates!r}.")
        if margin is not None and not (is_number(margin) and margin >= 0):
            raise ValueError(f"margin must be a finite number of at least 0, got {margin!r}.")
        rule = decision_rule(self.calibration, operating_point, threshold)
        if margin is not None and rule.threshold is None:
            raise ValueError(
                "This model is not calibrated, and a margin alone cannot reject unknown speakers. Calibrate it "
                "(`hamspk calibrate`), or give a threshold on the score."
            )
        least = margin if margin is not None else (NO_MARGIN if rule.point is None else LEAST_MARGIN)
        limits = choose_channel(limits, channel)
        sounds = [read_recording(one, self.rate, "The recording", limits, sampling_rate) for one in recordings]
        return [self._identify(recording, rule, least, int(candidates)) for recording in self._measure([sounds])[0]]

    def _identify(
        self, recording: MeasuredRecording, rule: DecisionRule, margin: float, candidates: int
    ) -> Identification:
        speech, count = recording.measures.speech, len(self.profiles)
        if recording.embedding is None or not self._has_enough(recording):
            warning = f"The recording has {speech:.1f} s of speech; a decision needs {self.minimum_speech:g} s or more."
            warnings = [warning, *recording.warnings]
            return Identification(None, NOT_ENOUGH_SPEECH, [], None, None, None, None, self.enrolled, speech, warnings)
        warnings = self._warnings(recording, "The recording")
        if self._refuses(recording):
            return Identification(None, SEVERAL_VOICES, [], None, None, None, None, self.enrolled, speech, warnings)
        copies, qualities = recording.embedding.expand(count, -1), [recording.quality(self.model)] * count
        found = self.scorer.scores(self._embeddings, copies, self._qualities, qualities)
        ratios = found.log_likelihood_ratio
        compared = found.raw if rule.point is None or ratios is None else ratios
        # Candidates with equal scores keep their order, so that the answer is deterministic.
        order = np.argsort(-compared, kind="stable")
        best = int(order[0])
        enrolled_ratio = None if ratios is None else float(np.logaddexp.reduce(ratios) - math.log(self.enrolled))
        accepted, decision = rule.accepts(float(found.raw[best]), enrolled_ratio), None
        if accepted is not None:
            is_near = count > 1 and compared[best] - compared[order[1]] < margin
            decision = (AMBIGUOUS if is_near else IDENTIFIED) if accepted else UNKNOWN
        explained = [sentence for row in order[:candidates] for sentence in enrolment_warnings(self.profiles[row])]
        explained += self._rule_warnings(rule)
        if decision == AMBIGUOUS:
            leader, second = (self.names[row] for row in order[:2])
            explained.append(
                f"{leader} leads {second} by only {compared[best] - compared[order[1]]:.3g}; a margin of {margin:.3g} "
                "is needed to name the speaker. Use a longer recording, or enrol both with more recordings."
            )
        return Identification(
            speaker=self.names[best] if decision == IDENTIFIED else None,
            decision=decision,
            candidates=[IdentificationCandidate(self.names[i], *_score_row(found, int(i))) for i in order[:candidates]],
            enrolled_ratio=enrolled_ratio,
            operating_point=rule.name,
            threshold=rule.threshold,
            margin=None if rule.threshold is None else margin,
            enrolled=self.enrolled,
            test_speech=speech,
            warnings=[*warnings, *self._copies(recording), *explained],
        )

    def _copies(self, recording: MeasuredRecording) -> list[str]:
        names = [profile.name for profile in self.profiles if recording.digest in profile.recordings]
        return [f"{name} was enrolled with this same recording, so the score proves nothing." for name in names]
