"""The training set as a function of (seed, epoch, sample), and the laws of the batch sampler."""

import logging
import re
from collections import Counter
from itertools import product

import numpy as np
import pytest
import soundfile as sf
import torch
from torch.utils.data import DataLoader

from hf_hamspk.audio_hamspk import InputError
from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.augmentation import Augmentation
from hf_hamspk.data.corpus import load_corpus, speaker_labels
from hf_hamspk.data.dataset import SpeakerCrops, collate
from hf_hamspk.data.sampling import GlobalBatchSampler

CROP = 4_000


@pytest.fixture
def corpus(tmp_path):
    generator = np.random.default_rng(0)
    for speaker in ("a", "b", "c"):
        (tmp_path / speaker).mkdir()
        for utterance in range(4):
            samples = int(generator.integers(3_000, 9_000))
            sf.write(tmp_path / speaker / f"{utterance}.flac", generator.normal(0, 0.1, samples), 16_000)
    return load_corpus(tmp_path)


def labels_of(corpus):
    return {speaker: index for index, speaker in enumerate(speaker_labels(corpus))}


def crops(corpus, **arguments):
    return SpeakerCrops(corpus, labels_of(corpus), **({"crop_samples": CROP, "seed": 1} | arguments))


@pytest.mark.parametrize("augmentation", [None, Augmentation(probability=1.0)])
def test_items_are_a_function_of_seed_epoch_and_sample(corpus, augmentation):
    first, again = (crops(corpus, augmentation=augmentation, speed_factors=(1.0, 0.9)) for _ in range(2))
    for index in product((0, 3), reversed(range(24))):
        again[index]
    for index in product((0, 3), range(24)):
        one, two = first[index], again[index]
        assert one["input_values"].shape == (CROP,) and one["input_values"].dtype == np.float32
        assert isinstance(one["labels"], int)
        np.testing.assert_array_equal(one["input_values"], two["input_values"])
        assert one["labels"] == two["labels"]


def test_epoch_seed_and_sample_change_the_crop(corpus):
    long = max(range(len(corpus)), key=lambda index: len(read_utterance(corpus[index]["path"]).waveform))
    base = crops(corpus)[0, long]["input_values"]
    assert not np.array_equal(base, crops(corpus)[1, long]["input_values"])
    assert not np.array_equal(base, crops(corpus, seed=2)[0, long]["input_values"])


def test_a_clean_crop_is_a_run_of_its_file(corpus):
    dataset = crops(corpus)
    for sample in range(len(dataset)):
        item = dataset[0, sample]
        waveform = np.resize(read_utterance(corpus[sample]["path"]).waveform, 9_000)
        starts = np.flatnonzero(waveform == item["input_values"][0])
        assert any(np.array_equal(np.resize(waveform[s : s + CROP], CROP), item["input_values"]) for s in starts)
        assert item["labels"] == "abc".index(corpus[sample]["speaker"])


def test_speeds_make_speakers_of_their_own(corpus, tmp_path):
    dataset = crops(corpus, speed_factors=(1.0, 0.9, 1.1))
    assert (len(dataset), len(set(dataset.labels()))) == (36, 9)
    assert [dataset[0, sample]["labels"] for sample in range(36)] == [
        factor * 3 + speaker for factor, speaker in product(range(3), [0] * 4 + [1] * 4 + [2] * 4)
    ]
    for path in corpus["path"]:
        sf.write(path, 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000), 16_000)
    for factor_index, factor in enumerate((1.0, 0.9, 1.1)):
        spectrum = np.abs(np.fft.rfft(dataset[0, 12 * factor_index]["input_values"]))
        assert np.argmax(spectrum) * 16_000 / CROP == pytest.approx(1_000 * factor, abs=5)


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.13, 1.99])
@pytest.mark.parametrize("samples", [1, 999, CROP])
def test_every_speed_gives_the_exact_length(corpus, factor, samples):
    dataset = crops(corpus, crop_samples=samples, speed_factors=(1.0, factor))
    assert dataset[0, 12]["input_values"].shape == (samples,)


def test_cache_changes_nothing_for_16_bit_files_and_keeps_its_budget(corpus):
    plain, all_kept, half_kept = crops(corpus), crops(corpus, cache_bytes=10**6), crops(corpus, cache_bytes=40_000)
    for epoch, sample in product(range(2), range(12)):
        for dataset in (all_kept, half_kept):
            np.testing.assert_array_equal(plain[epoch, sample]["input_values"], dataset[epoch, sample]["input_values"])
    caches = [dataset.utterances._cache for dataset in (plain, all_kept, half_kept)]
    sizes = [sum(kept.nbytes for kept in cache.values()) for cache in caches]
    assert sizes[0] == 0 and len(caches[1]) == 12
    assert 0 < sizes[2] <= 40_000
    # What is kept is not read again.
    for path in corpus["path"]:
        sf.write(path, np.zeros(100), 16_000)
    all_kept[2, 5]
    assert all_kept.failures == {}


