"""Tables of recordings and sub-folders of speakers at the commands: the same rows and segments everywhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from tiny_models import RATE, cosine

from hf_hamspk.data.corpus import load_corpus
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.evaluation.cohorts import find_cohort
from hf_hamspk.loading.models import load_model
from hf_hamspk.shards import load_manifest
from hf_hamspk.shards.reading import open_shards
from hf_hamspk.verification_hamspk import SpeakerProfile

TURNS = [("anna", 0.0, 2.5), ("carl", 2.5, 5.0), ("anna", 5.0, 7.5), ("carl", 7.5, 10.0)]


@pytest.fixture
def call(tmp_path) -> Path:
    """One recording of two speakers in turns, and a table of its turns with semicolons, as diarisation gives them."""
    speakers = {"anna": 1, "carl": 2}
    turns = [make_speech(speakers[name], number, 2.5) for number, (name, _, _) in enumerate(TURNS)]
    sf.write(tmp_path / "call.wav", np.concatenate(turns), RATE, subtype="PCM_16")
    rows = [f"call.wav;{name} ;{start:g};{stop:g}" for name, start, stop in TURNS]
    (tmp_path / "turns.csv").write_text("\n".join(["path;speaker_id;start;end", *rows]) + "\n")
    return tmp_path


def test_segments_are_embedded_under_their_names(hamspk, call, model_folder):
    code, out, err = hamspk("embed", model_folder, call / "turns.csv", "--output", call / "e.parquet")
    assert code == 0, err
    assert "4 files embedded (10.0 s of audio)" in out
    rows = pq.read_table(call / "e.parquet").to_pylist()
    names = ["call.wav#t=0,2.5", "call.wav#t=2.5,5", "call.wav#t=5,7.5", "call.wav#t=7.5,10"]
    assert [(row["name"], row["speaker"]) for row in rows] == list(zip(names, ["anna", "carl"] * 2, strict=True))
    samples, _ = sf.read(call / "call.wav", dtype="float32")
    expected = load_model(str(model_folder), "cpu").embed([samples[40_000:80_000]], RATE)
    assert cosine(expected, expected.new_tensor(rows[1]["embedding"])[None]).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["kaldi", "nemo"])
def test_lists_of_other_toolkits_are_embedded_and_enrolled(hamspk, call, model_folder, calibrated_folder, kind):
    lines = [{"audio_filepath": "call.wav", "offset": s, "duration": e - s, "label": name} for name, s, e in TURNS]
    (call / "turns.json").write_text("\n".join(map(json.dumps, lines)))
    (call / "wav.scp").write_text("rec call.wav\n")
    (call / "segments").write_text("".join(f"u{n} rec {s} {e}\n" for n, (_, s, e) in enumerate(TURNS)))
    (call / "utt2spk").write_text("".join(f"u{n} {name}\n" for n, (name, _, _) in enumerate(TURNS)))
    source = call if kind == "kaldi" else call / "turns.json"
    code, _, err = hamspk("embed", model_folder, source, "--output", call / "e.parquet")
    assert code == 0, err
    rows = pq.read_table(call / "e.parquet").to_pylist()
    assert [(row["name"], row["speaker"]) for row in rows][1] == ("call.wav#t=2.5,5", "carl")
    code, out, err = hamspk("enrol", calibrated_folder, source, "--profiles", call / "profiles")
    assert code == 0 and "2 speakers enrolled" in out, err


def test_speakers_of_a_table_are_enrolled_from_their_segments(hamspk, refusal, call, calibrated_folder):
    code, out, err = hamspk("enrol", calibrated_folder, call / "turns.csv", "--profiles", call / "profiles")
    assert code == 0, err
    assert out.endswith(f"2 speakers enrolled in {call / 'profiles'}\n")
    profile = SpeakerProfile.load(call / "profiles" / "anna.safetensors")
    assert profile.utterances == 2
    (call / "bad.csv").write_text("path,speaker_id\ncall.wav,a/b\n")
    words = ("enrol", calibrated_folder, "--profiles", call / "profiles")
    assert "must not contain a folder, because it becomes a file name, got 'a/b'" in refusal(*words, call / "bad.csv")
    assert "File not found" in refusal(*words, call / "nowhere.csv")


@pytest.mark.parametrize("codec", ["flac", "source"])
def test_segments_are_prepared(hamspk, call, codec):
    words = ("prepare", call / "turns.csv", call / "shards", "--processes", 0, "--codec", codec)
    code, out, err = hamspk(*words)
    assert code == 0, err
    assert "4 utterances of 2 speakers" in out
    manifest = load_manifest(call / "shards")
    assert (manifest.speakers, manifest.speaker_utterances, manifest.seconds) == (["anna", "carl"], [2, 2], 10.0)
    assert hamspk("prepare", "--verify", call / "shards", "--processes", 0)[0] == 0
    reader = open_shards(str(call / "shards"))
    assert reader is not None
    names = [name for piece in range(len(reader.group_sizes)) for name in reader.read(piece).names]
    assert sorted(names) == ["call-t=0,2_5", "call-t=2_5,5", "call-t=5,7_5", "call-t=7_5,10"]


@pytest.mark.slow
def test_segments_are_evaluated(hamspk, call, model_folder):
    one, two, three, four = (f"call.wav#t={start:g},{stop:g}" for _, start, stop in TURNS)
    (call / "trials.txt").write_text(f"1 {one} {three}\n0 {one} {two}\n1 {two} {four}\n0 {three} {four}\n")
    words = ("evaluate", model_folder, call / "trials.txt", "--audio-root", call, "--output", call / "out")
    code, out, err = hamspk(*words, "--metadata", call / "turns.csv")
    assert code == 0, err
    assert "could not be used" not in out
    assert find_cohort(call / "turns.csv") == {
        "anna": [str(call / one), str(call / three)],
        "carl": [str(call / two), str(call / four)],
    }


def test_tables_stand_alone(refusal, call, model_folder):
    words = ("embed", model_folder, call / "turns.csv", call / "call.wav", "--output", call / "e.npz")
    assert "is a table. Embed its recordings in a separate command" in refusal(*words)


@pytest.mark.slow
def test_sub_folders_are_not_taken_for_one_speaker(hamspk, refusal, voices, model_folder, tmp_path):
    for name, file in (("anna", "a"), ("carl", "c")):
        (tmp_path / "people" / name).mkdir(parents=True)
        shutil.copy(voices / f"{file}.wav", tmp_path / "people" / name)
    words = ("enrol", model_folder, tmp_path / "people", "--profiles", tmp_path / "profiles")
    message = refusal(*words)
    assert "has recordings in several places (sub-folders anna, carl)" in message
    assert "--subfolders speakers" in message and "--subfolders sessions" in message
    assert not (tmp_path / "profiles").exists()
    assert hamspk(*words, "--subfolders", "speakers")[0] == 0
    assert sorted(path.stem for path in (tmp_path / "profiles").glob("*.safetensors")) == ["anna", "carl"]
    for one in (("--subfolders", "sessions"), ("--name", "team")):
        assert hamspk(*words, *one)[0] == 0
    for name in ("people", "team"):
        assert SpeakerProfile.load(tmp_path / "profiles" / f"{name}.safetensors").utterances == 2
    shutil.copy(voices / "a.wav", tmp_path / "people")
    assert "has recordings in several places (sub-folders anna, carl)." in refusal(*words)
    assert "lies in no sub-folder" in refusal(*words, "--subfolders", "speakers")


@pytest.mark.parametrize("other", ["Jose\u0301", "José ", "Jos\u200bé"], ids=["NFD", "blank", "without width"])
def test_folders_whose_names_look_equal(hamspk, refusal, tmp_path, model_folder, voices, other):
    """Profiles are refused, because one would replace the other; corpora have one speaker with all recordings."""
    for number, name in enumerate(("José", other, "Anna")):
        (tmp_path / "team" / name).mkdir(parents=True)
        for take in range(2):
            sf.write(tmp_path / "team" / name / f"{take}.wav", recording_of(number, take), RATE)
    if len(list((tmp_path / "team").iterdir())) < 3:
        pytest.skip("this file system does not keep both names")
    words = ("enrol", model_folder, tmp_path / "team", "--profiles", tmp_path / "profiles", "--subfolders", "speakers")
    assert "differ only in blanks or in the encoding of characters. Rename one of them" in refusal(*words)
    folders = (tmp_path / "team" / "José", tmp_path / "team" / other)
    assert "Two of the folders are named José" in refusal("enrol", model_folder, *folders, "--profiles", tmp_path / "p")
    assert not (tmp_path / "profiles").exists() and not (tmp_path / "p").exists()
    corpus = load_corpus(tmp_path / "team")
    assert sorted(corpus["speaker"]) == ["Anna"] * 2 + ["José"] * 4
    assert hamspk("prepare", tmp_path / "team", tmp_path / "shards", "--processes", "0")[0] == 0
    assert open_shards(str(tmp_path / "shards")).manifest.speakers == ["Anna", "José"]


def recording_of(speaker: int, take: int) -> np.ndarray:
    return 0.1 * np.random.default_rng((speaker, take)).standard_normal(RATE // 2)
