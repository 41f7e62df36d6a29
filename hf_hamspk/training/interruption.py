"""Stop a training run after the current step when the process receives SIGTERM."""

import signal
import threading
from types import FrameType
from typing import Any

EXIT_STATUS = 128 + signal.SIGTERM
"""Exit status of a run that was ended by SIGTERM. Shells report the same status."""


class Interruption:
    """Context in which SIGTERM does not end the process but is noted, so that a checkpoint can be written first.

    Schedulers such as Slurm send SIGTERM some time before they kill a job. A second SIGTERM ends the process at once.
    Outside the main thread, where Python cannot handle signals, SIGTERM keeps its usual effect.

    Attributes:
        requested: whether SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._earlier: Any = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGTERM, self._earlier)
            self._earlier = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, self._earlier)
