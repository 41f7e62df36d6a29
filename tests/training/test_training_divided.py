"""Training with few of the speakers at a time, and with their centres divided among processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training_trainer import losses, train

from hf_hamspk import HamSpkForXVector

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train.py"
# What processes would draw each for themselves is off. Small steps of SGD: Adam makes a whole step of a gradient that
# is all rounding, and which way it goes differs between processors.
SAME = {"freeze_batch_norm": "true", "mask_frames": 0, "mask_mel_bins": 0, "batch_size": 12, "max_grad_norm": 0.5}
SAME |= {"optimizer": "sgd", "learning_rate": 1e-2}


def launch(processes: int, words: list[str]) -> None:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, str(SCRIPT), *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_divided_centres_train_as_whole_ones_and_resume_with_other_processes(tmp_path, run_words):
    train(run_words(tmp_path / "whole", **SAME))
    divided = run_words(tmp_path / "divided", shard_centres="true", **SAME)
    launch(4, [*divided, "--max_steps", "3"])
    launch(2, divided)
    left, right = losses(tmp_path / "whole"), losses(tmp_path / "divided")
    assert len(left) == len(right) == 6
    assert left == pytest.approx(right, abs=1e-5)
    for name in ("best", "last", "final"):
        one, two = (HamSpkForXVector.from_pretrained(tmp_path / run / name) for run in ("whole", "divided"))
        assert two.head.similarity.weight.shape == (6, 16)
        for key, tensor in one.state_dict().items():
            told = f"{name}: {key}: "
            torch.testing.assert_close(
                two.state_dict()[key], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, told=told: told + text
            )


@pytest.mark.slow
def test_class_sampling_trains(tmp_path, run_words):
    train(run_words(tmp_path / "run", class_sampling=0.5, epochs=1))
    assert all(loss > 0 for loss in losses(tmp_path / "run"))
    assert HamSpkForXVector.from_pretrained(tmp_path / "run" / "final").head.engine is None


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_out_of_range_is_refused(tmp_path, run_words, share):
    with pytest.raises(ValueError, match="class_sampling must be between 1e-06 and 1, got"):
        train(run_words(tmp_path, class_sampling=share))


def test_divided_centres_refuse_fp16(tmp_path, run_words):
    with pytest.raises(ValueError, match="shard_centres needs mixed_precision 'bf16' or 'no'"):
        train(run_words(tmp_path, shard_centres="true", mixed_precision="fp16"))
