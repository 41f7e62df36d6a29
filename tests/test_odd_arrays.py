"""Arrays and recordings that hold less than they seem to: masked, of a tiny range, or clipped throughout."""

import io
import logging
import math
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from speakers import RATE
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkModel, SpeakerIndex, SpeakerProfile, SpeakerVerificationPipeline
from hf_hamspk.audio_hamspk import CLIPPED_SHARE, InputError, read_sound, resample
from hf_hamspk.calibration_hamspk import Cohort
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.evaluation.metrics import equal_error_rate

SPEECH = make_speech(1, 1, 3.0)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return settle(HamSpkModel(tiny_config()))


def masked(array: np.ndarray) -> Any:
    """The array with two masked entries."""
    return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) < 2)


MASKED = {
    "array": masked(SPEECH),
    "integers": masked(np.round(SPEECH * 32767).astype(np.int16)),
    "two channels": masked(np.stack([SPEECH, SPEECH])),
    "dictionary": {"array": masked(SPEECH), "sampling_rate": RATE},
}


@pytest.mark.parametrize("kind", MASKED)
def test_masked_recordings_are_refused_at_every_door(kind, model):
    verify = SpeakerVerificationPipeline(model=model)
    doors = (
        lambda one: read_sound(one, RATE),
        lambda one: model.embed([one]),
        lambda one: model.verify(SPEECH, one, sampling_rate=RATE),
        lambda one: model.enrol([one, SPEECH], sampling_rate=RATE),
        lambda one: model.compare([SPEECH, one], sampling_rate=RATE),
        lambda one: verify((SPEECH, one), sampling_rate=RATE),
        lambda one: verify(one, return_embeddings=True),
    )
    for ask in doors:
        with pytest.raises(
            InputError, match=r"contains MaskedArray; expected an array of samples, none of them masked"
        ):
            ask(MASKED[kind])


def test_masked_embeddings_are_refused_at_every_door(model):
    embedding, plain = masked(np.ones(24, np.float32)), np.ones(24, np.float32)
    fields = {"seconds": (9.0,), "snr_db": 30.0, "magnitude": 1.0, "combine": "mean", "fingerprint": "a"}
    doors = (
        lambda one: model.score(plain, one),
        lambda one: model.score_matrix(one[None], plain[None]),
        lambda one: model.magnitude(one),
        lambda one: Cohort(masked(np.ones((3, 24))), "a"),
        lambda one: SpeakerProfile("anna", one, **fields),
        lambda one: SpeakerIndex(model, masked(np.ones((3, 24)))),
    )
    for ask in doors:
        with pytest.raises(ValueError, match="Expected a tensor or an array of numbers, got MaskedArray"):
            ask(embedding)


def test_masked_scores_and_labels_are_refused():
    scores, labels = np.linspace(0, 1, 6), np.array([0, 0, 1, 0, 1, 1])
    assert equal_error_rate(np.ma.masked_array(scores), labels) == equal_error_rate(scores, labels)
    for given in ((masked(scores), labels), (scores, masked(labels))):
        with pytest.raises(ValueError, match="must not contain masked entries"):
            equal_error_rate(*given)


def test_a_masked_array_without_masked_entries_is_an_array(model):
    whole = np.ma.masked_array(SPEECH, False)
    np.testing.assert_array_equal(read_sound(whole, RATE).waveform, SPEECH)
    assert torch.equal(model.embed([whole], RATE), model.embed([SPEECH], RATE))
    assert float(model.score(np.ma.masked_array(np.ones(24)), np.ones(24))) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("largest", [30, 300, 3000, 30_000, 300_000])
def test_integers_of_a_tiny_range_are_too_quiet_or_silent(dtype, largest):
    """Samples of 16 bits in an array of 32 bits have a level of -116 dBFS, where there is no speech for a detector."""
    if largest > np.iinfo(dtype).max:
        pytest.skip("beyond the type")
    full = np.iinfo(dtype).max + 1
    wave = np.round(SPEECH / np.abs(SPEECH).max() * largest).astype(dtype)
    found = read_sound(wave, RATE, "The test", source_rate=RATE).warnings
    level = 10 * math.log10(max(np.var(part / full) for part in np.array_split(wave, 3)))
    expected = [] if level > -45 or level < -140 else [f"too quiet: its loudest second is at {level:.0f} dBFS"]
    assert len(found) == len(expected) and all(words in said for words, said in zip(expected, found, strict=True))
    if not expected and level < -45:
        with pytest.raises(InputError, match="holds no sound"):
            read_sound(wave, RATE, source_rate=RATE, strict=True)


@pytest.mark.parametrize("value", [np.float32(0), np.float32(0.7), np.int32(5), np.int16(-3)])
def test_silence_is_neither_quiet_nor_clipped(value):
    wave = np.full(RATE, value)
    assert read_sound(wave, RATE, source_rate=RATE).warnings == []


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
@pytest.mark.parametrize("gain", [10, 100, 1e4, 1e7])
@pytest.mark.parametrize("peak", [1.0, 0.3])
def test_clipping_is_found_before_the_recording_is_resampled(rate, gain, peak):
    clipped = np.float32(peak * np.clip(gain * resample(SPEECH, RATE, rate), -1, 1))
    share = float(np.mean(np.abs(clipped) == np.float32(peak)))
    (found,) = read_sound(clipped, None, "The test", source_rate=rate).warnings
    assert found.startswith("The test is clipped in ")
    # Single clipped samples do not count.
    assert 0.1 <= float(found.split(" in ")[1].split("%")[0]) <= 100 * share + 0.06


@pytest.mark.parametrize("gain", [100, 1e4])
def test_strong_clipping_is_found_after_compression(gain):
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.clip(gain * SPEECH, -1, 1), RATE, format="OGG")
    found = read_sound(buffer.getvalue(), RATE, "The test").warnings
    assert found == ["The test is clipped or distorted: its level is near its peak. Record at a lower level."]


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_speech_that_is_not_clipped_gets_no_such_warning(rate):
    for speaker in range(5):
        wave = resample(make_speech(speaker, 0, 2.0), RATE, rate)
        for scaled in (wave, np.round(wave * 32767).astype(np.int16)):
            found = read_sound(scaled, RATE, source_rate=rate).warnings
            assert not any("clipped" in said for said in found)


def test_where_clipping_begins():
    wave = 0.5 * SPEECH / np.abs(SPEECH).max()
    count = math.ceil(CLIPPED_SHARE * len(wave))
    for run, is_said in ((count - 1, False), (count, True)):
        clipped = wave.copy()
        clipped[100 : 100 + run] = 0.9
        assert bool(read_sound(clipped, RATE, source_rate=RATE).warnings) == is_said


def test_embedding_logs_that_a_recording_is_clipped(model, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        model.embed([np.clip(100 * SPEECH, -1, 1)], RATE)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "Recording 1 is clipped in " in caplog.text
