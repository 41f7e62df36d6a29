"""Long recordings are embedded in pieces, by a stated rule, and with a warning; threads may embed at the same time."""

import copy
import threading
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import RATE, noises, save_calibrated_model, settle, tiny_config
from transformers import pipeline

from hf_hamspk import HamSpkConfig, HamSpkForXVector, HamSpkModel
from hf_hamspk.audio_hamspk import MOST_WEIGHED, measure_speech, speech_weights
from hf_hamspk.configuration_hamspk import (
    LONGEST_BACKBONE_PIECE,
    LONGEST_PIECE,
    LONGEST_RESNET_PIECE,
    LONGEST_W2V_BERT_PIECE,
)
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.geometry_hamspk import mean_direction
from hf_hamspk.modeling_hamspk import SpeakerModelMixin


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> HamSpkModel:
    return HamSpkModel.from_pretrained(save_calibrated_model(tmp_path_factory.mktemp("long") / "model"))


@pytest.fixture
def short_pieces(monkeypatch) -> float:
    """Pieces of 4 s at most."""
    monkeypatch.setattr("hf_hamspk.configuration_hamspk.LONGEST_PIECE", 4.0)
    return 4.0


@settings(max_examples=30, deadline=None)
@given(st.integers(400, 20 * RATE))
def test_pieces_are_equal_and_not_too_long(samples):
    model, given_to = SimpleNamespace(config=HamSpkConfig(), device="cpu"), []

    def embed_pieces(pieces, budget):
        given_to.extend(pieces)
        return torch.ones(len(pieces), 2)

    model._embed_pieces = embed_pieces
    with mock.patch("hf_hamspk.configuration_hamspk.LONGEST_PIECE", 4.0):
        SpeakerModelMixin.embed_waveforms(model, [np.arange(samples, dtype=np.float32)])
    np.testing.assert_array_equal(np.concatenate(given_to), np.arange(samples))
    sizes = {len(piece) for piece in given_to}
    assert max(sizes) <= 4 * RATE and max(sizes) - min(sizes) <= 1
    assert (len(given_to) - 1) * 4 * RATE < samples


def test_up_to_the_limit_a_recording_is_one_piece(model, short_pieces):
    waves = [make_speech(1, 1, 4.0), make_speech(2, 1, 2.0)]
    assert torch.equal(model.embed_waveforms(waves), model._embed_pieces(waves, 120 * RATE))


def test_a_long_recording_has_the_mean_of_its_pieces_by_their_speech(model, short_pieces):
    silence = np.zeros(4 * RATE, np.float32)
    long = np.concatenate([make_speech(1, 1, 4.0), make_speech(1, 2, 2.0), silence[: 2 * RATE], silence])
    pieces = [long[: 4 * RATE], long[4 * RATE : 8 * RATE], long[8 * RATE :]]
    seconds = [measure_speech(piece, RATE).speech for piece in pieces]
    assert seconds[0] > seconds[1] > seconds[2] == 0
    found = model.embed_waveforms([make_speech(3, 1, 3.0), long, make_speech(4, 1, 3.5)])
    alone = model.embed_waveforms(pieces)
    torch.testing.assert_close(found[1], mean_direction(alone, torch.tensor(seconds)))
    torch.testing.assert_close(found[[0, 2]], model.embed_waveforms([make_speech(3, 1, 3.0), make_speech(4, 1, 3.5)]))
    # Neither the size of a batch nor the other recordings change it.
    torch.testing.assert_close(model.embed_waveforms([long], batch_seconds=1.0)[0], found[1])


def test_without_speech_all_pieces_count_alike(model, short_pieces):
    noise = noises(10.0)[0].numpy()
    assert speech_weights(np.array_split(noise, 3), RATE) == [1.0] * 3
    expected = mean_direction(model.embed_waveforms(np.array_split(noise, 3)))
    torch.testing.assert_close(model.embed_waveforms([noise])[0], expected)
    assert speech_weights([noise, noise], 4000) == [1.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40 * RATE), min_size=2, max_size=6))
def test_the_speech_of_at_most_ten_minutes_is_measured(lengths):
    """The same share in the middle of each piece, so that recordings of hours cost no more than those of 10 min."""
    given_to = []

    def measure(samples, rate):
        given_to.append(samples)
        return SimpleNamespace(speech=len(samples) / rate)

    pieces = [np.arange(length, dtype=np.float32) for length in lengths]
    with (
        mock.patch("hf_hamspk.audio_hamspk.MOST_WEIGHED", 60.0),
        mock.patch("hf_hamspk.audio_hamspk.measure_speech", measure),
    ):
        weights = speech_weights(pieces, RATE)
    total = sum(lengths)
    assert MOST_WEIGHED == 600.0 and len(given_to) == len(weights) == len(pieces)
    assert sum(map(len, given_to)) <= 60 * RATE
    for piece, middle in zip(pieces, given_to, strict=True):
        assert len(middle) == (len(piece) if total <= 60 * RATE else int(len(piece) * (60 * RATE / total)))
        if len(middle):
            left, right = middle[0], len(piece) - 1 - middle[-1]
            assert 0 <= right - left <= 1
            np.testing.assert_array_equal(np.diff(middle), 1)


