"""Laws of augmentation: determinism, ratios in dB, spectra, and what is refused."""

import re

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_hamspk import DataArguments
from hf_hamspk.audio_hamspk import InputError
from hf_hamspk.data.audio import SAMPLING_RATE
from hf_hamspk.data.augmentation import (
    AUGMENTATION_KINDS,
    BABBLE_SNR_DB,
    EQUALISER_HZ,
    NOISE_SNR_DB,
    Augmentation,
    NoiseFolder,
    add_at_snr,
    at_level,
    babble,
    coloured_noise,
    equalise,
    fast_fft_length,
    limit_band,
    reverberate,
    room_response,
    telephone,
)


def white(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def other(generator: np.random.Generator) -> np.ndarray:
    return white(20_000, int(generator.integers(100)))


def snr_db(clean: np.ndarray, mixed: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(clean**2) / np.mean((mixed - clean) ** 2)))


@pytest.mark.parametrize("kind", AUGMENTATION_KINDS)
@pytest.mark.parametrize("samples", [1_601, 32_000])
def test_each_kind_keeps_shape_dtype_and_input_and_is_a_function_of_the_generator(kind, samples):
    waveform = white(samples)
    before = waveform.copy()
    augmentation = Augmentation(probability=1.0, kinds=(kind,))
    first, again, another = (augmentation(waveform, np.random.default_rng(seed), other) for seed in (1, 1, 2))
    assert first.shape == waveform.shape and first.dtype == np.float32
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(waveform, before)
    assert not np.array_equal(first, another)
    assert not np.array_equal(first, waveform)


@settings(max_examples=60, deadline=None)
@given(st.floats(-90, 0), st.floats(-60, 20), st.integers(200, 40_000), st.integers(0, 100))
def test_a_crop_gets_the_level_and_the_steps_of_16_bits(level_db, given_db, samples, seed):
    waveform = white(samples, seed, 10 ** (given_db / 20))
    found = at_level(waveform, level_db)
    assert found.dtype == np.float32 and found.shape == waveform.shape
    steps = found * np.float32(32768)
    np.testing.assert_array_equal(steps, np.rint(steps))
    assert found.min() >= -1 and found.max() < 1
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    exact = waveform * (10 ** (level_db / 20) / np.sqrt(power))
    np.testing.assert_allclose(found, np.clip(exact, -1, 32767 / 32768), atol=0.501 / 32768 + 1e-5)
    np.testing.assert_array_equal(at_level(np.zeros(samples, np.float32), level_db), 0)


def test_levels_are_drawn_from_the_range_for_every_crop():
    """Whether or not the crop is augmented; without the range, the draws are those of earlier versions."""
    for probability in (0.0, 0.5, 1.0):
        augmentation = Augmentation(probability, ("equaliser",), level_range_db=(-70.0, -20.0))
        levels = []
        for seed in range(200):
            crop = augmentation(white(4_000, seed), np.random.default_rng(seed))
            levels.append(10 * np.log10(np.mean(np.square(crop, dtype=np.float64))))
        assert -71 < min(levels) < -66 and -24 < max(levels) < -19.9
        assert np.mean(levels) == pytest.approx(-45, abs=3)
    plain, levelled = Augmentation(1.0), Augmentation(1.0, level_range_db=(-26.0, -26.0))
    for seed in range(10):
        one = plain(white(4_000), np.random.default_rng(seed), other)
        two = levelled(white(4_000), np.random.default_rng(seed), other)
        np.testing.assert_array_equal(two, at_level(one, -26.0))


@pytest.mark.parametrize(
    "wrong", [(-20.0, -70.0), (-91.0, -20.0), (-20.0, 1.0), (-20.0,), (float("nan"), -20.0), ("a", "b"), ()]
)
def test_wrong_ranges_of_levels_are_refused(wrong):
    message = "level_range_db must be two levels from -90 to 0 dBFS, the lower one first, got"
    with pytest.raises(ValueError, match=message):
        Augmentation(level_range_db=wrong)
    if len(wrong):
        with pytest.raises(ValueError, match="level_range_db must"):
            DataArguments(level_range_db=list(wrong))


