"""Normalisation and calibration, which turn raw scores into log-likelihood ratios, and the files of their settings.

**Files** contain a checksum, which reveals damage and edits by hand. It does not protect against forgery.

**Normalisation** relates the score `s` of a trial to the scores of its enrolment (e) and its test (t) against other
speakers, the cohort. `mean` and `std` are the mean and the uncorrected standard deviation of these cohort scores:

- `"z"`: `(s - mean_e) / std_e` (Li and Porter 1988; Reynolds 1997)
- `"t"`: `(s - mean_t) / std_t` (Auckenthaler et al. 2000)
- `"s"`: the mean of the `"z"` and the `"t"` score (Kenny 2010)
- `"as"`: as `"s"`, but `mean` and `std` use only the `top` largest cohort scores of enrolment and test, respectively
  (AS-norm1 of Matejka et al. 2017, equation 5; AS-norm2 selects cohort scores by those of the other recording)

**Calibration** maps a score and measures of the quality of the recordings to a log-likelihood ratio (LLR): the natural
logarithm of how many times more probable the recordings are if one speaker made both than if two speakers did. The map
is affine and fitted to trials by logistic regression (Brummer and du Preez 2006; with quality measures: Thienpondt et
al. 2021). Given the prior of a target and the costs of the two errors, the decision is "same speaker" if the LLR is at
least the Bayes threshold, `log(cost_false_alarm (1 - prior) / (cost_miss prior))`.

Letters: `N` or `P` trials, `M` embeddings, `C` cohort embeddings, `D` embedding size.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from .audio_hamspk import DETECTORS, LOWEST_SNR_DB, MINIMUM_SPEECH, VOICED, is_number, plain_number
from .geometry_hamspk import as_tensor, at_least_float32

CHECKSUM = "checksum"
NORMALISATIONS = ("none", "z", "t", "s", "as")
SMALLEST_COHORT = 2
# Rounding error of float32 cosines. Scores with a smaller standard deviation count as equal.
SMALLEST_COHORT_SPREAD = 1e-6
COHORT_FILE = "cohort.safetensors"
CALIBRATION_FILE = "verification.json"
CALIBRATION_SCHEMA = 1
SCORE_KINDS = ("cosine", "hyperbolic")
# Lower limit of the seconds of speech before their logarithm is taken. With less speech, there is no decision.
SHORTEST_SPEECH = 0.1
# Quality measures in the order of `quality_features`. All but the last stay the same if enrolment and test are swapped.
QUALITY_FEATURES = (
    *("log_speech_min", "log_speech_max", "snr_min", "snr_max", "magnitude_min", "magnitude_max"),
    "log_enrolment_utterances",
)
SCORE = "score"
FloatOrArray = TypeVar("FloatOrArray", float, np.ndarray)
# Number of cohort scores that are computed at once: 64 MiB of float32.
BLOCK_SCORES = 1 << 24
NOT_CALIBRATED = "A log-likelihood ratio needs a calibration, but this model has none. Calibrate it first."


def is_same_model(first: Any, second: Any) -> bool:
    """Return whether two fingerprints have the same weights and, if both contain settings, the same settings."""
    ours, theirs = (str(fingerprint).partition("-") for fingerprint in (first, second))
    return ours[0] == theirs[0] and (ours[2] == theirs[2] or not (ours[2] and theirs[2]))


def check_same_model(own: str, model: str, subject: str, remedy: str) -> None:
    """Raise a ValueError unless `own`, the fingerprint of the maker of `subject`, is that of the current `model`."""
    found = f"other weights ({own[:12]}) than this model has now ({model[:12]})"
    if is_same_model(own.partition("-")[0], model):
        changed = "a field that determines embeddings (for example frontend) has changed"
        found = f"another configuration than this model has now: {changed}"
    if not is_same_model(own, model):
        raise ValueError(f"{subject} was made with {found}. Restore the earlier model, or {remedy}.")


def dict_checksum(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON (sorted keys, no blanks, no NaN) of `values` without `CHECKSUM`."""
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def array_checksum(array: np.ndarray) -> str:
    """Return the SHA-256 of shape, type and values of an array."""
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def check_dict(values: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raise a ValueError if the checksum of a dictionary, read from `path`, is missing or does not match the values."""
    if values.get(CHECKSUM) != dict_checksum(values):
        state = "has no checksum" if CHECKSUM not in values else "was altered: its checksum does not match its values"
        raise ValueError(f"{path} {state}. Download or create the file again, or delete it to work without it.")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary path. Its file replaces `path` at the end. After an error (OSError), `path` is unchanged."""
    if not os.path.isdir(folder := os.path.dirname(path) or "."):
        raise ValueError(f"Folder not found: {folder}. Create it before {os.path.basename(path)} is saved there.")
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error}).") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def save_array(path: str | os.PathLike, name: str, array: np.ndarray, description: Mapping[str, Any]) -> None:
    """Write a float32 array, its description (values that JSON can represent) and checksums to a safetensors file."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    described = dict(description) | {"array": array_checksum(array)}
    described[CHECKSUM] = dict_checksum(described)
    # safetensors maps files into memory when it reads them. A file in use must be replaced, not overwritten.
    with replacing(path) as temporary:
        save_file({name: array}, temporary, {"description": json.dumps(described, sort_keys=True)})


def load_array(path: str | os.PathLike, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a file that `save_array` wrote, and return the finite float32 array and its description."""
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    try:
        with safe_open(path, "np") as file:
            metadata, names = file.metadata(), list(file.keys())
            array = file.get_tensor(name) if name in names else None
        described = json.loads((metadata or {})["description"])
    except (SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Expected a file that this package wrote, with "
            f"the tensor {name!r}."
        ) from error
    if array is None or not isinstance(described, dict):
        raise ValueError(f"{path} contains the tensors {names}; expected {name!r} with a description.")
    check_dict(described, path)
    if described.pop("array") != array_checksum(array):
        raise ValueError(f"{path} was altered: its tensor {name!r} differs from the saved one. Create it again.")
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{path} contains {array.dtype} values; expected finite float32 values. Create it again.")
    del described[CHECKSUM]
    return array, described


