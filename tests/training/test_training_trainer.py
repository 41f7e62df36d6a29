"""The trainer: what it leaves behind, exact resumption, independence of processes, bad data."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, WavLMConfig, WavLMModel

from hf_hamspk import HamSpkForXVector
from hf_hamspk.calibration_hamspk import Calibration
from hf_hamspk.data.synthetic import make_corpus
from hf_hamspk.evaluation.evaluating import EvaluationSettings, evaluate
from hf_hamspk.evaluation.report import format_report
from hf_hamspk.evaluation.results import EvaluationRecord
from hf_hamspk.evaluation.sweeps import sweep
from hf_hamspk.training import Trainer, read_recipe
from hf_hamspk.training.checkpoints import write_file_list

ROOT = Path(__file__).parents[2]


def train(words: list[str]) -> EvaluationRecord:
    return Trainer.from_recipe(read_recipe(words)).train()


def record_of(folder: Path) -> EvaluationRecord:
    return EvaluationRecord.read(folder / "evaluation.json")


def losses(folder: Path) -> list[float]:
    """Loss of each step, by step number; a resumed run writes some steps twice."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_step = {row["step"]: row["loss"] for row in rows if "loss" in row}
    return [by_step[step] for step in sorted(by_step)]


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.slow
def test_run_leaves_models_results_and_logs(tmp_path, run_words, corpus):
    results = train(run_words(tmp_path / "run", epochs=4, test_trials=corpus / "dev.txt"))
    folder = tmp_path / "run"
    assert results == record_of(folder / "final") and results.model["name"] == "run/final"
    assert results.lists["dev"]["trials"] == 12
    assert "dev" in format_report(results)
    assert (folder / "final" / "report.html").is_file() and not (folder / "results.json").exists()
    assert {file.name for file in (folder / "final" / "plots").iterdir()} == {"det.png", "scores-dev.png"}
    assert (results.training["epochs"], results.training["dev_list"]) == (4, "dev")
    best = record_of(folder / "best")
    assert best.lists["dev"]["eer"] == best.training["best_dev_eer"] == results.training["best_dev_eer"]
    assert best.training["epochs"] == best.training["best_dev_epoch"] == results.training["best_dev_epoch"]
    assert losses(folder)[-1] < losses(folder)[0]
    assert list((folder / "logs").rglob("events.out.tfevents*"))
    for name in ("best", "last", "final"):
        model = HamSpkForXVector.from_pretrained(folder / name)
        assert model.config.id2label[5] == "s5"
        assert AutoFeatureExtractor.from_pretrained(folder / name).sampling_rate == 16000
        if name != "last":
            assert record_of(folder / name).fingerprint == model.fingerprint()
    assert model.calibration is None  # chords in noise are no speech, and 12 trials are too few
    assert "decisions" not in results.lists["dev"]
    assert len(list((folder / "checkpoints").glob("step-*"))) == 2
    assert read_recipe([str(folder / "recipe.yaml")]).training.epochs == 4


@pytest.mark.slow
def test_final_decides_at_operating_points(tmp_path, run_words):
    """With a development list of speech, as many speakers and pairs as a calibration needs."""
    root = make_corpus(tmp_path / "corpus", 12, 4, 5, (1.5, 1.8), test_share=0.5)
    words = {"train_data": root / "train.csv", "audio_root": root, "dev_trials": root / "trials.txt"}
    shutil.copy(root / "trials.txt", root / "test.txt")
    results = train(run_words(tmp_path / "run", epochs=2, **words, test_trials=root / "test.txt"))
    model = HamSpkForXVector.from_pretrained(tmp_path / "run" / "final")
    assert model.calibration is not None
    assert (model.calibration.audio, model.calibration.normalisation) == ("trials.txt", "none")
    names = [point.name for point in model.calibration.operating_points]
    for row in (results.lists["trials"]["decisions"], results.lists["test"]["decisions"]):
        assert list(row["operating_points"]) == names
        assert row["cllr"] > 0
    assert "balanced" in format_report(results)
    assert HamSpkForXVector.from_pretrained(tmp_path / "run" / "last").calibration is None


