"""The `evaluate` module, loaded by path as a user loads it, offline and in a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_hamspk.evaluation import METRIC_FILE, equal_error_rate, minimum_detection_cost
from hf_hamspk.evaluation.calibration_metrics import (
    actual_detection_cost,
    convex_hull,
    log_likelihood_ratio_cost,
)

SCRIPT = Path(METRIC_FILE)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` of the module, with every cache in a temporary folder and nothing asked of a network."""
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    # The copy of the script is imported by name from a folder that evaluate puts on the path.
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE"):
        monkeypatch.setattr(evaluate.config, name, str(tmp_path / name.lower()), raising=False)

    def load(**kwargs):
        return evaluate.load(str(SCRIPT), cache_dir=str(tmp_path / "cache"), **kwargs)

    return load


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.5).astype(np.int64)
    return rng.normal(size=500) + 2 * labels, labels


def expected(scores, labels, priors=(0.01, 0.05)):
    equal = equal_error_rate(scores, labels)
    result = {"eer": equal.eer, "eer_threshold": equal.threshold}
    for prior in priors:
        cost = minimum_detection_cost(scores, labels, prior)
        result |= {f"min_dcf_{prior}": cost.cost, f"min_dcf_{prior}_threshold": cost.threshold}
    result["eer_convex_hull"] = convex_hull(scores, labels).equal_error_rate().eer
    return result | {"min_cllr": convex_hull(scores, labels).log_likelihood_ratio_cost()}


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_compute_gives_the_metrics_as_floats(load, scored, keep_in_memory):
    scores, labels = scored
    metric = load(keep_in_memory=keep_in_memory)
    result = metric.compute(predictions=scores, references=labels)
    assert result == expected(scores, labels)
    assert list(result) == [
        "eer",
        "eer_threshold",
        "min_dcf_0.01",
        "min_dcf_0.01_threshold",
        "min_dcf_0.05",
        "min_dcf_0.05_threshold",
        "eer_convex_hull",
        "min_cllr",
    ]
    assert {type(value) for value in result.values()} == {float}
    again = metric.compute(predictions=scores.tolist(), references=labels.tolist(), priors=[0.5])
    assert again == expected(scores, labels, [0.5])


def test_ratios_have_their_costs_too(load, scored):
    scores, labels = scored
    result = load().compute(predictions=scores, references=labels, priors=[0.2], log_likelihood_ratios=True)
    assert result.pop("cllr") == log_likelihood_ratio_cost(scores, labels)
    assert result.pop("act_dcf_0.2") == actual_detection_cost(scores, labels, 0.2).cost
    assert result == expected(scores, labels, [0.2])


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_batches_and_single_trials_add_up(load, scored, keep_in_memory):
    scores, labels = scored
    metric = load(keep_in_memory=keep_in_memory)
    for start in range(0, 490, 70):
        metric.add_batch(predictions=scores[start : start + 70], references=labels[start : start + 70])
    for score, label in zip(scores[490:], labels[490:], strict=True):
        metric.add(prediction=score, reference=label)
    assert metric.compute() == expected(scores, labels)


def test_float32_tensors_and_booleans(load, scored):
    torch = pytest.importorskip("torch")
    scores, labels = scored[0].astype(np.float32), scored[1]
    metric = load()
    assert metric.compute(predictions=scores, references=labels == 1) == expected(scores, labels)
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    assert metric.compute(predictions=tensors[0], references=tensors[1]) == expected(scores, labels)


def test_scores_keep_double_precision(load):
    # In float32 the four scores would be one, and the rate 1 instead of 0.
    scores, labels = [1.0, 1.0 + 1e-12, 1.0 + 2e-12, 1.0 + 3e-12], [0, 0, 1, 1]
    assert load().compute(predictions=scores, references=labels)["eer"] == 0.0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 0], "targets are missing"),
        ([0.1, float("nan")], [0, 1], "1 of 2 scores are NaN"),
        ([0.1, 0.2], [0, 2], "labels must be 0 (impostor) or 1 (target), got 2 at index 1"),
        ([0.1, 0.2], [0.0, 0.7], "references must be 0 (impostor) or 1 (target), got fractions."),
        ([0.1, 0.2, 0.3], [0, 1], "Mismatch in the number of predictions (3) and references (2)"),
    ],
)
def test_bad_input_is_refused(load, scores, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(keep_in_memory=True).compute(predictions=scores, references=labels)


def test_a_single_fractional_label_is_refused(load):
    with pytest.raises(ValueError, match=re.escape("got fractions.")):
        load(keep_in_memory=True).add(prediction=0.5, reference=0.5)


def test_documentation(load):
    metric = load()
    assert metric.name == "speaker_verification"
    assert "Equal error rate" in metric.description
    assert "priors" in metric.inputs_description
    assert metric.citation.startswith("@article{")
    assert "Equal error rate" in type(metric).__doc__
    assert "0.5" in metric.inputs_description


@pytest.mark.slow
def test_loads_in_a_fresh_offline_process(tmp_path):
    pytest.importorskip("evaluate")
    code = (
        "import sys, evaluate; metric = evaluate.load(sys.argv[1]);"
        "print(metric.compute(predictions=[0.9, 0.6, 0.4, 0.1], references=[1, 0, 1, 0])['eer'])"
    )
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | offline
    run = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("0.5")