class CohortStatistics(NamedTuple):
    """Mean `(M,)` and standard deviation `(M,)`, above 0, of the cohort scores of M embeddings."""

    mean: Tensor
    deviation: Tensor


def check_normalisation(kind: str, top: int | None) -> None:
    """Raise a ValueError if the normalisation `kind` is unknown or cannot be used with this value of `top`."""
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {kind!r}.")
    top = plain_number(top)
    if kind == "as" and (isinstance(top, bool) or not isinstance(top, int) or top < SMALLEST_COHORT):
        raise ValueError(f"normalisation 'as' needs top, an integer of at least {SMALLEST_COHORT}, got {top!r}.")
    if kind != "as" and top is not None:
        raise ValueError(f"top is for normalisation 'as'; {kind!r} uses the complete cohort. Leave top out.")


def cohort_statistics(scores: Tensor, top: int | None = None) -> CohortStatistics:
    """Compute mean and standard deviation of each row of cohort scores `(M, C)`, or of its `top` largest scores.

    Raises:
        ValueError: `scores` is not two-dimensional or not finite, or a row has fewer than two different scores.
    """
    if scores.ndim != 2:
        raise ValueError(f"Cohort scores have shape {tuple(scores.shape)}; expected (embeddings, cohort).")
    if scores.shape[1] < SMALLEST_COHORT:
        raise ValueError(f"The cohort has {scores.shape[1]} embeddings. It needs at least 2; use several hundred.")
    if top is not None and top < SMALLEST_COHORT:
        raise ValueError(f"top must be at least {SMALLEST_COHORT}, got {top}.")
    scores = at_least_float32(scores)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("Cohort scores contain NaN or infinite values. Check the embeddings of the cohort.")
    if top is not None and top < scores.shape[1]:
        scores = scores.topk(top, dim=1).values
    deviation, mean = torch.std_mean(scores, dim=1, correction=0)
    if bool((deviation < SMALLEST_COHORT_SPREAD).any()):
        row = int((deviation < SMALLEST_COHORT_SPREAD).nonzero()[0])
        raise ValueError(f"All cohort scores of embedding {row} are equal. Check that the cohort has several speakers.")
    return CohortStatistics(mean, deviation)


