"""The cards of the recipes in model_cards/: rendered from the facts beside them, and from nothing else."""

import json
import re
from pathlib import Path

import pytest
import yaml
from card_numbers import numbers, of_facts, of_template
from card_recordings import record
from huggingface_hub import ModelCard
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkForXVector
from hf_hamspk.publishing.card import card_metadata, render_card
from hf_hamspk.publishing.facts import CardFacts, read_public_recipe
from hf_hamspk.publishing.leaks import Private, find_leaks

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "model_cards").glob("*.md"))
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
every_card = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)


def facts_of(card: Path) -> CardFacts:
    path = card.with_suffix(".json")
    return CardFacts.from_json(path.read_text(encoding="utf-8"), path.name)


def test_every_recipe_has_a_card_with_its_facts():
    names = {recipe.stem for recipe in RECIPES}
    assert {card.stem for card in CARDS} == names
    assert {path.stem for path in (ROOT / "model_cards").glob("*.json")} == names


@every_card
def test_a_card_is_what_its_facts_give(card):
    again = render_card(facts_of(card))
    assert card.read_text(encoding="utf-8") == again, f"hamspk card model_cards/{card.stem}.json"


@every_card
def test_the_facts_are_of_the_recipe_as_it_is(card):
    """A run adds the arguments that the recipe leaves to their defaults."""
    recipe = read_public_recipe(ROOT / "examples" / "recipes" / f"{card.stem}.yaml")
    stated = facts_of(card).recipe
    assert {key: stated.get(key) for key in recipe} == recipe, "render the card anew, with hamspk card"


@every_card
def test_every_number_of_a_card_is_in_its_facts(card):
    facts = json.loads(card.with_suffix(".json").read_text(encoding="utf-8"))
    assert numbers(card.read_text(encoding="utf-8")) - of_facts(facts) - of_template() == set()


@every_card
def test_the_metadata_of_a_card_is_valid(card):
    loaded = ModelCard.load(card)
    assert loaded.data.to_dict() == card_metadata(facts_of(card)).to_dict()
    assert yaml.safe_load(loaded.data.to_yaml()) == loaded.data.to_dict()
    assert loaded.data.pipeline_tag == "audio-classification" and "speaker-verification" in loaded.data.tags


@every_card
def test_a_card_without_a_run_has_no_results(card):
    text, facts = card.read_text(encoding="utf-8"), facts_of(card)
    assert ("There are no weights for this recipe" in text) == (facts.weights is None)
    if facts.evaluation is None:
        assert "model-index" not in text and "\nNot measured.\n" in text


@every_card
def test_nothing_private_is_in_a_card(card):
    for path in (card, card.with_suffix(".json")):
        assert find_leaks(path.name, path.read_text(encoding="utf-8"), Private((), ())) == []


@pytest.mark.slow
@every_card
def test_the_python_of_a_card_runs(card, tmp_path, monkeypatch, capsys):
    """With a tiny model in the place that the card names."""
    name = facts_of(card).name
    settle(HamSpkForXVector(tiny_config())).save_pretrained(tmp_path / name)
    record(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert f'"{name}"' in block
        exec(compile(block, card.name, "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert re.match(r"-?\d\.\d+ None None \[", first)
    assert first == second
