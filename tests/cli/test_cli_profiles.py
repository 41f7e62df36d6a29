"""Profiles that `hamspk enrol` and `hamspk verify` write and read: whose they are, and with which warnings."""

import json
import shutil

import numpy as np
import pytest
import soundfile as sf
from tiny_models import RATE

from hf_hamspk.cli.profiles import ProfileFolder
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.loading.models import load_model
from hf_hamspk.verification_hamspk import SpeakerProfile


@pytest.fixture
def clipped(tmp_path):
    """A recording that gets a warning."""
    path = tmp_path / "clipped.wav"
    sf.write(path, np.clip(8 * make_speech(1, 5, 4.0), -1, 1), RATE, subtype="FLOAT")
    return path


@pytest.mark.slow
def test_warnings_of_the_enrolment_are_kept_and_shown_with_every_decision(hamspk, calibrated_folder, clipped, voices):
    profiles = clipped.parent / "profiles"
    words = ("--profiles", profiles)
    code, out, _ = hamspk("enrol", calibrated_folder, clipped, "--name", "anna", *words)
    assert code == 0 and "  warning: The enrolment is clipped in " in out
    hamspk("enrol", calibrated_folder, voices / "c.wav", "--name", "carl", *words)
    kept = [one for one in SpeakerProfile.load(profiles / "anna.safetensors").warnings if "clipped" in one]
    assert len(kept) == 1
    expected = f"At the enrolment of anna: {kept[0]}"
    code, out, _ = hamspk("verify", calibrated_folder, profiles / "anna.safetensors", voices / "b.wav")
    assert code == 0 and f"warning: {expected}\n" in out
    code, out, _ = hamspk("identify", calibrated_folder, voices / "b.wav", *words, "--json")
    assert expected in json.loads(out)[str(voices / "b.wav")]["warnings"]
    # Of the candidates that are not shown, nothing is said.
    code, out, _ = hamspk("identify", calibrated_folder, voices / "c.wav", *words, "--json", "--candidates", 1)
    answer = json.loads(out)[str(voices / "c.wav")]
    assert answer["candidates"][0]["name"] == "carl" and expected not in answer["warnings"]


def test_a_recording_that_a_warning_names_by_its_number_is_named_by_its_file(hamspk, model_folder, clipped, voices):
    folder = clipped.parent / "anna"
    folder.mkdir()
    (folder / "0.wav").write_bytes(b"no audio")
    shutil.copy(voices / "a.wav", folder / "1.wav")
    clipped.rename(folder / "2.wav")
    code, out, err = hamspk("enrol", model_folder, folder, "--name", "anna", "--profiles", folder.parent / "profiles")
    assert code == 0 and f"skipped {folder / '0.wav'}" in err
    assert "  warning: Enrolment recording 2 is clipped in " in out
    assert f"\n  Enrolment recording 2: {folder / '2.wav'}\n" in out


def test_both_files_of_a_repeated_recording_are_named(hamspk, model_folder, voices, tmp_path):
    files = [tmp_path / name for name in ("1.wav", "2.wav", "3.wav")]
    for file, name in zip(files, ("a", "b", "a"), strict=True):
        shutil.copy(voices / f"{name}.wav", file)
    words = ("--name", "Enrolment recording 99", "--profiles", tmp_path / "profiles")
    code, out, _ = hamspk("enrol", model_folder, *files, *words)
    assert code == 0 and f"  Enrolment recording 1: {files[0]}\n  Enrolment recording 3: {files[2]}\n" in out
    # A name that looks like the number of a recording is not one.
    code, _, err = hamspk("enrol", model_folder, voices / "c.wav", *words)
    assert code == 1 and "not enrolled: Enrolment recording 99" in err


def test_a_second_person_of_the_same_name_does_not_replace_the_first(hamspk, calibrated_folder, voices, tmp_path):
    path = tmp_path / "anna.safetensors"
    words = ("--name", "anna", "--profiles", tmp_path)
    assert hamspk("enrol", calibrated_folder, voices / "a.wav", *words)[0] == 0
    first = path.read_bytes()
    code, out, err = hamspk("enrol", calibrated_folder, voices / "c.wav", *words)
    assert code == 1 and "1 speaker not enrolled" in out
    assert err == (
        f"not enrolled: anna: {path} is not replaced, because it was made from other recordings, perhaps of another "
        "person. Choose another name, or replace it with --replace.\n"
    )
    assert path.read_bytes() == first
    # The same recordings, and a wish.
    assert hamspk("enrol", calibrated_folder, voices / "a.wav", *words)[0] == 0
    assert path.read_bytes() == first
    assert hamspk("enrol", calibrated_folder, voices / "c.wav", *words, "--replace")[0] == 0
    assert path.read_bytes() != first


