"""Two people at once: the network of pyannote, its windows, and what verification and the doors do with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from overlaps import detector, store
from safetensors.torch import load_file, save_file
from speakers import RATE, KnownSpeakers, calibration_of, say
from strangers import without
from tiny_models import save_calibrated_model
from transformers import pipeline

from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.audio_hamspk import InputError, Sound
from hf_hamspk.conversion import convert_segmentation
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.encoders_hamspk import OVERLAP_FILE, SEGMENTATION_STEP, WINDOW_SAMPLES, OverlapDetector
from hf_hamspk.publishing.contents import plan_upload
from hf_hamspk.publishing.handler import EndpointHandler
from hf_hamspk.verification_hamspk import (
    IDENTIFIED,
    NOT_ENOUGH_SPEECH,
    SAME,
    SEVERAL_VOICES,
    SpeakerIdentifier,
    SpeakerVerifier,
)

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import measure_two_voices

AT_ONCE = "contains two voices: two people speak at once for"
STRANGER = (
    without("hf_hamspk")
    + """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModel

torch.set_num_threads(1)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
waves = list(load_file(sys.argv[2])["input.waveform"].numpy())
report = {
    "seconds": model.overlap_detector.measure(waves, 16000).tolist(),
    "warned": model.verify(waves[0], waves[-1], sampling_rate=16000).to_dict(),
    "refused": model.verify(waves[0], waves[-1], sampling_rate=16000, check_voices="refuse").to_dict(),
    "from": type(model).__module__.split(".")[0],
}
open(sys.argv[3], "w").write(json.dumps(report))
assert "hf_hamspk" not in sys.modules
"""
)


class Knowing(OverlapDetector):
    """Knows the recordings in which two people speak at once for a second."""

    def __init__(self, *known: np.ndarray):
        super().__init__(detector().network, "tests")
        self.known, self.asked = {wave.tobytes() for wave in known}, 0

    def measure(self, waveforms, sampling_rate):
        self.asked += len(waveforms)
        return np.array([(3.0, float(wave.tobytes() in self.known)) for wave in waveforms]).reshape(-1, 2)


@pytest.fixture(scope="module")
def voices() -> dict[str, np.ndarray]:
    return {"anna": say(1, 0), "again": say(1, 1), "both": say(1, 2), "bert": say(2, 0)}


@pytest.fixture
def model(voices):
    known = KnownSpeakers()
    known.overlap_detector = Knowing(voices["both"])
    return known


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return store(save_calibrated_model(tmp_path_factory.mktemp("overlap") / "final"))


def weights_of(shared: Path) -> Path:
    path = shared / "weights" / "pyannote_segmentation_3_0.pt"
    if not path.is_file():
        pytest.skip("the weights of pyannote's segmentation-3.0 are absent")
    return path


# --- the network and its windows


def test_the_network_gives_the_golden_numbers(shared, golden):
    tensors, _ = golden("segmentation_3_0")
    found = convert_segmentation(weights_of(shared))
    with torch.no_grad():
        actual, expected = found.network(tensors["input.waveform"]), tensors["expected.log_probabilities"]
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-4
    assert found.origin.startswith("pyannote/segmentation-3.0") and found.licence == "mit"
    single, other, mixture = found.find(list(tensors["input.waveform"].numpy()), RATE)
    assert single == other == 0 and mixture > 1


@pytest.mark.slow
def test_mixtures_of_dev_are_found_and_single_voices_are_not_reported(shared):
    """`measure_two_voices.py` prints the same for 5 and 10 dB."""
    table = shared / "speech" / "dev.csv"
    if not table.is_file():
        pytest.skip("the table of real speech is absent")
    recordings = measure_two_voices.draw(table, 150, 0, levels=(0,))
    found = convert_segmentation(weights_of(shared))
    rates = {kind: np.mean([seconds > 0 for seconds in found.find(waves, RATE)]) for kind, waves in recordings.items()}
    assert rates["0 dB"] >= 0.85
    assert rates["one person"] <= 0.01


@pytest.mark.slow
def test_a_recording_has_the_same_seconds_alone_and_among_others():
    waves = [make_speech(number, 0, seconds) for number, seconds in enumerate((0.7, 1.0, 1.0, 12.0))]
    found = detector()
    torch.nn.init.normal_(found.network.classes.weight)
    together = found.measure([*waves, np.zeros(0, np.float32), waves[0][:1599]], RATE)
    assert together[-2:].tolist() == [[0.0, 0.0]] * 2
    for wave, seconds in zip(waves, together, strict=False):
        np.testing.assert_allclose(found.measure([wave], RATE)[0], seconds, atol=1e-5)


@pytest.mark.slow
def test_windows_count_each_frame_once():
    """For a detector that finds two people in all frames, the seconds are those of the recording."""
    found = detector()
    for seconds in (1.0, 10.1):
        speech, overlap = found.measure([make_speech(1, 0, seconds)], RATE)[0]
        # At the edge of each window, no frame is complete.
        assert seconds - 0.07 * (1 + seconds // 10) < overlap <= seconds
        assert overlap == pytest.approx(speech, abs=1e-6)
    wave = make_speech(1, 0, 12.0)
    last = found._probabilities([wave[-WINDOW_SAMPLES:]])[0]
    first = found._probabilities([wave[:WINDOW_SAMPLES]])[0]
    rest = last[round((2 * WINDOW_SAMPLES - len(wave)) / SEGMENTATION_STEP) :]
    expected = (first[:, 4:].sum() + rest[:, 4:].sum()) * SEGMENTATION_STEP / RATE
    assert found.measure([wave], RATE)[0, 1] == pytest.approx(expected)


def test_other_sampling_rates_are_converted():
    wave = make_speech(1, 0, 2.0)
    found = detector()
    assert found.measure([wave], 8000)[0, 1] == pytest.approx(4.0, abs=0.1)
    assert found.find([wave], 48_000)[0] == pytest.approx(2 / 3, abs=0.1)


# --- the file


def test_a_stored_detector_is_the_same(tmp_path):
    store(tmp_path)
    loaded = OverlapDetector.load(tmp_path / OVERLAP_FILE)
    assert (loaded.origin, loaded.licence) == ("tests", "mit")
    for name, tensor in detector().network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)
    assert not loaded.network.training and not any(one.requires_grad for one in loaded.network.parameters())


def damaged(path: Path) -> dict[str, tuple[bytes, str]]:
    """Contents of files that are not detectors, and a part of the refusal."""
    content = path.read_bytes()
    state, other = load_file(path), path.with_name("other.safetensors")

    def saved(state, **description) -> bytes:
        metadata = {
            "description": json.dumps({"kind": "overlap detector", "origin": "x", "licence": None} | description)
        }
        save_file(state, other, metadata)
        return other.read_bytes()

    bias = state["classes.bias"]
    save_file(state, other)
    plain = other.read_bytes()
    save_file(state, other, {"description": "[1]"})
    return {
        "truncated": (content[: len(content) // 2], "is not an overlap detector"),
        "empty": (b"", "is not an overlap detector"),
        "text": (b"a detector", "is not an overlap detector"),
        "pickle": (b"\x80\x02}q\x00.", "is not an overlap detector"),
        "changed": (content[:-40] + bytes(40), "was altered: its checksum does not match"),
        "no description": (plain, "is not an overlap detector"),
        "list": (other.read_bytes(), "is not an overlap detector"),
        "no checksum": (saved(state), "was altered"),
        "other kind": (saved(state, kind="speaker profile"), "other weights or fields"),
        "other origin": (saved(state, origin="a\nb"), "other weights or fields"),
        "missing": (saved({"classes.bias": bias}), "other weights or fields"),
        "shape": (saved(state | {"classes.bias": torch.zeros(9)}), "other weights or fields"),
        "type": (saved(state | {"classes.bias": torch.zeros(7, dtype=torch.int32)}), "other weights or fields"),
        "more": (saved(state | {"extra": torch.zeros(1)}), "other weights or fields"),
    }


def test_other_files_are_refused_by_one_sentence(folder, tmp_path):
    store(tmp_path)
    for name, (content, message) in damaged(tmp_path / OVERLAP_FILE).items():
        (tmp_path / OVERLAP_FILE).write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            OverlapDetector.load(tmp_path / OVERLAP_FILE)
        said = str(raised.value)
        assert "\n" not in said and said.endswith("or delete the file."), name
    with pytest.raises(ValueError, match="is not an overlap detector"):
        OverlapDetector.load(tmp_path / "absent.safetensors")


# --- verification and enrolment


def about(answer) -> list[str]:
    return [warning for warning in answer.warnings if AT_ONCE in warning]


def test_a_warning_names_the_recording_and_the_seconds(model, voices):
    verifier = SpeakerVerifier(model, calibration_of(model))
    answer = verifier.verify(voices["anna"], voices["both"], RATE)
    assert answer.decision == SAME
    assert about(answer) == [f"The test {AT_ONCE} 1.0 s."]
    answer = verifier.verify([voices["anna"], voices["both"]], voices["again"], RATE)
    assert about(answer) == [f"Enrolment recording 2 {AT_ONCE} 1.0 s."]
    profile = verifier.enrol([voices["both"]], RATE, name="anna")
    assert about(profile) == [f"The enrolment {AT_ONCE} 1.0 s."]
    answer = verifier.verify(profile, voices["again"], RATE)
    assert about(answer) == [f"At the enrolment of anna: The enrolment {AT_ONCE} 1.0 s."]
    assert about(verifier.compare([voices["anna"], voices["both"]], RATE)) == [f"Recording 2 {AT_ONCE} 1.0 s."]
    assert not about(verifier.verify(voices["anna"], voices["again"], RATE))


def test_a_warning_needs_no_calibration(model, voices):
    assert about(SpeakerVerifier(model).verify(voices["anna"], voices["both"], RATE))


def test_each_recording_is_measured_once(model, voices):
    SpeakerVerifier(model).verify_pairs([(voices["anna"], voices["both"]), (voices["both"], voices["anna"])], RATE)
    assert model.overlap_detector.asked == 2


def test_without_a_check_nothing_is_measured(model, voices):
    verifier = SpeakerVerifier(model, calibration_of(model), check_voices=False)
    assert not about(verifier.verify(voices["anna"], voices["both"], RATE))
    assert model.overlap_detector.asked == 0


def test_a_refused_recording_has_no_score(model, voices):
    verifier = SpeakerVerifier(model, calibration_of(model), check_voices="refuse")
    pairs = [(voices["anna"], voices["both"]), (voices["anna"], voices["again"]), (voices["both"], voices["anna"])]
    first, second, third = verifier.verify_pairs(pairs, RATE)
    for refused, label in ((first, "The test"), (third, "The enrolment")):
        assert (refused.decision, refused.score, refused.log_likelihood_ratio) == (SEVERAL_VOICES, None, None)
        assert (refused.threshold, refused.operating_point) == (None, None)
        assert about(refused) == [f"{label} {AT_ONCE} 1.0 s."]
    assert second.decision == SAME
    assert verifier.verify(voices["anna"], voices["both"], RATE, threshold=-1.0).decision == SEVERAL_VOICES
    silence = np.zeros(RATE, np.float32)
    assert verifier.verify(voices["both"], silence, RATE).decision == NOT_ENOUGH_SPEECH
    with pytest.raises(InputError, match=f"Enrolment recording 2 {AT_ONCE}"):
        verifier.enrol([voices["anna"], voices["both"]], RATE)


def test_identification(model, voices):
    profiles = [SpeakerVerifier(model).enrol([voices[name]], RATE, name=name) for name in ("anna", "bert")]
    calibration = calibration_of(model)
    (answer,) = SpeakerIdentifier(model, profiles, calibration).identify([voices["both"]], RATE)
    assert answer.decision == IDENTIFIED and about(answer) == [f"The recording {AT_ONCE} 1.0 s."]
    refusing = SpeakerIdentifier(model, profiles, calibration, check_voices="refuse")
    refused, other = refusing.identify([voices["both"], voices["again"]], RATE)
    assert (refused.decision, refused.candidates, refused.speaker) == (SEVERAL_VOICES, [], None)
    assert about(refused) and other.decision == IDENTIFIED


def test_other_ways_to_check_are_refused(model):
    for given in ("Refuse", None, 3, "ignore"):
        with pytest.raises(InputError, match="check_voices must be True, False or 'refuse', got"):
            SpeakerVerifier(model, check_voices=given)
    del model.overlap_detector
    with pytest.raises(
        InputError, match=r"--voices refuse .check_voices='refuse'. needs an overlap detector, but the model has none"
    ) as raised:
        SpeakerVerifier(model, check_voices="refuse")
    assert "Store one beside the model with `hamspk convert FILE --into MODEL`" in str(raised.value)


# --- the folder of a model


def test_the_detector_is_loaded_and_saved_with_the_model_and_changes_no_weights(folder, tmp_path):
    with_detector = HamSpkModel.from_pretrained(folder)
    without = HamSpkModel.from_pretrained(folder, calibrated=False)
    assert without.overlap_detector is None and with_detector.overlap_detector is not None
    assert with_detector.fingerprint() == without.fingerprint()
    assert with_detector.state_dict().keys() == without.state_dict().keys()
    with_detector.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / OVERLAP_FILE).read_bytes() == (folder / OVERLAP_FILE).read_bytes()
    without.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / OVERLAP_FILE).exists()
    assert HamSpkForXVector.from_pretrained(folder).overlap_detector is not None


@pytest.mark.slow
def test_the_methods_of_a_model_take_the_option(folder):
    model, (first, second) = HamSpkModel.from_pretrained(folder), (make_speech(1, number, 3.0) for number in (0, 1))
    assert len(about(model.verify(first, second))) == 2
    assert about(model.verify(first, second, check_voices=False)) == []
    assert model.verify(first, second, check_voices="refuse").decision == SEVERAL_VOICES
    with pytest.raises(InputError, match=AT_ONCE):
        model.enrol([first], check_voices="refuse")
    profile = model.enrol([first], name="anna", check_voices=False)
    assert not profile.warnings or not about(profile)
    assert model.identifier([profile], check_voices="refuse").identify([second])[0].decision == SEVERAL_VOICES
    assert about(model.compare([first, second]))


@pytest.mark.slow
def test_the_pipeline_and_the_endpoint(folder, tmp_path):
    first, second = (tmp_path / f"{number}.wav" for number in (0, 1))
    for number, file in enumerate((first, second)):
        soundfile.write(file, make_speech(1, number, 3.0), RATE)
    pair = (str(first), str(second))
    verify = pipeline("speaker-verification", model=str(folder), trust_remote_code=True, device="cpu")
    assert sum(AT_ONCE in warning for warning in verify(pair)["warnings"]) == 2
    assert verify(pair, check_voices="refuse")["decision"] == SEVERAL_VOICES
    assert not any(AT_ONCE in warning for warning in verify(pair, check_voices=False)["warnings"])
    embedded = verify(pair[0], return_embeddings=True)
    assert any(warning.startswith(f"The recording {AT_ONCE}") for warning in embedded["warnings"])
    with pytest.raises(ValueError, match="check_voices must be"):
        verify(pair, check_voices="never")
    refusing = pipeline("speaker-verification", model=str(folder), trust_remote_code=True, check_voices="refuse")
    assert [one["decision"] for one in refusing([pair, pair])] == [SEVERAL_VOICES] * 2
    handler = EndpointHandler(str(folder))
    inputs = {"enrolment": first.read_bytes(), "test": second.read_bytes()}
    answer = handler({"inputs": inputs})
    assert sum(AT_ONCE in warning for warning in answer["warnings"]) == 2
    answer = handler({"inputs": inputs, "parameters": {"check_voices": "refuse"}})
    assert answer["decision"] == SEVERAL_VOICES and answer["score"] is None
    with pytest.raises(ValueError, match="check_voices must be"):
        handler({"inputs": inputs, "parameters": {"check_voices": [1]}})


def test_a_push_carries_the_detector_and_its_licence(folder):
    plan = plan_upload(folder, "tester/tiny")
    files = {file.name: file for file in plan.files}
    assert files[OVERLAP_FILE].read() == (folder / OVERLAP_FILE).read_bytes()
    assert f"Except {OVERLAP_FILE} (tests): mit. This licence:\n\nPermission is hereby granted" in str(
        files["LICENSE"].read().decode()
    )
    card = files["README.md"].read().decode()
    assert (
        "- **Recordings in which two people speak at once:** a warning, by the network of tests (licence: mit)" in card
    )


@pytest.mark.slow
def test_a_strangers_process_uses_the_detector(shared, folder, tmp_path):
    """The files of a push, in a process without this package."""
    waveforms = shared / "golden" / "segmentation_3_0.safetensors"
    published = Path(tmp_path / "published")
    model = HamSpkModel.from_pretrained(folder)
    model.overlap_detector = convert_segmentation(weights_of(shared))
    model.save_pretrained(tmp_path / "final")
    for file in plan_upload(tmp_path / "final", "tester/tiny").files:
        (published / file.name).parent.mkdir(parents=True, exist_ok=True)
        (published / file.name).write_bytes(file.read())
    command = [sys.executable, "-c", STRANGER, str(published), str(waveforms), str(tmp_path / "report.json")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    waves = list(load_file(waveforms)["input.waveform"].numpy())
    np.testing.assert_allclose(report["seconds"], model.overlap_detector.measure(waves, RATE), atol=1e-5)
    assert report["from"] == "transformers_modules"
    assert [one for one in report["warned"]["warnings"] if AT_ONCE in one] == about(
        model.verify(waves[0], waves[-1], sampling_rate=RATE)
    )
    assert report["refused"]["decision"] == SEVERAL_VOICES


def test_a_sound_gets_its_warning():
    sound = Sound(make_speech(1, 0, 2.0), RATE)
    (warning,) = detector().warnings(sound, "The recording")
    assert warning.startswith(f"The recording {AT_ONCE}")
    assert detector(found=False).warnings(sound, "The recording") == []
