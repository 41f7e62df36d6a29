"""Mean loss and speed of training steps between two log entries."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


class StepMeter:
    """Mean loss and speed of the steps since the last log entry.

    The sum of the losses stays on the device until it is read, so that a step does not wait for the device.

    Args:
        device: device of the losses.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.restore(0.0, 0)

    def restore(self, loss_sum: float, steps: int) -> None:
        """Continue with the sum of the losses from a checkpoint. The measured times are set to 0."""
        self.loss_sum, self.steps = torch.tensor(loss_sum, device=self.device), steps
        self.seconds = self.waiting = 0.0
        self.timed_steps = 0

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            self._began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited = time.perf_counter() - self._began
            yield batch

    def add(self, loss: Tensor) -> None:
        """Add a finished step.

        Args:
            loss: loss of the step on this process, a scalar without gradient.
        """
        self.loss_sum = self.loss_sum + loss
        self.steps += 1
        self.timed_steps += 1
        self.waiting += self._waited
        self.seconds += time.perf_counter() - self._began

    def speed(self, batch_size: int) -> dict[str, float]:
        """Return the speed of the steps since the last entry, or since the run was resumed.

        Args:
            batch_size: number of utterances per step, over all processes.

        Returns:
            A dictionary with three keys. `seconds` is the time of the steps, without evaluations and checkpoints.
            `utterances_per_second` counts the utterances of all processes. `waiting_for_data` is the share of the time
            in which this process waited for data.
        """
        seconds = max(self.seconds, 1e-9)  # The clock can stand still between two calls.
        return {
            "seconds": round(self.seconds, 4),
            "utterances_per_second": round(self.timed_steps * batch_size / seconds, 2),
            "waiting_for_data": round(min(self.waiting / seconds, 1.0), 4),
        }
