"""Numbers at the ends of float32: losses, gradients, scores and embeddings stay finite, and right where they can be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parameters import thinned
from tiny_models import cosine, noises, padded, settle, tiny_config

from hf_hamspk import HamSpkConfig, HamSpkForXVector, InputError
from hf_hamspk.geometry_hamspk import (
    HEAD_PARTS,
    SMALLEST_CURVATURE,
    combine_embeddings,
    released_radius,
    score,
    score_matrix,
)
from hf_hamspk.losses import set_class_sampling, use_blocks
from hf_hamspk.networks_hamspk import make_head

CURVED = {"projection": "curved", "curvature": 1.0}
LEARNED = CURVED | {"learnable_curvature": True}
HEADS = [
    *({"head": head} for head in [*HEAD_PARTS, "joint"]),
    *({"head": head} | CURVED for head in ("h", "ham", "joint")),
    *({"head": head} | LEARNED for head in ("h", "ham", "joint")),
    {"head": "ham", "curvature": 1.0000001},
    {"head": "ham", "curvature": 1e6},
    {"head": "ham", "projection": "curved", "curvature": 25.0},
    {"head": "joint", "euclidean_head": "scaled_softmax"},
]
# Heads whose logits are bounded. At the curvature 1.0000001, float32 has too few digits to compare gradients.
BOUNDED = [one for one in HEADS if "scaled_softmax" not in str(one) and one["head"] != "softmax" and one != HEADS[-4]]
ENGINES = ("plain", "blocks", "sampled")
SPEAKERS, SIZE, BATCH = 7, 16, 5
# Gradients that are too small for normal numbers of float32 are compared with this absolute error.
SMALLEST_GRADIENT = 1e-36

# The smallest numbers are below the normal ones of float32.
exponents = st.floats(-45, 37, allow_nan=False)
norms = st.one_of(st.just(0.0), exponents.map(lambda exponent: 10.0**exponent))
# A linear logit is the product of both norms, which must stay in range.
centre_norms = st.one_of(st.just(0.0), st.floats(-45, 20).map(lambda exponent: 10.0**exponent))


def build(fields: dict, engine: str = "plain"):
    head = make_head(HamSpkConfig(num_labels=SPEAKERS, embedding_size=SIZE, **fields))
    if engine != "plain":
        use_blocks(head)
    if engine == "sampled":
        set_class_sampling(head, 0.8)
    return head.train()


def centres_of(head) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in head.named_parameters() if name.endswith("similarity.weight")]


def directions(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, SIZE, generator=generator))


def backward(head, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(x, labels).loss
    loss.backward()
    return loss.detach(), {"embeddings": x.grad} | {name: p.grad for name, p in head.named_parameters()}


def assert_finite(loss: torch.Tensor, gradients: dict[str, torch.Tensor]) -> None:
    assert torch.isfinite(loss)
    assert [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()] == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fields", HEADS, ids=str)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(norm=norms, centre_norm=centre_norms, seed=st.integers(0, 9), meeting=st.booleans())
def test_gradients_are_finite_at_every_norm(fields, engine, norm, centre_norm, seed, meeting):
    head, labels = build(fields, engine), torch.arange(BATCH)
    x, centres = directions(seed, BATCH) * norm, directions(seed + 10, SPEAKERS) * centre_norm
    if meeting:
        # Each embedding is equal to its centre.
        x = centres[:BATCH].clone()
    with torch.no_grad():
        for weight in centres_of(head):
            weight.copy_(centres)
    assert_finite(*backward(head, x, labels))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fields", thinned(HEADS, ids=str))
def test_gradients_are_finite_at_the_ends_of_float32(fields, engine):
    head, labels = build(fields, engine), torch.arange(BATCH)
    with torch.no_grad():
        for weight in centres_of(head):
            weight[1] = 0.0
    for norm in (0.0, 1e-45, 1e-30, 1e-19, 1e19, 1e20, 1e30, 1e38, 3e38):
        x = directions(0, BATCH)
        # In one coordinate, so that the norm is exact.
        x[0], x[0, 0], x[1:] = 0.0, norm, x[1:] * norm
        head.zero_grad()
        assert_finite(*backward(head, x, labels))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fields", [one for one in HEADS if one["head"] in ("h", "ham", "joint")], ids=str)
def test_gradients_are_finite_where_embedding_and_centre_meet_at_the_rim(fields, engine):
    head, labels = build(fields, engine), torch.arange(BATCH)
    config = HamSpkConfig(**fields)
    rim = config.clip_radius if config.projection == "curved" else released_radius(config.curvature)
    x = directions(0, BATCH) * rim
    for factor in (1.0, 1 - 1e-7, 1 + 1e-7, -1.0, 10.0):
        with torch.no_grad():
            for weight in centres_of(head):
                weight[:BATCH] = factor * x
        head.zero_grad()
        assert_finite(*backward(head, x, labels))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["plain", "blocks"])
@pytest.mark.parametrize("which", ["embeddings", "centres"])
@pytest.mark.parametrize("fields", BOUNDED, ids=str)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(exponent=st.floats(1, 34))
def test_beyond_the_clip_only_the_direction_counts(fields, which, engine, exponent):
    """A longer vector has the same loss, and its gradient is smaller by the same factor."""
    factor, labels = 10.0**exponent, torch.arange(BATCH)
    results = []
    for scale in (1.0, factor):
        head, x = build(fields, engine), directions(0, BATCH) * 2
        with torch.no_grad():
            for weight in centres_of(head):
                weight.copy_(directions(1, SPEAKERS) * (2 * scale if which == "centres" else 2))
        loss, gradients = backward(head, x if which == "centres" else x * scale, labels)
        results.append((loss, gradients))
    (loss, gradients), (far_loss, far_gradients) = results
    assert far_loss.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    scaled = {"embeddings"} if which == "embeddings" else {n for n in gradients if n.endswith("similarity.weight")}
    for name, gradient in gradients.items():
        # The factor is applied in float64, because float32 may not hold the product.
        far = far_gradients[name].double() * (factor if name in scaled else 1.0)
        rounding = SMALLEST_GRADIENT * factor if name in scaled else 0.0
        allowed = 2e-3 * float(gradient.abs().max()) + rounding + 1e-6
        assert float((far - gradient.double()).abs().max()) <= allowed, name


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(exponent=st.floats(-5, 37), similarity=st.sampled_from(["cosine", "hyperbolic"]), curved=st.booleans())
def test_scores_of_embeddings_of_any_size_are_those_of_their_directions(exponent, similarity, curved):
    options = {"similarity": similarity, "projection": "curved" if curved else "released"}
    options |= {"curvature": 3.0, "clip_radius": 1.0}
    # At the first norm, vectors of both projections are clipped already.
    x, y = directions(0, 4) * 2, directions(1, 4) * 2
    factor = 10.0 ** max(exponent, 0.0) if similarity == "hyperbolic" else 10.0**exponent
    assert torch.allclose(score(x * factor, y, **options), score(x, y, **options), atol=1e-5)
    assert torch.allclose(score_matrix(x * factor, y, **options), score_matrix(x, y, **options), atol=1e-4)
    combined = combine_embeddings(x * factor, "mean", curvature=3.0)
    assert torch.allclose(cosine(combined, combine_embeddings(x, "mean")), torch.ones((), dtype=torch.float64))


# --- the learned curvature


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("runaway", [3146.0, -3146.0, 1e30, -1e30, math.inf, -math.inf])
def test_a_learned_curvature_returns_after_a_huge_step(runaway, engine):
    head, labels = build({"head": "ham"} | LEARNED, engine), torch.arange(BATCH)
    similarity = head.similarity
    bounds = SMALLEST_CURVATURE, similarity.largest_curvature
    with torch.no_grad():
        similarity.log_curvature.fill_(runaway)
    assert bounds[0] * 0.999 <= similarity.recorded_curvature() <= bounds[1] * 1.001
    for _ in range(5):
        similarity.log_curvature.grad = None
        assert_finite(*backward(head, directions(0, BATCH), labels))
        assert bounds[0] * 0.999 <= similarity.recorded_curvature() <= bounds[1] * 1.001
        with torch.no_grad():
            # A step of the usual size, always back.
            similarity.log_curvature -= 0.2 * math.copysign(1.0, runaway)
    moved = math.log(similarity.recorded_curvature()) - math.log(bounds[runaway > 0])
    assert moved == pytest.approx(-math.copysign(1.0, runaway), rel=1e-3)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rate=st.floats(-4, 12).map(lambda exponent: 10.0**exponent), engine=st.sampled_from(ENGINES))
def test_training_a_learned_curvature_with_any_step_keeps_it_in_bounds(rate, engine):
    head, labels = build({"head": "ham"} | LEARNED, engine), torch.arange(BATCH)
    optimizer = torch.optim.SGD([head.similarity.log_curvature], rate)
    for _ in range(5):
        optimizer.zero_grad()
        assert_finite(*backward(head, directions(0, BATCH), labels))
        optimizer.step()
        assert 0.99 * SMALLEST_CURVATURE <= head.similarity.recorded_curvature() <= 25.01
    HamSpkConfig(**LEARNED | {"curvature": head.similarity.recorded_curvature()})


def test_the_curvature_of_a_model_in_use_is_not_altered():
    head = build({"head": "ham"} | LEARNED).eval()
    with torch.no_grad():
        head.similarity.log_curvature.fill_(3146.0)
        head(directions(0, BATCH))
    assert head.similarity.log_curvature == 3146.0 and head.similarity.recorded_curvature() == 25.0


# --- amplitudes


FRONTENDS = [{}, {"frontend": "kaldi"}, {"frontend": "speechbrain"}, {"backbone": "wav2vec2"}]
FRONTENDS += [{"backbone": "wav2vec2", "normalize_waveform": False}]


@pytest.mark.parametrize("fields", FRONTENDS, ids=str)
def test_loud_waveforms_have_finite_embeddings(fields):
    torch.manual_seed(0)
    model = settle(HamSpkForXVector(tiny_config(**fields)))
    values, mask = padded(noises(0.4, 0.3))
    with torch.no_grad():
        expected = model(values * 100, attention_mask=mask).embeddings
        for amplitude in (1e6, 1e15, 1e18, 1e20, 1e30, 1e38):
            embeddings = model(values * amplitude, attention_mask=mask).embeddings
            assert torch.isfinite(embeddings).all()
            if fields.get("normalize_waveform", True):
                assert (cosine(embeddings, expected) > 0.9999).all()
        # The padding of a recording does not count, however loud it is.
        strange = torch.where(mask == 0, 1e30, values * 100)
        assert torch.equal(model(strange, attention_mask=mask).embeddings, expected)


@pytest.mark.parametrize("amplitude", [17.0, 1e6, 1e18, 1e20, 3e38])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.filterwarnings("error")
def test_every_door_names_the_amplitude_that_it_refuses(amplitude, channels):
    torch.manual_seed(0)
    model = settle(HamSpkForXVector(tiny_config()))
    wave = noises(0.5)[0].numpy()
    wave = wave / np.abs(wave).max()
    loud = np.stack([wave, -wave][:channels]) * amplitude
    loud = loud.astype(np.float32)
    for door in (lambda x: model.embed([x]), lambda x: model.verify(x, wave), lambda x: model.enrol([x])):
        with pytest.raises(InputError, match=r"contains samples up to .* expected floating point in \[-1, 1\]"):
            door(loud)
