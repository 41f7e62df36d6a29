"""The statistics and the report of a study, on records with known errors."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from simulated_studies import study_p_values

from hf_hamspk.__main__ import main
from hf_hamspk.evaluation.calibration_metrics import convex_hull
from hf_hamspk.evaluation.metrics import equal_error_rate
from hf_hamspk.evaluation.speakers import find_speakers
from hf_hamspk.evaluation.trials import Trials
from hf_hamspk.study.plan import FINAL, parse_study, read_study
from hf_hamspk.study.records import (
    planned_runs,
    read_record,
    read_scores,
    read_study_lists,
    write_record,
    write_scores,
    write_study_lists,
)
from hf_hamspk.study.report import write_report
from hf_hamspk.study.statistics import compare_heads, expected_best, holm

PLAN = {
    "recipe": {"train_data": "train.csv"},
    "dev_trials": ["dev.txt"],
    "test_trials": ["near.txt", "far.txt"],
    "tuning": {"settings": 3, "epochs": 2},
    "final": {"seeds": 4, "epochs": 6, "evaluate": [2], "budgets": [3]},
    "search": {"learning_rate": [1e-3, 1e-2, "log"]},
    "heads": {
        "am": {"recipe": {"head": "am"}},
        "ham": {"recipe": {"head": "ham"}, "search": {"reach": [10, 80, "log"]}},
        "rim": {"like": "ham", "control": "rim", "seeds": 2},
    },
    "comparisons": {"claims": [["ham", "am"]], "controls": [["ham", "rim"]]},
    "replicates": 100,
}
QUALITY = {"am": 2.0, "ham": 3.0, "rim": 3.0}


def lists(seed=0):
    """Two lists of 30 speakers, the second with a part of the speakers of the first."""
    found = {}
    for name, speakers in (("near", 30), ("far", 20)):
        pairs = [(a, b) for a in range(speakers) for b in (a, a, (a + 1) % speakers, (a + 7) % speakers)]
        trials = Trials(
            np.array([a == b for a, b in pairs]).astype(int),
            tuple(f"s{a:02d}/1.wav" for a, _ in pairs),
            tuple(f"s{b:02d}/2.wav" for _, b in pairs),
        )
        found[name] = trials, find_speakers(trials)
    return found


def fill(study, folder, stop_after=None):
    """Write the records of all runs, or of the first ones."""
    folder.mkdir(exist_ok=True)
    write_study_lists(folder, lists())
    for stage in range(2):
        for run in planned_runs(study, folder)[:stop_after]:
            if read_record(folder / run.name) is not None or (run.stage == FINAL) != bool(stage):
                continue
            (folder / run.name).mkdir()
            draw = np.random.default_rng((run.number, len(run.head)))
            errors = {"eer": 0.2 + 0.01 * run.number, "min_cllr": 0.6 - 0.1 * run.number}
            if run.stage == FINAL:
                labels = {name: trials.labels for name, (trials, _) in lists().items()}
                scores = {
                    f"{name}@{budget}": 0.1 * (QUALITY[run.head] * of_list + draw.normal(size=len(of_list)))
                    for name, of_list in labels.items()
                    for budget in run.budgets
                }
                write_scores(folder / run.name / "scores.npz", scores)
            curve = [{"epoch": epoch, "loss": 1.0, "lists": {"dev": errors}} for epoch in run.evaluate]
            write_record(
                folder / run.name,
                {"run": run.name, "values": run.values, "curve": curve, "seconds": 36.0, "cpu_seconds": 18.0},
            )


def plan_with(**changes):
    return parse_study("made_up", copy.deepcopy(PLAN) | changes)


@pytest.mark.slow
def test_the_report_of_a_finished_study(tmp_path):
    study = plan_with()
    fill(study, tmp_path / "study")
    text, files = write_report(study, tmp_path / "study", progress=False)
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert summary["runs"]["finished"] == summary["runs"]["planned"] == 6 + 4 + 4 + 2
    assert summary["runs"]["hours"] == 0.16 and summary["runs"]["cpu_hours"] == 0.08
    assert summary["tuning"]["am"]["best"] == summary["tuning"]["am"]["settings"][2]["values"]
    assert summary["tuning"]["am"]["expected_best"] == pytest.approx([0.4, 1 / 3, 0.3], abs=1e-6)
    assert set(summary["curves"]["am"]) == {"2", "3", "6"} and summary["curves"]["rim"]["6"]["seeds"] == 2
    assert summary["opened"]["finished"] == 16 and not summary["opened"]["changed_since"]
    labels, _ = read_study_lists(tmp_path / "study")["near"]
    runs = [run for run in planned_runs(study, tmp_path / "study") if run.stage == FINAL and run.head == "ham"]
    scores = [read_scores(tmp_path / "study" / run.name / "scores.npz")["near@6"] for run in runs]
    found = summary["errors"]["6"]["ham"]["lists"]["near"]
    assert found["eer"] == pytest.approx(np.mean([equal_error_rate(one, labels).eer for one in scores]), abs=1e-6)
    costs = [convex_hull(one, labels).log_likelihood_ratio_cost() for one in scores]
    assert found["min_cllr"] == pytest.approx(np.mean(costs), abs=1e-6)
    # Two measures, two budgets, and two lists with their mean, of two families of one comparison.
    assert len(summary["comparisons"]) == 2 * 2 * 3 * 2
    rows = {(r["first"], r["second"], r["list"], r["measure"], r["budget"]): r for r in summary["comparisons"]}
    better, same = (rows["ham", other, "mean", "min_cllr", 6] for other in ("am", "rim"))
    assert better["interval"][1] < 0 and better["holm"] == better["p"] < 0.05 and better["probability"] > 0.9
    assert same["interval"][0] <= 0 <= same["interval"][1] and same["seeds"] == 2
    single = [rows["ham", "am", name, "min_cllr", 6]["relative"] for name in ("near", "far")]
    assert better["relative"] == pytest.approx(np.mean(single), abs=1e-4)
    for part in ("ham - am", "The test lists were opened on", "Errors on the test lists", "Holm's p"):
        assert part in text
    page = files[2].read_text()
    assert page.count("<img") == 4 and "<title>made_up: study</title>" in page
    assert all((tmp_path / "study" / "plots" / f"{name}.png").exists() for name in ("curves", "search", "budgets"))


@pytest.mark.parametrize("name", ["summary.json", "report.txt", "report.html", "plots/curves.png"])
def test_a_file_of_another_program_is_not_replaced_by_the_report(tmp_path, name):
    study = plan_with()
    fill(study, tmp_path, stop_after=1)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("the only copy")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{name} already exists and is not"):
        write_report(study, tmp_path, progress=False)
    assert (tmp_path / name).read_text() == "the only copy" and sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_test_lists_stay_closed_until_all_runs_are_finished_and_opening_is_noted(tmp_path):
    study, folder = plan_with(final={"seeds": 4, "epochs": 6}), tmp_path / "study"
    fill(study, folder, stop_after=13)
    text, _ = write_report(study, folder, progress=False)
    summary = json.loads((folder / "summary.json").read_text())
    assert "errors" not in summary and summary["opened"] is None and "The test lists are closed" in text
    assert not (folder / "opened.json").exists()
    text, _ = write_report(study, folder, open_tests=True, progress=False)
    assert "with 13 of 16 runs finished" in text and "Errors on the test lists" in text
    fill(study, folder)
    more = plan_with(final={"seeds": 4, "epochs": 6}, replicates=101)
    text, _ = write_report(more, folder, progress=False)
    assert "with 13 of 16 runs finished" in text and "The file of the study has been changed since then." in text


def test_an_empty_study_and_a_foreign_folder(tmp_path):
    study, folder = plan_with(), tmp_path / "study"
    fill(study, folder, stop_after=0)
    text, _ = write_report(study, folder, progress=False)
    assert text.startswith("0 of 16 runs are finished")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="Expected the folder of a study"):
        write_report(study, tmp_path / "other", progress=False)


def test_the_command_prints_the_report_and_refuses_wrong_options(tmp_path, capsys, monkeypatch):
    import yaml

    path = tmp_path / "made_up.yaml"
    path.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    fill(plan_with(), tmp_path / "study", stop_after=3)
    assert main(["study", str(path), "--output", str(tmp_path / "study"), "--report"]) == 0
    assert "Tuning on the development lists" in capsys.readouterr().out
    for words, message in (
        (["--output", str(tmp_path / "study"), "--open"], "--open needs --report"),
        (["--output", str(tmp_path / "study"), "--runs", "0"], "--runs must be above 0"),
        (["--output", str(tmp_path / "study"), "--hours", "-1"], "--hours must be above 0"),
        (["--output", str(path)], "--output must be a folder"),
    ):
        assert main(["study", str(path), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["study", str(tmp_path / "none.yaml"), "--output", "x"]) == 2
    assert "Study not found" in capsys.readouterr().err


# -- statistics --------------------------------------------------------------------------------------------------------


def test_holm_is_that_of_the_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_expected_best_of_k_is_the_mean_over_all_choices():
    import itertools

    values = [0.5, 0.1, 0.4, 0.4, 0.9]
    for size, found in enumerate(expected_best(values), start=1):
        choices = [min(one) for one in itertools.combinations(values, size)]
        assert found == pytest.approx(np.mean(choices))


def test_a_comparison_of_constant_errors_is_exact():
    first, second = np.full((3, 101), 0.2), np.full((3, 101), 0.25)
    found = compare_heads({"a": first}, {"a": second})
    assert found.relative == pytest.approx(-0.2) and found.interval == pytest.approx((-0.2, -0.2))
    assert found.probability == 1.0 and found.p_value == pytest.approx(2 / 101)
    over = compare_heads({"a": first, "b": second}, {"a": second, "b": first})
    assert over.first is None and over.relative == pytest.approx((-0.2 + 0.25) / 2)
    tie = compare_heads({"a": first}, {"a": first})
    assert tie.probability == 0.5 and tie.p_value == 1.0
    perfect = compare_heads({"a": 0 * first}, {"a": 0 * first})
    assert (perfect.relative, perfect.p_value, perfect.probability) == (0.0, 1.0, 0.5)
    assert compare_heads({"a": first}, {"a": 0 * first}).interval == (1000.0, 1000.0)
    for one, other in (({"a": first[:1]}, {"a": second[:1]}), ({"a": first}, {"b": second})):
        with pytest.raises(ValueError, match=r"seeds|lists"):
            compare_heads(one, other)


def test_the_interval_contains_the_variance_between_seeds():
    """Without any variance between speakers, the width is that of a mean over seeds."""
    draw, widths = np.random.default_rng(0), []
    for _ in range(200):
        first = np.repeat(1 + 0.05 * draw.normal(size=(6, 1)), 400, axis=1)
        found = compare_heads({"a": first}, {"a": np.ones_like(first)})
        widths.append(found.interval[1] - found.interval[0])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.05 / np.sqrt(6), rel=0.12)


@pytest.mark.slow
def test_without_an_effect_few_studies_find_one_and_a_large_effect_is_found():
    """60 studies; `python tests/study/simulated_studies.py` makes 1,000."""
    found = [min(study_p_values(seed, 5)[0]) for seed in range(60)]
    assert sum(p <= 0.05 for p in found) <= 8
    strong = [study_p_values(seed, 5, effect=0.3)[0][0] for seed in range(10)]
    assert sum(p <= 0.05 for p in strong) >= 9


def test_the_records_of_the_study_of_campplus_belong_to_its_file():
    """All tuning runs, and all seeds of every head."""
    root = Path(__file__).parents[2] / "examples" / "studies"
    study = read_study(root / "campplus.yaml")
    folder = root / "records" / "campplus"
    runs = [run for run in planned_runs(study, folder) if read_record(folder / run.name) is not None]
    assert len(runs) == len(list(folder.glob("*/record.json"))) and set(read_study_lists(folder)) > {"test-o", "test-x"}
    finals = Counter(run.head for run in runs if run.stage == "final")
    assert len(runs) - finals.total() == len(study.tuning_runs())
    assert finals == {name: head.seeds for name, head in study.heads.items()}
