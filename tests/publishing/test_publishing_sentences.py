"""A published folder in sentence-transformers, in a process that cannot see this package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from card_recordings import voices
from strangers import without
from tiny_models import RATE, save_model

from hf_hamspk import HamSpkModel
from hf_hamspk.publishing.contents import plan_upload, write_plan
from hf_hamspk.publishing.sentences import MODULE_FILE, MODULES_FILE, SETTINGS_FILE

STRANGER = (
    without("hf_hamspk")
    + """
import sys
from pathlib import Path
import numpy, soundfile, torch
from sentence_transformers import SentenceTransformer

torch.set_num_threads(1)
published, saved = sys.argv[1:]
paths = ["a.wav", "b.wav", "c.flac"]
model = SentenceTransformer(published, trust_remote_code=True, device="cpu")
found = {"paths": model.encode(paths, batch_size=2)}
waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
found["arrays"] = model.encode(waves, processing_kwargs={"audio": {"sampling_rate": 16000}})
found["one"] = model.encode(Path("a.wav"))
rates = [(waves[0], 16000), (waves[1][::2], 8000)]
found["rates"] = model.encode([{"array": wave, "sampling_rate": rate} for wave, rate in rates])
found["similarity"] = model.similarity(found["paths"], found["paths"]).numpy()
found["dimension"] = model.get_embedding_dimension()
for name, call in {
    "missing": lambda: model.encode([Path("a.wav"), Path("absent.wav")]),
    "text": lambda: model.encode(["The weather is lovely."]),
    "training": lambda: model.train()(model.preprocess(paths)),
    "onnx": lambda: SentenceTransformer(published, trust_remote_code=True, backend="onnx"),
}.items():
    try:
        call()
    except (ValueError, RuntimeError) as error:
        found[name] = str(error)
model.save_pretrained(saved)
found["again"] = SentenceTransformer(saved, trust_remote_code=True, device="cpu").encode(paths)
numpy.savez("found.npz", **found)
assert not [name for name in sys.modules if name.split(".")[0] == "hf_hamspk"]
"""
)


@pytest.mark.slow
def test_encode_gives_the_embeddings_of_the_model(tmp_path):
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "published"
    write_plan(plan_upload(save_model(tmp_path / "final"), "tester/tiny"), folder)
    waves = [*voices(), voices()[0][: RATE // 2]]
    files = [tmp_path / name for name in ("a.wav", "b.wav", "c.flac")]
    for path, wave in zip(files, waves, strict=True):
        soundfile.write(path, wave, RATE, subtype="FLOAT" if path.suffix == ".wav" else None)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "saved")],
        cwd=tmp_path,
        env=kept | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    model = HamSpkModel.from_pretrained(folder)
    expected = model.embed(files).numpy()
    for name in ("paths", "arrays", "again"):
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["one"], expected[0], rtol=1e-6, atol=1e-6)
    halved = {"array": soundfile.read(files[1], dtype="float32")[0][::2], "sampling_rate": 8000}
    np.testing.assert_allclose(found["rates"], model.embed([files[0], halved]).numpy(), rtol=1e-6, atol=1e-6)
    scores = model.score_matrix(torch.from_numpy(expected), torch.from_numpy(expected)).numpy()
    np.testing.assert_allclose(found["similarity"], scores, atol=1e-6)
    assert found["dimension"] == model.config.embedding_size
    assert "absent.wav" in str(found["missing"]) and "text" in str(found["text"])
    assert "Fine-tune it with the Trainer of hf_hamspk" in str(found["training"])
    assert "Expected backend='torch', got 'onnx'" in str(found["onnx"])
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {MODULE_FILE, MODULES_FILE, SETTINGS_FILE, "modeling_hamspk.py", "model.safetensors"} <= names


def test_the_versions_that_the_model_needs_are_stated(trained):
    plan = {file.name: file for file in plan_upload(trained[0], "tester/tiny").files}
    settings = json.loads(plan[SETTINGS_FILE].read())
    assert settings["similarity_fn_name"] == "cosine"
    assert set(settings["requirements"]) == {"transformers", "soundfile"}
    assert settings["requirements"]["transformers"].count("5.18") == 1
    (module,) = json.loads(plan[MODULES_FILE].read())
    assert module["type"] == "sentence_transformers_module.RecordingEmbedder" and module["path"] == ""
