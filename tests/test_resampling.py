"""Resampling agrees with torchaudio's, at any pair of rates, in bounded memory."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
import torchaudio.functional

from hf_hamspk.audio_hamspk import resample


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000), (48000, 16000), (22050, 16000), (16000, 8000)])
@pytest.mark.parametrize("length", [1, 7, 5000])
def test_it_agrees_with_torchaudio(rates, length):
    wave = (0.1 * np.random.default_rng(length).standard_normal(length)).astype(np.float32)
    expected = torchaudio.functional.resample(torch.from_numpy(wave), *rates).numpy()
    found = resample(wave, *rates)
    assert found.dtype == np.float32 and found.shape == expected.shape
    # torchaudio computes its filter in float32.
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rate", [16001, 44101, 31337])
def test_a_tone_stays_a_tone_at_odd_rates(rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    found = resample(tone, rate, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    inner = slice(200, -200)
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)


def test_nothing_and_the_same_rate():
    assert resample(np.zeros(0, np.float32), 8000, 16000).shape == (0,)
    wave = np.ones(3, np.float32)
    assert resample(wave, 16000, 16000) is wave


def test_memory_does_not_grow_with_coprime_rates():
    wave = np.zeros(10 * 44101, np.float32)
    tracemalloc.start()
    found = resample(wave, 44101, 16000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == math.ceil(len(wave) * 16000 / 44101)
    assert peak < 250 << 20
