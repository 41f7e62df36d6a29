"""`--segments`: the segments of a diarisation at `embed` and `enrol`; and `--voices` at the commands that decide."""

import json
import shutil
from pathlib import Path

import numpy as np
import overlaps
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from tiny_models import RATE, cosine

from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.loading.models import load_model
from hf_hamspk.verification_hamspk import SpeakerProfile

TURNS = [("anna", 0.0, 2.5), ("carl", 2.5, 5.0), ("anna", 5.0, 7.5), ("carl", 7.5, 10.0)]
AT_ONCE = "contains two voices: two people speak at once for"


@pytest.fixture
def call(tmp_path) -> Path:
    """One recording of two speakers in turns, and an RTTM file of its turns with two bad rows."""
    speakers = {"anna": 1, "carl": 2}
    turns = [make_speech(speakers[name], number, 2.5) for number, (name, _, _) in enumerate(TURNS)]
    sf.write(tmp_path / "call.wav", np.concatenate(turns), RATE, subtype="PCM_16")
    lines = [f"SPEAKER call 1 {a:g} {b - a:g} <NA> <NA> {name} <NA> <NA>" for name, a, b in TURNS]
    lines += ["SPEAKER call 1 x 1 <NA> <NA> anna <NA> <NA>", "SPEAKER call 1 9 30 <NA> <NA> anna <NA> <NA>"]
    (tmp_path / "call.rttm").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def overlapping(calibrated_folder, tmp_path) -> Path:
    """A model whose detector finds two people in every recording."""
    return overlaps.store(Path(shutil.copytree(calibrated_folder, tmp_path / "overlapping")))


def test_segments_are_embedded(hamspk, call, model_folder):
    words = ("embed", model_folder, call / "call.wav", "--segments", call / "call.rttm", "--output", call / "e.parquet")
    code, out, err = hamspk(*words)
    assert code == 0, err
    assert "4 files embedded (10.0 s of audio), 1 skipped" in out
    assert f"skipped {call / 'call.rttm'}, line 5:" in err and "skipped 1 of 6 rows of" in err
    assert f"skipped {call / 'call.wav'}#t=9,39: lasts 10.00 s" in err
    rows = pq.read_table(call / "e.parquet").to_pylist()
    assert [(row["name"], row["speaker"]) for row in rows] == [
        (f"{call / 'call.wav'}#t={a:g},{b:g}", name) for name, a, b in TURNS
    ]


def test_all_segments_of_a_speaker_are_enrolled_together(hamspk, call, calibrated_folder):
    words = ("enrol", calibrated_folder, call / "call.wav", "--segments", call / "call.rttm", "--profiles", call / "p")
    code, out, err = hamspk(*words)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("2 speakers enrolled in") and "1 of them with some" in out
    assert "anna: 2 segments," in out and "carl: 2 segments," in out
    assert f"skipped {call / 'call.wav'}#t=9,39: lasts 10.00 s" in err
    profile = SpeakerProfile.load(call / "p" / "anna.safetensors")
    samples, _ = sf.read(call / "call.wav", dtype="float32")
    joined = np.concatenate([samples[:40_000], samples[80_000:120_000]])
    expected = load_model(str(calibrated_folder), "cpu").enrol([joined])
    assert profile.utterances == 1 and cosine(profile.embedding[None], expected.embedding[None]).item() > 0.999999


def test_a_csv_file_without_speakers_needs_a_name(hamspk, refusal, call, calibrated_folder):
    (call / "own.csv").write_text("start,end\n0,2.5\n5,7.5\n")
    words = ("enrol", calibrated_folder, call / "call.wav", "--segments", call / "own.csv", "--profiles", call / "p")
    assert "own.csv names no speaker. Give the name with --name" in refusal(*words)
    code, out, _ = hamspk(*words, "--name", "anna")
    assert code == 0 and "anna: 2 segments" in out


