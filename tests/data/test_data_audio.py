"""What decodes, to what, and what is refused in which words."""

import importlib
import io
import re
import sys

import numpy as np
import pytest
import soundfile as sf

from hf_hamspk.audio_hamspk import InputError, resample, wav_frames
from hf_hamspk.data.audio import import_torchaudio, read_utterance
from hf_hamspk.data.augmentation import telephone


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_every_kind_of_source_gives_the_same_waveform(tmp_path):
    path = tmp_path / "a.flac"
    sf.write(path, tone(0.5), 16_000)
    content = path.read_bytes()
    expected, _ = sf.read(path, dtype="float32")
    sources = [
        path,
        str(path),
        content,
        io.BytesIO(content),
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": content, "path": "elsewhere.flac"},
    ]
    for source in sources:
        waveform = read_utterance(source).waveform
        assert waveform.dtype == np.float32
        np.testing.assert_array_equal(waveform, expected)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    sf.write(path, tone(1.0), 16_000)
    waveform = read_utterance(path).waveform
    assert abs(len(waveform) - 16_000) < 2_000


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.3), tone(0.3, hertz=1000.0)
    sf.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_utterance(tmp_path / "a.wav").waveform, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_to_the_same_tone(tmp_path, rate):
    sf.write(tmp_path / "a.wav", tone(0.5, rate), rate, subtype="FLOAT")
    waveform = read_utterance(tmp_path / "a.wav").waveform
    assert len(waveform) == 8_000
    np.testing.assert_allclose(waveform[500:-500], tone(0.5)[500:-500], atol=5e-3)


def test_resample_length_identity_and_read_only_input():
    waveform = tone(0.1, 44_100)
    waveform.setflags(write=False)
    assert resample(waveform, 44_100, 44_100) is waveform
    assert len(resample(waveform, 44_100, 16_000)) == int(np.ceil(len(waveform) * 16_000 / 44_100))
    assert len(resample(tone(0.2)[::2], 8_000, 16_000)) == 3_200


def damaged(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "nan":
        samples = tone(0.5)
        samples[10:13] = np.nan
        samples[20] = np.inf
        sf.write(path, samples, 16_000, subtype="FLOAT")
    elif kind == "text":
        path.write_text("this is no audio")
    elif kind == "folder":
        path.mkdir()
    elif kind == "headerless":
        path = folder / "headerless.raw"
        path.write_bytes(b"\x00\x01" * 16_000)
    elif kind == "cut":
        path = folder / "cut.flac"
        sf.write(folder / "whole.flac", np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
        path.write_bytes((folder / "whole.flac").read_bytes()[:30_000])
    elif kind == "cut_mp3":
        path = folder / "cut.mp3"
        sf.write(folder / "whole.mp3", np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
        content = (folder / "whole.mp3").read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "cut_wav":
        path = folder / "cut.wav"
        sf.write(path, np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000)
        path.write_bytes(path.read_bytes()[:40_000])
    elif kind != "missing":
        samples = {
            "empty": tone(0.0),
            "short": tone(0.05),
            "silent": np.zeros(8_000, dtype=np.float32),
            "constant": np.full(8_000, 0.25, dtype=np.float32),
            "opposite": np.stack([tone(0.5), -tone(0.5)], axis=1),
        }[kind]
        sf.write(path, samples, 16_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file; check the path"),
        ("folder", "is a folder; give one audio file"),
        ("text", "expected an undamaged WAV, FLAC, OGG, Opus or MP3 file. Convert it"),
        ("headerless", "expected an undamaged WAV, FLAC, OGG, Opus or MP3 file. Convert it"),
        ("cut", "cannot be decoded"),
        ("cut_mp3", "is cut short: its header declares 2.0 s"),
        ("cut_wav", "is cut short: its header declares 2.0 s, but only 1.2 s were decoded"),
        ("empty", "is empty (0 samples)"),
        ("short", "lasts 0.05 s; expected at least 0.1 s"),
        ("nan", "contains NaN or infinite samples (4 of 8000)"),
        ("silent", "holds no sound (every sample is 0)"),
        ("constant", "holds no sound (every sample is 0.25)"),
        ("opposite", "holds no sound after averaging its 2 channels"),
    ],
)
def test_refused_with_the_name_and_the_reason(tmp_path, kind, message):
    path = damaged(tmp_path, kind)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_utterance(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.name == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"bytes": None, "path": None}, 'expected "array" (or "raw") and "sampling_rate"'),
        (b"no audio", "the recording: cannot be decoded"),
        (12, "is of type int; expected a path, a URL, bytes, a file opened in binary mode, an array, or a dictionary"),
        (io.StringIO("text"), "is of type StringIO"),
    ],
)
def test_sources_that_are_none(source, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read_utterance(source)


def test_shortest_file_and_faintest_signal_pass(tmp_path):
    for rate in (8_000, 11_025, 16_000, 22_050):
        sf.write(tmp_path / "short.wav", tone(0.1, rate), rate)
        assert len(read_utterance(tmp_path / "short.wav").waveform) == 1_600
    faint = np.zeros(8_000, dtype=np.int16)
    faint[::100] = 1
    sf.write(tmp_path / "faint.wav", faint, 16_000)
    assert read_utterance(tmp_path / "faint.wav").duration == 0.5


class BrokenImport:
    """Makes `import torchaudio` fail as it does with a torch that it does not fit."""

    def __init__(self, error: Exception):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchaudio":
            raise self.error
        return None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("libcudart.so.13: cannot open"), "`python -m hf_hamspk.cli.doctor --fix-torchaudio`"),
        (RuntimeError("compiled with different CUDA versions"), "(`pip install 'torch>=2.11,<2.15'`)"),
        (ModuleNotFoundError("No module named 'torchaudio'"), "torchaudio is not installed"),
    ],
)
def test_a_torchaudio_that_does_not_fit_is_explained(monkeypatch, error, message):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [BrokenImport(error), *sys.meta_path])
    with pytest.raises(ImportError, match=re.escape(message)) as caught:
        import_torchaudio()
    assert str(error) in str(caught.value)
    with pytest.raises(ImportError):
        telephone(tone(0.1), "mu", 16_000)
    assert len(resample(tone(0.1), 8_000, 16_000)) == 3_200


def test_importing_the_module_does_not_import_torchaudio(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [BrokenImport(OSError("broken")), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "hf_hamspk.data.audio")
    importlib.import_module("hf_hamspk.data.audio")


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_file_whose_writer_did_not_know_its_length_is_read(tmp_path, size):
    path = tmp_path / "pipe.wav"
    sf.write(path, tone(0.5), 16_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = size.to_bytes(4, "little")
    assert wav_frames(io.BytesIO(content)) == 0
    assert wav_frames(io.BytesIO(path.read_bytes())) == len(tone(0.5))
    path.write_bytes(content)
    if size:
        assert len(read_utterance(path).waveform) == len(tone(0.5))


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0", b"fLaC" * 9]
)
def test_what_is_no_whole_wav_header_promises_nothing(content):
    file = io.BytesIO(content)
    assert wav_frames(file) == 0 and file.tell() == 0
