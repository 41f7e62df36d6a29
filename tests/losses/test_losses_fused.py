"""The fused loss against the plain one: every head, however the speakers are cut into blocks, and its edges."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_hamspk import HamSpkConfig
from hf_hamspk.geometry_hamspk import HEAD_PARTS, released_radius
from hf_hamspk.losses import blocks
from hf_hamspk.losses.compiled import can_compile, compiled_loss
from hf_hamspk.losses.engine import head_settings, set_class_sampling, use_blocks
from hf_hamspk.losses.fused import fused_losses
from hf_hamspk.networks_hamspk import make_head

SPEAKERS, SIZE, BATCH = 150, 12, 10
LEARNED = {"head": "ham", "projection": "curved", "learnable_curvature": True}
# Large scales have no fixed shift.
VARIANTS = [
    *({"head": head} for head in HEAD_PARTS),
    {"head": "am", "scale": 100.0},
    {"head": "ram", "scale": 100.0},
    {"head": "ham", "scale": 64.0},
    {"head": "ham", "projection": "curved"},
    LEARNED | {"curvature": 1.0},
    LEARNED | {"curvature": 0.5, "scale": 64.0},
    LEARNED | {"head": "h", "clip_radius": 0.2},
]
# Entries of a block and bytes kept: one block; many, kept, in part, not at all.
ROUTES = [(1 << 18, 1 << 30), (640, 1 << 30), (640, 10 * 64 * 8), (640, 0)]


def make(dtype: torch.dtype = torch.float64, speakers: int = SPEAKERS, **fields):
    module = use_blocks(make_head(HamSpkConfig(num_labels=speakers, embedding_size=SIZE, **fields))).to(dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "curvature" not in name:
                parameter.normal_(0, 0.1)
    embeddings = (0.3 * torch.randn(BATCH, SIZE, dtype=dtype)).requires_grad_()
    return module, embeddings, torch.randint(0, speakers, (BATCH,))


def gradients(loss: torch.Tensor, module, embeddings: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [embeddings, *module.parameters()]))


def losses(module, embeddings, labels, **options):
    similarity = module.similarity
    inputs = (embeddings, similarity.weight, similarity.bias, similarity.curvature(), labels, head_settings(module))
    return fused_losses(*inputs, **options)


def assert_alike(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-6) -> None:
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_loss_and_gradients_equal_the_plain_ones(fields, route, monkeypatch):
    block, kept = route
    monkeypatch.setattr(blocks, "CPU_BLOCK", block)
    module, embeddings, labels = make(**fields)
    plain, fused = module.plain_loss(embeddings, labels), losses(module, embeddings, labels, kept_bytes=kept).mean()
    assert_alike(fused, plain, 1e-9)
    for left, right in zip(gradients(fused, module, embeddings), gradients(plain, module, embeddings), strict=True):
        assert_alike(left, right)


@pytest.mark.parametrize("fields", [{"head": "ham"}, {"head": "ham", "projection": "curved"}, LEARNED], ids=str)
def test_on_the_rim_of_the_clip_the_gradients_are_the_plain_ones(fields):
    module, embeddings, labels = make(**fields)
    head = module.similarity
    rim = head.clip_radius if head.projection == "curved" else released_radius(head.curvature())
    with torch.no_grad():
        # One coordinate, so that the norm is the radius to the last digit.
        for place, row in enumerate((embeddings[0], head.weight[labels[1]], head.weight[labels[1] - 1])):
            row.zero_()[place] = rim
    plain, fused = module.plain_loss(embeddings, labels), losses(module, embeddings, labels).mean()
    for left, right in zip(gradients(fused, module, embeddings), gradients(plain, module, embeddings), strict=True):
        assert_alike(left, right)


@pytest.mark.parametrize("fields", [{"head": "ham"}, {"head": "aam"}, LEARNED | {"curvature": 1.0}], ids=str)
def test_gradients_agree_with_finite_differences(fields):
    module, embeddings, labels = make(speakers=5, **fields)
    torch.autograd.gradcheck(
        lambda x, *_: losses(module, x, labels), (embeddings, *module.parameters()), fast_mode=True
    )


@pytest.mark.parametrize("head", HEAD_PARTS)
def test_a_second_backward_pass_gives_the_same_gradient(head):
    module, embeddings, labels = make(head=head)
    loss = module(embeddings, labels).loss
    first = torch.autograd.grad(loss, embeddings, retain_graph=True)[0]
    assert_alike(torch.autograd.grad(3 * loss, embeddings)[0], 3 * first, 1e-12)


@pytest.mark.parametrize("head", ["softmax", "am", "ram", "ham"])
def test_a_single_speaker_has_no_loss(head):
    module, embeddings, labels = make(speakers=1, head=head)
    loss = module(embeddings, labels).loss
    assert loss == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients(loss, module, embeddings))


@pytest.mark.parametrize("head", ["am", "ham"])
def test_reduced_precision_settings_of_torch_do_not_reach_the_loss(head):
    module, embeddings, labels = make(torch.float32, head=head)
    expected = module(embeddings, labels).loss
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(module(embeddings, labels).loss, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_loss_is_exact_where_an_embedding_almost_meets_its_centre():
    module, _, labels = make(torch.float32, head="ham")
    embeddings = (module.similarity.weight.detach()[labels] * (1 + 2.0**-10)).requires_grad_()
    expected, exact = make(head="ham")[0], embeddings.detach().double().requires_grad_()
    expected.load_state_dict(module.state_dict())
    actual = gradients(module(embeddings, labels).loss, module, embeddings)
    for left, right in zip(actual, gradients(expected.plain_loss(exact, labels), expected, exact), strict=True):
        assert_alike(left.double(), right, 1e-4)


class Entries(TorchDispatchMode):
    """Records the number of entries of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **({} if kwargs is None else kwargs))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *made])
        return result