def test_rows_with_impossible_names_are_skipped_and_counted(hamspk, call, calibrated_folder):
    (call / "own.csv").write_text("start,end,speaker\n0,2.5,anna\n1,2,\n2.5,5,a/b\n5,7.5,anna\n6,7,a/b\n6,7,..\n")
    words = ("enrol", calibrated_folder, call / "call.wav", "--segments", call / "own.csv", "--profiles", call / "p")
    code, out, err = hamspk(*words)
    assert code == 0 and "anna: 2 segments" in out and "1 speaker enrolled" in out
    assert f"skipped 1 row of {call / 'own.csv'}: no speaker is named" in err
    assert f"skipped 2 rows of {call / 'own.csv'}: the name 'a/b' is not a file name" in err
    assert [path.name for path in (call / "p").iterdir()] == ["anna.safetensors"]
    code, out, _ = hamspk(*words, "--name", "ann")
    assert code == 0 and "ann: 2 segments" in out


def test_other_uses_of_segments_are_refused(refusal, call, model_folder, calibrated_folder):
    shutil.copy(call / "call.wav", call / "other.wav")
    segments = ("--segments", call / "call.rttm")
    enrol, embed = ("enrol", calibrated_folder), ("embed", model_folder)
    profiles, output = ("--profiles", call / "p"), ("--output", call / "e.npz")
    recordings = (call / "call.wav", call / "other.wav")
    assert "Expected one recording with --segments, got 2" in refusal(*enrol, *recordings, *segments, *profiles)
    said = refusal(*enrol, recordings[0], *segments, *profiles, "--name", "anna")
    assert "--name is for one speaker" in said and "has 2" in said
    assert "is a folder; give one audio file" in refusal(*enrol, call, *segments, *profiles)
    (call / "list.csv").write_text("path,speaker_id\ncall.wav,anna\n")
    for command, end in ((enrol, profiles), (embed, output)):
        assert "is a list. Give either --segments or the list" in refusal(*command, call / "list.csv", *segments, *end)
        absent = ("--segments", call / "absent.rttm")
        assert "File not found" in refusal(*command, recordings[0], *absent, *end)
    (call / "slash.csv").write_text("start,end,speaker\n0,2,a/b\n")
    said = refusal(*enrol, recordings[0], "--segments", call / "slash.csv", *profiles)
    assert "slash.csv has no row with a speaker that can be enrolled" in said
    assert not (call / "p").exists() and not (call / "e.npz").exists()


@pytest.mark.slow
def test_voices_are_refused_where_asked_for(hamspk, refusal, overlapping, calibrated_folder, voices, tmp_path):
    a, b = voices / "a.wav", voices / "b.wav"
    _, out, _ = hamspk("verify", overlapping, a, b)
    assert f"warning: The test {AT_ONCE}" in out
    code, out, _ = hamspk("verify", overlapping, a, b, "--voices", "refuse", "--json")
    assert code == 0 and json.loads(out)["decision"] == "several voices"
    _, out, _ = hamspk("verify", overlapping, a, b, "--voices", "ignore")
    assert AT_ONCE not in out
    assert "`hamspk convert FILE --into MODEL`" in refusal("verify", calibrated_folder, a, b, "--voices", "refuse")
    enrol = ("enrol", overlapping, a, b, "--name", "anna", "--profiles", tmp_path / "p")
    code, out, err = hamspk(*enrol, "--voices", "refuse")
    assert code == 1 and "1 speaker not enrolled" in out
    assert f"skipped {a}: two people speak at once for" in err and "not enrolled: anna" in err
    assert hamspk(*enrol)[0] == 0
    words = ("identify", overlapping, b, "--profiles", tmp_path / "p")
    code, out, _ = hamspk(*words, "--voices", "refuse")
    assert code == 0 and f"{b}: several voices" in out and AT_ONCE in out
    assert "`hamspk convert FILE --into MODEL`" in refusal(
        "enrol", calibrated_folder, a, "--name", "x", "--profiles", tmp_path / "q", "--voices", "refuse"
    )
