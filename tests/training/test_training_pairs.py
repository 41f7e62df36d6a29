"""Clean and augmented in one step: the crops, the losses, the gradients; noise from shards."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
import torch
from small_shards import make_shards_of
from test_training_trainer import ROOT, assert_same_weights, losses, train

from hf_hamspk.training import Trainer, read_recipe
from hf_hamspk.training.building import noise_source, views

PAIRS = {"augment_pairs": "true", "augment_probability": 1.0}
UNMASKED = {"mask_frames": 0, "mask_mel_bins": 0}


@pytest.mark.slow
def test_a_pair_is_the_clean_crop_and_an_augmented_copy_of_it(tmp_path, run_words):
    kinds = {"augment_kinds": "noise"}
    clean = Trainer.from_recipe(read_recipe(run_words(tmp_path / "clean"))).crops
    augmented = Trainer.from_recipe(read_recipe(run_words(tmp_path / "single", augment_probability=1.0, **kinds))).crops
    pairs = Trainer.from_recipe(read_recipe(run_words(tmp_path / "pairs", **PAIRS, **kinds))).crops
    for index in ((0, 3), (2, 11)):
        assert pairs[index]["input_values"].shape == (2, 8_000)
        np.testing.assert_array_equal(pairs[index]["input_values"][0], clean[index]["input_values"])
        np.testing.assert_array_equal(pairs[index]["input_values"][1], augmented[index]["input_values"])
        assert pairs[index]["labels"] == clean[index]["labels"]


def test_the_losses_of_the_two_views_add_up_each_with_its_own_batch_statistics(tmp_path, run_words):
    trainer = Trainer.from_recipe(read_recipe(run_words(tmp_path, **PAIRS, **UNMASKED)))
    trainer.batches_per_epoch = 4
    batch = next(trainer._batches())[0]
    labels, (clean, augmented) = batch["labels"], batch["input_values"].unbind(1)
    model = trainer.bare_model.train()
    expected = model(clean, labels=labels).loss + model(augmented, labels=labels).loss
    mixed = model(torch.cat([clean, augmented]), labels=labels.repeat(2)).loss
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    loss = sum(trainer._backward(view, 1) for view in views(batch))
    torch.testing.assert_close(loss, expected.detach())
    assert abs((2 * mixed - expected).item()) > 1e-4
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_a_run_on_pairs_is_resumed_exactly_with_other_loader_processes(tmp_path, run_words):
    changes = PAIRS | {"epochs": 2, "save_steps": 2, "mask_frames": 9}
    train(run_words(tmp_path / "whole", **changes))
    train(run_words(tmp_path / "cut", max_steps=5, **changes))
    train(run_words(tmp_path / "cut", num_workers=2, **changes))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert_same_weights(tmp_path / "whole" / "final", tmp_path / "cut" / "final")


@pytest.mark.slow
def test_two_processes_train_on_pairs_as_one_does(tmp_path, run_words):
    changes = PAIRS | UNMASKED | {"freeze_batch_norm": "true", "batch_size": 12, "epochs": 2}
    script, environment = str(ROOT / "examples" / "train.py"), os.environ | {"ACCELERATE_USE_CPU": "true"}
    for count in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        words = run_words(tmp_path / str(count), gradient_accumulation_steps=3 - count, **changes)
        done = subprocess.run([*launch, script, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), atol=1e-5)


def test_pairs_without_augmentation_are_refused(tmp_path, run_words):
    with pytest.raises(ValueError, match="augment_pairs needs augment_probability above 0"):
        read_recipe(run_words(tmp_path, augment_pairs="true"))


def test_noise_of_shards_is_that_of_its_files(tmp_path):
    waves = [np.random.default_rng(i).uniform(-0.5, 0.5, 2_000).astype(np.float32) for i in range(5)]
    rows = []
    for number, wave in enumerate(waves):
        sf.write(tmp_path / "n.wav", wave, 16_000, subtype="FLOAT")
        content = (tmp_path / "n.wav").read_bytes()
        rows.append({"key": str(number), "speaker": "noise", "content": content, "samples": 2_000})
    make_shards_of(tmp_path / "shards", rows, [[2], [3]])
    source = noise_source(str(tmp_path / "shards"), 16_000)
    drawn = {source.whole(np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert drawn == {wave.tobytes() for wave in waves}
    piece = source.crop(50, np.random.default_rng(1))
    assert any(np.array_equal(piece, w[s : s + 50]) for w in waves for s in np.flatnonzero(w == piece[0]))
    np.testing.assert_array_equal(source.crop(50, np.random.default_rng(1)), piece)
