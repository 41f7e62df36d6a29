"""Synthesise speech of artificial speakers, for demonstrations and tests that need no downloads.

This is a source-filter synthesiser in NumPy. Glottal pulses with jitter, shimmer and a pitch contour, together with
breath and friction noise, pass through moving formants. For a speaker, pitch, vocal tract, formants, breathiness, tilt
and rate are drawn at random. For an utterance, words, mean pitch and channel (microphone, noise, level) are drawn.
Frames are filtered in the frequency domain, which is fast. Error rates on this speech show that a pipeline works. They
say nothing about real voices.
"""

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from .audio import SAMPLING_RATE

FRAMES_PER_SECOND = 100
"""Number of frames per second. The parameters of the voice change every 10 ms, the usual frame shift."""

VOWELS_HZ = np.array(
    [
        [280, 2250, 2900],
        [400, 2000, 2550],
        [550, 1800, 2480],
        [680, 1650, 2420],
        [740, 1150, 2450],
        [600, 900, 2450],
        [450, 1000, 2300],
        [310, 870, 2250],
        [500, 1350, 1750],
        [620, 1250, 2400],
    ],
    dtype=np.float32,
)
"""First three formants of ten vowels in Hz, near the averages of adult men in the phonetic literature."""

UPPER_FORMANTS_HZ = np.array([3500.0, 4400.0, 5600.0], dtype=np.float32)
"""Formants 4 to 6 in Hz. They hardly depend on the words, so they characterise the speaker."""

BANDWIDTHS_HZ = np.array([80.0, 90.0, 110.0, 140.0, 180.0, 220.0], dtype=np.float32)

FORMANT_PEAK = 10.0
"""Height of a formant over the surrounding spectrum, as an amplitude ratio: 20 dB."""

TILT_FROM_HZ = 300.0
"""Frequency in Hz up to which the glottal spectrum is approximately flat. Above it, the spectrum falls."""

DB_PER_OCTAVE_OF_POWER = 20.0 * np.log10(2.0)
"""Fall of the power response `(1 + f^2 / f0^2)^-1` above `f0`: 6.02 dB per octave."""

NOISE_CENTRES_HZ = (1400.0, 6500.0)
"""Range of the centre frequency of consonant noise in Hz, from the burst of a "k" to an "s"."""

GROUP_PITCH_HZ = (118.0, 205.0)
GROUP_TRACT = (1.0, 1.15)
"""Mean pitch in Hz and formant scale of two equally frequent groups of voices, near the averages of men and women."""

SYNTHETIC_SNR_DB = (15.0, 30.0)
MICROPHONE_DB = 2.5
"""Standard deviation in dB of each smooth bump in a microphone's response."""

LEVEL_DBFS = (-32.0, -18.0)
"""Range of the RMS level of an utterance in dBFS."""

PEAK = 0.98
"""Largest sample, slightly below full scale, so that 16-bit files do not clip."""

UTTERANCES_PER_SESSION = 4

SPEAKERS_PER_SEED = 1_000_000
"""Number of speaker seeds reserved for each corpus seed, so that corpora of different seeds share no speakers."""

MAX_TARGETS = 5_000
IMPOSTORS_PER_TARGET = 3
"""Number of impostor trials per target trial.

At most 20,000 trials are drawn, about half as many as in VoxCeleb1-O. They suffice to measure an EER to within 1 %, and
scoring them takes a second.
"""

DRAWS_PER_IMPOSTOR = 8
"""Number of random pairs drawn per impostor trial.

Half of them are discarded because they are in the wrong order, and some because they are repeated or have one speaker.
"""

FLOOR = 1e-9
"""Small constant, far below any sample, that prevents division by zero in silence."""


@dataclass(frozen=True)
class Speaker:
    """Parameters of a synthetic speaker that are the same in all utterances.

    Attributes:
        pitch: mean fundamental frequency in Hz.
        tract: factor on all formants, inversely proportional to the length of the vocal tract.
        formants: factors on the six formants, `(6,)`.
        vowels: factors on the formants of each vowel (an accent), `(10, 3)`.
        bandwidth: factor on the bandwidths.
        breath: level of the breath noise, relative to the pulses.
        tilt: fall of the glottal spectrum in dB per octave.
        rate: number of sounds per second.
        liveliness: standard deviation of the pitch within an utterance, in octaves.
        jitter: standard deviation of a pulse's time, in periods.
        friction: factor on the frequencies of consonant noise.
    """

    pitch: float
    tract: float
    formants: np.ndarray
    vowels: np.ndarray
    bandwidth: float
    breath: float
    tilt: float
    rate: float
    liveliness: float
    jitter: float
    friction: float


