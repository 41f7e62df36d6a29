"""Streamed crops are those of the files, in any number of ranks and processes, from any place on; a broken shard costs
only itself."""

import copy
from collections import Counter

import numpy as np
import pytest
import soundfile as sf
import torch
from small_shards import RATE, make_shards
from torch.utils.data import DataLoader

from hf_hamspk.audio_hamspk import InputError
from hf_hamspk.data.augmentation import Augmentation
from hf_hamspk.data.corpus import load_corpus
from hf_hamspk.data.dataset import CorpusUtterances, SpeakerCrops, collate
from hf_hamspk.data.sampling import GlobalBatchSampler
from hf_hamspk.shards import reading
from hf_hamspk.shards.fetching import Retry
from hf_hamspk.shards.prefetching import GroupStore
from hf_hamspk.shards.reading import ShardReader
from hf_hamspk.shards.streaming import ShardUtterances, StreamedBatches, StreamedCrops

CROP = 1_600
GROUPS = [[5, 4], [6], [3, 5, 2], [7], []]
FAST = Retry(attempts=2, first_pause=0.001, longest_pause=0.002)


@pytest.fixture
def shards(tmp_path):
    rows = make_shards(tmp_path / "shards", GROUPS)
    return tmp_path / "shards", rows


def crops_of(source, seed=1, speed_factors=(1.0,), augmentation=None, crop=CROP):
    utterances = ShardUtterances(ShardReader(source, FAST))
    label_of = {speaker: label for label, speaker in enumerate(utterances.speakers)}
    return SpeakerCrops(utterances, label_of, crop, seed, speed_factors, augmentation)


class CorpusInGroups(CorpusUtterances):
    """Files that draw babble as the shards do."""

    def __init__(self, corpus, groups):
        super().__init__(corpus)
        self.groups = groups

    def others(self, utterance):
        return self.groups.others(utterance)


def corpus_of(rows, folder, crops):
    """The same utterances as files in the same order, and the data set over them."""
    lines = ["path,speaker_id"]
    for row in rows:
        (folder / f"{row['key']}.flac").write_bytes(row["content"])
        lines.append(f"{row['key']}.flac,{row['speaker']}")
    (folder / "corpus.csv").write_text("\n".join(lines) + "\n")
    other = copy.copy(crops)
    other.utterances = CorpusInGroups(load_corpus(folder / "corpus.csv"), crops.utterances)
    return other


def same(first, second):
    assert len(first) == len(second) and len(first) > 0
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys() == {"input_values", "labels"}
        assert torch.equal(one["input_values"], two["input_values"]) and torch.equal(one["labels"], two["labels"])


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [None, Augmentation(probability=0.7, most=2)], ids=["clean", "augmented"])
@pytest.mark.parametrize("container", ["parquet", "webdataset"])
def test_shards_give_the_crops_of_the_files_in_the_same_order(tmp_path, container, augmentation, monkeypatch):
    monkeypatch.setattr(reading, "TAR_GROUP_BYTES", 20_000)
    rows = make_shards(tmp_path / "shards", GROUPS, container)
    crops = crops_of(tmp_path / "shards", 1, (1.0, 0.9), augmentation)
    files = corpus_of(rows, tmp_path, crops)
    streamed = StreamedBatches(crops, 6, accumulation_steps=2)
    for epoch in range(2):
        order = StreamedCrops(crops, 6, epoch).order
        indices = np.concatenate([order.samples(batch) for batch in range(order.batches)])
        sampler = GlobalBatchSampler(len(files), 6, 0, 1, 2, seed=1, epoch=epoch, order=indices)
        same(list(streamed), list(DataLoader(files, batch_sampler=sampler, collate_fn=collate)))
    assert crops.failures == files.failures == {}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4))])
def test_loader_processes_change_nothing(shards, workers):
    crops = crops_of(shards[0], speed_factors=(1.0, 1.1), augmentation=Augmentation(0.5, ("gain", "babble")))
    alone = StreamedBatches(crops, 6, rank=1, world_size=2)
    many = StreamedBatches(crops, 6, rank=1, world_size=2, num_workers=workers)
    for _ in range(2 if workers == 2 else 1):
        same(list(many), list(alone))
    assert all(batch["input_values"].shape == (3, CROP) for batch in many)


@pytest.mark.parametrize("stop", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 5, 6, 7))])
def test_interrupted_and_resumed_by_other_ranks_and_workers(shards, stop):
    """Every sample of the epoch once, less the remainder; a sample is known by its crop."""
    whole = list(StreamedBatches(crops_of(shards[0]), 4))
    assert len(whole) == 8 and StreamedBatches(crops_of(shards[0]), 4).remainder == 0
    before = [StreamedBatches(crops_of(shards[0]), 4, rank, 2, num_workers=stop % 2) for rank in range(2)]
    iterators = [iter(batches) for batches in before]
    seen = [torch.cat([next(iterator)["input_values"] for iterator in iterators]) for _ in range(stop)]
    for iterator in iterators:
        iterator.close()
    assert {(batches.epoch, batches.batch) for batches in before} == {(0, stop)}
    after = [StreamedBatches(crops_of(shards[0]), 4, rank, 4, num_workers=rank % 2) for rank in range(4)]
    for batches in after:
        batches.epoch, batches.batch = 0, stop
    ranks = [list(batches) for batches in after]
    assert {len(rank) for rank in ranks} == {8 - stop}
    seen += [torch.cat([batch["input_values"] for batch in step]) for step in zip(*ranks, strict=True)]
    for one, two in zip(seen, whole, strict=True):
        assert torch.equal(one, two["input_values"])
    counts = Counter(crop.numpy().tobytes() for crop in torch.cat(seen))
    assert len(counts) == 32 and set(counts.values()) == {1}
    assert {batches.epoch for batches in after} == {1}


