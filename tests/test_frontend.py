"""The front-ends against golden numbers and torchaudio, their padding law, their masking and their constants."""

import numpy as np
import pytest
import torch
import torchaudio
from tiny_models import RATE, noises, padded, tiny_config
from transformers import Wav2Vec2FeatureExtractor

from hf_hamspk.encoders_hamspk import make_frontend
from hf_hamspk.geometry_hamspk import length_mask
from hf_hamspk.networks_hamspk import FilterBank, mask_bands, mel_bank

FILTER_BANKS = ["fbank", "kaldi", "speechbrain"]
FRONTENDS = [*FILTER_BANKS, "waveform"]


def build(name: str, **fields):
    backbone = "wavlm" if name == "waveform" else "ecapa"
    return make_frontend(tiny_config(backbone, frontend=name, **fields)).eval()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= relative, f"{error:.2e} of the largest entry, more than {relative}"


# --- references


def test_golden_fbank(golden):
    tensors, _ = golden("ecapa_official_c64")
    assert_near(build("fbank")(tensors["input.waveform"]).values, tensors["expected.fbank"], 1e-4)


def test_golden_kaldi_fbank(golden):
    tensors, _ = golden("ecapa_wespeaker_c64")
    assert_near(build("kaldi")(tensors["input.waveform"]).values, tensors["expected.fbank"].mT, 1e-4)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.2345])
def test_fbank_is_torchaudio_after_a_pre_emphasis(seconds):
    wave = torch.stack(noises(seconds, seconds))
    emphasised = wave - 0.97 * torch.cat([wave[:, 1:2], wave[:, :-1]], dim=1)
    mel = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=512, win_length=400, hop_length=160, f_min=20, f_max=7600, window_fn=torch.hamming_window, n_mels=80
    )
    expected = (mel(emphasised) + 1e-6).log()
    expected = expected - expected.mean(-1, keepdim=True)
    assert_near(build("fbank")(wave).values, expected, 1e-4)


@pytest.mark.parametrize("bins", [40, 80])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_kaldi_is_torchaudios(rate, bins):
    wave = noises(1.2345)[0]
    expected = torchaudio.compliance.kaldi.fbank(
        wave[None] * 32768, num_mel_bins=bins, sample_frequency=rate, window_type="hamming", dither=0.0
    )
    expected = (expected - expected.mean(0)).mT
    assert_near(build("kaldi", sampling_rate=rate, num_mel_bins=bins)(wave[None]).values[0], expected, 1e-4)


@pytest.mark.parametrize("masked", [False, True], ids=["alone", "padded"])
def test_waveform_is_wav2vec2s_normalisation(masked):
    waves = noises(0.5, 1.0, 0.7) if masked else noises(0.5, 0.5)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True)
    expected = extractor([w.numpy() for w in waves], sampling_rate=RATE, padding=True, return_tensors="pt").input_values
    values, mask = padded(waves)
    features = build("waveform")(values, mask.sum(-1) if masked else None)
    torch.testing.assert_close(features.values, expected, rtol=1e-5, atol=1e-5)


def test_a_quiet_waveform_is_wav2vec2s_normalisation():
    """Near the number that keeps silence finite."""
    wave = 1e-3 * noises(0.5)[0]
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    expected = extractor(wave.numpy(), sampling_rate=RATE, return_tensors="pt").input_values
    assert expected.std() < 0.9
    torch.testing.assert_close(build("waveform")(wave[None]).values, expected, rtol=1e-4, atol=1e-4)


def test_speechbrains_logarithm_is_in_decibels_down_to_80_below_the_loudest():
    energies = torch.tensor([[[1e3, 1e-2, 1e-9]], [[1e-3, 1e-11, 0.0]]])
    frontend = build("speechbrain", num_mel_bins=20)
    expected = torch.tensor([[[30.0, -20.0, -50.0]], [[-30.0, -100.0, -100.0]]])
    torch.testing.assert_close(frontend._logarithm(energies, None), expected)
    # Without the first frame of the second, which then lies in the padding, nothing is 80 dB below the loudest.
    swapped = frontend._logarithm(energies.flip(-1), torch.tensor([3, 2]))
    torch.testing.assert_close(swapped[1, 0, :2], torch.tensor([-100.0, -100.0]))
    loud = frontend._logarithm(torch.tensor([[[1e-9, 1e-2, 1e3]]]), torch.tensor([2]))
    torch.testing.assert_close(loud[0, 0], torch.tensor([-90.0, -20.0, 30.0]))


def test_waveform_may_stay_as_it_is():
    values, mask = padded(noises(0.5, 1.0))
    features = build("waveform", normalize_waveform=False)(values + (1 - mask), mask.sum(-1))
    assert torch.equal(features.values, values)


# --- padding


@pytest.mark.parametrize("name", FRONTENDS)
def test_features_do_not_depend_on_the_padding(name):
    frontend = build(name)
    waves = noises(0.1, 0.31, 0.5, 1.7, 3.0)
    values, mask = padded(waves)
    # What lies beyond the end must not matter either.
    values = values + (1 - mask) * torch.randn_like(values)
    together = frontend(values, mask.sum(-1))
    for i, wave in enumerate(waves):
        alone = frontend(wave[None])
        frames = int(together.lengths[i])
        assert frames == alone.values.shape[-1]
        torch.testing.assert_close(together.values[i, ..., :frames], alone.values[0], rtol=1e-4, atol=1e-4)
        assert (together.values[i, ..., frames:] == 0).all()


