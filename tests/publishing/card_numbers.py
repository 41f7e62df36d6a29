"""Which numbers of a card come from its facts."""

import re
from pathlib import Path
from typing import Any

import yaml

from hf_hamspk.publishing.card import TEMPLATE

# Whole numbers and fractions; the parts of names such as w2v2 or cc-by-4.0 are numbers of the facts, too.
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text))


def of_template() -> set[str]:
    """Numbers in the fixed words of the template: a year, an arXiv number, an audio rate of a snippet."""
    fixed = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", Path(TEMPLATE).read_text(encoding="utf-8"))
    return numbers(fixed)


def of_facts(value: Any) -> set[str]:
    """Every number of the facts, in the ways in which a card may write it."""
    if isinstance(value, dict):
        return set().union(*(of_facts(key) | of_facts(one) for key, one in value.items()), set())
    if isinstance(value, list):
        return set().union(*map(of_facts, value), set())
    if isinstance(value, str):
        return numbers(value)
    if isinstance(value, bool) or value is None:
        return set()
    forms = [f"{value:g}", str(value), f"{100 * value:.2f}", f"{value:.3f}", f"{100 * value:g}", str(round(value, 3))]
    # YAML writes 1.0e-05 where JSON writes 1e-05.
    return numbers(" ".join([*forms, str(round(100 * value, 2)), yaml.safe_dump(value)]))