@pytest.mark.parametrize("kind", AUGMENTATION_KINDS)
def test_silence_and_single_samples_stay_finite(kind):
    augmentation = Augmentation(probability=1.0, kinds=(kind,))
    for waveform in (np.zeros(1_000, np.float32), white(1), white(2)):
        for seed in range(5):
            assert np.isfinite(augmentation(waveform, np.random.default_rng(seed), other)).all()


def test_probability_is_the_share_of_augmented_crops():
    waveform = white(10)
    generator = np.random.default_rng(0)
    for probability in (0.0, 0.6, 1.0):
        augmentation = Augmentation(probability, kinds=("gain",))
        changed = [augmentation(waveform, generator) is not waveform for _ in range(1_000)]
        assert np.mean(changed) == pytest.approx(probability, abs=0.05)


@pytest.mark.parametrize(("kind", "limits"), [("noise", NOISE_SNR_DB), ("babble", BABBLE_SNR_DB)])
def test_ratios_lie_in_the_stated_range(kind, limits):
    waveform = white(8_000)
    augmentation = Augmentation(1.0, kinds=(kind,))
    ratios = [snr_db(waveform, augmentation(waveform, np.random.default_rng(seed), other)) for seed in range(40)]
    assert limits[0] - 0.01 <= min(ratios) < max(ratios) <= limits[1] + 0.01
    assert max(ratios) - min(ratios) > 0.5 * (limits[1] - limits[0])


@pytest.mark.parametrize("ratio", [-5.0, 0.0, 20.0])
def test_add_at_snr(ratio):
    waveform = white(5_000)
    assert snr_db(waveform, add_at_snr(waveform, white(5_000, 1, level=3.0), ratio)) == pytest.approx(ratio, abs=1e-3)
    assert add_at_snr(waveform, np.zeros(5_000, np.float32), ratio) is waveform


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_the_spectrum_of_coloured_noise_falls_by_three_db_per_octave_and_unit_of_slope(slope):
    power = np.abs(np.fft.rfft(coloured_noise(2**16, slope, np.random.default_rng(0)))) ** 2
    octaves = 10 * np.log10([power[start : 2 * start].mean() for start in (256, 4096)])
    assert (octaves[0] - octaves[1]) / 4 == pytest.approx(3.01 * slope, abs=0.3)


def test_babble_is_a_sum_of_voices_of_equal_power():
    calls = []

    def count(generator):
        calls.append(1)
        return white(4_000, len(calls), level=2.0 ** -len(calls))

    total = babble(4_000, np.random.default_rng(0), count)
    assert 3 <= len(calls) <= 8
    assert np.mean(total**2) == pytest.approx(len(calls), rel=0.2)


@pytest.mark.parametrize("rt60", [0.1, 0.7])
@pytest.mark.parametrize("direct_db", [-3.0, 12.0])
def test_room_response(rt60, direct_db):
    response = room_response(rt60, direct_db, 16_000, np.random.default_rng(0))
    assert len(response) == round(rt60 * 16_000)
    assert np.sum(response**2) == pytest.approx(1.0, rel=1e-5)
    assert 10 * np.log10(response[0] ** 2 / np.sum(response[1:] ** 2)) == pytest.approx(direct_db, abs=1e-3)
    # Energy still to come, in dB: 30 dB of its fall take half of rt60.
    remaining = 10 * np.log10(np.cumsum(response[:0:-1] ** 2)[::-1])
    fall = np.searchsorted(-(remaining - remaining[0]), [5.0, 35.0])
    assert (fall[1] - fall[0]) / 16_000 == pytest.approx(rt60 / 2, rel=0.1)


def test_reverberate_is_a_convolution_at_the_level_of_the_input():
    waveform, response = white(3_000), white(500, 1)
    expected = np.convolve(waveform, response[np.argmax(np.abs(response)) :])[:3_000]
    wet = reverberate(waveform, response)
    np.testing.assert_allclose(wet, expected * np.sqrt(np.sum(waveform**2) / np.sum(expected**2)), atol=1e-5)
    impulse = np.zeros(50, np.float32)
    impulse[20] = 0.3
    np.testing.assert_allclose(reverberate(waveform, impulse), waveform, atol=1e-6)


