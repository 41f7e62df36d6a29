"""Who speaks in a trial, by the names or by a table, and groups of trials."""

import re

import numpy as np
import pytest

from hf_hamspk.evaluation.speakers import find_speakers, group_trials, read_metadata, speaker_table
from hf_hamspk.evaluation.trials import Trials


def make(*lines: str) -> Trials:
    labels, enrolment, test = zip(*(line.split() for line in lines), strict=True)
    return Trials(np.array(labels, int), enrolment, test)


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (
            ["1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav",
             "0 id10270/x6uYqmx31kE/00001.wav id10300/ize_eiCFEg0/00003.wav"],
            ("id10270", "id10300"),
        ),
        (
            ["1 corpus/so1/a.flac corpus/so1/b.flac", "0 corpus/so1/a.flac corpus/so2/b.flac",
             "0 corpus/so1/a.flac other/so1/b.flac"],
            ("corpus/so1", "corpus/so2", "other/so1"),
        ),
        (["1 audio/1089-134686-0000.flac audio/1089-134691-0003.flac",
          "0 audio/1089-134686-0000.flac audio/121-1-1.flac"],
         ("1089", "121")),
        (["1 enroll/id1-enroll.wav test/id1-singing-01.wav", "0 enroll/id1-enroll.wav test/id2-a-01.wav"],
         ("id1", "id2")),
        (["1 ann_1.wav ann_2.wav", "0 ann_1.wav bob_1.wav"], ("ann", "bob")),
        (["0 ann.wav bob.wav"], ("ann", "bob")),
    ],
)  # fmt: skip
def test_speakers_are_read_off_the_names(lines, names):
    trials = make(*lines)
    speakers = find_speakers(trials)
    assert speakers.names == names
    assert ((speakers.enrolment == speakers.test) == (trials.labels == 1)).all()
    assert speakers.names[speakers.test[-1]] in trials.test[-1]
    assert len(speakers) == len(trials)


def test_names_without_a_rule_ask_for_a_table():
    trials = make("1 a.wav b.wav", "0 a.wav c.wav")
    with pytest.raises(ValueError, match=re.escape("cannot be derived from the file names")):
        find_speakers(trials)
    speakers = find_speakers(trials, {"a.wav": "ann", "b.wav": "ann", "c.wav": "bob", "unused.wav": "eve"})
    assert speakers.names == ("ann", "bob")
    assert (speakers.enrolment.tolist(), speakers.test.tolist()) == ([0, 0], [0, 1])
    with pytest.raises(
        ValueError, match=re.escape("1 of 3 files of the trial list are not in the table of speakers (c.wav)")
    ):
        find_speakers(trials, {"a.wav": "ann", "b.wav": "ann"})
    with pytest.raises(
        ValueError,
        match=re.escape("1 of 2 labels contradict the table of speakers. The first such trial is: 1 a.wav b.wav."),
    ):
        find_speakers(trials, {"a.wav": "ann", "b.wav": "bob", "c.wav": "bob"})


def test_selection_keeps_the_speakers_that_are_left():
    speakers = find_speakers(make("1 a/1 a/2", "0 a/1 b/1", "0 c/1 d/1", "1 d/1 d/2"))
    chosen = speakers.select(np.array([False, False, True, True]))
    assert chosen.names == ("c", "d")
    assert (chosen.enrolment.tolist(), chosen.test.tolist()) == ([0, 1], [1, 1])


def write(tmp_path, text):
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    return tmp_path / "table.csv"


def test_tables_are_read_and_refused(tmp_path):
    table = read_metadata(write(tmp_path, "\ufeffspeaker_id, path ,gender\nann, a.wav ,f\n\nbob,b.wav,\n"))
    assert table == {"a.wav": {"speaker_id": "ann", "gender": "f"}, "b.wav": {"speaker_id": "bob", "gender": ""}}
    assert speaker_table(table) == {"a.wav": "ann", "b.wav": "bob"}
    assert speaker_table({"a.wav": {"gender": "f"}}) is None
    for text, message in (
        (
            "file,gender\na.wav,f\n",
            "expected a column 'path' with the file names of the trial lists, found the columns file, gender",
        ),
        ("path,gender\na.wav\n", "line 2: expected 2 cells, got 1"),
        ("path,gender\na.wav,f\na.wav,m\n", "line 3: a.wav has two different rows"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            read_metadata(write(tmp_path, text))
    (tmp_path / "latin.csv").write_bytes("path\né.wav".encode("latin-1"))
    with pytest.raises(ValueError, match="expected a CSV file in UTF-8"):
        read_metadata(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match="Table not found"):
        read_metadata(tmp_path / "nope.csv")


def test_groups_have_both_sides_in_them():
    trials = make("1 a/1 a/2", "0 a/1 b/1", "0 a/1 c/1", "1 c/1 c/2")
    gender = {"a": "f", "b": "f", "c": "m"}
    metadata = {name: {"gender": gender[name[0]]} for name in trials.files} | {"c/2": {"gender": ""}}
    groups = group_trials(trials, metadata, ["gender"])
    assert {name: mask.tolist() for name, mask in groups.items()} == {"gender f": [True, True, False, False]}
    with pytest.raises(ValueError, match=re.escape("no column 'age' to group by. Its columns are gender.")):
        group_trials(trials, metadata, ["age"])


def test_many_numbers_are_cut_into_quarters():
    files = [f"{i}.wav" for i in range(40)]
    trials = Trials(np.zeros(40, int), tuple(files), tuple(files))
    metadata = {name: {"age": str(6 + i) if i else "5-7", "dose": str(i % 3)} for i, name in enumerate(files)}
    groups = group_trials(trials, metadata, ["age", "dose"])
    assert list(groups) == ["age 6 to 15", "age 16 to 25", "age 26 to 35", "age 36 to 45", "dose 0", "dose 1", "dose 2"]
    assert sum(mask for name, mask in groups.items() if name.startswith("age")).tolist() == [1] * 40


def test_few_numbers_are_groups_of_their_own():
    for count, names in ((8, [f"age {6 + i}" for i in range(8)]), (9, ["age 6 to 8", "age 9 to 10"])):
        files = tuple(f"{i}.wav" for i in range(count))
        metadata = {name: {"age": str(6 + i)} for i, name in enumerate(files)}
        groups = group_trials(Trials(np.zeros(count, int), files, files), metadata, ["age"])
        assert list(groups)[: len(names)] == names
