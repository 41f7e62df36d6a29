"""`examples/embed_with_ray.py`: the embeddings of the model, on a Ray cluster of this machine."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from many_ranks import RATE, tiny
from tiny_models import save_model

from hf_hamspk.data.audio import read_utterance
from hf_hamspk.loading.models import load_model

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "embed_with_ray.py"


@pytest.mark.slow
def test_the_rows_are_the_embeddings_of_the_model(tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    tiny(tmp_path / "wav", 60, 0.3)
    save_model(tmp_path / "model")
    command = [sys.executable, SCRIPT, tmp_path / "model", tmp_path / "wav", "--output", tmp_path / "out"]
    done = subprocess.run([*command, "--batch-files", "16"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert sorted(rows) == sorted(str(path) for path in (tmp_path / "wav").rglob("*.wav"))
    model = load_model(tmp_path / "model", "cpu")
    for name, row in rows.items():
        if name.endswith("00050.wav"):
            assert row["embedding"] == [] and row["reason"].startswith("cannot be decoded")
            continue
        expected = model.embed([read_utterance(name).waveform], RATE)[0].numpy()
        np.testing.assert_allclose(row["embedding"], expected, rtol=1e-4, atol=1e-5)
        assert row["seconds"] == 0.3
