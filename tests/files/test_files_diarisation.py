"""Segments of a diarisation: RTTM and CSV files, the recordings that they belong to, and rows that cannot be used."""

from pathlib import Path

import pytest

from hf_hamspk.files.diarisation import read_speaker_segments
from hf_hamspk.files.tables import Segment

RTTM = """\
;; made by a program
SPKR-INFO call 1 <NA> <NA> <NA> unknown A <NA> <NA>
SPEAKER call 1 0.500 2.000 <NA> <NA> A <NA> <NA>
SPEAKER call 1 3 1.5 <NA> <NA> B <NA>

SPEAKER call 1 5.0 2.5 <NA> <NA> A <NA> <NA>
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "call.rttm") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def found(source: Path, *recordings: str) -> list[tuple]:
    return [(one.recording, one.speaker, str(one.segment)) for one in read_speaker_segments(source, recordings).found]


def test_rttm(write):
    expected = [("a/call.wav", "A", "#t=0.5,2.5"), ("a/call.wav", "B", "#t=3,4.5"), ("a/call.wav", "A", "#t=5,7.5")]
    assert found(write(RTTM), "a/call.wav") == expected
    assert found(write(RTTM), "a/call.wav", "b/other.flac") == expected


@pytest.mark.parametrize(
    "text",
    [
        "start,end,speaker\n0.5,2.5,A\n3,4.5,B\n",
        "path;Start;End;label\ncall.wav;0,5;2,5;A\ncall.wav;3;4,5;B \n",
        "file_name\tstart\tduration\tspeaker_id\na/call.wav\t0.5\t2\tA\na/call.wav\t3\t1.5\tB\n",
    ],
)
def test_csv(write, text):
    source = write(text, "call.csv")
    assert found(source, "a/call.wav") == [("a/call.wav", "A", "#t=0.5,2.5"), ("a/call.wav", "B", "#t=3,4.5")]


def test_a_csv_file_without_speakers(write):
    assert found(write("start,end\n1,2\n", "a.csv"), "call.wav") == [("call.wav", "", "#t=1,2")]


@pytest.mark.parametrize(
    ("name", "text"),
    [("call.rttm", RTTM), ("call.csv", "path,start,end,speaker\nx,a,b,A\na/call.flac,0,1,A\n,0,1,A\n")],
)
def test_segments_of_another_recording_are_refused(write, name, text):
    source = write(text, name)
    with pytest.raises(ValueError) as said:
        read_speaker_segments(source, ["a/meeting.wav"])
    own = "call" if name == "call.rttm" else "a/call.flac"
    assert f"{source} has segments of the recording {own!r}, but not of a/meeting.wav. Give" in str(said.value)


def test_a_row_without_a_recording_beside_rows_with_one(write):
    source = write("path,start,end\nx.wav,0,1\n,1,2\ncall,2,3\n", "a.csv")
    result = read_speaker_segments(source, ["call.wav"])
    assert [str(one.segment) for one in result.found] == ["#t=2,3"]
    assert result.skipped == {2: "none of the given recordings is named 'x.wav'", 3: "the row names no recording"}


def test_an_unknown_speaker_in_an_rttm_file(write):
    source = write("SPEAKER call 1 0 1 <NA> <NA> <NA> <NA> <NA>\n")
    assert found(source, "call.wav") == [("call.wav", "", "#t=0,1")]


def test_rows_of_several_recordings(write):
    source = write("path,start,end\nx/one.wav,0,1\ntwo,1,2\nthree.wav,2,3\n", "a.csv")
    result = read_speaker_segments(source, ["x/one.wav", "two.mp3"])
    assert [(one.recording, one.segment) for one in result.found] == [
        ("x/one.wav", Segment(0, 1)),
        ("two.mp3", Segment(1, 2)),
    ]
    assert result.skipped == {4: "none of the given recordings is named 'three.wav'"}
    unnamed = write("start,end,path\n0,1,one\n0,1,\n", "b.csv")
    assert read_speaker_segments(unnamed, ["one.wav", "two.wav"]).skipped == {3: "the row names no recording"}


def test_bad_rows_are_skipped_with_a_reason(write):
    lines = ["SPEAKER call 1 x 2 <NA> <NA> A", "SPEAKER call 1 4 -1 <NA> <NA> A <NA> <NA>", "SPEAKER call 1", "hello"]
    lines += ["SPEAKER call 1 4 0 <NA> <NA> A <NA> <NA>", "SPEAKER call 1 nan 1 <NA> <NA> A <NA> <NA>"]
    result = read_speaker_segments(write(RTTM + "\n".join(lines)), ["call.wav"])
    assert len(result.found) == 3
    assert sorted(result.skipped) == [7, 8, 9, 10, 11, 12]
    times = "expected a start of at least 0 s and a duration above 0 s, got {!r} and {!r}".format
    for line, words in {7: ("x", "2"), 8: ("4", "-1"), 11: ("4", "0"), 12: ("nan", "1")}.items():
        assert result.skipped[line] == times(*words)
    assert "expected 8 to 10 words `SPEAKER RECORDING" in result.skipped[9] and "got 3 words" in result.skipped[9]
    assert result.skipped[10].endswith("got 1 word ('hello')")
    table = write("start,end,speaker\n0,1,A\n2,,A\n3,2,A\n,,A\nx,2,A\n1,2,A,more\n", "a.csv")
    result = read_speaker_segments(table, ["call.wav"])
    assert len(result.found) == 1 and sorted(result.skipped) == [3, 4, 5, 6, 7]
    assert result.skipped[3] == result.skipped[5] == "expected a start and an end"


def test_other_files_are_refused(write, tmp_path):
    cases = [
        (tmp_path / "absent.rttm", "File not found"),
        (write("a,b\n1,2\n", "a.csv"), "must have the columns start and end, got a, b"),
        (write("", "b.csv"), "must have the columns start and end"),
        (write("start,end\n", "c.csv"), "c.csv contains no segments: it has no rows"),
        (
            write("hello", "d.rttm"),
            r"contains no segment of the given recordings \(line 1: expected 8 to 10 words `SPEAKER",
        ),
    ]
    (tmp_path / "e.csv").write_bytes(b"start,end\n\xff,1\n")
    (tmp_path / "e.rttm").write_bytes(b"SPEAKER \xff")
    cases += [(tmp_path / "e.csv", "is not a CSV file in UTF-8"), (tmp_path / "e.rttm", "is not a text file in UTF-8")]
    for source, message in cases:
        with pytest.raises(ValueError, match=message) as raised:
            read_speaker_segments(source, ["call.wav"])
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="Two recordings are named call"):
        read_speaker_segments(write(RTTM), ["a/call.wav", "b/call.flac"])