def test_limit_band_halves_the_power_at_its_edges_and_passes_the_middle():
    seconds = np.arange(16_000) / 16_000
    for hertz, power in ((1_000, 1.0), (300, 0.5), (3_400, 0.5), (75, 0.0), (7_900, 0.0)):
        tone = np.sin(2 * np.pi * hertz * seconds).astype(np.float32)
        kept = limit_band(tone, 300.0, 3_400.0, 16_000)
        assert np.mean(kept**2) / np.mean(tone**2) == pytest.approx(power, abs=0.02)


def test_gain_clips_at_full_scale():
    augmentation = Augmentation(1.0, kinds=("gain",))
    peaks = [np.abs(augmentation(white(100, level=1.0), np.random.default_rng(seed))).max() for seed in range(50)]
    assert max(peaks) == 1.0
    assert min(peaks) < 0.7


def test_fast_fft_length_is_even_smooth_and_near():
    for samples in [*range(1, 200), 32_240, 43_201, 48_240]:
        size = fast_fft_length(samples)
        assert samples <= size <= max(2, 1.26 * samples + 2) and size % 2 == 0
        for prime in (2, 3, 5):
            while size % prime == 0:
                size //= prime
        assert size == 1


def test_files_of_the_user_take_the_place_of_generated_noise_and_rooms(tmp_path):
    (tmp_path / "noise" / "sub").mkdir(parents=True)
    (tmp_path / "rir").mkdir()
    noise = white(1_000, 5)
    sf.write(tmp_path / "noise" / "sub" / "n.wav", noise, 16_000, subtype="FLOAT")
    impulse = np.zeros(64)
    impulse[3] = 0.9
    sf.write(tmp_path / "rir" / "r.wav", impulse, 16_000, subtype="FLOAT")
    waveform = white(1_000)
    noisy = Augmentation(1.0, ("noise",), noise_dir=str(tmp_path / "noise"))(waveform, np.random.default_rng(0))
    assert np.corrcoef(noisy - waveform, noise)[0, 1] == pytest.approx(1.0, abs=1e-4)
    wet = Augmentation(1.0, ("reverb",), rir_dir=str(tmp_path / "rir"))(waveform, np.random.default_rng(0))
    np.testing.assert_allclose(wet, waveform, atol=1e-6)
    (tmp_path / "noise" / "sub" / "n.wav").write_bytes(b"broken")
    with pytest.raises(InputError, match=re.escape("n.wav: cannot be decoded")):
        Augmentation(1.0, ("noise",), noise_dir=str(tmp_path / "noise"))(waveform, np.random.default_rng(0))


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape("probability must be between 0 and 1, got 1.5")):
        Augmentation(1.5)
    known = "kinds must be some of noise, babble, reverb, band, codec, equaliser, gain, music, got ('radio',)"
    with pytest.raises(ValueError, match=re.escape(known)):
        Augmentation(kinds=("radio",))
    with pytest.raises(ValueError, match=re.escape("The kind music needs music_dir, got None. Set music_dir")):
        Augmentation(kinds=("music",))
    with pytest.raises(ValueError, match=re.escape("kinds must be some of")):
        Augmentation(kinds=())
    with pytest.raises(ValueError, match=re.escape(f"No audio in noise_dir {tmp_path}.")):
        Augmentation(noise_dir=str(tmp_path))
    with pytest.raises(
        ValueError,
        match=re.escape("needs other voices. Pass sample_other, set speech_dir, or remove babble from kinds."),
    ):
        Augmentation(1.0, kinds=("babble",))(white(10), np.random.default_rng(0))


def test_equaliser_gives_the_gains_it_is_asked_for():
    """A tone at a band's centre is raised by that band's gain."""
    gains = np.array([-8.0, 6.0, 0.0, -3.0, 8.0, -6.0, 2.0])
    time = np.arange(SAMPLING_RATE) / SAMPLING_RATE
    for hertz, gain in zip(EQUALISER_HZ[1:-1], gains[1:-1], strict=True):
        tone = np.sin(2 * np.pi * hertz * time).astype(np.float32)
        louder = equalise(tone, gains, SAMPLING_RATE)
        assert 20 * np.log10(np.std(louder) / np.std(tone)) == pytest.approx(gain, abs=0.1)


