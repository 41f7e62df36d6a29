"""Every head against golden numbers, its own relatives, the edges of its domain and its memory."""

import copy
import json
import math
import re

import pytest
import torch
from tiny_models import tiny_config
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_hamspk import HamSpkConfig
from hf_hamspk import modeling_hamspk as heads
from hf_hamspk.geometry_hamspk import HEAD_PARTS, MAX_TANGENT_RADIUS, SMALLEST_CURVATURE, SpeakerHead, apply_margin
from hf_hamspk.losses import use_blocks

HEADS = [*HEAD_PARTS, "joint"]
HYPERBOLIC = ["h", "ham", "joint"]
# Whose loss: the plain one, which travels, or the one over blocks of speakers, which a trainer puts onto the head.
ENGINES = {"plain": lambda head: head, "blocks": use_blocks}
GOLDEN = ["softmax", "softmax_x30", "am", "aam", "ram", "h", "ham", "ham_c2", "ham_c10"]


@pytest.fixture(autouse=True, params=ENGINES)
def make_head(request, monkeypatch):
    """Every test runs with both losses."""
    plain = heads.make_head
    monkeypatch.setattr(heads, "make_head", lambda config: ENGINES[request.param](plain(config)))


def build(head: str, speakers: int = 7, size: int = 16, **fields):
    """A head with centres of the size that training gives them, not the released start at the origin."""
    module = heads.make_head(HamSpkConfig(head=head, num_labels=speakers, embedding_size=size, **fields))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "curvature" not in name:
                parameter.normal_(0, 0.1, generator=generator)
    return module


