"""Trial lists: reading, refusing, dropping, and files that are not there."""

import re

import numpy as np
import pytest

from hf_hamspk.evaluation import MissingTrialFilesError, Trials, check_trial_files, read_trials


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def trials():
    return Trials(
        labels=np.array([1, 0, 1, 0]),
        enrolment=("b.wav", "a.wav", "c.wav", "b.wav"),
        test=("c.wav", "d.wav", "d.wav", "a.wav"),
    )


def test_read(tmp_path):
    path = write(tmp_path / "list.txt", "\n1 a/b/1.wav a/c/2.wav\n\n  0\ta/b/1.wav   é/d/3.wav  \r\n   \n")
    trials = read_trials(path)
    assert trials.labels.tolist() == [1, 0]
    assert trials.labels.dtype == np.int8
    assert trials.enrolment == ("a/b/1.wav", "a/b/1.wav")
    assert trials.test == ("a/c/2.wav", "é/d/3.wav")
    assert trials.files == ("a/b/1.wav", "a/c/2.wav", "é/d/3.wav")
    assert len(trials) == 2
    assert read_trials(str(path)).enrolment == trials.enrolment


def test_read_with_byte_order_mark_and_without_final_newline(tmp_path):
    path = write(tmp_path / "list.txt", "\ufeff1 a b\n0 c d")
    assert read_trials(path).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "number", "found"),
    [
        ("1 a b\n\n1 a\n", 3, "found 2 fields: '1 a'"),
        ("1 a b\n0 a b c\n", 2, "found 4 fields: '0 a b c'"),
        ("1 a b\n2 a b\n", 2, "found the label '2': '2 a b'"),
        ("1 a b\na b 1\n", 2, "found the label 'a': 'a b 1'"),
        ("1 a b\ntarget a b\n", 2, "found the label 'target': 'target a b'"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path, text, number, found):
    path = write(tmp_path / "list.txt", text)
    message = (
        f"{path}, line {number}: expected 'label enrolment test' with the label 1 (target) or 0 (impostor), {found}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_trials(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("word\n", "found 1 field: 'word'"),
        ("1.0 a b\n", "found '1.0 a b'"),
        ("target a b\n", "found 'target a b'"),
    ],
)
def test_another_format_is_refused(tmp_path, text, found):
    path = write(tmp_path / "list.txt", text)
    message = (
        f"{path}, line 1: expected lines 'label enrolment test' (1 or 0 first) or 'model test label' (1, 0, tgt, imp, "
        f"target or nontarget last), {found}."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_trials(path)


def test_the_label_may_come_last(tmp_path):
    trials = read_trials(write(tmp_path / "list.txt", "a b 1\nc d 0\n"))
    assert (trials.labels.tolist(), trials.enrolment, trials.test) == ([1, 0], ("a", "c"), ("b", "d"))


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_an_empty_file_is_refused(tmp_path, text):
    path = write(tmp_path / "list.txt", text)
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected at least one line")):
        read_trials(path)


def test_other_bytes_are_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"1 a b\n\xff\xfe\x00")
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected UTF-8 text")):
        read_trials(path)


def test_a_missing_list_is_a_missing_file(tmp_path):
    for kind in (MissingTrialFilesError, FileNotFoundError, ValueError):
        with pytest.raises(kind, match=re.escape(f"There is no trial list {tmp_path / 'nowhere.txt'}.")):
            read_trials(tmp_path / "nowhere.txt")
        with pytest.raises(kind, match=re.escape("There is no trial list nowhere.txt (relative to the folder ")):
            read_trials("nowhere.txt")


def test_without_drops_trials_of_bad_files(trials):
    kept = trials.without({"a.wav", "unknown.wav"})
    assert kept.labels.tolist() == [1, 1]
    assert kept.enrolment == ("b.wav", "c.wav")
    assert kept.test == ("c.wav", "d.wav")
    assert kept.files == ("b.wav", "c.wav", "d.wav")
    assert len(trials) - len(kept) == 2
    assert len(trials.without([])) == 4
    nothing = trials.without(["b.wav", "d.wav"])
    assert (len(nothing), nothing.files, nothing.labels.shape) == (0, (), (0,))


def test_without_refuses_a_single_string(trials):
    with pytest.raises(ValueError, match=re.escape("Pass ['a.wav'] instead.")):
        trials.without("a.wav")


def test_labels_are_a_read_only_copy():
    labels = np.array([1, 0], dtype=np.int8)
    trials = Trials(labels=labels, enrolment=("a", "b"), test=("c", "d"))
    labels[0] = 0
    assert trials.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="read-only"):
        trials.labels[0] = 0


def test_trials_refuse_unequal_lengths_and_other_labels():
    with pytest.raises(ValueError, match=re.escape("got labels of shape (1,), 2 enrolment and 2 test names.")):
        Trials(labels=np.array([1]), enrolment=("a", "b"), test=("c", "d"))
    with pytest.raises(ValueError, match=re.escape("got labels of shape (2,), 2 enrolment and 1 test names.")):
        Trials(labels=np.array([1, 0]), enrolment=("a", "b"), test=("c",))
    with pytest.raises(ValueError, match=re.escape("labels must be 0 (impostor) or 1 (target)")):
        Trials(labels=np.array([1, 256]), enrolment=("a", "b"), test=("c", "d"))


def test_existing_files_pass(tmp_path, trials):
    for name in trials.files:
        (tmp_path / name).touch()
    check_trial_files(trials, tmp_path)
    check_trial_files(trials, str(tmp_path))


def test_missing_files_are_counted_and_the_first_five_named(tmp_path):
    names = tuple(f"{number}.wav" for number in range(8))
    trials = Trials(labels=np.ones(8), enrolment=names, test=names)
    (tmp_path / "1.wav").touch()
    (tmp_path / "3.wav").mkdir()  # A folder is no audio file.
    message = f"7 of 8 files of the trial list are missing under {tmp_path}: 0.wav, 2.wav, 3.wav, 4.wav, 5.wav, ..."
    for kind in (MissingTrialFilesError, FileNotFoundError, ValueError):
        with pytest.raises(kind, match=re.escape(message)):
            check_trial_files(trials, tmp_path)


def test_few_missing_files_are_all_named(tmp_path, trials):
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / name).touch()
    with pytest.raises(
        MissingTrialFilesError, match=re.escape(f"1 of 4 files of the trial list are missing under {tmp_path}: d.wav. ")
    ):
        check_trial_files(trials, tmp_path)


@pytest.mark.slow
def test_a_long_list_is_read(tmp_path):
    names = [f"id{10000 + number % 1200}/video{number % 97}/{number % 60000:05d}.wav" for number in range(600_000)]
    lines = (f"{number % 2} {name} {names[-number]}" for number, name in enumerate(names))
    path = write(tmp_path / "long.txt", "\n".join(lines))
    trials = read_trials(path)
    kept = trials.without(trials.files[:10])
    assert 0 < len(kept) < len(trials) == 600_000
