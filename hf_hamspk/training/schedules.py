"""Schedules of learning rate and margin. Both depend only on the progress, so a resumed run needs no saved state."""

import math


def learning_rate(
    progress: float, epochs: int, initial: float, schedule: str, decay: float, final: float, warmup_epochs: float
) -> float:
    """Compute the learning rate at a given progress of the training.

    Args:
        progress: number of finished epochs, including the fraction of the current one, in [0, epochs].
        epochs: number of epochs of the run.
        initial: largest learning rate.
        schedule: name of the schedule. `"epoch_decay"` is `initial * decay ** floor(progress)`, as in the paper (with
            decay 0.97). `"exponential"` decreases continuously from `initial` to `final`, as in WeSpeaker. `"constant"`
            is `initial`.
        decay: factor per epoch of `"epoch_decay"`.
        final: last learning rate of `"exponential"`.
        warmup_epochs: number of epochs at the beginning in which the learning rate of any schedule is multiplied by a
            factor that rises linearly from 0 to 1.

    Returns:
        The learning rate, at least 0.
    """
    if schedule == "epoch_decay":
        rate = initial * decay ** math.floor(progress)
    elif schedule == "exponential":
        rate = initial * (final / initial) ** (progress / epochs)
    else:
        rate = initial
    if progress < warmup_epochs:
        rate *= progress / warmup_epochs
    return rate


def margin(progress: float, final: float, start_epoch: float, end_epoch: float) -> float:
    """Compute the margin at a given progress of the training.

    The margin is 0 before `start_epoch`, and `final` from `end_epoch` on. In between, it follows the exponential
    schedule of WeSpeaker, `final * (1 - 10 ** (-3 p))`, where `p` rises from 0 to 1. It reaches half of `final` at
    `p = 0.1`.

    Args:
        progress: number of finished epochs, including the fraction of the current one.
        final: margin of the configuration.
        start_epoch: epoch at which the margin begins to rise.
        end_epoch: epoch at which the margin reaches `final`, at least `start_epoch`. If `start_epoch` and `end_epoch`
            are equal, the margin jumps to `final`. If both are 0, it is constant.
    """
    if progress >= end_epoch:
        return final
    if progress < start_epoch:
        return 0.0
    return final * (1 - 10 ** (-3 * (progress - start_epoch) / (end_epoch - start_epoch)))
