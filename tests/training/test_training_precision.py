"""The precision of a run as `accelerate launch`, a configuration file, the environment and the recipe set it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hf_hamspk import HamSpkForXVector

SCRIPT = """
import sys
from hf_hamspk import Trainer

trainer = Trainer.from_recipe(sys.argv[1])
print("precision", trainer.accelerator.mixed_precision, trainer.args.mixed_precision, trainer.output_dir)
"""


@pytest.fixture
def recipe(corpus, tmp_path):
    """A function that writes a recipe with the given lines, and returns its path."""

    def write(*lines: str) -> Path:
        settings = {"train_data": str(corpus / "train.csv"), "audio_root": str(corpus / "audio"), "batch_size": 6}
        settings |= {"ecapa_channels": 16, "ecapa_output_channels": 48, "crop_seconds": 0.5, "check_audio": "none"}
        path = tmp_path / "recipe.yaml"
        path.write_text("\n".join([yaml.safe_dump(settings).strip(), "output_dir: ~/run", *lines]) + "\n")
        (tmp_path / "script.py").write_text(SCRIPT)
        return path

    return write


def launch(tmp_path: Path, words: list[str], script: bool = True):
    """Run the script, or `hamspk train`, through `accelerate launch` with these options."""
    program = [str(tmp_path / "script.py")] if script else ["-m", "hf_hamspk", "train"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words, *program, str(tmp_path / "recipe.yaml")],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path), "ACCELERATE_USE_CPU": "true"},
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["option", "configuration file", "environment"])
def test_the_launcher_sets_the_precision(recipe, tmp_path, way):
    recipe()
    words = ["--cpu"]
    if way == "option":
        words += ["--mixed_precision", "bf16"]
    elif way == "configuration file":
        settings = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1}
        settings |= {"mixed_precision": "bf16", "use_cpu": True, "debug": False}
        (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(settings))
        words = ["--config_file", str(tmp_path / "accelerate.yaml")]
    if way == "environment":
        done = subprocess.run(
            [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "recipe.yaml")],
            capture_output=True,
            text=True,
            env=os.environ | {"HOME": str(tmp_path), "ACCELERATE_USE_CPU": "1", "ACCELERATE_MIXED_PRECISION": "bf16"},
            check=False,
        )
    else:
        done = launch(tmp_path, words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"precision bf16 bf16 {tmp_path / 'run'}" in done.stdout


@pytest.mark.slow
def test_a_plain_no_in_the_recipe_contradicts_the_launcher(recipe, tmp_path):
    """YAML reads `no` as False. It means full precision, so another precision of the launcher is refused."""
    recipe("mixed_precision: no")
    done = launch(tmp_path, ["--cpu", "--mixed_precision", "bf16"], script=False)
    assert done.returncode != 0
    assert "The recipe sets mixed_precision no, but accelerate launch or ACCELERATE_MIXED_PRECISION sets bf16." in (
        done.stderr
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_recipe_keeps_its_precision_under_a_launcher_without_one(recipe, tmp_path):
    recipe("mixed_precision: bf16")
    done = launch(tmp_path, ["--cpu"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "precision bf16 bf16" in done.stdout


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_model_and_can_be_resumed_without_the_compiler(recipe, tmp_path):
    """The backend "eager" records the graph as "inductor" does, and computes it with the usual operations."""
    models = {}
    for name, runs in {"plain": [("no", 2)], "compiled": [("eager", 1), ("no", 2)]}.items():
        for backend, epochs in runs:
            path = recipe(f"epochs: {epochs}", "average_last: 1", f"output_dir: {tmp_path / name}", "warmup_epochs: 0")
            done = subprocess.run(
                [sys.executable, "-m", "hf_hamspk", "train", str(path)],
                capture_output=True,
                text=True,
                env=os.environ | {"ACCELERATE_USE_CPU": "1", "ACCELERATE_DYNAMO_BACKEND": backend.upper()},
                check=False,
            )
            assert done.returncode == 0, done.stderr
        models[name] = HamSpkForXVector.from_pretrained(tmp_path / name / "final").eval()
    plain, compiled = (model.state_dict() for model in models.values())
    assert plain.keys() == compiled.keys()
    # Adam turns rounding errors of gradients into steps, where a bias precedes a batch normalisation, for example.
    waveforms = torch.randn(4, 16000)
    embeddings = [model.embed_waveforms(list(waveforms)) for model in models.values()]
    assert torch.cosine_similarity(*embeddings).min() > 0.999
