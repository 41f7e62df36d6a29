"""Columns of speakers: all readers of data sets know the same names, and read them alike."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, ClassLabel, Dataset
from small_shards import encoded, recording

from hf_hamspk.data.columns import find_columns
from hf_hamspk.files.corpora import SPEAKER_COLUMNS
from hf_hamspk.shards.archives import read_speaker
from hf_hamspk.shards.indexing import index_shards
from hf_hamspk.shards.streams import DataSetStream

CELLS = [{"bytes": encoded(recording(number, 4_000)), "path": None} for number in range(4)]


@pytest.mark.parametrize("name", SPEAKER_COLUMNS)
def test_every_reader_knows_the_usual_names(name, tmp_path):
    table = pa.table({"audio": CELLS, name: ["a", "b", "a", "b"]})
    pq.write_table(table, tmp_path / "data.parquet")
    items = [item for item, _ in DataSetStream(str(tmp_path / "data.parquet"), "train").read(None)]
    assert [item.speaker for item in items] == ["a", "b", "a", "b"]
    assert [item.content for item in items] == [cell["bytes"] for cell in CELLS]
    index = index_shards([str(tmp_path / "data.parquet")], tmp_path / "index")
    assert index.columns == {"audio": "audio", "speaker": name} and sorted(index.speakers) == ["a", "b"]
    assert read_speaker(json.dumps({"other": 1, name: "a"}).encode(), ".json") == "a"
    assert find_columns(["audio", name], None, None, None).speaker == name


def test_of_several_columns_every_reader_takes_the_same(tmp_path):
    values = {name: [f"{name} {row}" for row in range(4)] for name in reversed(SPEAKER_COLUMNS)}
    pq.write_table(pa.table({"audio": CELLS, **values}), tmp_path / "data.parquet")
    first = SPEAKER_COLUMNS[0]
    item, _ = next(DataSetStream(str(tmp_path / "data.parquet"), "train").read(None))
    assert item.speaker == f"{first} 0"
    assert index_shards([str(tmp_path / "data.parquet")], tmp_path / "index").columns["speaker"] == first
    assert read_speaker(json.dumps({name: name for name in values}).encode(), ".json") == first
    assert find_columns(["audio", *values], None, None, None).speaker == first


def test_speakers_of_streams_are_named_and_cleaned(tmp_path):
    data = Dataset.from_dict({"audio": CELLS, "speaker": [1, 0, None, 1]})
    data = data.cast_column("audio", Audio(sampling_rate=16_000)).cast_column("speaker", ClassLabel(names=["a", " b "]))
    data.save_to_disk(tmp_path / "saved")
    items = [item for item, _ in DataSetStream(str(tmp_path / "saved"), "train").read(None)]
    assert [item.speaker for item in items] == ["b", "a", None, "b"]
    assert items[2].reason == "row 2 has no speaker"
    np.testing.assert_equal([len(item.content) for item in items[:2]], [len(cell["bytes"]) for cell in CELLS[:2]])
    Dataset.from_dict({"audio": CELLS, "speaker": [1.5, 2.0, 3.0, 1.0]}).save_to_disk(tmp_path / "numbers")
    items = [item for item, _ in DataSetStream(str(tmp_path / "numbers"), "train").read(None)]
    assert items[0].reason == "Row 0: expected a speaker in the column 'speaker', got 1.5."


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b'{"speaker": ', b"\xff", b"[1]", b"3", b"{}"])
def test_a_damaged_description_names_no_speaker(content):
    assert read_speaker(content, ".json") is None
