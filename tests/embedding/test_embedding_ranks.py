"""Embedding divided among ranks: the bytes of one machine, and missing ranks are named.

`HAMSPK_FULL_SIZE=1` takes 5,000 files in place of 600 in the test that kills ranks.
"""

import copy
import functools
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile as sf
import torch
from many_ranks import run_and_kill, tiny
from small_shards import RATE, recording
from tiny_models import save_model, settle, tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.embedding import AudioFiles, embed_share, extract, finish_embeddings, parts, write_embeddings
from hf_hamspk.embedding.finding import find_source
from hf_hamspk.embedding.parts import lock_parts, lock_parts_of_rank
from hf_hamspk.embedding.sharing import count_finished, describe_embeddings, open_embedding_parts, parts_folder

FULL = os.environ.get("HAMSPK_FULL_SIZE") == "1"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return settle(HamSpkModel(tiny_config()))


@pytest.fixture
def source(tmp_path):
    """Seventeen files in six parts; one is damaged."""
    lengths = np.random.default_rng(0).integers(2_000, 9_000, 17)
    for number, length in enumerate(lengths):
        sf.write(tmp_path / f"{number:02d}.wav", recording(number, int(length)), RATE)
    (tmp_path / "07.wav").write_bytes(b"no audio")
    return AudioFiles([f"{number:02d}.wav" for number in range(17)], RATE, tmp_path)


