"""Apply recording conditions of a given strength, for sweeps over duration, noise, reverberation, codec and bandwidth.

Each condition changes a clean recording in one way. Random choices (the position of a crop, the noise, the room) depend
only on the name of the file. A file therefore sounds the same in all trials, and the conditions of a sweep differ only
in strength.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from ..audio_hamspk import resample
from .augmentation import add_at_snr, coloured_noise, limit_band, reverberate, room_response, telephone
from .crops import random_crop

Change = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""Function that changes a waveform `(L,)` with a given sampling rate and random generator."""

# Exponent of the power spectrum 1/f^slope of the noise, between the hiss of electronics and the rumble of traffic.
SWEEP_NOISE_SLOPE = 1.0
# Ratio of the energy of the direct sound to the energy of the reverberation in dB, as at a distance of some metres.
DIRECT_DB = 0.0
# Lower cut-off of the bandwidth sweep, below the frequencies of speech. The sweep changes only the upper cut-off.
SWEEP_LOWEST_HZ = 50.0
DURATIONS_S = (1.0, 2.0, 3.0, 5.0)
SNRS_DB = (20.0, 15.0, 10.0, 5.0, 0.0)
RT60S_S = (0.2, 0.4, 0.7, 1.0)
CUT_OFFS_HZ = (5000.0, 3400.0, 2500.0, 1500.0)


@dataclass(frozen=True)
class Condition:
    """Recording condition of a sweep.

    Attributes:
        label: name of the condition, with a unit.
        change: function that applies the condition to a clean recording; None leaves recordings unchanged.
        value: strength of the condition, for the axis of a plot; None if the conditions of the sweep have no order.
    """

    label: str
    change: Change | None
    value: float | None = None

    def apply(self, waveform: np.ndarray, sampling_rate: int, name: str) -> np.ndarray:
        """Apply the condition to a recording.

        Args:
            waveform: float32 samples `(L,)`.
            sampling_rate: sampling rate in Hz.
            name: name of the file, which seeds the random choices.

        Returns:
            Float32 samples `(M,)`; M differs from L only in the sweep "duration".
        """
        if self.change is None:
            return waveform
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        return self.change(waveform, sampling_rate, generator).astype(np.float32, copy=False)


def sweep_conditions(kind: str, values: Sequence[float] | None = None) -> list[Condition]:
    """Return the conditions of a sweep. The first one leaves recordings unchanged.

    Args:
        kind: name of the sweep, one of `SWEEPS`. `"duration"` cuts a random crop of the given length in seconds and
            leaves shorter recordings unchanged. `"snr"` adds noise with the power spectrum 1/f at the given
            signal-to-noise ratio in dB. `"reverberation"` applies a synthetic room with the given RT60 in seconds and
            equal energies of direct and reverberant sound. `"bandwidth"` applies a low-pass with the given cut-off in
            Hz. `"codec"` applies five codecs, one per condition: G.711 mu-law and A-law in a telephone band, and Opus,
            Vorbis and MP3 with the default settings of their encoders.
        values: strengths of the conditions; None selects the default strengths. It must be None for `"codec"`.

    Raises:
        ValueError: the kind is unknown, values are given for `"codec"`, a value is not finite, or a value other than an
            SNR is not above 0.
    """
    if kind not in SWEEPS:
        raise ValueError(f"The condition to sweep over must be one of {', '.join(SWEEPS)}, got {kind!r}.")
    clean = Condition("as it is", None)
    if kind == "codec":
        if values is not None:
            raise ValueError("The sweep 'codec' has no strengths, but values were given. Omit the values.")
        return [clean, *(Condition(label, change) for label, change in _CODECS.items())]
    usual, unit, make = _STRENGTHS[kind]
    steps = usual if values is None else values
    for value in steps:
        if not np.isfinite(value) or (kind != "snr" and value <= 0):
            raise ValueError(
                f"The values of {kind!r} must be finite{'' if kind == 'snr' else ' and above 0'}, got {value:g} {unit}."
            )
    return [clean, *(Condition(f"{value:g} {unit}", make(value), float(value)) for value in steps)]


def _shorten(seconds: float) -> Change:
    def change(waveform: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
        samples = round(seconds * rate)
        return random_crop(waveform, samples, generator) if len(waveform) > samples else waveform

    return change


def _add_noise(snr_db: float) -> Change:
    def change(waveform: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
        return add_at_snr(waveform, coloured_noise(len(waveform), SWEEP_NOISE_SLOPE, generator), snr_db)

    return change


def _reverberate(rt60: float) -> Change:
    def change(waveform: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
        return reverberate(waveform, room_response(rt60, DIRECT_DB, rate, generator))

    return change


def _low_pass(cut_off: float) -> Change:
    def change(waveform: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
        return limit_band(waveform, SWEEP_LOWEST_HZ, cut_off, rate)

    return change


def _through_file(waveform: np.ndarray, rate: int, container: str, subtype: str) -> np.ndarray:
    """Encode and decode a waveform with libsndfile, and restore its original length."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1.0, 1.0), rate, format=container, subtype=subtype)
    buffer.seek(0)
    decoded, found = soundfile.read(buffer, dtype="float32")
    decoded = resample(decoded, found, rate) if found != rate else decoded
    # Some encoders change the length.
    return np.pad(decoded[: len(waveform)], (0, max(0, len(waveform) - len(decoded))))


def _codec(container: str, subtype: str) -> Change:
    return lambda waveform, rate, _: _through_file(waveform, rate, container, subtype)


def _telephone(law: str) -> Change:
    return lambda waveform, rate, _: telephone(waveform, law, rate)


_STRENGTHS: dict[str, tuple[tuple[float, ...], str, Callable[[float], Change]]] = {
    "duration": (DURATIONS_S, "s", _shorten),
    "snr": (SNRS_DB, "dB", _add_noise),
    "reverberation": (RT60S_S, "s", _reverberate),
    "bandwidth": (CUT_OFFS_HZ, "Hz", _low_pass),
}
_CODECS: dict[str, Change] = {
    "telephone, mu-law": _telephone("mu"),
    "telephone, A-law": _telephone("a"),
    "Opus": _codec("OGG", "OPUS"),
    "Vorbis": _codec("OGG", "VORBIS"),
    "MP3": _codec("MP3", "MPEG_LAYER_III"),
}
SWEEPS = (*_STRENGTHS, "codec")
