"""How much speech a recording holds: silence and noise hold none, speech holds what it holds; laws of the measures."""

import numpy as np
import pytest

from hf_hamspk.audio_hamspk import HIGHEST_SNR_DB, LOWEST_LEVEL_DB, LOWEST_SNR_DB, measure_speech
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.synthetic import make_speech

RATE = 16000
TIME = np.arange(3 * RATE) / RATE


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clicks() -> np.ndarray:
    wave = np.zeros(3 * RATE)
    wave[:: RATE // 4] = 0.9
    return wave


NO_SPEECH = {
    "silence": np.zeros(3 * RATE),
    "constant": np.full(3 * RATE, 0.3),
    "white noise": 0.1 * random().standard_normal(3 * RATE),
    "brown noise": np.cumsum(0.01 * random(1).standard_normal(3 * RATE)) / 10,
    "tone": 0.3 * np.sin(2 * np.pi * 440 * TIME),
    "hum": sum(0.2 / k * np.sin(2 * np.pi * 50 * k * TIME) for k in range(1, 20)),
    "clicks": clicks(),
    "bursts of noise": 0.1 * random(2).standard_normal(3 * RATE) * (np.sin(2 * np.pi * 2 * TIME) > 0),
    "little noise": 1e-5 * random(3).standard_normal(3 * RATE),
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_what_is_no_speech_holds_none(name):
    measures = measure_speech(np.asarray(NO_SPEECH[name], np.float32), RATE)
    assert measures.speech < 0.3
    assert measures.duration == 3.0
    if measures.speech == 0:
        assert measures.snr_db == LOWEST_SNR_DB


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_speech_is_found(seed):
    speech = make_speech(seed, 0, 4.0)
    measures = measure_speech(speech, RATE)
    assert 2.0 < measures.speech <= 4.0
    assert measures.snr_db > 10


def test_silence_around_speech_does_not_count():
    speech = make_speech(5, 0, 3.0)
    alone = measure_speech(speech, RATE)
    quiet = (1e-4 * random().standard_normal(2 * RATE)).astype(np.float32)
    padded = measure_speech(np.concatenate([quiet, speech, quiet]), RATE)
    assert padded.duration == 7.0
    assert padded.speech == pytest.approx(alone.speech, abs=0.5)


def test_a_piece_of_a_word_is_not_enough():
    speech = make_speech(5, 0, 3.0)
    for begin in range(0, 2 * RATE, RATE // 2):
        assert measure_speech(speech[begin : begin + int(0.3 * RATE)], RATE).speech <= 0.3


def test_the_level_changes_the_level_only():
    speech = make_speech(6, 0, 3.0)
    loud, quiet = measure_speech(speech, RATE), measure_speech(speech / 8, RATE)
    assert quiet.speech == pytest.approx(loud.speech, abs=0.05)
    assert quiet.snr_db == pytest.approx(loud.snr_db, abs=0.5)
    assert loud.level_db - quiet.level_db == pytest.approx(20 * np.log10(8), abs=0.01)
    assert measure_speech(np.zeros(RATE, np.float32), RATE).level_db == LOWEST_LEVEL_DB
    assert measure_speech(np.tile(np.float32([1, -1]), RATE), RATE).level_db == pytest.approx(0, abs=1e-6)


def test_noise_lowers_the_ratio_by_as_much():
    """The measured ratio follows the ratio that was made, over 15 dB."""
    speech = make_speech(8, 0, 6.0)
    noise = random().standard_normal(len(speech)).astype(np.float32)
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2))
    found = [measure_speech(speech + noise * 10 ** (-snr / 20), RATE) for snr in (20, 12, 5)]
    ratios = [measures.snr_db for measures in found]
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[0] - ratios[2] == pytest.approx(15, abs=4)
    assert all(LOWEST_SNR_DB <= ratio <= HIGHEST_SNR_DB for ratio in ratios)


@pytest.mark.parametrize("limit", [0.2, 0.5])
def test_clipping_is_the_share_at_the_extremes(limit):
    wave = (0.9 * np.sin(2 * np.pi * 200 * TIME)).astype(np.float32)
    clipped = np.clip(wave, -limit, limit)
    assert measure_speech(wave, RATE).clipped == 0
    assert measure_speech(clipped, RATE).clipped == pytest.approx(np.mean(np.abs(wave) >= limit), abs=0.01)


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_other_sampling_rates(rate):
    assert measure_speech(make_speech(8, 0, 4.0, rate), rate).speech > 2.0


def test_a_long_recording_is_the_sum_of_its_parts():
    speech = make_speech(9, 0, 22.0)
    whole = measure_speech(speech, RATE)
    halves = [measure_speech(part, RATE) for part in np.array_split(speech, 2)]
    assert whole.speech == pytest.approx(sum(half.speech for half in halves), abs=0.3)


@pytest.mark.parametrize("length", [0, 1, 100, 799, 1600])
def test_any_length(length):
    measures = measure_speech(make_speech(9, 0, 1.0)[:length], RATE)
    assert (measures.duration, measures.speech) == (length / RATE, 0.0)


def test_what_is_refused():
    good = make_speech(9, 0, 1.0)
    with pytest.raises(ValueError, match=r"one channel of floating-point samples .* got float32 of shape \(2, 8000\)"):
        measure_speech(good.reshape(2, -1), RATE)
    with pytest.raises(ValueError, match="got int16"):
        measure_speech((good * 32767).astype(np.int16), RATE)
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure_speech(np.append(good, np.nan), RATE)
    with pytest.raises(ValueError, match="at least 8000 Hz to measure speech, got 4000"):
        measure_speech(good, 4000)


@pytest.mark.slow
def test_real_speech_is_nearly_all_speech(shared):
    """The recordings were trimmed to speech by somebody else's detector."""
    folder = shared / "speech" / "audio"
    if not folder.is_dir():
        pytest.skip("no real speech beside the checkout")
    files = sorted(folder.rglob("*.flac"))[::150]
    assert len(files) > 20
    measures = [measure_speech(read_utterance(file, RATE).waveform, RATE) for file in files]
    shares = np.array([measure.speech / measure.duration for measure in measures])
    assert np.median(shares) > 0.8
    assert np.mean([measure.speech > 0.6 for measure in measures]) > 0.95
