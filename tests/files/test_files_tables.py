"""Tables of recordings: delimiters, names of speakers, and segments, whichever command reads them."""

import csv
import io
import re
import unicodedata

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_hamspk.audio_hamspk import InputError
from hf_hamspk.data import audio as data_audio
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.corpus import check_corpus, load_corpus
from hf_hamspk.files.corpora import read_table
from hf_hamspk.files.tables import (
    DELIMITERS,
    Segment,
    clean_speaker,
    join_segment,
    open_table,
    split_segment,
    with_segments,
)

RATE = 16_000


@pytest.fixture
def ramp(tmp_path):
    """Two recordings of 4 s whose samples tell their place: sample n is n / 65536."""
    samples = (np.arange(4 * RATE) % 32768).astype(np.int16)
    for name in ("a", "b"):
        sf.write(tmp_path / f"{name}.wav", samples, RATE, subtype="PCM_16")
    return tmp_path


def place(waveform: np.ndarray) -> int:
    """The first sample of a segment of `ramp`."""
    return round(float(waveform[0]) * 32768)


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("quoted", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_delimiter_is_found(tmp_path, delimiter, quoted):
    path = tmp_path / "t.csv"
    rows = [("n", "path", "speaker_id", "text"), ("1", "a.wav", "x", "a, b; c|d"), ("2", "b.wav", " y ", "e\tf")]
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoted).writerows(rows)
    assert read_table(path) == (["a.wav", "b.wav"], ["x", "y"])


cells = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.sampled_from(DELIMITERS), st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_what_a_writer_of_csv_wrote_is_read(delimiter, rows):
    file = io.StringIO(newline="")
    file.name = "t.csv"
    csv.writer(file, delimiter=delimiter).writerows([("path", "speaker_id"), *rows])
    file.seek(0)
    table = open_table(file, ("path", "speaker_id"))
    assert [(row.cells["path"], row.cells["speaker_id"], row.problem) for row in with_segments(table)] == [
        (*row, "") for row in rows
    ]


def test_a_path_with_an_unquoted_delimiter_is_not_taken_apart_without_a_word(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("path,speaker_id\na,b.wav,x\n")
    with pytest.raises(ValueError, match=re.escape("line 2: expected 2 cells, got 3. Put a cell with ',' into double")):
        read_table(path)
    path.write_text("path,speaker_id\na.wav,x,\nb.wav,y,,\n")
    assert read_table(path) == (["a.wav", "b.wav"], ["x", "y"]), "some programs end each line with a delimiter"


@pytest.mark.parametrize(
    "name", ["so2451 ", " so2451", "so2451\u00a0", "\ufeffso2451", "so2451\u200b", "\tso2451\r"], ids=repr
)
def test_blanks_make_no_speaker(name):
    assert clean_speaker(name) == "so2451"
    assert clean_speaker(unicodedata.normalize("NFD", "José")) == clean_speaker("José") == "José"


@given(st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.booleans())
def test_a_segment_is_found_in_its_name(start, stop, samples):
    segment = Segment(start, stop, samples)
    path, found = split_segment(join_segment("folder#1/a.b#t=x.wav", segment))
    assert path == "folder#1/a.b#t=x.wav"
    assert found is not None and found.samples == samples
    assert found.start == pytest.approx(start, abs=1e-6)
    assert (found.stop is None) == (stop is None)
    assert stop is None or found.stop == pytest.approx(stop, abs=1e-6)


@pytest.mark.parametrize("name", ["a.wav", "a#1.wav", "a.wav#", "a.wav#t=", "a.wav#t=1,", "a.wav#t=-1,2", "#", ""])
def test_other_names_have_no_segment(name):
    assert split_segment(name) == (name, None)


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        ("path,speaker_id,start,stop", "a.wav,x,1,2.5", "b.wav,y,0.5,3"),
        ("path;speaker_id;start;end", "a.wav;x;1,0;2,5", "b.wav;y;0,5;3,0"),
        ("path\tspeaker_id\tstart\tduration", "a.wav\tx\t1\t1.5", "b.wav\ty\t0.5\t2.5"),
        ("path,speaker_id,offset,duration", "a.wav,x,1,1.5", "b.wav,y,0.5,2.5"),
        ("ID,duration,path,start,stop,speaker_id", "a1,4.0,a.wav,16000,40000,x", "b1,4.0,b.wav,8000,48000,y"),
    ],
    ids=["stop", "end", "duration", "offset", "samples of SpeechBrain"],
)
def test_columns_of_times_give_segments(ramp, monkeypatch, header, first, second):
    (ramp / "t.csv").write_text(f"{header}\n{first}\n{second}\n")
    corpus = load_corpus(ramp / "t.csv")
    monkeypatch.setattr(data_audio, "read_sound", _without_files(data_audio.read_sound))
    read = [read_utterance(path, RATE).waveform for path in corpus["path"]]
    assert [(place(waveform), len(waveform)) for waveform in read] == [(16_000, 24_000), (8_000, 40_000)]
    report = check_corpus(corpus, progress=False)
    np.testing.assert_allclose(report.durations, [1.5, 2.5])
    np.testing.assert_allclose(check_corpus(corpus, full=False, progress=False).durations, [1.5, 2.5])