@pytest.mark.slow
def test_verify_does_not_replace_a_profile_of_other_recordings(hamspk, refusal, calibrated_folder, voices, tmp_path):
    path = tmp_path / "anna.safetensors"
    words = ("--save-profile", path)
    assert hamspk("verify", calibrated_folder, voices / "a.wav", *words)[0] == 0
    first = path.read_bytes()
    assert "is not replaced" in refusal("verify", calibrated_folder, voices / "c.wav", *words)
    path.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    assert "was altered" in refusal("verify", calibrated_folder, voices / "a.wav", *words)
    assert hamspk("verify", calibrated_folder, voices / "a.wav", *words, "--replace")[0] == 0
    assert path.read_bytes() == first


def test_a_recording_under_two_speakers_is_refused(refusal, calibrated_folder, voices, tmp_path):
    for name, files in {"anna": ("a", "b"), "carl": ("c",)}.items():
        (tmp_path / name).mkdir()
        for file in files:
            shutil.copy(voices / f"{file}.wav", tmp_path / name)
    shutil.copy(voices / "a.wav", tmp_path / "carl" / "other.wav")
    words = ("enrol", calibrated_folder, tmp_path / "anna", tmp_path / "carl", "--profiles", tmp_path / "profiles")
    found = refusal(*words)
    assert "other.wav (carl) are the same recording. Give each recording to one speaker only." in found
    assert not (tmp_path / "profiles").exists()


def test_a_converted_recording_under_two_speakers_is_warned_of(hamspk, calibrated_folder, voices, tmp_path):
    """Both profiles of one call are marked; an earlier profile stays as it is."""
    wave = sf.read(voices / "a.wav", dtype="int16")[0]
    for name in ("anna", "carl"):
        (tmp_path / name).mkdir()
        sf.write(tmp_path / name / ("a.wav" if name == "anna" else "a.flac"), wave, RATE)
    profiles = tmp_path / "profiles"
    warning = "One of the recordings is also in the profile of {}. Check who speaks in it."
    code, out, _ = hamspk("enrol", calibrated_folder, tmp_path / "anna", tmp_path / "carl", "--profiles", profiles)
    assert code == 0 and f"  warning: {warning.format('anna')}\n" in out
    kept = {name: SpeakerProfile.load(profiles / f"{name}.safetensors").warnings for name in ("anna", "carl")}
    assert warning.format("carl") in kept["anna"] and warning.format("anna") in kept["carl"]
    before = (profiles / "anna.safetensors").read_bytes()
    words = ("--name", "dora", "--profiles", profiles)
    code, out, _ = hamspk("enrol", calibrated_folder, voices / "a.wav", *words)
    assert code == 0 and "is also in the profile of carl." in out
    assert (profiles / "anna.safetensors").read_bytes() == before


def test_the_recordings_of_a_replaced_profile_are_free(hamspk, calibrated_folder, voices, tmp_path):
    profiles = tmp_path / "profiles"
    hamspk("enrol", calibrated_folder, voices / "a.wav", "--name", "anna", "--profiles", profiles)
    for name, file in {"anna": "c", "carl": "a"}.items():
        (tmp_path / name).mkdir()
        shutil.copy(voices / f"{file}.wav", tmp_path / name)
    words = ("enrol", calibrated_folder, tmp_path / "anna", tmp_path / "carl", "--profiles", profiles, "--replace")
    code, out, _ = hamspk(*words)
    assert code == 0 and "2 speakers enrolled" in out and "is also in the profile of" not in out


@pytest.mark.slow
def test_the_name_in_a_profile_is_said_if_the_file_has_another(hamspk, calibrated_folder, voices, tmp_path):
    hamspk("enrol", calibrated_folder, voices / "a.wav", "--name", "anna", "--profiles", tmp_path)
    renamed = shutil.copy(tmp_path / "anna.safetensors", tmp_path / "carl.safetensors")
    said = f"{renamed} contains the profile of 'anna'."
    code, out, _ = hamspk("verify", calibrated_folder, renamed, voices / "b.wav")
    assert code == 0 and f"warning: {said}\n" in out
    out = hamspk("verify", calibrated_folder, renamed, voices / "b.wav", "--json")[1]
    assert json.loads(out)["warnings"][0] == said
    assert said not in hamspk("verify", calibrated_folder, tmp_path / "anna.safetensors", voices / "b.wav")[1]


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "..", "x" * 201, "a\0b", None])
def test_only_a_name_that_can_be_a_file_name_is_written_into_a_folder(calibrated_folder, voices, tmp_path, name):
    # The command checks names before it loads the model, but a profile made in Python may have any name.
    profile = load_model(str(calibrated_folder), "cpu").enrol([str(voices / "a.wav")], name=name)
    with pytest.raises(ValueError, match="The name of a speaker must not be empty or longer than 200 bytes"):
        ProfileFolder(tmp_path / "profiles", True).save(profile)
    assert [path.name for path in tmp_path.rglob("*")] == ["profiles"]
