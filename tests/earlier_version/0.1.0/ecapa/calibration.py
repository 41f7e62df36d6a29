"""From a score to a decision that can be defended: a log-likelihood ratio, a prior and costs.

A calibrated model maps its score, and measures of the quality of the recordings, to a natural log-likelihood ratio
(LLR): how many times likelier the two recordings are if they are of one speaker than if they are of two. The map is
affine, fitted by logistic regression on trials (Brummer and du Preez 2006; with quality measures: Thienpondt et al.
2021). The decision then takes nothing but the prior of a target and the costs of the two errors: "same speaker" at an
LLR of at least `log(cost_false_alarm (1 - prior) / (cost_miss prior))`, the Bayes threshold.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, overload

import numpy as np

from .integrity import CHECKSUM, check_dict, dict_checksum, is_number, shorten
from .normalisation import check_normalisation
from .speech import LOWEST_SNR_DB, MINIMUM_SPEECH

CALIBRATION_FILE = "verification.json"
SCHEMA = 1
SIMILARITIES = ("cosine", "hyperbolic")
# Floor of speech under the logarithm: what is below is refused for lack of speech anyway.
SHORTEST_SPEECH = 0.1
# Quality measures, in the order of `quality_features`. All but the last are symmetric in enrolment and test.
QUALITY_FEATURES = (
    "log_speech_min",
    "log_speech_max",
    "snr_min",
    "snr_max",
    "magnitude_min",
    "magnitude_max",
    "log_enrolment_utterances",
)
SCORE = "score"

_Value = float | np.ndarray


@dataclass(frozen=True)
class Quality:
    """What is known of one side of a trial, or, with arrays `(N,)`, of one side of N trials.

    Attributes:
        speech: seconds of speech, summed over the utterances.
        snr_db: signal-to-noise ratio in dB, mean over the utterances.
        magnitude: of the embedding (`scoring.magnitude`: its norm, or its hyperbolic radius), mean over the utterances.
        utterances: how many there are.
    """

    speech: Any
    snr_db: Any
    magnitude: Any
    utterances: Any = 1


def combine_qualities(qualities: Sequence[Quality]) -> Quality:
    """The quality of an enrolment of several utterances: speech and utterances add up, the others are averaged."""
    if not qualities:
        raise ValueError("No utterance, no quality: give at least one.")
    return Quality(
        speech=sum(q.speech for q in qualities),
        snr_db=sum(q.snr_db for q in qualities) / len(qualities),
        magnitude=sum(q.magnitude for q in qualities) / len(qualities),
        utterances=sum(q.utterances for q in qualities),
    )


def quality_features(enrolment: Quality, test: Quality) -> dict[str, np.ndarray]:
    """The quality measures of trials, by name: the one place that defines them.

    Returns:
        `QUALITY_FEATURES`, each `(N,)` or a scalar array, float64:
        `log_speech_min`, `log_speech_max`: log of the smaller and the larger number of seconds of speech of the two
        sides; `snr_min`, `snr_max`: dB; `magnitude_min`, `magnitude_max`; `log_enrolment_utterances`.
    """

    def both(name: str) -> tuple[np.ndarray, np.ndarray]:
        left, right = (np.asarray(getattr(side, name), dtype=np.float64) for side in (enrolment, test))
        return np.minimum(left, right), np.maximum(left, right)

    speech, snr, magnitude = both("speech"), both("snr_db"), both("magnitude")
    return {
        "log_speech_min": np.log(np.maximum(speech[0], SHORTEST_SPEECH)),
        "log_speech_max": np.log(np.maximum(speech[1], SHORTEST_SPEECH)),
        "snr_min": np.maximum(snr[0], LOWEST_SNR_DB),
        "snr_max": np.maximum(snr[1], LOWEST_SNR_DB),
        "magnitude_min": magnitude[0],
        "magnitude_max": magnitude[1],
        "log_enrolment_utterances": np.log(np.asarray(enrolment.utterances, dtype=np.float64)),
    }


@dataclass(frozen=True)
class OperatingPoint:
    """Where a decision is made, and what it was measured to cost in errors.

    Attributes:
        name: for example "balanced".
        prior: probability of a target before listening, in (0, 1).
        cost_miss: of refusing the same speaker, above 0.
        cost_false_alarm: of accepting another speaker, above 0.
        miss_rate: share of the target trials that were refused when this was measured; None where nobody has.
        false_alarm_rate: share of the impostor trials that were accepted, likewise.

    Raises:
        ValueError: a number is out of range.
    """

    name: str
    prior: float
    cost_miss: float = 1.0
    cost_false_alarm: float = 1.0
    miss_rate: float | None = None
    false_alarm_rate: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"An operating point needs a name, got {self.name!r}.")
        if not is_number(self.prior) or not 0 < self.prior < 1:
            raise ValueError(f"{self.name}: prior must lie between 0 and 1, got {self.prior!r}.")
        for name in ("cost_miss", "cost_false_alarm"):
            if not is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{self.name}: {name} must be above 0 and finite, got {getattr(self, name)!r}.")
        for name in ("miss_rate", "false_alarm_rate"):
            rate = getattr(self, name)
            if rate is not None and not (is_number(rate) and 0 <= rate <= 1):
                raise ValueError(f"{self.name}: {name} must lie in [0, 1] or be None, got {rate!r}.")

    @property
    def threshold(self) -> float:
        """The Bayes threshold on the log-likelihood ratio (natural logarithm)."""
        return math.log(self.cost_false_alarm * (1 - self.prior) / (self.cost_miss * self.prior))


# Even odds; accepting an impostor is what must not happen; missing a target is what must not happen.
DEFAULT_OPERATING_POINTS = (
    OperatingPoint("balanced", prior=0.5),
    OperatingPoint("strict", prior=0.01),
    OperatingPoint("screening", prior=0.5, cost_miss=10.0),
)


@dataclass(frozen=True)
class Calibration:
    """How scores of one model become log-likelihood ratios: `offset + sum of weight x feature`.

    Attributes:
        fingerprint: of the model whose scores they are.
        similarity: `"cosine"` or `"hyperbolic"`, what the score was.
        offset: of the LLR.
        weights: by feature: "score" (above 0) and any of `QUALITY_FEATURES`.
        operating_points: the first is the default.
        normalisation: `"none"`, `"z"`, `"t"`, `"s"` or `"as"`: whether "score" is a normalised one.
        top: of `"as"`: cohort scores on each side.
        cohort: `Cohort.checksum` of the cohort it was measured with; None without normalisation.
        trials, targets, speakers: how many it was measured on.
        enrolment_utterances: per trial, when it was measured.
        audio: what it was measured on, in words.
        minimum_speech: seconds of speech below which there is no decision.

    Raises:
        ValueError: a number is not finite or out of range, a feature is unknown, two points have one name.
    """

    fingerprint: str
    similarity: str
    offset: float
    weights: dict[str, float]
    operating_points: tuple[OperatingPoint, ...] = DEFAULT_OPERATING_POINTS
    normalisation: str = "none"
    top: int | None = None
    cohort: str | None = None
    trials: int = 0
    targets: int = 0
    speakers: int = 0
    enrolment_utterances: int = 1
    audio: str = ""
    minimum_speech: float = MINIMUM_SPEECH

    def __post_init__(self) -> None:
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise ValueError(f"A calibration needs the fingerprint of its model, got {self.fingerprint!r}.")
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {self.similarity!r}.")
        check_normalisation(self.normalisation, self.top)
        if (self.normalisation == "none") != (self.cohort is None):
            raise ValueError(
                f"normalisation is {self.normalisation!r} and cohort {self.cohort!r}: a normalised score is measured "
                "with a cohort (give Cohort.checksum), a raw one without."
            )
        unknown = sorted(set(self.weights) - {SCORE, *QUALITY_FEATURES})
        if unknown:
            raise ValueError(f"Unknown features {unknown}; known are {', '.join((SCORE, *QUALITY_FEATURES))}.")
        for name, value in {"offset": self.offset, **self.weights}.items():
            if not is_number(value):
                raise ValueError(f"The weight of {name!r} must be a finite number, got {value!r}.")
        if not self.weights.get(SCORE, 0.0) > 0:
            raise ValueError(
                f"The weight of 'score' must be above 0, got {self.weights.get(SCORE)!r}: a larger score is more "
                "evidence for the same speaker. Were the labels swapped?"
            )
        self._check_counts()

    def _check_counts(self) -> None:
        for name, smallest in {"trials": 0, "targets": 0, "speakers": 0, "enrolment_utterances": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}.")
        if not is_number(self.minimum_speech) or self.minimum_speech < 0:
            raise ValueError(f"minimum_speech must be a number of seconds, at least 0, got {self.minimum_speech!r}.")
        names = [point.name for point in self.operating_points]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"operating_points need distinct names, and at least one, got {names}.")

    @property
    def needs_quality(self) -> bool:
        """Whether any quality measure enters the LLR."""
        return len(self.weights) > 1

    def operating_point(self, name: str | None = None) -> OperatingPoint:
        """The operating point of a name; None is the first.

        Raises:
            ValueError: names those there are.
        """
        if name is None:
            return self.operating_points[0]
        for point in self.operating_points:
            if point.name == name:
                return point
        raise ValueError(
            f"There is no operating point {name!r}; this calibration has "
            f"{', '.join(point.name for point in self.operating_points)}."
        )

    @overload
    def log_likelihood_ratio(self, score: float, quality: Mapping[str, _Value] | None = None) -> float: ...

    @overload
    def log_likelihood_ratio(self, score: np.ndarray, quality: Mapping[str, _Value] | None = None) -> np.ndarray: ...

    def log_likelihood_ratio(self, score: _Value, quality: Mapping[str, _Value] | None = None) -> _Value:
        """The natural log-likelihood ratio.

        Args:
            score: a number or `(N,)`; normalised where `normalisation` says so.
            quality: from `quality_features`; may be left out where no weight asks for it.

        Returns:
            As `score`: a float, or `(N,)` float64.

        Raises:
            ValueError: a quality measure that a weight asks for is missing.
        """
        given = {} if quality is None else quality
        total = self.offset + self.weights[SCORE] * np.asarray(score, dtype=np.float64)
        for name, weight in self.weights.items():
            if name == SCORE:
                continue
            if name not in given:
                raise ValueError(f"This calibration weighs {name!r}, which was not given; take it of quality_features.")
            total = total + weight * np.asarray(given[name], dtype=np.float64)
        return total if isinstance(score, np.ndarray) else float(total)

    def check_model(self, fingerprint: str, similarity: str) -> None:
        """Refuse to be used with a model other than the one it was measured on.

        Raises:
            ValueError: which differs, and what to do.
        """
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"This calibration is of another model ({shorten(self.fingerprint)}) than the one at hand "
                f"({shorten(fingerprint)}): its weights differ, and so do its scores. Calibrate this model, or load "
                "the calibration that belongs to it."
            )
        if self.similarity != similarity:
            raise ValueError(
                f"This calibration is of {self.similarity} scores, but the model compares by {similarity!r}. Set "
                f"config.similarity to {self.similarity!r}, or calibrate anew."
            )

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds, with schema and checksum; the operating points with their thresholds, for readers."""
        values: dict[str, Any] = {"schema": SCHEMA, **asdict(self)}
        values["operating_points"] = [asdict(point) | {"threshold": point.threshold} for point in self.operating_points]
        values[CHECKSUM] = dict_checksum(values)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: str | os.PathLike = "The calibration") -> "Calibration":
        """Read what `to_dict` gave.

        Args:
            values: with their checksum.
            path: what messages call it.

        Raises:
            ValueError: altered, of another schema, unknown or missing keys, or values out of range.
        """
        if values.get("schema") != SCHEMA:
            raise ValueError(
                f"{os.fspath(path)} has schema {values.get('schema')!r}; this version reads {SCHEMA}. Install the "
                "version of hf_hamspk that wrote it, or calibrate anew."
            )
        check_dict(values, path)
        given = {key: value for key, value in values.items() if key not in ("schema", CHECKSUM)}
        expected = {field.name for field in fields(cls)}
        if given.keys() != expected:
            raise ValueError(
                f"{os.fspath(path)} has unknown keys {sorted(given.keys() - expected)} and lacks "
                f"{sorted(expected - given.keys())}; expected what Calibration.save wrote."
            )
        points = given.pop("operating_points")
        try:
            made = tuple(OperatingPoint(**{k: v for k, v in point.items() if k != "threshold"}) for point in points)
            return cls(**given, operating_points=made)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{os.fspath(path)} does not hold a calibration: {error}.") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read a file that `save` wrote; whether it fits a model is for `check_model`.

        Raises:
            ValueError: no such file, no JSON, altered, or of another version.
        """
        try:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
        except FileNotFoundError:
            raise ValueError(f"There is no file {os.fspath(path)}.") from None
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)} cannot be read as JSON ({error}). Fetch or measure it anew."
            ) from error
        if not isinstance(values, dict):
            raise ValueError(f"{os.fspath(path)} holds no calibration, but a JSON {type(values).__name__}.")
        return cls.from_dict(values, path)
