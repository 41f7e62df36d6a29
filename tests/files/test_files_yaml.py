"""YAML of users and of other projects: no aliases, no objects, no depth without end."""

import resource

import pytest

from hf_hamspk.conversion.checkpoints import read_yaml
from hf_hamspk.conversion.sources import stated_licence
from hf_hamspk.files.yaml_files import LARGEST_YAML, load_yaml
from hf_hamspk.publishing.about import About
from hf_hamspk.publishing.facts import read_public_recipe
from hf_hamspk.training.arguments import read_recipe

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
READERS = {
    "a recipe": lambda path: read_recipe([str(path)]),
    "a recipe in a card": read_public_recipe,
    "a model of SpeechBrain or WeSpeaker": read_yaml,
    "facts of a model": About.read,
    "any": load_yaml,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "the alias *a is not accepted"),
        ("a: &a\n  b: *a\n", "the alias *a is not accepted"),
        ("base: &base {a: 1}\nmore:\n  <<: *base\n", "the alias *base is not accepted"),
        ("[" * 500, "nested too deeply"),
        ("a: " + "{a: " * 500, "nested too deeply"),
        ("? [a, b]\n: 1\n? {a: b}\n: 2\n", "unhashable"),
        ("a: 0000-99-99\n", "out of range"),
        ("a: b: c\n", "mapping values are not allowed here"),
        ("a: \x00", "special characters are not allowed"),
        ("a: " + "x" * LARGEST_YAML, "at most 4 MiB"),
    ],
    ids=["laughs", "itself", "merge", "lists", "mappings", "keys", "date", "colons", "zero", "size"],
)
def test_hostile_yaml_is_refused_in_a_sentence(tmp_path, reader, text, reason):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=reason.replace("*", r"\*")):
        reader(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"


def test_a_card_with_hostile_metadata_states_no_licence(tmp_path):
    for text in (LAUGHS, "[" * 500, "a: b: c", "license: [a]"):
        (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
        assert stated_licence(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    assert stated_licence(tmp_path) == "apache-2.0"
