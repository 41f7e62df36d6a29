"""Scores of many trials at once: against each trial scored by itself, in blocks of every size, for every similarity."""

import re

import numpy as np
import pytest
import torch

from hf_hamspk import HamSpkConfig
from hf_hamspk.evaluation import matrix_scoring
from hf_hamspk.evaluation.matrix_scoring import score_pairs
from hf_hamspk.modeling_hamspk import SpeakerModelMixin

SIMILARITIES = {
    "cosine": {"similarity": "cosine"},
    "released": {"similarity": "hyperbolic", "projection": "released", "curvature": 3.0},
    "curved": {"similarity": "hyperbolic", "projection": "curved", "curvature": 0.7},
}
every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


class Comparing(SpeakerModelMixin):
    """What compares embeddings, without a model that makes them."""

    def __init__(self, similarity: str):
        super().__init__()
        self.config = HamSpkConfig(**SIMILARITIES[similarity])


def one_by_one(model, embeddings, enrolment, test):
    """The protocol written out, in float64, a trial at a time."""
    embeddings = embeddings.double()
    scores = []
    for a, b in zip(enrolment, test, strict=True):
        score = model.score(embeddings[a, 0], embeddings[b, 0]).item()
        if embeddings.shape[1] > 1:
            pairs = [model.score(x, y).item() for x in embeddings[a, 1:] for y in embeddings[b, 1:]]
            score = (score + sum(pairs) / len(pairs)) / 2
        scores.append(score)
    return np.array(scores)


@pytest.fixture
def drawn():
    """Embeddings of 12 utterances, six each, and 30 trials."""
    rng = np.random.default_rng(0)
    embeddings = torch.from_numpy(rng.normal(size=(12, 6, 8)) * rng.uniform(0.02, 2, size=(12, 1, 1))).float()
    return embeddings, rng.integers(0, 12, 30), rng.integers(0, 12, 30)


@every_similarity
@pytest.mark.parametrize("segments", [0, 5])
@pytest.mark.parametrize("cost", [0, 10**9], ids=["gathered", "products"])
@pytest.mark.parametrize("block", [700, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 1 << 24))])
def test_scores_are_those_of_single_trials(drawn, monkeypatch, similarity, segments, cost, block):
    monkeypatch.setattr(matrix_scoring, "GATHERING_COST", cost)
    monkeypatch.setattr(matrix_scoring, "MOST_NUMBERS", block)
    embeddings, enrolment, test = drawn
    embeddings = embeddings[:, : 1 + segments]
    model = Comparing(similarity)
    scores = score_pairs(model, embeddings, enrolment, test)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, one_by_one(model, embeddings, enrolment, test), atol=2e-6)


@pytest.mark.slow
@every_similarity
@pytest.mark.parametrize("segments", [0, 5])
def test_all_pairs_are_those_of_single_trials(drawn, monkeypatch, similarity, segments):
    monkeypatch.setattr(matrix_scoring, "MOST_NUMBERS", 20)
    embeddings = drawn[0][:, : 1 + segments]
    model = Comparing(similarity)
    rows, columns = np.divmod(np.arange(5 * 9), 9)
    scores = score_pairs(model, embeddings, rows, columns + 3).reshape(5, 9)
    expected = one_by_one(model, embeddings, rows, columns + 3).reshape(5, 9)
    np.testing.assert_allclose(scores, expected, atol=2e-6)


@every_similarity
def test_the_mean_is_subtracted_first(drawn, similarity):
    embeddings, enrolment, test = drawn
    mean = torch.linspace(-1, 1, 8)
    model = Comparing(similarity)
    scores = score_pairs(model, embeddings, enrolment, test, mean)
    np.testing.assert_array_equal(scores, score_pairs(model, embeddings - mean, enrolment, test))
    assert not np.allclose(scores, score_pairs(model, embeddings, enrolment, test), atol=0.01)
    rows, columns = np.divmod(np.arange(12 * 12), 12)
    products = score_pairs(model, embeddings, rows, columns, mean).reshape(12, 12)
    np.testing.assert_allclose(products[enrolment, test], scores, atol=2e-6)


@every_similarity
def test_a_recording_against_itself_has_the_greatest_score(similarity):
    embeddings = torch.randn(40, 1, 64)
    rows, columns = np.divmod(np.arange(40 * 40), 40)
    scores = score_pairs(Comparing(similarity), embeddings, rows, columns).reshape(40, 40)
    best = 1.0 if similarity == "cosine" else 0.0
    np.testing.assert_allclose(scores.diagonal(), best, rtol=0, atol=2e-6)


def test_no_trials_no_scores(drawn):
    none = np.empty(0, int)
    assert score_pairs(Comparing("cosine"), drawn[0], none, none).shape == (0,)


def test_bad_shapes_are_refused(drawn):
    model, (embeddings, enrolment, test) = Comparing("cosine"), drawn
    cases = [
        (
            (embeddings[:, 0], enrolment, test),
            "embeddings must have the shape (utterances, embeddings per utterance, embedding size)",
        ),
        ((embeddings, enrolment, test[1:]), "enrolment and test must be one-dimensional and have the same length"),
        ((embeddings, enrolment + 1, test), "Indices of trials must lie between 0 and 11, got"),
        ((embeddings, enrolment, test, torch.zeros(7)), "mean must have shape (8,), got (7,)"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            score_pairs(model, *arguments)