@dataclass(frozen=True)
class Frames:
    """Parameters of the voice in `T` frames of 10 ms.

    Attributes:
        pitch: fundamental frequency in Hz, `(T,)`.
        voicing: amplitude of the pulses, `(T,)`.
        friction: amplitude of the consonant noise, `(T,)`.
        centre: centre of the consonant noise in Hz, `(T,)`.
        formants: frequency of each formant in Hz, `(T, 6)`.
    """

    pitch: np.ndarray
    voicing: np.ndarray
    friction: np.ndarray
    centre: np.ndarray
    formants: np.ndarray


def draw_speaker(speaker_seed: int) -> Speaker:
    """Draw the speaker that belongs to a seed. The seed must be at least 0."""
    draw = np.random.default_rng((speaker_seed, 1))
    group = int(draw.integers(2))
    return Speaker(
        pitch=GROUP_PITCH_HZ[group] * 2.0 ** draw.normal(0.0, 0.22),
        tract=GROUP_TRACT[group] * np.exp(draw.normal(0.0, 0.05)),
        formants=np.exp(draw.normal(0.0, 0.055, 6)).astype(np.float32),
        vowels=np.exp(draw.normal(0.0, 0.06, VOWELS_HZ.shape)).astype(np.float32),
        bandwidth=float(np.exp(draw.normal(0.0, 0.25))),
        breath=float(10.0 ** draw.uniform(-1.6, -0.6)),
        tilt=float(draw.uniform(6.0, 11.0)),
        rate=float(draw.uniform(8.0, 13.0)),
        liveliness=float(draw.uniform(0.05, 0.25)),
        jitter=float(draw.uniform(0.003, 0.02)),
        friction=float(np.exp(draw.normal(0.0, 0.12))),
    )


