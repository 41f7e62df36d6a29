"""Scores of pairs of embeddings with one model: raw, normalised, and as log-likelihood ratios.

Letters: `P` pairs, `C` cohort embeddings, `D` embedding size, `N` utterances, `L` samples.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .calibration import Calibration, Quality, quality_features
from .configuration_hamspk import HamSpkConfig
from .normalisation import Cohort, CohortStatistics, apply_statistics, cohort_statistics

# Cohort scores held at once: 64 MiB of float32.
BLOCK_SCORES = 1 << 24


class SpeakerModel(Protocol):
    """What a verifier needs of a model; every model of this package has it."""

    config: HamSpkConfig
    device: torch.device

    def embed(self, waveforms: Sequence[np.ndarray], sampling_rate: int) -> Tensor:
        """`(N, D)`."""
        ...

    def score(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """`(..., D)` and `(..., D)` to `(...)`."""
        ...

    def score_matrix(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """`(P, D)` and `(C, D)` to `(P, C)`."""
        ...

    def magnitude(self, embeddings: Tensor) -> Tensor:
        """`(..., D)` to `(...)`."""
        ...

    def fingerprint(self) -> str:
        """Of the weights."""
        ...


class Scores(NamedTuple):
    """Of P pairs, each `(P,)` float64.

    Attributes:
        raw: similarity of the embeddings.
        normalised: with the cohort; None where the calibration asks for none.
        log_likelihood_ratio: natural logarithm; None where the model is not calibrated.
    """

    raw: np.ndarray
    normalised: np.ndarray | None
    log_likelihood_ratio: np.ndarray | None


class Scorer:
    """A model with its calibration and cohort, checked to belong together. The weights must not change meanwhile.

    Args:
        model: compares embeddings.
        calibration: None for raw scores alone.
        cohort: for the score normalisation that the calibration was measured with.

    Raises:
        ValueError: the calibration or the cohort is of another model, or the calibration was measured with a cohort
            that is missing or is not this one.
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
        """Score each row of `enrolment` `(P, D)` against the same row of `test` `(P, D)`.

        Args:
            enrolment: embeddings.
            test: embeddings.
            enrolment_quality: of each row; enters the log-likelihood ratio where the calibration weighs it.
            test_quality: likewise.
        """
        raw = self.model.score(enrolment, test)
        scores = _numbers(raw)
        if self.calibration is None:
            return Scores(scores, None, None)
        normalised = None
        if self._cohort is not None:
            kind = self.calibration.normalisation
            normalised = _numbers(apply_statistics(raw, self._statistics(enrolment), self._statistics(test), kind))
        features = quality_features(_stack(enrolment_quality), _stack(test_quality))
        ratios = self.calibration.log_likelihood_ratio(scores if normalised is None else normalised, features)
        return Scores(scores, normalised, ratios)

    def ratios(
        self, enrolment: Tensor, test: Tensor, enrolment_quality: Sequence[Quality], test_quality: Sequence[Quality]
    ) -> np.ndarray:
        """The log-likelihood ratios of `scores`, `(P,)`.

        Raises:
            ValueError: the model is not calibrated.
        """
        ratios = self.scores(enrolment, test, enrolment_quality, test_quality).log_likelihood_ratio
        if ratios is None:
            raise ValueError("Without a calibration there is no log-likelihood ratio.")
        return ratios

    def _statistics(self, embeddings: Tensor) -> CohortStatistics:
        cohort, calibration = self._cohort, self.calibration
        if cohort is None or calibration is None:
            raise ValueError("There is no cohort to normalise with.")
        blocks = embeddings.split(max(1, BLOCK_SCORES // len(cohort)))
        parts = [cohort_statistics(self.model.score_matrix(block, cohort), calibration.top) for block in blocks]
        return CohortStatistics(torch.cat([part.mean for part in parts]), torch.cat([part.deviation for part in parts]))


def _numbers(scores: Tensor) -> np.ndarray:
    return scores.detach().double().cpu().numpy()


def _stack(qualities: Sequence[Quality]) -> Quality:
    """N qualities as one of arrays `(N,)`."""
    columns = zip(*((q.speech, q.snr_db, q.magnitude, q.utterances) for q in qualities), strict=True)
    return Quality(*(np.array(column, dtype=np.float64) for column in columns))
