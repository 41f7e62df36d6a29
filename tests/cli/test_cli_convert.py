"""`hamspk convert`: from the files of a source to a folder that AutoModel loads."""

import pytest
import torch
from other_projects import small_model, tiny_xvector, weights_of, write, write_xvector
from tiny_models import settle
from transformers import AutoModel

PREFIX = "state_dict."


@pytest.mark.slow
@pytest.mark.parametrize("source", ["speechbrain", "wespeaker", "official"])
def test_golden_embeddings_through_the_command_line(source, hamspk, golden, tmp_path):
    tensors, _ = golden(f"ecapa_{source}_c64")
    weights = {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
    path = write(source, tmp_path / "source", weights)
    assert hamspk("convert", path, tmp_path / "out")[0] == 0
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        actual, expected = model(tensors["input.waveform"]).embeddings, tensors["expected.embedding"]
    assert (actual - expected).abs().max() / expected.abs().max() < 1e-4


def test_what_it_says_of_speechbrain(hamspk, tmp_path):
    model = settle(small_model("speechbrain"))
    folder = write("speechbrain", tmp_path / "source", weights_of("speechbrain", model))
    words = ("convert", folder, tmp_path / "out", "--source-name", "somebody/some-model")
    code, out, err = hamspk(*words)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert code == 0 and err == ""
    assert out.splitlines() == [
        "read: SpeechBrain ECAPA-TDNN (somebody/some-model), from hyperparams.yaml, embedding_model.ckpt",
        f"model: {parameters:,} parameters, embeddings of 192, 16000 Hz",
        "left out: classifier.ckpt (the classifier of the training speakers)",
        "left out: label_encoder.txt (the names of the training speakers)",
        "left out: mean_var_norm_emb.ckpt (a mean embedding, which SpeechBrain's verification does not use)",
        "licence of the source: apache-2.0",
        f"written: {tmp_path / 'out'} (load the model with AutoModel.from_pretrained, or set initial_model: "
        f"{tmp_path / 'out'} in a recipe to fine-tune it)",
    ]
    config = AutoModel.from_pretrained(tmp_path / "out").config
    assert config.converted_from == "SpeechBrain ECAPA-TDNN (somebody/some-model)"
    assert config.source_licence == "apache-2.0"


@pytest.mark.slow
def test_what_it_says_of_an_unknown_licence_and_a_classifier(hamspk, tmp_path):
    file = write("official", tmp_path / "pretrain.model", weights_of("official", small_model("official")))
    _, out, _ = hamspk("convert", file, tmp_path / "out")
    assert "read: TaoRuijie ECAPA-TDNN, from pretrain.model" in out
    assert "left out: speaker_loss.weight (the classifier of the training speakers)" in out
    assert "licence of the source: not stated beside the weights; look it up before you share the model" in out
    assert AutoModel.from_pretrained(tmp_path / "out").config.source_licence is None
    _, out, _ = hamspk("convert", file, tmp_path / "again", "--from", "official", "--licence", "mit")
    assert "licence of the source: mit" in out
    assert AutoModel.from_pretrained(tmp_path / "again").config.source_licence == "mit"


def test_a_model_of_transformers(hamspk, tmp_path):
    theirs = tiny_xvector("wavlm")
    code, out, _ = hamspk("convert", write_xvector(tmp_path / "source", theirs), tmp_path / "out")
    assert code == 0
    assert "read: transformers WavLMForXVector, from config.json, preprocessor_config.json, model.safetensors" in out
    assert "left out: classifier.*, objective.* (the classifier of the training speakers)" in out


def test_refusals(refusal, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").touch()
    assert "OUTPUT must be a new or empty folder" in refusal("convert", tmp_path, tmp_path / "full")
    assert "is not recognised. Expected a folder" in refusal("convert", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "SOURCE not found" in refusal("convert", tmp_path / "absent", tmp_path / "out")
    torch.save({"weight": torch.zeros(1), "run": print}, tmp_path / "a.pt")
    assert "a.pt contains more than weights: it uses" in refusal("convert", tmp_path / "a.pt", tmp_path / "out")