def test_a_recording_of_hours_counts_the_pieces_with_speech(monkeypatch):
    monkeypatch.setattr("hf_hamspk.audio_hamspk.MOST_WEIGHED", 4.0)
    speech, silence = make_speech(1, 1, 4.0), np.zeros(4 * RATE, np.float32)
    weights = speech_weights([speech, silence, speech], RATE)
    assert weights[0] == weights[2] > 0.5 and weights[1] == 0


def test_transformers_backbones_and_resnets_have_shorter_pieces():
    """The attention of the former takes memory that grows with the square of the length."""
    assert tiny_config().longest_piece == LONGEST_PIECE == 180.0
    assert tiny_config("wavlm").longest_piece == LONGEST_BACKBONE_PIECE == 30.0
    assert tiny_config("resnet").longest_piece == LONGEST_RESNET_PIECE == 60.0
    assert tiny_config("wav2vec2-bert").longest_piece == LONGEST_W2V_BERT_PIECE == 20.0
    # The limit is no field: it is neither saved nor can it be set.
    assert "longest_piece" not in tiny_config().to_dict()


@pytest.mark.slow
def test_every_answer_says_so(model, short_pieces, tmp_path):
    long, short = make_speech(1, 1, 9.0), make_speech(1, 2, 3.9)
    sentence = "lasts 9 s. It was embedded in pieces of at most 4 s, which were averaged."
    answer = model.verify(short, long, sampling_rate=RATE)
    assert [one for one in answer.warnings if "pieces" in one] == [f"The test {sentence}"]
    answer = model.verify(long, short, sampling_rate=RATE)
    assert [one for one in answer.warnings if "pieces" in one] == [f"The enrolment {sentence}"]
    assert f"The enrolment {sentence}" in model.enrol([long], sampling_rate=RATE).warnings
    profile = model.enrol([short], name="anna", sampling_rate=RATE)
    assert f"The recording {sentence}" in model.identify(long, [profile], sampling_rate=RATE).warnings
    embed = pipeline("speaker-verification", model=model, device="cpu")
    found = embed({"array": long, "sampling_rate": RATE}, return_embeddings=True)
    assert found["warnings"] == [f"The recording {sentence}"]
    np.testing.assert_allclose(found["embedding"], model.embed([long], RATE)[0], rtol=1e-5)


def test_embed_reads_about_ten_minutes_at_once(model, monkeypatch):
    waves = [make_speech(1, number, 0.5) for number in range(7)]
    expected = model.embed(waves, RATE)
    held: list[int] = []
    whole = model.embed_waveforms
    monkeypatch.setattr("hf_hamspk.modeling_hamspk.HELD_SECONDS", 1.2)
    monkeypatch.setattr(model, "embed_waveforms", lambda some, *rest: (held.append(len(some)), whole(some, *rest))[1])
    torch.testing.assert_close(model.embed(iter(waves), RATE), expected)
    assert held == [3, 3, 1]
    assert model.embed([], RATE).shape == (0, model.config.embedding_size)


@pytest.mark.slow
@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
def test_threads_embed_a_model_in_training_mode(is_training, with_head):
    model = settle(HamSpkForXVector(tiny_config()) if with_head else HamSpkModel(tiny_config()))
    waves = [make_speech(1, number, 0.2 + 0.05 * number) for number in range(4)]
    expected = model.embed_waveforms(waves)
    model.train(is_training)
    before = copy.deepcopy(model.state_dict())
    start, found = threading.Barrier(8), []

    def embed() -> None:
        start.wait()
        for _ in range(3):
            found.append(model.embed_waveforms(waves))

    threads = [threading.Thread(target=embed) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    for one in found:
        torch.testing.assert_close(one, expected)
    assert model.training == model.base_model.training == is_training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_error_restores_the_mode(model, monkeypatch):
    fresh = HamSpkModel(tiny_config())
    with pytest.raises(ValueError, match="input_values has 5 samples"):
        fresh.embed_waveforms([np.zeros(5, np.float32)])
    assert fresh.training and fresh._embedding_threads == 0
