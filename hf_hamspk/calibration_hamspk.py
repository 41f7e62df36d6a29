"""Score normalisation and calibration, from raw scores to log-likelihood ratios, and the files that hold them.

**Files** carry a checksum, which reveals damage and edits by hand. It is no protection against forgery.

**Normalisation** says how unusual a score is among the scores against other speakers, the cohort. With the mean and
the standard deviation (divided by their number) of the scores of enrolment (e) and test (t) against the cohort:

- `"z"`: `(s - mean_e) / std_e` (Li and Porter 1988; Reynolds 1997)
- `"t"`: `(s - mean_t) / std_t` (Auckenthaler et al. 2000)
- `"s"`: half the sum of both (Kenny 2010)
- `"as"`: the same, each side with the `top` largest of its cohort scores (AS-norm1 of Matejka et al. 2017, equation 5;
  AS-norm2 would take the statistics of one side over the cohort members nearest to the other)

**Calibration** maps a score, and measures of the quality of the recordings, to a natural log-likelihood ratio (LLR):
how many times likelier the two recordings are if they are of one speaker than if they are of two. The map is affine,
fitted by logistic regression on trials (Brummer and du Preez 2006; with quality measures: Thienpondt et al. 2021). A
decision needs only the prior of a target and the costs of the two errors: "same speaker" at an LLR of at least
`log(cost_false_alarm (1 - prior) / (cost_miss prior))`, the Bayes threshold.

Letters: `N` trials or utterances, `P` pairs, `M` embeddings, `C` cohort embeddings, `D` embedding size.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from .audio_hamspk import LOWEST_SNR_DB, MINIMUM_SPEECH, is_number
from .geometry_hamspk import at_least_float32

CHECKSUM = "checksum"
# Hexadecimal digits of a fingerprint that messages show.
SHOWN_DIGITS = 12
NORMALISATIONS = ("none", "z", "t", "s", "as")
SMALLEST_COHORT = 2
# Rounding of float32 cosines: scores that spread less are all alike.
SMALLEST_COHORT_SPREAD = 1e-6
COHORT_FILE = "cohort.safetensors"
CALIBRATION_FILE = "verification.json"
CALIBRATION_SCHEMA = 1
SCORE_KINDS = ("cosine", "hyperbolic")
# Floor of speech under the logarithm; recordings below it get no decision.
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
FloatOrArray = TypeVar("FloatOrArray", float, np.ndarray)
# Cohort scores held at once: 64 MiB of float32.
BLOCK_SCORES = 1 << 24


def shorten(fingerprint: str) -> str:
    """The first digits of a fingerprint, for messages."""
    return fingerprint[:SHOWN_DIGITS]


def dict_checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 over canonical JSON (sorted keys, no blanks) of everything except the checksum itself.

    Raises:
        ValueError: a value is NaN or infinite, which JSON cannot hold.
    """
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def array_checksum(array: np.ndarray) -> str:
    """SHA-256 over shape, type and values of an array."""
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def check_dict(values: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raise a ValueError if the checksum of a dictionary, read from `path`, is missing or that of other values."""
    if values.get(CHECKSUM) != dict_checksum(values):
        state = "has no checksum" if CHECKSUM not in values else "was altered: its checksum is that of other values"
        raise ValueError(
            f"{path} {state}. What a decision rests on is not edited by hand: fetch or make it again, or delete the "
            "file to go without it."
        )


def save_array(path: str | os.PathLike, name: str, array: np.ndarray, description: Mapping[str, Any]) -> None:
    """Write one float32 array and its description (values that JSON can hold) to a safetensors file with checksums."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    described = dict(description) | {"array": array_checksum(array)}
    described[CHECKSUM] = dict_checksum(described)
    # safetensors maps files that it reads into memory: an open one must be replaced, not written over.
    temporary = f"{path}.part"
    save_file({name: array}, temporary, {"description": json.dumps(described, sort_keys=True)})
    os.replace(temporary, path)


def load_array(path: str | os.PathLike, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read what `save_array` wrote: the float32 array, finite, and its description.

    Raises:
        ValueError: the file is missing, altered, or not one that `save_array` wrote.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    try:
        with safe_open(path, "np") as file:
            metadata, names = file.metadata(), list(file.keys())
            array = file.get_tensor(name) if name in names else None
        described = json.loads((metadata or {})["description"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected a file that this package wrote, with "
            f"the tensor {name!r}."
        ) from error
    if array is None or not isinstance(described, dict):
        raise ValueError(f"{path} holds the tensors {names}; expected {name!r} with a description.")
    check_dict(described, path)
    if described.pop("array") != array_checksum(array):
        raise ValueError(f"{path} was altered: its tensor {name!r} is not the one that was saved. Make it again.")
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{path} holds {array.dtype} values that are not all finite float32. Make it again.")
    del described[CHECKSUM]
    return array, described


class CohortStatistics(NamedTuple):
    """Mean `(M,)` and standard deviation `(M,)`, above 0, of the scores of M embeddings against the cohort."""

    mean: Tensor
    deviation: Tensor

    def rows(self, index: np.ndarray | Tensor) -> "CohortStatistics":
        """The statistics of the given rows, one for each entry of `index`."""
        return CohortStatistics(self.mean[index], self.deviation[index])


def check_normalisation(kind: str, top: int | None) -> None:
    """Raise a ValueError if the kind is unknown, or `top` does not go with it."""
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {kind!r}.")
    if kind == "as" and (isinstance(top, bool) or not isinstance(top, int) or top < SMALLEST_COHORT):
        raise ValueError(f"normalisation 'as' needs top, an integer of at least {SMALLEST_COHORT}, got {top!r}.")
    if kind != "as" and top is not None:
        raise ValueError(f"top is for normalisation 'as'; {kind!r} takes the whole cohort. Leave top out.")


def cohort_statistics(scores: Tensor, top: int | None = None) -> CohortStatistics:
    """Mean and standard deviation of each row.

    Args:
        scores: `(M, C)` of embeddings against the cohort.
        top: take only so many of each row, the largest; None or more than C takes all.

    Raises:
        ValueError: the scores are not two-dimensional, fewer than two a row, not finite, or all alike.
    """
    if scores.ndim != 2:
        raise ValueError(f"Cohort scores have shape {tuple(scores.shape)}; expected (embeddings, cohort).")
    if scores.shape[1] < SMALLEST_COHORT:
        raise ValueError(
            f"The cohort holds {scores.shape[1]} embeddings; a standard deviation needs at least {SMALLEST_COHORT}, "
            "and a useful normalisation some hundred speakers."
        )
    if top is not None and top < SMALLEST_COHORT:
        raise ValueError(f"top must be at least {SMALLEST_COHORT}, got {top}.")
    scores = at_least_float32(scores)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("Cohort scores hold NaN or infinite values; check the embeddings of the cohort.")
    if top is not None and top < scores.shape[1]:
        scores = scores.topk(top, dim=1).values
    deviation, mean = torch.std_mean(scores, dim=1, correction=0)
    if bool((deviation < SMALLEST_COHORT_SPREAD).any()):
        row = int((deviation < SMALLEST_COHORT_SPREAD).nonzero()[0])
        raise ValueError(
            f"All cohort scores of embedding {row} are alike, so nothing can be normalised by them. Is the cohort one "
            "recording many times?"
        )
    return CohortStatistics(mean, deviation)


def apply_statistics(scores: Tensor, enrolment: CohortStatistics, test: CohortStatistics, kind: str) -> Tensor:
    """Normalise `(N,)` scores by the statistics of both sides of each trial, each `(N,)`.

    `"s"` and `"as"` are the same sum; they differ in the statistics (`cohort_statistics` with `top`).
    """
    if kind not in NORMALISATIONS:
        check_normalisation(kind, None)
    if kind == "none":
        return scores
    z = (scores - enrolment.mean) / enrolment.deviation
    if kind == "z":
        return z
    t = (scores - test.mean) / test.deviation
    return t if kind == "t" else (z + t) / 2


@dataclass(frozen=True, eq=False)
class Cohort:
    """Embeddings of other speakers than those compared, to normalise scores with.

    Attributes:
        embeddings: `(C, D)` float32 on the CPU, finite, C at least 2: usually the mean of each training speaker.
        fingerprint: of the model that made them.
        audio: description of the recordings.

    Raises:
        ValueError: the embeddings have another shape, or are not finite.
    """

    embeddings: Tensor = field(repr=False)
    fingerprint: str
    audio: str = ""

    def __post_init__(self) -> None:
        embeddings = self.embeddings
        if embeddings.ndim != 2 or embeddings.shape[0] < SMALLEST_COHORT:
            raise ValueError(
                f"A cohort needs embeddings of shape (C, D) with C at least {SMALLEST_COHORT}, got "
                f"{tuple(embeddings.shape)}."
            )
        if not bool(torch.isfinite(embeddings).all()):
            raise ValueError("The embeddings of a cohort must be finite; leave out those that are not.")
        object.__setattr__(self, "embeddings", embeddings.detach().to("cpu", torch.float32).contiguous())

    @property
    def checksum(self) -> str:
        """SHA-256 of the embeddings, by which a calibration names its cohort."""
        return array_checksum(self.embeddings.numpy())

    def check_model(self, fingerprint: str, path: str | os.PathLike = "This cohort") -> None:
        """Raise a ValueError, which calls the cohort `path`, if the model at hand has another fingerprint."""
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"{path} is of another model ({shorten(self.fingerprint)}) than the one at hand "
                f"({shorten(fingerprint)}): embeddings of two models cannot be compared. Embed the cohort with this "
                "model, or load the model that it belongs to."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file: the tensor `embeddings` and a description with checksum."""
        description = {"fingerprint": self.fingerprint, "audio": self.audio}
        save_array(path, "embeddings", self.embeddings.numpy(), description)

    @classmethod
    def load(cls, path: str | os.PathLike, fingerprint: str | None = None) -> "Cohort":
        """Read a file that `save` wrote.

        Args:
            path: of the file.
            fingerprint: of the model that will use it; None does not check.

        Raises:
            ValueError: the file is missing, altered, no cohort, or of another model.
        """
        embeddings, description = load_array(path, "embeddings")
        if description.keys() != {"fingerprint", "audio"}:
            raise ValueError(f"{path} is no cohort: it describes {sorted(description)}.")
        cohort = cls(torch.from_numpy(np.array(embeddings)), str(description["fingerprint"]), str(description["audio"]))
        if fingerprint is not None:
            cohort.check_model(fingerprint, path)
        return cohort


@dataclass(frozen=True)
class Quality:
    """Quality measures of one side of a trial, or, with arrays `(N,)`, of one side of N trials.

    Attributes:
        speech: seconds of speech, summed over the utterances.
        snr_db: signal-to-noise ratio in dB, mean over the utterances.
        magnitude: of the embedding (its norm, or its hyperbolic radius), mean over the utterances.
        utterances: number of utterances.
    """

    speech: Any
    snr_db: Any
    magnitude: Any
    utterances: Any = 1

    def rows(self, index: np.ndarray) -> "Quality":
        """The given rows of arrays, one for each entry of `index`."""
        return Quality(*(np.asarray(column)[index] for column in vars(self).values()))


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
    """The `QUALITY_FEATURES` of trials by name, each `(N,)` or a scalar array, float64.

    Minimum and maximum are those of the two sides, speech is in seconds, the logarithms are natural, and the
    signal-to-noise ratios in dB.
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
    """Prior and costs that set the threshold of a decision, with the error rates measured there.

    Example:
        ```python
        door = OperatingPoint("door", prior=0.01, cost_false_alarm=10.0)
        print(door.threshold)  # 6.9: the recordings must be 990 times more probable from one speaker than from two
        print(model.verify("a.wav", "b.wav", operating_point=door).decision)
        ```

    Attributes:
        name: for example "balanced".
        prior: probability of a target before the recordings are compared, in (0, 1).
        cost_miss: of refusing the same speaker, above 0.
        cost_false_alarm: of accepting another speaker, above 0.
        miss_rate: share of the target trials that were refused; None if not measured.
        false_alarm_rate: share of the impostor trials that were accepted; None if not measured.

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


# Even odds; for doors, where accepting an impostor is worse; for searches, where missing a target is worse.
DEFAULT_OPERATING_POINTS = (
    OperatingPoint("balanced", prior=0.5),
    OperatingPoint("strict", prior=0.01),
    OperatingPoint("screening", prior=0.5, cost_miss=10.0),
)


@dataclass(frozen=True)
class Calibration:
    """Map from scores of one model to log-likelihood ratios: `offset + sum of weight x feature`.

    Example:
        ```python
        calibration = Calibration.load("model/verification.json")
        print(calibration.log_likelihood_ratio(0.8) >= calibration.operating_point("strict").threshold)
        ```

    Attributes:
        fingerprint: of the model.
        similarity: of the scores, `"cosine"` or `"hyperbolic"`.
        offset: of the LLR.
        weights: by feature: "score" (above 0) and any of `QUALITY_FEATURES`.
        operating_points: the first is the default.
        normalisation: of the scores: `"none"`, `"z"`, `"t"`, `"s"` or `"as"`.
        top: cohort scores on each side; for `"as"` only.
        cohort: `Cohort.checksum` of the cohort of the normalisation; None without one.
        trials, targets, speakers: numbers of each that it was fitted on.
        enrolment_utterances: of each of these trials.
        audio: description of their recordings.
        minimum_speech: seconds of speech below which there is no decision.

    Raises:
        ValueError: a number is not finite or out of range, a feature is unknown, or two points have the same name.
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
        if self.similarity not in SCORE_KINDS:
            raise ValueError(f"similarity must be one of {', '.join(SCORE_KINDS)}, got {self.similarity!r}.")
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
        """The operating point with this name, or the first for None; a ValueError lists the names."""
        points = {point.name: point for point in self.operating_points}
        if name is not None and name not in points:
            raise ValueError(f"There is no operating point {name!r}; this calibration has {', '.join(points)}.")
        return self.operating_points[0] if name is None else points[name]

    def log_likelihood_ratio(
        self, score: FloatOrArray, quality: Mapping[str, float | np.ndarray] | None = None
    ) -> FloatOrArray:
        """The natural log-likelihood ratio.

        Args:
            score: a number or `(N,)`; normalised if `normalisation` says so.
            quality: from `quality_features`; may be left out if no weight needs it.

        Returns:
            A float, or `(N,)` float64, like `score`.

        Raises:
            ValueError: a quality measure that has a weight is missing.
        """
        given = {} if quality is None else quality
        total: Any = self.offset + self.weights[SCORE] * np.asarray(score, dtype=np.float64)
        for name, weight in self.weights.items():
            if name == SCORE:
                continue
            if name not in given:
                raise ValueError(f"This calibration weighs {name!r}, which was not given; take it of quality_features.")
            total = total + weight * np.asarray(given[name], dtype=np.float64)
        return total if isinstance(score, np.ndarray) else total.item()

    def check_model(self, fingerprint: str, similarity: str) -> None:
        """Raise a ValueError if the model at hand has another fingerprint or similarity."""
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"This calibration is of another model ({shorten(self.fingerprint)}) than the one at hand "
                f"({shorten(fingerprint)}): its weights differ, and so do its scores. Calibrate this model, or load "
                "the calibration that belongs to it."
            )
        if self.similarity != similarity:
            raise ValueError(
                f"This calibration is of {self.similarity} scores, but the model compares by {similarity!r}. Set "
                f"config.similarity to {self.similarity!r}, or calibrate again."
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: with schema and checksum, and, for people, the thresholds of the operating points."""
        values: dict[str, Any] = {"schema": CALIBRATION_SCHEMA, **asdict(self)}
        values["operating_points"] = [asdict(point) | {"threshold": point.threshold} for point in self.operating_points]
        values[CHECKSUM] = dict_checksum(values)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: str | os.PathLike = "The calibration") -> "Calibration":
        """Read what `to_dict` returned; messages call it `path`.

        Raises:
            ValueError: altered, of another schema, unknown or missing keys, or values out of range.
        """
        if values.get("schema") != CALIBRATION_SCHEMA:
            raise ValueError(
                f"{path} has schema {values.get('schema')!r}; this version reads {CALIBRATION_SCHEMA}. "
                "Install the version of hf_hamspk that wrote it, or calibrate again."
            )
        check_dict(values, path)
        given = {key: value for key, value in values.items() if key not in ("schema", CHECKSUM)}
        expected = {field.name for field in fields(cls)}
        if given.keys() != expected:
            raise ValueError(
                f"{path} has unknown keys {sorted(given.keys() - expected)} and lacks "
                f"{sorted(expected - given.keys())}; expected what Calibration.save wrote."
            )
        points = given.pop("operating_points")
        try:
            made = tuple(OperatingPoint(**{k: v for k, v in point.items() if k != "threshold"}) for point in points)
            return cls(**given, operating_points=made)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a calibration: {error}.") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read a file that `save` wrote; `check_model` tells whether it fits a model.

        Raises:
            ValueError: the file is missing, no JSON, altered, or of another version.
        """
        try:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
        except FileNotFoundError:
            raise ValueError(f"There is no file {path}.") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as JSON ({error}). Fetch or make it again.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no calibration, but a JSON {type(values).__name__}.")
        return cls.from_dict(values, path)


class SpeakerModel(Protocol):
    """The part of a model that verification needs; `modeling_hamspk.SpeakerModelMixin` documents the methods."""

    config: Any
    device: torch.device

    def embed_waveforms(self, waveforms: Sequence[np.ndarray]) -> Tensor: ...
    def score(self, enrolment: Tensor, test: Tensor) -> Tensor: ...
    def score_matrix(self, enrolment: Tensor, test: Tensor) -> Tensor: ...
    def magnitude(self, embeddings: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...


class Scores(NamedTuple):
    """Scores of P pairs, each `(P,)` float64.

    Attributes:
        raw: similarity of the embeddings.
        normalised: with the cohort; None if the calibration asks for no normalisation.
        log_likelihood_ratio: natural logarithm; None if the model is not calibrated.
    """

    raw: np.ndarray
    normalised: np.ndarray | None
    log_likelihood_ratio: np.ndarray | None


def compare_with_cohort(
    model: SpeakerModel, embeddings: Tensor, cohort: Tensor, top: int | None = None
) -> CohortStatistics:
    """`cohort_statistics` of embeddings `(M, D)` against a cohort `(C, D)` on the same device, in bounded memory."""
    blocks = embeddings.split(max(1, BLOCK_SCORES // len(cohort)))
    parts = [cohort_statistics(model.score_matrix(block, cohort), top) for block in blocks]
    return CohortStatistics(torch.cat([part.mean for part in parts]), torch.cat([part.deviation for part in parts]))


def trial_features(
    raw: Tensor,
    normalisation: str = "none",
    statistics: tuple[CohortStatistics, CohortStatistics] | None = None,
    quality: tuple[Quality, Quality] | None = None,
) -> dict[str, np.ndarray]:
    """The features that a calibration weighs: `SCORE` and `QUALITY_FEATURES` of P trials, each `(P,)` float64.

    Args:
        raw: `(P,)` similarities; they are normalised in their own precision.
        normalisation: one of `NORMALISATIONS`.
        statistics: of the enrolments and of the tests against the cohort, `(P,)` each; None without normalisation.
        quality: of the enrolments and of the tests, with arrays `(P,)`; None leaves the quality measures out.

    Raises:
        ValueError: statistics are missing.
    """
    scores = raw
    if normalisation != "none":
        if statistics is None:
            raise ValueError(f"normalisation {normalisation!r} needs the statistics of both sides against a cohort.")
        enrolment, test = (CohortStatistics(side.mean.to(raw), side.deviation.to(raw)) for side in statistics)
        scores = apply_statistics(raw, enrolment, test, normalisation)
    return {SCORE: _float64(scores)} | ({} if quality is None else quality_features(*quality))


class Scorer:
    """Scores pairs of embeddings with a model, its calibration and its cohort, checked to belong together.

    The weights of the model must not change while the scorer is used.

    Args:
        model: compares embeddings.
        calibration: None for raw scores only.
        cohort: the one that the calibration was measured with; None if its scores are not normalised.

    Raises:
        ValueError: the calibration or the cohort is of another model, or the cohort is missing or not that of the
            calibration.
    """

    def __init__(self, model: SpeakerModel, calibration: Calibration | None = None, cohort: Cohort | None = None):
        self.model = model
        self.calibration = calibration
        self.fingerprint = model.fingerprint()
        self._cohort: Tensor | None = None
        if cohort is not None:
            cohort.check_model(self.fingerprint)
        if calibration is None:
            return
        calibration.check_model(self.fingerprint, model.config.similarity)
        if calibration.normalisation == "none":
            return
        if cohort is None:
            raise ValueError(
                f"This calibration is of scores normalised by {calibration.normalisation!r} with a cohort, and no "
                "cohort was given; its log-likelihood ratios would be wrong. Load the cohort that lies beside it "
                "(cohort.safetensors), or calibrate without normalisation."
            )
        if cohort.checksum != calibration.cohort:
            raise ValueError(
                "The cohort is not the one that the calibration was measured with. Load the cohort that lies beside "
                "the calibration, or calibrate with this one."
            )
        self._cohort = cohort.embeddings.to(model.device)

    def scores(
        self, enrolment: Tensor, test: Tensor, enrolment_quality: Sequence[Quality], test_quality: Sequence[Quality]
    ) -> Scores:
        """Score each row of `enrolment` `(P, D)`, of the given quality, against the same row of `test` `(P, D)`."""
        raw = self.model.score(enrolment, test)
        if self.calibration is None:
            return Scores(_float64(raw), None, None)
        sides = self.statistics(enrolment), self.statistics(test)
        statistics = None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
        quality = _stack_qualities(enrolment_quality), _stack_qualities(test_quality)
        return Scores(_float64(raw), *self.calibrated(raw, statistics, quality))

    def ratios(
        self, enrolment: Tensor, test: Tensor, enrolment_quality: Sequence[Quality], test_quality: Sequence[Quality]
    ) -> np.ndarray:
        """The log-likelihood ratios `(P,)` of `scores`; a ValueError if the model is not calibrated."""
        ratios = self.scores(enrolment, test, enrolment_quality, test_quality).log_likelihood_ratio
        if ratios is None:
            raise ValueError("Without a calibration there is no log-likelihood ratio.")
        return ratios

    def statistics(self, embeddings: Tensor) -> CohortStatistics | None:
        """Statistics `(M,)` of embeddings `(M, D)` against the cohort; None if the scores are not normalised."""
        if self._cohort is None or self.calibration is None:
            return None
        return compare_with_cohort(self.model, embeddings.to(self._cohort.device), self._cohort, self.calibration.top)

    def calibrated(
        self,
        raw: Tensor,
        statistics: tuple[CohortStatistics, CohortStatistics] | None = None,
        quality: tuple[Quality, Quality] | None = None,
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """From raw scores of P pairs to log-likelihood ratios: the one place where they are computed.

        Args:
            raw, statistics, quality: as in `trial_features`.

        Returns:
            The normalised scores, None without normalisation, and the natural log-likelihood ratios, `(P,)` each.

        Raises:
            ValueError: the model is not calibrated, or statistics or quality that its calibration needs are missing.
        """
        if self.calibration is None:
            raise ValueError("Without a calibration there is no log-likelihood ratio.")
        kind = self.calibration.normalisation
        features = trial_features(raw, kind, statistics, quality)
        ratios = self.calibration.log_likelihood_ratio(features[SCORE], features)
        return None if kind == "none" else features[SCORE], ratios


def _float64(scores: Tensor) -> np.ndarray:
    return scores.detach().double().cpu().numpy()


def _stack_qualities(qualities: Sequence[Quality]) -> Quality:
    """N qualities as one of arrays `(N,)`."""
    columns = zip(*(vars(quality).values() for quality in qualities), strict=True)
    return Quality(*(np.array(column, dtype=np.float64) for column in columns))
