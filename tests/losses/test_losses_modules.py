"""The losses as plain modules: golden numbers, no transformers, the loops of the guide, exchange with a model."""

import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hf_hamspk
from hf_hamspk import HamSpkConfig, HamSpkForXVector
from hf_hamspk.losses import (
    AAMSoftmaxLoss,
    AMSoftmaxLoss,
    HamSoftmaxLoss,
    HSoftmaxLoss,
    NormalizedSoftmaxLoss,
    RealAMSoftmaxLoss,
    SoftmaxLoss,
    SpeakerLoss,
)
from hf_hamspk.losses.engine import centre_parameters

GUIDE = Path(__file__).resolve().parents[2] / "examples" / "guides" / "losses.md"
SPEAKERS, SIZE = 7, 16
# A head of a model, the loss that equals it, and the arguments of the loss that are not defaults.
LOSSES = {
    "softmax": (SoftmaxLoss, {}),
    "scaled_softmax": (SoftmaxLoss, {"scale": 30.0}),
    "normalized_softmax": (NormalizedSoftmaxLoss, {}),
    "am": (AMSoftmaxLoss, {}),
    "aam": (AAMSoftmaxLoss, {}),
    "ram": (RealAMSoftmaxLoss, {}),
    "h": (HSoftmaxLoss, {}),
    "ham": (HamSoftmaxLoss, {}),
}
GOLDEN = ["softmax", "softmax_x30", "am", "aam", "ram", "h", "ham", "ham_c2", "ham_c10"]


def batch(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, SIZE), torch.randint(SPEAKERS, (count,))