@pytest.mark.parametrize("head", ["am", "ham"])
def test_no_tensor_of_batch_by_speakers_is_made(head, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 640)
    module, embeddings, labels = make(torch.float32, speakers=2000, head=head)
    embeddings = embeddings.detach().repeat(10, 1).requires_grad_()
    with Entries() as largest:
        losses(module, embeddings, labels.repeat(10), kept_bytes=0).sum().backward()
    # The centres themselves; 100 x 2,000 would be eight times as many.
    assert largest.numel == 2000 * SIZE


COMPILED = [
    {"head": "h"},
    {"head": "ham"},
    {"head": "ham", "projection": "curved"},
    {"head": "ham", "projection": "curved", "curvature": 0.7, "clip_radius": 0.3},
]


@pytest.mark.parametrize("speakers", [1, SPEAKERS])
@pytest.mark.parametrize("fields", COMPILED, ids=str)
def test_the_form_for_compilers_gives_the_same_loss_and_gradients(fields, speakers):
    module, embeddings, labels = make(speakers=speakers, **fields)
    similarity, settings = module.similarity, head_settings(module)
    assert can_compile(settings, similarity.curvature())
    loss = compiled_loss(embeddings, similarity.weight, labels, similarity.curvature(), settings)
    expected = module(embeddings, labels).loss
    assert_alike(loss, expected, 1e-12)
    for ours, theirs in zip(gradients(loss, module, embeddings), gradients(expected, module, embeddings), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("at", "size"), [("centre", 0.0), ("zero", 0.0), ("far", 1e30)])
def test_the_form_for_compilers_has_finite_gradients(at, size):
    module, _, labels = make(torch.float32, head="ham")
    weight = module.similarity.weight
    embeddings = (weight.detach()[labels] if at == "centre" else torch.full((BATCH, SIZE), size)).requires_grad_()
    loss = compiled_loss(embeddings, weight, labels, module.similarity.curvature(), head_settings(module))
    for gradient in torch.autograd.grad(loss, [embeddings, weight]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "fields", [{"head": "am"}, {"head": "ham", "scale": 64.0}, LEARNED | {"curvature": 1.0}], ids=str
)
def test_other_heads_have_no_form_for_compilers(fields):
    module, embeddings, labels = make(**fields)
    similarity, settings = module.similarity, head_settings(module)
    assert not can_compile(settings, similarity.curvature())
    if fields.get("scale"):
        with pytest.raises(ValueError, match="bounded logits"):
            compiled_loss(embeddings, similarity.weight, labels, similarity.curvature(), settings)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ham", "joint"])
def test_compiled_the_loss_is_the_same(head):
    module, embeddings, labels = make(head=head)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    loss, expected = compiled(embeddings, labels).loss, module(embeddings, labels).loss
    assert_alike(loss, expected, 1e-12)
    for ours, theirs in zip(gradients(loss, module, embeddings), gradients(expected, module, embeddings), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


# --- a part of the speakers


@pytest.mark.parametrize("head", [*HEAD_PARTS, "joint"])
def test_class_sampling_trains_on_a_part_of_the_speakers(head):
    module, embeddings, labels = make(head=head)
    whole = module(embeddings, labels).loss
    set_class_sampling(module, 0.1)
    sampled = module(embeddings, labels).loss
    assert 0 < sampled < whole
    sampled.backward()
    for name, parameter in module.named_parameters():
        if name.endswith("weight"):
            touched = parameter.grad.abs().sum(1) > 0
            assert touched[labels].all() and int(touched.sum()) <= 15, name
    assert torch.equal(module.eval()(embeddings, labels).loss, whole)


@pytest.mark.parametrize("head", HEAD_PARTS)
def test_class_sampling_keeps_the_speakers_of_the_batch_and_is_the_cross_entropy_over_the_drawn(head):
    module, embeddings, labels = make(head=head)
    chosen = torch.cat([labels.unique(), torch.tensor([SPEAKERS - 1])]).unique()
    part, _, _ = make(speakers=len(chosen), head=head)
    with torch.no_grad():
        for whole, drawn in zip(module.parameters(), part.parameters(), strict=True):
            drawn.copy_(whole[chosen])
    actual = losses(module, embeddings, labels, chosen=chosen).mean()
    expected = part.plain_loss(embeddings, torch.searchsorted(chosen, labels))
    assert_alike(actual, expected)
    of_embeddings, *of_centres = gradients(actual, module, embeddings)
    expected_of_embeddings, *expected_of_centres = gradients(expected, part, embeddings)
    assert_alike(of_embeddings, expected_of_embeddings)
    # Centres and biases that were not drawn have no gradient.
    for found, drawn in zip(of_centres, expected_of_centres, strict=True):
        assert_alike(found, torch.zeros_like(found).index_copy(0, chosen, drawn))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="class_sampling must be above 0 and at most 1"):
        set_class_sampling(make(head="joint")[0], share)
