"""Shards of others stream with the same guarantees, without being copied."""

import io
import json
import re
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shards import encoded, make_shards, recording

from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.crops import random_crop
from hf_hamspk.data.dataset import SpeakerCrops
from hf_hamspk.shards.indexing import index_shards
from hf_hamspk.shards.reading import ShardReader, open_shards
from hf_hamspk.shards.streaming import ShardUtterances, StreamedBatches

SPEAKERS = ["anna", "bert", "carl"]


def crops_of(source):
    utterances = ShardUtterances(ShardReader(source))
    label_of = {speaker: label for label, speaker in enumerate(utterances.speakers)}
    return SpeakerCrops(utterances, label_of, 1_600, 0)


@pytest.fixture
def foreign(tmp_path):
    """Folders as they lie on the Hub: `datasets` with a class label, tars with `.cls`; contents in the same order."""
    contents = [encoded(recording(number, 2_000)) for number in range(20)]
    label = {"names": SPEAKERS, "_type": "ClassLabel"}
    features = {"wav": {"_type": "Audio"}, "who": label, "text": {"dtype": "string", "_type": "Value"}}
    for part in range(2):
        own = range(10 * part, 10 * part + 10)
        table = pa.table(
            {
                "text": ["hello"] * 10,
                "wav": [{"bytes": contents[i], "path": None} for i in own],
                "who": pa.array([i % 3 for i in own], pa.int64()),
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "parquet" / f"train-{part}.parquet", row_group_size=4)
        (tmp_path / "tar").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "tar" / f"{part:05d}.tar", "w") as tar:
            for i in own:
                for suffix, content in (("flac", contents[i]), ("cls", SPEAKERS[i % 3].encode())):
                    member = tarfile.TarInfo(f"id{i:05d}/utt.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return tmp_path, contents


def index(folder, kind, **arguments):
    columns = {"speaker_column": "who"} if kind == "parquet" else {}
    return index_shards([str(folder / kind)], folder / "index", progress=False, **(columns | arguments))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_an_index_makes_shards_of_what_lies_elsewhere(foreign, kind):
    folder, contents = foreign
    manifest = index(folder, kind)
    assert (manifest.utterances, manifest.speakers, manifest.unreadable) == (20, SPEAKERS, 0)
    assert manifest.speaker_utterances == [7, 7, 6]
    crops = crops_of(folder / "index")
    for sample in range(20):
        item = crops[0, sample]
        draws = np.random.default_rng((0, 0, sample))
        np.testing.assert_array_equal(
            item["input_values"], random_crop(read_utterance(contents[sample]).waveform, 1_600, draws)
        )
        assert item["labels"] == sample % 3
    seen = Counter(crop.numpy().tobytes() for batch in StreamedBatches(crops, 4) for crop in batch["input_values"])
    assert len(seen) == 20 and set(seen.values()) == {1}
    reader = open_shards(folder / "index")
    assert reader is not None and reader.fingerprint() == ShardReader(folder / "index").fingerprint()


def test_our_own_shards_can_be_indexed_too(tmp_path):
    rows = make_shards(tmp_path / "shards", [[3, 2], [4]])
    index_shards([str(tmp_path / "shards" / "*.parquet")], tmp_path / "index", progress=False)
    reader = ShardReader(tmp_path / "index")
    found = [reader.read(group) for group in range(len(reader.group_sizes))]
    assert [name for group in found for name in group.names] == [row["key"] for row in rows]


def test_members_without_a_speaker_are_reported(foreign):
    folder, _ = foreign
    with tarfile.open(folder / "tar" / "00002.tar", "w") as tar:
        for name in ("lonely.flac", "../outside.flac"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"fLaC"))
    (folder / "tar" / "00003.tar").write_bytes(b"x" * 5_000)
    manifest = index(folder, "tar")
    assert (manifest.utterances, manifest.unreadable) == (20, 3)
    report = (folder / "index" / "unreadable.csv").read_text()
    for said in ("contains its speaker", "leads out of the archive", "damaged or cut short"):
        assert said in report
    assert len(list(StreamedBatches(crops_of(folder / "index"), 5))) == 4


def test_what_cannot_be_indexed(foreign):
    folder, _ = foreign
    with pytest.raises(ValueError, match=re.escape("found parquet and tar; narrow the sources down")):
        index_shards([str(folder)], folder / "index", progress=False)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="found none"):
        index_shards([str(folder / "empty")], folder / "index", progress=False)
    with pytest.raises(ValueError, match="has the columns text, wav, who; select the audio column"):
        index(folder, "parquet", speaker_column=None)
    with tarfile.open(folder / "empty" / "0.tar", "w"):
        pass
    with pytest.raises(ValueError, match="no audio with a speaker in 1 files"):
        index_shards([str(folder / "empty")], folder / "index", progress=False)
