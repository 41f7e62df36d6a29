"""Laws of the sampler of speakers: nothing is lost or doubled, ranks agree, epochs differ."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from hf_hamspk.data.sampling import SpeakerBatchSampler

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


@pytest.mark.parametrize("count", range(1, 8))
def test_no_batch_has_a_speaker_twice_however_few_there_are(count):
    for speakers in range(1, count + 1):
        batches = list(SpeakerBatchSampler(np.arange(count), speakers, 1, seed=1, epoch=0, batches=60))
        assert all(len({sample for _, sample in batch}) == speakers for batch in batches)
        times = Counter(sample for batch in batches for _, sample in batch)
        assert len(times) == count and max(times.values()) - min(times.values()) <= 2


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
        (lambda: SpeakerBatchSampler(LABELS, 13, 1, 0, 0), "must contain at least 13 speakers to fill a batch, got 12"),
        (lambda: SpeakerBatchSampler([], 1, 1, 0, 0), "must contain at least 1 speakers to fill a batch, got 0"),
        (lambda: SpeakerBatchSampler(LABELS, 4, 0, 0, 0), "utterances_per_speaker must be at least 1"),
        (lambda: SpeakerBatchSampler(LABELS, 4, 1, 0, 0, world_size=3), "4 speakers cannot be divided among 3 ranks"),
        (lambda: SpeakerBatchSampler(LABELS, 4, 1, 0, 0, start_batch=51), "start_batch must be from 0 to 50"),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
