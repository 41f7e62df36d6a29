"""The file of a study, the order of its runs, and the control heads."""

import copy
import math
from pathlib import Path

import pytest
import torch
import yaml

from hf_hamspk import HamSpkConfig
from hf_hamspk.networks_hamspk import make_head
from hf_hamspk.study.controls import similarity_range, use_control
from hf_hamspk.study.plan import parse_study, read_study, setting_share
from hf_hamspk.study.records import best_settings

STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"
SMALL = {
    "recipe": {"train_data": "a/train.csv", "ecapa_channels": 16},
    "dev_trials": ["dev.txt"],
    "test_trials": ["test.txt"],
    "tuning": {"settings": 3, "epochs": 2},
    "final": {"seeds": 4, "epochs": 5, "evaluate": [1], "budgets": [3]},
    "search": {"learning_rate": [1e-3, 1e-2, "log"]},
    "heads": {
        "am": {"recipe": {"head": "am"}, "search": {"margin": [0.1, 0.3]}},
        "ham": {"recipe": {"head": "ham"}, "search": {"reach": [10, 80, "log"], "curvature": [2, 4]}},
        "angle": {"like": "ham", "control": "angle", "seeds": 2},
        "ham_c9": {"like": "ham", "recipe": {"curvature": 9.0}, "seeds": 2},
    },
    "comparisons": {"claims": [["ham", "am"]]},
}


def changed(*path, value):
    content = copy.deepcopy(SMALL)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def test_every_head_gets_the_same_number_of_settings_and_the_same_values_of_common_keys():
    runs = parse_study("small", SMALL).tuning_runs()
    assert [(run.head, run.number) for run in runs] == [(head, n) for n in (1, 2, 3) for head in ("am", "ham")]
    for first, second in zip(runs[::2], runs[1::2], strict=True):
        assert first.values["learning_rate"] == second.values["learning_rate"]
        assert first.recipe["seed"] == second.recipe["seed"]
        assert set(first.values) == {"learning_rate", "margin"}
        assert set(second.values) == {"learning_rate", "reach", "curvature"}
        assert second.recipe["curvature"] == second.values["curvature"] and "reach" not in second.recipe
    assert len({run.name for run in runs}) == len(runs)


def test_settings_cover_each_range_evenly():
    for place in range(12):
        shares = sorted(setting_share(place, number) for number in range(1, 13))
        assert shares[0] >= 0 and shares[-1] < 1
        assert max(b - a for a, b in zip([0.0, *shares], [*shares, 1.0], strict=True)) < 0.36


def test_final_runs_go_seed_by_seed_and_controls_use_the_best_setting_of_their_head():
    study = parse_study("small", SMALL)
    assert study.final_runs({}) == []
    winners = {
        "am": {"learning_rate": 0.002, "margin": 0.1},
        "ham": {"learning_rate": 0.003, "reach": 30.0, "curvature": 3},
    }
    runs = study.final_runs(winners)
    heads = [(run.head, run.number) for run in runs]
    pairs = [("am", 1), ("ham", 1), ("am", 2), ("ham", 2)]
    controls = [("angle", 1), ("ham_c9", 1), ("angle", 2), ("ham_c9", 2)]
    assert heads == [*pairs, *controls, ("am", 3), ("ham", 3), ("am", 4), ("ham", 4)]
    by_head = {run.head: run for run in runs}
    assert by_head["angle"].values == winners["ham"] and by_head["angle"].control == "angle"
    assert by_head["ham_c9"].values == {"learning_rate": 0.003, "reach": 30.0}
    assert by_head["ham_c9"].recipe["curvature"] == 9.0
    assert all(run.recipe["seed"] == run.number and run.epochs == 5 for run in runs)
    assert runs[0].evaluate == (1, 3, 5) and runs[0].budgets == (3, 5)
    assert [run.head for run in study.final_runs({"am": winners["am"]})] == ["am"] * 4


