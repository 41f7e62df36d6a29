"""Synthetic speech: determinism, pitch, difficulty, and the layout of its corpora."""

import re
from collections import Counter

import numpy as np
import pytest

from hf_hamspk.data.audio import read_utterance
from hf_hamspk.data.corpus import check_corpus, load_corpus, speaker_labels
from hf_hamspk.data.synthetic import LEVEL_DBFS, draw_speaker, make_corpus, make_speech


def test_speech_is_a_function_of_its_seeds():
    speech = make_speech(3, 5)
    np.testing.assert_array_equal(speech, make_speech(3, 5))
    others = (make_speech(3, 6), make_speech(4, 5), make_speech(5, 3))
    assert all(abs(np.corrcoef(speech, other)[0, 1]) < 0.3 for other in others)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 48_000])
@pytest.mark.parametrize("duration", [0.1, 0.777, 3.0, 30.0])
def test_length_range_and_level(rate, duration):
    speech = make_speech(1, 1, duration, rate)
    assert speech.shape == (round(duration * rate),) and speech.dtype == np.float32
    assert np.isfinite(speech).all() and np.abs(speech).max() < 1.0
    assert 20 * np.log10(np.sqrt(np.mean(speech**2))) < LEVEL_DBFS[1] + 1.0


def test_extreme_speakers_stay_in_range():
    for seed in range(100):
        speech = make_speech(seed, 0, 0.5)
        assert np.isfinite(speech).all() and 1e-3 < np.abs(speech).max() < 1.0


@pytest.mark.slow
def test_the_pitch_is_that_of_the_speaker():
    found, wanted = [], []
    for seed in range(30):
        frames = np.lib.stride_tricks.sliding_window_view(make_speech(seed, 0, 4.0), 1_024)[::512]
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2_048)) ** 2).mean(axis=0)[40:300]
        found.append(np.log2(16_000 / (40 + np.argmax(correlation))))
        wanted.append(np.log2(draw_speaker(seed).pitch))
    assert np.median(np.abs(np.array(found) - wanted)) < 0.15


def log_spectrum(waveform: np.ndarray) -> np.ndarray:
    """`(T, 24)` log power in bands of equal width on a logarithmic axis."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 512)[::256] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.geomspace(3, 257, 25).astype(int))
    return np.log(np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1) + 1e-8)


def equal_error_rate(embeddings: np.ndarray, speakers: np.ndarray) -> float:
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(len(speakers), 1)
    scores = np.sum(embeddings[first] * embeddings[second], axis=1)
    same = speakers[first] == speakers[second]
    thresholds = np.sort(scores)
    miss = np.searchsorted(np.sort(scores[same]), thresholds) / same.sum()
    alarm = 1.0 - np.searchsorted(np.sort(scores[~same]), thresholds) / (~same).sum()
    return float((miss + alarm)[np.argmin(np.abs(miss - alarm))] / 2)


@pytest.mark.slow
def test_speakers_differ_but_mean_spectra_do_not_tell_them_apart():
    speakers = np.repeat(np.arange(20), 8)
    spectra = [log_spectrum(make_speech(100 + speaker, index)) for index, speaker in enumerate(speakers)]
    # Cepstra: the cosine transform of the log spectrum, without the level.
    bands = spectra[0].shape[1]
    transform = np.cos(np.pi * np.outer(np.arange(bands) + 0.5, np.arange(1, 15)) / bands)
    means = np.stack([(frames @ transform).mean(axis=0) for frames in spectra])
    raw = equal_error_rate(means, speakers)
    normalised = equal_error_rate((means - means.mean(axis=0)) / means.std(axis=0), speakers)
    assert 0.10 < raw < 0.45
    assert 0.08 < normalised < 0.35


def test_corpus_layout(tmp_path):
    root = make_corpus(tmp_path / "c", speakers=6, utterances=5, seed=1, duration_range=(0.5, 0.8), test_share=0.34)
    train, test = load_corpus(root / "train.csv"), load_corpus(root / "test.csv")
    assert (len(train), len(test)) == (20, 10)
    assert not set(speaker_labels(train)) & set(speaker_labels(test))
    assert list(load_corpus(root / "train")["path"]) == list(train["path"])
    report = check_corpus(train, progress=False)
    assert report.bad == ()
    assert 0.5 <= report.durations.min() < report.durations.max() <= 0.8
    speech = make_speech(1_000_002, 3, float(report.durations[2 * 5 + 3]))
    np.testing.assert_allclose(read_utterance(root / "train/syn00002/s00/u0003.flac").waveform, speech, atol=1.6e-5)
    trials = [line.split() for line in (root / "trials.txt").read_text().splitlines()]
    assert Counter(label for label, *_ in trials) == {"1": 20, "0": len(trials) - 20}
    # Impostor pairs are drawn with repetition: of the 25 there are, a few may be missing.
    assert 20 < len({frozenset(pair) for _, *pair in trials}) - 20 <= 25
    for label, enrolment, test_file in trials:
        assert (root / enrolment).is_file() and (root / test_file).is_file()
        assert (label == "1") == (enrolment.split("/")[1] == test_file.split("/")[1])
        assert enrolment.startswith("test/")


def test_corpora_of_one_seed_are_equal_and_of_two_seeds_are_not(tmp_path):
    roots = [make_corpus(tmp_path / name, 4, 2, seed, (0.3, 0.4)) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    files = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")} for root in roots]
    assert files[0] == files[1]
    flac = next(path for path in files[0] if path.suffix == ".flac")
    assert files[0][flac] != files[2][flac]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speakers": 3}, "speakers must be from 4 to 1000000"),
        ({"utterances": 1}, "utterances at least 2 (for target trials)"),
        ({"seed": -1}, "seed at least 0"),
        ({"duration_range": (3.0, 2.0)}, "duration_range must be (shortest, longest) in seconds"),
        ({"test_share": 1.0}, "test_share must be between 0 and 1, got 1.0"),
    ],
)
def test_corpus_arguments_that_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_corpus(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_and_speech_that_cannot_be_made(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=re.escape("already contains train. Choose another folder.")):
        make_corpus(tmp_path)
    with pytest.raises(ValueError, match=re.escape("speaker_seed and utterance_seed must be at least 0, got -1 and 0")):
        make_speech(-1, 0)
    with pytest.raises(ValueError, match=re.escape("duration must be at least 0.1 s")):
        make_speech(0, 0, 0.01)