@pytest.mark.slow
def test_training_evaluation_and_sweep_agree(tmp_path, run_words):
    """The same model and list: the same EER over the same trials, though some recordings are too short to decide."""
    root = make_corpus(tmp_path / "corpus", 12, 4, 5, (1.5, 1.8), test_share=0.5)
    short = sorted((root / "test").rglob("*.*"))[0]
    wave, rate = soundfile.read(short)
    soundfile.write(short, wave[: rate // 2], rate)
    words = {"train_data": root / "train.csv", "audio_root": root, "dev_trials": root / "trials.txt"}
    trained = train(run_words(tmp_path / "run", epochs=2, **words)).lists["trials"]
    assert trained["decisions"]["without_decision"] > 0
    model = HamSpkForXVector.from_pretrained(tmp_path / "run" / "final").eval()
    settings = EvaluationSettings(replicates=0, progress=False)
    evaluated = evaluate(model, root / "trials.txt", root, settings).record.lists["trials"]
    swept = sweep(model, root / "trials.txt", root, ["duration"], [1.0], replicates=0, progress=False)
    point = swept.points["duration"][0]
    model.calibration = None
    raw = evaluate(model, root / "trials.txt", root, settings)["trials"].record
    counts = {(found["trials"], found["targets"], found["skipped"]) for found in (trained, evaluated, raw)}
    assert counts == {(point.trials, point.targets, swept.record.sweeps["trials"]["skipped"])}
    assert trained["eer"] == evaluated["eer"] == raw["eer"] == point.eer
    assert trained["decisions"] == evaluated["decisions"]
    assert trained["digest"] == swept.record.sweeps["trials"]["digest"]


@pytest.mark.slow
def test_final_is_the_mean_of_the_last_epochs(tmp_path, run_words):
    results = train(run_words(tmp_path, epochs=3, average_last=2))
    averaged = results.training["averaged"]
    assert averaged == ["epoch-0002.safetensors", "epoch-0003.safetensors"]
    epochs = [load_file(tmp_path / "epochs" / name) for name in averaged]
    final = load_file(tmp_path / "final" / "model.safetensors")
    for name, tensor in final.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (epochs[0][name] + epochs[1][name]) / 2)


@pytest.mark.slow
def test_resumed_run_ends_with_the_same_weights(tmp_path, run_words):
    """Masking, augmentation and speed are on, so random states must be right; the stop is in the middle of an epoch."""
    changes = {"save_steps": 2, "augment_probability": 0.5, "speed_factors": "1.0 0.9", "mask_frames": 9}
    train(run_words(tmp_path / "whole", **changes))
    train(run_words(tmp_path / "cut", max_steps=11, **changes))
    shutil.rmtree(tmp_path / "cut" / "last")
    train(run_words(tmp_path / "cut", **changes))
    for name in ("last", "final"):
        assert_same_weights(tmp_path / "whole" / name, tmp_path / "cut" / name)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_killed_run_ends_with_the_same_weights(tmp_path, run_words, attempt):
    changes = {"epochs": 5, "save_steps": 3, "augment_probability": 0.5, "speed_factors": "1.0 0.9 1.1"}
    command = [sys.executable, str(ROOT / "examples" / "train.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [*command, *run_words(tmp_path / "whole", **changes)]
    cut = [*command, *run_words(tmp_path / "cut", **changes)]
    subprocess.run(whole, check=True, env=environment, capture_output=True)
    # Anywhere: also while a checkpoint or a model is being written.
    wanted = random.Random(attempt).uniform(4, 55)
    process = subprocess.Popen(cut, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) >= wanted):
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "final").exists()
    subprocess.run(cut, check=True, env=environment, capture_output=True)
    assert_same_weights(tmp_path / "whole" / "final", tmp_path / "cut" / "final")


@pytest.mark.slow
def test_two_processes_follow_one(tmp_path, run_words):
    changes = {"freeze_batch_norm": "true", "mask_frames": 0, "mask_mel_bins": 0, "batch_size": 12}
    script = str(ROOT / "examples" / "train.py")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for count in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), script]
        done = subprocess.run(
            [*launch, *run_words(tmp_path / str(count), **changes)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert record_of(tmp_path / str(count) / "final").training["processes"] == count
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 6
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5
    results = [record_of(tmp_path / count / "final").lists["dev"] for count in ("1", "2")]
    assert results[0]["eer"] == results[1]["eer"]


@pytest.mark.slow
def test_accumulation_gives_the_same_losses(tmp_path, run_words):
    changes = {"freeze_batch_norm": "true", "mask_frames": 0, "mask_mel_bins": 0, "epochs": 1}
    train(run_words(tmp_path / "whole", **changes))
    train(run_words(tmp_path / "parts", gradient_accumulation_steps=3, **changes))
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "parts"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "learning_rate": 0.01, "lr_schedule": "exponential", "warmup_epochs": 0.5},
        {"optimizer": "adamw", "margin_start_epoch": 0.5, "margin_end_epoch": 1, "head": "joint"},
        {"mixed_precision": "bf16", "max_grad_norm": 1, "num_workers": 1, "protocol": "paper"},
    ],
    ids=["sgd", "margin-schedule", "bf16"],
)
def test_other_settings_train(tmp_path, run_words, changes):
    train(run_words(tmp_path, epochs=2, **changes))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert all(np.isfinite(row["loss"]) for row in steps)
    if "margin_end_epoch" in changes:
        assert steps[0]["margin"] == 0 and steps[-1]["margin"] == pytest.approx(0.2)
        assert HamSpkForXVector.from_pretrained(tmp_path / "final").config.margin == pytest.approx(0.2)


