"""Recordings with themselves, and under two speakers: what a calibration leaves out, with the reason."""

import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.data.synthetic import make_corpus
from hf_hamspk.evaluation.model_calibration import calibrate
from hf_hamspk.evaluation.repeats import find_repeats
from hf_hamspk.evaluation.trials import Trials, read_trials
from hf_hamspk.files.same import first_copies


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Files a/1 and a/2 of equal content, a link a/3 to a/1, b/1 with the content of c/1, and others."""
    root = tmp_path_factory.mktemp("files")
    contents = {
        "a/1": b"one",
        "a/2": b"one",
        "a/4": b"two",
        "b/1": b"shared",
        "b/2": b"six",
        "c/1": b"shared",
        "c/2": b"ten",
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    os.symlink(root / "a/1", root / "a/3")
    return root


NAMES = ["a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "c/1", "c/2", "c/gone"]
SAME = [{"a/1", "a/2", "a/3"}, {"b/1", "c/1"}]


def trials_of(pairs, models=None) -> Trials:
    labels = [int(one[0] == two[0]) for one, two in pairs]
    return Trials(np.array(labels), [a for a, _ in pairs], [b for _, b in pairs], {} if models is None else models)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=30))
def test_pairs_of_one_recording_are_found_by_place_and_content(root, pairs):
    def is_own(one, two):
        return one == two or any({one, two} <= group for group in SAME)

    found = find_repeats(trials_of(pairs), root)
    kept = [pair for pair in pairs if not is_own(*pair)]
    assert list(found.own_pairs) == [pair for pair in pairs if is_own(*pair)]
    assert list(zip(found.trials.enrolment, found.trials.test, strict=True)) == kept
    used = {name for pair in kept for name in pair}
    assert set(found.shared) == ({"b/1", "c/1"} if used >= {"b/1", "c/1"} else set())


def test_the_other_speaker_is_named(root):
    trials = trials_of([("b/1", "b/2"), ("c/1", "c/2"), ("b/2", "a/1")])
    found = find_repeats(trials, root)
    assert found.shared["b/1"].startswith("is the same recording as c/1, but the speakers are b and c; correct")
    assert found.shared["c/1"].startswith("is the same recording as b/1, but the speakers are c and b; correct")
    one_speaker = dict.fromkeys(trials.files, "x") | {"a/1": "y"}
    assert find_repeats(trials, root, one_speaker).shared == {}
    # Speakers that cannot be derived are an error of the calibration, with its own message.
    assert find_repeats(trials_of([("a/1", "a/4")]).select([]), root).shared == {}


def test_a_test_among_the_files_of_its_enrolment_model_is_left_out(root):
    models = {"m": ("a/4", "a/2"), "n": ("b/1", "b/2")}
    trials = Trials(np.array([1, 1, 0, 0]), ("m", "m", "n", "n"), ("a/3", "a/4", "a/3", "c/2"), models)
    found = find_repeats(trials, root)
    assert found.own_pairs == (("m", "a/3"), ("m", "a/4"))
    assert (found.trials.enrolment, found.trials.test) == (("n", "n"), ("a/3", "c/2"))


def test_segments_are_the_same_recording_if_they_are_equal(root):
    assert first_copies([str(root / name) for name in ("a/1#t=0,1", "a/3#t=0,1", "a/1#t=1,2")]) == {
        str(root / "a/3#t=0,1"): str(root / "a/1#t=0,1")
    }


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return settle(HamSpkModel(tiny_config()))


@pytest.mark.slow
def test_calibrate_leaves_them_out_and_says_so(tmp_path, model):
    folder = make_corpus(tmp_path / "corpus", 10, 4, 3, (1.7, 2.1), test_share=0.8)
    trials = read_trials(folder / "trials.txt")
    options = {"quality": "none", "progress": False}
    plain = calibrate(model, trials, folder, **options)
    points = plain.warnings()
    assert plain.own_pairs == () and all(one.startswith("The operating point") for one in points)
    # The first test recording again, under a second name, and paired with itself.
    name = trials.test[0]
    copy = name.replace(name.rpartition("/")[2], "copy.flac")
    shutil.copy(folder / name, folder / copy)
    sides = ((*trials.enrolment, name, name), (*trials.test, name, copy))
    report = calibrate(model, Trials(np.append(trials.labels, [1, 1]), *sides), folder, **options)
    assert report.own_pairs == ((name, name), (name, copy))
    assert report.calibration.weights == plain.calibration.weights
    assert report.calibration.trials == plain.calibration.trials == len(trials)
    sentence = f"2 pairs of a recording with itself were left out, for example {name} {name}."
    assert report.warnings() == [sentence, *points] and f"warning: {sentence}" in str(report)
    found = report.to_dict()
    assert found["own_pairs"] == [[name, name], [name, copy]] and found["warnings"] == [sentence, *points]
    assert found["cllr"] == report.chosen.fitted.cost and list(found["candidates"]) == ["score"]
    assert found["operating_points"][0]["threshold"] == 0.0
    # A recording of one speaker under the name of another.
    other = next(one for one in trials.test if one.split("/")[:-1] != name.split("/")[:-1])
    shutil.copy(folder / name, folder / other)
    report = calibrate(model, trials, folder, **options)
    assert set(report.skipped) == {name, other}
    assert "is the same recording as" in report.skipped[name] and name in str(report)
    assert report.calibration.trials < len(trials)
    tests = [a if same else b for a, b, same in zip(trials.enrolment, trials.test, trials.labels, strict=True)]
    with pytest.raises(ValueError, match=r"target and impostor.*pairs of a recording with itself were left out"):
        calibrate(model, Trials(trials.labels, trials.enrolment, tests), folder, **options)
