"""Shards on the Hub, through fsspec's `hf://`: those that we prepared, and those of others, read where they lie."""

import io
import tarfile
from collections import Counter

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import HfApi
from small_shards import encoded, make_shards, recording

from hf_hamspk.data.dataset import SpeakerCrops
from hf_hamspk.shards import index_shards
from hf_hamspk.shards.reading import ShardReader, open_shards
from hf_hamspk.shards.streaming import ShardUtterances, StreamedBatches


@pytest.fixture
def push(monkeypatch):
    """A function: put a folder into a data set of a Hub on this machine; the options that lead `hf://` there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HubServer() as hub:

        def upload(folder) -> dict:
            api = HfApi(endpoint=hub.url, token=hub.token)
            api.create_repo("tester/voices", repo_type="dataset", exist_ok=True)
            api.upload_folder(folder_path=folder, repo_id="tester/voices", repo_type="dataset")
            return {"endpoint": hub.url, "token": hub.token, "skip_instance_cache": True}

        yield upload


def batches(source, options=None):
    utterances = ShardUtterances(ShardReader(source, storage_options=options))
    label_of = {speaker: label for label, speaker in enumerate(utterances.speakers)}
    return list(StreamedBatches(SpeakerCrops(utterances, label_of, 1_600, 0), 4))


@pytest.mark.parametrize("container", ["parquet", "webdataset"])
def test_prepared_shards_stream_from_the_hub(tmp_path, push, container):
    make_shards(tmp_path / "shards", [[5, 4], [6], [5]], container)
    options = push(tmp_path / "shards")
    found = batches("hf://datasets/tester/voices", options)
    for one, two in zip(found, batches(tmp_path / "shards"), strict=True):
        assert torch.equal(one["input_values"], two["input_values"]) and torch.equal(one["labels"], two["labels"])


def test_tars_of_others_are_read_at_the_commit_that_was_indexed(tmp_path, push):
    (tmp_path / "tars").mkdir()
    for part in range(2):
        with tarfile.open(tmp_path / "tars" / f"{part:05d}.tar", "w") as tar:
            for number in range(6 * part, 6 * part + 6):
                members = {"flac": encoded(recording(number, 2_000)), "cls": str(number % 3).encode()}
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    options = push(tmp_path / "tars")
    source = "hf://datasets/tester/voices"
    with pytest.raises(ValueError, match="hamspk prepare --index hf://datasets/tester/voices"):
        open_shards(source, options)
    manifest = index_shards([source], tmp_path / "index", storage_options=options, licence="CC0", progress=False)
    assert (manifest.utterances, manifest.speakers, manifest.licence) == (12, ["0", "1", "2"], "CC0")
    # The repository goes on; the index stays with the commit.
    (tmp_path / "tars" / "00000.tar").write_bytes(bytes(10_240))
    push(tmp_path / "tars")
    crops = Counter(
        crop.numpy().tobytes() for batch in batches(tmp_path / "index", options) for crop in batch["input_values"]
    )
    assert len(crops) == 12 and set(crops.values()) == {1}
