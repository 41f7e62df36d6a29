"""Functions that measure how much speech a recording contains, and how clean it is.

`measure_speech` detects speech by two properties of a frame. The level of several frequency bands is far above the
quietest frames of the recording, which excludes silence, hum, tones and steady noise. The frame is also as periodic as
a voice, which excludes clicks, knocks and hiss. Consonants and short pauses next to voiced frames count as speech.
Without voiced frames, a level that rises for 0.1 s and more with a changing spectrum counts as whispering. Singing,
babble, other periodic sounds of varying level, and noises that change like whispering are mistaken for speech. Speech
below the noise level is not detected.

Symbols in shapes: `L` samples, `T` frames, `F` frequency bins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# Seconds of speech below which no decision is made by default; see `verification_hamspk`.
MINIMUM_SPEECH = 1.0
# Range of signal-to-noise ratios in dB: below it speech is not detected, above it 16-bit audio has too few bits.
LOWEST_SNR_DB, HIGHEST_SNR_DB = -10.0, 60.0
# Level in dBFS reported for digital silence, less than the smallest step of 16-bit audio.
LOWEST_LEVEL_DB = -120.0
# Length and step of the frames: 50 ms contain three periods of a voice of 67 Hz, and a step of 10 ms is usual.
FRAME_SECONDS, HOP_SECONDS = 0.05, 0.01
# Length of zero-padded frames, so that the autocorrelation does not wrap at lags up to 30 ms; bins are 12.5 Hz apart.
SPECTRUM_SECONDS = 0.08
# Longest block for which one noise floor is measured, so that the floor follows changes of the background noise.
BLOCK_SECONDS = 20.0
# Bands of equal width up to the limit of telephone speech, which every sampling rate of at least 8 kHz contains.
LOWEST_HZ, HIGHEST_HZ, BAND_HZ = 100.0, 3700.0, 200.0
# Share of frames that define the noise floor: about a tenth of continuous speech are pauses and closures.
FLOOR_QUANTILE = 0.1
# Mean level of steady noise above that quantile, in bands of 200 Hz and frames of 50 ms.
FLOOR_BIAS_DB = 2.5
# A frame has risen if at least 4 bands are 8 dB above the floor. Vowels exceed this by far, steady noise does not (its
# standard deviation is 2 dB in each band). Bands 30 dB below the loudest one may contain leakage and do not count.
RISE_DB, RISEN_BANDS, RANGE_DB = 8.0, 4, 30.0
# Quantisation noise of 16-bit audio in dBFS: levels below it are never counted as risen.
QUANTISATION_DB = -98.0
# Range of the pitch of voices, and the frequencies used to detect it, which telephones transmit.
LOWEST_PITCH_HZ, HIGHEST_PITCH_HZ = 65.0, 420.0
VOICE_LOWEST_HZ, VOICE_HIGHEST_HZ = 100.0, 1600.0
# Width of the moving average that flattens the spectrum, larger than the distance between harmonics.
ENVELOPE_HZ = 500.0
# Power relative to the quietest frames up to which sound is treated as noise or hum and does not count as periodic.
STEADY_FACTOR = 3.0
# Constant that keeps quotients of powers finite, far less than the square of any sample.
SMALLEST_POWER = 1e-30
# Peak of the autocorrelation, relative to lag 0, from which a frame is voiced.
VOICED_PEAK = 0.4
# Least number of consecutive voiced frames in a syllable; two clicks within one frame produce fewer.
SHORTEST_VOICED = 5
# Distances from a voiced frame within which all frames count as speech (half a consonant), and risen ones (a cluster).
CARRIED_SECONDS, REACH_SECONDS = 0.05, 0.25
# Detectors of speech: as in version 0.1.0, voiced speech only; voiced and whispered speech; a function of the caller.
VOICED, VOICED_OR_WHISPERED, CUSTOM = "voiced", "voiced or whispered", "custom"
DETECTORS = (VOICED, VOICED_OR_WHISPERED, CUSTOM)
Vad = Callable[[np.ndarray, int], Any] | str | None
# Least number of consecutive risen frames in whispering; one click raises the level of five.
SHORTEST_WHISPER = 10
# Number of frames over which the spectrum is averaged, and its least standard deviation over time in dB: bursts of
# noise have 1.3 dB, whispering 4 dB and more.
SMOOTHED_FRAMES, CHANGE_DB = 5, 3.0
# Longest pause that belongs to fluent speech, such as the closure of a plosive or a breath between words.
LONGEST_PAUSE = 0.3
# Seconds of a recording that are measured to weight its pieces; this bounds the computation for recordings of hours.
MOST_WEIGHED = 600.0
# Least number of consecutive equal samples, at the largest or smallest value, that indicates clipping.
CLIPPED_RUN = 3


@dataclass(frozen=True)
class SpeechMeasures:
    """Measurements of the speech in a recording.

    Attributes:
        duration: duration in seconds.
        speech: seconds of speech, including pauses of up to 0.3 s; in [0, duration].
        snr_db: signal-to-noise ratio of the speech in dB, in [-10, 60]; -10 if there is no speech.
        clipped: share of clipped samples, in [0, 1].
        level_db: root mean square level in dBFS; at least -120.
        is_whispered: whether all speech was found without a voice: it is whispered, or a noise like it.
    """

    duration: float
    speech: float
    snr_db: float
    clipped: float
    level_db: float
    is_whispered: bool = False


class _Block(NamedTuple):
    """Measurements of one block: whether each frame is speech, its power, the noise power, and whether it has voice."""

    speech: np.ndarray
    power: np.ndarray
    noise: float
    is_voiced: bool


def measure_speech(waveform: np.ndarray, sampling_rate: int, vad: Vad = None) -> SpeechMeasures:
    """Measure how much speech a waveform contains, and how clean it is.

    Args:
        waveform: floating-point samples `(L,)` in [-1, 1], of any length.
        sampling_rate: sampling rate in Hz, at least 8000.
        vad: detector of speech: `"voiced or whispered"` (the default), `"voiced"` (as in version 0.1.0), or a function
            that maps the waveform and the sampling rate to boolean frames `(T,)`, which divide the waveform evenly, or
            to intervals `(N, 2)` in seconds.

    Raises:
        ValueError: the waveform is not a finite floating-point vector, the sampling rate is below 8 kHz, or `vad` is
            unknown or returns something else.
    """
    samples = np.asarray(waveform)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"Expected one channel of floating-point samples in [-1, 1] of shape (samples,), got {samples.dtype} of "
            f"shape {samples.shape}. Average the channels, and divide 16-bit audio by 32768."
        )
    if not np.isfinite(samples).all():
        raise ValueError("The recording contains NaN or infinite samples. Convert it again from the original.")
    if not callable(vad) and vad not in (None, VOICED, VOICED_OR_WHISPERED):
        raise ValueError(f"vad must be a function, {VOICED!r}, {VOICED_OR_WHISPERED!r} or None, got {vad!r}.")
    samples = samples.astype(np.float32, copy=False)
    if sampling_rate < 2 * HIGHEST_HZ:
        raise ValueError(f"The sampling rate must be at least 8000 Hz to measure speech, got {sampling_rate} Hz.")
    duration = len(samples) / sampling_rate
    frame = round(FRAME_SECONDS * sampling_rate)
    level = _decibels(float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0)
    if len(samples) < 2 * frame:
        return SpeechMeasures(duration, 0.0, LOWEST_SNR_DB, _clipped_share(samples), level)
    count = -(-len(samples) // round(BLOCK_SECONDS * sampling_rate))
    parts = np.array_split(samples, count)
    marks: list[Any] = [VOICED_OR_WHISPERED if vad is None else vad] * count
    if callable(vad):
        starts = np.cumsum([0, *map(len, parts)]) / sampling_rate
        is_speech = _speech_at(vad(samples, sampling_rate), duration)
        marks = [lambda times, start=start: is_speech(start + times) for start in starts[:-1]]
    blocks = [_measure_block(part, sampling_rate, mark) for part, mark in zip(parts, marks, strict=True)]
    frames = sum(int(block.speech.sum()) for block in blocks)
    total = sum(len(block.speech) for block in blocks)
    signal = sum(float(block.power[block.speech].sum()) for block in blocks)
    noise = sum(block.noise * int(block.speech.sum()) for block in blocks)
    # The frames of speech contain speech and noise.
    snr = _decibels(max(signal - noise, 0.0)) - _decibels(noise) if frames else LOWEST_SNR_DB
    snr = min(max(snr, LOWEST_SNR_DB), HIGHEST_SNR_DB)
    is_whispered = frames > 0 and not any(block.is_voiced for block in blocks)
    return SpeechMeasures(duration, duration * frames / total, snr, _clipped_share(samples), level, is_whispered)


def _speech_at(found: Any, duration: float) -> Callable[[np.ndarray], Any]:
    """Return a function that tells, for times in seconds, whether a result of the caller's detector is speech there."""
    marks = np.asarray(found)
    if marks.dtype == bool and marks.ndim == 1 and len(marks):
        return lambda times: marks[np.minimum((times / duration * len(marks)).astype(int), len(marks) - 1)]
    intervals = marks.reshape(-1, 2) if marks.size == 0 else marks
    if intervals.ndim != 2 or intervals.shape[1] != 2 or not np.issubdtype(intervals.dtype, np.number):
        raise ValueError(
            "The speech detector (vad) must return boolean frames (T,), or intervals (N, 2) with begin and end in "
            f"seconds, got {marks.dtype} of shape {marks.shape}."
        )
    begins, ends = intervals.T
    return lambda times: np.any((begins <= times[:, None]) & (times[:, None] < ends), axis=1)