def batch(count: int = 12, speakers: int = 7, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(count, size, generator=generator), torch.randint(0, speakers, (count,), generator=generator)


def weights(head) -> list[torch.Tensor]:
    return [parameter for name, parameter in head.named_parameters() if name.endswith("similarity.weight")]


# --- golden numbers


def golden_head(tensors: dict, metadata: dict, name: str, dtype: torch.dtype):
    about = json.loads(metadata[name])
    kind = "scaled_softmax" if name == "softmax_x30" else about["kind"]
    fields = {"curvature": about["c"]} if "c" in about else {}
    config = HamSpkConfig(
        head=kind, scale=about["s"], margin=about.get("m", 0.0), num_labels=40, embedding_size=192, **fields
    )
    head = heads.make_head(config).to(dtype)
    centres = tensors["centres.hyperbolic" if "c" in about else "centres.euclidean"]
    with torch.no_grad():
        head.similarity.weight.copy_(centres)
        if kind.endswith("softmax"):
            head.similarity.bias.copy_(tensors["bias"])
    return head


def assert_near(actual: torch.Tensor, expected: torch.Tensor, relative: float, what: str) -> None:
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= relative, f"{what}: {error:.2e} of the largest entry, more than {relative}"


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(golden, name, dtype, relative):
    tensors, metadata = golden("losses")
    assert set(metadata) == set(GOLDEN)
    head = golden_head(tensors, metadata, name, dtype)
    labels = tensors["labels"]
    embeddings = tensors["embeddings"].to(dtype).requires_grad_()
    similarity = head.similarity(embeddings, labels)
    logits = apply_margin(similarity, labels, head.margin_kind, head.margin, head.scale)
    output = head(embeddings, labels)
    assert_near(logits, tensors[f"{name}.logits"], relative, "logits")
    assert_near(F.cross_entropy(logits, labels, reduction="none"), tensors[f"{name}.loss"], relative, "loss per sample")
    assert_near(output.loss, tensors[f"{name}.loss"].mean(), relative, "loss")
    if f"{name}.distance" in tensors:
        assert_near(-similarity, tensors[f"{name}.distance"], relative, "distance")
        # Without labels the matrix product serves all pairs, at the precision of float32.
        assert_near(-head.similarity(embeddings), tensors[f"{name}.distance"], max(relative, 1e-7), "all distances")
    output.loss.backward()
    assert_near(embeddings.grad, tensors[f"{name}.grad_embeddings"], relative, "gradient of the embeddings")
    assert_near(head.similarity.weight.grad, tensors[f"{name}.grad_centres"], relative, "gradient of the centres")


# --- relations between heads


def test_h_is_ham_without_margin():
    embeddings, labels = batch()
    h, ham = build("h", curvature=3.0), build("ham", curvature=3.0, margin=0.0)
    ham.load_state_dict(h.state_dict())
    for left, right in zip(h(embeddings, labels, True), ham(embeddings, labels, True), strict=True):
        assert torch.equal(left, right)


def test_am_without_margin_is_the_normalised_softmax_and_cross_entropy_by_hand():
    embeddings, labels = batch()
    am, plain = build("am", margin=0.0), build("normalized_softmax")
    plain.load_state_dict(am.state_dict())
    centres = am.similarity.weight
    cosine = torch.stack([F.cosine_similarity(embeddings, centre[None]) for centre in centres], dim=1)
    by_hand = -(torch.log_softmax(30 * cosine, dim=1)[range(len(labels)), labels]).mean()
    assert torch.equal(am(embeddings, labels).loss, plain(embeddings, labels).loss)
    torch.testing.assert_close(am(embeddings, labels).loss, by_hand, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(am(embeddings).logits, 30 * cosine, rtol=1e-4, atol=1e-4)


def test_aam_adds_an_angle():
    embeddings, labels = batch()
    head = build("aam", margin=0.3)
    cosine = (head.similarity(embeddings)).double()
    angle = torch.acos(cosine)
    angle[range(len(labels)), labels] += 0.3
    torch.testing.assert_close(
        head(embeddings, labels).loss.double(), F.cross_entropy(30 * torch.cos(angle), labels), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["angular", "additive", "real"])
def test_the_margined_target_falls_as_its_similarity_falls(kind):
    """No reward for moving away from the own centre: the target's logit is monotone over the whole range."""
    target = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
    similarity = torch.cat([target, torch.full_like(target, -2.0)], dim=1)
    labels = torch.zeros(2001, dtype=torch.long)
    logits = apply_margin(similarity, labels, kind, 0.5, 30.0)[:, 0]
    assert (logits.diff() > 0).all()
    assert (logits <= 30 * target[:, 0]).all()


def test_real_margin_sets_easy_impostors_to_zero():
    similarity = torch.tensor([[0.9, 0.8, 0.5]])
    logits = apply_margin(similarity, torch.tensor([0]), "real", 0.2, 10.0)
    torch.testing.assert_close(logits, torch.tensor([[7.0, 8.0, 0.0]]))


@pytest.mark.parametrize("euclidean", ["normalized_softmax", "am", "aam", "ram"])
def test_joint_is_the_weighted_sum_of_its_parts(euclidean):
    embeddings, labels = batch()
    joint = build("joint", euclidean_head=euclidean, euclidean_weight=0.4, hyperbolic_weight=1.5)
    parts = {"euclidean": build(euclidean), "hyperbolic": build("ham")}
    for name, part in parts.items():
        part.load_state_dict(getattr(joint, name).state_dict())
    logits, loss = joint(embeddings, labels, True)
    ham_logits, ham_loss = parts["hyperbolic"](embeddings, labels, True)
    assert torch.equal(logits, ham_logits)
    torch.testing.assert_close(loss, 0.4 * parts["euclidean"](embeddings, labels).loss + 1.5 * ham_loss)
    assert joint(embeddings).loss is None


# --- margin


@pytest.mark.parametrize("head", ["am", "aam", "ham", "joint"])
def test_margin_follows_its_schedule(head):
    embeddings, labels = batch()
    module = build(head, margin=0.0)
    losses = []
    for margin in (0.0, 0.1, 0.3):
        module.set_margin(margin)
        assert module.margin == margin
        losses.append(module(embeddings, labels).loss.item())
    assert losses[0] < losses[1] < losses[2]
    assert build(head, margin=0.3)(embeddings, labels).loss.item() == pytest.approx(losses[2], rel=1e-6)
    logits = module(embeddings).logits
    module.set_margin(0.0)
    assert torch.equal(module(embeddings).logits, logits), "logits carry no margin"


@pytest.mark.parametrize("margin", [-0.1, 3.0, float("nan"), float("inf")])
@pytest.mark.parametrize("head", ["ham", "joint", "softmax"])
def test_margin_out_of_range_is_refused(head, margin):
    with pytest.raises(ValueError, match=re.escape(f"margin must be at least 0 and below 3, got {margin}.")):
        build(head).set_margin(margin)


# --- the edges


def edge_embeddings(head, case: str) -> torch.Tensor:
    embeddings, labels = batch()
    centres = weights(head)[-1].detach()
    return {
        "on its centre": centres[labels].clone(),
        "on another centre": centres[(labels + 1) % len(centres)].clone(),
        "zero": torch.zeros_like(embeddings),
        "identical": embeddings[:1].expand_as(embeddings).clone(),
        "huge": 1e4 * embeddings,
        "tiny": 1e-8 * embeddings,
        "opposite": -centres[labels].clone(),
        "zero centres": embeddings,
        "chance level": embeddings,
        "all zero": torch.zeros_like(embeddings),
    }[case]


CASES = [
    "on its centre",
    "on another centre",
    "zero",
    "identical",
    "huge",
    "tiny",
    "opposite",
    "zero centres",
    "chance level",
    "all zero",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_finite_at_the_edges(head, dtype):
    for case in CASES:
        check_gradients(build(head), case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("curvature", [1e-4, 1.0, 10.0])
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_gradients_are_finite_at_the_edges_of_the_curved_variant(dtype, curvature, learned):
    for case in CASES:
        head = build("ham", projection="curved", curvature=curvature, learnable_curvature=learned)
        check_gradients(head, case, dtype)


def check_gradients(module, case: str, dtype: torch.dtype) -> None:
    embeddings = edge_embeddings(module, case).to(dtype).requires_grad_()
    _, labels = batch()
    with torch.no_grad():
        for weight in weights(module):
            if case in ("zero centres", "all zero"):
                weight.zero_()
            elif case == "chance level":
                weight.copy_(weight[:1].expand_as(weight))
    logits, loss = module(embeddings, labels, True)
    loss.backward()
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == logits.dtype == wanted, case
    assert loss.isfinite() and logits.isfinite().all(), case
    assert embeddings.grad.dtype == dtype and embeddings.grad.isfinite().all(), case
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), (case, name)


@pytest.mark.parametrize("projection", ["released", "curved"])
def test_the_distance_to_the_own_centre_is_exact_where_they_almost_coincide(projection):
    head = build("ham", projection=projection)
    _, labels = batch()
    embeddings = head.similarity.weight.detach()[labels] * (1 + 2.0**-12)
    exact = copy.deepcopy(head).double().similarity(embeddings.double(), labels).gather(1, labels[:, None])
    own = head.similarity(embeddings, labels).gather(1, labels[:, None])
    assert exact.abs().max() < 1e-3
    torch.testing.assert_close(own.double(), exact, rtol=1e-3, atol=0)


def test_logits_are_left_out_in_training_with_labels_only():
    head, (embeddings, labels) = build("ham"), batch()
    assert head.train()(embeddings, labels).logits is None
    assert head(embeddings).logits.shape == head(embeddings, labels, return_logits=True).logits.shape == (12, 7)
    assert head.eval()(embeddings, labels).logits.shape == (12, 7)
    assert head(embeddings, labels, return_logits=False).logits is None


def test_settings_of_a_head_alone():
    assert SpeakerHead("ham", 5, 4, 30.0, 0.2, 3.0).clip_radius == HamSpkConfig().clip_radius == 1.0
    cases = [
        ({"clip_radius": 0.0}, "clip_radius must be above 0"),
        ({"clip_radius": math.inf}, "clip_radius must be above 0"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": math.inf}, "scale must be above 0"),
        ({"margin": 3.0}, "margin must be at least 0 and below 3"),
        ({"margin": -0.1}, "margin must be at least 0 and below 3"),
    ]
    for fields, message in cases:
        with pytest.raises(ValueError, match=message):
            SpeakerHead("ham", 5, 4, **({"scale": 30.0, "margin": 0.2, "curvature": 3.0} | fields))


def test_chance_level_is_the_logarithm_of_the_number_of_speakers():
    embeddings, labels = batch()
    head = build("ham", margin=0.0)
    with torch.no_grad():
        head.similarity.weight.zero_()
    assert head(embeddings, labels).loss.item() == pytest.approx(torch.tensor(7.0).log().item(), rel=1e-5)


def naive_released_loss(embeddings, centres, labels, c=3.0, m=0.2, s=30.0):
    """The released code's formula as it stands."""
    radius = (1 - 1e-5) / c**0.5

    def clip(v):
        norm = v.norm(dim=-1, keepdim=True)
        return torch.where(norm > radius, v / norm * radius, v)

    x, w = clip(embeddings)[:, None], clip(centres)[None]
    room = torch.clamp((1 - x.square().sum(-1)) * (1 - w.square().sum(-1)), min=1e-5)
    d = torch.acosh(1 + 2 * (x - w).square().sum(-1) / room)
    return F.cross_entropy(-s * (d + m * F.one_hot(labels, len(centres))), labels)


def test_the_released_formula_gives_nan_where_an_embedding_meets_a_centre_and_ours_does_not():
    head = build("ham")
    embeddings, labels = batch()
    weight = head.similarity.weight

    def gradients(embeddings):
        embeddings = embeddings.requires_grad_()
        naive = torch.autograd.grad(naive_released_loss(embeddings, weight, labels), (embeddings, weight))
        return naive, torch.autograd.grad(head(embeddings, labels).loss, (embeddings, weight))

    for naive, ours in zip(*gradients(0.1 * embeddings), strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-3, atol=1e-4)
    naive, ours = gradients(weight.detach()[labels])
    assert all(g.isnan().any() for g in naive)
    assert all(g.isfinite().all() for g in ours)


# --- memory and precision


class LargestTensor(TorchDispatchMode):
    """Records the number of entries of the largest tensor that any operation gives, backward included."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **({} if kwargs is None else kwargs))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("head", HEADS)
def test_no_tensor_of_batch_by_speakers_by_size_is_made(head):
    module = build(head, speakers=500, size=192)
    embeddings, labels = batch(64, 500, 192)
    embeddings.requires_grad_()
    with LargestTensor() as largest:
        module(embeddings, labels).loss.backward()
    # A lifted vector has two columns more, and a row of them in memory is filled up to a multiple of 16.
    assert 64 * 500 <= largest.numel <= 500 * (192 + 16)


@pytest.mark.parametrize("head", HEADS)
def test_autocast_does_not_reach_the_loss(head):
    module = build(head)
    embeddings, labels = batch()
    expected = module(embeddings, labels, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(embeddings, labels, True)
    assert output.loss.dtype == output.logits.dtype == torch.float32
    assert torch.equal(output.loss, expected.loss) and torch.equal(output.logits, expected.logits)


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_weights_are_used_in_float32(head):
    module = build(head).bfloat16()
    embeddings, labels = batch()
    output = module(embeddings.bfloat16(), labels)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in module.parameters())


# --- learned curvature


def learned(**fields):
    return build("ham", projection="curved", learnable_curvature=True, **({"curvature": 1.0} | fields))


def test_learned_curvature_moves():
    head = learned()
    embeddings, labels = batch()
    optimiser = torch.optim.SGD([head.similarity.log_curvature], lr=0.01)
    before, first = head.similarity.curvature().item(), head(embeddings, labels).loss
    first.backward()
    optimiser.step()
    assert head.similarity.curvature().item() != before
    assert head(embeddings, labels).loss < first


@pytest.mark.parametrize("clip_radius", [0.3, 0.7, 1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("value", [-50.0, 50.0])
def test_learned_curvature_stays_bounded_and_can_come_back(clip_radius, value):
    head = learned(clip_radius=clip_radius)
    with torch.no_grad():
        head.similarity.log_curvature.fill_(value)
    bound = SMALLEST_CURVATURE if value < 0 else (MAX_TANGENT_RADIUS / clip_radius) ** 2
    assert head.similarity.curvature().item() == pytest.approx(bound, rel=1e-5)
    recorded = head.similarity.recorded_curvature()
    config = tiny_config(projection="curved", learnable_curvature=True, clip_radius=clip_radius, curvature=recorded)
    assert config.curvature == recorded
    embeddings, labels = batch()
    head(embeddings, labels).loss.backward()
    gradient = head.similarity.log_curvature.grad
    assert gradient.isfinite() and gradient != 0


@pytest.mark.parametrize("head", HYPERBOLIC)
def test_centres_start_almost_at_the_origin(head):
    module = heads.make_head(HamSpkConfig(head=head, num_labels=200))
    assert weights(module)[-1].std().item() == pytest.approx(1e-3, rel=0.05)
