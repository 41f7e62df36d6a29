"""Silero VAD as the detector of speech, and how far the detector of the package agrees with it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_calibrated_model

from hf_hamspk import HamSpkModel
from hf_hamspk.audio_hamspk import measure_speech
from hf_hamspk.data.synthetic import make_speech

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import measure_speech_detection

RATE = 16000

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def silero():
    pytest.importorskip("silero_vad", reason="silero-vad is not installed: pip install 'hf_hamspk[vad]'")
    return measure_speech_detection.silero_detector()


def test_it_can_replace_the_detector(silero, tmp_path):
    model = HamSpkModel.from_pretrained(save_calibrated_model(tmp_path / "final"))
    wave = make_speech(1, 0, 4.0)
    model.vad = silero
    answer = model.verify(wave, wave, sampling_rate=RATE)
    assert answer.test_speech == measure_speech(wave, RATE, silero).speech
    assert "another detector of speech" in " ".join(answer.warnings)


def test_the_detectors_agree_on_real_speech(silero, shared):
    table = shared / "speech" / "dev.csv"
    if not table.is_file():
        pytest.skip("no real speech beside the checkout")
    ours, _, theirs = np.array(measure_speech_detection.measure([table], every=10)["all"]).T
    assert len(ours) == 64
    assert np.corrcoef(ours, theirs)[0, 1] > 0.8
    assert 0.9 < np.median(ours / np.maximum(theirs, 0.1)) < 1.4
