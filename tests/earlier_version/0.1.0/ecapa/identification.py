"""Who of the enrolled speakers is this, if anybody? Open-set identification: the unknown is refused.

The best of many candidates is always somebody, and the more are enrolled, the better the best impostor scores. So the
question comes in two: is it any of the enrolled, and which one? For a calibrated model with log-likelihood ratios
`l_i` of the `N` enrolled speakers, each as likely as the other, the ratio of "one of the enrolled" to "nobody of them"
is exactly the mean of the `exp(l_i)`, and its logarithm is what the threshold of the operating point is for: where one
candidate stands out it is `l_i - log N`. The second question is answered by the margin to the runner-up.

Letters: `N` enrolled speakers, `L` samples, `D` embedding size.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .calibration import Calibration, OperatingPoint
from .enrolment import SpeakerProfile
from .integrity import is_number
from .normalisation import Cohort
from .recordings import Recording, listen, quality_of, warn_of, warn_of_voices
from .scorer import Scorer, Scores, SpeakerModel
from .speech import MINIMUM_SPEECH

IDENTIFIED, UNKNOWN, AMBIGUOUS = "identified", "unknown speaker", "ambiguous"
NOT_ENOUGH_SPEECH = "not enough speech"
# Of log-likelihood ratios: the best must be three times likelier than the runner-up.
LEAST_MARGIN = math.log(3.0)
# Of scores, which have no scale of their own.
NO_MARGIN = 0.0
# Candidates in an answer.
CANDIDATES = 5


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
