"""The poolings over time and over layers against their formulas, written out utterance by utterance."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_config

from hf_hamspk import HamSpkConfig
from hf_hamspk.geometry_hamspk import length_mask
from hf_hamspk.networks_hamspk import (
    AttentivePooling,
    Deviation,
    FactorisedAttentivePooling,
    LayerMix,
    StatisticsPooling,
    XVectorPooling,
    mean_and_deviation,
)

CHANNELS, LAYERS = 6, 3
LENGTHS = torch.tensor([40, 1, 17, 15])
MASK = length_mask(LENGTHS, 40)


def frames() -> torch.Tensor:
    """`(4, 6, 40)`, with values in the padding that must not matter."""
    return torch.randn(4, CHANNELS, 40, dtype=torch.float64) + 0.5


def small_config() -> HamSpkConfig:
    return tiny_config(tdnn_channels=[8, 8, 8, 8, 12])


def settled(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module.double().eval()


@pytest.mark.parametrize("unbiased", [True, False])
def test_mean_and_deviation_are_those_of_numpy(unbiased):
    x = frames()
    mean, deviation = mean_and_deviation(x, MASK, Deviation(1e-6, unbiased, offset=0.01))
    for row, length in enumerate(LENGTHS.tolist()):
        valid = x[row, :, :length].numpy()
        variance = valid.var(axis=1, ddof=int(unbiased)) if length > 1 else np.zeros(CHANNELS)
        np.testing.assert_allclose(mean[row], valid.mean(axis=1))
        np.testing.assert_allclose(deviation[row], np.sqrt(variance + 0.01))
    whole = mean_and_deviation(x, None, Deviation(1e-6, unbiased))
    np.testing.assert_allclose(whole[1], x.numpy().std(axis=2, ddof=int(unbiased)))


def test_statistics_pooling():
    pooling, x = StatisticsPooling(tiny_config(), CHANNELS), frames()
    pooled = pooling(x, MASK)
    assert pooled.shape == (4, pooling.output_size)
    expected = torch.cat([x[0].mean(-1), x[0].std(-1)])
    torch.testing.assert_close(pooled[0], expected)


@pytest.mark.parametrize("kind", [StatisticsPooling, XVectorPooling, AttentivePooling])
@pytest.mark.parametrize("gradients", [True, False])
def test_an_utterance_is_pooled_as_if_it_were_alone(kind, gradients):
    pooling, x = settled(kind(small_config(), CHANNELS)), frames()
    with torch.set_grad_enabled(gradients):
        pooled = pooling(x.clone(), MASK)
        assert pooled.shape == (4, pooling.output_size)
        for row, length in enumerate(LENGTHS.tolist()):
            torch.testing.assert_close(pooled[row], pooling(x[row : row + 1, :, :length].clone())[0])


def test_xvector_layers_by_hand():
    """The receptive field is 15 frames."""
    config = small_config()
    pooling, x = settled(XVectorPooling(config, CHANNELS)), frames()
    assert pooling.span == 14
    hidden = pooling.project(x)
    for layer, dilation in zip(pooling.layers, config.tdnn_dilations, strict=True):
        hidden = torch.relu(torch.nn.functional.conv1d(hidden, layer.weight, layer.bias, dilation=dilation))
    assert hidden.shape[-1] == 40 - 14
    torch.testing.assert_close(pooling(x), torch.cat([hidden.mean(-1), hidden.std(-1).clamp_min(0.01)], dim=1))


def test_a_mix_of_layers_is_the_convex_sum():
    mix, layers = settled(LayerMix(LAYERS)), torch.randn(LAYERS, 2, 5, CHANNELS, dtype=torch.float64)
    shares = mix.weight.exp() / mix.weight.exp().sum()
    expected = sum(share * layer for share, layer in zip(shares, layers, strict=True))
    torch.testing.assert_close(mix(tuple(layers)), expected)
    mix.restart()
    torch.testing.assert_close(mix(tuple(layers)), layers.mean(0))


def test_factorised_attention_by_hand():
    config = tiny_config()
    pooling = settled(FactorisedAttentivePooling(config, CHANNELS, LAYERS))
    layers = tuple(torch.randn(LAYERS, 4, 40, CHANNELS, dtype=torch.float64))
    pooled = pooling(layers, MASK)
    assert pooled.shape == (4, pooling.output_size)
    for row, length in enumerate(LENGTHS.tolist()):
        own = tuple(layer[row : row + 1, :length] for layer in layers)
        keys = pooling.key_compression(pooling.key_mix(own))[0]
        values = pooling.value_compression(pooling.value_mix(own))[0]
        attention = pooling.attention(keys)
        heads = [(attention[:, head].softmax(0)[:, None] * values).sum(0) for head in range(config.mhfa_heads)]
        torch.testing.assert_close(pooled[row], torch.cat(heads))
        torch.testing.assert_close(pooling(own)[0], pooled[row])
