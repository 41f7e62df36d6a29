"""From one sampling rate to another, with NumPy alone.

Windowed-sinc interpolation with the filter that `torchaudio.functional.resample` has by default, so that a model gives
the same numbers where torchaudio is absent, or a build that cannot be imported. Each output sample reads its own few
input samples: the memory does not grow when the two rates have no common divisor.

Letters: `L` samples, `N` samples after resampling, `K` taps of the filter.
"""

import math

import numpy as np

# Zero crossings of the sinc on each side, and the cut-off as a share of half the lower rate.
LOWPASS_WIDTH, ROLLOFF = 6, 0.99
# Values of the largest intermediate array: 16 MiB of float32.
BLOCK_VALUES = 1 << 22


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `(L,)` to `(ceil(L * to_rate / from_rate),)` float32; the waveform itself where the rates are equal.

    Args:
        waveform: floating point.
        from_rate: of the waveform, in Hz, positive.
        to_rate: wanted, in Hz, positive.
    """
    if from_rate == to_rate:
        return waveform
    divisor = math.gcd(from_rate, to_rate)
    step, phases = from_rate // divisor, to_rate // divisor
    scale = min(1.0, to_rate / from_rate) * ROLLOFF
    reach = math.ceil(LOWPASS_WIDTH / scale)
    padded = np.pad(waveform.astype(np.float32, copy=False), (reach, reach + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    block = max(1, BLOCK_VALUES // windows.shape[1])
    table = _taps(np.arange(phases) / phases, reach, scale) if phases <= block else None
    result = np.empty(-(-len(waveform) * phases // step), dtype=np.float32)
    for begin in range(0, len(result), block):
        # Output sample n is at the time n * step / phases, counted in input samples.
        n = np.arange(begin, min(len(result), begin + block))
        first, phase = np.divmod(n * step, phases)
        taps = _taps(phase / phases, reach, scale) if table is None else table[phase]
        result[n] = np.einsum("nk,nk->n", windows[first], taps)
    return result


def _taps(fraction: np.ndarray, reach: int, scale: float) -> np.ndarray:
    """`(N, K)` float32 for output samples that lie `fraction` `(N,)` of a sample behind an input sample."""
    time = (np.arange(-reach, reach + 1) - fraction[:, None]) * scale
    time = time.clip(-LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = np.cos(time * (np.pi / LOWPASS_WIDTH / 2)) ** 2
    return (scale * np.sinc(time) * window).astype(np.float32)