def _without_files(read):
    """A reader that is never given a path: only the samples of the segment were decoded."""

    def checked(source, *words, **options):
        assert isinstance(source, np.ndarray)
        return read(source, *words, **options)

    return checked


def test_a_row_without_times_is_the_whole_recording(ramp):
    (ramp / "t.csv").write_text("path,speaker_id,start,stop\na.wav,x,,\na.wav,x,3,\nb.wav,y,,1\nb.wav,y,3.9,4.03\n")
    lengths = [len(read_utterance(path, RATE).waveform) for path in load_corpus(ramp / "t.csv")["path"]]
    assert lengths == [4 * RATE, RATE, RATE, 1600], "times may be rounded up to 0.05 s beyond the end"


def test_a_duration_alone_is_no_segment(ramp):
    (ramp / "t.csv").write_text("path,speaker_id,duration\na.wav,x,3.2\nb.wav,y,3.2\n")
    assert [path.rsplit("/", 1)[1] for path in load_corpus(ramp / "t.csv")["path"]] == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.wav,x,2,1", "line 2: expected a segment that ends after its start, got 2 to 1"),
        ("a.wav,x,1,1", "expected a segment that ends after its start"),
        ("a.wav,x,-1,1", "the column 'start' must contain times in seconds, at least 0, got '-1'"),
        ("a.wav,x,0:30,1:00", "the column 'start' must contain times in seconds, at least 0, got '0:30'"),
        ("a.wav,x,nan,1", "at least 0, got 'nan'"),
        ("a.wav,x,0,inf", "at least 0, got 'inf'"),
        ("a.wav,x,0,1e400", "at least 0, got '1e400'"),
    ],
)
def test_times_that_are_refused(ramp, row, message):
    (ramp / "t.csv").write_text(f"path,speaker_id,start,stop\n{row}\nb.wav,y,0,1\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(ramp / "t.csv")


def test_a_segment_beyond_the_end_is_a_bad_file(ramp):
    (ramp / "t.csv").write_text("path,speaker_id,start,stop\na.wav,x,0,1\nb.wav,y,0,1\na.wav,x,3,9\nb.wav,y,5,\n")
    report = check_corpus(load_corpus(ramp / "t.csv"), progress=False)
    assert [(file.path.rsplit("/", 1)[1], file.reason) for file in report.bad] == [
        ("a.wav#t=3,9", "lasts 4.00 s, but the segment is from 3.00 s to 9.00 s; correct the times"),
        ("b.wav#t=5", "lasts 4.00 s, but the segment is from 5.00 s to its end; correct the times"),
    ]


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".aiff", ".m4a", ".gsm.wav"])
def test_segments_of_every_format(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    rate = 8000 if suffix == ".gsm.wav" else RATE
    tone = 0.3 * np.sin(np.arange(4 * rate) / rate * 2 * np.pi * 300) * np.linspace(0.1, 1, 4 * rate)
    if suffix == ".m4a":
        pytest.importorskip("av")
        from strange_files import encode_av

        path.write_bytes(encode_av(tone.astype(np.float32), "mp4", "aac"))
    else:
        sf.write(path, tone, rate, subtype="GSM610" if suffix == ".gsm.wav" else None)
    whole = read_utterance(path, None).waveform
    part = read_utterance(f"{path}#t=2.4,3.9", None).waveform
    assert len(part) == 1.5 * rate
    error = part - whole[round(2.4 * rate) :][: len(part)]
    assert np.abs(error).max() < (0.05 if suffix == ".m4a" else 1e-6)


def test_a_segment_is_checked_as_a_recording_is(tmp_path):
    samples = np.zeros((3 * RATE, 2))
    samples[2 * RATE :] = 0.1 * np.sin(np.arange(RATE) / 9)[:, None]
    sf.write(tmp_path / "a.wav", samples, RATE)
    assert read_utterance(tmp_path / "a.wav#t=2,3", RATE).waveform.shape == (RATE,)
    for times, reason in (("0,1", "holds no sound"), ("2,2.05", "lasts 0.05 s"), ("9", "lasts 3.00 s")):
        with pytest.raises(InputError, match=reason):
            read_utterance(tmp_path / f"a.wav#t={times}", RATE)
    with pytest.raises(InputError, match="no such file"):
        read_utterance(tmp_path / "b.wav#t=0,1", RATE)


def test_columns_of_times_may_have_capitals_and_no_column_occurs_twice():
    table = open_table(io.StringIO("path,speaker_id,Start,End\na.wav,anna,1,2.5\n"), ("path",))
    assert next(iter(with_segments(table))).segment == Segment(1.0, 2.5, False)
    with pytest.raises(csv.Error, match="the column 'speaker_id' occurs twice"):
        open_table(io.StringIO("path,speaker_id,speaker_id\na.wav,anna,carl\n"), ("path",))
