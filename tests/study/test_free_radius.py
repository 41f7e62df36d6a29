"""Laws of the control heads whose embeddings have a free radius."""

import copy
import math

import pytest
import torch

from hf_hamspk import HamSpkConfig
from hf_hamspk.geometry_hamspk import BallPoints, conformal_factor, distance, released_radius
from hf_hamspk.networks_hamspk import make_head
from hf_hamspk.study.controls import HorosphereSimilarity, control_engine, free_share, project_freely, use_control

FREE = ("exponential", "horosphere", "radial_margin")
SPEAKERS, SIZE, BATCH = 7, 12, 5
LABELS = torch.arange(BATCH)


def head_of(control, **fields):
    """A head with centres of moderate length, in float64."""
    head = make_head(HamSpkConfig(head="ham", num_labels=SPEAKERS, embedding_size=SIZE, **fields)).double()
    use_control(head, control)
    with torch.no_grad():
        head.similarity.weight.copy_(0.4 * torch.randn(SPEAKERS, SIZE, generator=torch.Generator().manual_seed(0)))
    return head.double()


def embeddings(length=3.0):
    return length * torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(1)).double()


def test_long_embeddings_give_the_released_head():
    head, ham = head_of("exponential"), head_of(None)
    x = embeddings(1e4)
    assert torch.allclose(head(x, LABELS, True).logits, ham(x, LABELS, True).logits, atol=1e-9)
    assert torch.allclose(head(x, LABELS).loss, ham(x, LABELS).loss, atol=1e-9)
    assert not torch.allclose(head(embeddings(0.3)).logits, ham(embeddings(0.3)).logits, atol=0.1)


def test_short_embeddings_give_a_cosine_whose_scale_is_proportional_to_their_length():
    head, x = head_of("horosphere", curvature=3.0), embeddings(1e-5)
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(head.similarity.weight).mT
    scale = head.scale * 2 * released_radius(3.0) * x.norm(dim=-1, keepdim=True) / math.sqrt(SIZE)
    assert torch.allclose(head(x).logits, scale * cosine, rtol=1e-3, atol=1e-9)


def test_the_busemann_function_is_the_limit_of_differences_of_distances():
    head, x = head_of("horosphere"), embeddings()
    points = project_freely(x, 3.0)
    ideal = torch.nn.functional.normalize(head.similarity.weight)
    far = BallPoints((1 - 1e-7) * ideal, conformal_factor(torch.full((SPEAKERS, 1), (1 - 1e-7) ** 2).double()))
    origin = BallPoints(torch.zeros(1, SIZE).double(), torch.full((1, 1), 2.0).double())
    pairs = [distance(BallPoints(p[None], f[None]), far) - distance(origin, far) for p, f in zip(*points, strict=True)]
    assert torch.allclose(head.similarity(x), -torch.stack(pairs), atol=1e-5)


def test_the_softmax_of_the_busemann_function_is_a_distribution_over_all_directions():
    """In the plane and with the scale D - 1 = 1, it is the Poisson kernel, whose mean over the circle is 1."""
    angles = torch.arange(4000).double() * 2 * math.pi / 4000
    similarity = HorosphereSimilarity(len(angles), 2, 1.5).double()
    with torch.no_grad():
        similarity.weight.copy_(torch.stack([angles.cos(), angles.sin()], -1))
    x = torch.tensor([[0.0, 0.0], [0.3, -0.2], [5.0, 1.0]]).double()
    density = similarity(x).exp()
    assert torch.allclose(density.mean(1), torch.ones(3).double(), atol=1e-9)
    # Its mean direction is the point itself, because coordinates are harmonic functions.
    mean = density @ similarity.weight / len(angles)
    assert torch.allclose(mean, project_freely(x, 1.5).position, atol=1e-9)


