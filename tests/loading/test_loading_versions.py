"""A wrong version of transformers is said in one sentence: by the package, by its commands, and by code of the Hub."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_hamspk
from hf_hamspk.cli.doctor import Facts, diagnose
from hf_hamspk.loading import registering
from hf_hamspk.loading.registering import explain_import_error, wrong_transformers

PACKAGE = Path(hf_hamspk.__file__).parent
NEEDED = "transformers>=5.18,<6"
SENTENCE = (
    "hf_hamspk needs transformers 5.18 or newer and below 6, but 4.57.6 is installed. Run `pip install "
    "'transformers>=5.18,<6'`."
)


@pytest.mark.parametrize("version", ["5.18.0", "5.18", "5.19.0.dev0", "5.24.0", "5.100.1"])
def test_versions_that_work(version):
    assert wrong_transformers(version) is None


@pytest.mark.parametrize("version", ["4.57.6", "5.17.9", "5.2.0", "6.0.0", "6.0.0.dev0", "10.1", "", "unknown"])
def test_versions_that_do_not_work(version):
    assert wrong_transformers(version) == SENTENCE.replace("4.57.6", version)


def test_the_versions_are_those_of_the_project():
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"{NEEDED}"' in project
    assert f"'{NEEDED}'" in (PACKAGE / "configuration_hamspk.py").read_text(encoding="utf-8")
    assert NEEDED in SENTENCE and "but it is not installed" in str(wrong_transformers(None))


def test_an_import_error_is_explained_by_the_version(monkeypatch):
    def fail() -> None:
        with explain_import_error():
            raise ImportError("cannot import name 'PreTrainedConfig' from 'transformers'")

    monkeypatch.setattr(registering, "installed_transformers", lambda: "4.57.6")
    with pytest.raises(ImportError) as error:
        fail()
    assert str(error.value) == SENTENCE
    monkeypatch.setattr(registering, "installed_transformers", lambda: "5.18.0")
    with pytest.raises(ImportError, match="cannot import name 'PreTrainedConfig'"):
        fail()


def test_code_of_the_hub_says_it(monkeypatch):
    """The first file that the Auto classes load; `transformers.initialization` is of version 5."""
    monkeypatch.setitem(sys.modules, "transformers.initialization", None)
    spec = importlib.util.spec_from_file_location("configuration_copy", PACKAGE / "configuration_hamspk.py")
    assert spec is not None and spec.loader is not None
    with pytest.raises(
        ImportError, match=re.escape(f"Unsupported version of transformers. Run `pip install '{NEEDED}'`.")
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_doctor_says_it():
    versions: dict[str, str | None] = dict.fromkeys(("torch", "torchaudio", "datasets", "accelerate", "soundfile"), "1")
    facts = Facts(versions | {"transformers": "4.57.6"}, "CPU", "CPU", (), {})
    assert diagnose(facts) == [SENTENCE]


@pytest.mark.slow
def test_a_command_says_it(tmp_path):
    """With a transformers that has neither the classes nor the version."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("__version__ = '4.57.6'\n")
    about = tmp_path / "transformers-4.57.6.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.6\n")
    for name in ("a.wav", "b.wav", "config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    path = os.pathsep.join((str(tmp_path), str(PACKAGE.parent)))
    command = [sys.executable, "-m", "hf_hamspk", "verify", ".", "a.wav", "b.wav"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"hamspk: error: {SENTENCE}\n")
