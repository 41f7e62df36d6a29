"""ResNets of WeSpeaker, from their folder: their embeddings, and what is refused."""

from pathlib import Path

import pytest
import torch
from other_projects import resnet_fields, resnet_weights, write_resnet
from test_conversion_campplus import error, refuses, seen_by_a_stranger
from tiny_models import noises, padded, settle

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.conversion import convert

SIZES = {"embed_dim: 24": "embed_dim: 64"}


@pytest.fixture(scope="module")
def reference(golden, tmp_path_factory):
    """The golden ResNet: its numbers, and what is made of its folder."""
    tensors, _ = golden("resnet34_wespeaker_c8")
    weights = {k.removeprefix("state_dict."): t for k, t in tensors.items() if k.startswith("state_dict.")}
    return tensors, convert(write_resnet(tmp_path_factory.mktemp("source") / "model", weights, **SIZES)).model


def test_features_and_embeddings_are_those_of_the_source(reference):
    tensors, model = reference
    waves = tensors["input.waveform"]
    with torch.no_grad():
        assert error(model.frontend(waves).values.mT, tensors["expected.fbank"]) < 1e-4
        for actual in (model(waves).embeddings, model.embed(list(waves), 16000)):
            assert error(actual, tensors["expected.embedding"]) < 1e-4
        values, mask = padded([*waves, *noises(3.7)])
        assert error(model(values, mask).embeddings[:2], tensors["expected.embedding"]) < 1e-4


@pytest.mark.slow
def test_the_same_without_this_package(reference, shared, tmp_path):
    tensors, model = reference
    model.save_pretrained(tmp_path / "model")
    golden_file = shared / "golden" / "resnet34_wespeaker_c8.safetensors"
    results = seen_by_a_stranger(tmp_path / "model", golden_file, tmp_path)
    assert error(results["fbank"], tensors["expected.fbank"]) < 1e-4
    for name in ("embedding", "embed"):
        assert error(results[name], tensors["expected.embedding"]) < 1e-4


@pytest.mark.parametrize(("depth", "pooling"), [(34, "statistics"), (50, "statistics"), (18, "attentive")])
def test_weights_come_back_bit_for_bit(depth, pooling, tmp_path):
    model = settle(HamSpkModel(HamSpkConfig(**resnet_fields(depth, pooling))))
    replaced = {"model: ResNet34": f"model: ResNet{depth}"}
    replaced |= {"TSTP": "ASTP"} if pooling == "attentive" else {}
    converted = convert(write_resnet(tmp_path / "model", resnet_weights(model), **replaced))
    assert converted.source == converted.model.config.converted_from == "WeSpeaker ResNet"
    assert converted.left_out == {"projection.* in avg_model.pt": "the classifier of the training speakers"}
    again = converted.model.state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    for name, value in resnet_fields(depth, pooling).items():
        assert getattr(converted.model.config, name) == value, name


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return resnet_weights(HamSpkModel(HamSpkConfig(**resnet_fields())))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model: ResNet34", "model: SimAM_ResNet34_ASP", "describes the model SimAM_ResNet34_ASP. Only the ECAPA"),
        ("model: ResNet34", "model: ResNet1000", "describes the model ResNet1000. Only"),
        ("model: ResNet34", "model: ResNet18", r"The weights do not fit the WeSpeaker ResNet model .* unknown"),
        ("two_emb_layer: false", "two_emb_layer: true", "two_emb_layer True. Only models with two_emb_layer False"),
        ("two_emb_layer: false", "", "two_emb_layer True. Only models with two_emb_layer False can be converted"),
        ("TSTP", "MQMHASTP", "pooling_func MQMHASTP. Only models with pooling_func TSTP or ASTP can be converted"),
        ("TSTP", "ASTP", r"The weights do not fit .* 4 missing \(pooling.hidden.bias"),
        ("embed_dim: 24", "embed_dim: 25", r"The weights do not fit .* 2 of another shape \(projection.bias"),
        ("feat_dim: 80", "feat_dim: 40", "model_args has feat_dim 40. Only models with feat_dim 80 can be"),
        ("embed_dim: 24", "embed_dim: many", "cannot be converted: .*embedding_size"),
    ],
)
def test_other_models_are_refused(old, new, message, weights, tmp_path):
    refuses(message, write_resnet(tmp_path / "model", weights, **{old: new}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seg_1.bias": None}, r"1 missing \(projection.bias\)"),
        ({"conv1.weight": None}, r"The weights do not fit"),
        ({"layer1.0.conv1.weight": torch.zeros(3)}, r"1 of another shape \(backbone.stages.0.0.layers.0.conv.weight"),
        ({"seg_2.weight": torch.zeros(3)}, "'seg_2.weight' is not a weight of WeSpeaker's ResNet"),
        ({"layer5.0.conv1.weight": torch.zeros(3)}, "'layer5.0.conv1.weight' is not a weight of WeSpeaker's ResNet"),
        ({"conv1.weight": torch.zeros(())}, "conv1.weight .*shape|do not fit"),
    ],
    ids=lambda one: one if isinstance(one, str) else next(iter(one)),
)
def test_other_weights_are_refused(change, message, weights, tmp_path):
    changed = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
    refuses(message, write_resnet(tmp_path / "model", changed))


def test_a_truncated_file_is_refused(weights, tmp_path):
    folder = write_resnet(tmp_path / "model", weights)
    file = Path(folder / "avg_model.pt")
    file.write_bytes(file.read_bytes()[:5000])
    refuses("avg_model.pt cannot be read as a checkpoint", folder)
    file.unlink()
    refuses("File not found: .*avg_model.pt. Use the complete model folder", folder)
