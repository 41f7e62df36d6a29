"""Score normalisation: how unusual a score is among the scores of other speakers, the cohort.

Letters: `N` trials, `M` embeddings, `C` cohort embeddings, `D` embedding size.

With the mean and the standard deviation of the scores of the enrolment (e) and of the test (t) against the cohort:

- `"z"`: `(s - mean_e) / std_e` (Li and Porter 1988; Reynolds 1997)
- `"t"`: `(s - mean_t) / std_t` (Auckenthaler et al. 2000)
- `"s"`: half the sum of both (Kenny 2010)
- `"as"`: the same, each side with the `top` cohort scores nearest to it, its largest (AS-norm1 of Matejka et al. 2017,
  equation 5; AS-norm2 would take the statistics of one side over the cohort members nearest to the other)

Standard deviations are those of the scores at hand (divided by their number, not by one less).
"""

import os
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .integrity import array_checksum, load_array, save_array, shorten
from .pooling import at_least_float32

NORMALISATIONS = ("none", "z", "t", "s", "as")
# A standard deviation needs two scores.
SMALLEST_COHORT = 2
# Below this spread of the scores a cohort is all alike, to the rounding of float32 cosines.
SMALLEST_DEVIATION = 1e-6
COHORT_FILE = "cohort.safetensors"


class CohortStatistics(NamedTuple):
    """Of the scores of M embeddings against the cohort.

    Attributes:
        mean: `(M,)`.
        deviation: `(M,)` standard deviation, above 0.
    """

    mean: Tensor
    deviation: Tensor


def check_normalisation(kind: str, top: int | None) -> None:
    """Refuse an unknown kind, and a `top` that does not go with it.

    Raises:
        ValueError: names what is known.
    """
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
        top: only the largest this many of each row; None for all. More than C is C.

    Raises:
        ValueError: not two-dimensional, fewer than two cohort scores, not finite, or all alike.
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
    if bool((deviation < SMALLEST_DEVIATION).any()):
        row = int((deviation < SMALLEST_DEVIATION).nonzero()[0])
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


def normalise_scores(
    scores: Tensor, enrolment_cohort: Tensor, test_cohort: Tensor, kind: str, top: int | None = None
) -> Tensor:
    """Normalise the scores of N trials.

    Args:
        scores: `(N,)`.
        enrolment_cohort: `(N, C)` scores of each trial's enrolment against the cohort.
        test_cohort: `(N, C')` scores of each trial's test against the cohort.
        kind: `"none"`, `"z"`, `"t"`, `"s"` or `"as"`; see the module.
        top: of `"as"`, the number of cohort scores on each side; more than there are is all.

    Returns:
        `(N,)`. With many trials over few files, take `cohort_statistics` of the files and `apply_statistics`.

    Raises:
        ValueError: unknown kind, `top` missing or not fitting, shapes that do not fit, a cohort of fewer than two.
    """
    check_normalisation(kind, top)
    if kind == "none":
        return scores
    for cohort in (enrolment_cohort, test_cohort):
        if cohort.ndim != 2 or cohort.shape[0] != scores.shape[0]:
            raise ValueError(
                f"Cohort scores have shape {tuple(cohort.shape)}; expected ({scores.shape[0]}, cohort): one row per "
                "trial."
            )
    return apply_statistics(scores, cohort_statistics(enrolment_cohort, top), cohort_statistics(test_cohort, top), kind)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Embeddings of speakers that are nobody's enrolment, to normalise scores with.

    Attributes:
        embeddings: `(C, D)` float32 on the CPU, C at least 2: usually the mean of each training speaker.
        fingerprint: of the model that made them.
        audio: what they were made of, in words.

    Raises:
        ValueError: not two-dimensional, fewer than two, or not finite.
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
        """Of the embeddings; a calibration remembers the cohort it was measured with by it."""
        return array_checksum(self.embeddings.numpy())

    def check_model(self, fingerprint: str, path: str | os.PathLike = "This cohort") -> None:
        """Refuse to be used with another model than the one that made it.

        Args:
            fingerprint: of the model at hand.
            path: what the message calls the cohort.

        Raises:
            ValueError: names both.
        """
        if self.fingerprint != fingerprint:
            raise ValueError(
                f"{os.fspath(path)} is of another model ({shorten(self.fingerprint)}) than the one at hand "
                f"({shorten(fingerprint)}): embeddings of two models cannot be compared. Embed the cohort with this "
                "model, or load the model that it belongs to."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file: the tensor `embeddings` and a description with checksum."""
        description = {"fingerprint": self.fingerprint, "audio": self.audio}
        save_array(path, "embeddings", self.embeddings.numpy(), description)

    @classmethod
    def load(cls, path: str | os.PathLike, fingerprint: str | None = None) -> "Cohort":
        """Read a cohort.

        Args:
            path: what `save` wrote.
            fingerprint: of the model it is for; None to take it as it is.

        Raises:
            ValueError: no such file, altered, or of another model.
        """
        embeddings, description = load_array(path, "embeddings")
        if description.keys() != {"fingerprint", "audio"}:
            raise ValueError(f"{os.fspath(path)} is no cohort: it describes {sorted(description)}.")
        cohort = cls(torch.from_numpy(np.array(embeddings)), str(description["fingerprint"]), str(description["audio"]))
        if fingerprint is not None:
            cohort.check_model(fingerprint, path)
        return cohort
