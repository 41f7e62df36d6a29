"""Cut pieces of fixed length from waveforms of any length.

A waveform that is shorter than the piece is repeated from its start (`np.pad` with mode "wrap"), as in the published
training code of these models. Silence as padding would show the model that an utterance is short.
"""

import numpy as np


def random_crop(waveform: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Cut a piece with a random start, uniformly distributed.

    Args:
        waveform: samples `(L,)` with `L >= 1`.
        samples: length of the piece in samples, at least 1.
        generator: random generator of the start; used only if `L > samples`.

    Returns:
        Samples `(samples,)` of the dtype of `waveform`; a view of it if `L >= samples`.

    Raises:
        ValueError: `waveform` is empty or not one-dimensional, or `samples` is not positive.
    """
    _check_crop(waveform, samples)
    spare = len(waveform) - samples
    if spare <= 0:
        return wrap_pad(waveform, samples)
    start = int(generator.integers(spare + 1))
    return waveform[start : start + samples]


def even_segments(waveform: np.ndarray, samples: int, count: int) -> np.ndarray:
    """Cut `count` pieces with evenly spaced starts. The first is at the start of the waveform, the last at its end.

    The published protocol on VoxCeleb1-O takes five pieces of 3 s (48,240 samples).

    Args:
        waveform: samples `(L,)` with `L >= 1`.
        samples: length of a piece in samples, at least 1.
        count: number of pieces, at least 1. A single piece is cut from the start of the waveform.

    Returns:
        Samples `(count, samples)` of the dtype of `waveform`; all rows are equal if `L <= samples`.

    Raises:
        ValueError: `waveform` is empty or not one-dimensional, or `samples` or `count` is not positive.
    """
    _check_crop(waveform, samples)
    if count < 1:
        raise ValueError(f"count must be at least 1 segment, got {count}")
    padded = wrap_pad(waveform, max(samples, len(waveform)))
    starts = np.linspace(0, len(padded) - samples, count).astype(np.int64)
    return np.stack([padded[start : start + samples] for start in starts])


def wrap_pad(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Repeat a waveform from its start up to `samples` samples, or return it unchanged if it is long enough."""
    if len(waveform) >= samples:
        return waveform
    return np.pad(waveform, (0, samples - len(waveform)), mode="wrap")


def _check_crop(waveform: np.ndarray, samples: int) -> None:
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(
            f"expected a waveform of shape (L,) with L >= 1, got {waveform.shape}; average several channels first"
        )
    if samples < 1:
        raise ValueError(f"a crop must have at least 1 sample, got {samples}")
