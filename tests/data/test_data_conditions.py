"""Recording conditions: each does what its name says, always the same way."""

import numpy as np
import pytest
from tiny_models import RATE

from hf_hamspk.data.conditions import SWEEPS, sweep_conditions
from hf_hamspk.data.synthetic import make_speech


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return make_speech(1, 0, 2.0, RATE)


def power(waveform: np.ndarray) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64)))


@pytest.mark.parametrize("kind", SWEEPS)
def test_the_same_file_sounds_the_same(speech, kind):
    clean, *steps = sweep_conditions(kind)
    assert clean.apply(speech, RATE, "a") is speech
    assert len(steps) > 3
    for step in steps:
        before = speech.copy()
        changed = step.apply(speech, RATE, "folder/a.wav")
        np.testing.assert_array_equal(speech, before)
        np.testing.assert_array_equal(changed, step.apply(speech, RATE, "folder/a.wav"))
        assert changed.dtype == np.float32
        assert len(changed) == (min(len(speech), round(step.value * RATE)) if kind == "duration" else len(speech))
        assert np.isfinite(changed).all()
        if kind != "duration" or step.value < 2:
            assert not np.array_equal(changed, speech)


def test_noise_is_as_loud_as_said_and_another_for_each_file(speech):
    (_, step) = sweep_conditions("snr", [5.0])
    noise = step.apply(speech, RATE, "a") - speech
    assert 10 * np.log10(power(speech) / power(noise)) == pytest.approx(5.0, abs=0.01)
    other = step.apply(speech, RATE, "b") - speech
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.3


def test_steps_of_a_sweep_differ_in_strength_alone(speech):
    loud, soft = (step.apply(speech, RATE, "a") - speech for step in sweep_conditions("snr", [0.0, 20.0])[1:])
    assert np.corrcoef(loud, soft)[0, 1] == pytest.approx(1.0, abs=1e-3)


def test_low_pass_and_telephone_take_the_high_frequencies(speech):
    def above(waveform, hertz):
        spectrum = np.abs(np.fft.rfft(waveform)) ** 2
        return spectrum[np.fft.rfftfreq(len(waveform), 1 / RATE) > hertz].sum()

    low = sweep_conditions("bandwidth", [1500.0])[1].apply(speech, RATE, "a")
    assert above(low, 4000) < 1e-3 * above(speech, 4000)
    telephone = next(step for step in sweep_conditions("codec") if "mu-law" in step.label)
    assert above(telephone.apply(speech, RATE, "a"), 4500) < 1e-2 * above(speech, 4500)


def test_codecs_keep_the_voice(speech):
    """Decoded and original agree in the band of speech, at the same time."""
    for step in sweep_conditions("codec")[1:]:
        decoded = step.apply(speech, RATE, "a")
        assert np.corrcoef(decoded, speech)[0, 1] > 0.7, step.label


def test_bad_values_are_refused():
    for kind, values, message in (
        ("loudness", None, "condition to sweep over must be one of"),
        ("duration", [0.0], "must be finite and above 0, got 0 s"),
        ("snr", [float("nan")], "must be finite, got nan dB"),
        ("codec", [1.0], "no strength"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep_conditions(kind, values)
    assert sweep_conditions("snr", [-5.0])[1].value == -5.0
