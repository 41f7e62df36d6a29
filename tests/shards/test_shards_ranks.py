"""`prepare` divided among ranks: the bytes of one machine, whatever ranks are killed; a missing rank is named.

`HAMSPK_FULL_SIZE=1` takes 5,000 files in place of 600 in the test that kills ranks.
"""

import functools
import os
from pathlib import Path

import pytest
from many_ranks import contents, run_and_kill, tiny
from prepare_sources import voxceleb

from hf_hamspk.folders.locks import lock_folder
from hf_hamspk.folders.ranks import hold_rank
from hf_hamspk.shards import PrepareOptions, finish_shards, load_manifest, make_shards, plan_shards, prepare
from hf_hamspk.shards.owning import lock_shards_of_rank

FULL = os.environ.get("HAMSPK_FULL_SIZE") == "1"


@pytest.fixture
def tree(tmp_path) -> Path:
    voxceleb(tmp_path / "wav")
    return tmp_path / "wav"


def work(output: Path, rank: int, world_size: int) -> int:
    return make_shards(output, rank, world_size, progress=False)


def work_of_four(output: Path, rank: int) -> int:
    return work(output, rank, 4)


@pytest.mark.parametrize(
    ("files", "options"),
    [pytest.param(200, {}, marks=pytest.mark.slow), (60, {"format": "webdataset", "codec": "source"})],
)
def test_four_ranks_write_the_bytes_of_one(tmp_path, files, options):
    root = tiny(tmp_path / "wav", files)
    given = PrepareOptions(shards=10, rows_per_group=8, **options)
    prepare([root], tmp_path / "one", given, progress=False)
    assert plan_shards([root], tmp_path / "four", given, progress=False) == 10
    assert [work(tmp_path / "four", rank, 4) for rank in (2, 0, 3, 1)] == [2, 3, 2, 3]
    assert work(tmp_path / "four", 0, 4) == 0
    assert finish_shards(tmp_path / "four") == load_manifest(tmp_path / "one")
    assert contents(tmp_path / "four") == contents(tmp_path / "one")
    # Afterwards, each step finds the finished shards.
    assert finish_shards(tmp_path / "four") == load_manifest(tmp_path / "one")
    assert plan_shards([root], tmp_path / "four", given, progress=False) == 10
    assert work(tmp_path / "four", 1, 4) == 0
    assert contents(tmp_path / "four") == contents(tmp_path / "one")


def test_a_missing_rank_is_named_with_its_command(tree, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"contains no plan. Run `hamspk prepare SOURCE .*/out --plan` first"):
        work(out, 0, 2)
    with pytest.raises(ValueError, match=r"contains no plan. Run `hamspk prepare SOURCE .*/out --plan` first"):
        finish_shards(out)
    plan_shards([tree], out, PrepareOptions(shards=6), progress=False)
    with pytest.raises(ValueError, match=r"6 of the 6 shards of .* are missing. No rank has started"):
        finish_shards(out)
    for rank in (0, 1, 3):
        work(out, rank, 4)
    (out / ".progress" / "shard-00005.json").unlink()
    missing = (
        r"^2 of the 6 shards of \S+ are missing. Rank 1 of 4 stopped after 1 of its 2 shards: run `hamspk prepare \S+ "
        r"--rank 1 --world-size 4`. Rank 2 of 4 never started: run `hamspk prepare \S+ --rank 2 --world-size 4`. Then "
        r"finish again.$"
    )
    with pytest.raises(ValueError, match=missing):
        finish_shards(out)
    assert not (out / "manifest.json").exists()
    # More ranks than before, and some of them without shards.
    assert [work(out, rank, 9) for rank in range(9)] == [0, 0, 1, 0, 0, 1, 0, 0, 0]
    assert finish_shards(out).utterances == 20


def test_a_file_removed_after_the_plan_is_named_with_what_to_do(tree, tmp_path):
    plan_shards([tree], tmp_path / "out", PrepareOptions(shards=1), progress=False)
    gone = min(tree.rglob("*.wav"))
    gone.unlink()
    with pytest.raises(
        ValueError, match=rf"{gone.name} was removed .* start over with .*\(with ranks: --plan --restart\)"
    ):
        work(tmp_path / "out", 0, 2)


