"""Runs of a study: equal seeds, claims, kills, and what a record keeps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_models import settle, tiny_config
from transformers import TrainerCallback

from hf_hamspk import HamSpkForXVector
from hf_hamspk.folders.locks import lock_folder
from hf_hamspk.loading.models import load_with_head
from hf_hamspk.study.audio import StudyAudio
from hf_hamspk.study.plan import read_study
from hf_hamspk.study.records import (
    best_settings,
    planned_runs,
    read_record,
    read_scores,
    read_study_lists,
    write_scores,
)
from hf_hamspk.study.running import LOCK_FILE, make_trainer, recipe_of, run_study
from hf_hamspk.training import trainer
from hf_hamspk.training.arguments import parse_fields
from hf_hamspk.training.building import run_settings

VALUES = {"learning_rate": 0.002, "reach": 30.0, "relative_margin": 0.1, "curvature": 3.0}
HEADS = {
    name: {"recipe": {"head": name}, "search": {}} for name in ("softmax", "normalized_softmax", "am", "aam", "ram")
}
HEADS |= {name: {"recipe": {"head": name}, "search": {"reach": [10, 80]}} for name in ("h", "ham", "joint")}
HEADS |= {
    "angle": {"like": "ham", "control": "angle"},
    "rim": {"like": "ham", "control": "rim"},
    "curved": {"like": "ham", "recipe": {"projection": "curved", "curvature": 1.0}},
    "ham_c9": {"like": "ham", "recipe": {"curvature": 9.0}},
}


def audio_of(study):
    data = parse_fields(study.recipe, "recipe").data
    return StudyAudio(data, study.dev, study.tests, study.folds, 16000)


@pytest.mark.slow
def test_a_seed_gives_every_head_the_same_encoder_order_crops_augmentation_and_masks(tiny_study, tmp_path):
    study = read_study(tiny_study(heads=HEADS, comparisons={}))
    audio, linear = audio_of(study), {"learning_rate": 0.002}
    winners = {name: linear if name == "softmax" else VALUES for name, head in HEADS.items() if "like" not in head}
    found = {}
    for run in study.final_runs(winners):
        made = make_trainer(run, tmp_path / run.name, audio, [])
        encoder = torch.cat([p.detach().flatten() for p in made.bare_model.hamspk.parameters()])
        first, second, *_ = [batch[0]["input_values"] for batch in made._batches()]
        found[run.head, run.number] = torch.cat([encoder, first.flatten(), second.flatten(), torch.rand(3)])
    assert len(found) == 2 * len(HEADS)
    for seed in (1, 2):
        assert all(torch.equal(found[head, seed], found["ham", seed]) for head in HEADS)
    assert not torch.equal(found["ham", 1], found["ham", 2])


@pytest.mark.slow
def test_scale_and_margin_give_every_head_the_same_reach_and_relative_margin(tiny_study, tmp_path):
    study = read_study(tiny_study(heads=HEADS, comparisons={}))
    winners = {name: VALUES for name in HEADS if name != "softmax"}
    found = {run.head: recipe_of(run, tmp_path).model for run in study.final_runs(winners)}
    assert found["am"].scale == pytest.approx(30) and found["am"].margin == pytest.approx(0.1)
    assert found["ham"].scale == pytest.approx(30 / 2.0634, rel=1e-3)
    assert found["ham"].margin == pytest.approx(0.20634, rel=1e-3)
    assert found["rim"].scale == pytest.approx(found["ham"].scale, rel=1e-4)
    assert {round(model.scale * model.margin, 3) for model in found.values()} == {3.0}


@pytest.fixture(scope="module")
def finished(tiny_study, tmp_path_factory):
    """A finished study, and its folder."""
    study, folder = read_study(tiny_study()), tmp_path_factory.mktemp("finished")
    assert run_study(study, folder, quiet=True) == 0
    return study, folder


@pytest.mark.slow
def test_a_study_runs_to_its_end_and_is_not_repeated(finished):
    study, folder = finished
    runs = planned_runs(study, folder)
    assert [(run.stage, run.head, run.number) for run in runs] == [
        *[("tune", "am", 1), ("tune", "ham", 1), ("final", "am", 1), ("final", "ham", 1), ("final", "rim", 1)],
        *[("final", "am", 2), ("final", "ham", 2)],
    ]
    records = {run.name: read_record(folder / run.name) for run in runs}
    for run in runs:
        record = records[run.name]
        assert record is not None and record["seconds"] > 0
        assert [entry["epoch"] for entry in record["curve"]] == list(run.evaluate)
        assert 0 <= record["curve"][-1]["lists"]["dev"]["eer"] <= 1
        # Nothing is left of the training, and the record names no folder of this machine.
        kept = {"record.json", LOCK_FILE} | ({"scores.npz"} if run.stage == "final" else set())
        assert {path.name for path in (folder / run.name).iterdir()} == kept
        assert str(folder.parent) not in json.dumps(record)
    scores = read_scores(folder / runs[-1].name / "scores.npz")
    labels, speakers = read_study_lists(folder)["test"]
    assert set(scores) == {"test@1", "test@2"}
    assert all(values.shape == labels.shape for values in scores.values()) and len(speakers) == len(labels)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/record.json")}
    assert run_study(study, folder, quiet=True) == 0
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("*/record.json")}


@pytest.mark.slow
def test_models_of_heads_without_a_search_are_kept_and_can_be_loaded(tiny_study, tmp_path):
    heads = {"ham": {"recipe": {"head": "ham"}}, "radial": {"recipe": {"head": "ham"}, "control": "radial_margin"}}
    changes = {"heads": heads, "search": {}, "comparisons": {}, "test_trials": [], "final": {"seeds": 1, "epochs": 1}}
    study = read_study(tiny_study(**changes))
    assert run_study(study, tmp_path, quiet=True, keep_models=True) == 0
    for run in study.final_runs({"ham": {}, "radial": {}}):
        model, has_centres = load_with_head(tmp_path / run.name / "model", "cpu")
        assert has_centres and len(model.head.similarity.weight) == 6
    assert "final-radial-01" in {path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_evaluating_during_a_run_does_not_change_it(finished, tiny_study, tmp_path):
    _, folder = finished
    rarely = read_study(tiny_study(final={"seeds": 2, "epochs": 2}))
    for run in rarely.tuning_runs():
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "record.json").write_text((folder / run.name / "record.json").read_text())
    run_study(rarely, tmp_path, runs=1, quiet=True)
    (mine,) = [path for path in tmp_path.iterdir() if path.name.startswith("final")]
    (other,) = [path for path in folder.iterdir() if path.name.startswith("final-am-01")]
    assert read_record(mine)["curve"][-1]["lists"] == read_record(other)["curve"][-1]["lists"]


@pytest.mark.slow
def test_held_runs_are_left_to_their_process_and_a_lock_of_a_dead_process_is_taken_over(tiny, tmp_path):
    first, second, *_ = planned_runs(tiny, tmp_path)
    (tmp_path / first.name).mkdir()
    lock = tmp_path / first.name / LOCK_FILE
    with lock_folder(lock, lock.parent, "another process"):
        run_study(tiny, tmp_path, runs=1, quiet=True)
    assert read_record(tmp_path / first.name) is None and read_record(tmp_path / second.name) is not None
    lock.write_text(json.dumps({"package": "hf_hamspk", "work": "hamspk study", "pid": 2**22 + 1, "host": "gone"}))
    run_study(tiny, tmp_path, runs=1, quiet=True)
    assert read_record(tmp_path / first.name) is not None


@pytest.mark.slow
def test_a_run_that_is_killed_twice_is_resumed_and_ends_with_the_same_errors(tiny_study, tmp_path):
    path = tiny_study(tuning={"settings": 1, "epochs": 6, "evaluate": [2, 4]})
    study = read_study(path)
    run = study.tuning_runs()[0]
    words = [sys.executable, "-m", "hf_hamspk", "study", str(path), "--runs", "1", "--output"]
    place = tmp_path / "killed" / run.name
    for steps, number in ((4, signal.SIGTERM), (12, signal.SIGKILL)):
        with open(tmp_path / "log", "a") as log:
            process = subprocess.Popen([*words, str(tmp_path / "killed")], stdout=log, stderr=log)
        while process.poll() is None and not list(place.glob(f"training/checkpoints/step-000000{steps:02d}*")):
            time.sleep(0.01)
        os.kill(process.pid, number)
        assert process.wait() == (-number if number == signal.SIGKILL else 143), (tmp_path / "log").read_text()[-2000:]
    assert read_record(place) is None
    for folder in ("killed", "whole"):
        run_study(study, tmp_path / folder, runs=1, quiet=True)
    killed, whole = (read_record(tmp_path / folder / run.name) for folder in ("killed", "whole"))
    assert [entry["lists"] for entry in killed["curve"]] == [entry["lists"] for entry in whole["curve"]]
    assert [entry["epoch"] for entry in killed["curve"]] == [2, 4, 6]


class StopAfterOneEpoch(TrainerCallback):
    def on_epoch_end(self, args, state, control, **unused):
        control.should_training_stop = True


@pytest.mark.slow
def test_an_unfinished_run_of_another_version_begins_again(tiny_study, tmp_path, monkeypatch):
    study = read_study(tiny_study(tuning={"settings": 1, "epochs": 2}))
    run = study.tuning_runs()[0]
    make_trainer(run, tmp_path / run.name / "training", audio_of(study), [StopAfterOneEpoch()]).train()
    assert list((tmp_path / run.name).glob("training/checkpoints/step-*"))
    monkeypatch.setattr(trainer, "run_settings", lambda *words: run_settings(*words) | {"of_this_version": 1})
    run_study(study, tmp_path, runs=1, quiet=True)
    found = read_record(tmp_path / run.name)
    assert found is not None and [entry["epoch"] for entry in found["curve"]] == [2]


@pytest.mark.slow
def test_folds_hold_out_speakers_and_a_diverged_run_is_recorded_as_the_worst(tiny_study, tmp_path):
    heads = {"am": {"recipe": {"head": "am", "optimizer": "sgd", "momentum": 0.0}}}
    study = read_study(
        tiny_study(folds=2, dev_trials=[], heads=heads, comparisons={}, search={"learning_rate": [1e5, 1e6]})
    )
    audio = audio_of(study)
    held = []
    for fold in (1, 2):
        sounds, (name,) = audio.dev_sounds(fold)
        speakers = {Path(file).parent.name for file in sounds.lists[name].files}
        assert not speakers & set(audio.utterances(fold).speakers)
        assert speakers | set(audio.utterances(fold).speakers) == {f"s{i}" for i in range(6)}
        held.append(speakers)
    assert not held[0] & held[1]
    assert [run.fold for run in study.tuning_runs()] == [1, 2]
    run_study(study, tmp_path, runs=2, quiet=True)
    records = [read_record(tmp_path / run.name) for run in study.tuning_runs()]
    assert all("diverged" in record for record in records)
    assert set(best_settings(study, tmp_path)) == {"am"}


def test_scores_are_kept_to_a_thousandth(tmp_path):
    scores = np.random.default_rng(0).uniform(-1, 1, 1000)
    write_scores(tmp_path / "scores.npz", {"a@2": scores, "b@2": scores[:10]})
    found = read_scores(tmp_path / "scores.npz")
    assert np.abs(found["a@2"] - scores).max() < 6e-4 and found["b@2"].shape == (10,)
    assert read_scores(tmp_path / "none.npz") == {}


def test_a_damaged_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"record\.json is not a record .* Delete it"):
        read_record(tmp_path)
    write_scores(tmp_path / "scores.npz", {"a@2": np.zeros(1000)})
    whole = (tmp_path / "scores.npz").read_bytes()
    for content in (b"", b"text", whole[:100], whole[:60] + bytes(40) + whole[100:]):
        for name, read in (("scores", read_scores), ("lists", lambda path: read_study_lists(path.parent))):
            (tmp_path / f"{name}.npz").write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name}\.npz is damaged"):
                read(tmp_path / f"{name}.npz")


@pytest.mark.slow
def test_heads_are_compared_on_the_frames_of_a_pretrained_encoder(tiny_study, tmp_path):
    """Training and evaluation read the frames; a run trained on them has the scores of its model on the recordings."""
    torch.manual_seed(0)
    settle(HamSpkForXVector(tiny_config("campplus", embedding_size=16))).save_pretrained(tmp_path / "start")
    content = yaml.safe_load(tiny_study().read_text())
    drop = ("ecapa_channels", "ecapa_output_channels", "pooling_channels", "embedding_size", "augment_probability")
    recipe = {key: value for key, value in content["recipe"].items() if key not in drop}
    start = {"initial_model": str(tmp_path / "start"), "train_last_blocks": 0, "frame_folder": str(tmp_path / "frames")}
    study = read_study(tiny_study(recipe=recipe | start))
    moved = read_study(tiny_study(recipe=recipe | start | {"frame_folder": "elsewhere", "initial_model": "x/start"}))
    assert [run.name for run in study.tuning_runs()] == [run.name for run in moved.tuning_runs()]
    assert run_study(study, tmp_path / "study", quiet=True) == 0
    computed = list((tmp_path / "frames").iterdir())
    assert len(computed) == 24  # All heads and seeds share the files.
    run = study.final_runs(best_settings(study, tmp_path / "study"))[0]
    audio = audio_of(study)
    made = make_trainer(run, tmp_path / "again", audio, [])
    made.train()
    averaged = HamSpkForXVector.from_pretrained(tmp_path / "again" / "final")
    scores = audio.sounds.score(averaged, ["test"])["test"]
    kept = read_scores(tmp_path / "study" / run.name / "scores.npz")["test@2"]
    np.testing.assert_allclose(scores, kept, atol=1e-3)