def test_an_embedding_at_the_origin_says_nothing():
    x, many = torch.zeros(BATCH, SIZE).double(), SPEAKERS - 1
    for control, margin in (("horosphere", 0.2), ("radial_margin", 0.0)):
        head = head_of(control, margin=0.2)
        assert head(x).logits.abs().max() == 0
        expected = math.log1p(many * math.exp(head.scale * margin))
        assert head(x, LABELS).loss.item() == pytest.approx(expected, rel=1e-9)


def test_the_margin_grows_with_the_radius_up_to_the_margin_of_the_head():
    for length in (1e-3, 1.0, 1e4):
        radial, constant = head_of("radial_margin", margin=0.3), head_of("horosphere")
        x = torch.nn.functional.normalize(embeddings()) * length
        constant.set_margin(0.3 * free_share(torch.tensor(length), SIZE).item())
        assert radial(x, LABELS).loss.item() == pytest.approx(constant(x, LABELS).loss.item(), rel=1e-6)


@pytest.mark.parametrize("control", FREE)
def test_rotations_and_orders_do_not_change_the_loss(control):
    head, x = head_of(control), embeddings()
    loss = head(x, LABELS).loss
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(2)).double())[0]
    turned, order = copy.deepcopy(head), torch.tensor([4, 2, 6, 0, 1, 3, 5])
    with torch.no_grad():
        turned.similarity.weight.copy_((head.similarity.weight @ turn)[order])
    places = torch.argsort(order)
    assert torch.allclose(turned(x @ turn, places[LABELS]).loss, loss, atol=1e-9)
    if control != "exponential":
        with torch.no_grad():
            turned.similarity.weight.mul_(torch.rand(SPEAKERS, 1) + 0.5)
        assert torch.allclose(turned(x @ turn, places[LABELS]).loss, loss, atol=1e-9)


@pytest.mark.parametrize("control", FREE)
def test_the_length_of_an_embedding_matters_and_has_the_right_gradient(control):
    head, x = head_of(control), embeddings(1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head(x, LABELS).loss, (x,))
    head(x, LABELS).loss.backward()
    assert ((x.grad * x).sum(-1).abs() > 1e-9).all()
    ham, y = head_of(None), embeddings(1.0).requires_grad_()
    ham(y, LABELS).loss.backward()
    assert (y.grad * y).sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-6, 1.0, 1e3, 1e15, 1e30])
@pytest.mark.parametrize("curvature", [1.0001, 1.5, 8.0])
@pytest.mark.parametrize("control", FREE)
def test_gradients_are_finite_everywhere_in_float32_and_under_autocast(control, curvature, length):
    """Also for embeddings in the direction of a centre and in the opposite direction."""
    head = head_of(control, curvature=curvature, margin=0.3).float()
    weight = head.similarity.weight
    with torch.no_grad():
        weight.mul_(100)
    ends = torch.cat([weight.detach()[:2], -weight.detach()[:2], torch.randn(1, SIZE)])
    x = (length * torch.nn.functional.normalize(ends)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = head(x, LABELS, True)
    assert out.logits.dtype == torch.float32
    out.loss.backward()
    for values in (out.logits, out.loss, x.grad, weight.grad):
        assert torch.isfinite(values).all()
    if length in (0.0, 1e-30):  # The origin is no dead end.
        assert x.grad.norm() > 1e-3


def test_radii_stay_below_the_largest_radius_and_grow_with_the_norm():
    lengths = torch.tensor([0.0, 1e-8, 1e-3, 1.0, 10.0, 1e8])
    x = lengths[:, None] * torch.nn.functional.normalize(torch.ones(1, 192))
    radii = project_freely(x, 3.0).position.norm(dim=-1)
    expected = released_radius(3.0) * torch.tanh(lengths / math.sqrt(192))
    assert torch.allclose(radii, expected, rtol=1e-5) and (radii <= released_radius(3.0) * (1 + 1e-6)).all()


def test_only_the_radial_margin_needs_an_engine():
    assert [control_engine(control) is None for control in (None, "angle", "rim", *FREE)] == [True] * 5 + [False]
