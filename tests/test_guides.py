"""Every command and snippet of the README and of the guides is run, or at least parsed by what would run it.

Blocks of a page run in their order, in a folder that has what the page names: a tiny calibrated model in `MODEL`,
synthetic recordings, lists. What is too costly to run is in `PARSED_ONLY`, with the reason, and its words are given to
the parser of the program that it calls.
"""

import glob
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import overlaps
import pytest
import soundfile
import torch
import yaml
from tiny_models import RATE, settle, tiny_config

from hf_hamspk import HamSpkForXVector
from hf_hamspk.__main__ import COMMANDS, main, make_parser
from hf_hamspk.calibration_hamspk import Calibration
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.publishing.about import About
from hf_hamspk.training import read_recipe

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ROOT / "examples" / "guides"
PAGES = [ROOT / "README.md", *sorted(GUIDES.glob("*.md"))]
COMMAND_BLOCKS = ("bash", "console")
# Pages whose numbers were measured on corpora that are not here: their commands are parsed, and nothing of them is run.
MEASURED = {"results.md", "speed.md"}
# Beginning of a command -> why it is parsed and not run.
PARSED_ONLY = {
    "python3 -m venv": "installs: .ci/run does",
    "pip install": "installs",
    "pip download": "the network",
    "hamspk demo": "minutes: tests/cli/test_cli_train_demo.py",
    "accelerate launch": "real corpora, several GPUs",
    "ACCELERATE_USE_CPU=true torchrun": "several processes: tests/training, tests/embedding",
    "hamspk prepare vox2_dev_aac_partaa": "VoxCeleb2: tests/shards",
    "hamspk prepare --index hf:": "the Hub: tests/shards",
    "hamspk train my_recipe.yaml --train_data vox2/": "VoxCeleb2: tests/training",
    "hamspk train my_recipe.yaml --backbone": "an encoder of the Hub: tests/training/test_training_lora.py",
    "hamspk study": "hours: tests/study",
    "hamspk train examples/recipes/": "real speech: tests/training",
    "hamspk calibrate campplus/ dev-o.txt": "real speech: tests/cli",
    "hamspk calibrate runs/campplus_ham/final": "the model of such a recipe: tests/cli",
    "hamspk evaluate calibrated/": "real speech: tests/cli",
    "hamspk evaluate runs/campplus_ham/final": "the model of such a recipe: tests/cli",
    "hamspk hierarchy": "a trained model: tests/cli/test_cli_hierarchy.py",
    "python examples/studies/radii.py": "a trained model: tests/examples/test_examples_radii.py",
    "python examples/studies/norm_calibration.py": "a finished study: tests/examples/test_examples_norms.py",
    "hamspk doctor": "looks at, and changes, the environment: tests/cli/test_cli_doctor.py",
    "hamspk push MODEL you/name --public": "the Hub: tests/publishing",
    "hamspk push runs/mine/final": "the Hub: tests/publishing",
    "hamspk convert": "checkpoints of other projects: tests/conversion",
    "python examples/space/app.py": "serves until it is stopped: tests/examples",
    "tensorboard": "serves until it is stopped",
    "pytest": "these tests",
}
# Blocks that import one of these are left out if it is not installed; tests/losses then skips them with that reason.
OTHER_LIBRARIES = ("speechbrain", "pytorch_metric_learning", "datatrove", "sentence_transformers")
PROGRAMS = {"hamspk", "pip", "pytest", "accelerate", "python", "python3", "torchrun", "tensorboard"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(page.name, language, text) for language, text in found if not languages or language in languages]