def apply_statistics(scores: Tensor, enrolment: CohortStatistics, test: CohortStatistics, kind: str) -> Tensor:
    """Normalise the scores `(N,)` of trials by the cohort statistics of their enrolments and tests, `(N,)` each.

    The kinds `"s"` and `"as"` have the same formula. For `"as"`, pass `top` to `cohort_statistics` beforehand.
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
    """Embeddings of speakers other than the compared ones, used to normalise scores.

    Attributes:
        embeddings: finite values `(C, D)` in float32 on the CPU, C at least 2; usually one per training speaker.
        fingerprint: fingerprint of the model that computed the embeddings.
        audio: description of the recordings.
    """

    embeddings: Tensor = field(repr=False)
    fingerprint: str
    audio: str = ""

    def __post_init__(self) -> None:
        embeddings = as_tensor(self.embeddings)
        if embeddings.ndim != 2 or embeddings.shape[0] < SMALLEST_COHORT:
            shape = tuple(embeddings.shape)
            raise ValueError(f"Expected embeddings of shape (C, D) with C at least {SMALLEST_COHORT}, got {shape}.")
        if not bool(torch.isfinite(embeddings).all()):
            raise ValueError("The embeddings of a cohort must be finite. Leave out those that are not.")
        object.__setattr__(self, "embeddings", embeddings.detach().to("cpu", torch.float32).contiguous())

    @property
    def checksum(self) -> str:
        """SHA-256 of the embeddings. A calibration stores it to identify its cohort."""
        return array_checksum(self.embeddings.numpy())

    def check_model(self, fingerprint: str, path: str | os.PathLike = "This cohort") -> None:
        """Raise a ValueError if the model has another fingerprint than the cohort. The message names `path`."""
        check_same_model(self.fingerprint, fingerprint, str(path), "embed the cohort again")

    def save(self, path: str | os.PathLike) -> None:
        """Write the embeddings and a description with checksum to a safetensors file."""
        description = {"fingerprint": self.fingerprint, "audio": self.audio}
        save_array(path, "embeddings", self.embeddings.numpy(), description)

    @classmethod
    def load(cls, path: str | os.PathLike, fingerprint: str | None = None) -> "Cohort":
        """Read a file that `save` wrote; check its model if the `fingerprint` of a model is given."""
        embeddings, description = load_array(path, "embeddings")
        if description.keys() != {"fingerprint", "audio"}:
            raise ValueError(f"{path} is not a cohort file. Its description has the keys {sorted(description)!s:.200}.")
        cohort = cls(torch.from_numpy(np.array(embeddings)), str(description["fingerprint"]), str(description["audio"]))
        if fingerprint is not None:
            cohort.check_model(fingerprint, path)
        return cohort


@dataclass(frozen=True)
class Quality:
    """Quality measures of the enrolment or the test of a trial, or arrays `(N,)` of them for N trials.

    Attributes:
        speech: seconds of speech, summed over the utterances.
        snr_db: signal-to-noise ratio in dB, averaged over the utterances.
        magnitude: norm or hyperbolic radius of the embedding, averaged over the utterances.
        utterances: number of utterances.
    """

    speech: Any
    snr_db: Any
    magnitude: Any
    utterances: Any = 1


def combine_qualities(qualities: Sequence[Quality]) -> Quality:
    """Combine the measures of an enrolment's utterances: `speech` and `utterances` are added, the others averaged."""
    if not qualities:
        raise ValueError("No utterance was given. Quality measures need at least one.")
    return Quality(
        speech=sum(q.speech for q in qualities),
        snr_db=sum(q.snr_db for q in qualities) / len(qualities),
        magnitude=sum(q.magnitude for q in qualities) / len(qualities),
        utterances=sum(q.utterances for q in qualities),
    )


