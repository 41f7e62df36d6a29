"""Cut crops and segments of fixed length from waveforms of any length.

A waveform that is too short is repeated from its start (`np.pad` with mode "wrap"), as in the training code released
with the paper (arXiv 2601.19709). Padding with silence would reveal to the model that an utterance is short.
"""

import numpy as np


def random_crop(waveform: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Cut a crop with a random, uniformly distributed start.

    Args:
        waveform: samples `(L,)` with `L >= 1`.
        samples: length of the crop in samples, at least 1.
        generator: random generator of the start, used only if `L > samples`.

    Returns:
        Samples `(samples,)` with the dtype of `waveform`. They are a view of `waveform` if `L >= samples`.

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
    """Cut `count` segments with evenly spaced starts, from the start to the end of the waveform.

    The published protocol for VoxCeleb1-O uses five segments of 3.015 s. At 16 kHz, these are 48,240 samples: 300 hops
    of 160 samples, and 240 samples to complete the last window of 400 samples.

    Args:
        waveform: samples `(L,)` with `L >= 1`.
        samples: length of a segment in samples, at least 1.
        count: number of segments, at least 1. A single segment is cut from the start of the waveform.

    Returns:
        Samples `(count, samples)` with the dtype of `waveform`. All segments are equal if `L <= samples`.

    Raises:
        ValueError: `waveform` is empty or not one-dimensional, or `samples` or `count` is not positive.
    """
    _check_crop(waveform, samples)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    padded = wrap_pad(waveform, max(samples, len(waveform)))
    starts = np.linspace(0, len(padded) - samples, count).astype(np.int64)
    return np.stack([padded[start : start + samples] for start in starts])


def wrap_pad(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Repeat a waveform from its start until it has `samples` samples. Return it unchanged if it is long enough."""
    if len(waveform) >= samples:
        return waveform
    return np.pad(waveform, (0, samples - len(waveform)), mode="wrap")


def _check_crop(waveform: np.ndarray, samples: int) -> None:
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(
            f"Expected a waveform of shape (L,) with L >= 1, got shape {waveform.shape}. Average its channels first."
        )
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