def steps(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, and what each prints as far as the page shows it.

    In a bash block each line is a command, or several with `&&` between; in a console block a command begins with `$`,
    and the lines up to the next one are its output.
    """
    text = block.text.replace("\\\n", " ").replace(".venv/bin/", "")
    if block.language == "console":
        found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
        return [(command.strip(), output) for command, output in found]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(command.strip(), "") for line in lines for command in line.split("&&")]


def benchmarks(page: Path) -> list[str]:
    """Those that a table of measured speed gives as a name and options."""
    known = {path.stem.removeprefix("benchmark_") for path in (ROOT / "tests" / "benchmarks").glob("benchmark_*.py")}
    spans = re.findall(r"`([^`]+)`", page.read_text(encoding="utf-8"))
    return [span for span in spans if len(span.split()) > 1 and span.split()[0] in known]


ALL_COMMANDS = [
    pytest.param(command, id=f"{page.name}:{command[:60]}")
    for page in PAGES
    for block in blocks(page, *COMMAND_BLOCKS)
    for command, _ in steps(block)
]


def is_parsed_only(page: str, command: str) -> bool:
    return page in MEASURED or any(command.startswith(beginning) for beginning in PARSED_ONLY)


# -- parsed ----------------------------------------------------------------------------------------------------------


def hamspk_accepts(words: list[str]) -> None:
    """Raises, or exits with 2, where the command line does not take these words."""
    if words[0] == "train":
        if Path(words[1]).is_file() or words[1].startswith("-"):
            read_recipe(words[1:])
        else:  # A recipe of the reader's own.
            read_recipe(["--train_data=x", *words[2:]])
        return
    _, rest = make_parser(words[0]).parse_known_args(words)
    assert not rest, f"unknown words: {rest}"


def accelerate_accepts(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    arguments = launch_command_parser().parse_args(words[1:])
    script_accepts(arguments.training_script, arguments.training_script_args)


def torchrun_accepts(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(words)
    script_accepts(arguments.training_script, arguments.training_script_args)


def script_accepts(script: str, words: list[str]) -> None:
    if script == "hf_hamspk":
        hamspk_accepts(words)
    elif script == "examples/train.py":
        hamspk_accepts(["train", *words])
    else:
        assert (ROOT / script).is_file(), script


def pip_accepts(words: list[str]) -> None:
    """The extras that are named are those of the package, and the versions are those that it asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[0] in ("install", "download")
    extras = {name for word in words for found in re.findall(r"\[([\w,]+)\]", word) for name in found.split(",")}
    assert extras <= set(project["optional-dependencies"])
    for word in words:
        if re.match(r"torch(audio)?[>=<]", word):
            assert word in project["dependencies"]


def accepts(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True)]
    while "=" in words[0]:
        words.pop(0)
    program, rest = words[0], words[1:]
    assert program in PROGRAMS, f"{program}: no known program"
    if program == "hamspk":
        if rest != ["--version"]:
            hamspk_accepts(rest)
    elif program == "accelerate":
        accelerate_accepts(rest)
    elif program == "torchrun":
        torchrun_accepts(rest)
    elif program == "pip":
        pip_accepts(rest)
    elif program == "python" and rest[0].endswith(".py"):
        script_accepts(rest[0], rest[1:])


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_is_one_that_its_program_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    accepts(command)


def test_every_reason_not_to_run_a_command_is_needed():
    shown = [parameter.values[0] for parameter in ALL_COMMANDS]
    unused = [one for one in PARSED_ONLY if not any(str(command).startswith(one) for command in shown)]
    assert not unused


@pytest.mark.slow
def test_benchmarks_take_the_options_of_the_table():
    """Each benchmark is started with its options in one process, and stopped once it has parsed them."""
    shown = benchmarks(GUIDES / "speed.md")
    assert len(shown) > 10
    code = """
import argparse, runpy, sys
class Parsed(Exception): pass
parse = argparse.ArgumentParser.parse_args
def stop(*arguments): raise Parsed(parse(*arguments))
argparse.ArgumentParser.parse_args = stop
sys.path.insert(0, sys.argv[1])
for line in sys.stdin.read().splitlines():
    name, *sys.argv[1:] = line.split()
    try: runpy.run_path(f"{sys.path[0]}/benchmark_{name}.py", run_name="__main__")
    except Parsed: continue
    raise SystemExit(f"{line}: parsed nothing")
"""
    folder = ROOT / "tests" / "benchmarks"
    words = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(words, input="\n".join(shown), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_yaml_of_the_pages_is_read(tmp_path):
    found = [block for page in PAGES for block in blocks(page, "yaml")]
    assert len(found) >= 3
    for number, block in enumerate(found):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.text)
        if "train_data" in yaml.safe_load(block.text):
            read_recipe([str(file)])
        else:
            assert About.read(file).training_data


def test_json_of_the_pages_is_a_request(tmp_path):
    for page in PAGES:
        for block in blocks(page, "json"):
            assert json.loads(block.text).keys() <= {"inputs", "parameters"}


# Programs of clusters, which only write down their words; those that start other programs run them as well.
STUBS = {
    "hamspk": "",
    "pip": "",
    "ray": "",
    "sbatch": "echo Submitted batch job 1",
    "srun": 'SLURM_PROCID=3 SLURM_NTASKS=8 "$@"',
    "hf": 'for i in "$@"; do if [ "$1" = bash ]; then "$@"; fi; shift; done',
}


