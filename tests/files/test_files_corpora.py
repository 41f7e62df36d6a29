"""Lists of recordings: JSON lines as of NeMo, Kaldi folders, audio folders of datasets, the same rows at every door."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.corpus import check_corpus, load_corpus
from hf_hamspk.files.corpora import find_list, is_table, read_table
from hf_hamspk.files.kaldi import MOST_CHARACTERS
from hf_hamspk.shards import PrepareOptions, load_manifest, prepare

RATE = 16_000
# Two speakers, who have two utterances in each of two recordings.
TURNS = [
    ("a.wav", "anna", 0.0, 1.5),
    ("a.wav", "ben", 1.5, 4.0),
    ("b.wav", "anna", 0.5, 2.0),
    ("b.wav", "ben", 2.0, 4.0),
]


@pytest.fixture
def recordings(tmp_path) -> Path:
    """`audio/a.wav` and `audio/b.wav`, of 4 s, whose samples tell their place: sample n is n / 65536."""
    samples = (np.arange(4 * RATE) % 32768).astype(np.int16)
    (tmp_path / "audio").mkdir()
    for name in ("a", "b"):
        sf.write(tmp_path / "audio" / f"{name}.wav", samples, RATE, subtype="PCM_16")
    return tmp_path


def write_nemo(root: Path) -> Path:
    lines = [
        {"audio_filepath": f"audio/{file}", "offset": start, "duration": stop - start, "label": speaker}
        for file, speaker, start, stop in TURNS
    ]
    (root / "manifest.json").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return root / "manifest.json"


def write_kaldi(root: Path) -> Path:
    (root / "wav.scp").write_text("rec1 audio/a.wav\nrec2   audio/b.wav \n")
    segments = (f"u{n} {'rec1' if f == 'a.wav' else 'rec2'} {s} {e}\n" for n, (f, _, s, e) in enumerate(TURNS))
    (root / "segments").write_text("".join(segments))
    (root / "utt2spk").write_text("".join(f"u{n} {speaker}\n" for n, (_, speaker, _, _) in enumerate(TURNS)))
    return root


def write_metadata(root: Path) -> Path:
    lines = [
        {"file_name": file, "speaker": speaker, "start": start, "end": stop} for file, speaker, start, stop in TURNS
    ]
    (root / "audio" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root / "audio"


def write_csv(root: Path) -> Path:
    rows = [f"{file},{speaker},{start},{stop}" for file, speaker, start, stop in TURNS]
    (root / "audio" / "metadata.csv").write_text("\n".join(["file_name,client_id,start,stop", *rows]))
    return root / "audio"


every_format = pytest.mark.parametrize("write", [write_nemo, write_kaldi, write_metadata, write_csv])


@every_format
def test_every_format_gives_the_same_segments(recordings, write):
    corpus = load_corpus(write(recordings))
    assert list(corpus["speaker"]) == ["anna", "ben", "anna", "ben"]
    read = [read_utterance(path, RATE).waveform for path in corpus["path"]]
    places = [(round(float(one[0]) * 32768), len(one)) for one in read]
    assert places == [(round(s * RATE), round((e - s) * RATE)) for _, _, s, e in TURNS]
    assert len(check_corpus(corpus, progress=False).dataset) == 4


@every_format
def test_every_format_is_prepared(recordings, tmp_path, write):
    prepare([str(write(recordings))], str(tmp_path / "shards"), PrepareOptions(shards=1), processes=0, progress=False)
    manifest = load_manifest(tmp_path / "shards")
    assert (manifest.speakers, manifest.speaker_utterances) == (["anna", "ben"], [2, 2])
    assert (manifest.utterances, manifest.seconds) == (4, 7.5)


def test_a_kaldi_folder_without_segments_lists_whole_recordings(recordings):
    write_kaldi(recordings)
    (recordings / "segments").unlink()
    (recordings / "utt2spk").write_text("rec1 anna\nrec2 ben\n")
    assert read_table(recordings) == (["audio/a.wav", "audio/b.wav"], ["anna", "ben"])
    assert read_table(recordings / "wav.scp") == read_table(recordings)
    (recordings / "segments").write_text("u1 rec1 1.5 -1\nu2 rec2 0 -1\n")
    (recordings / "utt2spk").write_text("u1 anna\nu2 ben\n")
    assert read_table(recordings)[0] == ["audio/a.wav#t=1.5", "audio/b.wav"]


def test_nemo_manifests_in_practice(recordings):
    """A duration without an offset, an offset of null, speakers as integers, other keys."""
    lines = [
        '{"audio_filepath": "audio/a.wav", "offset": null, "duration": 4.0, "label": 17, "text": "a"}',
        '{"audio_filepath": "audio/b.wav", "duration": null, "label": 3}',
        '{"audio_filepath": "audio/b.wav", "offset": 2, "duration": null, "label": 3}',
    ]
    (recordings / "m.jsonl").write_text("\n".join(lines))
    names, speakers = read_table(recordings / "m.jsonl")
    assert (names, speakers) == (["audio/a.wav", "audio/b.wav", "audio/b.wav#t=2"], ["17", "3", "3"])


def test_the_split_for_training_is_chosen(tmp_path):
    for split in ("train", "test"):
        for speaker in ("anna", "ben"):
            folder = tmp_path / split / f"{split}-{speaker}"
            folder.mkdir(parents=True)
            sf.write(folder / "1.wav", 0.1 * np.sin(np.arange(8_000)), RATE)
    assert sorted(set(load_corpus(tmp_path)["speaker"])) == ["train-anna", "train-ben"]
    assert find_list(tmp_path, "test") == tmp_path / "test"
    assert find_list(tmp_path / "train") == tmp_path / "train"


def test_lists_are_told_from_recordings(tmp_path):
    (tmp_path / "kaldi").mkdir()
    (tmp_path / "kaldi" / "wav.scp").write_text("a b\n")
    names = ("t.csv", "T.TSV", "m.json", "m.jsonl", str(tmp_path / "kaldi"), str(tmp_path / "kaldi" / "wav.scp"))
    assert all(is_table(name) for name in names)
    (tmp_path / "people.csv").mkdir()
    names = ("a.wav", str(tmp_path), "wav.scp", "people", str(tmp_path / "people.csv"))
    assert not any(is_table(name) for name in names)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rec1 touch PWNED |", "line 1: expected the path of a recording, got the command 'touch PWNED |'. Commands"),
        ("rec1 | touch PWNED", "got the command '| touch PWNED'"),
        ("rec1 sph2pipe -f wav a.sph |\nrec2 b.wav", "Write the recordings to files, and name the files."),
        ("rec1 feats.ark:1234", "got 'feats.ark:1234'. Archives of Kaldi and standard input cannot be read"),
        ("rec1 -", "got '-'"),
        ("rec1", "line 1: expected at least two words"),
        ("rec1 a\0.wav", "without NUL characters"),
        ("rec1 a.wav\nrec1 b.wav", "line 2: 'rec1' occurs twice"),
        ("", "wav.scp is empty"),
        ("rec1 " + "a" * MOST_CHARACTERS, "line 1: the line is longer than"),
        ("rec1 a.wav\nrec2 b.wav\nrec3 c.wav", "utt2spk names no speaker for the utterance 'rec3'"),
        ("rec1 a.wav", "has 2 utterances, but only 1 of them have a recording"),
    ],
)
def test_hostile_kaldi_folders(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wav.scp").write_text(line)
    (tmp_path / "utt2spk").write_text("rec1 anna\nrec2 ben\n")
    for read in (lambda: load_corpus(tmp_path), lambda: prepare([str(tmp_path)], str(tmp_path / "out"), processes=0)):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            read()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("utt2spk", "u0 anna x\n", "line 1: expected an utterance and a speaker, got more than two words"),
        ("utt2spk", None, "utt2spk not found. A Kaldi folder needs wav.scp and utt2spk"),
        ("utt2spk", b"\xff\xfe", "utt2spk is not a text file in UTF-8"),
        ("segments", "u0 rec1 0 1 2\n", "expected an utterance, a recording, a start and an end, got 5 words"),
        ("segments", "u0 rec9 0 1\n", "the recording 'rec9' is not in wav.scp"),
        ("segments", "u0 rec1 0 1\nu0 rec1 1 2\n", "line 2: 'u0' occurs twice"),
        ("segments", "u0 rec1 2 1\nu1 rec1 0 1\nu2 rec1 0 1\nu3 rec1 0 1\n", "got '2' and '1'. Correct the times"),
        ("segments", "u0 rec1 nan 1\nu1 rec1 0 1\nu2 rec1 0 1\nu3 rec1 0 1\n", "got 'nan' and '1'"),
        ("segments", "u0 rec1 x 1\nu1 rec1 0 1\nu2 rec1 0 1\nu3 rec1 0 1\n", "got 'x' and '1'"),
    ],
)
def test_kaldi_folders_whose_files_disagree(recordings, name, content, message):
    write_kaldi(recordings)
    if content is None:
        (recordings / name).unlink()
    else:
        (recordings / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(recordings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"audio_filepath": "a.wav"}]', "line 1: expected one JSON object per line, got a list"),
        ("[" * 100_000, "line 1: expected one JSON object per line, got something else"),
        ('{"audio_filepath": "a.wav", "label": "x"}\n{', "line 2: expected one JSON object per line"),
        ('{"audio_filepath": "a.wav"}', "has no column 'speaker_id' or 'speaker' or"),
        ('{"wav": "a.wav", "label": "x"}', "Name the right column with audio_column (--audio-column)"),
        ('{"audio_filepath": ["a.wav"], "label": "x"}', "line 1: expected values for 'audio_filepath' and 'label'"),
        ('{"audio_filepath": "a\\u0000.wav", "label": "x"}', "line 1: expected values"),
        ('{"audio_filepath": "\\ud800.wav", "label": "x"}', "line 1: expected values"),
        ('{"audio_filepath": "a.wav", "label": true}', "got 'a.wav' and True"),
        ('{"audio_filepath": "a.wav", "label": "x", "offset": -1}', "line 1: the column 'offset' must contain times"),
        ('{"audio_filepath": "a.wav", "label": "x", "offset": NaN}', "line 1: the column 'offset' must contain times"),
        (
            '{"audio_filepath": "a.wav", "label": "x", "offset": 1, "duration": 0}',
            "line 1: expected a segment that ends",
        ),
        ('{"audio_filepath": "' + "a" * MOST_CHARACTERS + '"}', "line 1: the line is longer than"),
        ("", "has no column 'audio_filepath' or 'file_name' or 'path'. Its columns are []"),
    ],
)
def test_hostile_json_lines(tmp_path, text, message):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_corpus(tmp_path / "m.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    for needs_speakers in (True, False):
        with pytest.raises(ValueError):
            read_table(tmp_path / "m.json", audio_column="nowhere", needs_speakers=needs_speakers)


def test_json_lines_that_are_no_text(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        read_table(tmp_path / "m.jsonl")


def test_bad_rows_are_left_out_of_shards_and_reported(recordings, tmp_path):
    write_nemo(recordings)
    with open(recordings / "manifest.json", "a") as file:
        file.write('{"audio_filepath": "audio/a.wav", "offset": 3, "duration": -1, "label": "x"}\n')
        file.write('{"audio_filepath": 5.5, "label": "x"}\n{"audio_filepath": "../nowhere.wav", "label": "x"}\n')
    source = str(recordings / "manifest.json")
    prepare([source], str(tmp_path / "shards"), PrepareOptions(shards=1), processes=0, progress=False)
    assert load_manifest(tmp_path / "shards").unreadable == 3
    reasons = (tmp_path / "shards" / "unreadable.csv").read_text()
    assert "its row in the table is invalid" in reasons and "no such file" in reasons


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["m.json", "wav.scp", "utt2spk", "segments", "metadata.csv"]))
def test_any_bytes_give_rows_or_one_sentence(tmp_path_factory, content, name):
    root = tmp_path_factory.mktemp("any")
    if name in ("wav.scp", "utt2spk", "segments"):
        write_kaldi(root)
    (root / name).write_bytes(content)
    try:
        read_table(root if (root / "wav.scp").exists() else root / name)
    except ValueError as error:
        assert len(str(error).splitlines()) <= 2 and len(str(error)) < 1500


def test_a_pipe_among_the_files_does_not_block(recordings):
    os.mkfifo(recordings / "audio" / "metadata.csv")
    os.mkfifo(recordings / "wav.scp")
    assert find_list(recordings / "audio") == recordings / "audio"
    assert not is_table(str(recordings))
