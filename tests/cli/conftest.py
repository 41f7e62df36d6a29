"""A tiny model in a folder, recordings good and bad, and a way to run a command."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from tiny_models import RATE, noises, save_calibrated_model, save_model

from hf_hamspk.__main__ import main
from hf_hamspk.data.synthetic import make_speech


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A model without a calibration. Each file of tests has its own, because `evaluate` writes into it."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def calibrated_folder(tmp_path_factory) -> Path:
    """The same model with a calibration; its log-likelihood ratio is 100 x score - 90."""
    return save_calibrated_model(tmp_path_factory.mktemp("calibrated"))


@pytest.fixture(scope="session")
def audio(tmp_path_factory) -> Path:
    """A folder of recordings, most of them bad."""
    root = tmp_path_factory.mktemp("audio")
    for name, wave in zip(("a", "b", "c", "d"), noises(2.5, 3.0, 2.2, 2.1), strict=True):
        sf.write(root / f"{name}.wav", wave.numpy(), RATE)
    sound = noises(1.0, seed=5)[0].numpy()
    sf.write(root / "one_second.flac", sound, RATE)
    sf.write(root / "telephone.wav", noises(2.5, seed=6)[0].numpy(), 8000)
    sf.write(root / "stereo.wav", np.stack([sound, 0.5 * sound], axis=1), RATE)
    sf.write(root / "short.wav", sound[:800], RATE)
    sf.write(root / "silence.wav", np.zeros(RATE), RATE)
    broken = sound.copy()
    broken[100:103] = np.nan
    sf.write(root / "nan.wav", broken, RATE, subtype="FLOAT")
    (root / "text.wav").write_text("this is no audio")
    return root


@pytest.fixture(scope="session")
def voices(tmp_path_factory) -> Path:
    """Synthetic speech: a, b and short (0.3 s) of one speaker, c of another; silence and noise."""
    root = tmp_path_factory.mktemp("voices")
    for name, speaker, utterance, seconds in (("a", 1, 1, 4.0), ("b", 1, 2, 4.0), ("c", 2, 1, 3.5)):
        sf.write(root / f"{name}.wav", make_speech(speaker, utterance, seconds), RATE)
    sf.write(root / "short.wav", make_speech(1, 1, 4.0)[RATE : RATE + 4800], RATE)
    sf.write(root / "silence.wav", np.zeros(2 * RATE), RATE)
    sf.write(root / "noise.wav", noises(3.0)[0].numpy(), RATE)
    return root


@pytest.fixture
def hamspk(capsys):
    """Runs a command; `(exit code, stdout, stderr)`."""

    def run(*words) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refusal(hamspk):
    """The one line with which a command refuses; checks the exit code and that there is no traceback."""

    def run(*words) -> str:
        code, _, err = hamspk(*words)
        assert code == 2
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.startswith("hamspk: error: ")]
        assert len(lines) == 1
        return lines[0].removeprefix("hamspk: error: ")

    return run
