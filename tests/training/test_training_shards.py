"""Training on shards: the losses of the files in the same order, exact resumption, any number of processes."""

import csv
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_shards import make_shards_of
from test_training_trainer import assert_same_weights, losses, train

from hf_hamspk.data.sampling import GlobalBatchSampler
from hf_hamspk.shards.reading import ShardReader
from hf_hamspk.shards.streaming import ShardUtterances, StreamedCrops
from hf_hamspk.training import building

ROOT = Path(__file__).parents[2]
CHANGES = {"augment_probability": 0.5, "augment_kinds": "noise gain reverb", "speed_factors": "1.0 0.9"}


@pytest.fixture(scope="session")
def shards(corpus, tmp_path_factory):
    """The training corpus as shards, in the order of its table."""
    folder = tmp_path_factory.mktemp("shards")
    with open(corpus / "train.csv", newline="") as file:
        rows = [
            {
                "key": row["path"].removesuffix(".flac"),
                "speaker": row["speaker_id"],
                "content": (corpus / "audio" / row["path"]).read_bytes(),
                "samples": 16_000,
            }
            for row in csv.DictReader(file)
        ]
    make_shards_of(folder, rows, [[4, 3], [5], [6, 6]])
    return folder


def from_shards(run_words, shards, output_dir, **changes):
    """Command-line words of a run on the shards; the trial lists keep their folder."""
    return run_words(output_dir, train_data=shards, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
def test_losses_are_those_of_the_files_in_the_same_order(tmp_path, run_words, shards, monkeypatch, accumulation):
    changes = CHANGES | {"gradient_accumulation_steps": accumulation, "epochs": 2}
    train(from_shards(run_words, shards, tmp_path / "shards", **changes))

    @functools.wraps(GlobalBatchSampler)
    def in_order_of_shards(samples, size, rank, ranks, steps, seed, epoch, start, order):
        assert order is None
        crops = building.SpeakerCrops(
            ShardUtterances(ShardReader(shards)), {f"s{i}": i for i in range(6)}, 8_000, seed, (1.0, 0.9)
        )
        streamed = StreamedCrops(crops, size, epoch).order
        indices = np.concatenate([streamed.samples(batch) for batch in range(streamed.batches)])
        return GlobalBatchSampler(samples, size, rank, ranks, steps, seed, epoch, start, indices)

    monkeypatch.setattr(building, "GlobalBatchSampler", in_order_of_shards)
    train(run_words(tmp_path / "files", **changes))
    assert len(losses(tmp_path / "files")) == 16
    assert losses(tmp_path / "shards") == losses(tmp_path / "files")
    assert_same_weights(tmp_path / "shards" / "final", tmp_path / "files" / "final")


def test_balanced_speakers_are_for_files(run_words, shards, tmp_path):
    with pytest.raises(ValueError, match="utterances_per_speaker is for corpora in files"):
        train(from_shards(run_words, shards, tmp_path, utterances_per_speaker=2))


@pytest.mark.slow
def test_a_run_on_shards_is_resumed_exactly(tmp_path, run_words, shards):
    """Other loader processes after the stop, which is in the middle of an epoch; masking and augmentation are on."""
    changes = {"save_steps": 2, "mask_frames": 9, "epochs": 2, "augment_probability": 0.5}
    train(from_shards(run_words, shards, tmp_path / "whole", **changes))
    train(from_shards(run_words, shards, tmp_path / "cut", max_steps=5, **changes))
    train(from_shards(run_words, shards, tmp_path / "cut", num_workers=2, **changes))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert_same_weights(tmp_path / "whole" / "final", tmp_path / "cut" / "final")


@pytest.mark.slow
def test_processes_and_resumption_by_another_number_of_them(tmp_path, run_words, shards):
    """One process, two, and one that goes on where two stopped: the same losses up to rounding."""
    changes = {"freeze_batch_norm": "true", "mask_frames": 0, "mask_mel_bins": 0, "batch_size": 4}
    # Small steps of SGD: Adam makes a whole step of a gradient that is all rounding, and large steps magnify it.
    changes |= {"optimizer": "sgd", "learning_rate": 1e-3}
    script = str(ROOT / "examples" / "train.py")
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def run(count, folder, **more):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), script]
        words = from_shards(run_words, shards, tmp_path / folder, **(changes | more))
        done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    run(1, "one")
    run(2, "two", num_workers=1)
    run(2, "both", max_steps=8)
    run(1, "both", num_workers=2)
    one = losses(tmp_path / "one")
    assert len(one) == 18
    for folder in ("two", "both"):
        assert max(abs(a - b) for a, b in zip(one, losses(tmp_path / folder), strict=True)) < 1e-5
    for path in tmp_path.glob("*/final/evaluation.json"):
        assert json.loads(path.read_text())["training"]["unreadable_files"] == {}


@pytest.mark.slow
def test_other_shards_are_another_run(tmp_path, run_words, shards, capsys):
    train(from_shards(run_words, shards, tmp_path / "run", epochs=1))
    assert f"24 utterances of 6 speakers, 0.01 h, in 3 shards at {shards}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"training_data: '.*' in the checkpoint, '.*' now"):
        train(run_words(tmp_path / "run", epochs=1))


def test_shards_of_one_speaker_are_refused(tmp_path, run_words):
    row = {"key": "a", "speaker": "s", "content": b"", "samples": 1}
    make_shards_of(tmp_path / "shards", [row, row], [[2]])
    with pytest.raises(ValueError, match=re.escape("Training needs at least 2 speakers, got 1 in ")):
        train(from_shards(run_words, tmp_path / "shards", tmp_path / "run"))
