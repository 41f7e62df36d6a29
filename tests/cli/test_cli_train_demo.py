"""`hamspk train` and `hamspk demo`."""

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
import soundfile as sf
from tiny_models import RATE, noises

from hf_hamspk.cli import demo, stranger
from hf_hamspk.evaluation.trials import read_trials

TINY = (
    *("--ecapa_channels", 16, "--ecapa_output_channels", 48, "--ecapa_bottleneck", 8, "--pooling_channels", 8),
    *("--embedding_size", 24, "--batch_size", 4, "--epochs", 1, "--crop_seconds", 0.5, "--cpu"),
)


@pytest.fixture
def corpus(tmp_path):
    """Two speakers with four utterances each, and trials over them."""
    root = tmp_path / "corpus"
    for number, wave in enumerate(noises(*[1.0] * 8)):
        folder = root / f"speaker{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        sf.write(folder / f"{number}.wav", wave.numpy(), RATE)
    (tmp_path / "trials.txt").write_text(
        "1 speaker0/0.wav speaker0/2.wav\n0 speaker0/0.wav speaker1/1.wav\n1 speaker1/1.wav speaker1/3.wav\n"
    )
    return root


@pytest.mark.slow
def test_train_prints_results(tmp_path, hamspk, corpus):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train_data: {corpus}\noutput_dir: {tmp_path / 'wrong'}\n")
    words = ("train", recipe, *TINY, "--output_dir", tmp_path / "run")
    code, out, _ = hamspk(*words, "--trial_root", corpus, "--test_trials", tmp_path / "trials.txt")
    assert code == 0
    assert "trial list" in out
    assert "trials " in out
    assert f"model: {tmp_path / 'run' / 'final'}" in out
    assert not (tmp_path / "wrong").exists()
    # What is saved travels: the code lies beside the weights.
    assert (tmp_path / "run" / "final" / "modeling_hamspk.py").is_file()


def test_train_refuses(tmp_path, refusal, corpus):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train_data: somewhere\nbatchsize: 4\n")
    message = refusal("train", recipe)
    assert "unknown argument 'batchsize'. Did you mean 'batch_size'?" in message
    assert "Did you mean 'margin'?" in refusal("train", "--train_data", corpus, "--margn", 0.1)
    assert "margin must be at least 0" in refusal("train", "--train_data", corpus, "--margin=-0.1")
    assert "Recipe not found: nope.yaml" in refusal("train", "nope.yaml")
    assert "train_data is missing" in refusal("train")
    assert "No corpus at" in refusal("train", "--train_data", tmp_path / "nope", "--output_dir", tmp_path / "run")
    message = refusal("train", "--train_data", corpus, "--test_trials", tmp_path / "trials.txt", "--cpu")
    assert "files of the trial list are missing" in message


def test_demo_refuses_a_folder_that_is_not_its_own(tmp_path, refusal):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not empty and was not made by a demo" in refusal("demo", "--output", tmp_path)
    assert "is a file" in refusal("demo", "--output", tmp_path / "thesis.tex")
    assert "--seed must be at least 0" in refusal("demo", "--output", tmp_path / "new", "--seed=-1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_demo_starts_fresh_in_its_own_folder(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    folder = tmp_path / "demo"
    demo.prepare_folder(folder)
    (folder / "run" / "final").mkdir(parents=True)
    (folder / "run" / "final" / "config.json").touch()
    (folder / "run" / "metrics.jsonl").touch()
    (folder / "corpus").symlink_to(outside)
    (folder / "run" / "final" / "thesis.tex").touch()
    for name in ("corpus", "run/final/thesis.tex"):
        with pytest.raises(ValueError, match=re.escape(f"contains a file that no demo wrote ({name})")):
            demo.prepare_folder(folder)
        assert (folder / "run" / "metrics.jsonl").exists()
        (folder / name).unlink()
    demo.prepare_folder(folder)
    assert [entry.name for entry in folder.iterdir()] == [demo.MARKER]
    assert (outside / "kept").exists()


@pytest.mark.slow
def test_demo_lists_share_no_speaker(tmp_path):
    size = demo.Size(training_speakers=2, held_out_speakers=8, utterances=3, epochs=1, batch_size=2)
    demo.make_voices(tmp_path, size, seed=3)
    speakers = []
    for name in ("dev.txt", "test.txt"):
        trials = read_trials(tmp_path / name)
        assert Counter(trials.labels.tolist()).keys() == {0, 1}
        speakers.append({file.split("/")[1] for file in trials.files})
        pairs = demo.choose_pairs(trials)
        same, different = ([file.split("/")[1] for file in pair] for pair in pairs.values())
        assert same[0] == same[1]
        assert different[0] != different[1]
    assert [len(each) for each in speakers] == [4, 4]
    assert not speakers[0] & speakers[1]


@pytest.mark.slow
def test_stranger_cannot_import_the_package(tmp_path):
    code = (
        "import runpy, sys; stranger = runpy.run_path(sys.argv[1]); "
        "sys.meta_path.insert(0, stranger['Refuse']); import hf_hamspk"
    )
    words = [sys.executable, "-P", "-c", code, str(stranger.__file__)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "No module named 'hf_hamspk': its import is blocked in this process" in done.stderr


@pytest.mark.slow
def test_failure_of_the_fresh_process_is_told(tmp_path):
    with pytest.raises(ValueError, match="could not be used in a fresh process"):
        demo.ask_stranger(tmp_path, {"same speaker": ("a.wav", "b.wav")})


@pytest.mark.slow
def test_demo_end_to_end(tmp_path, hamspk):
    folder = tmp_path / "demo"
    for _ in range(2):  # the second time in the folder of the first
        code, out, _ = hamspk("demo", "--quick", "--output", folder)
        assert code == 0
    assert "EER untrained" in out
    assert "say nothing about real voices" in out
    for name in ("det.png", "scores.png", "recipe.yaml", "run/final/model.safetensors", "corpus/train.csv"):
        assert (folder / name).is_file()
        assert str(folder / name.split("/model")[0]) in out or name == "corpus/train.csv"
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "run" / "final" / "verification.json").is_file()
    assert set(results["fresh_process"]) == {"same speaker", "different speakers"}
    test = read_trials(folder / "test.txt")
    words = ("verify", folder / "run" / "final")
    for kind, (enrolment, other) in demo.choose_pairs(test).items():
        answer = results["fresh_process"][kind]
        corpus = folder / "corpus"
        here = json.loads(hamspk(*words, corpus / enrolment, "--test", corpus / other, "--json")[1])
        assert answer["score"] == pytest.approx(here["score"], abs=1e-4)
        assert answer["decision"] is not None
        assert answer["decision"] == here["decision"]
