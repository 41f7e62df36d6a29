"""Another detector of speech: `vad=` and `model.vad`, and calibrations that were measured with another one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from speakers import RATE
from tiny_models import save_calibrated_model

from hf_hamspk import Calibration, HamSpkModel
from hf_hamspk.audio_hamspk import CUSTOM, VOICED, VOICED_OR_WHISPERED, measure_speech
from hf_hamspk.calibration_hamspk import dict_checksum
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.evaluation.verification import embed_files
from hf_hamspk.verification_hamspk import NOT_ENOUGH_SPEECH

OTHER = "measured with another detector of speech"


def whisper(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    """Noise whose spectrum changes with each syllable of 300 ms, between pauses, like whispering."""
    rng, length = np.random.default_rng(seed), int(0.3 * RATE)
    at, parts = np.fft.rfftfreq(length, 1 / RATE), []
    while sum(map(len, parts)) < seconds * RATE:
        noise = np.fft.rfft(rng.standard_normal(length))
        shape = np.exp(-(((at - rng.uniform(600, 3200)) / 900) ** 2))
        parts += [0.1 * np.hanning(length) * np.fft.irfft(noise * shape), np.zeros(int(0.1 * RATE))]
    wave = np.concatenate(parts)[: int(seconds * RATE)]
    return np.float32(wave + 1e-4 * rng.standard_normal(len(wave)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_calibrated_model(tmp_path_factory.mktemp("detectors") / "final")


@pytest.fixture
def model(folder) -> HamSpkModel:
    return HamSpkModel.from_pretrained(folder)


def test_whispering_is_found():
    whispered = measure_speech(whisper(), RATE)
    assert whispered.speech > 1.5 and whispered.is_whispered
    assert measure_speech(whisper(), RATE, VOICED).speech == 0
    voiced = make_speech(1, 0, 3.0)
    assert measure_speech(voiced, RATE) == measure_speech(voiced, RATE, VOICED)
    assert not measure_speech(voiced, RATE).is_whispered


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 19.9, 45.0])
def test_a_function_says_where_the_speech_is(seconds):
    """In seconds or as frames that divide the recording; the same in each block of a long one."""
    wave, calls = make_speech(1, 0, seconds), []

    def intervals(waveform: np.ndarray, rate: int) -> list[tuple[float, float]]:
        calls.append((len(waveform), rate))
        return [(0.0, seconds / 4), (seconds / 2, 0.75 * seconds)]

    def frames(waveform: np.ndarray, rate: int) -> np.ndarray:
        return np.array([True, False, True, False])

    for vad in (intervals, frames):
        assert measure_speech(wave, RATE, vad).speech == pytest.approx(seconds / 2, abs=0.1)
    assert calls == [(len(wave), RATE)]
    for nothing in ([], np.zeros((0, 2)), np.zeros(7, bool)):
        assert measure_speech(wave, RATE, lambda wave, rate, found=nothing: found).speech == 0
    assert measure_speech(wave, RATE, lambda wave, rate: [[0, 999]]).speech == pytest.approx(seconds)


@pytest.mark.parametrize("found", [3, [1.0, 2.0], [[1, 2, 3]], ["a"], np.ones((2, 2), bool), None])
def test_other_results_are_refused(found):
    with pytest.raises(ValueError, match=r"must return boolean frames \(T,\), or intervals \(N, 2\)"):
        measure_speech(make_speech(1, 0, 1.0), RATE, lambda wave, rate: found)


def test_unknown_detectors_are_refused(model):
    with pytest.raises(ValueError, match=r"vad must be a function, 'voiced', .* or None, got 'silero'"):
        measure_speech(make_speech(1, 0, 1.0), RATE, "silero")
    values: Any = model.calibration.to_dict() | {"detector": "silero"}
    with pytest.raises(ValueError, match="detector must be one of voiced, voiced or whispered, custom, got 'silero'"):
        Calibration.from_dict(values | {"checksum": dict_checksum(values)})


def test_a_calibration_keeps_its_detector(model, tmp_path):
    """Files of version 0.1.0 name no detector, and their decisions stay as they were."""
    assert model.calibration.detector == VOICED
    assert "detector" not in model.calibration.to_dict()
    refused = model.verify(whisper(), whisper(seed=1), sampling_rate=RATE)
    assert refused.decision == NOT_ENOUGH_SPEECH
    model.calibration = Calibration.from_dict(renewed(model.calibration, VOICED_OR_WHISPERED))
    model.calibration.save(tmp_path / "verification.json")
    assert Calibration.load(tmp_path / "verification.json") == model.calibration
    assert json.loads((tmp_path / "verification.json").read_text())["detector"] == VOICED_OR_WHISPERED
    decided = model.verify(whisper(), whisper(seed=1), sampling_rate=RATE)
    assert decided.decision not in (None, NOT_ENOUGH_SPEECH)
    assert "The test has no voiced speech. It is whispered, or noise, so errors are more frequent." in decided.warnings
    model.calibration = model.cohort = None
    assert model.verify(whisper(), whisper(seed=1), sampling_rate=RATE).score is not None


def renewed(calibration: Calibration, detector: str) -> dict[str, Any]:
    values = calibration.to_dict() | {"detector": detector}
    return values | {"checksum": dict_checksum(values)}


@pytest.mark.slow
def test_another_detector_than_that_of_the_calibration_gives_a_warning(model, tmp_path):
    first, second = make_speech(1, 0, 4.0), make_speech(1, 1, 4.0)
    soundfile.write(tmp_path / "a.wav", first, RATE)

    def answers(model: HamSpkModel) -> list[Any]:
        profile = model.enrol([first], name="ann", sampling_rate=RATE)
        verified = model.verify(first, second, sampling_rate=RATE)
        return [verified, model.identify(second, [profile], sampling_rate=RATE)]

    assert not any(OTHER in " ".join(answer.warnings) for answer in answers(model))
    assert embed_files(model, [str(tmp_path / "a.wav")], measure=True, progress=False).detector == VOICED_OR_WHISPERED
    model.vad = lambda wave, rate: [(0.0, 2.5)]
    for answer in answers(model):
        assert answer.test_speech == pytest.approx(2.5, abs=0.05)
        assert OTHER in " ".join(answer.warnings)
    assert embed_files(model, [str(tmp_path / "a.wav")], measure=True, progress=False).detector == CUSTOM
    model.calibration = Calibration.from_dict(renewed(model.calibration, CUSTOM))
    assert not any(OTHER in " ".join(answer.warnings) for answer in answers(model))
    model.vad = None
    assert all(OTHER in " ".join(answer.warnings) for answer in answers(model))


@pytest.mark.parametrize("name", ["014040081", "014040090", "014040122"])
def test_the_whispered_recordings_of_a_child_contain_speech(name, shared):
    path = shared / "speech" / "audio" / "speechocean762" / "so1404" / f"{name}.flac"
    if not path.is_file():
        pytest.skip("no real speech beside the checkout")
    wave, rate = soundfile.read(path, dtype="float32")
    measures = measure_speech(wave, rate)
    assert measures.speech > 1.5 and measures.is_whispered
    assert measure_speech(wave, rate, VOICED).speech == 0


@pytest.mark.parametrize("seed", range(6))
def test_bursts_of_noise_are_no_whispering(seed):
    """Of any colour and rhythm, because their spectrum does not change."""
    rng = np.random.default_rng(seed)
    count = 5 * RATE
    noise = np.fft.rfft(rng.standard_normal(count))
    at = np.fft.rfftfreq(count, 1 / RATE)
    coloured = np.fft.irfft(noise * np.maximum(at, 50) ** -rng.uniform(0, 1))
    rhythm = np.repeat(rng.random(count // (RATE // 5)) > 0.5, RATE // 5)
    wave = np.float32(0.1 * coloured / coloured.std() * rhythm + 1e-4 * rng.standard_normal(count))
    assert measure_speech(wave, RATE).speech < 0.3
