"""What people state of a model, and the licence that the training data leave."""

import pytest

from hf_hamspk.publishing.about import About, TrainingData, TrialList
from hf_hamspk.publishing.licences import conditions, dropped_conditions, hub_licence, weights_licence


@pytest.mark.parametrize(
    ("of_data", "expected"),
    [
        ([], None),
        (["Apache-2.0", "MIT", "cc0-1.0"], "apache-2.0"),
        (["CC BY 4.0"], "cc-by-4.0"),
        (["apache-2.0", "CC-BY-4.0", "cc-by-3.0"], "cc-by-4.0"),
        (["CC BY-SA 4.0", "CC BY 4.0"], "cc-by-sa-4.0"),
        (["CC BY-NC 4.0", "mit"], "cc-by-nc-4.0"),
        (["CC BY-NC-SA 4.0", "CC BY-NC 4.0"], "cc-by-nc-sa-4.0"),
        (["CC BY-SA 4.0", "CC BY-NC 4.0"], "other"),
        (["CC BY-ND 4.0"], "other"),
        (["the licence of my company", "mit"], "other"),
    ],
)
def test_the_weights_carry_on_what_the_data_ask(of_data, expected):
    assert weights_licence(of_data) == expected
    if expected not in (None, "other"):
        assert dropped_conditions(expected, of_data) == []
        asked = set().union(*(conditions(one) for one in of_data))
        assert asked <= conditions(expected)


def test_what_a_licence_drops_is_said():
    assert dropped_conditions("apache-2.0", ["CC BY-NC-SA 4.0"]) == [
        "attribution",
        "the same licence for derived works",
        "no commercial use",
    ]
    assert dropped_conditions("cc-by-4.0", ["CC BY 4.0"]) == []
    assert hub_licence(" CC BY-SA 4.0 ") == "cc-by-sa-4.0"
    assert conditions("nobody knows") is None


ABOUT = """
title: A model
languages: [en, zh]
training_data:
  - {name: Corpus, licence: CC BY 4.0, dataset: owner/corpus, speakers: 10, hours: 1.5}
trial_lists:
  test-o: {name: Benchmark, config: O, dataset: owner/benchmark, task: o}
limitations: [Telephone speech was not tried.]
speed: {device: a CPU}
"""


def test_a_file_reads_back(tmp_path):
    (tmp_path / "about.yaml").write_text(ABOUT)
    about = About.read(tmp_path / "about.yaml")
    assert about.training_data == [
        TrainingData("Corpus", "CC BY 4.0", "owner/corpus", speakers=10, hours=1.5),
    ]
    assert about.trial_lists == {"test-o": TrialList("Benchmark", "O", "owner/benchmark", "o")}
    assert About.from_dict(about.to_dict()) == about
    assert About().to_dict() == {}
    (tmp_path / "empty.yaml").write_text("")
    assert About.read(tmp_path / "empty.yaml") == About()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x", r"unknown key 'titel'. Did you mean 'title'\?"),
        ("training_data: [{name: a, license: b}]", r"unknown key 'license'. Did you mean 'licence'\?"),
        ("training_data: [{licence: b}]", r"the key 'name' is missing"),
        ("training_data: {name: a}", r"training_data must be a list"),
        ("training_data: [{name: a, hours: many}]", r'hours must be a number, got "many"'),
        ("trial_lists: [a]", r"trial_lists must map names"),
        ("trial_lists: {a: b}", r"trial_lists: a must be a mapping"),
        ("languages: en", r'languages must be a list of strings, got "en"'),
        ("title: 3", r"title must be a string, got 3"),
        ("speed: fast", r'speed must be a mapping, got "fast"'),
        ("- a", r"must be a mapping with some of title"),
        ("a: [", r"is not YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message):
    (tmp_path / "about.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        About.read(tmp_path / "about.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"File not found: .*about\.yaml. Expected YAML with some of: title"):
        About.read(tmp_path / "about.yaml")
