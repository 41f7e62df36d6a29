"""Search against brute force in float64: for every similarity, with FAISS and without, on ties and near ties."""

import math

import numpy as np
import pytest
import torch

from hf_hamspk import HamSpkConfig
from hf_hamspk.modeling_hamspk import SpeakerModelMixin
from hf_hamspk.search import SpeakerIndex
from hf_hamspk.search import index as module
from hf_hamspk.search.engines import TorchEngine, import_faiss
from hf_hamspk.search.products import ROUNDED_FACTORS, Similarity, rounding_bound
from hf_hamspk.verification_hamspk import SpeakerProfile

SIMILARITIES = {
    "cosine": {"similarity": "cosine"},
    "released": {"similarity": "hyperbolic", "projection": "released", "curvature": 3.0},
    "curved": {"similarity": "hyperbolic", "projection": "curved", "curvature": 0.7},
    "far out": {"similarity": "hyperbolic", "projection": "curved", "curvature": 4.0, "clip_radius": 2.5},
}
every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)
needs_faiss = pytest.mark.skipif(import_faiss() is None, reason="faiss is not installed")
engines = pytest.mark.parametrize("use_faiss", [False, pytest.param(True, marks=needs_faiss)], ids=["torch", "faiss"])
# Scores this near are tied: brute force in float64 itself orders them by rounding.
TIE = 1e-9


class Comparing(SpeakerModelMixin):
    """What compares embeddings, without a model that makes them."""

    def __init__(self, similarity: str, weights: str = "a" * 64):
        super().__init__()
        self.config = HamSpkConfig(**SIMILARITIES[similarity])
        self.weights = weights

    def fingerprint(self) -> str:
        return self.weights


def drawn(count: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, size)) * rng.uniform(0.02, 0.7, size=(count, 1))).float()


def assert_nearest(model, result, enrolled, queries, k):
    """The scores are those of brute force; so are the rows, but for rows of scores that are tied."""
    scores = model.score(queries.double()[:, None], enrolled.double()).numpy()
    expected = np.sort(scores, axis=1)[:, ::-1][:, :k]
    np.testing.assert_allclose(result.scores, expected, atol=TIE, rtol=0)
    np.testing.assert_allclose(np.take_along_axis(scores, result.rows, 1), expected, atol=TIE, rtol=0)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)[:, : k + 1]
    gaps = np.pad(-np.diff(ranked, axis=1), ((0, 0), (1, 0)), constant_values=np.inf)
    alone = (gaps[:, :k] > TIE) & (np.pad(gaps, ((0, 0), (0, 1)), constant_values=np.inf)[:, 1 : k + 1] > TIE)
    assert np.array_equal(result.rows[alone], order[:, :k][alone])
    assert all(len(set(rows)) == k for rows in result.rows.tolist())


@every_similarity
@engines
@pytest.mark.parametrize("k", [1, 10])
def test_nearest_as_by_brute_force(monkeypatch, similarity, use_faiss, k):
    monkeypatch.setattr("hf_hamspk.search.engines.PRODUCTS_AT_ONCE", 4000)
    model, enrolled = Comparing(similarity), drawn(700)
    queries = torch.cat([drawn(40, seed=1), enrolled[:5]])
    result = SpeakerIndex(model, enrolled, use_faiss=use_faiss).search(queries, k)
    assert result.scores.shape == result.rows.shape == (45, k)
    assert_nearest(model, result, enrolled, queries, k)
    assert result.rows[-5:, 0].tolist() == list(range(5))


