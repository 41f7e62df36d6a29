"""The cards in model_cards/: of measured models, rendered from the facts beside them, and from nothing else."""

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
from hf_hamspk.publishing.tables import evaluated_lists

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "model_cards").glob("*.md"))
every_card = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)


def facts_of(card: Path) -> CardFacts:
    path = card.with_suffix(".json")
    return CardFacts.from_json(path.read_text(encoding="utf-8"), path.name)


def test_every_card_has_its_facts():
    assert CARDS
    assert {path.stem for path in (ROOT / "model_cards").glob("*.json")} == {card.stem for card in CARDS}


@every_card
def test_every_card_is_of_a_measured_model(card):
    """Error rates with intervals, groups of speakers, decisions of a calibrated model, and speed."""
    text, facts = card.read_text(encoding="utf-8"), facts_of(card)
    assert facts.weights is not None and facts.verification is not None
    assert "model-index" in text and "not measured" not in text.lower() and "no weights" not in text
    lists = evaluated_lists(facts.evaluation)
    assert {"test-o", "test-h", "test-x"} <= set(lists)
    assert all(values["decisions"]["operating_points"] for values in lists.values())


@every_card
def test_a_card_is_what_its_facts_give(card):
    again = render_card(facts_of(card))
    assert card.read_text(encoding="utf-8") == again, f"hamspk card model_cards/{card.stem}.json"


def test_the_recipe_of_a_card_is_the_recipe_as_it_is():
    """A run adds the arguments that the recipe leaves to their defaults."""
    trained = {card.stem: facts_of(card).recipe for card in CARDS if facts_of(card).recipe is not None}
    for name, stated in trained.items():
        recipe = read_public_recipe(ROOT / "examples" / "recipes" / f"{name}.yaml")
        assert {key: stated.get(key) for key in recipe} == recipe, "render the card again, with hamspk card"


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
