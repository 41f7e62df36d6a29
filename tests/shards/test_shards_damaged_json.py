"""Damaged JSON of preparing and embedding: made again where nothing is lost by it, one sentence elsewhere."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shards import encoded, make_shards, recording

from hf_hamspk.embedding import EmbeddingParts
from hf_hamspk.shards.indexing import index_shards
from hf_hamspk.shards.listing import Listing
from hf_hamspk.shards.making import crashed_path, load_record, read_crashed, record_path
from hf_hamspk.shards.planning import PLAN_NAME, PrepareOptions, load_plan, make_plan, save_plan, survey
from hf_hamspk.shards.reading import open_shards
from hf_hamspk.shards.sources import find_utterances
from hf_hamspk.shards.streams import DataSetStream, copy_streams
from hf_hamspk.shards.verifying import verify_shards

DAMAGED = [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000, b"[]", b"[[]]", b"3", b"null", b'"text"', b"{}"]


@pytest.fixture(params=range(len(DAMAGED)), ids=lambda number: str(DAMAGED[number][:6]))
def damaged(request) -> bytes:
    return DAMAGED[request.param]


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def test_a_plan(damaged, tmp_path):
    for speaker in "ab":
        (tmp_path / "people" / speaker).mkdir(parents=True)
        (tmp_path / "people" / speaker / "1.flac").write_bytes(encoded(recording(1, 4_000)))
    options = PrepareOptions()
    found = survey(find_utterances([str(tmp_path / "people")], options)[0], options)
    (tmp_path / "progress").mkdir()
    save_plan(make_plan(found, options, "people", "0"), tmp_path / "progress")
    assert load_plan(tmp_path / "progress").options == options
    (tmp_path / "progress" / PLAN_NAME).write_bytes(damaged)
    with pytest.raises(ValueError, match=r"plan\.json is damaged .*run the command again with --restart") as error:
        load_plan(tmp_path / "progress")
    one_sentence(error)


def test_a_record_and_the_list_of_crashes_are_made_again(damaged, tmp_path):
    record_path(tmp_path, 3).write_bytes(damaged)
    assert load_record(tmp_path, 3) is None
    crashed_path(tmp_path, 0).write_bytes(damaged if damaged != b'"text"' else b"3")
    assert read_crashed(tmp_path, 0) == set()


def test_the_notes_of_a_copied_data_set(damaged, tmp_path):
    table = pa.table({"audio": [{"bytes": encoded(recording(1, 4_000)), "path": None}] * 2, "speaker": ["a", "b"]})
    pq.write_table(table, tmp_path / "data.parquet")
    streams = [DataSetStream(str(tmp_path / "data.parquet"), "train")]
    (tmp_path / "progress").mkdir()

    def copy() -> None:
        copy_streams(streams, Listing(), tmp_path / "progress", "0", False)

    copy()
    copy()
    for name in ("spool-0000-00000.json", "spool.json"):
        note = tmp_path / "progress" / name
        before = note.read_bytes()
        note.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name} is damaged .*run the command again with --restart") as error:
            copy()
        one_sentence(error)
        note.write_bytes(before)


def test_the_index_and_the_members_of_a_tar(damaged, tmp_path):
    make_shards(tmp_path, [[3, 2]], "webdataset", samples=(1_700, 4_000))
    (index,) = (path for path in tmp_path.iterdir() if path.suffix == ".json" and path.name != "manifest.json")
    index.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged|differs from the manifest") as error:
        open_shards(tmp_path).read(0)
    one_sentence(error)
    problems = verify_shards(tmp_path, 0)
    assert problems and all("\n" not in problem for problem in problems)


def test_the_description_of_the_columns(damaged, tmp_path):
    table = pa.table({"audio": [{"bytes": b"", "path": None}] * 2, "speaker": [0, 1]})
    described = json.dumps({"info": {"features": {"speaker": {"names": ["a", "b"]}}}}).encode()
    for metadata in (described, damaged):
        pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "data.parquet")
        if metadata == described:
            assert index_shards([str(tmp_path / "data.parquet")], tmp_path / "index").speakers == ["a", "b"]
    with pytest.raises(ValueError, match=r"description of the columns .* is damaged") as error:
        index_shards([str(tmp_path / "data.parquet")], tmp_path / "other")
    one_sentence(error)


def test_the_settings_of_embeddings(damaged, tmp_path):
    EmbeddingParts(tmp_path / "e.parts", [1, 1], 3, {"weights": "a"})
    (tmp_path / "e.parts" / "run.json").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"[Mm]ove the folder away") as error:
        EmbeddingParts(tmp_path / "e.parts", [1, 1], 3, {"weights": "a"})
    one_sentence(error)