def build(name: str, **arguments) -> SpeakerLoss:
    """A loss with centres as large as in the middle of training."""
    kind, given = LOSSES[name]
    loss = kind(SPEAKERS, SIZE, **(given | arguments))
    for parameter in centre_parameters(loss.head).values():
        nn.init.normal_(parameter, std=0.1)
    return loss


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(golden, name, dtype, relative):
    tensors, metadata = golden("losses")
    about = json.loads(metadata[name])
    arguments = {"scale": about["s"]} | ({"margin": about["m"]} if about.get("m") else {})
    arguments |= {"curvature": about["c"]} if "c" in about else {}
    kind, _ = LOSSES["scaled_softmax" if name == "softmax_x30" else about["kind"]]
    loss = kind(40, 192, **arguments).to(dtype)
    with torch.no_grad():
        loss.head.similarity.weight.copy_(tensors["centres.hyperbolic" if "c" in about else "centres.euclidean"])
        if kind is SoftmaxLoss:
            loss.head.similarity.bias.copy_(tensors["bias"])
    embeddings = tensors["embeddings"].to(dtype).requires_grad_()
    value = loss(embeddings, tensors["labels"])
    value.backward()
    for actual, expected in (
        (value.detach(), tensors[f"{name}.loss"].mean()),
        (embeddings.grad, tensors[f"{name}.grad_embeddings"]),
        (loss.head.similarity.weight.grad, tensors[f"{name}.grad_centres"]),
    ):
        assert (actual.double() - expected).abs().max() <= relative * expected.abs().max()
    # Each sample by itself.
    found = torch.stack([loss(x[None], y[None]) for x, y in zip(embeddings, tensors["labels"], strict=True)])
    expected = tensors[f"{name}.loss"]
    assert (found.detach().double() - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("name", LOSSES)
def test_a_state_moves_into_the_head_of_a_model_and_back(name):
    loss, (embeddings, labels) = build(name), batch()
    config = HamSpkConfig(head=name, num_labels=SPEAKERS, embedding_size=SIZE, ecapa_channels=16)
    head = HamSpkForXVector(config).head
    head.load_state_dict(loss.head.state_dict())
    assert head(embeddings, labels).loss.item() == pytest.approx(loss(embeddings, labels).item(), rel=1e-5)
    torch.testing.assert_close(loss.logits(embeddings), head(embeddings).logits)
    back = build(name)
    back.head.load_state_dict(head.state_dict())
    assert torch.equal(back(embeddings, labels), loss(embeddings, labels))
    # The defaults of the loss are those of the configuration.
    assert (loss.head.scale, loss.head.margin_kind) == (head.scale, head.margin_kind)
    assert loss.head.similarity.curvature() == head.similarity.curvature()
    assert loss.margin == head.margin or head.margin_kind == "none"


def test_the_joint_loss_is_a_sum_of_two_losses():
    ram, ham, (embeddings, labels) = build("ram"), build("ham"), batch()
    config = HamSpkConfig(head="joint", num_labels=SPEAKERS, embedding_size=SIZE, ecapa_channels=16)
    head = HamSpkForXVector(config).head
    head.euclidean.load_state_dict(ram.head.state_dict())
    head.hyperbolic.load_state_dict(ham.head.state_dict())
    value = 0.3 * ram(embeddings, labels) + 0.7 * ham(embeddings, labels)
    torch.testing.assert_close(value, head(embeddings, labels).loss)


class Largest(TorchDispatchMode):
    """Records the number of entries of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return result


def test_the_loss_is_computed_over_blocks(monkeypatch):
    monkeypatch.setattr("hf_hamspk.losses.blocks.CPU_BLOCK", 64 * 128)
    loss = HamSoftmaxLoss(2000, 4)
    with Largest() as largest:
        loss(torch.randn(64, 4, requires_grad=True), torch.randint(2000, (64,))).backward()
    assert largest.numel < 64 * 2000 / 2


def test_settings_are_used():
    embeddings, labels = batch()
    loss = build("ham")
    with_margin = loss(embeddings, labels)
    loss.set_margin(0.0)
    assert loss.margin == 0.0 and loss(embeddings, labels) < with_margin
    assert "num_classes=7, embedding_size=16, scale=30, margin=0" in repr(loss)
    learned = HamSoftmaxLoss(SPEAKERS, SIZE, curvature=1.0, projection="curved", learnable_curvature=True)
    learned(embeddings, labels).backward()
    assert learned.head.similarity.log_curvature.grad.isfinite()
    sampled = AMSoftmaxLoss(200, SIZE, class_sampling=0.1)
    sampled(embeddings, labels).backward()
    assert (sampled.head.similarity.weight.grad.abs().sum(1) > 0).sum() == 20


def test_a_loss_is_an_ordinary_module():
    embeddings, labels = batch()
    loss = build("ham")
    expected = loss(embeddings, labels)
    assert torch.equal(copy.deepcopy(loss)(embeddings, labels), expected)
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)
    buffer.seek(0)
    other = build("ham")
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other(embeddings, labels), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(embeddings, labels), expected)
    assert loss(embeddings, labels.int()).dtype == torch.float32
    assert build("ham").double()(embeddings.double(), labels).dtype == torch.float64
    assert torch.equal(torch.nn.ModuleList([loss])[0](embeddings, labels), expected)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: HamSoftmaxLoss(0, 192), "num_classes must be an integer of at least 1, got 0"),
        (lambda: AMSoftmaxLoss(10, 19.2), r"embedding_size must be an integer of at least 1, got 19\.2"),
        (lambda: HamSoftmaxLoss(10, 192, margin=-0.1), "margin must be at least 0 and below 3"),
        (lambda: HamSoftmaxLoss(10, 192, margin=float("nan")), "margin must be at least 0 and below 3"),
        (lambda: AAMSoftmaxLoss(10, 192, scale=0.0), "scale must be above 0"),
        (lambda: HamSoftmaxLoss(10, 192, curvature=1.0), "The released projection needs curvature > 1"),
        (lambda: HamSoftmaxLoss(10, 192, learnable_curvature=True), "learnable_curvature needs projection='curved'"),
        (lambda: HSoftmaxLoss(10, 192, projection="klein"), "projection must be 'released' or 'curved', got 'klein'"),
        (lambda: HSoftmaxLoss(10, 192, clip_radius=0.0), "clip_radius must be above 0"),
        (lambda: HSoftmaxLoss(10, 192, class_sampling=0.0), "class_sampling must be above 0"),
        (lambda: build("ham")(torch.randn(4, 1, 16), torch.zeros(4).long()), r"shape \(B, 16\).*\(4, 1, 16\).*squeeze"),
        (lambda: build("ham")(torch.randn(4, 8), torch.zeros(4).long()), r"shape \(B, 16\).*got \(4, 8\)"),
        (lambda: build("ham")(torch.randn(0, 16), torch.zeros(0).long()), "B at least 1"),
        (lambda: build("ham").logits(torch.randn(16)), r"shape \(B, 16\)"),
        (lambda: build("ham")(torch.randn(4, 16), torch.zeros(4)), "integer type, got .*float32"),
        (lambda: build("ham")(torch.randn(4, 16), torch.zeros(4, 1).long()), r"labels of shape \(4,\).*\(4, 1\)"),
        (lambda: build("ham")(torch.randn(2, 16), torch.tensor([0, 7])), "labels from 0 to 6, got labels from 0 to 7"),
        (lambda: build("ham")(torch.randn(2, 16), torch.tensor([-1, 0])), "labels from 0 to 6, got labels from -1"),
    ],
)
def test_mistakes_are_explained(use, message):
    with pytest.raises(ValueError, match=message):
        use()


# -- imports ---------------------------------------------------------------------------------------------------------

WITHOUT_TRANSFORMERS = """
import sys

wanted = []

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"transformers", "huggingface_hub", "accelerate", "torchaudio", "datasets"}:
            wanted.append(name)
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Block())
import torch
import hf_hamspk.losses

for name in NAMES:
    loss = getattr(hf_hamspk, name)(5, 8)
    loss(torch.randn(4, 8, requires_grad=True), torch.arange(4)).backward()
print(wanted)
try:
    hf_hamspk.HamSpkModel
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_losses_import_no_transformers():
    names = sorted({kind.__name__ for kind, _ in LOSSES.values()})
    assert set(names) == {name for name in hf_hamspk.__all__ if name.endswith("SoftmaxLoss")}
    code = WITHOUT_TRANSFORMERS.replace("NAMES", repr(names))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\nblocked: transformers\n", "")


# -- loops -----------------------------------------------------------------------------------------------------------


def loop(title: str) -> str:
    """The block of the guide below this heading."""
    found = re.search(rf"^## {title}\n.*?^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("title", "package"),
    [("PyTorch", "torch"), ("SpeechBrain", "speechbrain"), ("pytorch-metric-learning", "pytorch_metric_learning")],
)
def test_a_loop_of_the_guide_trains(title, package, tmp_path, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(loop(title), GUIDE.name, "exec"), names)
    assert float(names["accuracy"]) > 0.95
    # Chance is 0.1. The centres, which begin near the origin, were trained as well.
    assert names["loss"].head.similarity.weight.norm(dim=1).min() > 0.05
    assert all(parameter.isfinite().all() for parameter in names["loss"].parameters())
