"""`hamspk verify`, `examples/verify.py`, and the loading of models."""

import json
import math
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config

from hf_hamspk import HamSpkForXVector, HamSpkModel
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.loading.models import load_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify.py"


def answer_of(hamspk, model: Path, *words) -> dict:
    code, out, _ = hamspk("verify", model, *words, "--json")
    assert code == 0
    return json.loads(out)


def test_ratio_operating_point_and_decision(hamspk, calibrated_folder, voices):
    code, out, _ = hamspk("verify", calibrated_folder, voices / "a.wav", voices / "b.wav")
    assert hamspk("verify", calibrated_folder, voices / "a.wav", "--test", voices / "b.wav")[1] == out
    model = HamSpkModel.from_pretrained(calibrated_folder).eval()
    a, b = model.embed([read_utterance(voices / f"{name}.wav").waveform for name in "ab"], 16000)
    score = model.score(a, b).item()
    assert code == 0
    assert f"score      {score:.4f} (cosine similarity)" in out
    assert f"ratio      {100 * score - 90:.2f} (log-likelihood ratio)" in out
    assert "threshold  0.0000 (of the ratio: operating point balanced)" in out
    assert ("decision   same speaker" if 100 * score >= 90 else "decision   different speakers") in out
    assert re.search(r"speech     \d\.\d\d s  .*a\.wav", out)


@pytest.mark.parametrize(
    ("words", "threshold", "point"),
    [
        ((), 0.0, "balanced"),
        (("--operating-point", "strict"), math.log(99), "strict"),
        (("--prior", "0.2", "--cost-miss", "4"), 0.0, "--prior"),
        (("--prior", "0.5", "--cost-false-alarm", "1e9"), math.log(1e9), "--prior"),
        (("--threshold=-1.1",), -1.1, None),
        (("--threshold=1.1",), 1.1, None),
    ],
)
def test_ways_to_decide(hamspk, calibrated_folder, voices, words, threshold, point):
    answer = answer_of(hamspk, calibrated_folder, voices / "a.wav", "--test", voices / "b.wav", *words)
    assert (answer["threshold"], answer["operating_point"]) == (pytest.approx(threshold), point)
    compared = answer["score"] if point is None else answer["log_likelihood_ratio"]
    assert answer["decision"] == ("same speaker" if compared >= threshold else "different speakers")


def test_without_calibration_no_decision(hamspk, refusal, model_folder, voices):
    words = ("verify", model_folder, voices / "a.wav", "--test", voices / "b.wav")
    code, out, _ = hamspk(*words)
    assert code == 0
    assert "score" in out
    assert "No decision: this model is not calibrated. `hamspk calibrate MODEL" in out
    answer = json.loads(hamspk(*words, "--json")[1])
    assert (answer["decision"], answer["log_likelihood_ratio"]) == (None, None)
    assert "no operating point 'strict': this model is not calibrated" in refusal(*words, "--operating-point", "strict")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["model_folder", "calibrated_folder"])
@pytest.mark.parametrize("name", ["silence", "noise", "short"])
def test_not_enough_speech(request, hamspk, voices, model, name):
    model = request.getfixturevalue(model)
    for words in (
        (voices / "a.wav", "--test", voices / f"{name}.wav"),
        (voices / f"{name}.wav", "--test", voices / "a.wav"),
    ):
        answer = answer_of(hamspk, model, *words)
        assert answer["decision"] == "not enough speech"
        assert (answer["score"], answer["log_likelihood_ratio"]) == (None, None)
        assert "a decision needs at least 1 s" in answer["warnings"][0]
    assert "decision   not enough speech" in hamspk("verify", model, *words)[1]


def test_a_recording_is_itself(hamspk, calibrated_folder, voices):
    a = voices / "a.wav"
    answer = answer_of(hamspk, calibrated_folder, a, voices / "b.wav", "--test", a)
    assert any("Enrolment recording 1 and the test are the same recording" in w for w in answer["warnings"])
    assert any("the calibration was measured with 1" in w for w in answer["warnings"])
    answer = answer_of(hamspk, calibrated_folder, a, "--test", a)
    assert answer["score"] == pytest.approx(1.0, abs=1e-5)
    assert answer["decision"] == "same speaker"


@pytest.mark.slow
def test_profiles_are_kept_and_belong_to_one_model(tmp_path, hamspk, refusal, calibrated_folder, voices):
    profile = tmp_path / "anna.safetensors"
    enrolment = (voices / "a.wav", voices / "b.wav")
    code, out, _ = hamspk("verify", calibrated_folder, *enrolment, "--save-profile", profile)
    assert code == 0
    assert re.search(r"profile written to .*anna\.safetensors, from \d\.\d s of speech", out)
    of_files = answer_of(hamspk, calibrated_folder, *enrolment, "--test", voices / "c.wav")
    of_profile = answer_of(hamspk, calibrated_folder, profile, "--test", voices / "c.wav")
    assert of_profile["score"] == pytest.approx(of_files["score"], abs=1e-6)
    assert "(profile)" in hamspk("verify", calibrated_folder, profile, "--test", voices / "c.wav")[1]

    def refused(*words) -> str:
        return refusal("verify", *words)

    other = save_other_model(tmp_path / "other")
    assert "was made with other weights" in refused(other, profile, "--test", voices / "c.wav")
    assert "must be one profile or only recordings" in refused(
        calibrated_folder, profile, voices / "a.wav", "--test", voices / "c.wav"
    )
    assert "is already a profile" in refused(calibrated_folder, profile, "--save-profile", tmp_path / "b.safetensors")
    assert "Not enough speech to enrol" in refused(
        calibrated_folder, voices / "short.wav", "--save-profile", tmp_path / "b.safetensors"
    )


