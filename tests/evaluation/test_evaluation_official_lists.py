"""Official lists: formats, sizes, and enrolment from several utterances."""

import re

import numpy as np
import pytest
import torch

from hf_hamspk.audio_hamspk import SpeechMeasures
from hf_hamspk.evaluation.speakers import find_speakers
from hf_hamspk.evaluation.trials import (
    OFFICIAL_LISTS,
    MissingTrialFilesError,
    Trials,
    check_official,
    join_trials,
    official_title,
    read_enrolment,
    read_trials,
)
from hf_hamspk.evaluation.verification import EmbeddedFiles, enrol_models
from hf_hamspk.geometry_hamspk import mean_direction

LISTS = {
    "voxceleb": "1 a.wav b.wav\n0 a.wav c.wav\n",
    "cn-celeb": "a.wav b.wav 1\na.wav c.wav 0\n",
    "sitw": "a.wav b.wav tgt\n\na.wav c.wav imp\n",
    "kaldi": "a.wav b.wav target\na.wav c.wav nontarget\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_the_formats_say_the_same(tmp_path, kind):
    (tmp_path / "list").write_text(LISTS[kind])
    (tmp_path / "voxceleb").write_text(LISTS["voxceleb"])
    found, expected = read_trials(tmp_path / "list"), read_trials(tmp_path / "voxceleb")
    assert (found.enrolment, found.test, found.labels.tolist()) == (
        expected.enrolment,
        expected.test,
        expected.labels.tolist(),
    )


def cn_celeb(folder):
    (folder / "enroll.map").write_text(
        "id01-enroll id01/a-1.flac id01/a-2.flac\nid02-enroll id02/a-1.flac\nid03-enroll id03/a-1.flac id03/a-2.flac\n"
    )
    tests = ("test/id01-b-1.wav", "test/id02-b-1.wav")
    lines = [f"id0{i}-enroll {test} {int(test[5:9] == f'id0{i}')}" for i in (1, 2, 3) for test in tests]
    (folder / "trials.lst").write_text("\n".join(lines))
    return read_trials(folder / "trials.lst", folder / "enroll.map")


def test_models_of_several_utterances(tmp_path):
    trials = cn_celeb(tmp_path)
    assert trials.labels.tolist() == [1, 0, 0, 1, 0, 0]
    assert trials.models == {
        "id01-enroll": ("id01/a-1.flac", "id01/a-2.flac"),
        "id03-enroll": ("id03/a-1.flac", "id03/a-2.flac"),
    }
    assert trials.enrolment[2] == "id02/a-1.flac"
    assert len(trials.files) == 7 and not trials.models.keys() & set(trials.files)
    fewer = trials.without(["id01/a-2.flac"])
    assert len(fewer) == 6 and fewer.models["id01-enroll"] == ("id01/a-1.flac",)
    none = trials.without(["id01/a-1.flac", "id01/a-2.flac"])
    assert len(none) == 4 and list(none.models) == ["id03-enroll"]
    assert trials.single().enrolment[0] == "id01/a-1.flac" and not trials.single().models


def test_speakers_of_models_are_those_of_their_files():
    models = {"m1": ("s1-a.wav", "s1-b.wav"), "m2": ("s2-a.wav", "s2-b.wav")}
    tests = ("s1-c.wav", "s2-c.wav", "s1-c.wav")
    speakers = find_speakers(Trials(np.array([1, 0, 0]), ("m1", "m1", "m2"), tests, models))
    assert speakers.names == ("s1", "s2") and speakers.enrolment.tolist() == [0, 0, 1]


def test_a_model_is_the_mean_direction_of_its_utterances_with_all_their_speech():
    trials = Trials(np.array([1, 0]), ("m", "m"), ("c", "d"), {"m": ("a", "b")})
    rows = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(0))
    measures = {name: SpeechMeasures(3.0, 2.0, 10.0 * i, 0.0, -20.0) for i, name in enumerate("abcd")}
    embedded = EmbeddedFiles(dict(zip("abcd", rows, strict=True)), measures=measures)
    enrolled = enrol_models(trials, embedded)
    torch.testing.assert_close(enrolled.embeddings["m"][0], mean_direction(rows[:2, 0]))
    assert enrolled.measures["m"] == SpeechMeasures(6.0, 4.0, 5.0, 0.0, -20.0)
    assert "m" not in embedded.embeddings


def test_sizes_are_checked():
    labels = np.zeros(37_720, np.int8)
    trials = Trials(labels, ("a",) * len(labels), ("b",) * len(labels))
    check_official(trials, "vox1-o")
    assert official_title(trials) == "VoxCeleb1-O (original)"
    wrong = "x.txt is not VoxCeleb1-O (cleaned): 37,720 trials instead of 37,611. It has the size of VoxCeleb1-O (ori"
    with pytest.raises(ValueError, match=re.escape(wrong)):
        check_official(trials, "vox1-o-cleaned", "x.txt")
    with pytest.raises(ValueError, match=r"37,720 trials instead of .*, 0 targets instead of .*, 1 models instead of"):
        check_official(trials, "cnceleb-eval")
    with pytest.raises(ValueError, match=r"Unknown official list: 'vox2'\. Choose one of vox1-o-cleaned, vox1-o"):
        check_official(trials, "vox2")
    sizes = [official.trials for official in OFFICIAL_LISTS.values()]
    assert len(set(sizes)) == len(sizes), "a size must tell one list"
    assert official_title(Trials(labels[:5], ("a",) * 5, ("b",) * 5)) is None


def refused(folder, content, message, enrolment=None):
    (folder / "list").write_text(content)
    table = None
    if enrolment is not None:
        table = folder / "table"
        table.write_text(enrolment)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_trials(folder / "list", table)


def test_what_is_refused(tmp_path):
    refused(tmp_path, "", "the file is empty")
    refused(tmp_path, "a.wav b.wav\n", "expected lines 'label enrolment test' (1 or 0 first) or 'model test label'")
    refused(tmp_path, "a b tgt\n1 a c\n", "line 2: expected 'model test label'")
    refused(tmp_path, "a b tgt\na c maybe\n", "line 2: expected 'model test label' with the label one of 1, 0, tgt")
    refused(tmp_path, "m b tgt\n", "1 models of", "n a.wav\n")
    refused(tmp_path, "m b tgt\n", "line 1: expected 'model file [file ...]', found 'm'", "m\n")
    refused(tmp_path, "m b tgt\n", "found a segment, 88.000 to 97.990 s of a.flac", "m a.flac 88.000 97.990\n")
    refused(tmp_path, "m b tgt\n", "the file is empty", "\n")
    with pytest.raises(
        ValueError, match="'m' must have at least one file, and its name must not be the name of a test file"
    ):
        Trials(np.array([1]), ("m",), ("m",), {"m": ("a",)})
    with pytest.raises(MissingTrialFilesError, match="There is no enrolment table"):
        read_enrolment(tmp_path / "nowhere")
    (tmp_path / "map").write_text("m a.wav b.wav\nm b.wav c.wav\n")
    assert read_enrolment(tmp_path / "map") == {"m": ("a.wav", "b.wav", "c.wav")}


def test_models_of_two_lists_must_have_the_same_files():
    first, second = (Trials(np.array([1]), ("m",), (test,), {"m": ("a", "b")}) for test in ("c", "d"))
    assert join_trials([first, second]).models == {"m": ("a", "b")}
    with pytest.raises(ValueError, match="The model m has different enrolment files in two lists"):
        join_trials([first, Trials(np.array([1]), ("m",), ("d",), {"m": ("a", "x")})])
