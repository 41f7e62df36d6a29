"""Every command of `examples/voxceleb.md` is one that the command line takes, and its numbers are the package's."""

import re
import shlex
from pathlib import Path

import pytest

from hf_hamspk.__main__ import make_parser
from hf_hamspk.evaluation.trials import OFFICIAL_LISTS
from hf_hamspk.training import read_recipe

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "examples" / "voxceleb.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line and not line.startswith("#")]


def hamspk_words(command: str) -> list[str]:
    """What follows `hamspk`, or `-m hf_hamspk` behind a launcher."""
    words = shlex.split(command)
    return words[1:] if words[0] == "hamspk" else words[words.index("hf_hamspk") + 1 :]


def test_the_page_has_commands_of_every_step():
    assert {hamspk_words(command)[0] for command in COMMANDS} == {"prepare", "train", "evaluate"}
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = hamspk_words(command)
    if words[0] == "train":
        recipe = read_recipe(words[1:])
        if "ecapa" in words[1]:
            assert recipe.data.augment_pairs and recipe.data.augment_probability == 1.0
        return
    arguments, rest = make_parser(words[0]).parse_known_args(words)
    assert not rest
    if words[0] == "evaluate" and arguments.official:
        assert len(arguments.official) == len(arguments.trials)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("accelerate")])
def test_the_launcher_knows_its_arguments(command):
    from accelerate.commands.launch import launch_command_parser

    words = shlex.split(command)
    assert words[:2] == ["accelerate", "launch"]
    arguments = launch_command_parser().parse_args(words[2:])
    assert arguments.module and arguments.training_script == "hf_hamspk"


def test_the_sizes_on_the_page_are_those_that_are_checked():
    for official in OFFICIAL_LISTS.values():
        assert f"{official.trials:,}" in PAGE, official.title
