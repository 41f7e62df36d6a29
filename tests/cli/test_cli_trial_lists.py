"""Every command reads trial lists of every format."""

import json

import numpy as np
import pytest

from hf_hamspk.evaluation.trials import Trials
from hf_hamspk.training.trial_lists import gather_trial_lists

FIRST = "1 a.wav b.wav\n0 a.wav c.wav\n"
LISTS = {"first": FIRST, "last": "a.wav b.wav 1\na.wav c.wav 0\n", "named": "a.wav b.wav tgt\na.wav c.wav imp\n"}


@pytest.fixture(params=LISTS)
def trials(request, tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text(LISTS[request.param])
    return path


@pytest.mark.slow
def test_evaluate(hamspk, model_folder, voices, trials, tmp_path):
    words = ("evaluate", model_folder, trials, "--audio-root", voices, "--replicates", 0, "--output", tmp_path / "out")
    code, _, err = hamspk(*words)
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())["lists"]["trials"]
    assert (record["trials"], record["targets"]) == (2, 1)


@pytest.mark.slow
def test_sweep(hamspk, model_folder, voices, trials, tmp_path):
    words = ("sweep", model_folder, trials, "--audio-root", voices, "--replicates", 0, "--over", "duration")
    code, _, err = hamspk(*words, "--values", 1, "--output", tmp_path / "out")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())["sweeps"]["trials"]
    (point, *_) = record["conditions"]["duration"]
    assert (point["trials"], point["targets"]) == (2, 1)


def test_embed(hamspk, model_folder, voices, trials, tmp_path):
    words = ("embed", model_folder, "--trials", trials, "--audio-root", voices, "--output", tmp_path / "out.parquet")
    code, out, err = hamspk(*words)
    assert code == 0, err
    assert "3 files embedded" in out


def test_calibrate(refusal, model_folder, voices, trials, tmp_path):
    table = tmp_path / "speakers.csv"
    table.write_text("path,speaker_id\na.wav,1\nb.wav,1\nc.wav,2\n")
    words = ("calibrate", model_folder, trials, "--audio-root", voices, "--metadata", table, "--output", tmp_path / "o")
    assert ", got 1 target pairs and 1 impostor pairs. Add pairs." in refusal(*words)


def test_train(trials, voices):
    lists = gather_trial_lists(str(trials), (), str(voices))
    assert lists.dev is not None and isinstance(lists.trials[lists.dev], Trials)
    np.testing.assert_array_equal(lists.trials[lists.dev].labels, [1, 0])