@every_similarity
@engines
def test_ties_and_near_ties(similarity, use_faiss):
    """Equal embeddings, and ones that float32 products cannot tell apart."""
    model, base = Comparing(similarity), drawn(3, seed=2)
    shift = torch.randn(3, 100, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = (base.double()[:, None] * (1 + 3e-7 * shift)).float().flatten(0, 1)
    enrolled = torch.cat([base.repeat(60, 1), near])
    result = SpeakerIndex(model, enrolled, use_faiss=use_faiss).search(base, 10)
    assert_nearest(model, result, enrolled, base, 10)
    first = result.scores[:, :1] == result.scores
    assert first.all(), "of the equal embeddings, ten are nearest"
    assert result.rows.tolist() == SpeakerIndex(model, enrolled, use_faiss=False).search(base, 10).rows.tolist()


@every_similarity
def test_what_cannot_be_proven_is_compared_with_everything(monkeypatch, similarity):
    """An engine that errs within the rounding is found out."""

    class Sloppy(TorchEngine):
        def search(self, queries, count):
            products, rows = super().search(queries, 60)
            return products[:, -count:], rows[:, -count:]

    model, enrolled, queries = Comparing(similarity), drawn(300), drawn(20, seed=1)
    monkeypatch.setattr(module, "TorchEngine", Sloppy)
    monkeypatch.setattr(module, "rounding_bound", lambda size: 1e3)
    assert_nearest(model, SpeakerIndex(model, enrolled, use_faiss=False).search(queries), enrolled, queries, 10)


@every_similarity
def test_products_rank_as_scores_do(similarity):
    settings = Similarity.of(Comparing(similarity))
    keys, queries = drawn(50), drawn(20, seed=1)
    left, right = settings.query_vectors(queries), settings.key_vectors(keys)
    scores = settings.score(keys, queries[:, None])
    exact = settings.product_of_score(scores, queries)
    bound = rounding_bound(left.shape[1]) * left.norm(dim=1).max() * right.norm(dim=1).max()
    assert ((left @ right.mT).double() - exact).abs().max() <= bound


@needs_faiss
@every_similarity
def test_cells_find_most_and_all_cells_find_all(similarity):
    model, enrolled = Comparing(similarity), drawn(2000)
    queries = enrolled[:50] * 1.01
    few = SpeakerIndex(model, enrolled, kind="cells", cells=20, probes=10).search(queries)
    best = SpeakerIndex(model, enrolled).search(queries)
    shared = [len(set(a) & set(b)) for a, b in zip(few.rows.tolist(), best.rows.tolist(), strict=True)]
    assert np.mean(shared) > 5
    index = SpeakerIndex(model, enrolled, kind="cells", cells=20, probes=1)
    index.set_probes(20)
    assert_nearest(model, index.search(queries), enrolled, queries, 10)
    lonely = SpeakerIndex(model, enrolled[:50], kind="cells", cells=50, probes=1).search(queries, 10)
    assert (lonely.rows == -1).any()
    assert np.array_equal(np.isinf(lonely.scores), lonely.rows == -1)


@pytest.mark.parametrize("kind", ["exact", pytest.param("cells", marks=needs_faiss)])
def test_saved_and_loaded(tmp_path, kind):
    model, enrolled, queries = Comparing("released"), drawn(200), drawn(10, seed=1)
    index = SpeakerIndex(model, enrolled, [f"s{i}" for i in range(200)], kind=kind, cells=10, probes=3)
    index.save(tmp_path / "index.safetensors")
    again = SpeakerIndex.load(tmp_path / "index.safetensors", model)
    for ours, theirs in zip(index.search(queries), again.search(queries), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.name_of(7) == "s7"
    assert (tmp_path / "index.faiss").is_file() == (kind == "cells")
    with pytest.raises(ValueError, match=r"with other weights \(aaaaaaaaaaaa\) than .* \(bbbbbbbbbbbb\)"):
        SpeakerIndex.load(tmp_path / "index.safetensors", Comparing("released", "b" * 64))
    with pytest.raises(ValueError, match="the model now declares"):
        SpeakerIndex.load(tmp_path / "index.safetensors", Comparing("cosine"))
    for name in ("index.faiss", "index.safetensors"):
        if not (tmp_path / name).is_file():
            continue
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(ValueError, match="altered"):
            SpeakerIndex.load(tmp_path / "index.safetensors", model)


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    model, enrolled = Comparing("cosine"), drawn(50)
    assert_nearest(model, SpeakerIndex(model, enrolled).search(enrolled, 3), enrolled, enrolled, 3)
    with pytest.raises(ImportError, match=r"hf_hamspk\[search\]"):
        SpeakerIndex(model, enrolled, kind="cells")


def test_profiles_and_bad_input(tmp_path):
    model = Comparing("cosine")
    fields = {"seconds": (9.0,), "snr_db": 30.0, "magnitude": 1.0, "combine": "mean", "fingerprint": "a" * 64}
    profiles = [SpeakerProfile(name, e, **fields) for name, e in zip(("anna", "carl"), drawn(2), strict=True)]
    index = SpeakerIndex.of_profiles(model, profiles)
    result = index.search(profiles[1].embedding[None], 10)
    assert result.rows.shape == (1, 2)
    assert index.name_of(result.rows[0, 0]) == "carl"
    assert index.search(torch.empty(0, 16)).rows.shape == (0, 2)
    with pytest.raises(ValueError, match="made with other weights"):
        SpeakerIndex.of_profiles(Comparing("cosine", "b" * 64), profiles)
    cases = [
        (lambda: SpeakerIndex(model, drawn(2), kind="tree"), "kind must be one of"),
        (lambda: SpeakerIndex(model, drawn(2)[0]), "shape"),
        (lambda: SpeakerIndex(model, drawn(2) * torch.nan), "finite"),
        (lambda: SpeakerIndex(model, drawn(2), ["one"]), "2 names"),
        (lambda: index.search(drawn(2), 0), "k must be"),
        (lambda: index.search(drawn(2, size=8)), r"\(Q, 16\)"),
        (lambda: index.save(tmp_path / "index.npz"), "must end in"),
        (lambda: index.name_of(-1), "has no speaker name"),
        (lambda: index.set_probes(3), "for an index of the kind 'exact'"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_bound_of_rounding_is_highams_gamma():
    """n u / (1 - n u), for n additions and multiplications and two conversions of each factor; infinite at n u = 1."""
    unit, terms = 2.0**-24, 192 + ROUNDED_FACTORS
    assert rounding_bound(192) == pytest.approx(terms * unit / (1 - terms * unit), rel=1e-15)
    assert rounding_bound(2**23) == pytest.approx(1.0, rel=1e-5)
    assert rounding_bound(2**24) == math.inf
