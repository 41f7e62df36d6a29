"""Learning rate and margin as functions of the position in training, so that a resumed run needs no state."""

import math


def learning_rate(
    progress: float, epochs: int, initial: float, schedule: str, decay: float, final: float, warmup_epochs: float
) -> float:
    """Learning rate at a position in training.

    Args:
        progress: finished epochs, with fraction, in [0, epochs].
        epochs: of the whole run.
        initial: largest learning rate.
        schedule: `"epoch_decay"`: `initial * decay ** floor(progress)`, the paper's (0.97 per epoch);
            `"exponential"`: from `initial` to `final`, continuously, WeSpeaker's; `"constant"`.
        decay: factor per epoch of `"epoch_decay"`.
        final: last learning rate of `"exponential"`.
        warmup_epochs: linear rise from 0 over this many epochs, on top of each schedule.

    Returns:
        At least 0.
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
    """Margin at a position in training: 0 before `start_epoch`, `final` from `end_epoch` on.

    Between them it rises as WeSpeaker's exponential schedule does, `final * (1 - 10 ** (-3 p))` with `p` from 0 to 1:
    half of it is reached after a tenth of the way.

    Args:
        progress: finished epochs, with fraction.
        final: the configured margin.
        start_epoch: see above.
        end_epoch: at least `start_epoch`; equal to it for a step, both 0 for a constant margin.
    """
    if progress >= end_epoch:
        return final
    if progress < start_epoch:
        return 0.0
    return final * (1 - 10 ** (-3 * (progress - start_epoch) / (end_epoch - start_epoch)))
