"""The plan of an upload: exactly the expected files, nothing private, no pickle, only measurements of these weights."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import hf_hamspk
from hf_hamspk import HamSpkModel
from hf_hamspk.calibration_hamspk import Calibration
from hf_hamspk.publishing.about import About, TrainingData
from hf_hamspk.publishing.code import renew_code
from hf_hamspk.publishing.contents import HANDLER, HANDLER_FILE, REQUIREMENTS_FILE, is_managed_file, plan_upload
from hf_hamspk.publishing.sentences import MODULE_FILE, MODULES_FILE, SETTINGS_FILE

NAME = "tester/tiny"
TRUNK = {path.name for path in Path(hf_hamspk.__file__).parent.glob("*.py") if not path.name.startswith("__")}
SENTENCES = {MODULE_FILE, MODULES_FILE, SETTINGS_FILE}
EXPECTED = (
    TRUNK
    | {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "verification.json",
        "cohort.safetensors",
        "evaluation.json",
        "recipe.yaml",
        "plots/det.png",
        "README.md",
        "LICENSE",
    }
    | SENTENCES
    | ({HANDLER_FILE, REQUIREMENTS_FILE} if HANDLER.is_file() else set())
)


def content(plan, name: str) -> str:
    return next(file for file in plan.files if file.name == name).read().decode()


def test_exactly_the_expected_files(trained):
    folder, run = trained
    plan = plan_upload(folder, NAME, run)
    assert set(plan.names) == EXPECTED
    assert plan.names == sorted(plan.names)
    assert plan.size == sum(len(file.read()) for file in plan.files)


def test_what_stays_is_named(trained):
    plan = plan_upload(*trained[:1], NAME, cohort=False)
    assert {"notes.txt", "ann.wav", "helper.py"} <= plan.left_out.keys()
    assert plan.left_out["cohort.safetensors"] == "left out on request"
    assert "cohort.safetensors" not in plan.names


def test_without_a_run_there_is_no_recipe_and_no_evaluation(trained):
    plan = plan_upload(trained[0], NAME)
    assert set(plan.names) == EXPECTED - {"evaluation.json", "recipe.yaml", "plots/det.png"}
    assert any("missing in the card: evaluation, recipe" in note for note in plan.notes)


def test_nothing_names_a_folder_or_a_speaker(trained):
    plan = plan_upload(trained[0], NAME, trained[1])
    recipe = yaml.safe_load(content(plan, "recipe.yaml"))
    assert recipe["train_data"] == "train.csv" and recipe["audio_root"] == "audio"
    assert recipe["test_trials"] == ["test-o.txt", "test-h.txt"]
    assert recipe["noise_folder"] == "https://example.org/noise"
    everything = b"".join(file.read() for file in plan.files)
    for private in (b"/home/", b"/tmp/", str(trained[1]).encode(), str(Path.home()).encode() + b"/", b"Ann Example"):
        assert private not in everything


@pytest.mark.slow
def test_names_of_unusable_files_become_numbers_unless_wanted(trained):
    """They are often those of people; the reasons stay."""
    plan = plan_upload(trained[0], NAME, trained[1])
    sent = json.loads(content(plan, "evaluation.json"))
    assert sent["lists"]["test-o"]["unusable_files"] == {"file 1": "holds no sound"}
    assert sent["training"]["unreadable_files"] == {"file 1": "ends too early"}
    assert any("names of 5 unusable files in evaluation.json" in note for note in plan.notes)
    kept = plan_upload(trained[0], NAME, trained[1], speaker_names=True)
    assert content(kept, "evaluation.json") == (trained[1] / "evaluation.json").read_text()


def test_names_of_speakers_become_numbers_unless_wanted(trained):
    plan = plan_upload(trained[0], NAME)
    config = json.loads(content(plan, "config.json"))
    assert config["id2label"] == {str(i): f"LABEL_{i}" for i in range(5)}
    assert config["label2id"] == {f"LABEL_{i}": i for i in range(5)}
    assert any("names of 5 training speakers" in note for note in plan.notes)
    kept = json.loads(content(plan_upload(trained[0], NAME, speaker_names=True), "config.json"))
    assert "Ann Example" in kept["label2id"]
    assert {k: v for k, v in kept.items() if "label" not in k} == {k: v for k, v in config.items() if "label" not in k}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("config.json", "/home/ann/speech/a.wav"),
        ("evaluation.json", "/home/ann/speech/a.wav"),
        ("LICENSE", "/home/ann/speech/a.wav"),
        ("LICENSE", "hf_" + "x" * 34),
        ("preprocessor_config.json", "hf_" + "x" * 34),
    ],
)
def test_a_leak_is_refused_with_file_and_line(model_folder, trained, where, what):
    path = model_folder / where
    if where == "evaluation.json":
        path.write_bytes((trained[1] / where).read_bytes())
    if where.endswith(".json"):
        path.write_text(json.dumps({"aaa": what} | json.loads(path.read_text()), indent=2))
        line = 2
    else:
        path.write_text(f"Apache-2.0\n\n# {what}\n")
        line = 3
    kind = "a path of a machine, '/home/ann" if what.startswith("/") else "an access token of the Hub"
    with pytest.raises(ValueError, match=rf"Nothing was sent.*{where}, line {line}: {kind}") as error:
        plan_upload(model_folder, NAME)
    assert "hf_xxx" not in str(error.value)


def test_the_token_of_the_environment_is_found(model_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-unusual-token")
    (model_folder / "LICENSE").write_text("TOKEN = 'an-unusual-token'")
    with pytest.raises(ValueError, match=r"LICENSE, line 1: your access token of the Hub"):
        plan_upload(model_folder, NAME)


def test_a_path_in_a_tensor_file_is_found(model_folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model_folder / "model.safetensors")
    save_file(tensors, model_folder / "model.safetensors", {"format": "pt", "made_in": "/home/ann/run"})
    with pytest.raises(ValueError, match=r"model\.safetensors: a path of a machine, '/home/ann/run'"):
        plan_upload(model_folder, NAME)


def torch_pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pytorch_model.bin", b""),
        ("training_args.bin", torch_pickle()),
        ("checkpoint.data", torch_pickle()),
        ("plots/scores", pickle.dumps({"a": 1})),
        ("old.pkl", b"x"),
    ],
)
def test_pickles_are_refused(model_folder, name, data):
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} is a pickle, which can run code.*safetensors only.*Remove it"):
        plan_upload(model_folder, NAME)


def test_other_archives_only_stay(model_folder):
    with zipfile.ZipFile(model_folder / "embeddings.npz", "w") as archive:
        archive.writestr("a.npy", b"")
    assert "embeddings.npz" in plan_upload(model_folder, NAME).left_out


def test_audio_in_disguise_is_refused(model_folder):
    (model_folder / "plots").mkdir()
    (model_folder / "plots" / "a.png").write_bytes(b"RIFF0000WAVEfmt ")
    with pytest.raises(ValueError, match=r"plots/a\.png is not a PNG image"):
        plan_upload(model_folder, NAME)
    (model_folder / "plots" / "a.png").unlink()
    (model_folder / "cohort.safetensors").write_bytes(b"RIFF0000WAVEfmt " * 9)
    with pytest.raises(ValueError, match=r"cohort"):
        plan_upload(model_folder, NAME)


def test_measurements_of_other_weights_are_refused(model_folder, trained):
    other = json.loads((trained[1] / "evaluation.json").read_text())
    other["model"]["fingerprint"] = "0" * 64
    (model_folder / "evaluation.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"evaluation\.json was measured with other weights.*hamspk evaluate"):
        plan_upload(model_folder, NAME)


def test_a_calibration_altered_by_hand_is_refused(model_folder):
    path = model_folder / "verification.json"
    path.write_text(path.read_text().replace("3680", "9999"))
    with pytest.raises(ValueError, match=r"verification\.json"):
        plan_upload(model_folder, NAME)


@pytest.mark.slow
def test_a_cohort_left_out_is_said(model_folder):
    plan = plan_upload(model_folder, NAME)
    assert any("7 embeddings of training speakers, which are biometric data" in note for note in plan.notes)
    assert "7 embeddings" in content(plan, "README.md")
    plan = plan_upload(model_folder, NAME, cohort=False)
    assert "cohort.safetensors" not in content(plan, "README.md")


@pytest.mark.slow
def test_a_calibration_stays_with_the_cohort_that_it_needs(model_folder):
    model = HamSpkModel.from_pretrained(model_folder)
    fingerprint, checksum = model.fingerprint(), model.cohort.checksum
    model.calibration = Calibration(
        fingerprint,
        "cosine",
        -2.0,
        {"score": 1.0},
        normalisation="as",
        top=5,
        cohort=checksum,
        trials=100,
        targets=50,
        speakers=10,
        audio="a",
    )
    model.save_verification(model_folder)
    assert {"verification.json", "cohort.safetensors"} < set(plan_upload(model_folder, NAME).names)
    plan = plan_upload(model_folder, NAME, cohort=False)
    assert not {"verification.json", "cohort.safetensors"} & set(plan.names)
    assert any("the published model gives scores but no decisions" in note for note in plan.notes)
    assert plan.facts.verification is None


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"No config\.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"No model\.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc" * 9), r"is not a safetensors file"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "wavlm"}'),
            r"of type 'hamspk', but .* contains a model of type 'wavlm'",
        ),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "hamspk"}'),
            r"the model does not load with the installed code",
        ),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "evaluation.json").write_text("[]"), r"evaluation\.json must contain a JSON object"),
        (
            lambda f: (f / "evaluation.json").write_text('{"lists": 5, "model": 3}'),
            r"evaluation\.json is not an evaluation",
        ),
        (
            lambda f: (f / "evaluation.json").write_text('{"lists": {"a": {"eer": "x"}}, "model": {}}'),
            r"the list 'a' has no number 'eer'",
        ),
        (lambda f: (f / "recipe.yaml").write_text("a: ["), r"recipe\.yaml cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused(model_folder, break_it, message):
    for name in ("verification.json", "cohort.safetensors"):
        (model_folder / name).unlink()
    break_it(model_folder)
    with pytest.raises(ValueError, match=message):
        plan_upload(model_folder, NAME)


@pytest.mark.slow
def test_the_code_of_an_older_version_is_renewed(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    del config["custom_pipelines"]
    # As a model fetched from the Hub and saved again by an older transformers.
    config["auto_map"] = {key: f"ann/older--{value}" for key, value in config["auto_map"].items()}
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "pipeline_hamspk.py").unlink()
    (model_folder / "geometry_hamspk.py").write_text("# of another version")
    plan = plan_upload(model_folder, NAME)
    package = Path(hf_hamspk.__file__).parent
    for name in ("pipeline_hamspk.py", "geometry_hamspk.py", "modeling_hamspk.py"):
        assert content(plan, name) == (package / name).read_text()
    sent = json.loads(content(plan, "config.json"))
    assert sent["custom_pipelines"]["speaker-verification"]["impl"].startswith("pipeline_hamspk.")
    assert sent["auto_map"]["AutoModel"] == "modeling_hamspk.HamSpkModel"
    assert [
        note
        for note in plan.notes
        if note.endswith("or different: geometry_hamspk.py, pipeline_hamspk.py, config.json")
    ]
    assert (model_folder / "geometry_hamspk.py").read_text() == "# of another version"

    assert renew_code(model_folder) == ["geometry_hamspk.py", "pipeline_hamspk.py", "config.json"]
    assert renew_code(model_folder) == []
    assert not [note for note in plan_upload(model_folder, NAME).notes if "the code of the installed package" in note]


def test_current_code_is_not_spoken_of(trained):
    assert not [note for note in plan_upload(trained[0], NAME).notes if "the code of the installed package" in note]


def test_no_folder_no_run(tmp_path, trained):
    with pytest.raises(ValueError, match="Folder not found"):
        plan_upload(tmp_path / "absent", NAME)
    with pytest.raises(ValueError, match="Run folder not found"):
        plan_upload(trained[0], NAME, tmp_path / "absent")


@pytest.mark.slow
def test_sharded_weights_go_whole(model_folder):
    from hf_hamspk import HamSpkForXVector

    model = HamSpkForXVector.from_pretrained(model_folder)
    (model_folder / "model.safetensors").unlink()
    model.save_pretrained(model_folder, max_shard_size="40KB")
    names = plan_upload(model_folder, NAME).names
    parts = [name for name in names if name.startswith("model-")]
    assert len(parts) > 1 and "model.safetensors.index.json" in names and "model.safetensors" not in names
    (model_folder / parts[0]).unlink()
    with pytest.raises(ValueError, match=parts[0]):
        plan_upload(model_folder, NAME)


def test_the_licence_file_says_what_holds_for_what(trained):
    data = [TrainingData("Corpus A", licence="CC BY-SA 4.0"), TrainingData("Corpus B")]
    text = content(plan_upload(trained[0], NAME, about=About(training_data=data)), "LICENSE")
    assert text.startswith("Weights (*.safetensors): cc-by-sa-4.0.\n")
    assert "  Corpus A: CC BY-SA 4.0\n  Corpus B: not stated\n" in text
    assert "Apache License" in text and "TERMS AND CONDITIONS" in text


def test_a_licence_file_of_the_user_is_taken(model_folder):
    (model_folder / "LICENSE").write_text("ask Ann")
    assert content(plan_upload(model_folder, NAME), "LICENSE") == "ask Ann"


def test_only_files_of_this_package_may_be_taken_away():
    assert all(
        is_managed_file(name)
        for name in EXPECTED - SENTENCES - {"README.md", "LICENSE", "config.json", "requirements.txt", HANDLER_FILE}
    )
    for name in (
        ".gitattributes",
        "app.py",
        "docs/a.md",
        "onnx/model.onnx",
        ".eval_results/other.yaml",
        "my.safetensors",
    ):
        assert not is_managed_file(name)
