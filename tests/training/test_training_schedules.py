"""Learning rate and margin at known positions."""

import pytest

from hf_hamspk.training.schedules import learning_rate, margin


def rate(progress, **changes):
    arguments = {"epochs": 100, "initial": 1e-3, "schedule": "epoch_decay", "decay": 0.97, "final": 5e-5}
    return learning_rate(progress, **(arguments | {"warmup_epochs": 0.0} | changes))


def test_published_learning_rates():
    """1e-3 * 0.97 ** (e - 1) in epoch e: 4.90e-5 in the 100th, 1.07e-5 in the 150th."""
    assert rate(0.0) == rate(0.99) == 1e-3
    assert rate(1.0) == pytest.approx(0.97e-3)
    assert rate(99.5) == pytest.approx(4.90e-5, rel=1e-3)
    assert rate(149.0, epochs=150) == pytest.approx(1.07e-5, rel=2e-3)


def test_exponential_schedule_meets_both_ends():
    assert rate(0, schedule="exponential", initial=0.1) == pytest.approx(0.1)
    assert rate(100, schedule="exponential", initial=0.1) == pytest.approx(5e-5)
    assert rate(50, schedule="exponential", initial=0.1) == pytest.approx((0.1 * 5e-5) ** 0.5)


def test_warmup_is_linear_from_zero():
    assert rate(0, schedule="constant", warmup_epochs=4) == 0
    assert rate(1, schedule="constant", warmup_epochs=4) == pytest.approx(0.25e-3)
    assert rate(4, schedule="constant", warmup_epochs=4) == 1e-3


def test_margin_schedule():
    assert margin(0, 0.2, 0, 0) == 0.2
    assert margin(19.9, 0.2, 20, 40) == 0
    assert margin(20, 0.2, 20, 40) == 0
    assert margin(22, 0.2, 20, 40) == pytest.approx(0.2 * (1 - 10**-0.3))
    assert margin(40, 0.2, 20, 40) == 0.2
    rising = [margin(20 + i, 0.2, 20, 40) for i in range(20)]
    assert rising == sorted(rising)