def test_ranks_that_have_nothing_to_do_need_not_start(tree, tmp_path):
    out = tmp_path / "out"
    plan_shards([tree], out, PrepareOptions(shards=2), progress=False)
    work(out, 0, 8)
    with pytest.raises(ValueError, match=r"Rank 1 of 8 never started: run `[^`]*`. Then finish again"):
        finish_shards(out)
    work(out, 1, 8)
    assert len(finish_shards(out).shards) == 2


def test_what_is_at_work_is_not_disturbed(tree, tmp_path):
    out = tmp_path / "out"
    options = PrepareOptions(shards=6)
    plan_shards([tree], out, options, progress=False)
    with lock_shards_of_rank(out, 1, 4):
        assert work(out, 0, 4) == 2
        with pytest.raises(ValueError, match=r"rank 1 of 4 \(process \d+ on .*\) is writing into"):
            work(out, 1, 4)
        with pytest.raises(
            ValueError, match=r"Rank 1 of 4 is at work in .*, so rank 0 of 3 cannot start. Give the same"
        ):
            work(out, 0, 3)
        busy = r"Rank 1 of 4 is at work in .* \(process \d+ on .*, started .*\). Wait until all ranks have ended"
        for command in (
            lambda: finish_shards(out),
            lambda: prepare([tree], out, options, progress=False),
            lambda: plan_shards([tree], out, options, progress=False, restart=True),
        ):
            with pytest.raises(ValueError, match=busy):
                command()
    with (
        lock_folder(out / ".progress" / "lock", out, "hamspk prepare"),
        pytest.raises(ValueError, match=r"hamspk prepare \(process \d+ on .*\) is writing into"),
    ):
        work(out, 2, 4)
    # One machine can complete the work of ranks. It removes their lock files.
    assert prepare([tree], out, options, progress=False).utterances == 20
    assert not (out / ".progress").exists()


@pytest.mark.parametrize(("rank", "world_size"), [(4, 4), (-1, 4), (0, 0)])
def test_impossible_ranks_are_refused(tmp_path, rank, world_size):
    with pytest.raises(ValueError, match=f"got rank {rank} of {world_size}"):
        work(tmp_path, rank, world_size)
    with pytest.raises(ValueError, match=f"got rank {rank} of {world_size}"):
        hold_rank(tmp_path / "lock", tmp_path, "test", rank, world_size).__enter__()


def test_a_rank_removes_the_unfinished_files_of_its_own_shards_only(tree, tmp_path):
    out = tmp_path / "out"
    plan_shards([tree], out, PrepareOptions(shards=4, format="webdataset"), progress=False)
    left = [
        *(out / ".progress" / f"shard-{n:05d}-of-00004.tar.1.tmp" for n in (1, 2)),
        *(out / ".progress" / f"at-{n:05d}" for n in (1, 2)),
        *(out / f"shard-{n:05d}-of-00004.index.json.1.tmp" for n in (1, 2)),
    ]
    for path in left:
        path.write_bytes(b"part")
    foreign = out / "shard-1-notes.tmp"
    foreign.write_bytes(b"notes")
    with lock_shards_of_rank(out, 1, 2):
        assert [path.exists() for path in left] == [False, True] * 3
    foreign.unlink()
    for rank in (0, 1):
        work(out, rank, 2)
    # As a rank of another machine would leave it, with the number of a process that exists here.
    (out / f"shard-00002-of-00004.index.json.{os.getpid()}.tmp").write_bytes(b"part")
    finish_shards(out)
    assert not list(out.glob("*.tmp")) and not (out / ".progress").exists()


@pytest.mark.slow
def test_ranks_killed_at_random_and_one_that_never_started(tmp_path):
    root = tiny(tmp_path / "wav", 5000 if FULL else 600)
    options = PrepareOptions(shards=32)
    prepare([root], tmp_path / "one", options, progress=False)
    out = tmp_path / "four"
    plan_shards([root], out, options, progress=False)
    last = out / ".progress"
    run_and_kill(
        functools.partial(work_of_four, out),
        ranks=3,
        kills=10,
        # As if its last shard had never been recorded.
        undo=lambda rank: (last / f"shard-{rank + 28:05d}.json").unlink(missing_ok=True),
        longest=1.0 if FULL else 0.1,
    )
    with pytest.raises(ValueError, match=r"^8 of the 32 shards of \S+ are missing. Rank 3 of 4 never started: run `"):
        finish_shards(out)
    work(out, 3, 4)
    finish_shards(out)
    assert contents(out) == contents(tmp_path / "one")
