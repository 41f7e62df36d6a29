"""The script of the intervention on radii, on a tiny corpus and on simulated radii."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from chords import write_chords
from tiny_models import save_model

PATH = Path(__file__).resolve().parents[2] / "examples" / "studies" / "radii.py"


@pytest.fixture(scope="module")
def radii():
    spec = importlib.util.spec_from_file_location("radii", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arms_are_balanced_within_groups_and_need_enough_utterances(radii):
    groups, counts = ["a"] * 20 + ["b"] * 10, np.array([8] * 20 + [7] * 5 + [9] * 5)
    arms = radii.assign(groups, counts, 4, 0)
    assert np.bincount(arms[:20]).tolist() == [4] * 5
    assert (arms[20:25] == -1).all() and sorted(arms[25:]) == [0, 1, 2, 3, 4]
    assert (radii.assign(groups, counts, 4, 1) != arms).any()


def test_arms_take_away_and_repeat_utterances(radii):
    own, closeness, draw = np.arange(10, 18), np.linspace(0, 1, 8), np.random.default_rng(0)
    found = {name: radii.rows_of(arm, own, closeness, 3, draw) for arm, name in enumerate(radii.ARMS)}
    assert found["all"] == own.tolist() == radii.rows_of(-1, own, closeness, 3, draw)
    assert len(set(found["few"])) == 3 and set(found["few"]) <= set(own)
    assert len(found["repeated"]) == 9 and len(set(found["repeated"])) == 3
    assert sorted(found["similar"]) == [15, 16, 17] and sorted(found["different"]) == [10, 11, 12]


def test_only_an_arm_with_an_effect_has_a_small_p_value(radii):
    draw, arms = np.random.default_rng(0), np.arange(100) % 5
    rows = radii.compare(draw.standard_normal(100) + 2 * (arms == 1), arms, 199)
    found = {row["arm"]: row for row in rows}
    assert found["few"]["effect"] > 1 and found["few"]["p"] == 0.005 and "p" not in found["all"]
    assert all(found[arm]["p"] > 0.02 for arm in ("repeated", "similar", "different"))


@pytest.mark.slow
def test_the_script_trains_heads_and_prints_the_effects_of_the_arms(radii, tmp_path, capsys):
    root = write_chords(tmp_path)
    header, *rows = (root / "train.csv").read_text().split()
    (root / "train.csv").write_text("\n".join([f"{header},corpus", *(f"{row},x" for row in rows)]))
    words = (save_model(tmp_path / "model"), root / "train.csv", "--audio-root", root / "audio", "--output", tmp_path)
    options = "--heads ham radial_margin --seeds 1 --epochs 1 --keep 2 --crops 2 --shape --permutations 19"
    assert radii.main([str(word) for word in (*words, *options.split())]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "radii.json").read_text())["heads"]
    assert set(found) == {"ham", "radial_margin"}
    for head, one in found.items():
        assert f"{head}: radius of the centres: x" in out
        assert [row["arm"] for row in one["arms"]] == list(radii.ARMS)
        assert one["hierarchy"]["counts"]["centres"] == 6