@pytest.mark.parametrize("name", FILTER_BANKS)
def test_an_utterance_of_one_window_has_finite_features(name):
    frontend = build(name)
    features = frontend(noises(0.025)[0][None])
    assert features.values.shape[1] == 80 and features.values.shape[2] >= 1
    assert features.values.isfinite().all()
    assert frontend.smallest_length == 400


@pytest.mark.parametrize("name", FRONTENDS)
@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
def test_silence_and_constants_are_finite_and_have_finite_gradients(name, fill):
    wave = torch.full((2, 8000), fill, requires_grad=True)
    values = build(name)(wave, torch.tensor([8000, 5000])).values
    values.square().sum().backward()
    assert values.isfinite().all() and wave.grad.isfinite().all()


def test_kaldi_features_do_not_depend_on_the_volume():
    wave = noises(1.0)[0][None]
    torch.testing.assert_close(build("kaldi")(wave).values, build("kaldi")(0.5 * wave).values, rtol=0, atol=1e-3)


# --- masking


@pytest.mark.parametrize("name", FILTER_BANKS)
def test_features_are_masked_in_training_only(name):
    frontend = build(name, mask_mel_bins=8, mask_frames=10)
    wave = torch.stack(noises(1.0, 1.0))
    plain = frontend(wave).values
    assert torch.equal(plain, frontend(wave).values)
    frontend.train()
    masked = frontend(wave).values
    assert not torch.equal(plain, masked)
    assert ((masked == plain) | (masked == 0)).all()
    assert torch.equal(plain, build(name, mask_mel_bins=0, mask_frames=0).train()(wave).values)


def test_bands_stay_within_their_limits_and_the_valid_frames():
    lengths = torch.randint(12, 40, (500,))
    masked = mask_bands(torch.ones(500, 20, 40), lengths, bins=5, frames=7) == 0
    valid = length_mask(lengths, 40)
    bands = masked.all(2)
    stretches = masked.all(1)
    assert torch.equal(masked, bands[:, :, None] | stretches[:, None])
    assert not (stretches & ~valid).any()
    assert bands.sum(1).unique().tolist() == list(range(6))
    assert stretches.sum(1).unique().tolist() == list(range(8))
    for stretch in (bands, stretches):
        # One piece each: it begins at most once.
        begins = torch.cat([stretch[:, :1].int(), stretch.int().diff()], dim=1) == 1
        assert begins.sum(1).max() == 1
    # Every bin and the last valid frame are reached.
    assert bands.any(0).all()
    assert stretches[torch.arange(500), lengths - 1].any()


def test_a_mask_covers_at_most_half_of_a_short_utterance():
    lengths = torch.arange(1, 9).repeat(100)
    masked = mask_bands(torch.ones(800, 5, 8), lengths, bins=0, frames=8) == 0
    widths = masked.all(1).sum(1)
    for length in range(1, 9):
        assert widths[lengths == length].unique().tolist() == list(range(length // 2 + 1))


def test_filters_of_speechbrain_start_at_0_hz_and_are_symmetric():
    bank = mel_bank("speechbrain", 20, 4000, 16000)
    hertz = np.linspace(0, 8000, 2001)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 22) / 2595) - 1)
    for filter_, left, centre in zip(bank.T, edges, edges[1:], strict=False):
        np.testing.assert_allclose(filter_, np.maximum(0, 1 - np.abs(hertz - centre) / (centre - left)), atol=1e-9)


# --- constants


@pytest.mark.parametrize("name", FILTER_BANKS)
@pytest.mark.parametrize("cast", ["bfloat16", "half"])
def test_a_cast_does_not_reach_the_constants(name, cast):
    frontend = build(name)
    window, bank = frontend.constants()
    wave = noises(0.5)[0][None]
    expected = frontend(wave).values
    holder = torch.nn.Sequential(frontend, torch.nn.Linear(2, 2))
    getattr(holder, cast)()
    assert holder[1].weight.dtype != torch.float32
    assert frontend.window.dtype == frontend.bank.dtype == torch.float32
    assert torch.equal(frontend.window, window) and torch.equal(frontend.bank, bank)
    assert torch.equal(frontend(wave).values, expected)
    holder.to("meta")
    assert frontend.window.device.type == "meta"


@pytest.mark.parametrize("name", FILTER_BANKS)
def test_constants_are_not_saved_and_can_be_restored(name):
    frontend = build(name)
    assert not frontend.state_dict()
    window, bank = frontend.constants()
    with torch.no_grad():
        frontend.window.fill_(torch.nan)
        frontend.bank.fill_(torch.nan)
    frontend.restore_constants()
    assert torch.equal(frontend.window, window) and torch.equal(frontend.bank, bank)


@pytest.mark.parametrize("name", FILTER_BANKS)
def test_autocast_does_not_reach_the_features(name):
    frontend, wave = build(name), noises(0.5)[0][None]
    expected = frontend(wave).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frontend(wave).values, expected)
    assert frontend(wave.double()).values.dtype == torch.float32


def test_every_filter_passes_something():
    for name in FILTER_BANKS:
        frontend = build(name)
        assert isinstance(frontend, FilterBank)
        assert (frontend.bank.sum(0) > 0).all()
