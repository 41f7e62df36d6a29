"""Pieces of fixed length cut from waveforms of any length.

A waveform shorter than the piece is repeated from its start until the piece is full (`np.pad` with mode "wrap"), as in
the authors' loader: silence would be a cue of its own.
"""

import numpy as np


def random_crop(waveform: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """A piece that starts anywhere with equal probability.

    Args:
        waveform: `(L,)`, `L >= 1`.
        samples: length of the piece, at least 1.
        generator: source of the start; used only if `L > samples`.

    Returns:
        `(samples,)`, the dtype of `waveform`; a view of it where `L >= samples`.

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
    """`count` pieces with evenly spaced starts, the first at the start and the last at the end of the waveform.

    The published protocol on VoxCeleb1-O takes five pieces of 3 s (48,240 samples).

    Args:
        waveform: `(L,)`, `L >= 1`.
        samples: length of a piece, at least 1.
        count: number of pieces, at least 1; one piece is the start of the waveform.

    Returns:
        `(count, samples)`, the dtype of `waveform`; `count` equal rows where `L <= samples`.

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
    """`(samples,)`: the waveform repeated from its start up to `samples`, or itself if it is long enough."""
    if len(waveform) >= samples:
        return waveform
    return np.pad(waveform, (0, samples - len(waveform)), mode="wrap")


def _check_crop(waveform: np.ndarray, samples: int) -> None:
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"expected a waveform of shape (L,) with L >= 1, got {waveform.shape}; average its channels")
    if samples < 1:
        raise ValueError(f"a crop must have at least 1 sample, got {samples}")