def test_babble_is_of_other_speakers(corpus, monkeypatch):
    drawn = []

    def watch(waveform, generator, sample_other=None):
        drawn.extend(sample_other(generator) for _ in range(5))
        return waveform

    for path, speaker in zip(corpus["path"], corpus["speaker"], strict=True):
        sf.write(path, 0.1 * ("abc".index(speaker) + 1) * np.resize([1.0, -1.0], 5_000), 16_000)
    dataset = crops(corpus, augmentation=watch)
    for sample in range(4):
        dataset[0, sample]
    assert len(drawn) == 20
    assert {round(10 * float(np.abs(voice).max())) for voice in drawn} == {2, 3}


def test_unreadable_files_are_replaced_counted_and_logged_once(corpus, caplog):
    for index in (3, 4, 11):
        with open(corpus[index]["path"], "wb") as file:
            file.write(b"broken")
    dataset = crops(corpus)
    with caplog.at_level(logging.WARNING):
        items = [dataset[epoch, sample] for epoch in range(2) for sample in range(12)]
    # The label is that of the file that was read: 3 and 4 become 5 (speaker b), 11 becomes 0 (speaker a).
    assert items[3]["labels"] == items[4]["labels"] == 1
    assert items[11]["labels"] == 0
    assert set(dataset.failures) == {corpus[index]["path"] for index in (3, 4, 11)}
    assert all("cannot be decoded" in reason for reason in dataset.failures.values())
    assert len(caplog.records) == 3
    np.testing.assert_array_equal(items[3]["input_values"], crops(corpus)[0, 3]["input_values"])


def test_failures_of_worker_processes_are_known_here(corpus):
    with open(corpus[7]["path"], "wb") as file:
        file.write(b"broken")
    dataset = crops(corpus)
    sampler = GlobalBatchSampler(12, 4, 0, 1, 1, seed=0, epoch=0)
    loaded = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=2))
    assert dataset.failures == {
        corpus[7]["path"]: "could not be read in a loader process, whose log contains the reason"
    }
    for batch, indices in zip(loaded, sampler, strict=True):
        expected = collate([dataset[index] for index in indices])
        assert torch.equal(batch["input_values"], expected["input_values"])
        assert torch.equal(batch["labels"], expected["labels"])
    assert "cannot be decoded" in dataset.failures[corpus[7]["path"]]


