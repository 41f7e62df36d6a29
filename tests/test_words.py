"""Words and code say the same: what the README shows runs, and what it names is there."""

import re
from pathlib import Path

import pytest
import soundfile
from tiny_models import tiny_config

from hf_hamspk import HamSpkForXVector
from hf_hamspk.__main__ import COMMANDS
from hf_hamspk.calibration_hamspk import Calibration
from hf_hamspk.configuration_hamspk import HEAD_PARTS
from hf_hamspk.data.synthetic import make_speech

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_verification_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    model = HamSpkForXVector(tiny_config("ecapa"))
    model.calibration = Calibration(model.fingerprint(), "cosine", -9.0, {"score": 10.0})
    model.save_pretrained(tmp_path / "hamspk-demo" / "run" / "final")
    for speaker, name in enumerate(("enrolment.wav", "test.wav")):
        soundfile.write(tmp_path / name, make_speech(speaker, 1, 2.5), 16000)
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert re.search(
        r"'decision': '(same speaker|different speakers)', 'operating_point': 'balanced'", capsys.readouterr().out
    )
    exec(compile(blocks("python")[1], "README.md", "exec"), {})
    assert re.match(r"(same speaker|different speakers) -?\d+\.\d+ balanced \[", capsys.readouterr().out)


@pytest.mark.slow
def test_metrics_of_the_readme_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(blocks("python")[2], "README.md", "exec"), {})
    assert "'eer': 0.0" in capsys.readouterr().out
    assert len(blocks("python")) == 3


def test_commands_of_the_readme_exist():
    named = set(re.findall(r"^(?:\.venv/bin/)?hamspk ([a-z]+)", "\n".join(blocks("bash")), re.MULTILINE))
    assert named and named <= set(COMMANDS)


def test_files_that_the_readme_names_exist():
    named = set(re.findall(r"\b(?:examples|hf_hamspk|tests)/[\w/]+\.(?:py|yaml)", README))
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name


def test_every_head_is_in_the_readme():
    for name in [*HEAD_PARTS, "joint"]:
        assert f"`{name}`" in README, name


def test_nothing_is_left_to_fill_in():
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        assert not re.search(r"PLACEHOLDER|TODO|FIXME", file.read_text(encoding="utf-8")), file.name
