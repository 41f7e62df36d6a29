"""The pipeline: what it takes, what it answers, and what it refuses."""

import contextlib
import io
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from strange_recordings import Decoder, damaged_files, file_bytes, odd_bytes, odd_values
from tiny_models import RATE, settle, tiny_config
from transformers import pipeline

import hf_hamspk
from hf_hamspk import HamSpkForXVector, HamSpkModel, SpeakerVerificationPipeline
from hf_hamspk.audio_hamspk import Limits, read_sound
from hf_hamspk.calibration_hamspk import Calibration
from hf_hamspk.data.synthetic import make_speech

PACKAGE = Path(hf_hamspk.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A calibrated model."""
    torch.manual_seed(0)
    model = settle(HamSpkForXVector(tiny_config()))
    model.calibration = Calibration(model.fingerprint(), "cosine", -2.0, {"score": 8.0}, trials=99, targets=9)
    path = tmp_path_factory.mktemp("pipeline") / "final"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def verify(folder) -> SpeakerVerificationPipeline:
    return pipeline("speaker-verification", model=str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def voices() -> list[np.ndarray]:
    return [make_speech(speaker, utterance, 3.2, RATE) for speaker, utterance in ((0, 0), (0, 1), (1, 0))]


def test_it_answers_as_the_verifier(verify, folder, voices):
    expected = HamSpkModel.from_pretrained(folder).verifier().verify(voices[:1], voices[1], RATE)
    assert verify((voices[0], voices[1]), sampling_rate=RATE) == expected.to_dict()
    assert expected.log_likelihood_ratio is not None and expected.operating_point == "balanced"
    several = HamSpkModel.from_pretrained(folder).verifier().verify(voices[:2], voices[2], RATE, "strict")
    pair = {"enrolment": voices[:2], "test": voices[2]}
    assert verify(pair, operating_point="strict", sampling_rate=RATE) == several.to_dict()


def test_little_speech_is_said(verify, voices):
    answer = verify((voices[0], voices[1][: int(2.4 * RATE)]))
    assert any("The test has 2." in warning and "s of speech" in warning for warning in answer["warnings"])
    assert verify((voices[0], voices[1][:4800]))["decision"] == "not enough speech"


@pytest.fixture
def server(voices):
    """Serves one recording."""

    class Serve(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/a.wav"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(file_bytes(voices[0], RATE, "WAV", "FLOAT") if found else b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Serve) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.slow
def test_every_way_to_hand_a_recording_over(verify, voices, tmp_path, server):
    soundfile.write(tmp_path / "a.wav", voices[0], RATE, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    ways = {
        "array": voices[0],
        "tensor": torch.from_numpy(voices[0]),
        "channels": np.stack([voices[0], voices[0]]),
        "path": str(tmp_path / "a.wav"),
        "Path": tmp_path / "a.wav",
        "URL": f"{server}/a.wav",
        "bytes": content,
        "file": io.BytesIO(content),
        "dict": {"array": voices[0], "sampling_rate": RATE},
        "raw": {"raw": voices[0].tolist(), "sampling_rate": RATE},
        "datasets, decoded": {"path": "b.wav", "array": voices[0].astype(np.float64), "sampling_rate": RATE},
        "datasets, bytes": {"bytes": content, "path": "b.wav"},
        "datasets, path": {"bytes": None, "path": str(tmp_path / "a.wav")},
        "torchcodec": Decoder(torch.from_numpy(voices[0])[None], RATE),
    }
    expected = verify((voices[0], voices[2]), sampling_rate=RATE)
    answers = verify([(way, voices[2]) for way in ways.values()], sampling_rate=RATE)
    for (name, _), answer in zip(ways.items(), answers, strict=True):
        assert answer == expected, name
    with pytest.raises(ValueError, match="the server answered 404"):
        verify((f"{server}/b.wav", voices[0]))


@pytest.mark.slow
def test_datasets_and_streams(verify, voices):
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": file_bytes(voice, RATE, "WAV", "FLOAT"), "path": None} for voice in voices]
    table = datasets.Dataset.from_dict({"enrolment": rows, "test": rows[::-1]})
    for side in ("enrolment", "test"):
        table = table.cast_column(side, datasets.Audio(decode=False))
    expected = [verify((a, b), sampling_rate=RATE) for a, b in zip(voices, voices[::-1], strict=True)]
    for batch_size in (1, 2):
        for found, one in zip(verify(table, batch_size=batch_size), expected, strict=True):
            assert found["score"] == pytest.approx(one["score"], abs=1e-5)
            assert found["decision"] == one["decision"] and found["warnings"] == one["warnings"]
    embeddings = list(verify(table["test"], return_embeddings=True, batch_size=3))
    direct = HamSpkModel.embed(verify.model, voices[::-1], RATE).numpy()
    for one, row in zip(embeddings, direct, strict=True):
        np.testing.assert_allclose(one["embedding"], row, rtol=1e-4, atol=1e-6)


def test_a_generator_is_read_as_it_is_asked_for(verify, voices):
    read = []

    def pairs():
        for number in range(6):
            read.append(number)
            yield voices[0], voices[1]

    answers = verify(pairs(), batch_size=2)
    next(answers)
    assert len(read) <= 4
    assert len(list(answers)) == 5


def test_a_list_is_batched_and_keeps_its_order(verify, voices):
    pairs = [(voices[i % 3], voices[(i + 1) % 3]) for i in range(5)]
    one_by_one = [verify(pair) for pair in pairs]
    for batch_size in (1, 2, 5):
        for found, expected in zip(verify(pairs, batch_size=batch_size), one_by_one, strict=True):
            assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert verify([]) == []


def test_other_rates_are_resampled(verify, voices):
    telephone = file_bytes(make_speech(0, 0, 3.2, 8000), 8000)
    answer = verify((telephone, voices[1]))
    assert "sampled at 8000 Hz" in answer["warnings"][0] and answer["score"] is not None
    studio = np.repeat(voices[0], 3)
    twice = verify([({"array": studio, "sampling_rate": 48000}, voices[1]), (voices[0], voices[1])])
    assert twice[0]["score"] == pytest.approx(twice[1]["score"], abs=0.1)
    assert verify((studio, np.repeat(voices[1], 3)), sampling_rate=48000)["score"] == pytest.approx(
        verify((voices[0], voices[1]))["score"], abs=0.1
    )


def test_an_array_without_a_rate_is_taken_at_the_models_and_said(voices):
    for source in (voices[0], {"array": voices[0]}):
        (warning,) = read_sound(source, RATE, "It", Limits()).warnings
        assert "has no sampling rate, so 16000 Hz was assumed" in warning
        assert read_sound(source, RATE, "It", Limits(), RATE).warnings == []
    assert read_sound({"array": voices[0], "sampling_rate": RATE}, RATE, "It", Limits()).warnings == []


def test_channels_that_differ_are_said(voices):
    def warnings(*channels) -> list[str]:
        samples = np.stack([channel[: 2 * RATE] for channel in channels])
        return read_sound({"array": samples, "sampling_rate": RATE}, RATE, "It", Limits()).warnings

    one, other = voices[0], voices[2]
    assert warnings(one, one) == warnings(one, 0.7 * one) == warnings(one, 0 * one) == warnings(0 * one, 0 * one) == []
    for channels in ((one, other), (one, -one), (one, other, one[::-1])):
        (warning,) = warnings(*channels)
        assert "It has different channels, which were averaged" in warning


def test_a_list_is_no_pair_and_a_pair_is_no_recording(verify, voices):
    with pytest.raises(ValueError, match=r"Expected a pair as a tuple .* Give several pairs as a list"):
        verify(["a.wav", "b.wav"])
    with pytest.raises(ValueError, match="expected a recording or a list of recordings, got a pair"):
        verify((voices[0], voices[1]), return_embeddings=True)


def test_without_soundfile_arrays_still_work(voices, monkeypatch):
    monkeypatch.setattr("hf_hamspk.audio_hamspk.soundfile", None)
    assert len(read_sound(voices[0], RATE, "It", Limits()).waveform) == len(voices[0])
    with pytest.raises(ImportError, match="pip install soundfile"):
        read_sound(b"abc", RATE, "It", Limits())


def test_an_uncalibrated_model_decides_by_the_callers_threshold_only(voices):
    verify = pipeline("speaker-verification", model=settle(HamSpkModel(tiny_config())), device="cpu")
    answer = verify((voices[0], voices[2]))
    assert answer["score"] is not None
    assert answer["decision"] is answer["threshold"] is answer["operating_point"] is None
    assert verify((voices[0], voices[2]), threshold=-1.0)["decision"] == "same speaker"
    with pytest.raises(ValueError, match="not calibrated"):
        verify((voices[0], voices[2]), operating_point="strict")


def test_a_profile_is_an_enrolment(voices):
    model = settle(HamSpkModel(tiny_config()))
    verify = pipeline("speaker-verification", model=model, device="cpu")
    profile = verify.verifier.enrol(voices[:1], RATE)
    assert verify((profile, voices[2]))["score"] == pytest.approx(verify((voices[0], voices[2]))["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operating_point": "bold"}, "balanced"),
        ({"threshold": float("nan")}, "finite"),
        ({"threshold": 0.5, "operating_point": "strict"}, "not both"),
        ({"combine": "sum"}, "mean"),
        ({"errors": "ignore"}, "raise, return"),
        ({"threshold": 10**400}, "finite"),
        ({"limits": {"minutes": 2}}, "seconds, size, values and remote"),
        ({"limits": [1]}, "must be a dictionary"),
        ({"limits": {"seconds": "x"}}, "seconds must be a positive finite number"),
        ({"limits": {"size": 1.5}}, "must be an integer above 0"),
        ({"limits": {"remote": 0}}, "remote must be True or False"),
    ],
)
def test_arguments_that_cannot_be(verify, voices, arguments, message):
    with pytest.raises(ValueError, match=message):
        verify((voices[0], voices[1]), **arguments)


def test_a_bad_pair_is_named_or_returned(verify, voices):
    pairs = [(voices[0], voices[1]), (voices[0], b"x"), (voices[1], voices[2])]
    with pytest.raises(ValueError, match=r"^Input 1: The test: cannot be decoded"):
        verify(pairs)
    first, second, third = verify(pairs, errors="return", batch_size=3)
    assert second.keys() == {"error"} and second["error"].startswith("Input 1: ")
    assert first["score"] is not None and third["score"] is not None


def strange() -> list:
    """Two hundred of them."""
    cases = [*odd_bytes(), *odd_values(Path.cwd())]
    return [*cases, *damaged_files(200 - len(cases))]


def answer_or_reason(verify, source, voice, **arguments) -> str:
    """What comes of a strange recording; anything but an answer with reasons or an error of our own fails."""
    inputs = source if arguments else ((source, voice) if len(str(type(source))) % 2 else (voice, source))
    try:
        answer = verify(inputs, **arguments)
        # A set, for example, is a stream.
        answer = answer if isinstance(answer, dict) else next(answer)
    except verify.input_error as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert PACKAGE in Path(last).parents or "transformers_modules" in last, last
        assert len(str(error)) > 20 and "Traceback" not in str(error) and "site-packages" not in str(error)
        return "error"
    if arguments:
        assert np.isfinite(answer["embedding"]).all()
        return "embedding"
    if answer["score"] is None:
        assert answer["decision"] == "not enough speech" and answer["warnings"]
        return "not enough speech"
    assert np.isfinite([answer["score"], answer["log_likelihood_ratio"]]).all()
    return "warning" if answer["warnings"] else "answer"


@pytest.mark.slow
def test_two_hundred_strange_recordings(folder, voices):
    verify = pipeline("speaker-verification", model=HamSpkModel.from_pretrained(folder), device="cpu")
    cases = strange()
    assert len(cases) == 200 and len({name for name, _ in cases}) == 200
    outcomes = {}
    with contextlib.redirect_stderr(io.StringIO()):
        for name, source in cases:
            try:
                outcomes[name] = answer_or_reason(verify, source, voices[0])
                outcomes[f"{name}, alone"] = answer_or_reason(verify, source, voices[0], return_embeddings=True)
            except Exception as error:
                raise AssertionError(name) from error
    found = set(outcomes.values())
    assert found >= {"error", "embedding", "not enough speech", "warning"}
    assert outcomes["silence"] == outcomes["0.3 s"] == "not enough speech"
    assert outcomes["int16"] in ("warning", "answer") and outcomes["8000 Hz"] == "warning"


def test_a_word_too_many_is_named(voices):
    verify = pipeline("speaker-verification", model=settle(HamSpkModel(tiny_config())), device="cpu")
    with pytest.raises(ValueError, match=r"argument treshold; expected operating_point, threshold"):
        verify((voices[0], voices[1]), treshold=0.3)
    with pytest.raises(ValueError, match=r"Give a pair as a tuple"):
        verify(voices[0], voices[1])
