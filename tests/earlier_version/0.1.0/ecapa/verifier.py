"""Are these recordings of one speaker? The answer with what it rests on, and what speaks against relying on it.

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
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .calibration import Calibration, OperatingPoint, combine_qualities
from .enrolment import SpeakerProfile, combine_embeddings
from .integrity import is_number
from .normalisation import Cohort
from .recordings import (
    Recording,
    is_same_recording,
    listen,
    quality_of,
    warn_of,
    warn_of_cohesion,
    warn_of_copies,
    warn_of_voices,
)
from .scorer import Scorer, Scores, SpeakerModel
from .speech import MINIMUM_SPEECH

SAME, DIFFERENT, NOT_ENOUGH_SPEECH = "same speaker", "different speakers", "not enough speech"


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