def quality_features(enrolment: Quality, test: Quality) -> dict[str, np.ndarray]:
    """Return the `QUALITY_FEATURES` of trials by name, each a float64 array `(N,)` or a scalar array.

    Each minimum or maximum is over the enrolment and the test. Logarithms are natural logarithms.
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
    """Prior and costs that determine the threshold of a decision, and the error rates measured at this threshold.

    Example:
        ```python
        door = OperatingPoint("door", prior=0.01, cost_false_alarm=10.0)
        print(door.threshold)  # 6.9: the recordings must be 990 times more probable with one speaker than with two
        print(model.verify("a.wav", "b.wav", operating_point=door).decision)
        ```

    Attributes:
        name: name of the operating point, for example "balanced".
        prior: probability, in (0, 1), that a trial is a target trial, before its recordings are compared.
        cost_miss: cost of a miss (a rejected target trial), above 0.
        cost_false_alarm: cost of a false alarm (an accepted impostor trial), above 0.
        miss_rate: fraction of target trials that are rejected at this threshold; None if not measured.
        false_alarm_rate: fraction of impostor trials that are accepted at this threshold; None if not measured.

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
        vars(self).update({name: plain_number(value) for name, value in vars(self).items()})
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
        """Bayes threshold on the natural log-likelihood ratio; see the formula in the docstring of this module."""
        below, above = self.cost_miss * self.prior, self.cost_false_alarm * (1 - self.prior)
        if below > 1e-300 and 1e-300 < above / below < math.inf:  # equal to thresholds of 0.1.0 to the last digit
            return math.log(above / below)
        odds = math.log1p(-self.prior) - math.log(self.prior)
        return math.log(self.cost_false_alarm) - math.log(self.cost_miss) + odds

    @property
    def flaw(self) -> str | None:
        """Warning if the operating point rejected all target trials or accepted all impostor trials; None otherwise."""
        if self.miss_rate == 1:
            return f"The operating point {self.name} accepts nobody: it missed all target trials of the calibration."
        if self.false_alarm_rate == 1:
            return f"The operating point {self.name} accepts everybody: it rejected no impostor trial in calibration."
        return None


# "strict" is for access control, where false alarms are worse; "screening" is for searches, where misses are worse.
DEFAULT_OPERATING_POINTS = (
    OperatingPoint("balanced", prior=0.5),
    OperatingPoint("strict", prior=0.01),
    OperatingPoint("screening", prior=0.5, cost_miss=10.0),
)


