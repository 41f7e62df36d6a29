"""Training on batches of so many speakers with so many utterances each."""

import numpy as np
import pytest
from test_training_trainer import losses, train

from hf_hamspk.training import TrainingArguments
from hf_hamspk.training.building import speaker_order


def test_each_batch_is_of_different_speakers_who_come_equally_often():
    # The first speaker has most of the utterances.
    labels = np.repeat(np.arange(6), [60, 4, 4, 4, 4, 4])
    args = TrainingArguments(batch_size=8, utterances_per_speaker=2)
    order = speaker_order(labels, args, 3).reshape(-1, 4, 2)
    assert len(order) == 10
    assert (labels[order][..., 0] == labels[order][..., 1]).all()
    assert all(len(set(batch[:, 0])) == 4 for batch in labels[order])
    assert np.ptp(np.bincount(labels[order].ravel())) <= 2
    assert np.array_equal(order.ravel(), speaker_order(labels, args, 3))
    assert not np.array_equal(order.ravel(), speaker_order(labels, args, 4))


@pytest.mark.slow
def test_a_run_is_resumed_exactly(tmp_path, run_words):
    balanced = {"utterances_per_speaker": 2, "epochs": 2, "speed_factors": "1.0 0.9"}
    train(run_words(tmp_path / "whole", **balanced))
    train(run_words(tmp_path / "cut", max_steps=5, **balanced))
    train(run_words(tmp_path / "cut", **balanced))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


@pytest.mark.parametrize(
    ("batch_size", "each", "message"),
    [
        (6, 4, r"batch_size \(6\) must be a multiple of utterances_per_speaker \(4\)"),
        (8, 1, "The labels must contain at least 8 speakers"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, run_words, batch_size, each, message):
    with pytest.raises(ValueError, match=message):
        train(run_words(tmp_path, batch_size=batch_size, utterances_per_speaker=each))
