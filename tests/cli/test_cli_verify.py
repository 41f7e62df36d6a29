"""`hamspk verify`, `examples/verify.py`, and the loading of models."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_hamspk import HamSpkModel
from hf_hamspk.cli.models import load_model
from hf_hamspk.cli.verify import enrolment_embedding
from hf_hamspk.data.audio import read_audio

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify.py"


def test_score_threshold_and_decision(hamspk, model_folder, audio):
    code, out, _ = hamspk("verify", model_folder, audio / "a.wav", "--test", audio / "b.wav")
    model = HamSpkModel.from_pretrained(model_folder).eval()
    a, b = model.embed([read_audio(audio / f"{name}.wav") for name in "ab"], 16000)
    score = model.score(a, b).item()
    assert code == 0
    assert f"score      {score:.4f} (cosine similarity)" in out
    assert "threshold  0.5000 (from the model's configuration)" in out
    assert ("decision   same speaker" if score >= 0.5 else "decision   different speakers") in out
    assert "2.50 s" in out
    assert "3.00 s" in out
    assert "warning" not in out


@pytest.mark.parametrize(("threshold", "decision"), [(-1.1, "same speaker"), (1.1, "different speakers")])
def test_option_wins_over_configuration(hamspk, model_folder, audio, threshold, decision):
    words = ("verify", model_folder, audio / "a.wav", "--test", audio / "b.wav", f"--threshold={threshold}", "--json")
    code, out, _ = hamspk(*words)
    answer = json.loads(out)
    assert code == 0
    assert answer["threshold"] == threshold
    assert answer["threshold_from"] == "option --threshold"
    assert answer["decision"] == decision
    assert answer["seconds"] == {str(audio / "a.wav"): 2.5, str(audio / "b.wav"): 3.0}
    assert answer["warnings"] == []


def test_without_threshold_no_decision(hamspk, model_without_threshold, audio):
    words = ("verify", model_without_threshold, audio / "a.wav", "--test", audio / "b.wav")
    code, out, _ = hamspk(*words)
    assert code == 0
    assert "score" in out
    assert "No decision: the model has no threshold" in out
    assert "hamspk evaluate MODEL TRIALS" in out
    assert json.loads(hamspk(*words, "--json")[1])["decision"] is None


def test_a_recording_is_itself(hamspk, model_folder, audio):
    words = ("verify", model_folder, audio / "a.wav", audio / "a.wav", "--test", audio / "a.wav", "--json")
    answer = json.loads(hamspk(*words)[1])
    assert answer["score"] == pytest.approx(1.0, abs=1e-5)
    assert answer["decision"] == "same speaker"
    assert "several" in answer["warnings"][0]


def test_enrolment_is_the_mean_direction():
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    torch.testing.assert_close(enrolment_embedding(embeddings), torch.tensor([1.0, 1.0]) * 4 / 2**0.5)
    torch.testing.assert_close(enrolment_embedding(embeddings[:1]), embeddings[0])


def test_short_telephone_and_stereo_recordings(hamspk, model_folder, audio):
    words = ("verify", model_folder, audio / "telephone.wav", audio / "stereo.wav", "--test", audio / "one_second.flac")
    code, out, _ = hamspk(*words)
    assert code == 0
    assert "5.00 s" in out  # 2.5 s of samples for 16 kHz, played at 8 kHz
    assert "one_second.flac lasts 1.00 s; below 2 s decisions are unreliable" in out


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.wav", "nowhere.wav: no such file"),
        ("short.wav", "short.wav: lasts 0.05 s, at least 0.1 s are needed"),
        ("silence.wav", "silence.wav: holds no sound"),
        ("nan.wav", "nan.wav: holds 3 NaN or infinite samples of 16000"),
        ("text.wav", "text.wav: cannot be decoded"),
        ("", "is a folder; give one audio file"),
    ],
)
def test_bad_recordings_are_refused(refusal, model_folder, audio, name, reason):
    assert reason in refusal("verify", model_folder, audio / "a.wav", "--test", audio / name)
    assert reason in refusal("verify", model_folder, audio / name, "--test", audio / "a.wav")


def test_threshold_must_be_finite(refusal, model_folder, audio):
    words = ("verify", model_folder, audio / "a.wav", "--test", audio / "a.wav", "--threshold", "nan")
    assert "--threshold must be a finite number, got nan" in refusal(*words)


def test_models_that_are_not_there(tmp_path, refusal, audio):
    def refused(name) -> str:
        return refusal("verify", name, audio / "a.wav", "--test", audio / "a.wav")

    assert f"There is no folder {tmp_path / 'nope'}. Give a folder with config.json" in refused(tmp_path / "nope")
    assert "There is no folder ./nope" in refused("./nope")
    assert "There is no folder owner/nope, and " in refused("owner/nope")
    assert "is a file; give the folder that holds config.json" in refused(audio / "a.wav")
    assert f"{audio} is no model: the folder holds no config.json" in refused(audio)


def test_run_folder_points_to_the_model_in_it(tmp_path, refusal, model_folder, audio):
    shutil.copytree(model_folder, tmp_path / "run" / "final")
    message = refusal("verify", tmp_path / "run", audio / "a.wav", "--test", audio / "a.wav")
    assert f"Did you mean {tmp_path / 'run' / 'final'}?" in message


def test_other_and_damaged_models(tmp_path, model_folder):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(ValueError, match=r"holds a model of type 'wav2vec2'; expected 'hamspk'.*--backbone"):
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
    with pytest.raises(ValueError, match=r"lack 1 tensors that its config\.json asks for \(projection\.weight\)"):
        load_model(str(damaged))


def test_bad_device(model_folder):
    with pytest.raises(ValueError, match="There is no device 'abacus' here"):
        load_model(str(model_folder), "abacus")


def test_example_needs_only_transformers(capsys, monkeypatch, model_folder, model_without_threshold, audio):
    def run(model: Path, *names: str) -> str:
        monkeypatch.setattr("sys.argv", ["verify.py", str(model), *(str(audio / name) for name in names)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    model = load_model(str(model_folder), "cpu")
    a, b = model.embed([read_audio(audio / f"{name}.wav") for name in "ab"], 16000)
    out = run(model_folder, "a.wav", "b.wav")
    assert float(out.split()[1]) == pytest.approx(model.score(a, b).item(), abs=2e-4)
    assert "threshold 0.5000" in out
    assert "speaker" in out
    assert "no threshold" in run(model_without_threshold, "a.wav", "stereo.wav")
    with pytest.raises(SystemExit, match="8000 Hz, the model works at 16000 Hz"):
        run(model_folder, "a.wav", "telephone.wav")
    with pytest.raises(SystemExit, match=r"usage: python examples/verify\.py MODEL"):
        run(model_folder, "a.wav")
    with pytest.raises(SystemExit, match="cannot be read"):
        run(model_folder, "a.wav", "nowhere.wav")
    for name, message in (("nan.wav", "NaN or infinite"), ("silence.wav", "holds no sound"), ("short.wav", "at least")):
        assert (audio / name).is_file()
        with pytest.raises(SystemExit, match=message):
            run(model_folder, "a.wav", name)
    assert "hf_hamspk" not in EXAMPLE.read_text(encoding="utf-8")