def share(model, source, output, rank, world_size, **options):
    return embed_share(model, source, output, rank, world_size, progress=False, **options).utterances


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_three_ranks_write_the_bytes_of_one(tmp_path, model, source, precision):
    about = describe_embeddings(model, source, precision, "tiny")
    for rank, utterances in ((2, 5), (0, 6), (1, 6)):
        own = copy.deepcopy(model)  # each rank loads the model
        assert share(own, source, tmp_path / "three.parquet", rank, 3, precision=precision) == utterances
    count, failures = finish_embeddings(model, source, tmp_path / "three.parquet", precision, name="tiny")
    assert count == 16 and list(failures) == ["07.wav"]
    kept = open_embedding_parts(model, source, tmp_path / "one.parquet", precision)
    if precision == "bfloat16":
        torch.nn.Module.to(model, dtype=torch.bfloat16)
    extract(model, source, kept, progress=False)
    write_embeddings(kept, tmp_path / "one.parquet", about)
    assert (tmp_path / "three.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not parts_folder(tmp_path / "three.parquet").exists()


def test_a_missing_rank_is_named_with_its_command(tmp_path, model, source):
    output = tmp_path / "e.parquet"
    with pytest.raises(ValueError, match=r"^6 of the 6 parts in .*e.parts are missing.*No rank has started"):
        finish_embeddings(model, source, output)
    share(model, source, output, 0, 3)
    share(model, source, output, 1, 3)
    (parts_folder(output) / "part-000004.parquet").unlink()
    advice = (
        r"^3 of the 6 parts in \S+ are missing, or their audio files have changed. Rank 1 of 3 stopped after 1 of its "
        r"2 parts: run `hamspk embed ... --rank 1 --world-size 3`. Rank 2 of 3 never started: run `hamspk embed ... "
        r"--rank 2 --world-size 3`. Keep the other arguments. Then finish again.$"
    )
    with pytest.raises(ValueError, match=advice):
        finish_embeddings(model, source, output)
    # A rank that starts again embeds only what is missing.
    assert [share(model, source, output, rank, 3) for rank in range(3)] == [0, 3, 5]
    # A file that is replaced meanwhile is embedded again.
    sf.write(tmp_path / "16.wav", recording(99, 5_000), RATE)
    with pytest.raises(ValueError, match=r"^1 of the 6 parts in .* have changed. Rank 2 of 3 stopped after 1 of its 2"):
        finish_embeddings(model, source, output)
    assert share(model, source, output, 2, 3) == 2
    assert finish_embeddings(model, source, output)[0] == 16


def test_what_is_at_work_is_not_disturbed(tmp_path, model, source):
    output = tmp_path / "e.parquet"
    folder = parts_folder(output)
    with lock_parts_of_rank(folder, 1, 2):
        with pytest.raises(ValueError, match=r"hamspk embed, rank 1 of 2 \(process \d+ on .*\) is writing into"):
            share(model, source, output, 1, 2)
        with pytest.raises(ValueError, match=r"so rank 0 of 3 cannot start. Give the same --world-size to all ranks"):
            share(model, source, output, 0, 3)
        with pytest.raises(ValueError, match=r"Rank 1 of 2 is at work in .*Wait until all ranks have ended"):
            finish_embeddings(model, source, output)
        assert share(model, source, output, 0, 2) == 9
    with lock_parts(folder), pytest.raises(ValueError, match=r"hamspk embed \(process \d+ on .*\) is writing into"):
        share(model, source, output, 1, 2)


def test_ranks_with_other_files_or_precision_are_refused(tmp_path, model, source):
    output = tmp_path / "e.parquet"
    share(model, source, output, 0, 2)
    fewer = AudioFiles(source.names[:9], RATE, tmp_path)
    with pytest.raises(ValueError, match=r"interrupted run with other recordings\. Since it began, files were added"):
        share(model, fewer, output, 1, 2)
    with pytest.raises(ValueError, match=r"interrupted run with different settings \(precision\)"):
        share(model, source, output, 1, 2, precision="bfloat16")


def test_a_rank_removes_its_own_unfinished_parts_only(tmp_path, model, source):
    output = tmp_path / "e.parquet"
    left = [parts_folder(output) / f"part-{number:06d}.parquet.1.tmp" for number in range(2)]
    with lock_parts_of_rank(parts_folder(output), 1, 2):
        for path in left:
            path.write_bytes(b"part")
    with lock_parts_of_rank(parts_folder(output), 1, 2):
        assert [path.exists() for path in left] == [True, False]
    for rank in range(2):
        share(model, source, output, rank, 2)
    # As a rank of another machine would leave it, with the number of a process that exists here.
    (parts_folder(output) / f"part-000003.parquet.{os.getpid()}.tmp").write_bytes(b"part")
    finish_embeddings(model, source, output)
    assert not parts_folder(output).exists()


def embed_tiny(model_folder: str, files: Path, output: Path, rank: int, world_size: int = 4) -> None:
    """What a rank does, in a process of its own; parts of eight files."""
    torch.set_num_threads(1)
    parts.PART_UTTERANCES = 8
    model = HamSpkModel.from_pretrained(model_folder).eval()
    embed_share(model, find_source([str(files)]).open(RATE), output, rank, world_size, progress=False)


@pytest.mark.slow
def test_ranks_killed_at_random_and_one_that_never_started(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_UTTERANCES", 8)
    root = tiny(tmp_path / "wav", 5000 if FULL else 600)
    folder = str(save_model(tmp_path / "model"))
    output = tmp_path / "four.parquet"
    kept = parts_folder(output)
    run_and_kill(
        functools.partial(embed_tiny, folder, root, output),
        ranks=3,
        kills=10,
        undo=lambda rank: (kept / f"part-{rank:06d}.parquet").unlink(missing_ok=True),
        longest=1.0 if FULL else 0.3,
    )
    model = HamSpkModel.from_pretrained(folder).eval()
    source = find_source([str(root)]).open(RATE)
    with pytest.raises(ValueError, match=r"Rank 3 of 4 never started: run `hamspk embed ... --rank 3 --world-size 4`"):
        finish_embeddings(model, source, output)
    embed_tiny(folder, root, output, 3)
    count, failures = finish_embeddings(model, source, output)
    assert (count, len(failures)) == ((4948, 52) if FULL else (594, 6))
    embed_tiny(folder, root, tmp_path / "one.parquet", 0, 1)
    finish_embeddings(model, source, tmp_path / "one.parquet")
    assert output.read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.slow
def test_parts_and_output_at_a_url(tmp_path, model, source):
    """The bytes of a local folder; as there, missing ranks are named and other settings are refused."""
    url = "memory://bucket/deep/voices.parquet"
    memory = fsspec.filesystem("memory")
    share(model, source, url, 1, 3)
    with pytest.raises(
        ValueError, match=r"in memory://bucket/deep/voices.parts are missing.*Rank 0 of 3 never started"
    ):
        finish_embeddings(model, source, url)
    with pytest.raises(ValueError, match=r"voices.parts contains embeddings of an .* with other recordings"):
        share(model, AudioFiles(source.names[:9], RATE, tmp_path), url, 0, 3)
    assert [share(model, source, url, rank, 3) for rank in range(3)] == [6, 0, 5]
    assert finish_embeddings(model, source, url)[0] == 16
    share(model, source, tmp_path / "here.parquet", 0, 1)
    finish_embeddings(model, source, tmp_path / "here.parquet")
    assert memory.cat_file("/bucket/deep/voices.parquet") == (tmp_path / "here.parquet").read_bytes()
    assert memory.find("/bucket/deep") == ["/bucket/deep/voices.parquet"]
    assert share(model, source, url, 0, 1) == 0 and finish_embeddings(model, source, url) == (16, {})
    fewer = AudioFiles(source.names[:9], RATE, tmp_path)
    with pytest.raises(
        ValueError, match=r"^memory://bucket/deep/voices.parquet already exists, and files at a URL are"
    ):
        share(model, fewer, url, 0, 1)
    assert memory.find("/bucket/deep") == ["/bucket/deep/voices.parquet"]


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors", ".npz"])
def test_what_is_complete_is_not_embedded_again(tmp_path, model, source, suffix):
    output = tmp_path / f"e{suffix}"
    assert count_finished(model, source, output) is None
    share(model, source, output, 0, 1)
    assert count_finished(model, source, output) is None
    finish_embeddings(model, source, output, name="tiny")
    assert count_finished(model, source, output) == 16
    content = output.read_bytes()
    assert share(model, source, output, 2, 3) == 0 and not parts_folder(output).exists()
    assert finish_embeddings(model, source, output) == (16, {})
    assert output.read_bytes() == content
    # Other settings, recordings and weights begin a new run.
    assert count_finished(model, source, output, "bfloat16") is None
    assert count_finished(model, AudioFiles(source.names[:9], RATE, tmp_path), output) is None
    with torch.no_grad():
        model.projection.weight.add_(0.1)
    assert count_finished(model, source, output) is None
    output.write_bytes(content[:40])
    assert count_finished(model, source, output) is None
