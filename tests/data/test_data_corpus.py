"""Tables of corpora, what is wrong with them, and the check of their audio."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hf_hamspk.audio_hamspk import InputError
from hf_hamspk.data.augmentation import NoiseFolder
from hf_hamspk.data.corpus import check_corpus, load_corpus, speaker_labels

SPEECH = Path(__file__).resolve().parents[3] / "shared" / "speech"


def write_tone(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.1 * np.sin(np.arange(round(16_000 * seconds))), 16_000)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "audio"
    for name in ("id02/b/2.wav", "id02/a/1.FLAC", "id10/x/3.ogg", "id01/z/deep/0.flac"):
        write_tone(root / name)
    (root / "id01" / "z" / "._0.flac").write_bytes(b"a file of macOS")
    (root / "id01" / "notes.txt").write_text("no audio")
    (root / ".hidden").mkdir()
    write_tone(root / ".hidden" / "4.wav")
    return root


def test_folder_in_sorted_order_with_the_first_level_as_speaker(tree):
    dataset = load_corpus(tree)
    assert dataset.column_names == ["path", "speaker"]
    assert [str(Path(path).relative_to(tree)) for path in dataset["path"]] == [
        "id01/z/deep/0.flac",
        "id02/a/1.FLAC",
        "id02/b/2.wav",
        "id10/x/3.ogg",
    ]
    assert list(dataset["speaker"]) == ["id01", "id02", "id02", "id10"]
    assert speaker_labels(dataset) == ["id01", "id02", "id10"]


def test_csv_keeps_speakers_as_text_and_writes_nothing_beside_the_audio(tree):
    table = tree / "train.csv"
    table.write_text('path,text,speaker_id\nid02/b/2.wav,"a, b",0012\nid10/x/3.ogg,,0007\n', encoding="utf-8-sig")
    before = sorted(tree.rglob("*"))
    dataset = load_corpus(table)
    assert list(dataset["speaker"]) == ["0012", "0007"]
    assert list(dataset["path"]) == [str(tree / "id02/b/2.wav"), str(tree / "id10/x/3.ogg")]
    check_corpus(dataset, progress=False)
    assert sorted(tree.rglob("*")) == before


def test_csv_with_an_audio_root_other_columns_and_absolute_paths(tree, tmp_path):
    table = tmp_path / "lists" / "train.csv"
    table.parent.mkdir()
    table.write_text(f"file,who\nid02/b/2.wav,x\n{tree / 'id10/x/3.ogg'},y\n")
    dataset = load_corpus(table, audio_root=tree, audio_column="file", speaker_column="who")
    assert list(dataset["path"]) == [str(tree / "id02/b/2.wav"), str(tree / "id10/x/3.ogg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,Speaker\na,b\n",
            "no column 'speaker_id'. Its columns are ['path', 'Speaker']. Did you mean speaker_column='Speaker'?",
        ),
        (
            "q,speaker_id\na,b\n",
            "no column 'path'. Its columns are ['q', 'speaker_id']. Name the right column with audio_column (--audio-",
        ),
        ("", "has no column 'path'. Its columns are []."),
        ("path,speaker_id\n", "No audio in {table}. The file has a header but no rows."),
        (
            "path,speaker_id\nid02/b/2.wav,x\nid10/x/3.ogg,\n",
            "{table}, line 3: expected values for 'path' and 'speaker_id', got 'id10/x/3.ogg' and ''",
        ),
        ("path,speaker_id\nid02/b/2.wav\n", "got 'id02/b/2.wav' and None. Complete the line, or delete it."),
        ("path,speaker_id\nid02/b/2.wav,x\n", "must have at least 2 speakers, got only 'x' in 1 files"),
    ],
)
def test_tables_that_are_refused(tree, content, message):
    table = tree / "t.csv"
    table.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message.format(table=table))):
        load_corpus(table)


def test_a_table_that_is_no_text(tree):
    (tree / "t.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=re.escape("is not a CSV file in UTF-8")):
        load_corpus(tree / "t.csv")


def test_missing_files_are_counted_and_the_first_five_named(tree):
    table = tree / "t.csv"
    rows = [f"gone{number}.wav,s{number}" for number in range(7)]
    table.write_text("\n".join(["path,speaker_id", "id02/b/2.wav,x", *rows]))
    with pytest.raises(ValueError, match=re.escape("7 of the 8 files")) as caught:
        load_corpus(table)
    assert [f"gone{number}.wav" in str(caught.value) for number in range(7)] == [True] * 5 + [False] * 2
    assert "Set audio_root" in str(caught.value)


def test_sources_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"No corpus at {tmp_path / 'none'}.")):
        load_corpus(tmp_path / "none")
    with pytest.raises(ValueError, match=re.escape(f"No audio in {tmp_path}. Expected files speaker/.../utterance")):
        load_corpus(tmp_path)
    write_tone(tmp_path / "one" / "a.wav")
    with pytest.raises(ValueError, match=re.escape("must have at least 2 speakers, got only 'one' in 1 files")):
        load_corpus(tmp_path)


@pytest.mark.parametrize("threads", [1, 4])
def test_check_leaves_out_bad_files_and_says_why(tree, threads):
    nan = np.full(8_000, 0.1)
    nan[5] = np.nan
    sf.write(tree / "id02" / "nan.wav", nan, 16_000, subtype="FLOAT")
    (tree / "id02" / "text.wav").write_text("no audio")
    write_tone(tree / "id10" / "short.wav", 0.05)
    dataset = load_corpus(tree)
    report = check_corpus(dataset, threads=threads, progress=False)
    assert [Path(file.path).name for file in report.bad] == ["nan.wav", "text.wav", "short.wav"]
    assert [file.path in file.reason for file in report.bad] == [False] * 3
    assert list(report.dataset["speaker"]) == ["id01", "id02", "id02", "id10"]
    np.testing.assert_allclose(report.durations, 0.5, atol=0.01)
    lines = report.summary().splitlines()
    assert lines[0] == "4 files of 3 speakers, 0.00 h; 3 files skipped"
    assert "contains NaN or infinite samples (1 of 8000)" in lines[1]
    headers = check_corpus(dataset, full=False, threads=threads, progress=False)
    assert [Path(file.path).name for file in headers.bad] == ["text.wav", "short.wav"]


def test_check_refuses_a_corpus_with_too_little_left(tree):
    for speaker in ("id01", "id02"):
        for path in (tree / speaker).rglob("[!.]*.*"):
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=re.escape("Fewer than 2 speakers are left after the audio check")) as caught:
        check_corpus(load_corpus(tree), progress=False)
    assert "1 files of 1 speakers" in str(caught.value)


@pytest.mark.slow
def test_real_speech():
    if not (SPEECH / "dev.csv").exists():
        pytest.skip(f"no real speech at {SPEECH}")
    dataset = load_corpus(SPEECH / "dev.csv", audio_root=SPEECH / "audio")
    assert (len(dataset), len(speaker_labels(dataset))) == (640, 46)
    report = check_corpus(dataset, progress=False)
    assert len(report.bad) == 0
    assert report.durations.min() > 0.5


def strange_files(root: Path) -> dict[str, str]:
    """Files beside good ones that must not end a command; name to what the report says of them."""
    tone = 0.1 * np.sin(np.arange(8_000))
    sf.write(root / "id01" / "odd.wav", tone, 11_127)
    sf.write(root / "id01" / "high.wav", tone, 48_001)
    sf.write(root / "id01" / "voicemail.wav", tone, 8_000, subtype="GSM610")
    sf.write(root / "id01" / "slow.wav", np.tile(tone, 2), 1_000)
    (root / "id02" / "lying.flac").write_bytes(b"fLaC" + bytes(40) + b"\xff" * 400)
    os.mkfifo(root / "id02" / "pipe.wav")
    return {
        "slow.wav": "sampling rate of 1000 Hz",
        "lying.flac": "cannot be decoded",
        "pipe.wav": "is not a regular file",
    }


def test_one_strange_file_ends_nothing(tree):
    expected = strange_files(tree)
    dataset = load_corpus(tree)
    for full in (True, False):
        report = check_corpus(dataset, full=full, progress=False)
        bad = {Path(file.path).name: file.reason for file in report.bad}
        # The header of a file says nothing about its rate being of use.
        assert bad.keys() == (expected.keys() if full else expected.keys() - {"slow.wav"})
        assert all(expected[name] in reason for name, reason in bad.items())
    noises = NoiseFolder(tree / "id02")
    generator = np.random.default_rng(0)
    for _ in range(20):
        try:
            assert noises.crop(4_000, generator).shape == (4_000,)
        except InputError as error:
            assert Path(error.name).name in expected


@pytest.mark.parametrize("suffix", [".m4a", ".webm"])
def test_formats_of_phones_and_browsers_are_read(tree, suffix):
    av = pytest.importorskip("av")
    with av.open(tree / "id01" / f"phone{suffix}", "w") as file:
        stream = file.add_stream("aac" if suffix == ".m4a" else "libopus", rate=48_000, layout="mono")
        samples = (0.1 * np.sin(np.arange(96_000) / 20)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(stream.format, "mono", 48_000, stream.frame_size)
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(each))
        file.mux(stream.encode(None))
    dataset = load_corpus(tree)
    for full in (True, False):
        report = check_corpus(dataset, full=full, progress=False)
        assert not report.bad
        assert report.durations[list(map(str, dataset["path"])).index(str(tree / "id01" / f"phone{suffix}"))] == (
            pytest.approx(2.0, abs=0.03)
        )