@pytest.mark.slow
def test_pretrained_backbone_and_fine_tuning(tmp_path, run_words):
    WavLMModel(
        WavLMConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(16,) * 7,
            feat_extract_norm="layer",
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            mask_time_length=2,
            layerdrop=0.5,
        )
    ).save_pretrained(tmp_path / "wavlm")
    changes = {"epochs": 1, "backbone": tmp_path / "wavlm", "pooling": "mhfa", "mhfa_heads": 2}
    words = run_words(tmp_path / "first", **changes, ecapa_channels=None, ecapa_output_channels=None)
    train(words)
    first = HamSpkForXVector.from_pretrained(tmp_path / "first" / "final")
    assert first.config.backbone_config.model_type == "wavlm"
    words[words.index("--backbone")] = "--initial_model"
    words[words.index(str(tmp_path / "wavlm"))] = str(tmp_path / "first" / "final")
    words[words.index(str(tmp_path / "first"))] = str(tmp_path / "second")
    train([*words, "--head", "aam", "--speed_factors", "1.0", "1.1"])
    second = HamSpkForXVector.from_pretrained(tmp_path / "second" / "final")
    assert (second.config.head, second.config.num_labels) == ("aam", 12)


@pytest.mark.slow
def test_bad_files_are_skipped_and_reported(tmp_path, run_words, corpus, capsys):
    shutil.copytree(corpus, tmp_path / "data")
    (tmp_path / "data/audio/s0/0.flac").write_bytes(b"this is no audio")
    (tmp_path / "data/audio/s1/0.flac").write_bytes(b"")
    soundfile.write(tmp_path / "data/audio/s2/0.flac", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "data/audio/s3/0.flac", 0.1 * np.ones(800), 16000)
    results = train(
        run_words(
            tmp_path / "run",
            epochs=1,
            train_data=tmp_path / "data/train.csv",
            audio_root=tmp_path / "data/audio",
            dev_trials=tmp_path / "data/dev.txt",
        )
    )
    assert "20 files of 6 speakers" in capsys.readouterr().out
    assert set(results.lists["dev"]["unusable_files"]) == {f"s{i}/0.flac" for i in range(4)}
    assert results.lists["dev"]["skipped"] == 8


