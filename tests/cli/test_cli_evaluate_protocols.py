"""`hamspk evaluate` on lists of models, and on lists that are not the official ones."""

import json

import pytest

from hf_hamspk.evaluation.trials import OFFICIAL_LISTS, OfficialList

TRIALS = "m1 a.wav 1\nm1 c.wav 0\nm2 b.wav 1\nm2 c.wav 0\n"


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "enroll.map").write_text("m1 a.wav b.wav\nm2 a.wav\n")
    (tmp_path / "trials.lst").write_text(TRIALS)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["model_folder", "calibrated_folder"])
def test_models_are_enrolled_from_several_files(request, hamspk, voices, lists, folder):
    model = request.getfixturevalue(folder)
    words = ["--enrolment", lists / "enroll.map", "--audio-root", voices, "--replicates", 0, "--output", lists / "out"]
    code, out, err = hamspk("evaluate", model, lists / "trials.lst", *words)
    assert code == 0, err
    record = json.loads((lists / "out" / "evaluation.json").read_text())["lists"]["trials"]
    assert record["trials"] == 4 and record["targets"] == 2
    assert "has the size of" not in out


@pytest.mark.slow
def test_a_list_of_another_size_is_refused_and_an_official_one_named(
    hamspk, refusal, voices, lists, model_folder, monkeypatch
):
    words = [model_folder, lists / "trials.lst", "--enrolment", lists / "enroll.map", "--audio-root", voices]
    told = refusal("evaluate", *words, "--official", "vox1-o-cleaned")
    assert "is not VoxCeleb1-O (cleaned): 4 trials instead of 37,611. Check that the file is complete." in told
    assert "one official list for each trial list: expected 1, got 2" in refusal(
        "evaluate", *words, "--official", "vox1-o", "vox1-e"
    )
    monkeypatch.setitem(OFFICIAL_LISTS, "vox1-o", OfficialList("VoxCeleb1-O (original)", 4))
    code, out, _ = hamspk("evaluate", *words, "--official", "vox1-o", "--replicates", 0)
    assert code == 0 and "trials has the size of VoxCeleb1-O (original): 4 trials" in out