def write_stubs(folder: Path) -> Path:
    """Write the stubs; their words are in `words`, one call a line."""
    for name, rest in STUBS.items():
        path = folder / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> {folder}/words\necho >> {folder}/words\n{rest}\n')
        path.chmod(0o755)
    return folder


def hf_accepts(words: list[str]) -> None:
    from click import Context
    from huggingface_hub.cli.hf import app

    command, left = app, list(words)
    while hasattr(command, "get_command"):
        command = command.get_command(Context(command), left.pop(0))
    command.make_context("hf", left)


def ray_accepts(words: list[str]) -> None:
    job = pytest.importorskip("ray.dashboard.modules.job.cli", reason="the extra `ray` is not installed")
    context = job.submit.make_context("submit", words[2:])
    script = list(context.params["entrypoint"])
    names: dict = {"__name__": "script"}
    exec(compile((ROOT / script[1]).read_text(), script[1], "exec"), names)
    names["make_parser"]().parse_args(script[2:])


@pytest.mark.slow
def test_commands_of_clusters_are_accepted(tmp_path):
    """Blocks of `sh` are run with stubs of `hamspk`, `srun`, `hf` and the like, and the words are given to parsers."""
    folder = write_stubs(tmp_path)
    found = [block.text for page in PAGES for block in blocks(page, "sh")]
    for text in found:
        environment = {"PATH": f"{folder}:/usr/bin:/bin"}
        subprocess.run(["bash", "-eu"], input=text, text=True, env=environment, cwd=tmp_path, check=True)
    calls = [line.split("\0")[:-1] for line in (folder / "words").read_text().splitlines()]
    assert {words[0] for words in calls} == {"hamspk", "pip", "ray", "srun", "hf"}
    checks = {"hamspk": hamspk_accepts, "hf": hf_accepts, "ray": ray_accepts}
    for program, *words in calls:
        if program in checks:
            checks[program](words)
    ranks = [words[words.index("--rank") + 1] for words in calls if words[0] == "hamspk" and "--rank" in words]
    assert ranks == ["3", "3", "0", "1", "2", "3"]


@pytest.mark.slow
def test_python_of_clusters_submits_jobs(tmp_path, monkeypatch):
    """Blocks of `py` are run with a stub of `sbatch`."""
    pytest.importorskip("datatrove", reason="the extra `datatrove` is not installed")
    folder = write_stubs(tmp_path)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for block in blocks(page, "py"):
            exec(compile(block.text, page.name, "exec"), {"__name__": page.name})
    calls = [line.split("\0")[0] for line in (folder / "words").read_text().splitlines()]
    # Two jobs, each followed by one that adds up the statistics.
    assert calls == ["sbatch"] * 4
    assert (tmp_path / "logs" / "embed" / "launch_script.slurm").is_file()


