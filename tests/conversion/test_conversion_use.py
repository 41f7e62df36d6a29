"""What is done with a converted model: it travels, and it is trained on with a HAM head."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_projects import (
    campplus_fields,
    campplus_weights,
    resnet_fields,
    resnet_weights,
    small_model,
    tiny_xvector,
    weights_of,
    write,
    write_resnet,
    write_xvector,
)
from safetensors.torch import load_file, save_file
from strangers import without
from tiny_models import noises, padded, settle

from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel
from hf_hamspk.conversion import convert
from hf_hamspk.training.arguments import read_recipe
from hf_hamspk.training.models import build_config, build_model

SOURCES = [
    "speechbrain",
    "wespeaker",
    "official",
    "wavlm",
    "wav2vec2",
    "wav2vec2-bert",
    "unispeech-sat",
    "data2vec-audio",
]
SPEAKERS = ["ann", "bob", "eve"]

STRANGER = (
    without("hf_hamspk", "speechbrain", "wespeaker")
    + """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

torch.set_num_threads(1)
batch = load_file(sys.argv[1])
results = {}
for folder in sys.argv[3:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        results[folder] = model(batch["values"], batch["mask"]).embeddings
save_file(results, sys.argv[2])
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] == "hf_hamspk")))
"""
)


def converted(source: str, folder: Path) -> HamSpkModel:
    if source == "campplus":
        folder.mkdir()
        model = settle(HamSpkModel(HamSpkConfig(**campplus_fields())))
        torch.save(campplus_weights(model), folder / "campplus_small.pt")
        return convert(folder).model
    if source == "resnet":
        model = settle(HamSpkModel(HamSpkConfig(**resnet_fields())))
        return convert(write_resnet(folder, resnet_weights(model))).model
    if source in ("speechbrain", "wespeaker", "official"):
        return convert(write(source, folder, weights_of(source, settle(small_model(source))))).model
    return convert(write_xvector(folder, tiny_xvector(source))).model


def batch() -> dict[str, torch.Tensor]:
    values, mask = padded(noises(0.5, 0.8, 1.1))
    return {"values": values, "mask": mask}


@pytest.mark.slow
def test_converted_models_load_where_nothing_of_this_is_installed(tmp_path):
    expected = {}
    for source in SOURCES:
        model = converted(source, tmp_path / source)
        folder = str(tmp_path / f"{source}-converted")
        model.save_pretrained(folder)
        with torch.no_grad():
            expected[folder] = model(*batch().values()).embeddings
    save_file(batch(), tmp_path / "batch.safetensors")
    files = [str(tmp_path / "batch.safetensors"), str(tmp_path / "results.safetensors")]
    command = [sys.executable, "-c", STRANGER, *files, *expected]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
    results = load_file(files[1])
    for folder, embeddings in expected.items():
        torch.testing.assert_close(results[folder], embeddings, rtol=1e-5, atol=1e-6, msg=folder)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["speechbrain", "wespeaker", "official", "wavlm", "campplus", "resnet"])
def test_a_ham_head_is_trained_on_a_converted_model(source, tmp_path):
    """As `hamspk train --initial_model ... --head ham` builds it."""
    start = converted(source, tmp_path / source)
    start.save_pretrained(tmp_path / "initial")
    words = ["--initial_model", str(tmp_path / "initial"), "--head", "ham", "--margin", "0.1"]
    recipe = read_recipe([*words, "--train_data", "train.csv"])
    model, _ = build_model(recipe, build_config(recipe), SPEAKERS)
    assert isinstance(model, HamSpkForXVector)
    assert (model.config.head, model.config.margin, model.config.num_labels) == ("ham", 0.1, 3)
    assert model.config.converted_from == start.config.converted_from
    for name, tensor in start.state_dict().items():
        assert torch.equal(model.hamspk.state_dict()[name], tensor), name
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    inputs = batch()
    losses = []
    for _ in range(3):
        loss = model.train()(inputs["values"], inputs["mask"], labels=torch.arange(3)).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "tuned")
    again = HamSpkModel.from_pretrained(tmp_path / "tuned").eval()
    with torch.no_grad():
        ours = model.eval().hamspk(inputs["values"], inputs["mask"]).embeddings
        torch.testing.assert_close(again(inputs["values"], inputs["mask"]).embeddings, ours, rtol=1e-4, atol=1e-4)
