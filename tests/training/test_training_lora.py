"""LoRA through PEFT: targets that learn, merged models, adapters alone, what cannot work."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from strangers import without
from tiny_models import W2V_BERT, noises, tiny_backbone, tiny_config
from transformers import AutoModel

from hf_hamspk import DataArguments, HamSpkForXVector, Trainer, TrainingArguments
from hf_hamspk.__main__ import main
from hf_hamspk.training import read_recipe
from hf_hamspk.training.lora import add_adapters, load_adapter, merge_adapters, merged_copy

peft = pytest.importorskip("peft")

BACKBONES = ["wavlm", "wav2vec2", "hubert", W2V_BERT]
ATTENTION = {"q_proj", "k_proj", "v_proj", "out_proj"}
FEED_FORWARD = {"intermediate_dense", "output_dense"}
OTHER_SIDE = (
    without("hf_hamspk")
    + """
import sys
sys.modules["peft"] = None
import numpy, torch
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules")
torch.save(model.embed([numpy.load(sys.argv[2])], 16000), sys.argv[3])
"""
)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """A function: folder of a tiny random encoder."""
    root = tmp_path_factory.mktemp("encoders")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            torch.manual_seed(0)
            AutoModel.from_config(tiny_backbone(name)).save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture
def lora_words(run_words, encoders):
    """A function: words of a tiny run with adapters."""

    def words(output_dir: Path, encoder: str = "wavlm", **changes) -> list[str]:
        fields = {"backbone": encoders(encoder), "pooling": "statistics", "lora_rank": 4, "learning_rate": 1e-2}
        fields |= dict.fromkeys(("ecapa_channels", "ecapa_output_channels", "pooling_channels"))
        return run_words(output_dir, **(fields | changes))

    return words


def adapted(name: str, **changes) -> HamSpkForXVector:
    model = HamSpkForXVector(tiny_config(name))
    add_adapters(model, TrainingArguments(lora_rank=4, **changes))
    return model


def adapters_of(model: HamSpkForXVector) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def step(model: HamSpkForXVector, rate: float = 0.1) -> None:
    model.zero_grad()
    values = torch.stack([wave[:8000] for wave in noises(0.6, 0.6, 0.6, 0.6)])
    model.train()(values, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad


@pytest.mark.parametrize("name", BACKBONES)
def test_every_adapter_has_a_gradient(name):
    model = adapted(name)
    found = adapters_of(model)
    layers = {key.split(".lora_")[0].rpartition(".")[2] for key in found}
    attention = {"wavlm": set(), W2V_BERT: {"linear_q", "linear_k", "linear_v", "linear_out"}}.get(name, ATTENTION)
    assert layers == FEED_FORWARD | attention
    step(model)
    assert all(parameter.grad is not None for parameter in found.values())
    # The second factor begins at 0, so the first one learns from the second step on.
    step(model)
    assert all(bool((parameter.grad != 0).any()) for parameter in found.values())
    trained = {key for key, parameter in model.hamspk.backbone.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in key for key in trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_a_merged_model_equals_the_adapted_one(name):
    model = adapted(name)
    for _ in range(3):
        step(model)
    model.eval()
    before = model.embed([wave.numpy() for wave in noises(0.5, 0.8)], 16000)
    copied = merged_copy(model)
    assert adapters_of(model) and not adapters_of(copied)
    merge_adapters(model)
    for merged in (model, copied):
        assert set(merged.state_dict()) == set(HamSpkForXVector(tiny_config(name)).state_dict())
        after = merged.embed([wave.numpy() for wave in noises(0.5, 0.8)], 16000)
        assert (after - before).abs().max() < 1e-6 * before.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_a_run_with_adapters(name, tmp_path, lora_words, encoders):
    """The loss falls, the encoder stays, and the adapter on the encoder is the model that was saved."""
    assert main(["train", *lora_words(tmp_path / "run", name, average_last=2)]) in (0, None)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    for folder in ("best", "last", "final"):
        assert not any("lora" in key for key in load_file(tmp_path / "run" / folder / "model.safetensors"))
    final = HamSpkForXVector.from_pretrained(tmp_path / "run" / "final")
    loaded = load_adapter(tmp_path / "run" / "adapter")
    for key, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, final.state_dict()[key], atol=1e-6, rtol=1e-6, msg=key)
    base = HamSpkForXVector.from_backbone(encoders(name), config=final.config)
    by_peft = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
    waves = [wave.numpy() for wave in noises(0.5, 0.8)]
    expected = final.eval().embed(waves, 16000)
    found = by_peft.eval().get_base_model().embed(waves, 16000)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    start = load_file(encoders(name) / "model.safetensors")
    moved = [k for k, t in start.items() if not torch.equal(t, final.state_dict()[f"hamspk.backbone.{k}"])]
    assert moved and all(re.search(r"(_dense|_proj|linear_[a-z]+)\.weight$", key) for key in moved)


@pytest.mark.slow
def test_a_merged_model_needs_neither_peft_nor_this_package(tmp_path, lora_words):
    Trainer.from_recipe(read_recipe(lora_words(tmp_path / "run", epochs=1))).train()
    wave = noises(0.8)[0].numpy()
    numpy.save(tmp_path / "wave.npy", wave)
    words = [str(tmp_path / name) for name in ("run/final", "wave.npy", "out.pt")]
    done = subprocess.run([sys.executable, "-c", OTHER_SIDE, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    model = HamSpkForXVector.from_pretrained(tmp_path / "run" / "final")
    assert torch.equal(torch.load(tmp_path / "out.pt"), model.eval().embed([wave], 16000))


@pytest.mark.slow
def test_python_gives_the_same_adapters_and_a_run_resumes_exactly(tmp_path, lora_words, encoders, corpus):
    Trainer.from_recipe(read_recipe(lora_words(tmp_path / "recipe"))).train()
    Trainer.from_recipe(read_recipe(lora_words(tmp_path / "cut", max_steps=5))).train()
    Trainer.from_recipe(read_recipe(lora_words(tmp_path / "cut"))).train()
    torch.manual_seed(0)
    model = HamSpkForXVector.from_backbone(encoders("wavlm"), pooling="statistics", embedding_size=16)
    arguments = TrainingArguments(
        str(tmp_path / "python"), epochs=3, batch_size=6, learning_rate=1e-2, lora_rank=4, cpu=True, report_to=["none"]
    )
    data = DataArguments(audio_root=str(corpus / "audio"), crop_seconds=0.5)
    Trainer(model, arguments, str(corpus / "train.csv"), data=data).train()
    whole, cut = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("recipe", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert load_file(tmp_path / "python" / "adapter" / "adapter_model.safetensors").keys() == (
        load_file(tmp_path / "recipe" / "adapter" / "adapter_model.safetensors").keys()
    )
    settings = json.loads((tmp_path / "python" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(encoders("wavlm"))


@pytest.mark.slow
def test_adapters_on_a_speaker_model(tmp_path, lora_words, run_words):
    """A finished model, with a new head and adapters of its encoder."""
    Trainer.from_recipe(read_recipe(lora_words(tmp_path / "first", epochs=1, lora_rank=0))).train()
    first = tmp_path / "first" / "final"
    changes = {"epochs": 1, "initial_model": first, "lora_rank": 2, "speed_factors": "1.0 0.9"}
    changes |= dict.fromkeys(("ecapa_channels", "ecapa_output_channels", "pooling_channels", "embedding_size"))
    Trainer.from_recipe(read_recipe(run_words(tmp_path / "second", **changes))).train()
    final = HamSpkForXVector.from_pretrained(tmp_path / "second" / "final")
    for key, tensor in load_adapter(tmp_path / "second" / "adapter").state_dict().items():
        torch.testing.assert_close(tensor, final.state_dict()[key], atol=1e-6, rtol=1e-6, msg=key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_targets": "q_proj"}, "adapters of q_proj get no gradient in wavlm, because its attention"),
        ({"lora_targets": "q_projj"}, "q_projj is not a linear layer of the encoder. Set lora_targets to any of "),
        ({"lora_targets": "output_dense", "lora_rank": 0}, "lora_targets needs lora_rank above 0, got 0."),
        ({"freeze_backbone": "true"}, "freeze_backbone excludes the adapters of lora_rank from training."),
        ({"lora_dropout": 1}, "lora_dropout must be between 0 and 0.99, got 1.0."),
    ],
)
def test_adapters_that_cannot_work_are_refused(tmp_path, lora_words, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Trainer.from_recipe(read_recipe(lora_words(tmp_path / "run", **changes)))


def test_ecapa_has_no_adapters(tmp_path, run_words, capsys):
    assert main(["train", *run_words(tmp_path / "run", lora_rank=4)]) == 2
    assert "lora_rank is for transformers backbones, such as WavLM, got ecapa." in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path, lora_words, monkeypatch):
    monkeypatch.setattr("hf_hamspk.training.lora.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("Run `pip install 'hf_hamspk[lora]'`.")):
        Trainer.from_recipe(read_recipe(lora_words(tmp_path / "run")))


def test_adapters_of_a_program_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model has adapters of PEFT"):
        Trainer(adapted("wavlm"), TrainingArguments(str(tmp_path / "run"), cpu=True), train_dataset="nowhere")


@pytest.mark.slow
def test_an_adapter_without_a_gradient_ends_the_run(tmp_path, lora_words):
    """A linear layer of the encoder that its forward pass does not call."""
    words = lora_words(tmp_path / "run", lora_targets="gru_rel_pos_linear output_dense")
    trainer = Trainer.from_recipe(read_recipe(words))
    layer = trainer.bare_model.hamspk.backbone.encoder.layers[0].attention
    layer.gru_rel_pos_linear.forward = layer.gru_rel_pos_linear.get_base_layer().forward
    with pytest.raises(ValueError, match=r"2 of \d+ parameters of .* get no gradient. They belong to gru_rel_pos"):
        trainer.train()