def test_several_kinds_may_be_applied_to_one_crop():
    """With `most` 2, one or two of the kinds: the result is that of one kind, or of two different ones in turn."""
    crop = white(1000)
    augmentation = Augmentation(1.0, kinds=("equaliser", "gain"), most=2)
    results = {augmentation(crop, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert len(results) == 20
    with pytest.raises(ValueError, match=re.escape("most must be between 1 and 2 (the number of kinds), got 3")):
        Augmentation(kinds=("band", "gain"), most=3)


def test_mixing_and_companding_agree_with_torchaudio():
    """Of the additive noise, the convolution and the mu-law of `torchaudio.functional`."""
    functional = torchaudio.functional
    waveform, noise = white(4_000), white(4_000, 1)
    expected = functional.add_noise(*map(torch.from_numpy, (waveform, noise)), torch.tensor(7.0)).numpy()
    np.testing.assert_allclose(add_at_snr(waveform, noise, 7.0), expected, atol=1e-6)
    response = room_response(0.1, 3.0, 16_000, np.random.default_rng(0))
    expected = functional.fftconvolve(*map(torch.from_numpy, (waveform, response))).numpy()[:4_000]
    wet = reverberate(waveform, response)
    np.testing.assert_allclose(wet / np.std(wet), expected / np.std(expected), atol=1e-4)


@pytest.mark.parametrize("law", ["mu", "a"])
def test_a_telephone_passes_its_band_only_with_eight_bits(law):
    seconds = np.arange(16_000) / 16_000
    for hertz, passes in ((1_000, True), (100, False), (6_000, False)):
        tone = (0.3 * np.sin(2 * np.pi * hertz * seconds)).astype(np.float32)
        heard = telephone(tone, law, 16_000)
        assert heard.shape == tone.shape and heard.dtype == np.float32
        assert (np.mean(heard**2) / np.mean(tone**2) > 0.9) == passes
    # The noise of 8-bit companding lies about 38 dB under speech, whatever its level.
    for level in (0.02, 0.5):
        tone = (level * np.sin(2 * np.pi * 1_000 * seconds)).astype(np.float32)
        heard = telephone(tone, law, 16_000)[2_000:-2_000]
        assert 25 < snr_db(tone[2_000:-2_000], heard) < 45
    with pytest.raises(ValueError, match="law must be one of mu, a"):
        telephone(white(10), "b", 16_000)


def test_recordings_are_mixed_in_at_the_published_ratios(tmp_path):
    """Noise 0 to 15 dB, music 5 to 15, voices 13 to 20, wherever in a long file they are taken from."""
    sf.write(tmp_path / "n.wav", white(40_000, 5), 16_000, subtype="FLOAT")
    waveform, folder = white(8_000), str(tmp_path)
    for kind, limits in {"noise": (0, 15), "music": (5, 15), "babble": (13, 20)}.items():
        augmentation = Augmentation(1.0, (kind,), noise_dir=folder, music_dir=folder, speech_dir=folder)
        ratios = [snr_db(waveform, augmentation(waveform, np.random.default_rng(seed))) for seed in range(40)]
        assert limits[0] - 0.01 <= min(ratios) < max(ratios) <= limits[1] + 0.01
        assert max(ratios) - min(ratios) > 0.5 * (limits[1] - limits[0])


def test_a_crop_of_a_file_is_a_piece_of_it(tmp_path):
    long = white(3_000, 5)
    sf.write(tmp_path / "n.wav", long, 16_000, subtype="FLOAT")
    source = NoiseFolder(tmp_path)
    piece = source.crop(100, np.random.default_rng(3))
    start = int(np.argmin(np.abs(long - piece[0])))
    np.testing.assert_array_equal(piece, long[start : start + 100])
    np.testing.assert_array_equal(source.crop(100, np.random.default_rng(3)), piece)
    np.testing.assert_array_equal(source.crop(6_000, np.random.default_rng(3)), np.tile(long, 2))
    np.testing.assert_array_equal(source.whole(np.random.default_rng(0)), long)