def test_a_head_without_a_search_is_not_tuned(tmp_path):
    heads = {"ham": {"recipe": {"head": "ham"}}, "rim": {"like": "ham", "control": "rim"}, "am": SMALL["heads"]["am"]}
    study = parse_study("small", changed("heads", value=heads) | {"search": {}})
    assert {run.head for run in study.tuning_runs()} == {"am"}
    assert best_settings(study, tmp_path) == {"ham": {}}
    assert [run.head for run in study.final_runs(best_settings(study, tmp_path))] == ["ham", "rim"] * 4


def test_the_name_of_a_run_changes_with_its_settings_but_not_with_the_machine():
    name = parse_study("small", SMALL).tuning_runs()[0].name
    moved = changed("recipe", "train_data", value="/elsewhere/train.csv")
    moved["recipe"] |= {"audio_root": "/elsewhere", "num_workers": 4}
    assert parse_study("small", moved).tuning_runs()[0].name == name
    assert parse_study("small", changed("recipe", "ecapa_channels", value=32)).tuning_runs()[0].name != name
    more = parse_study("small", changed("tuning", "settings", value=12)).tuning_runs()
    assert more[0].name == name and len(more) == 24


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), 1, "unknown key 'colour'"),
        (("recipe", "seed"), 1, "recipe must not contain seed"),
        (("dev_trials",), [], "Tuning needs development lists"),
        (("folds",), 1, "at least 2 folds"),
        (("tuning",), {"settings": 3}, "tuning must contain epochs"),
        (("tuning", "settings"), 0, "whole number of at least 1"),
        (("final", "evaluate"), [9], "expected at most 5"),
        (("search", "learning_rate"), [1e-3], "expected \\[low, high\\]"),
        (("search", "learning_rate"), [0, 1, "log"], "above 0 for log"),
        (("search", "learning_rate"), ["a", 1], "must be a number"),
        (("heads",), {}, "heads is empty"),
        (("heads", "a b"), {}, "letters, digits"),
        (("heads", "angle", "like"), "nobody", "must name an earlier head"),
        (("heads", "angle", "control"), "nothing", "control must be one of"),
        (("comparisons",), {"claims": [["ham", "ham"]]}, "two different names"),
        (("comparisons",), {"claims": [["ham", ["am"]]]}, "two different names"),
        (("measure",), "f1", "measure must be one of"),
        (("confidence",), 1.0, "between 0 and 1"),
        (("replicates",), 5, "at least 100"),
    ],
)
def test_an_invalid_study_is_refused_in_one_sentence(path, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_study("small", changed(*path, value=value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, [], "text", {"recipe": 3}, {"recipe": {}}])
def test_other_content_is_refused(content, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"study\.yaml"):
        read_study(path)


@pytest.mark.parametrize("name", ["heads", "heads_vox1"])
def test_the_studies_of_the_examples_can_be_read(name):
    study = read_study(STUDIES / f"{name}.yaml")
    family = {"ham", "am", "h", "softmax", "normalized_softmax", "aam", "ram", "joint"}
    assert {head for head, entry in study.heads.items() if entry.like is None} == family
    assert {head for pair in study.comparisons["claims"] for head in pair} == family
    assert study.measure == "min_cllr" and study.tests
    assert study.final_runs({head: {"learning_rate": 0.001} for head in family})


def test_the_study_for_hierarchies_tunes_nothing_and_opens_no_test_list():
    study = read_study(STUDIES / "hierarchy.yaml")
    assert not study.tuning_runs() and not study.tests and study.final.count == 1
    assert {"softmax", "am", "ham", "curved", "exponential", "horosphere", "radial_margin"} == set(study.heads)


def test_the_study_of_free_radii_shares_the_runs_of_the_study_of_heads():
    """Equal settings give runs of equal names, whose folders can be copied."""
    heads, radius = (read_study(STUDIES / f"{name}.yaml") for name in ("heads", "radius"))
    best = {name: {"learning_rate": 0.001, "reach": 30.0} for name in ("ham", "am")}
    shared = [run.name for study in (heads, radius) for run in (*study.tuning_runs(), *study.final_runs(best))]
    for name in ("ham", "am"):
        own = [one for one in shared if f"-{name}-" in one]
        assert len(own) == 2 * (radius.tuning.count + radius.final.count) and len(set(own)) == len(own) / 2
    new = {head.control for head in radius.heads.values()} - {None}
    assert new == {"exponential", "horosphere", "radial_margin"}
    ranges = [head.search for head in radius.heads.values() if head.name != "am"]
    assert all(one == ranges[0] for one in ranges)


# -- controls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "control", "expected"),
    [
        ({"head": "am"}, None, 1.0),
        ({"head": "aam"}, None, 1.0),
        ({"head": "ham", "curvature": 3.0}, None, 2.063),
        ({"head": "h", "curvature": 5.0}, None, 1.451),
        ({"head": "joint", "curvature": 3.0}, None, 2.063),
        ({"head": "ham", "curvature": 3.0}, "rim", 2.063),
        ({"head": "ham", "curvature": 3.0}, "angle", math.sqrt(3) * math.pi / 2),
        ({"head": "ham", "curvature": 3.0}, "exponential", 2.063),
        ({"head": "ham", "curvature": 3.0}, "horosphere", math.log(2 + math.sqrt(3)) + math.log(2)),
        ({"head": "ham", "curvature": 3.0}, "radial_margin", math.log(2 + math.sqrt(3)) + math.log(2)),
        ({"head": "ham", "projection": "curved", "curvature": 1.0}, None, math.acosh(math.cosh(2) ** 2)),
    ],
)
def test_the_range_of_a_similarity_between_0_and_90_degrees(fields, control, expected):
    """2.063 and 1.451 are the distances at a right angle in the table of the paper's formulas."""
    assert similarity_range(HamSpkConfig(**fields), control) == pytest.approx(expected, abs=3e-3)