def make_speech(
    speaker_seed: int, utterance_seed: int, duration: float = 2.0, sampling_rate: int = SAMPLING_RATE
) -> np.ndarray:
    """Synthesise an utterance of a synthetic speaker. The same arguments give the same samples on the same machine.

    Args:
        speaker_seed: random seed of the speaker, at least 0.
        utterance_seed: random seed of the utterance, at least 0. The same seed gives each speaker different words.
        duration: duration in seconds, at least 0.1.
        sampling_rate: sampling rate in Hz, at least 8000.

    Returns:
        Float32 samples `(round(duration * sampling_rate),)` between -1 and 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if min(speaker_seed, utterance_seed) < 0:
        raise ValueError(
            f"speaker_seed and utterance_seed must be at least 0, got {speaker_seed} and {utterance_seed}."
        )
    if duration < 0.1 or sampling_rate < 8000:
        raise ValueError(
            f"duration must be at least 0.1 s and sampling_rate at least 8000 Hz, got {duration} and {sampling_rate}."
        )
    speaker = draw_speaker(speaker_seed)
    draw = np.random.default_rng((speaker_seed, utterance_seed, 2))
    samples = round(duration * sampling_rate)
    hop = sampling_rate // FRAMES_PER_SECOND
    frames = _articulate(speaker, -(-samples // hop) + 2, draw)
    return _record(_sound(speaker, frames, sampling_rate, draw)[:samples], sampling_rate, draw)


def _articulate(speaker: Speaker, count: int, draw: np.random.Generator) -> Frames:
    """Return `count` frames of random words, which consist of vowels, consonants and pauses."""
    pitch_shift = draw.normal(0.0, 0.06)  # in octaves, for the whole utterance
    rate = speaker.rate * np.exp(draw.normal(0.0, 0.1))
    lengths = np.maximum(3, np.rint(draw.gamma(4.0, FRAMES_PER_SECOND / rate / 4.0, 2 + count // 3))).astype(int)
    owner = np.repeat(np.arange(len(lengths)), lengths)[:count]
    sounds = int(owner[-1]) + 1
    vowel = draw.integers(len(VOWELS_HZ), size=sounds)
    # Every other sound is a consonant: voiced (quiet, no noise), fricative, plosive, or a pause.
    role = np.where(
        np.arange(sounds) % 2 == 0, 0, draw.choice([0, 1, 2, 3, 4], size=sounds, p=[0.2, 0.3, 0.25, 0.17, 0.08])
    )
    voicing = np.choose(role, [1.0, 0.35, 0.0, 0.0, 0.0]) * draw.uniform(0.6, 1.0, sounds)
    friction = np.choose(role, [0.0, 0.0, 0.35, 0.6, 0.0]) * draw.uniform(0.4, 1.0, sounds)
    centre = draw.uniform(*NOISE_CENTRES_HZ, sounds) * speaker.friction
    lower = VOWELS_HZ[vowel] * speaker.vowels[vowel]
    formants = np.concatenate([lower, np.broadcast_to(UPPER_FORMANTS_HZ, (sounds, 3))], axis=1)
    formants = formants * (speaker.tract * speaker.formants)
    noise = friction[owner]
    # A plosive is silent except for the burst in its last frame.
    last = np.append(owner[1:] != owner[:-1], True)
    noise = np.where((role[owner] == 3) & ~last, 0.0, noise)
    wander = _smooth(draw.standard_normal(count), 25)
    declination = np.linspace(0.1, -0.1, count)
    octaves = pitch_shift + declination + speaker.liveliness * wander / (wander.std() + FLOOR)
    return Frames(
        pitch=np.clip(speaker.pitch * 2.0**octaves, 50.0, 500.0),
        voicing=_smooth(voicing[owner], 3).astype(np.float32),
        friction=noise.astype(np.float32),
        centre=centre[owner].astype(np.float32),
        formants=np.stack([_smooth(track, 7) for track in formants[owner].T], axis=1).astype(np.float32),
    )


def _sound(speaker: Speaker, frames: Frames, sampling_rate: int, draw: np.random.Generator) -> np.ndarray:
    """Return the filtered sound sources, `(T * hop,)` float32. The level is arbitrary."""
    hop = sampling_rate // FRAMES_PER_SECOND
    count = len(frames.pitch)
    pulses = _pulses(speaker, frames, hop, sampling_rate, draw)
    breath = draw.standard_normal(count * hop, dtype=np.float32) * np.float32(speaker.breath)
    friction = draw.standard_normal(count * hop, dtype=np.float32)
    hertz = np.arange(3 * hop // 2 + 1, dtype=np.float32) * np.float32(sampling_rate / (3 * hop))
    # Breath noise follows the voicing, and a little of it remains in pauses.
    voice = _analyse(pulses + breath * np.repeat(frames.voicing + 0.02, hop), hop)
    voice *= _formant_gain(speaker, frames.formants, hertz)
    distance = np.log2((hertz + 50.0) / frames.centre[:, None])  # octaves, Gaussian around the centre
    noise = _analyse(friction, hop) * (frames.friction[:, None] * np.exp(-3.0 * distance**2))
    return _overlap_add(voice + noise, hop)


def _pulses(speaker: Speaker, frames: Frames, hop: int, sampling_rate: int, draw: np.random.Generator) -> np.ndarray:
    """Return the glottal pulses, `(T * hop,)` float32. Each is split between the two samples around its time."""
    samples = len(frames.pitch) * hop
    grid = np.arange(0, samples + 1, hop)
    phase = np.concatenate([[0.0], np.cumsum(frames.pitch) * hop / sampling_rate])  # periods at the frames' edges
    instants = np.arange(1, int(phase[-1]), dtype=np.float64)
    instants += draw.normal(0.0, speaker.jitter, len(instants))
    times = np.clip(np.interp(instants, phase, grid), 0.0, samples - 2.0)
    whole = times.astype(np.int64)
    part = times - whole
    # The amplitude sqrt(period) gives every pitch the same power.
    height = frames.voicing[whole // hop] * np.sqrt(sampling_rate / frames.pitch[whole // hop])
    height = height * (1.0 + draw.normal(0.0, 2.0 * speaker.jitter, len(height)))
    pulses = np.bincount(whole, height * (1.0 - part), samples) + np.bincount(whole + 1, height * part, samples)
    return pulses.astype(np.float32)


def _formant_gain(speaker: Speaker, formants: np.ndarray, hertz: np.ndarray) -> np.ndarray:
    """Return the magnitude response of vocal tract and glottal tilt, `(T, bins)` float32. It is 1 at 0 Hz."""
    gain = np.ones((len(formants), len(hertz)), dtype=np.float32)
    squared = hertz**2
    # Each formant is a resonance divided by another that is FORMANT_PEAK times as damped. Far from the formant the gain
    # is 1, so the formants above the sixth, which are left out, need no correction.
    for track, bandwidth in zip(formants.T, BANDWIDTHS_HZ * speaker.bandwidth, strict=True):
        distance = (squared - (track**2)[:, None]) ** 2
        damping = np.float32(bandwidth**2) * squared
        gain *= (distance + np.float32(FORMANT_PEAK**2) * damping) / (distance + damping + np.float32(FLOOR))
    tilt = (1.0 + squared / np.float32(TILT_FROM_HZ**2)) ** np.float32(-speaker.tilt / DB_PER_OCTAVE_OF_POWER)
    return np.sqrt(gain) * np.sqrt(tilt)


def _analyse(signal: np.ndarray, hop: int) -> np.ndarray:
    """Return the short-time spectrum, `(T, 3 hop // 2 + 1)` complex64.

    The Hann windows are two hops long and add up to one.
    """
    blocks = signal.reshape(-1, hop)
    following = np.concatenate([blocks[1:], np.zeros((1, hop), np.float32)])
    window = (0.5 - 0.5 * np.cos(np.pi * np.arange(2 * hop) / hop)).astype(np.float32)
    return np.fft.rfft(np.concatenate([blocks, following], axis=1) * window, 3 * hop)


def _overlap_add(spectrum: np.ndarray, hop: int) -> np.ndarray:
    """Convert a spectrum back to samples, `(T * hop,)` float32, by adding the overlapping windows."""
    # The filters have zero phase, so half of their response precedes the frame. Rolling by half a hop keeps it there.
    pieces = np.roll(np.fft.irfft(spectrum, 3 * hop), hop // 2, axis=1).reshape(len(spectrum), 3, hop)
    total = pieces[:, 0].copy()
    total[1:] += pieces[:-1, 1]
    total[2:] += pieces[:-2, 2]
    return total.reshape(-1).astype(np.float32, copy=False)


def _record(speech: np.ndarray, sampling_rate: int, draw: np.random.Generator) -> np.ndarray:
    """Apply a random recording channel: a microphone response with smooth bumps, noise and a level.

    The result is float32 `(L,)`.
    """
    spectrum = np.fft.rfft(speech)
    octaves = np.log2(np.linspace(1.0, 100.0, len(spectrum), dtype=np.float32)) / np.float32(np.log2(100.0))
    response = sum(draw.normal(0.0, MICROPHONE_DB) * np.cos(np.float32(np.pi * wave) * octaves) for wave in range(1, 5))
    noise = draw.standard_normal(len(speech), dtype=np.float32)
    colour = draw.uniform(0.0, 0.95)
    noise[1:] += np.float32(colour) * noise[:-1]
    clean = np.fft.irfft(spectrum * 10.0 ** (response / np.float32(20.0)), len(speech))
    clean /= np.sqrt(np.mean(clean**2)) + FLOOR
    noise *= 10.0 ** (-draw.uniform(*SYNTHETIC_SNR_DB) / 20.0) / (np.sqrt(np.mean(noise**2)) + FLOOR)
    mixed = (clean + noise) * 10.0 ** (draw.uniform(*LEVEL_DBFS) / 20.0)
    return (mixed * min(1.0, PEAK / (float(np.abs(mixed).max()) + FLOOR))).astype(np.float32)


def _smooth(track: np.ndarray, width: int) -> np.ndarray:
    """Return the moving average over an odd number of frames. The first and last frames are repeated at the ends."""
    padded = np.pad(track, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1.0 / width), mode="valid")


def make_corpus(
    folder: str | Path,
    speakers: int = 100,
    utterances: int = 10,
    seed: int = 0,
    duration_range: tuple[float, float] = (2.0, 4.0),
    test_share: float = 0.2,
    sampling_rate: int = SAMPLING_RATE,
) -> Path:
    """Write a corpus of synthetic speakers in the layout of VoxCeleb.

    The folders `train/` and `test/` contain files `speaker/session/utterance.flac`, and share no speakers. The files
    `train.csv` and `test.csv` have the columns path, speaker_id, session and duration_s. The file `trials.txt` has the
    trials of the test speakers, in lines `label enrolment test` with the label 1 for the same speaker. All paths are
    relative to `folder`.

    Args:
        folder: folder of the corpus. It is created if it does not exist, and must not already contain a corpus.
        speakers: number of speakers in all, at least 4.
        utterances: number of utterances of each speaker, at least 2.
        seed: random seed, at least 0. Corpora of different seeds share no speakers.
        duration_range: shortest and longest duration of an utterance in seconds, at least 0.1.
        test_share: fraction of the speakers used for testing, between 0 and 1. At least 2 speakers are used.
        sampling_rate: sampling rate in Hz.

    Returns:
        The path `folder`.

    Raises:
        ValueError: an argument is out of range, or the folder contains a corpus.
    """
    root = Path(folder)
    _check_corpus_arguments(root, speakers, utterances, seed, duration_range, test_share)
    testing = min(max(2, round(speakers * test_share)), speakers - 2)
    draw = np.random.default_rng((seed, 3))
    root.mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", range(speakers - testing)), ("test", range(speakers - testing, speakers))):
        rows = []
        for number, utterance in itertools.product(numbers, range(utterances)):
            duration = float(draw.uniform(*duration_range))
            session = f"s{utterance // UTTERANCES_PER_SESSION:02d}"
            path = f"{split}/syn{number:05d}/{session}/u{utterance:04d}.flac"
            speech = make_speech(seed * SPEAKERS_PER_SEED + number, utterance, duration, sampling_rate)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            sf.write(root / path, speech, sampling_rate, subtype="PCM_16")
            rows.append((path, f"syn{number:05d}", session, f"{len(speech) / sampling_rate:.3f}"))
        with open(root / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "speaker_id", "session", "duration_s"), *rows])
    trials = _draw_trials([(row[0], row[1]) for row in rows], draw)
    (root / "trials.txt").write_text("".join(f"{trial}\n" for trial in trials), encoding="utf-8")
    return root


def _check_corpus_arguments(
    root: Path, speakers: int, utterances: int, seed: int, duration_range: tuple[float, float], test_share: float
) -> None:
    if not 4 <= speakers <= SPEAKERS_PER_SEED or utterances < 2 or seed < 0:
        raise ValueError(
            f"speakers must be from 4 to {SPEAKERS_PER_SEED} (2 each for training and testing), utterances at least "
            f"2 (for target trials) and seed at least 0, got {speakers}, {utterances} and {seed}."
        )
    if not 0.1 <= duration_range[0] <= duration_range[1]:
        raise ValueError(f"duration_range must be (shortest, longest) in seconds, at least 0.1, got {duration_range}.")
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share must be between 0 and 1, got {test_share}.")
    taken = [name for name in ("train", "test", "train.csv", "test.csv", "trials.txt") if (root / name).exists()]
    if taken:
        raise ValueError(f"{root} already contains {', '.join(taken)}. Choose another folder.")


def _draw_trials(utterances: list[tuple[str, str]], draw: np.random.Generator) -> list[str]:
    """Return lines `label enrolment test` of all target pairs and of three times as many impostor pairs.

    If there are more than `MAX_TARGETS` target pairs, `MAX_TARGETS` of them are drawn at random.
    """
    total = len(utterances)
    of_speaker: dict[str, list[int]] = {}
    for index, (_, speaker) in enumerate(utterances):
        of_speaker.setdefault(speaker, []).append(index)
    # A pair (first, second) is stored as the number first * total + second, which saves memory for large corpora.
    targets = [a * total + b for own in of_speaker.values() for a, b in itertools.combinations(own, 2)]
    targets = draw.permutation(targets)[:MAX_TARGETS]
    wanted = IMPOSTORS_PER_TARGET * len(targets)
    speaker_of = np.array([speaker for _, speaker in utterances])
    pairs = np.unique(draw.integers(total, size=(DRAWS_PER_IMPOSTOR * wanted, 2)), axis=0)
    pairs = pairs[(pairs[:, 0] < pairs[:, 1]) & (speaker_of[pairs[:, 0]] != speaker_of[pairs[:, 1]])]
    impostors = draw.permutation(pairs[:, 0] * total + pairs[:, 1])[:wanted]
    labels = dict.fromkeys(targets.tolist(), 1) | dict.fromkeys(impostors.tolist(), 0)
    return [f"{labels[pair]} {utterances[pair // total][0]} {utterances[pair % total][0]}" for pair in sorted(labels)]
