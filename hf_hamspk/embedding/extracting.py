"""Embed the utterances of a source and save the embeddings in parts.

Threads decode audio ahead of the model. Utterances are sorted by length, so that a batch needs little padding.
"""

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from ..data.audio import log_warnings
from ..data.fitting import NO_MEMORY, embed_what_fits
from ..modeling_hamspk import BATCH_SECONDS, SpeakerModelMixin
from .parts import EmbeddingParts
from .sources import DecodedUtterance, Source

logger = logging.getLogger(__name__)

CHUNK_SECONDS = 600.0
"""Seconds of audio in a chunk. Utterances are sorted by length within a chunk. At most three chunks, of 38 MB each, are
in memory."""


@dataclass
class Speed:
    """Speed of one embedding run. Parts that were complete before this run are not counted.

    Attributes:
        utterances: number of utterances that were embedded or skipped.
        audio_seconds: seconds of audio that were embedded.
        wall_seconds: seconds that the run took, including reading.
        skipped: dictionary that maps each utterance that was skipped to the reason.
    """

    utterances: int = 0
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def utterances_per_second(self) -> float:
        return self.utterances / max(self.wall_seconds, 1e-9)

    @property
    def real_time_factor(self) -> float:
        """Return the wall-clock seconds per second of audio, or 0 if no audio was embedded."""
        return self.wall_seconds / self.audio_seconds if self.audio_seconds else 0.0

    def __str__(self) -> str:
        return f"{self.utterances_per_second:.1f} utterances/s, real-time factor {self.real_time_factor:.4f}"


@dataclass
class _Chunk:
    part: int
    recordings: list[DecodedUtterance]
    completes_part: bool


def extract(
    model: SpeakerModelMixin,
    source: Source,
    parts: EmbeddingParts,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_seconds: float = BATCH_SECONDS,
    workers: int = 2,
    progress: bool = True,
) -> Speed:
    """Embed the utterances of all unfinished parts that belong to this process.

    The parts `rank`, `rank + world_size`, `rank + 2 * world_size` and so on belong to the process number `rank`.

    Args:
        model: model on the device of this process.
        source: source of utterances at the model's sampling rate.
        parts: parts in which the embeddings are saved.
        rank: number of this process, from 0 to `world_size - 1`.
        world_size: number of processes that share the work.
        batch_seconds: seconds of audio in one forward pass, padding included.
        workers: number of threads that read and decode audio.
        progress: whether to show a progress bar with utterances per second and the real-time factor.

    Returns:
        The speed of this process.
    """
    own = range(rank, len(parts.pieces), world_size)
    # The states are computed before the files are read. A file that changes meanwhile is therefore embedded again when
    # the run is resumed.
    states = {part: source.state(parts.pieces[part]) for part in own}
    todo = [part for part in own if not parts.is_done(part, states[part])]
    _warn_of_changes([part for part in todo if parts.exists(part)], parts)
    total, left = (sum(parts.utterances(part) for part in some) for some in (own, todo))
    rate = model.config.sampling_rate
    speed, start = Speed(), time.perf_counter()
    rows: list[tuple[DecodedUtterance, float, np.ndarray]] = []
    warnings: dict[str, Sequence[str]] = {}
    bar = tqdm(total=total, initial=total - left, desc="embedding", unit="utt", disable=not progress, leave=False)
    with bar, _Ahead(_chunks(source, parts, todo, rate, workers)) as chunks:
        for chunk in chunks:
            rows += _embed(model, chunk.recordings, batch_seconds)
            warnings |= {one.name: one.warnings for one in chunk.recordings if one.warnings}
            own_rows = rows[-len(chunk.recordings) :]
            speed.utterances += len(own_rows)
            speed.audio_seconds += sum(seconds for _, seconds, _ in own_rows)
            speed.skipped |= {one.name: one.reason for one, _, _ in own_rows if one.reason is not None}
            speed.wall_seconds = time.perf_counter() - start
            bar.set_postfix_str(f"real-time factor {speed.real_time_factor:.4f}", refresh=False)
            bar.update(len(chunk.recordings))
            if chunk.completes_part:
                utterances, seconds, embeddings = (list(column) for column in zip(*rows, strict=True))
                parts.write(chunk.part, utterances, seconds, embeddings, states[chunk.part])
                rows = []
    log_warnings(warnings)
    return speed