def test_the_range_of_a_linear_similarity_is_not_defined():
    with pytest.raises(ValueError, match="not defined for the head softmax"):
        similarity_range(HamSpkConfig(head="softmax"), None)


@pytest.mark.parametrize("fields", [{"head": "am"}, {"head": "softmax"}, {"head": "joint"}, {"projection": "curved"}])
def test_a_control_of_another_head_is_refused_before_its_range_is_computed(fields):
    with pytest.raises(ValueError, match="The control angle needs the head h or ham"):
        similarity_range(HamSpkConfig(**({"head": "ham"} | fields)), "angle")


def test_centres_of_the_rim_control_have_the_largest_radius_and_its_logits_are_those_of_ham_there():
    head = make_head(HamSpkConfig(head="ham", num_labels=7, embedding_size=8))
    plain = copy.deepcopy(head)
    use_control(head, "rim")
    with torch.no_grad():
        plain.similarity.weight.mul_(1e6)
    x, labels = torch.randn(5, 8), torch.arange(5)
    assert torch.allclose(head(x, labels, True).logits, plain(x, labels, True).logits, atol=1e-4)
    assert torch.allclose(head(x, labels).loss, plain(x, labels).loss, atol=1e-4)
    head(x, labels).loss.backward()
    radial = (head.similarity.weight.grad * head.similarity.weight).sum(-1)
    assert radial.abs().max() < 1e-3


def test_logits_of_the_angle_control_are_linear_in_the_angle():
    head = make_head(HamSpkConfig(head="ham", num_labels=2, embedding_size=2, scale=10.0))
    use_control(head, "angle")
    with torch.no_grad():
        head.similarity.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    angles = torch.linspace(0.1, 3.0, 20)
    logits = head(torch.stack([angles.cos(), angles.sin()], -1)).logits
    assert torch.allclose(logits[:, 0], -10 * math.sqrt(3) * angles, atol=1e-3)
    near = torch.tensor([[1.0, 1e-9]], requires_grad=True)
    head(near, torch.tensor([0])).loss.backward()
    assert near.grad is not None and torch.isfinite(near.grad).all()
