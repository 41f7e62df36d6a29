"""Recordings in folders: links, other files, and the same recording under two speakers."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hf_hamspk.data.augmentation import NoiseFolder
from hf_hamspk.data.corpus import list_corpus, load_corpus
from hf_hamspk.files.recordings import FolderContents, describe_ignored, find_recordings
from hf_hamspk.files.same import find_shared
from hf_hamspk.shards import PrepareOptions, prepare
from hf_hamspk.shards.listing import Listing
from hf_hamspk.shards.sources import list_folder


@pytest.fixture
def tree(tmp_path) -> Path:
    """Three speakers with two recordings each."""
    draw = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "corpus" / f"s{number // 2}" / "session" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, 0.1 * draw.standard_normal(4000), 16_000)
    return tmp_path / "corpus"


def rows_of(tree: Path) -> list[tuple[str, str]]:
    corpus = load_corpus(tree)
    return [(os.path.relpath(p, tree), s) for p, s in zip(corpus["path"], corpus["speaker"], strict=True)]


def prepared_rows(tree: Path) -> list[str]:
    listing = Listing()
    list_folder(listing, tree)
    return sorted(listing.table()["name"].to_pylist())


LINKS = {
    "to the parent": ("s0/back", ".."),
    "to itself": ("s0/again", "."),
    "to the root's parent": ("s0/up", "../.."),
    "to everything": ("s0/all", "/"),
    "to another speaker": ("s0/friend", "../s1"),
    "to a session of another speaker": ("s0/theirs", "../s2/session"),
    "another name of a speaker": ("s9", "s1"),
}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_links_give_no_second_place(tree, link):
    expected = [(f"s{n // 2}/session/{n}.wav", f"s{n // 2}") for n in range(6)]
    place, target = link
    (tree / place).symlink_to(target, target_is_directory=True)
    assert rows_of(tree) == expected
    assert prepared_rows(tree) == [path for path, _ in expected]
    assert len(NoiseFolder(tree).files) == 6
    assert list(list_corpus(tree).skipped) == [str(tree / place)]
    assert any("links to a folder that is already listed" in remark for remark in list_corpus(tree).remarks())


def test_a_link_to_a_folder_elsewhere_is_followed_once(tree, tmp_path):
    shutil.move(tree / "s2", tmp_path / "elsewhere")
    (tree / "s2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "home").symlink_to(tree, target_is_directory=True)
    assert [path for path, _ in rows_of(tree)] == [f"s{n // 2}/session/{n}.wav" for n in range(6)]
    assert len(prepared_rows(tree)) == 6
    (tree / "s3").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(rows_of(tree)) == 6
    hidden = tree / ".store"
    shutil.move(tmp_path / "elsewhere" / "session", hidden)
    (tmp_path / "elsewhere" / "session").symlink_to(hidden, target_is_directory=True)
    assert len(rows_of(tree)) == 6, "what a hidden folder stores is reached through links only"


def test_what_is_not_read_is_counted_by_suffix(tree, caplog, tmp_path):
    for name in ("a.wma2", "b.WMA2", "c.ape", "notes.txt", "README", ".hidden"):
        (tree / "s0" / name).write_bytes(b"x")
    (tree / "loose.wav").write_bytes(b"x")
    listing = list_corpus(tree)
    assert listing.ignored == Counter({".wma2": 2, ".ape": 1, ".txt": 1, "": 1})
    assert listing.remarks() == [
        "5 files were not read, because only audio files are read: 2 .wma2, 1 .ape, 1 .txt, 1 without a suffix",
        f"not read: {tree / 'loose.wav'}: lies in no folder of a speaker; move it into the folder of its speaker",
    ]
    assert len(load_corpus(tree)) == 6
    assert "2 .wma2, 1 .ape" in caplog.text
    caplog.clear()
    prepare([tree], tmp_path / "shards", PrepareOptions(shards=1), progress=False)
    assert "2 .wma2, 1 .ape" in caplog.text
    shutil.rmtree(tree / "s1")
    for folder in ("s0", "s2"):
        shutil.rmtree(tree / folder / "session")
    with pytest.raises(ValueError, match=r"only audio files are read: 2 \.wma2, 1 \.ape"):
        load_corpus(tree)


def test_many_suffixes_are_shortened():
    assert describe_ignored({}) == []
    assert describe_ignored({".a": 1}) == ["1 file was not read, because only audio files are read: 1 .a"]
    assert describe_ignored({f".{n:02}": 20 - n for n in range(12)})[0].endswith("13 .07, 42 others")


def test_names_and_folders_that_cannot_be_read(tree):
    os.rename(tree / "s0" / "session" / "0.wav", os.fsencode(tree / "s0") + b"/\xff.wav")
    os.mkfifo(tree / "s1" / "pipe.wav")
    os.symlink("nowhere", tree / "s1" / "dangling.wav")
    os.symlink("round.wav", tree / "s1" / "round.wav")
    found = find_recordings(tree)
    assert len(found.files) == 8, "what is wrong with these is said when they are read"
    assert [reason for reason in found.skipped.values()] == ["its name is not valid UTF-8; rename it"]
    assert find_recordings(tree / "nowhere").skipped
    empty = FolderContents()
    empty.add(found)
    assert empty == found


def test_blanks_in_names_of_folders_make_no_speaker(tree):
    os.rename(tree / "s1", tree / "s0 ")
    assert sorted({speaker for _, speaker in rows_of(tree)}) == ["s0", "s2"]
    assert prepare([tree], tree.parent / "shards", progress=False).speakers == ["s0", "s2"]


@pytest.mark.parametrize("how", [shutil.copy, os.link, lambda a, b: os.symlink(os.path.abspath(a), b)])
def test_the_same_recording_under_two_speakers_is_warned_of(tree, how, caplog, tmp_path):
    how(tree / "s0/session/0.wav", tree / "s1/x.wav")
    shutil.copy(tree / "s2/session/4.wav", tree / "s2/session/twice.wav")
    shared = list_corpus(tree).shared
    assert [
        (Path(each.path).name, each.speaker, Path(each.other_path).name, each.other_speaker) for each in shared
    ] == [("0.wav", "s0", "x.wav", "s1")]
    load_corpus(tree)
    assert caplog.text.count("are the same recording") == 1
    caplog.clear()
    prepare([tree], tmp_path / "shards", progress=False)
    assert caplog.text.count("are the same recording") == 1


def test_a_row_under_two_speakers_is_warned_of(tree, tmp_path):
    table = tree / "t.csv"
    table.write_text("path,speaker_id\ns0/session/0.wav,x\ns0/session/1.wav,y\n./s0/session/0.wav,y\n")
    assert "0.wav occurs under two speakers, x and y" in str(list_corpus(table).remarks())
    table.write_text("path,speaker_id\ns0/session/0.wav,x\ns0/session/1.wav,y\ns0/session/0.wav,y\n")
    assert "0.wav occurs under two speakers, x and y" in str(list_corpus(table).remarks())
    prepare([table], tmp_path / "out", progress=False)
    assert (
        "is listed twice for the speakers x and y; only its first row is used"
        in (tmp_path / "out" / "unreadable.csv").read_text()
    )


def test_segments_of_one_recording_may_have_two_speakers(tree):
    one, other = tree / "s0/session/0.wav", tree / "s0/session/1.wav"
    names = [f"{one}#t=0,0.1", f"{one}#t=0.1,0.2", f"{other}#t=0,0.1", f"{one}#t=0,0.1", str(one)]
    assert not find_shared(names[:3], ["a", "b", "b"])
    assert len(find_shared(names, ["a", "b", "b", "c", "d"])) == 1