@pytest.mark.slow
def test_checkpoint_of_another_architecture_is_refused(tmp_path, run_words):
    train(run_words(tmp_path, epochs=1))
    with pytest.raises(ValueError, match=re.escape("ecapa_channels: 16 in the checkpoint, 32 now")):
        train(run_words(tmp_path, epochs=1, ecapa_channels=32))
    with pytest.raises(ValueError, match=re.escape("seed: 0 in the checkpoint, 1 now")):
        train(run_words(tmp_path, epochs=1, seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5, "gradient_accumulation_steps": 2}, "must be a multiple of 2 (1 ranks x 2"),
        ({"batch_size": 1000}, "24 samples do not fill one global batch of 1000"),
        ({"audio_root": "nowhere"}, "12 of 12 files of the trial list are missing under nowhere"),
    ],
)
def test_impossible_runs_are_refused(tmp_path, run_words, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(run_words(tmp_path, **changes))


def test_trial_of_a_missing_file_is_refused_before_training(tmp_path, run_words):
    (tmp_path / "trials.txt").write_text("1 s0/0.flac s0/nowhere.flac\n0 s0/0.flac s1/0.flac\n")
    with pytest.raises(ValueError, match=re.escape("s0/nowhere.flac")):
        train(run_words(tmp_path / "run", dev_trials=tmp_path / "trials.txt"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_cut_epoch_counts_as_one(tmp_path, run_words):
    """The steps up to `max_steps` are in `final`, and a longer run continues from exactly there."""
    results = train(run_words(tmp_path / "cut", max_steps=6))
    averaged = ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    assert (results.training["steps"], results.training["averaged"]) == (6, averaged)
    assert [path.name for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())][-1] == "step-00000006"
    results = train(run_words(tmp_path / "short", max_steps=2))
    assert (tmp_path / "short" / "final" / "model.safetensors").is_file()
    train(run_words(tmp_path / "cut"))
    train(run_words(tmp_path / "whole"))
    assert_same_weights(tmp_path / "whole" / "final", tmp_path / "cut" / "final")


@pytest.mark.slow
def test_a_new_run_in_a_used_folder_forgets_the_old_one(tmp_path, run_words):
    train(run_words(tmp_path / "used", epochs=4))
    results = train(run_words(tmp_path / "used", epochs=2, seed=9, resume="false"))
    assert results.training["averaged"] == ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    train(run_words(tmp_path / "fresh", epochs=2, seed=9))
    assert_same_weights(tmp_path / "fresh" / "final", tmp_path / "used" / "final")
    assert len(losses(tmp_path / "used")) == 8


@pytest.mark.slow
def test_fine_tuning_takes_nothing_stale(tmp_path, run_words):
    """No calibration of the old model, the published settings of a new head, no encoder weights left to chance."""
    train(run_words(tmp_path / "first", epochs=1, head="softmax"))
    first = tmp_path / "first" / "final"
    old = HamSpkForXVector.from_pretrained(first)
    old.calibration = Calibration(old.fingerprint(), "cosine", 0.0, {"score": 1.0})
    old.save_pretrained(first)
    words = run_words(tmp_path / "second", epochs=1, initial_model=first, head="ham")
    dev = words.index("--dev_trials")
    train(words[:dev] + words[dev + 2 :])
    new = HamSpkForXVector.from_pretrained(tmp_path / "second" / "final")
    assert (new.config.scale, new.config.curvature, new.config.margin) == (30.0, 3.0, 0.2)
    assert new.calibration is None
    with pytest.raises(ValueError, match=re.escape("do not fit the model that the recipe describes")):
        train(run_words(tmp_path / "third", initial_model=first, ecapa_channels=32))
    with pytest.raises(ValueError, match=re.escape("pooling 'mhfa' needs a transformers backbone")):
        train(run_words(tmp_path / "third", initial_model=first, pooling="mhfa"))
    with pytest.raises(ValueError, match=re.escape("To fine-tune it, set initial_model instead")):
        train(run_words(tmp_path / "third", backbone=first))


def test_trial_lists_of_one_kind_are_refused_before_training(tmp_path, run_words):
    (tmp_path / "targets.txt").write_text("1 s0/0.flac s0/1.flac\n1 s1/0.flac s1/1.flac\n")
    for argument in ("dev_trials", "test_trials"):
        with pytest.raises(ValueError, match=re.escape("0 impostor trials, but error rates need both.")):
            train(run_words(tmp_path / "run", **{argument: tmp_path / "targets.txt"}))
    with pytest.raises(ValueError, match=re.escape("There is no trial list nowhere.txt")):
        train(run_words(tmp_path / "run", dev_trials="nowhere.txt"))


@pytest.mark.slow
def test_resuming_on_other_data_is_refused(tmp_path, run_words, corpus):
    rows = (corpus / "train.csv").read_text().splitlines()
    swapped = [rows[0], *(row[:-1] + str((int(row[-1]) + 1) % 6) for row in rows[1:])]
    (tmp_path / "swapped.csv").write_text("\n".join(swapped) + "\n")
    train(run_words(tmp_path / "run", epochs=1))
    with pytest.raises(ValueError, match=r"training_data: '.*' in the checkpoint, '.*' now"):
        train(run_words(tmp_path / "run", epochs=1, train_data=tmp_path / "swapped.csv"))
    # The recipe in the folder is still that of the run.
    assert read_recipe([str(tmp_path / "run" / "recipe.yaml")]).data.train_data == str(corpus / "train.csv")


@pytest.mark.slow
def test_resuming_on_replaced_recordings_is_refused(tmp_path, run_words, corpus):
    """Copies elsewhere, with other times, resume; another recording under the same name does not."""
    shutil.copytree(corpus / "audio", tmp_path / "audio")
    train(run_words(tmp_path / "run", epochs=1))
    words = run_words(tmp_path / "run", epochs=1, audio_root=tmp_path / "audio")
    train(words)
    shutil.copy(corpus / "audio" / "s1" / "0.flac", tmp_path / "audio" / "s2" / "0.flac")
    with pytest.raises(
        ValueError, match=r"(?s)training_recordings: '.*' in the checkpoint, .*edited after the checkpoint"
    ) as it:
        train(words)
    assert f"initial_model: {tmp_path / 'run' / 'last'}" in str(it.value) and (tmp_path / "run" / "last").is_dir()
    # A checkpoint of an earlier version does not know the contents.
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    progress = json.loads((checkpoint / "progress.json").read_text())
    del progress["config"]["training_recordings"]
    (checkpoint / "progress.json").write_text(json.dumps(progress))
    write_file_list(checkpoint, [path.name for path in checkpoint.iterdir()])
    train(words)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.bin", "model.safetensors", "progress.json"])
def test_damaged_checkpoints_are_named(tmp_path, run_words, name):
    train(run_words(tmp_path, epochs=2, max_steps=6))
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    file = newest / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=re.escape(f"{newest} is damaged")):
        train(run_words(tmp_path, epochs=2))
    shutil.rmtree(newest)
    assert train(run_words(tmp_path, epochs=2)).training["epochs"] == 2


def test_a_diverged_run_saves_nothing(tmp_path, run_words):
    with pytest.raises(ValueError, match="the run diverged"):
        train(run_words(tmp_path, head="softmax", optimizer="sgd", learning_rate=1e6, weight_decay=1, log_steps=1000))
    assert not (tmp_path / "last").exists()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_test_lists_of_one_name_are_told_apart(tmp_path, run_words, corpus):
    (tmp_path / "other").mkdir()
    shutil.copy(corpus / "dev.txt", tmp_path / "other" / "dev.txt")
    lists = f"{corpus / 'dev.txt'} {tmp_path / 'other' / 'dev.txt'}"
    results = train(run_words(tmp_path / "run", epochs=1, test_trials=lists))
    assert sorted(results.lists) == sorted([f"{corpus.name}/dev", "other/dev"])
    assert len(format_report(results).split("\n\n")[0].splitlines()) == 3