@dataclass(frozen=True)
class Calibration:
    """Map from the scores of a model to log-likelihood ratios (LLR): `offset + sum of weight x feature`.

    Example:
        ```python
        calibration = Calibration.load("model/verification.json")
        print(calibration.log_likelihood_ratio(0.8) >= calibration.operating_point("strict").threshold)
        ```

    Attributes:
        fingerprint: fingerprint of the model.
        similarity: similarity that computes the scores, `"cosine"` or `"hyperbolic"`.
        offset: constant term of the LLR.
        weights: weight of each feature by name: "score" (above 0) and any of `QUALITY_FEATURES`.
        operating_points: one or more operating points; the first is the default.
        normalisation: normalisation of the scores: `"none"`, `"z"`, `"t"`, `"s"` or `"as"`.
        top: number of cohort scores of each recording that `"as"` uses; None for other normalisations.
        cohort: `Cohort.checksum` of the cohort; None if the scores are not normalised.
        trials, targets, speakers: numbers of trials, target trials and speakers that the calibration was fitted to.
        enrolment_utterances: number of enrolment utterances in each of these trials.
        audio: description of the recordings of these trials.
        minimum_speech: smallest number of seconds of speech, in the enrolment and in the test, for a decision.
        detector: detector that measured the speech: `"voiced"` (version 0.1.0), `"voiced or whispered"`, or `"custom"`
            for `model.vad`. Later decisions use the same detector.

    Raises:
        ValueError: a number is not finite or out of range, a feature is unknown, or two operating points share a name.
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
    detector: str = VOICED

    def __post_init__(self) -> None:
        vars(self).update({name: plain_number(value) for name, value in vars(self).items()})
        vars(self)["weights"] = {name: plain_number(weight) for name, weight in dict(self.weights).items()}
        if not isinstance(self.fingerprint, str) or not self.fingerprint:
            raise ValueError(f"A calibration needs the fingerprint of its model, got {self.fingerprint!r}.")
        if self.similarity not in SCORE_KINDS:
            raise ValueError(f"similarity must be one of {', '.join(SCORE_KINDS)}, got {self.similarity!r}.")
        check_normalisation(self.normalisation, self.top)
        if (self.normalisation == "none") != (self.cohort is None):
            raise ValueError(
                f"normalisation is {self.normalisation!r}, but cohort is {self.cohort!r}. For normalised scores set "
                "cohort to Cohort.checksum, and for normalisation 'none' leave it at None."
            )
        unknown = sorted(set(self.weights) - {SCORE, *QUALITY_FEATURES})
        if unknown:
            raise ValueError(f"Unknown features {unknown}; expected {', '.join((SCORE, *QUALITY_FEATURES))}.")
        for name, value in {"offset": self.offset, **self.weights}.items():
            if not is_number(value):
                raise ValueError(f"The weight of {name!r} must be a finite number, got {value!r}.")
        if not self.weights.get(SCORE, 0.0) > 0:
            raise ValueError(
                f"The weight of 'score' must be above 0, got {self.weights.get(SCORE)!r}. A larger score must mean "
                "stronger evidence for the same speaker. Check that the labels of the trials are not swapped."
            )
        self._check_counts()

    def _check_counts(self) -> None:
        for name, smallest in {"trials": 0, "targets": 0, "speakers": 0, "enrolment_utterances": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}.")
        if not is_number(self.minimum_speech) or self.minimum_speech < 0:
            raise ValueError(f"minimum_speech must be a number of seconds, at least 0, got {self.minimum_speech!r}.")
        if self.detector not in DETECTORS:
            raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, got {self.detector!r}.")
        names = [point.name for point in self.operating_points]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"operating_points needs one or more points with distinct names, got {names}.")

    @property
    def needs_quality(self) -> bool:
        """Whether the log-likelihood ratio depends on any quality measure."""
        return len(self.weights) > 1

    def operating_point(self, name: str | None = None) -> OperatingPoint:
        """Return the operating point `name`, or the first one for None; raise a ValueError if the name is unknown."""
        points = {point.name: point for point in self.operating_points}
        if name is not None and name not in points:
            raise ValueError(f"There is no operating point {name!r}; this calibration has {', '.join(points)}.")
        return self.operating_points[0] if name is None else points[name]

    def log_likelihood_ratio(
        self, score: FloatOrArray, quality: Mapping[str, float | np.ndarray] | None = None
    ) -> FloatOrArray:
        """Compute the natural log-likelihood ratio of one or more trials.

        Args:
            score: score of a trial, or scores `(N,)`. They must be normalised unless `normalisation` is `"none"`.
            quality: result of `quality_features`; may be None if `needs_quality` is False.

        Returns:
            A float if `score` is a number, otherwise an array `(N,)` in float64.

        Raises:
            ValueError: `quality` lacks a measure that has a weight in the calibration.
        """
        given = {} if quality is None else quality
        total: Any = self.offset + self.weights[SCORE] * np.asarray(score, dtype=np.float64)
        for name, weight in self.weights.items():
            if name == SCORE:
                continue
            if name not in given:
                raise ValueError(f"This calibration needs the measure {name!r}. quality_features computes it.")
            total = total + weight * np.asarray(given[name], dtype=np.float64)
        return total if isinstance(score, np.ndarray) else total.item()

    def check_model(self, fingerprint: str, similarity: str) -> None:
        """Raise a ValueError if the model has another fingerprint or similarity than the calibration."""
        if self.similarity != similarity:
            raise ValueError(
                f"This calibration needs {self.similarity!r} scores, but the model computes {similarity!r} scores. "
                f"Set config.similarity to {self.similarity!r}, or calibrate again."
            )
        check_same_model(self.fingerprint, fingerprint, "This calibration", "calibrate the model again")

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file: attributes, schema, checksum and (for readers only) thresholds."""
        values: dict[str, Any] = {"schema": CALIBRATION_SCHEMA, **asdict(self)}
        values["operating_points"] = [asdict(point) | {"threshold": point.threshold} for point in self.operating_points]
        if self.detector == VOICED:
            # Without this key, version 0.1.0 can read the file. It has only this detector.
            del values["detector"]
        values[CHECKSUM] = dict_checksum(values)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: str | os.PathLike = "The calibration") -> "Calibration":
        """Create a calibration from a result of `to_dict`. Error messages name `path`."""
        if values.get("schema") != CALIBRATION_SCHEMA:
            raise ValueError(
                f"{path} has schema {values.get('schema')!r:.80}; this version reads {CALIBRATION_SCHEMA}. "
                "Install the version of hf_hamspk that wrote it, or calibrate again."
            )
        check_dict(values, path)
        given: dict[str, Any] = {"detector": VOICED, **values}
        del given["schema"], given[CHECKSUM]
        expected = {field.name for field in fields(cls)}
        if given.keys() != expected:
            raise ValueError(
                f"{path} has unknown keys {sorted(given.keys() - expected)!s:.200} and lacks "
                f"{sorted(expected - given.keys())}. Expected a file that Calibration.save wrote."
            )
        points = given.pop("operating_points")
        try:
            made = tuple(OperatingPoint(**{k: v for k, v in point.items() if k != "threshold"}) for point in points)
            return cls(**given, operating_points=made)
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a calibration: {str(error)[:400]}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write the calibration to a JSON file."""
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read a file that `save` wrote. Use `check_model` to check whether the calibration belongs to a model.

        Raises:
            ValueError: the file is missing, is not JSON, was altered, or has an unknown schema.
        """
        try:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
        except FileNotFoundError:
            raise ValueError(f"There is no file {path}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as JSON ({error}). Download or create it again.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must contain a JSON object with a calibration, got a {type(values).__name__}.")
        return cls.from_dict(values, path)


