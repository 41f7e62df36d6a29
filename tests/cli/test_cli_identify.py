"""`hamspk enrol` and `hamspk identify`."""

import json
import shutil

import pytest

from hf_hamspk.verification_hamspk import SpeakerProfile


@pytest.fixture
def people(tmp_path, voices):
    """A folder of recordings for each of two speakers."""
    for name, files in {"anna": ("a", "b"), "carl": ("c",)}.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        for file in files:
            shutil.copy(voices / f"{file}.wav", tmp_path / "people" / name)
    return tmp_path / "people"


@pytest.mark.slow
def test_enrol_and_identify(hamspk, refusal, calibrated_folder, model_folder, people, voices, tmp_path):
    profiles = tmp_path / "profiles"
    code, out, _ = hamspk("enrol", calibrated_folder, people / "anna", people / "carl", "--profiles", profiles)
    assert code == 0, out
    assert out.splitlines()[-1] == f"2 speakers enrolled in {profiles}"
    assert sorted(path.name for path in profiles.iterdir()) == ["anna.safetensors", "carl.safetensors"]
    profile = SpeakerProfile.load(profiles / "anna.safetensors")
    assert (profile.name, profile.utterances) == ("anna", 2)
    words = ("identify", calibrated_folder, "--profiles", profiles, "--threshold=-1", voices / "a.wav")
    code, out, _ = hamspk(*words)
    assert code == 0
    assert f"{voices / 'a.wav'}: identified: anna" in out
    assert "this same recording" in out
    code, out, err = hamspk(*words, voices / "silence.wav", voices / "nowhere.wav", "--json")
    answers = json.loads(out)
    assert code == 1
    assert "skipped" in err
    assert answers[str(voices / "silence.wav")]["decision"] == "not enough speech"
    assert [c["name"] for c in answers[str(voices / "a.wav")]["candidates"]] == ["anna", "carl"]
    assert "exclude each other" in refusal(*words, "--prior", "0.5")
    code, out, _ = hamspk("identify", calibrated_folder, "--profiles", profiles, voices / "a.wav")
    assert "one of the 2 enrolled: log-likelihood ratio" in out

    altered = profiles / "carl.safetensors"
    content = altered.read_bytes()
    altered.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "was altered" in refusal(*words)


@pytest.mark.slow
def test_speakers_in_a_database_are_identified_as_those_in_a_folder(
    hamspk, refusal, calibrated_folder, model_folder, people, voices, tmp_path
):
    pytest.importorskip("lancedb", reason="pip install 'hf_hamspk[lancedb]'")
    enrol = ("enrol", calibrated_folder, people / "anna", people / "carl", "--profiles")
    folder, address = str(tmp_path / "profiles"), f"lancedb://{tmp_path / 'speakers'}"
    assert hamspk(*enrol, folder)[0] == 0
    code, out, _ = hamspk(*enrol, address)
    assert code == 0 and out.splitlines()[-1] == f"2 speakers enrolled in {address}"
    tests = [voices / "a.wav", voices / "silence.wav"]
    for more in ((), ("--threshold=-1", "--candidates", "1")):
        answers = []
        for profiles in (folder, address):
            code, out, _ = hamspk("identify", calibrated_folder, "--profiles", profiles, *tests, *more, "--json")
            answers.append(json.loads(out))
        assert code == 0 and answers[0] == answers[1]
    # As in a folder, the same recordings may be enrolled again, and others only with --replace.
    assert hamspk(*enrol, address)[0] == 0
    other = ("enrol", calibrated_folder, people / "carl", "--name", "anna", "--profiles")
    for profiles in (folder, address):
        code, _, err = hamspk(*other, profiles)
        assert code == 1 and "not enrolled: anna: " in err and "perhaps of another person" in err and "--replace" in err
        assert hamspk(*other, profiles, "--replace")[0] == 0
    nothing = f"lancedb://{tmp_path / 'nothing'}"
    assert "No speakers in" in refusal("identify", calibrated_folder, "--profiles", nothing, voices / "a.wav")


def test_names_and_bad_folders(hamspk, refusal, model_folder, people, voices, tmp_path):
    profiles = tmp_path / "profiles"
    code, out, err = hamspk("enrol", model_folder, voices / "silence.wav", "--name", "nobody", "--profiles", profiles)
    assert code == 1
    assert "not enrolled: nobody: Not enough speech" in err
    assert out == f"0 speakers enrolled in {profiles}; 1 speaker not enrolled\n"
    assert "No profile (.safetensors) in" in refusal("identify", model_folder, "--profiles", profiles, voices / "a.wav")
    assert "Folder not found" in refusal("identify", model_folder, "--profiles", tmp_path / "x", voices / "a.wav")
    assert "is not a folder" in refusal("enrol", model_folder, voices / "a.wav", "--profiles", profiles)
    missing = refusal("enrol", model_folder, tmp_path / "missing/", "--profiles", profiles)
    assert f"Folder not found: {tmp_path / 'missing'}" in missing
    (tmp_path / "bad").mkdir()
    for name in ("1.wav", "2.wav"):
        (tmp_path / "bad" / name).write_bytes(b"no audio")
    code, _, err = hamspk("enrol", model_folder, tmp_path / "bad", "--profiles", profiles)
    assert code == 1 and "not enrolled: bad: none of the recordings can be used" in err and "got 0" not in err
    assert "must not contain a folder" in refusal(
        "enrol", model_folder, voices / "a.wav", "--profiles", profiles, "--name", "../x"
    )
    hamspk("enrol", model_folder, voices / "c.wav", "--name", "carl", "--profiles", profiles)
    code, out, _ = hamspk("identify", model_folder, "--profiles", profiles, voices / "a.wav")
    assert code == 0
    assert "no decision: the model is not calibrated" in out
