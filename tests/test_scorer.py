"""Scores with a calibration and a cohort, against the parts put together by hand; what does not belong together."""

import numpy as np
import pytest
import torch
from speakers import SIZE, KnownSpeakers, calibration_of

from hf_hamspk.calibration_hamspk import (
    Cohort,
    Quality,
    Scorer,
    apply_statistics,
    cohort_statistics,
    quality_features,
)

PAIRS = 7


@pytest.fixture
def sides():
    draw = np.random.default_rng(0)
    quality = [[Quality(*draw.uniform(1, 20, 3)) for _ in range(PAIRS)] for _ in range(2)]
    return torch.randn(PAIRS, SIZE), torch.randn(PAIRS, SIZE), *quality


def cohort_of(model, size: int = 30) -> Cohort:
    return Cohort(torch.randn(size, SIZE), model.fingerprint())


@pytest.mark.parametrize("similarity", ["cosine", "hyperbolic"])
@pytest.mark.parametrize(("kind", "top"), [("none", None), ("z", None), ("as", 10)])
def test_scores_are_those_of_the_parts(monkeypatch, sides, similarity, kind, top):
    model = KnownSpeakers(similarity=similarity)
    cohort = cohort_of(model)
    weights = {"score": 2.0, "snr_min": 0.1, "log_speech_max": -0.3}
    used = None if kind == "none" else cohort.checksum
    calibration = calibration_of(model, weights=weights, normalisation=kind, top=top, cohort=used)
    # Blocks of three rows give what one block gives.
    monkeypatch.setattr("hf_hamspk.calibration_hamspk.BLOCK_SCORES", 3 * len(cohort.embeddings))
    scores = Scorer(model, calibration, cohort).scores(*sides)
    raw = model.score(*sides[:2]).double()
    against = [cohort_statistics(model.score_matrix(side, cohort.embeddings).double(), top) for side in sides[:2]]
    normalised = apply_statistics(raw, *against, kind).numpy()
    np.testing.assert_allclose(scores.raw, raw, rtol=1e-6)
    if kind == "none":
        assert scores.normalised is None
    else:
        np.testing.assert_allclose(scores.normalised, normalised, rtol=1e-4, atol=1e-4)
    for i in range(PAIRS):
        features = quality_features(sides[2][i], sides[3][i])
        expected = calibration.log_likelihood_ratio(float(normalised[i]), features)
        assert scores.log_likelihood_ratio[i] == pytest.approx(expected, abs=1e-3)


def test_without_a_calibration_there_are_scores_alone(sides):
    scorer = Scorer(KnownSpeakers())
    assert scorer.scores(*sides)[1:] == (None, None)
    with pytest.raises(ValueError, match="A log-likelihood ratio needs a calibration"):
        scorer.ratios(*sides)


def test_what_does_not_belong_together_is_refused():
    model, other = KnownSpeakers(), KnownSpeakers("b" * 64)
    cohort = cohort_of(model)
    normalised = calibration_of(model, normalisation="s", cohort=cohort.checksum)
    Scorer(model, normalised, cohort)
    with pytest.raises(ValueError, match="no cohort was given"):
        Scorer(model, normalised)
    with pytest.raises(ValueError, match="The cohort is not the one that the calibration was fitted with"):
        Scorer(model, normalised, cohort_of(model))
    for parts in ((calibration_of(other), None), (None, cohort_of(other)), (calibration_of(model), cohort_of(other))):
        with pytest.raises(ValueError, match=r"made with other weights \(bbbbbbbbbbbb\)"):
            Scorer(model, *parts)
    with pytest.raises(ValueError, match="needs 'cosine' scores, but the model computes 'hyperbolic'"):
        Scorer(KnownSpeakers(similarity="hyperbolic"), calibration_of(model))