@dataclass(frozen=True)
class DecisionRule:
    """Rule that accepts a trial if its log-likelihood ratio (its score if `point` is None) is at least `threshold`."""

    point: OperatingPoint | None
    threshold: float | None

    @property
    def name(self) -> str | None:
        """Name of the operating point; None if `point` is None."""
        return None if self.point is None else self.point.name

    def accepts(self, raw: float, ratio: float | None) -> bool | None:
        """Return whether `ratio` (`raw` if `point` is None) is at least the threshold; None if either is missing."""
        evidence = raw if self.point is None else ratio
        return None if self.threshold is None or evidence is None else evidence >= self.threshold


def decision_rule(
    calibration: Calibration | None, operating_point: str | OperatingPoint | None, threshold: float | None
) -> DecisionRule:
    """Return the decision rule for an operating point or a threshold on the score; only one of them may be given."""
    if threshold is not None:
        if operating_point is not None:
            given = f"threshold ({threshold!r}, on the score) or operating_point ({operating_point!r})"
            raise ValueError(f"Give {given}, not both.")
        if not is_number(threshold):
            raise ValueError(f"threshold must be a finite number, got {threshold!r}.")
        return DecisionRule(None, float(threshold))
    if calibration is None:
        if operating_point is not None:
            name = getattr(operating_point, "name", operating_point)
            raise ValueError(
                f"There is no operating point {name!r}: this model is not calibrated. Calibrate it (`hamspk "
                "calibrate`), or give a threshold on the score."
            )
        return DecisionRule(None, None)
    # `isinstance` would fail for an OperatingPoint whose class comes from the code in a model's folder.
    point: Any = operating_point
    if point is None or isinstance(point, str):
        point = calibration.operating_point(point)
    return DecisionRule(point, point.threshold)