def save_other_model(folder: Path) -> Path:
    torch.manual_seed(1)
    HamSpkForXVector(tiny_config()).save_pretrained(folder)
    return folder


def test_words_that_do_not_fit(refusal, calibrated_folder, voices):
    def refused(*words) -> str:
        return refusal("verify", calibrated_folder, voices / "a.wav", *words)

    test = ("--test", voices / "a.wav")
    message = "Expected two recordings, got 1 recording: `hamspk verify MODEL ENROLMENT TEST`. For several enrolment"
    assert message in refused()
    assert "Expected two recordings, got 3 recordings" in refused(voices / "a.wav", voices / "a.wav")
    assert "--threshold must be a finite number, got nan" in refused(*test, "--threshold", "nan")
    assert "--operating-point and --threshold exclude each other" in refused(
        *test, "--threshold", "0", "--operating-point", "strict"
    )
    assert "need --prior" in refused(*test, "--cost-miss", "2")
    assert "--prior must lie strictly between 0 and 1, got 1.5" in refused(*test, "--prior", "1.5")
    assert "no operating point 'lax'; this calibration has balanced, strict, screening" in refused(
        *test, "--operating-point", "lax"
    )
    assert "--save-profile must end in .safetensors" in refused("--save-profile", "anna.json")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.wav", "nowhere.wav: no such file; check the path"),
        ("nan.wav", "nan.wav: contains NaN or infinite samples (3 of 16000)"),
        ("text.wav", "text.wav: cannot be decoded"),
        ("", "is a folder; give one audio file"),
    ],
)
def test_bad_recordings_are_refused(refusal, model_folder, audio, name, reason):
    assert reason in refusal("verify", model_folder, audio / "a.wav", "--test", audio / name)
    assert reason in refusal("verify", model_folder, audio / name, "--test", audio / "a.wav")


def test_models_that_are_not_there(tmp_path, refusal, audio):
    def refused(name) -> str:
        return refusal("verify", name, audio / "a.wav", "--test", audio / "a.wav")

    assert f"Model folder not found: {tmp_path / 'nope'}. Give a folder with config.json" in refused(tmp_path / "nope")
    assert "Model folder not found: ./nope" in refused("./nope")
    assert "Model not found: owner/nope" in refused("owner/nope")
    assert "is a file. Give the folder that contains config.json" in refused(audio / "a.wav")
    assert f"{audio} is not a model: the folder contains no config.json" in refused(audio)


def test_run_folder_points_to_the_model_in_it(tmp_path, refusal, model_folder, audio):
    shutil.copytree(model_folder, tmp_path / "run" / "final")
    message = refusal("verify", tmp_path / "run", audio / "a.wav", "--test", audio / "a.wav")
    assert f"Did you mean {tmp_path / 'run' / 'final'}?" in message


def test_other_and_damaged_models(tmp_path, model_folder):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(ValueError, match=r"of type 'hamspk', but .* is a model of type 'wav2vec2'.*--backbone"):
        load_model(str(other))
    (other / "config.json").write_text("{ no json")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_model(str(other))

    damaged = tmp_path / "damaged"
    shutil.copytree(model_folder, damaged)
    weights = damaged / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # off the file, which changes
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"The weights of .* cannot be read"):
        load_model(str(damaged))
    weights.unlink()
    with pytest.raises(ValueError, match=r"The weights of .* cannot be read"):
        load_model(str(damaged))
    tensors.pop("hamspk.projection.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors that its config\.json requires \(projection\.weight\)"):
        load_model(str(damaged))


def test_bad_device(model_folder):
    with pytest.raises(ValueError, match="Device 'abacus' is not available"):
        load_model(str(model_folder), "abacus")


@pytest.mark.slow
def test_example_needs_only_transformers(capsys, monkeypatch, model_folder, calibrated_folder, audio, voices):
    def run(model: Path, *files: Path) -> str:
        monkeypatch.setattr("sys.argv", ["verify.py", str(model), *map(str, files)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    a, b = (voices / f"{name}.wav" for name in "ab")
    model = load_model(str(calibrated_folder), "cpu")
    embedded = model.embed([read_utterance(path).waveform for path in (a, b)], 16000)
    out = run(calibrated_folder, a, b)
    assert float(out.split()[1]) == pytest.approx(model.score(*embedded).item(), abs=2e-4)
    assert "log-likelihood ratio" in out
    assert "speaker" in out.splitlines()[2]
    assert "no decision: the model is not calibrated" in run(model_folder, a, b)
    assert "the same recording" in run(calibrated_folder, a, b, b)
    for name in ("silence", "noise", "short"):
        out = run(calibrated_folder, a, voices / f"{name}.wav")
        assert out.startswith("not enough speech\nwarning: The test has 0.")
    assert "warning: The test was sampled at 8000 Hz" in run(model_folder, a, audio / "telephone.wav")
    with pytest.raises(SystemExit, match=r"usage: python examples/verify\.py MODEL"):
        run(model_folder, a)
    with pytest.raises(SystemExit, match=r"File not found: .*nowhere\.wav"):
        run(model_folder, a, audio / "nowhere.wav")
    with pytest.raises(SystemExit, match="NaN or infinite"):
        run(model_folder, a, audio / "nan.wav")
    assert "hf_hamspk" not in EXAMPLE.read_text(encoding="utf-8")
