"""Centres divided among processes: the same loss and gradients as in one."""

import copy

import pytest
import torch
from torch import distributed, multiprocessing

from hf_hamspk import HamSpkConfig
from hf_hamspk.losses.engine import centre_parameters, divide_head
from hf_hamspk.losses.sharding import choose_rows, shard_rows
from hf_hamspk.networks_hamspk import make_head

SPEAKERS, SIZE, BATCH = 31, 12, 5
LEARNED = {"head": "ham", "projection": "curved", "learnable_curvature": True, "curvature": 1.0}
VARIANTS = [
    *({"head": head} for head in ("softmax", "normalized_softmax", "am", "aam", "ram", "h", "ham", "joint")),
    {"head": "ram", "scale": 100.0},
    {"head": "ham", "scale": 64.0},
    LEARNED,
]


def compare(rank: int, ranks: int, fields: dict) -> None:
    """One head, divided and whole, on the same batches."""
    torch.manual_seed(1)
    whole = make_head(HamSpkConfig(num_labels=SPEAKERS, embedding_size=SIZE, **fields)).double()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if "curvature" not in name:
                parameter.normal_(0, 0.1)
    every = (0.3 * torch.randn(ranks * BATCH, SIZE, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, SPEAKERS, (ranks * BATCH,))
    loss = whole(every, labels).loss
    loss.backward()
    divided = copy.deepcopy(whole)
    divided.zero_grad()
    divide_head(divided, rank, ranks)
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    own = every.detach()[mine].clone().requires_grad_()
    actual = divided(own, labels[mine]).loss
    actual.backward()
    torch.testing.assert_close(actual, loss, rtol=1e-6, atol=0)
    # Data parallel training takes the mean over the ranks of what comes of this.
    torch.testing.assert_close(own.grad / ranks, every.grad[mine], rtol=1e-6, atol=1e-9)
    shard = shard_rows(SPEAKERS, rank, ranks)
    rows, expected = centre_parameters(divided), dict(whole.named_parameters())
    for name, parameter in divided.named_parameters():
        gradient = expected[name].grad
        if name in rows:
            gradient = gradient[shard.first : shard.first + shard.count]
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="No rank holds all centres"):
        divided(own)


def rank_main(rank: int, ranks: int, store: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for fields in VARIANTS:
        compare(rank, ranks, fields)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_divided_centres_give_the_loss_and_gradients_of_one_process(ranks, tmp_path):
    multiprocessing.spawn(rank_main, (ranks, str(tmp_path / "store")), nprocs=ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("speakers", [7, 8, 100])
def test_the_shards_are_all_rows_once(ranks, speakers):
    shards = [shard_rows(speakers, rank, ranks) for rank in range(ranks)]
    assert [row for shard in shards for row in range(shard.first, shard.first + shard.count)] == list(range(speakers))
    assert max(shard.count for shard in shards) - min(shard.count for shard in shards) <= 1


@pytest.mark.parametrize(("speakers", "rank", "ranks"), [(3, 0, 4), (8, 2, 2), (8, -1, 2)])
def test_shards_that_cannot_be_are_refused(speakers, rank, ranks):
    with pytest.raises(ValueError, match="cannot be divided"):
        shard_rows(speakers, rank, ranks)


def test_drawn_rows_hold_the_labels_of_this_rank():
    labels = torch.tensor([3, 3, 90, -4, 200])
    chosen = choose_rows(labels, 100, 0.1)
    assert len(chosen) == 10 and torch.equal(chosen, chosen.unique())
    assert {3, 90} <= set(chosen.tolist())
    assert len(choose_rows(torch.arange(50), 100, 0.1)) == 50