class SpeakerModel(Protocol):
    """Interface of a model for verification. `modeling_hamspk.SpeakerModelMixin` documents the methods."""

    config: Any
    device: torch.device

    def embed_waveforms(self, waveforms: Sequence[np.ndarray]) -> Tensor: ...
    def score(self, enrolment: Tensor, test: Tensor) -> Tensor: ...
    def score_matrix(self, enrolment: Tensor, test: Tensor) -> Tensor: ...
    def magnitude(self, embeddings: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...


class Scores(NamedTuple):
    """Scores of P pairs, `(P,)` float64 each. Normalised scores or ratios that were not computed are None."""

    raw: np.ndarray
    normalised: np.ndarray | None
    log_likelihood_ratio: np.ndarray | None


def compare_with_cohort(
    model: SpeakerModel, embeddings: Tensor, cohort: Tensor, top: int | None = None
) -> CohortStatistics:
    """Compute `cohort_statistics` of `embeddings` `(M, D)` in blocks; `cohort` `(C, D)` must be on the same device."""
    blocks = embeddings.split(max(1, BLOCK_SCORES // len(cohort)))
    parts = [cohort_statistics(model.score_matrix(block, cohort), top) for block in blocks]
    return CohortStatistics(torch.cat([part.mean for part in parts]), torch.cat([part.deviation for part in parts]))


def trial_features(
    raw: Tensor,
    normalisation: str = "none",
    statistics: tuple[CohortStatistics, CohortStatistics] | None = None,
    quality: tuple[Quality, Quality] | None = None,
) -> dict[str, np.ndarray]:
    """Return what a calibration weighs for P trials: `SCORE` and the `QUALITY_FEATURES`, each `(P,)` float64.

    Args:
        raw: similarities `(P,)`. They are normalised in their own data type and then converted to float64.
        normalisation: one of `NORMALISATIONS`.
        statistics: cohort statistics `(P,)` of the enrolments and the tests; not needed if `normalisation` is `"none"`.
        quality: quality measures `(P,)` of the enrolments and of the tests. If None, only `SCORE` is returned.
    """
    scores = raw
    if normalisation != "none":
        if statistics is None:
            raise ValueError(f"normalisation {normalisation!r} needs the cohort statistics of enrolments and tests.")
        enrolment, test = (CohortStatistics(side.mean.to(raw), side.deviation.to(raw)) for side in statistics)
        scores = apply_statistics(raw, enrolment, test, normalisation)
    return {SCORE: _float64(scores)} | ({} if quality is None else quality_features(*quality))


class Scorer:
    """Scorer of pairs of embeddings with a model, its calibration and its cohort, which must belong together.

    Without a calibration, there are only raw scores. The weights must not change while the scorer is used.
    """

    def __init__(self, model: SpeakerModel, calibration: Calibration | None = None, cohort: Cohort | None = None):
        self.model, self.calibration, self.fingerprint = model, calibration, model.fingerprint()
        self._cohort: Tensor | None = None
        if calibration is not None:
            calibration.check_model(self.fingerprint, model.config.similarity)
        if cohort is not None:
            cohort.check_model(self.fingerprint)
        if calibration is None or calibration.normalisation == "none":
            return
        remedy = "Load the cohort from the folder of the calibration, or calibrate again."
        if cohort is None:
            raise ValueError(f"This calibration needs a cohort, but no cohort was given. {remedy}")
        if cohort.checksum != calibration.cohort:
            raise ValueError(f"The cohort is not the one that the calibration was fitted with. {remedy}")
        self._cohort = cohort.embeddings.to(model.device)

    def scores(
        self, enrolment: Tensor, test: Tensor, enrolment_quality: Sequence[Quality], test_quality: Sequence[Quality]
    ) -> Scores:
        """Score each row of `enrolment` `(P, D)` against the same row of `test`; the calibration uses the qualities."""
        raw = self.model.score(enrolment, test)
        if self.calibration is None:
            return Scores(_float64(raw), None, None)
        statistics: Any = None if self._cohort is None else (self.statistics(enrolment), self.statistics(test))
        quality = _stack_qualities(enrolment_quality), _stack_qualities(test_quality)
        return Scores(_float64(raw), *self.calibrated(raw, statistics, quality))

    def ratios(self, *sides: Any) -> np.ndarray:
        """Return only the log-likelihood ratios `(P,)` of `scores`; raise a ValueError if there is no calibration."""
        ratios = self.scores(*sides).log_likelihood_ratio
        if ratios is None:
            raise ValueError(NOT_CALIBRATED)
        return ratios

    def statistics(self, embeddings: Tensor) -> CohortStatistics | None:
        """Return the cohort statistics `(M,)` of embeddings `(M, D)`; None if the scores are not normalised."""
        if self._cohort is None or self.calibration is None:
            return None
        return compare_with_cohort(self.model, embeddings.to(self._cohort.device), self._cohort, self.calibration.top)

    def calibrated(
        self,
        raw: Tensor,
        statistics: tuple[CohortStatistics, CohortStatistics] | None = None,
        quality: tuple[Quality, Quality] | None = None,
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Return normalised scores (None without normalisation) and log-likelihood ratios of P pairs, `(P,)` each.

        Decisions and evaluations use this method. For the arguments see `trial_features`.
        """
        if self.calibration is None:
            raise ValueError(NOT_CALIBRATED)
        kind = self.calibration.normalisation
        features = trial_features(raw, kind, statistics, quality)
        ratios = self.calibration.log_likelihood_ratio(features[SCORE], features)
        return None if kind == "none" else features[SCORE], ratios


def _float64(scores: Tensor) -> np.ndarray:
    return scores.detach().double().cpu().numpy()


def _stack_qualities(qualities: Sequence[Quality]) -> Quality:
    """Combine N qualities of single trials into one `Quality` with arrays `(N,)`."""
    columns = zip(*(vars(quality).values() for quality in qualities), strict=True)
    return Quality(*(np.array(column, dtype=np.float64) for column in columns))
