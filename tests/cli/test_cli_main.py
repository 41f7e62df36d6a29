"""The command line as a whole: help, version, errors, and what importing the package does."""

import subprocess
import sys
import textwrap

import pytest

from hf_hamspk import __version__
from hf_hamspk.__main__ import COMMANDS


def python(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, *words, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_lists_all_commands(hamspk):
    code, out, _ = hamspk("--help")
    assert code == 0
    for name, summary in COMMANDS.items():
        assert name in out
        assert summary[:20] in out
    names = "train prepare evaluate calibrate embed verify enrol identify sweep push card convert export doctor demo"
    assert {*names.split(), "study", "hierarchy"} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(hamspk, command):
    code, out, _ = hamspk(command, "--help")
    assert code == 0
    assert out.startswith(f"usage: hamspk {command}")


def test_version(hamspk):
    assert hamspk("--version")[:2] == (0, f"hamspk {__version__}\n")


def test_help_of_train_names_accelerate(hamspk):
    out = hamspk("train", "--help")[1]
    assert "accelerate launch examples/train.py" in out
    assert "accelerate launch -m hf_hamspk train recipe.yaml" in out


def test_unknown_command_and_option_are_usage_errors(hamspk):
    code, _, err = hamspk("verfy")
    assert code == 2
    assert "invalid choice: 'verfy'" in err
    code, _, err = hamspk("demo", "--fast")
    assert code == 2
    assert "unrecognized arguments: --fast" in err
    code, _, err = hamspk()
    assert code == 2
    assert "COMMAND" in err


def test_traceback_is_shown_when_asked_for(hamspk):
    for words in (["--traceback", "train", "nowhere.yaml"], ["train", "nowhere.yaml", "--traceback"]):
        with pytest.raises(ValueError, match=r"Recipe not found: nowhere\.yaml"):
            hamspk(*words)


def test_interruption_is_no_traceback(hamspk, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_hamspk.cli.doctor.gather", interrupted)
    code, _, err = hamspk("doctor")
    assert (code, err) == (130, "hamspk: interrupted\n")


@pytest.mark.slow
def test_importing_registers_with_the_auto_classes():
    out = python(
        """
        import hf_hamspk
        from transformers import AutoConfig, AutoModel
        config = AutoConfig.for_model("hamspk", ecapa_channels=16, ecapa_output_channels=48, pooling_channels=16)
        print(type(config).__name__, type(AutoModel.from_config(config)).__name__)
        """
    )
    assert out.split() == ["HamSpkConfig", "HamSpkModel"]


def test_unknown_name_of_the_package_is_an_attribute_error():
    import hf_hamspk

    with pytest.raises(AttributeError, match="has no attribute 'HamSpkConfg'"):
        hf_hamspk.HamSpkConfg  # noqa: B018
