"""Recipes: the command line wins, what is unknown or out of range is refused by message."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_models import tiny_config

from hf_hamspk.training import TrainingArguments, read_recipe
from hf_hamspk.training.building import make_accelerator
from hf_hamspk.training.models import arguments_of, build_config

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").rglob("*.yaml"))


def write(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text(text)
    return str(folder / "recipe.yaml")


def test_command_line_wins_over_recipe(tmp_path):
    recipe = read_recipe(
        [write(tmp_path, "train_data: a.csv\nmargin: 0.1\nepochs: 7\nspeed_factors: [1.0, 0.9]\n"), "--epochs", "3"]
    )
    assert recipe.training.epochs == 3
    assert recipe.data.speed_factors == [1.0, 0.9]
    assert recipe.config_fields() == {"margin": 0.1}


def test_written_recipe_reads_back(tmp_path):
    recipe = read_recipe(["--train_data", "a.csv", "--head", "am", "--margin", "0.3", "--resume", "false"])
    path = write(tmp_path, yaml.safe_dump(recipe.as_dict()))
    assert read_recipe([path]) == recipe


def test_a_channel_and_a_range_of_levels_read_back(tmp_path):
    """The number of a channel stays a number, and levels are negative words of a command line."""
    words = ["--train_data", "a.csv", "--channel", "2", "--level_range_db", "-70", "-20"]
    recipe = read_recipe(words)
    assert (recipe.data.channel, recipe.data.level_range_db) == (2, [-70.0, -20.0])
    assert read_recipe([write(tmp_path, yaml.safe_dump(recipe.as_dict()))]) == recipe
    assert read_recipe([write(tmp_path, "train_data: a.csv\nchannel: left\n")]).data.channel == "left"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_recipes_are_valid(path):
    assert read_recipe([str(path)]).training.epochs > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--warmup_epochs", "nan"], "warmup_epochs must be between 0 and 1000000, got nan."),
        (["--crop_seconds", "nan"], "crop_seconds must be between 0.1 and 60, got nan."),
        (
            ["--head", "am", "aam"],
            "Expected --key value, got the additional words aam. Only list arguments take several values.",
        ),
        (["recipe.yaml"], "The recipe must be the first argument, but recipe.yaml comes later."),
        (["--marginn", "0.2"], "the command line: unknown argument 'marginn'. Did you mean 'margin'?"),
        (["--margin", "-1"], "margin must be at least 0 and below 3, got -1.0"),
        (["--margin", "wide"], "argument --margin: invalid float value: 'wide'"),
        (["--head", "hamm"], "argument --head: invalid choice: 'hamm'"),
        (["--curvature", "0.5"], "The released projection needs curvature > 1, got 0.5"),
        (["--epochs", "0"], "epochs must be between 1 and 1000000, got 0."),
        (["--learning_rate", "0"], "learning_rate must be between 1e-12 and 1000000.0, got 0.0."),
        (["--crop_seconds", "0.01"], "crop_seconds must be between 0.1 and 60, got 0.01."),
        (["--augment_probability", "2"], "augment_probability must be between 0 and 1, got 2.0."),
        (["--margin_start_epoch", "3"], "margin_start_epoch (3.0) and margin_end_epoch (0.0) must be at least 0"),
        (["--backbone", "a", "--initial_model", "b"], "Set only one of backbone (a new model on a pretrained"),
    ],
)
def test_bad_arguments_are_refused(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_recipe(["--train_data", "a.csv", *words])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_data: a.csv\nmargine: 0.2\n", "unknown argument 'margine'. Did you mean 'margin'?"),
        ("train_data: a.csv\nmargin: -0.2\n", "margin must be at least 0"),
        ("- a\n- b\n", "must contain 'key: value' lines without nesting, got a list."),
        ("train_data: [unclosed\n", "is not YAML"),
        ("train_data: {a: b}\n", "expected a value or a list for train_data, got a mapping."),
        ("margin: 0.2\n", "train_data is missing"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_recipe([write(tmp_path, text)])


def test_missing_recipe_is_named():
    with pytest.raises(ValueError, match=re.escape("Recipe not found: nowhere.yaml.")):
        read_recipe(["nowhere.yaml"])


@pytest.mark.parametrize(
    ("precision", "fast", "warns"), [("bf16", False, True), ("bf16", True, False), ("no", False, False)]
)
def test_bfloat16_on_a_cpu_without_it_is_warned_of(monkeypatch, tmp_path, precision, fast, warns):
    said = []
    monkeypatch.setattr("hf_hamspk.training.building.has_fast_bfloat16", lambda: fast)
    monkeypatch.setattr("hf_hamspk.training.building.logger.warning", said.append)
    make_accelerator(TrainingArguments(output_dir=str(tmp_path), mixed_precision=precision, cpu=True), tiny_config())
    assert bool(said) is warns


@pytest.mark.parametrize(("backbone", "field"), [("campplus", "campplus_growth"), ("resnet", "resnet_channels")])
def test_a_recipe_names_an_encoder_of_this_package(backbone, field, tmp_path):
    """The key that also takes the name of a pretrained encoder."""
    recipe = read_recipe(["--train_data", "a.csv", "--backbone", backbone, f"--{field}", "8"])
    assert recipe.pretrained_backbone is None and recipe.config_fields() == {"backbone": backbone, field: 8}
    config = build_config(recipe)
    assert (config.backbone, getattr(config, field), config.frontend) == (backbone, 8, "kaldi")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.as_dict()))
    assert read_recipe([str(file)]).model == recipe.model
    assert arguments_of(config).backbone == backbone
    named = read_recipe(["--train_data", "a.csv", "--backbone", "owner/wavlm"])
    assert named.pretrained_backbone == "owner/wavlm" and named.config_fields() == {}
