"""The script for Hugging Face Jobs and the notebook: their headers, and what they do from beginning to end."""

import importlib.util
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
from datasets import Dataset
from tiny_models import save_model

from hf_hamspk import HamSpkForXVector
from hf_hamspk.data.synthetic import make_corpus

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "finetune.ipynb"
SCRIPT = ROOT / "examples" / "finetune_job.py"


def header() -> dict:
    """The TOML of the block that PEP 723 describes."""
    found = re.search(r"(?m)^# /// script$\s((?:^#(?:| .*)$\s)+)^# ///$", SCRIPT.read_text(encoding="utf-8"))
    assert found is not None
    return tomllib.loads("".join(line[2:] + "\n" for line in found[1].splitlines()))


def script():
    spec = importlib.util.spec_from_file_location("finetune_job", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_states_what_it_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = header()
    assert stated["requires-python"] == project["requires-python"]
    own, *others = stated["dependencies"]
    name, extra = re.fullmatch(r"(\w+)\[(\w+)\]", own).groups()
    assert name == project["name"] and extra in project["optional-dependencies"]
    assert set(others) <= set(project["optional-dependencies"]["dev"])


def test_the_table_of_the_job_is_one_that_the_hub_reads():
    from huggingface_hub import SpaceHardware

    table = header()["tool"]["hf-jobs"]
    assert table["flavor"] in {one.value for one in SpaceHardware}
    assert table["secrets"] == ["HF_TOKEN"]
    # The reader of `hf jobs uv run`, which has no public name.
    reader = pytest.importorskip("huggingface_hub.cli._uv_script_header")
    read = reader.parse_uv_script_header(SCRIPT.read_text(encoding="utf-8"))
    assert {key: getattr(read, key) for key in table} == table


@pytest.mark.slow
def test_the_script_fine_tunes_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_corpus("corpus", 4, 4, 0, (2.1, 2.3))
    files = sorted(Path("corpus/train").rglob("*.flac"))
    rows = {"path": [str(file) for file in files], "speaker": [file.parts[2] for file in files]}
    Dataset.from_dict(rows).save_to_disk("voices")
    save_model(tmp_path / "base")
    for data in ("corpus/train", "voices"):
        words = f"--data {data} --model base --epochs 1 --batch-size 4 --output-dir run-{data[0]}"
        script().main(words.split())
        assert f"model: run-{data[0]}/final" in capsys.readouterr().out
        assert HamSpkForXVector.from_pretrained(f"run-{data[0]}/final").config.num_labels == 2


def outputs(cells: list, kind: str) -> list[str]:
    """All outputs of a kind, in their order."""
    found = [one.get("data", {}).get(kind) for cell in cells for one in cell.get("outputs", [])]
    return ["".join(one) for one in found if one is not None]


def printed(cells: list) -> str:
    streams = [one for cell in cells for one in cell.get("outputs", []) if one["output_type"] == "stream"]
    return "".join("".join(one["text"]) for one in streams)


def check_notebook(cells: list) -> None:
    """Check what a reader should find below the cells."""
    assert all(one["output_type"] != "error" for cell in cells for one in cell["outputs"])
    assert len(outputs(cells, "image/png")) == 4
    text = printed(cells)
    assert re.search(r"epoch 32: dev EER \d+\.\d+ %", text)
    assert len(re.findall(r"log-likelihood ratio -?\d+\.\d", text)) == 2
    assert re.search(r"EER \d+\.\d % \(95 % interval \d+\.\d to \d+\.\d %\) in 1176 pairs", text)
    card = outputs(cells[-1:], "text/markdown")[0]
    assert "# Voices of our people" in card and "synthetic voices" in card


def test_the_notebook_is_shown_with_its_outputs():
    content = NOTEBOOK.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    check_notebook(cells)
    assert "/home/" not in content and "/tmp/" not in content and str(ROOT) not in content
    assert len(content) < 400_000


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    check_notebook([cell for cell in notebook.cells if cell.cell_type == "code"])
    assert (tmp_path / "card.md").read_text(encoding="utf-8").startswith("---")
