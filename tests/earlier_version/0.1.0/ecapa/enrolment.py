"""Several utterances of one speaker as one embedding, and the file that keeps it.

- `"mean"`: the mean direction, with the mean norm, which hyperbolic scoring looks at.
- `"length_weighted"`: the same, weighted by the seconds of speech of each utterance.
- `"barycentre"`: the point of the ball of least sum of squared distances (`poincare.karcher_mean`), for models that
  compare by hyperbolic distance; with a cosine model it uses the same ball, and its direction counts.

Letters: `N` utterances, `D` embedding size.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibration import Quality
from .integrity import is_number, load_array, save_array, shorten
from .poincare import BallPoints, karcher_mean, to_features
from .pooling import at_least_float32
from .scoring import SMALLEST_NORM, normalize, project

COMBINATIONS = ("mean", "length_weighted", "barycentre")
PROFILE_KIND = "speaker profile"


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
