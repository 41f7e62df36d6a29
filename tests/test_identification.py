"""Open-set identification: the enrolled are found, the unknown refused, the decision is that of Bayes' rule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import RATE, settle, tiny_config

from hf_hamspk import HamSpkForXVector
from hf_hamspk.calibration_hamspk import Calibration, OperatingPoint
from hf_hamspk.cli.identify import format_identification
from hf_hamspk.data.synthetic import make_speech
from hf_hamspk.verification_hamspk import (
    AMBIGUOUS,
    IDENTIFIED,
    LEAST_MARGIN,
    NOT_ENOUGH_SPEECH,
    UNKNOWN,
    SpeakerIdentifier,
    SpeakerProfile,
)

EVEN = OperatingPoint("even", 0.5)


class Listener(HamSpkForXVector):
    """A model whose embedding of a recording is what the test says."""

    answer = torch.zeros(24)

    def embed_waveforms(self, waveforms, batch_seconds=120.0):
        return self.answer.expand(len(waveforms), -1).clone()


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return make_speech(3, 0, 3.0)


@pytest.fixture
def model() -> Listener:
    torch.manual_seed(0)
    return settle(Listener(tiny_config()))  # pyright: ignore


def axis(place: int, lean: float = 0.0) -> torch.Tensor:
    """A unit vector along an axis, leaning towards the next one."""
    vector = torch.zeros(24)
    vector[place], vector[place + 1] = math.cos(lean), math.sin(lean)
    return vector


def profiles(model, embeddings, **fields) -> list[SpeakerProfile]:
    same = {"seconds": (9.0,), "snr_db": 30.0, "magnitude": 1.0, "combine": "mean", "fingerprint": model.fingerprint()}
    return [SpeakerProfile(f"speaker{i}", e, **(same | fields)) for i, e in enumerate(embeddings)]


def calibration(model) -> Calibration:
    return Calibration(model.fingerprint(), "cosine", -10.0, {"score": 20.0}, trials=100, targets=50)


def test_the_enrolled_are_found_and_the_unknown_refused(model, speech):
    model.calibration = calibration(model)
    identifier = model.identifier(profiles(model, [axis(0), axis(5), axis(10)]), check_voices=False)
    model.answer = axis(5, 0.1)
    (found,) = identifier.identify([speech], RATE, EVEN)
    assert (found.decision, found.speaker) == (IDENTIFIED, "speaker1")
    assert [candidate.name for candidate in found.candidates] == ["speaker1", "speaker0", "speaker2"]
    assert found.candidates[0].log_likelihood_ratio == pytest.approx(20 * math.cos(0.1) - 10, abs=1e-4)
    assert found.margin == LEAST_MARGIN
    model.answer = axis(15)
    (found,) = identifier.identify([speech], RATE, EVEN)
    assert (found.decision, found.speaker) == (UNKNOWN, None)
    assert len(identifier.identify([speech], RATE, candidates=1)[0].candidates) == 1


def test_the_ratio_is_that_of_bayes_rule(model, speech):
    """One of the enrolled, each as likely, or nobody: posterior odds over prior odds."""
    model.calibration = calibration(model)
    enrolled = profiles(model, [axis(place, 0.3 * place) for place in range(6)])
    model.answer = torch.nn.functional.normalize(torch.randn(24), dim=0)
    (found,) = model.identifier(enrolled, check_voices=False).identify([speech], RATE, EVEN, candidates=6)
    ratios = np.array([candidate.log_likelihood_ratio for candidate in found.candidates])
    prior = 0.2
    posterior = prior / 6 * np.exp(ratios).sum() / (prior / 6 * np.exp(ratios).sum() + (1 - prior))
    odds = posterior / (1 - posterior) / (prior / (1 - prior))
    assert found.enrolled_ratio == pytest.approx(math.log(odds), abs=1e-9)


def test_more_enrolled_ask_for_more(model, speech):
    """The same ratio identifies among few, and is chance among many."""
    model.calibration = calibration(model)
    model.answer = axis(0, math.acos(0.6))  # a log-likelihood ratio of 2 with the first, at most 0 with the others
    few, many = (profiles(model, [axis(0), *[-axis(place % 9 + 2) for place in range(more)]]) for more in (1, 30))
    decisions = [
        model.identifier(p, check_voices=False).identify([speech], RATE, EVEN)[0].decision for p in (few, many)
    ]
    assert decisions == [IDENTIFIED, UNKNOWN]


def test_a_near_runner_up_is_no_identification(model, speech):
    model.calibration = calibration(model)
    identifier = model.identifier(profiles(model, [axis(0), axis(0, 0.05)]), check_voices=False)
    model.answer = axis(0)
    (found,) = identifier.identify([speech], RATE, EVEN)
    assert (found.decision, found.speaker) == (AMBIGUOUS, None)
    (why,) = [warning for warning in found.warnings if "margin" in warning]
    assert why.startswith("speaker0 leads speaker1 by only 0.0") and "a margin of 1.1 is needed" in why
    assert why in format_identification("a.wav", found)
    assert identifier.identify([speech], RATE, EVEN, margin=0.01)[0].speaker == "speaker0"


def test_without_a_calibration_a_threshold_decides(model, speech):
    identifier = model.identifier(profiles(model, [axis(0), axis(5)]))
    model.answer = axis(0, 0.2)
    (found,) = identifier.identify([speech], RATE)
    assert (found.decision, found.enrolled_ratio, found.candidates[0].name) == (None, None, "speaker0")
    score = math.cos(0.2)
    assert identifier.identify([speech], RATE, threshold=score - 1e-3)[0].speaker == "speaker0"
    assert identifier.identify([speech], RATE, threshold=score + 1e-3)[0].decision == UNKNOWN
    assert identifier.identify([speech], RATE, threshold=0.5, margin=score + 0.1)[0].decision == AMBIGUOUS


def test_a_threshold_on_the_score_ranks_by_scores_and_an_operating_point_by_ratios(model, speech):
    """With quality measures, the best score and the best ratio can be of different speakers."""
    enrolled = profiles(model, [axis(0, 0.1), axis(0, 0.5)])
    enrolled[1] = replace(enrolled[1], snr_db=200.0)
    weights = {"score": 20.0, "snr_max": 0.1}
    model.calibration = Calibration(model.fingerprint(), "cosine", -10.0, weights, trials=100, targets=50)
    model.answer = axis(0)
    identifier = model.identifier(enrolled, check_voices=False)
    (by_ratio,) = identifier.identify([speech], RATE, EVEN)
    (by_score,) = identifier.identify([speech], RATE, threshold=0.9)
    assert [candidate.name for candidate in by_ratio.candidates] == ["speaker1", "speaker0"]
    assert [candidate.name for candidate in by_score.candidates] == ["speaker0", "speaker1"]
    assert (by_ratio.speaker, by_score.speaker) == ("speaker1", "speaker0")
    # The threshold is compared with the score of the best candidate, not with a ratio.
    assert by_score.enrolled_ratio > 1 > by_score.candidates[0].score
    assert identifier.identify([speech], RATE, threshold=1.1)[0].decision == UNKNOWN
    assert by_ratio.enrolled_ratio == by_score.enrolled_ratio


def test_the_threshold_and_the_margin_themselves_are_enough(model, speech):
    identifier = model.identifier(profiles(model, [axis(0), axis(0, 0.5)]))
    model.answer = axis(0, 0.1)
    (found,) = identifier.identify([speech], RATE)
    best, second = (candidate.score for candidate in found.candidates)
    above = math.nextafter(best, 2)
    assert identifier.identify([speech], RATE, threshold=best)[0].decision == IDENTIFIED
    assert identifier.identify([speech], RATE, threshold=above)[0].decision == UNKNOWN
    lead = best - second
    assert identifier.identify([speech], RATE, threshold=0.0, margin=lead)[0].decision == IDENTIFIED
    assert identifier.identify([speech], RATE, threshold=0.0, margin=math.nextafter(lead, 2))[0].decision == AMBIGUOUS


def test_silence_and_recordings_that_come_back(model, speech):
    model.answer = axis(0)
    digest = model.verifier().enrol([speech], RATE).recordings
    identifier = model.identifier(profiles(model, [axis(0)], recordings=digest))
    silent, known = identifier.identify([np.zeros(RATE, np.float32), speech], RATE, threshold=0.5)
    assert (silent.decision, silent.candidates) == (NOT_ENOUGH_SPEECH, [])
    assert known.speaker == "speaker0"
    assert any("this same recording" in warning for warning in known.warnings)


def test_what_does_not_fit_is_refused(model, speech):
    good = profiles(model, [axis(0), axis(5)])
    with pytest.raises(ValueError, match="Expected at least one profile"):
        model.identifier([])
    with pytest.raises(ValueError, match="Several profiles are named speaker0"):
        model.identifier([good[0], good[0]])
    with pytest.raises(ValueError, match="was made with other weights"):
        model.identifier(profiles(model, [axis(0)], fingerprint="0" * 64))
    identifier = SpeakerIdentifier(model, good)
    assert identifier.check_voices
    cases = [
        ({"margin": -1.0, "threshold": 0.0}, "margin must be"),
        ({"margin": 1.0}, "not calibrated"),
        ({"operating_point": "balanced"}, "not calibrated"),
        ({"operating_point": EVEN, "threshold": 0.5}, "not both"),
        ({"threshold": math.nan}, "finite"),
        ({"candidates": 0}, "candidates"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            identifier.identify([speech], RATE, **arguments)
