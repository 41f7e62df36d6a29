"""Laws of the samplers: caps are kept, nothing is lost or doubled, ranks agree, epochs differ."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from hf_hamspk.data.sampling import BUCKET_RATIO, LengthBatchSampler, SpeakerBatchSampler

DURATIONS = np.random.default_rng(0).gamma(4.0, 2.0, 500) + 0.2


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("most", [None, 7])
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_batches_keep_the_cap_and_cover_the_corpus(seed, most, world_size):
    ranks = [
        LengthBatchSampler(DURATIONS, 60.0, most, seed, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    for batch in batches:
        assert len(batch) * DURATIONS[batch].max() <= 60.0
        assert most is None or len(batch) <= most
    left_out = ranks[0].left_out
    assert sorted([*np.concatenate(batches), *left_out]) == list(range(500))
    everybody = [
        LengthBatchSampler(DURATIONS, 60.0, most, seed, rank=rank, world_size=world_size, equal_steps=False)
        for rank in range(world_size)
    ]
    assert sorted(utterance for rank in everybody for batch in rank for utterance in batch) == list(range(500))
    assert all(rank.left_out == [] for rank in everybody)


def test_lengths_in_a_batch_are_alike():
    sorted_batches = list(LengthBatchSampler(DURATIONS, 60.0))
    longest = [DURATIONS[batch].max() for batch in sorted_batches]
    assert longest == sorted(longest, reverse=True)
    for seed in (None, 0):
        batches = list(LengthBatchSampler(DURATIONS, 60.0, seed=seed))
        padded = sum(len(batch) * DURATIONS[batch].max() for batch in batches)
        assert padded / DURATIONS.sum() < BUCKET_RATIO


def test_epochs_shuffle_and_resume():
    first, second = (list(LengthBatchSampler(DURATIONS, 60.0, seed=1, epoch=epoch)) for epoch in (0, 1))
    assert first != second and first == list(LengthBatchSampler(DURATIONS, 60.0, seed=1))
    assert {tuple(sorted(batch)) for batch in first} != {tuple(sorted(batch)) for batch in second}
    assert list(LengthBatchSampler(DURATIONS, 60.0, seed=1, start_batch=5)) == first[5:]


LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(12), [1, 2, 3, 5, 8, 8, 8, 20, 20, 40, 40, 45]))


def speakers_of(batch):
    return Counter(int(LABELS[sample]) for _, sample in batch)


@pytest.mark.parametrize("speakers", [1, 4, 5, 11, 12])
def test_every_batch_has_so_many_speakers_and_utterances(speakers):
    sampler = SpeakerBatchSampler(LABELS, speakers, 3, seed=0, epoch=2, batches=60)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 60
    for batch in batches:
        assert list(speakers_of(batch).values()) == [3] * speakers
        assert {epoch for epoch, _ in batch} == {2}
    # Speakers come equally often, whatever they have.
    times = sum((speakers_of(batch) for batch in batches), Counter())
    assert max(times.values()) - min(times.values()) <= 3 * (1 if 12 % speakers == 0 else 20)
    # A speaker's utterances are all used before one comes again.
    for speaker in range(12):
        counts = Counter(sample for batch in batches for _, sample in batch if LABELS[sample] == speaker)
        assert max(counts.values()) - min(counts.get(int(s), 0) for s in np.flatnonzero(speaker == LABELS)) <= 1


def test_speakers_are_in_turn_within_two():
    batches = list(SpeakerBatchSampler(LABELS, 5, 1, seed=0, epoch=0, batches=120))
    times = sum((speakers_of(batch) for batch in batches), Counter())
    assert sum(times.values()) == 600 and max(times.values()) - min(times.values()) <= 2


def test_ranks_share_the_speakers_of_a_batch():
    whole = list(SpeakerBatchSampler(LABELS, 8, 2, 0, 0))
    assert len(whole) == len(LABELS) // 16
    for world_size in (2, 4, 8):
        ranks = [
            list(SpeakerBatchSampler(LABELS, 8, 2, 0, 0, rank=r, world_size=world_size)) for r in range(world_size)
        ]
        assert [[*itertools.chain(*parts)] for parts in zip(*ranks, strict=True)] == whole
    assert list(SpeakerBatchSampler(LABELS, 8, 2, 0, 0, start_batch=4)) == whole[4:]
    assert list(SpeakerBatchSampler(LABELS, 8, 2, 0, 1)) != whole


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LengthBatchSampler([1.0, 70.0], 60.0),
            "1 utterances are longer than max_seconds = 60, the longest of 70 s",
        ),
        (lambda: LengthBatchSampler([], 60.0), "durations must be a list of at least one number of seconds"),
        (lambda: LengthBatchSampler([1.0, float("nan")], 60.0), "all above 0 and finite"),
        (lambda: LengthBatchSampler([1.0], 60.0, 0), "max_utterances must be at least 1"),
        (
            lambda: LengthBatchSampler([1.0], 60.0, rank=2, world_size=2),
            "rank must be from 0 to world_size - 1, got 2 of 2",
        ),
        (lambda: SpeakerBatchSampler(LABELS, 13, 1, 0, 0), "a batch of 13 speakers needs as many, the labels name 12"),
        (lambda: SpeakerBatchSampler([], 1, 1, 0, 0), "the labels name 0"),
        (lambda: SpeakerBatchSampler(LABELS, 4, 0, 0, 0), "utterances_per_speaker must be at least 1"),
        (lambda: SpeakerBatchSampler(LABELS, 4, 1, 0, 0, world_size=3), "4 speakers do not divide among 3 ranks"),
        (lambda: SpeakerBatchSampler(LABELS, 4, 1, 0, 0, start_batch=51), "start_batch must be from 0 to 50"),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