def speech_weights(pieces: Sequence[np.ndarray], sampling_rate: int) -> list[float]:
    """Return the seconds of speech of each piece `(L,)`, or 1 for each piece if no speech was measured in any.

    Of pieces of more than 600 s together, only the middle of each is measured, the same share of each and 600 s in all.
    """
    weights = [0.0]
    if len(pieces) > 1 and sampling_rate >= 2 * HIGHEST_HZ:
        share = min(1.0, MOST_WEIGHED * sampling_rate / sum(map(len, pieces)))
        sizes = [int(len(piece) * share) for piece in pieces]
        middles = [piece[(len(piece) - size) // 2 :][:size] for piece, size in zip(pieces, sizes, strict=True)]
        weights = [measure_speech(middle, sampling_rate).speech for middle in middles]
    return weights if any(weights) else [1.0] * len(pieces)


def _power(decibels: float) -> float:
    return 10 ** (decibels / 10)


def _decibels(power: float) -> float:
    return max(10 * float(np.log10(max(power, SMALLEST_POWER))), LOWEST_LEVEL_DB)


def _clipped_share(samples: np.ndarray) -> float:
    """Return the share of clipped samples: three or more adjacent samples at the recording's maximum or minimum."""
    if len(samples) < CLIPPED_RUN or float(samples.max()) == float(samples.min()):
        return 0.0
    runs = [_run_lengths(samples == extreme)[1::2] for extreme in (samples.max(), samples.min())]
    return sum(int(lengths[lengths >= CLIPPED_RUN].sum()) for lengths in runs) / len(samples)


def _measure_block(samples: np.ndarray, sampling_rate: int, vad: Any) -> _Block:
    """Measure a block; `vad` is the name of a detector, or a function of the times of frames in seconds."""
    frame, hop = round(FRAME_SECONDS * sampling_rate), round(HOP_SECONDS * sampling_rate)
    size = round(SPECTRUM_SECONDS * sampling_rate)
    window = np.hanning(frame).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop] * window
    bins = int(HIGHEST_HZ * SPECTRUM_SECONDS) + 1
    # Scaled so that the sum over all bins, for positive and negative frequencies, is the mean square of the frame.
    spectrum = np.fft.rfft(frames, size)[:, :bins]
    power = (spectrum.real**2 + spectrum.imag**2) / np.float32(size * float(np.square(window).sum()))
    edges = np.rint(np.arange(LOWEST_HZ, HIGHEST_HZ + 1, BAND_HZ) * SPECTRUM_SECONDS).astype(int)
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    floor = np.quantile(bands, FLOOR_QUANTILE, axis=0)
    quiet = _power(QUANTISATION_DB) * BAND_HZ / (sampling_rate / 2)
    least = np.maximum(np.maximum(floor, quiet) * _power(RISE_DB), bands.max(1, keepdims=True) * _power(-RANGE_DB))
    risen = (bands > least).sum(1) >= RISEN_BANDS
    voiced = _long_runs(risen & (_periodicity(power) > VOICED_PEAK), SHORTEST_VOICED)
    near = _dilate(voiced, round(CARRIED_SECONDS / HOP_SECONDS))
    carried = risen & _dilate(voiced, round(REACH_SECONDS / HOP_SECONDS))
    speech, is_voiced = _close_gaps(near | carried, round(LONGEST_PAUSE / HOP_SECONDS)), bool(voiced.any())
    if not isinstance(vad, str):
        speech, is_voiced = vad(np.arange(len(frames)) * HOP_SECONDS + FRAME_SECONDS / 2), True
    elif vad == VOICED_OR_WHISPERED and not is_voiced:
        speech = _whispered(bands, risen)
    noise = float(floor.sum(dtype=np.float64)) * _power(FLOOR_BIAS_DB)
    return _Block(speech, bands.sum(1, dtype=np.float64), noise, is_voiced)


def _whispered(bands: np.ndarray, risen: np.ndarray) -> np.ndarray:
    """Return the frames `(T,)` of whispering, given the power in bands `(T, F)`; none if the spectrum is steady."""
    long = _long_runs(risen, SHORTEST_WHISPER)
    if long.sum() < 2 * SHORTEST_WHISPER:
        return np.zeros_like(risen)
    levels = 10 * np.log10(bands[long] + SMALLEST_POWER)
    shapes = levels - levels.mean(1, keepdims=True)
    smooth = np.lib.stride_tricks.sliding_window_view(shapes, SMOOTHED_FRAMES, axis=0).mean(-1)
    changes = float(np.sqrt(smooth.var(axis=0).mean())) >= CHANGE_DB
    return _close_gaps(long, round(LONGEST_PAUSE / HOP_SECONDS)) if changes else np.zeros_like(risen)


def _periodicity(power: np.ndarray) -> np.ndarray:
    """Return the largest autocorrelation `(T,)` of flattened spectra at pitch periods of voices, relative to lag 0."""
    low, high = round(VOICE_LOWEST_HZ * SPECTRUM_SECONDS), round(VOICE_HIGHEST_HZ * SPECTRUM_SECONDS)
    width = round(ENVELOPE_HZ * SPECTRUM_SECONDS) | 1
    padded = np.pad(power[:, :high], ((0, 0), (width // 2 + 1, width // 2)), mode="reflect")
    sums = np.cumsum(padded, axis=1, dtype=np.float64)
    envelope = (sums[:, width:] - sums[:, :-width]) / width
    steady = np.quantile(envelope, FLOOR_QUANTILE, axis=0)
    gain = np.clip(1 - STEADY_FACTOR * steady / (envelope + SMALLEST_POWER), 0, 1)
    flat = power[:, :high] * (gain / (envelope + SMALLEST_POWER))
    flat[:, :low] = 0
    correlation, rate = np.fft.irfft(flat, 2 * high), 2 * high / SPECTRUM_SECONDS
    lags = slice(int(rate / HIGHEST_PITCH_HZ), int(rate / LOWEST_PITCH_HZ) + 1)
    return correlation[:, lags].max(1) / np.maximum(correlation[:, 0], SMALLEST_POWER)


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """Return the lengths of alternating runs of False and True. The first and last run are of False; they may be 0."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return np.diff(edges, prepend=0, append=len(mask))


def _long_runs(mask: np.ndarray, shortest: int) -> np.ndarray:
    """Return the mask with only those runs of True that have at least `shortest` frames."""
    lengths = _run_lengths(mask)
    is_long = lengths >= shortest
    is_long[::2] = False
    return np.repeat(is_long, lengths)


def _close_gaps(mask: np.ndarray, longest: int) -> np.ndarray:
    """Return the mask with gaps of at most `longest` frames between runs of True filled."""
    lengths = _run_lengths(mask)
    is_filled = lengths <= longest
    is_filled[1::2] = True
    is_filled[[0, -1]] = False
    return np.repeat(is_filled, lengths)


def _dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Return the mask with each run of True extended by `reach` frames on both sides."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(mask, reach), 2 * reach + 1).max(1)
