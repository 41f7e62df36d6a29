"""The released code's encoder, converted, gives the released code's embeddings."""

import re

import pytest
import torch
from tiny_models import cosine, padded

from hf_hamspk import HamSpkConfig, HamSpkModel
from hf_hamspk.conversion import convert_official_state_dict


@pytest.fixture(scope="module")
def official(golden) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The golden tensors, and the state dict among them under its own names."""
    tensors, _ = golden("ecapa_official_c64")
    prefix = "state_dict."
    return tensors, {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def model(official) -> HamSpkModel:
    model = HamSpkModel(HamSpkConfig(ecapa_channels=64)).eval()
    model.load_state_dict(convert_official_state_dict(official[1]), strict=True)
    return model


def test_embeddings_are_those_of_the_released_encoder(official, model):
    tensors, _ = official
    waves, expected = tensors["input.waveform"], tensors["expected.embedding"]
    with torch.no_grad():
        for actual in (model(waves).embeddings, model.embed(list(waves), 16000)):
            assert ((actual - expected).abs().max() / expected.abs().max()) < 1e-4


def test_embeddings_of_a_padded_batch_are_those_of_the_released_encoder(official, model):
    tensors, _ = official
    waves, expected = tensors["input.waveform"], tensors["expected.embedding"]
    values, mask = padded([*waves, torch.randn(60000)])
    with torch.no_grad():
        actual = model(values, mask).embeddings[:2]
    assert ((actual - expected).abs().max() / expected.abs().max()) < 1e-4
    assert (1 - cosine(actual, expected)).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["speaker_encoder.conv1.weight", "layer5.conv1.weight", "layer1.conv2.weight"])
def test_an_unknown_weight_is_named(name):
    message = (
        f"{name!r} is not a weight of the ECAPA-TDNN encoder of the HAM-Softmax code. If the checkpoint contains the "
        "complete trainer, pass only the weights of the encoder, without the prefix 'speaker_encoder.'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        convert_official_state_dict({name: torch.zeros(1)})


def test_constants_of_the_front_end_are_left_out(official):
    _, theirs = official
    ours = convert_official_state_dict(theirs)
    left_out = [name for name in theirs if name.startswith("torchfbank.")]
    assert len(ours) == len(theirs) - len(left_out)
    assert not convert_official_state_dict({"torchfbank.1.mel_scale.fb": torch.zeros(1)})