def test_a_stop_between_accumulation_steps_repeats_the_global_batch(shards):
    batches = StreamedBatches(crops_of(shards[0]), 6, accumulation_steps=3)
    iterator = iter(batches)
    places = [(next(iterator), batches.batch)[1] for _ in range(7)]
    assert places == [0, 0, 1, 1, 1, 2, 2]


def test_epochs_differ_and_are_those_of_their_number(shards):
    batches = StreamedBatches(crops_of(shards[0]), 4)
    first, second = list(batches), list(batches)
    assert batches.epoch == 2
    assert not torch.equal(first[0]["input_values"], second[0]["input_values"])
    batches.epoch = 0
    same(list(batches), first)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_shard_is_replaced_and_reported(shards, workers):
    """Steps stay equal on all ranks, and what can be read is read as ever."""
    folder, _ = shards
    whole = StreamedBatches(crops_of(folder), 8)
    good = [batch["labels"] for batch in whole]
    (folder / "shard-00002-of-00005.parquet").unlink()
    crops = crops_of(folder)
    ranks = [StreamedBatches(crops, 8, rank, 2, num_workers=workers) for rank in range(2)]
    loaded = [list(rank) for rank in ranks]
    assert [len(rank) for rank in loaded] == [4, 4]
    # Samples 15 to 24 are of the shard; the others are what they were.
    order = StreamedCrops(crops, 8).order
    for batch in range(4):
        labels = torch.cat([rank[batch]["labels"] for rank in loaded])
        samples = order.samples(batch)
        kept = torch.from_numpy((samples < 15) | (samples >= 25))
        assert torch.equal(labels[kept], good[batch][kept])
    assert set(crops.failures) == {f"shard-00002-of-00005.parquet, group {group}" for group in range(3)}
    assert all("cannot be read (FileNotFoundError" in reason for reason in crops.failures.values())


def test_a_broken_utterance_is_replaced_by_the_next_of_its_group(tmp_path):
    rows = make_shards(tmp_path, [[3, 3]], replace={2: b"broken", 4: b"broken"})
    crops = crops_of(tmp_path, crop=5_000)
    items = [crops[0, sample] for sample in range(6)]
    assert [item["labels"] for item in items] == [int(rows[i]["speaker"][1]) for i in (0, 1, 0, 3, 5, 5)]
    assert set(crops.failures) == {
        "utt0002 (shard-00000-of-00001.parquet, group 0)",
        "utt0004 (shard-00000-of-00001.parquet, group 1)",
    }


def test_nothing_can_be_read(tmp_path):
    make_shards(tmp_path, [[2, 2]], replace=dict.fromkeys(range(4), b"broken"))
    with pytest.raises(InputError, match="none of the 4 files of the corpus can be read"):
        list(StreamedBatches(crops_of(tmp_path), 2))


def test_only_what_coming_batches_need_is_in_memory(tmp_path, monkeypatch):
    make_shards(tmp_path, [[4] * 30] * 2, samples=(1_600, 1_700))
    crops = crops_of(tmp_path)
    stream = StreamedCrops(crops, 4, read_ahead_bytes=30_000)
    held = []
    get = GroupStore.get
    monkeypatch.setattr(GroupStore, "get", lambda store, group: held.append(len(store._fetched)) or get(store, group))
    assert len(list(stream)) == 60
    size = int(stream.reader.group_bytes.max())
    # Four lanes of one utterance a batch, a window of four groups each; where a window ends, two meet.
    assert max(held) <= 4 * (stream.window + 1) + 30_000 // size + 1


@pytest.mark.slow
def test_each_group_is_fetched_once_but_where_lanes_meet(tmp_path, monkeypatch):
    make_shards(tmp_path, [[4] * 30] * 2, samples=(1_600, 1_700))
    read, fetched = ShardReader.read, []
    monkeypatch.setattr(ShardReader, "read", lambda reader, group: fetched.append(group) or read(reader, group))
    list(StreamedCrops(crops_of(tmp_path, speed_factors=(1.0, 0.9, 1.1)), 4))
    assert set(fetched) == set(range(60)) and len(fetched) <= 60 + 4


def test_arguments_that_are_refused(shards, tmp_path):
    crops = crops_of(shards[0])
    with pytest.raises(
        ValueError, match="first_batch must be from 0 to 8, the number of global batches in an epoch, got 9"
    ):
        StreamedCrops(crops, 4, first_batch=9)
    with pytest.raises(ValueError, match="does not divide into 3 ranks"):
        StreamedBatches(crops, 4, world_size=3)
    with pytest.raises(ValueError, match="32 samples do not fill one global batch of 33"):
        StreamedBatches(crops, 33)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for speaker in "ab":
        sf.write(tmp_path / speaker / "0.flac", np.random.default_rng(0).normal(0, 0.1, 4_000), RATE)
    with pytest.raises(ValueError, match="crops must be drawn from shards"):
        StreamedCrops(SpeakerCrops(load_corpus(tmp_path), {"a": 0, "b": 1}, CROP, 0), 2)
