"""Laws of cropping: length, content, and where pieces start."""

import re

import numpy as np
import pytest

from hf_hamspk.data.crops import even_segments, random_crop


@pytest.mark.parametrize("length", [1, 2, 7, 99, 100, 101, 250])
def test_random_crop_is_a_run_of_the_repeated_waveform(length):
    waveform = np.arange(length, dtype=np.float32)
    crop = random_crop(waveform, 100, np.random.default_rng(length))
    assert crop.shape == (100,) and crop.dtype == np.float32
    np.testing.assert_array_equal(crop, (crop[0] + np.arange(100)) % length)
    if length <= 100:
        assert crop[0] == 0


def test_random_crop_reaches_every_start_and_no_other():
    waveform = np.arange(10)
    generator = np.random.default_rng(0)
    starts = [int(random_crop(waveform, 7, generator)[0]) for _ in range(400)]
    assert set(starts) == {0, 1, 2, 3}
    assert min(np.bincount(starts)) > 60


def test_random_crop_is_a_function_of_the_generator():
    waveform = np.arange(1000)
    crops = [random_crop(waveform, 10, np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(*crops)


def test_even_segments_span_the_waveform():
    segments = even_segments(np.arange(1000), 100, 5)
    np.testing.assert_array_equal(segments[:, 0], [0, 225, 450, 675, 900])
    np.testing.assert_array_equal(segments - segments[:, :1], np.broadcast_to(np.arange(100), (5, 100)))
    np.testing.assert_array_equal(even_segments(np.arange(1000), 100, 1), np.arange(100)[None])


@pytest.mark.parametrize("length", [1, 30, 100])
def test_even_segments_of_a_short_waveform_repeat_it(length):
    segments = even_segments(np.arange(length), 100, 5)
    np.testing.assert_array_equal(segments, np.broadcast_to(np.arange(100) % length, (5, 100)))


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros((2, 5)), np.float32(1)])
def test_waveforms_of_another_shape_are_refused(waveform):
    message = re.escape("Expected a waveform of shape (L,) with L >= 1")
    with pytest.raises(ValueError, match=message):
        random_crop(np.asarray(waveform), 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        even_segments(np.asarray(waveform), 10, 5)


def test_lengths_and_counts_must_be_positive():
    with pytest.raises(ValueError, match=re.escape("samples must be at least 1, got 0.")):
        random_crop(np.zeros(5), 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match=re.escape("count must be at least 1, got 0.")):
        even_segments(np.zeros(5), 3, 0)