def test_a_broken_noise_file_leaves_the_crop_clean(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    (folder / "n.wav").write_bytes(b"broken")
    dataset = crops(corpus, augmentation=Augmentation(1.0, ("noise",), noise_dir=str(folder)))
    np.testing.assert_array_equal(dataset[0, 0]["input_values"], crops(corpus)[0, 0]["input_values"])
    assert list(dataset.failures) == [str(folder / "n.wav")]


def test_nothing_to_read_and_indices_out_of_range(corpus):
    with pytest.raises(IndexError, match=re.escape("The sample must be from 0 to 11, got 12.")):
        crops(corpus)[0, 12]
    for path in corpus["path"]:
        sf.write(path, np.zeros(0), 16_000)
    with pytest.raises(InputError, match=re.escape("none of the 12 files of the corpus can be read")):
        crops(corpus)[0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_samples": 0}, "crop_samples must be at least 1, seed and cache_bytes at least 0, got 0, 1 and 0"),
        ({"seed": -1}, "got 4000, -1 and 0"),
        ({"speed_factors": (0.9, 1.0)}, "speed_factors must be different and begin with 1.0, got (0.9, 1.0)"),
        ({"speed_factors": (1.0, 0.9, 0.9)}, "speed_factors must be different"),
        ({"speed_factors": ()}, "speed_factors must be different"),
        ({"speed_factors": (1.0, 0.905)}, "speed_factors must be multiples of 0.01, got (1.0, 0.905)"),
        ({"speed_factors": (1.0, 3.0)}, "speed_factors must be between 0.5 and 2.0, got (1.0, 3.0)"),
    ],
)
def test_arguments_that_are_refused(corpus, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        crops(corpus, **arguments)


def test_labels_that_are_refused(corpus):
    with pytest.raises(
        ValueError, match=re.escape("label_of must map its 3 speakers to the indices 0 to 2, each used once")
    ):
        SpeakerCrops(corpus, {"a": 0, "b": 1, "c": 3}, CROP, 0)
    with pytest.raises(
        ValueError, match=re.escape("every speaker of the corpus. 1 speakers are missing, for example 'c'")
    ):
        SpeakerCrops(corpus, {"a": 0, "b": 1}, CROP, 0)
    with pytest.raises(ValueError, match=re.escape("a corpus with at least 1 utterance, got none")):
        SpeakerCrops(corpus.select([]), {"a": 0}, CROP, 0)


def test_collate():
    items = [{"input_values": np.full(5, label, np.float32), "labels": label} for label in (3, 1)]
    batch = collate(items)
    assert batch["input_values"].dtype == torch.float32 and batch["input_values"].tolist() == [[3.0] * 5, [1.0] * 5]
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [3, 1]


def dealt(samples, size, world_size, accumulation, start_batch=0, seed=0, epoch=0):
    """Per rank, its micro-batches."""
    return [
        list(GlobalBatchSampler(samples, size, rank, world_size, accumulation, seed, epoch, start_batch))
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_ranks_and_micro_batches_partition_the_global_batches(world_size, accumulation):
    for micro, extra, start in product((1, 3), (0, 1, 5), (0, 1, 4)):
        size = micro * world_size * accumulation
        samples = 4 * size + min(extra, size - 1)
        ranks = dealt(samples, size, world_size, accumulation, start, seed=7, epoch=2)
        order = np.random.default_rng((7, 2)).permutation(samples)[: 4 * size]
        sampler = GlobalBatchSampler(samples, size, 0, world_size, accumulation, 7, 2, start)
        assert (
            [len(batches) for batches in ranks]
            == [len(sampler)] * world_size
            == [(4 - start) * accumulation] * world_size
        )
        assert all(len(batch) == micro for batches in ranks for batch in batches)
        assert all(epoch == 2 for batches in ranks for batch in batches for epoch, _ in batch)
        # Micro-batch by micro-batch and rank by rank: the order of the permutation itself.
        flat = [sample for step in range(len(sampler)) for batches in ranks for _, sample in batches[step]]
        assert flat == order[start * size :].tolist()


def test_global_batches_do_not_depend_on_ranks_or_accumulation():
    size, samples = 24, 100
    reference = None
    for world_size, accumulation in product(range(1, 9), range(1, 5)):
        if size % (world_size * accumulation):
            continue
        ranks = dealt(samples, size, world_size, accumulation)
        batches = [
            Counter(
                index
                for rank in ranks
                for step in range(batch * accumulation, (batch + 1) * accumulation)
                for index in rank[step]
            )
            for batch in range(samples // size)
        ]
        reference = batches if reference is None else reference
        assert batches == reference


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(sample for batch in dealt(50, 5, 1, 1, seed=seed, epoch=epoch)[0] for _, sample in batch)
        for seed, epoch in product((0, 1), repeat=2)
    }
    assert len(orders) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (100, 10, 0, 3, 1, 0, 0),
            "must be a multiple of 3 (3 ranks x 1 accumulation steps), got 10. Use 9, for example.",
        ),
        (
            (100, 2, 0, 2, 2, 0, 0),
            "must be a multiple of 4 (2 ranks x 2 accumulation steps), got 2. Use 4, for example.",
        ),
        ((7, 8, 0, 1, 1, 0, 0), "7 samples do not fill one global batch of 8. Lower the batch size to 7 or less."),
        ((100, 10, 2, 2, 1, 0, 0), "rank must be from 0 to world_size - 1 = 1, got 2"),
        ((100, 10, 0, 1, 1, 0, 0, 11), "start_batch must be from 0 to 10"),
        ((100, 10, 0, 1, 1, 0, 0, -1), "start_batch must be from 0 to 10"),
        ((100, 0, 0, 1, 1, 0, 0), "batch_size_global, world_size and accumulation_steps must be at least 1"),
        ((100, 10, 0, 1, 1, -1, 0), "seed and epoch at least 0, got 10, 1, 1, -1 and 0"),
    ],
)
def test_sampler_arguments_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GlobalBatchSampler(*arguments)


def test_start_at_the_end_of_an_epoch_yields_nothing():
    sampler = GlobalBatchSampler(100, 10, 0, 1, 2, 0, 0, start_batch=10)
    assert len(sampler) == 0 and list(sampler) == []
