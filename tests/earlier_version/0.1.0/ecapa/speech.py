"""How much speech a recording holds, and how clean it is.

Speech is told from other sound by what voices do and machines do not: the level of several bands rises far above the
quietest moments of the recording (silence, hum, tones and steady noise do not move), and in the raised frames there is
the periodicity of a voice (clicks, knocks and hiss have none). Voiced frames carry the sounds around them: consonants
and pauses shorter than a word's. What it cannot tell from speech: singing, babble, and other periodic, moving sound.
What it cannot hear: whispering, and speech below the noise.

Letters: `L` samples, `T` frames, `F` frequency bins, `B` bands.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Seconds of speech below which no decision is made; see tests/test_speech.py and the module `verifier`.
MINIMUM_SPEECH = 1.0
# Range of a signal-to-noise ratio, in dB: below, speech is not found; above, 16-bit audio has no room.
LOWEST_SNR_DB, HIGHEST_SNR_DB = -10.0, 60.0
# Level reported for digital silence; below the smallest step of 16-bit audio.
LOWEST_LEVEL_DB = -120.0

# Five milliseconds more than three periods of a voice of 67 Hz; the steps are the field's.
FRAME_SECONDS, HOP_SECONDS = 0.05, 0.01
# Zero-padded to this, the autocorrelation of a frame does not wrap up to a lag of 30 ms; bins are 12.5 Hz apart.
SPECTRUM_SECONDS = 0.08
# The floor of the bands is taken anew in each stretch of at most this length, so that it follows the room.
BLOCK_SECONDS = 20.0
# Bands of equal width, up to the top of telephone speech, which every sampling rate from 8 kHz holds.
LOWEST_HZ, HIGHEST_HZ, BAND_HZ = 100.0, 3700.0, 200.0
# The quietest frames of continuous speech are its pauses and closures: about a tenth of it.
FLOOR_QUANTILE = 0.1
# The mean of steady noise lies this far above that quantile, in bands of 200 Hz and frames of 50 ms.
FLOOR_BIAS_DB = 2.5
# Steady noise rises less over its floor in so many bands at once (its standard deviation in each is 2 dB), vowels far
# more. Bands this far below the loudest of a frame do not count: there a pure tone leaks through the window.
RISE_DB, RISEN_BANDS, RANGE_DB = 8.0, 4, 30.0
# 16-bit audio has a noise of -98 dBFS of its own: nothing below counts as a rise.
QUANTISATION_DB = -98.0
# Pitch of voices, and the frequencies that show it even over a telephone.
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 65.0, 420.0
VOICE_LOWEST_HZ, VOICE_HIGHEST_HZ = 100.0, 1600.0
# The spectrum is flattened by its mean over this width, wider than the distance of any harmonics.
ENVELOPE_HZ = 500.0
# Power up to this many times that of the quietest frames is taken for noise or hum, which have periods of their own.
STEADY_FACTOR = 3.0
# Keeps quotients of powers finite; far below the square of any sample.
SMALLEST_POWER = 1e-30
# Peak of the autocorrelation, relative to lag 0, from which a frame is voiced.
VOICED_PEAK = 0.4
# A syllable has at least so many voiced frames in a row; two clicks within one frame make fewer.
SHORTEST_VOICED = 5
# Voiced frames carry all frames this near to them (half a consonant), and risen ones farther away (a cluster).
CARRIED_SECONDS, REACH_SECONDS = 0.05, 0.25
# Pauses up to this are part of fluent speech: the closure of a plosive, a breath between words.
LONGEST_PAUSE = 0.3
# Runs of this many equal samples at the extreme of a recording do not happen unless it was cut off there.
CLIPPED_RUN = 3


@dataclass(frozen=True)
class SpeechMeasures:
    """What was measured of a recording.

    Attributes:
        duration: seconds.
        speech: seconds of speech, pauses of up to 0.3 s included; in [0, duration].
        snr_db: power of the speech over that of the noise under it, in dB, in [-10, 60]; -10 where there is no speech.
        clipped: share of the samples that are cut off at the extreme, in [0, 1].
        level_db: root mean square, in dB below full scale; at least -120.
    """

    duration: float
    speech: float
    snr_db: float
    clipped: float
    level_db: float


class _Block(NamedTuple):
    """Of one stretch: frames that are speech, the power of each, and the power of the noise."""

    speech: np.ndarray
    power: np.ndarray
    noise: float


def measure_speech(waveform: np.ndarray, sampling_rate: int) -> SpeechMeasures:
    """Measure a recording.

    Args:
        waveform: `(L,)` floating point in [-1, 1], of any length.
        sampling_rate: in Hz, at least 8000.

    Raises:
        ValueError: not one-dimensional, integers, NaN or infinite samples, or a sampling rate below 8 kHz.
    """
    samples = _checked(waveform, sampling_rate)
    duration = len(samples) / sampling_rate
    frame = round(FRAME_SECONDS * sampling_rate)
    level = _decibels(float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0)
    if len(samples) < 2 * frame:
        return SpeechMeasures(duration, 0.0, LOWEST_SNR_DB, _clipped_share(samples), level)
    count = -(-len(samples) // round(BLOCK_SECONDS * sampling_rate))
    blocks = [_measure_block(part, sampling_rate) for part in np.array_split(samples, count)]
    frames = sum(int(block.speech.sum()) for block in blocks)
    total = sum(len(block.speech) for block in blocks)
    signal = sum(float(block.power[block.speech].sum()) for block in blocks)
    noise = sum(block.noise * int(block.speech.sum()) for block in blocks)
    # The noise is in the frames of the speech, too.
    snr = _decibels(max(signal - noise, 0.0)) - _decibels(noise) if frames else LOWEST_SNR_DB
    snr = min(max(snr, LOWEST_SNR_DB), HIGHEST_SNR_DB)
    return SpeechMeasures(duration, duration * frames / total, snr, _clipped_share(samples), level)


def _checked(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"A recording must be one channel of floating point in [-1, 1], shape (samples,); got {samples.dtype} of "
            f"shape {samples.shape}. Average the channels, and divide 16-bit audio by 32768."
        )
    if not np.isfinite(samples).all():
        raise ValueError("The recording holds NaN or infinite samples; decode or repair it first.")
    if sampling_rate < 2 * HIGHEST_HZ:
        raise ValueError(f"Speech is measured at 8000 Hz or more, got {sampling_rate} Hz.")
    return samples.astype(np.float32, copy=False)


def _power(decibels: float) -> float:
    return 10 ** (decibels / 10)


def _decibels(power: float) -> float:
    return max(10 * float(np.log10(max(power, SMALLEST_POWER))), LOWEST_LEVEL_DB)


def _clipped_share(samples: np.ndarray) -> float:
    """Share of the samples in runs of equal values at the largest or the smallest value."""
    if len(samples) < CLIPPED_RUN or float(samples.max()) == float(samples.min()):
        return 0.0
    total = 0
    for extreme in (samples.max(), samples.min()):
        at = np.concatenate([[False], samples == extreme, [False]])
        edges = np.flatnonzero(at[1:] != at[:-1])
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= CLIPPED_RUN].sum())
    return total / len(samples)


def _measure_block(samples: np.ndarray, sampling_rate: int) -> _Block:
    frame, hop = round(FRAME_SECONDS * sampling_rate), round(HOP_SECONDS * sampling_rate)
    size = round(SPECTRUM_SECONDS * sampling_rate)
    window = np.hanning(frame).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop] * window
    bins = int(HIGHEST_HZ * SPECTRUM_SECONDS) + 1
    # Scaled so that the sum over all bins of both signs is the mean square of the frame.
    spectrum = np.fft.rfft(frames, size)[:, :bins]
    power = (spectrum.real**2 + spectrum.imag**2) / np.float32(size * float(np.square(window).sum()))
    bands = _band_power(power)
    floor = np.quantile(bands, FLOOR_QUANTILE, axis=0)
    quiet = _power(QUANTISATION_DB) * BAND_HZ / (sampling_rate / 2)
    least = np.maximum(np.maximum(floor, quiet) * _power(RISE_DB), bands.max(1, keepdims=True) * _power(-RANGE_DB))
    risen = (bands > least).sum(1) >= RISEN_BANDS
    voiced = _long_runs(risen & (_periodicity(power) > VOICED_PEAK), SHORTEST_VOICED)
    near = _dilate(voiced, round(CARRIED_SECONDS / HOP_SECONDS))
    carried = risen & _dilate(voiced, round(REACH_SECONDS / HOP_SECONDS))
    speech = _close_gaps(near | carried, round(LONGEST_PAUSE / HOP_SECONDS))
    return _Block(speech, bands.sum(1, dtype=np.float64), float(floor.sum(dtype=np.float64)) * _power(FLOOR_BIAS_DB))


def _band_power(power: np.ndarray) -> np.ndarray:
    """Sum `(T, F)` over bands of equal width: `(T, B)`."""
    edges = np.arange(LOWEST_HZ, HIGHEST_HZ + 1, BAND_HZ) * SPECTRUM_SECONDS
    return np.add.reduceat(power, np.rint(edges).astype(int)[:-1], axis=1)


def _periodicity(power: np.ndarray) -> np.ndarray:
    """Largest autocorrelation of each frame at the lags of voices, of its flattened spectrum: `(T,)`, about [0, 1]."""
    low, high = round(VOICE_LOWEST_HZ * SPECTRUM_SECONDS), round(VOICE_HIGHEST_HZ * SPECTRUM_SECONDS)
    width = round(ENVELOPE_HZ * SPECTRUM_SECONDS) | 1
    padded = np.pad(power[:, :high], ((0, 0), (width // 2 + 1, width // 2)), mode="reflect")
    sums = np.cumsum(padded, axis=1, dtype=np.float64)
    envelope = (sums[:, width:] - sums[:, :-width]) / width
    steady = np.quantile(envelope, FLOOR_QUANTILE, axis=0)
    gain = np.clip(1 - STEADY_FACTOR * steady / (envelope + SMALLEST_POWER), 0, 1)
    flat = power[:, :high] * (gain / (envelope + SMALLEST_POWER))
    flat[:, :low] = 0
    size = 2 * high
    correlation = np.fft.irfft(flat, size)
    rate = size / SPECTRUM_SECONDS
    lags = slice(int(rate / HIGHEST_PITCH_HZ), int(rate / LOWEST_PITCH_HZ) + 1)
    return correlation[:, lags].max(1) / np.maximum(correlation[:, 0], SMALLEST_POWER)


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of each run of True."""
    at = np.concatenate([[False], mask, [False]])
    edges = np.flatnonzero(at[1:] != at[:-1])
    return edges[::2], edges[1::2]


def _long_runs(mask: np.ndarray, shortest: int) -> np.ndarray:
    """Only the runs of True that are at least so long."""
    result = np.zeros_like(mask)
    for begin, end in zip(*_runs(mask), strict=True):
        result[begin:end] = end - begin >= shortest
    return result


def _close_gaps(mask: np.ndarray, longest: int) -> np.ndarray:
    """Fill runs of False between runs of True that are at most so long."""
    result = mask.copy()
    begins, ends = _runs(mask)
    for end, begin in zip(ends[:-1], begins[1:], strict=True):
        if begin - end <= longest:
            result[end:begin] = True
    return result


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """True within so many frames of a True."""
    result = np.zeros_like(mask)
    for begin, end in zip(*_runs(mask), strict=True):
        result[max(0, begin - reach) : end + reach] = True
    return result
