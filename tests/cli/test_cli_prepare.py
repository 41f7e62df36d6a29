"""`hamspk prepare`."""

import numpy as np
import pytest
import soundfile as sf

from hf_hamspk.shards import load_manifest


@pytest.fixture
def source(tmp_path):
    """Two speakers in four files, and one that is no audio."""
    draw = np.random.default_rng(0)
    for number in range(4):
        path = tmp_path / f"wav/speaker{number % 2}/{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, 0.1 * draw.standard_normal(4000), 16_000)
    (tmp_path / "wav/speaker0/text.wav").write_text("this is no audio")
    return tmp_path / "wav"


def test_prepare_verify_and_prepare_again(hamspk, source, tmp_path):
    words = ("prepare", source, tmp_path / "out", "--processes", 0, "--shards", 2)
    code, out, err = hamspk(*words)
    assert code == 0
    assert f"{tmp_path / 'out'}: 4 utterances of 2 speakers" in out
    assert "in 2 shards (parquet, flac); 1 file left out" in out
    assert "left out speaker0/text.wav: cannot be decoded" in err
    assert hamspk(*words)[:2] == (0, out)
    code, out, _ = hamspk("prepare", "--verify", tmp_path / "out", "--processes", 0)
    assert (code, out) == (0, "verified: all files agree with the manifest\n")
    with open(tmp_path / "out" / load_manifest(tmp_path / "out").shards[1].file, "ab") as file:
        file.write(b"x")
    code, out, err = hamspk("prepare", "--verify", tmp_path / "out", "--processes", 0)
    assert code == 1
    assert out == "verified: 6 faults\n"
    assert "shard-00001-of-00002.parquet: its SHA-256 differs from the manifest" in err


def test_an_index_of_shards_of_others(hamspk, source, tmp_path):
    hamspk("prepare", source, tmp_path / "shards", "--processes", 0, "--shards", 2)
    words = ("prepare", "--index", tmp_path / "shards" / "*.parquet", tmp_path / "index", "--licence", "CC0")
    code, out, _ = hamspk(*words)
    assert code == 0
    size = -(-sum(shard.bytes for shard in load_manifest(tmp_path / "index").shards) // 1024)
    assert f"{tmp_path / 'index'}: 4 utterances of 2 speakers, {size} KiB in 2 shards (parquet, source)" in out
    assert load_manifest(tmp_path / "index").licence == "CC0"
    assert not list((tmp_path / "index").glob("*.parquet"))
    code, _, err = hamspk(*words, "--verify")
    assert code != 0 and "--index copies no audio" in err


def test_options_reach_the_shards(hamspk, source, tmp_path):
    (tmp_path / "speakers.txt").write_text("speaker1\nspeaker0\n\n")
    options = ("--format", "webdataset", "--codec", "opus", "--seed", 3, "--licence", "mine", "--min-duration", 0.2)
    hamspk("prepare", source, tmp_path / "out", "--processes", 0, *options, "--speakers", tmp_path / "speakers.txt")
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.format, manifest.codec, manifest.seed, manifest.licence) == ("webdataset", "opus", 3, "mine")


def test_ranks_share_the_work(hamspk, refusal, source, tmp_path):
    hamspk("prepare", source, tmp_path / "one", "--processes", 0, "--shards", 3)
    out = tmp_path / "out"
    assert hamspk("prepare", source, out, "--plan", "--shards", 3)[:2] == (0, f"{out}: planned 3 shards\n")
    words = ("prepare", out, "--processes", 0, "--world-size", 2, "--rank")
    made = f"{out}: rank {{}} of 2 made {{}} of its {{}} shards{{}}; {{}} of all 3 shards are complete\n".format
    assert hamspk(*words, 1)[:2] == (0, made(1, 1, 1, "", 1))
    assert hamspk(*words, 1)[:2] == (0, made(1, 0, 1, " (1 were complete already)", 1))
    again = f"{out}: planned 3 shards, and 1 of them are complete already\n"
    assert hamspk("prepare", source, out, "--plan", "--shards", 3)[:2] == (0, again)
    assert f"never started: run `hamspk prepare {out} --rank 0 --world-size 2`" in refusal("prepare", out, "--finish")
    assert hamspk(*words, 0)[:2] == (0, made(0, 2, 2, "", 3))
    code, printed, err = hamspk("prepare", out, "--finish", "--verify", "--processes", 0)
    assert code == 0
    assert f"{out}: 4 utterances of 2 speakers" in printed and "all files agree with the manifest" in printed
    assert "left out speaker0/text.wav: cannot be decoded" in err
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    done = (0, f"{out}: all 3 shards and the manifest are complete, so nothing was done\n")
    assert hamspk(*words, 1)[:2] == done
    assert hamspk("prepare", source, out, "--plan", "--shards", 3)[:2] == done


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--rank", 1), "--world-size is missing. Give both"),
        (("--world-size", 1), "--rank is missing. Give both"),
        (("--rank", 2, "--world-size", 2), "got rank 2 of 2"),
        (("--plan", "--finish"), "--plan and --finish are separate steps"),
        (("--finish", "--rank", 0, "--world-size", 2), "--finish and --rank are separate steps"),
        (("--finish", "--codec", "opus"), "--codec belongs to the first step, `hamspk prepare SOURCE OUTPUT --plan`"),
        (("--rank", 0, "--world-size", 2, "--restart"), "--restart belongs to the first step"),
        (("--rank", 0, "--world-size", 2, "--verify"), "--rank does not complete the shards"),
        (("--rank", 0, "--world-size", 2), "contains no plan. Run `hamspk prepare SOURCE"),
        (("--finish",), "contains no plan. Run `hamspk prepare SOURCE"),
        (("--plan",), "Give SOURCE and OUTPUT"),
    ],
)
def test_steps_that_do_not_fit_are_refused(refusal, tmp_path, words, problem):
    assert problem in refusal("prepare", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_the_source_is_given_once(refusal, source, tmp_path):
    assert "SOURCE belongs to the first step" in refusal("prepare", source, tmp_path / "out", "--finish")


def test_what_is_refused(refusal, source, tmp_path):
    assert "Give SOURCE and OUTPUT" in refusal("prepare", tmp_path / "out")
    assert "source not found: nowhere; give a folder of audio" in refusal("prepare", "nowhere", tmp_path / "out")
    assert "--processes must be at least 0" in refusal("prepare", source, tmp_path / "out", "--processes", -1)
    assert "File not found: nobody" in refusal("prepare", source, tmp_path / "out", "--speakers", "nobody")
    assert "not a folder of shards" in refusal("prepare", "--verify", source)