# -- run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A folder with everything that the pages name."""
    root = tmp_path_factory.mktemp("pages")
    for seed, name in enumerate(("MODEL", "OTHER_MODEL")):
        torch.manual_seed(seed)
        model = settle(HamSpkForXVector(tiny_config()))
        model.calibration = Calibration(model.fingerprint(), "cosine", -90.0, {"score": 100.0})
        model.save_pretrained(root / name)
    shutil.copytree(root / "MODEL", root / "hamspk-demo" / "run" / "final")
    shutil.copytree(root / "MODEL", root / "campplus")
    overlaps.store(root / "campplus", found=False)
    for speaker, name in enumerate(PEOPLE):
        for utterance in range(3):
            say(root / "people" / name / f"{utterance + 1}.wav", speaker, utterance)
    for number, name in enumerate(RECORDINGS):
        say(root / name, number % 3, 10 + number)
    say(root / "call.wav", 1, 20, 6.0)
    lines = [f"SPEAKER call 1 {start} 3 <NA> <NA> {name} <NA> <NA>\n" for start, name in ((0, "A"), (3, "B"))]
    (root / "call.rttm").write_text("".join(lines))
    rows = []
    for speaker in range(100, 108):
        for utterance in range(2):
            say(root / "audio" / f"s{speaker}" / f"{utterance}.wav", speaker, utterance, 2.0)
            rows.append(f"s{speaker}/{utterance}.wav,s{speaker}\n")
    (root / "train.csv").write_text("path,speaker_id\n" + "".join(rows))
    turns = [f"s100/{number}.wav;turn{number};0;2\n" for number in range(2)]
    (root / "turns.csv").write_text("path;speaker_id;start;stop\n" + "".join(turns))
    files = [f"{name}/{number}.wav" for name in PEOPLE for number in range(1, 4)]
    lines = [f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n" for a, b in combinations(files, 2)]
    for name in ("pairs.txt", "trials.txt"):
        (root / name).write_text("".join(lines))
    (root / "my_recipe.yaml").write_text(yaml.safe_dump(TINY_RECIPE))
    (root / "hf_hamspk").symlink_to(ROOT / "hf_hamspk")
    return root


PEOPLE = ("anna", "ben", "carl", "dora", "erik", "fay", "gina", "hugo", "ines", "jan")
RECORDINGS = (
    *("a.wav", "b.wav", "visitor.wav", "unknown1.wav", "unknown2.wav", "enrolment1.wav", "enrolment2.wav", "test.wav"),
    *(f"hamspk-demo/corpus/test/syn00120/{name}.flac" for name in ("s00/u0000", "s02/u0008")),
)
TINY_RECIPE = {
    **{"train_data": "train.csv", "audio_root": "audio/", "dev_trials": "trials.txt", "trial_root": "people/"},
    **{"output_dir": "runs/mine", "ecapa_channels": 16, "ecapa_output_channels": 48, "ecapa_bottleneck": 8},
    **{"pooling_channels": 8, "embedding_size": 24, "batch_size": 8, "epochs": 1, "crop_seconds": 0.5, "cpu": True},
}


def say(file: Path, speaker: int, utterance: int, seconds: float = 2.5) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, make_speech(speaker, utterance, seconds), RATE)


def expand(word: str) -> list[str]:
    """What a shell makes of a word."""
    return sorted(glob.glob(word)) if "*" in word else [word]


def assert_printed(shown: str, printed: str, masked: bool) -> None:
    """The output that a page shows is what was printed; masked, without what depends on the model."""
    texts = []
    for text in (shown, printed):
        if masked:
            text = re.sub("same speaker|different speakers", "DECISION", re.sub(r"-?\d+\.\d+", "#", text))
        texts.append([line.rstrip() for line in text.strip().splitlines()])
    assert texts[0] == texts[1]


def run_page(page: Path, capsys) -> None:
    """Run the blocks of a page in their order; output that the page shows must be printed.

    YAML that begins with a file's name is written to that file.
    """
    for block in blocks(page):
        if block.language == "python":
            if any(f"from {name}" in block.text and find_spec(name) is None for name in OTHER_LIBRARIES):
                continue
            exec(compile(block.text, page.name, "exec"), {"__name__": page.name})
            printed = capsys.readouterr().out
            shown = re.search(r"(?:^# .*\n)+\Z", block.text, re.MULTILINE)
            if shown is not None:
                assert_printed(
                    re.sub("^# ", "", shown[0], flags=re.MULTILINE), printed, "from_pretrained" in block.text
                )
        elif block.language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", block.text)):
            Path(name[1]).write_text(block.text)
        elif block.language in COMMAND_BLOCKS:
            for command, shown in steps(block):
                if not is_parsed_only(page.name, command):
                    words = [one for word in shlex.split(command, comments=True) for one in expand(word)]
                    code = run_hamspk(words)
                    printed, problems = capsys.readouterr()
                    assert code == 0, f"{command}: {problems}"
                    if shown:
                        assert_printed(shown, printed, masked=True)


def run_hamspk(words: list[str]) -> int | str | None:
    assert words[0] == "hamspk", f"{words[0]} is not run by this test: say why in PARSED_ONLY"
    try:
        return main(words[1:])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def workspace(template, tmp_path, monkeypatch) -> Path:
    """A copy of the template, as the working directory."""
    folder = tmp_path / "work"
    shutil.copytree(template, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_the_readme_runs(workspace, capsys):
    run_page(ROOT / "README.md", capsys)
    assert (workspace / "runs" / "people" / "final" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.name)
def test_a_guide_runs(page, workspace, capsys):
    run_page(page, capsys)


# -- what the pages say ----------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in [*re.findall(r"\]\(([^)#]+)", text), *re.findall(r'src="([^"]+)"', text)]:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_every_guide_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/guides/{page.name}" in text for page in GUIDES.glob("*.md"))


def test_every_command_is_in_the_table_of_files():
    rows = set(re.findall(r"^\| `([a-z]+)", (GUIDES / "files.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert rows == set(COMMANDS)