def _warn_of_changes(changed: list[int], parts: EmbeddingParts) -> None:
    if changed:
        logger.warning(
            "Audio files have changed since the run was interrupted. All %d utterances in the parts that contain these "
            "files are embedded again.",
            sum(parts.utterances(part) for part in changed),
        )


def _embed(
    model: SpeakerModelMixin, recordings: list[DecodedUtterance], batch_seconds: float
) -> list[tuple[DecodedUtterance, float, np.ndarray]]:
    """Embed recordings. Return the utterance without its waveform, the duration in seconds and the embedding of each.

    If an utterance cannot be used, its duration is 0 and its embedding is empty.
    """
    rate = model.config.sampling_rate
    waveforms = [recording.waveform for recording in recordings if recording.waveform is not None]
    embeddings = iter(embed_what_fits(model, waveforms, batch_seconds))
    rows = []
    for recording in recordings:
        seconds, embedding = 0.0, np.empty(0, np.float32)
        if recording.waveform is not None:
            found, reason = next(embeddings), None
            if found is None:
                reason = NO_MEMORY
            elif not bool(found.isfinite().all()):
                reason = "the embedding is not finite; use float32, and check that the weights are not damaged"
            else:
                seconds, embedding = len(recording.waveform) / rate, found.numpy()
            recording = replace(recording, waveform=None, reason=reason)
        rows.append((recording, seconds, embedding))
    return rows


def _chunks(source: Source, parts: EmbeddingParts, todo: list[int], rate: int, workers: int) -> Iterator[_Chunk]:
    """Read the utterances of the parts `todo` with `workers` threads, and yield them in chunks.

    A chunk ends when it has more than `CHUNK_SECONDS` of audio, or at the end of a part. `rate` is the sampling rate
    of `source` in Hz.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="decoding") as pool:
        order = ((part, piece) for part in todo for piece in parts.pieces[part])
        held: list[DecodedUtterance] = []
        seconds = 0.0
        for (part, piece), found in _in_order(pool, source, order, 2 * workers):
            held += found
            seconds += sum(len(r.waveform) / rate for r in found if r.waveform is not None)
            ends = piece == parts.pieces[part][-1]
            if ends or seconds > CHUNK_SECONDS:
                yield _Chunk(part, held, ends)
                held, seconds = [], 0.0


def _in_order(
    pool: ThreadPoolExecutor, source: Source, order: Iterable[tuple[int, int]], ahead: int
) -> Iterator[tuple[tuple[int, int], list[DecodedUtterance]]]:
    """Read pieces in the threads of `pool`, and yield each item of `order` with the utterances of the piece.

    Args:
        pool: threads that read the pieces.
        source: source of the utterances.
        order: pairs of a part number and the number of a piece of this part, in the order of the results.
        ahead: largest number of pieces that are read in advance.
    """
    left = iter(order)
    reading: deque[tuple[tuple[int, int], Future[list[DecodedUtterance]]]] = deque()
    try:
        while True:
            for place in itertools.islice(left, ahead - len(reading)):
                reading.append((place, pool.submit(source.read, place[1])))
            if not reading:
                return
            place, found = reading.popleft()
            yield place, found.result()
    finally:
        for _, future in reading:
            future.cancel()


class _Ahead:
    """Context manager that computes the next items of an iterator in a thread while the caller uses earlier items.

    Leaving the context ends the thread.
    """

    def __init__(self, items: Iterator[_Chunk]):
        self._items = items
        self._queue: queue.Queue[_Chunk | BaseException | None] = queue.Queue(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)

    def __enter__(self) -> Iterator[_Chunk]:
        self._thread.start()
        return iter(self._get, None)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be blocked by the full queue.
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(0.05)

    def _get(self) -> _Chunk | None:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for item in self._items:
                self._queue.put(item)
                if self._stop.is_set():
                    return
        # `_get` raises the error in the thread that uses the items.
        except BaseException as error:
            last = error
        finally:
            self._items.close()  # pyright: ignore[reportAttributeAccessIssue]
        self._queue.put(last)
