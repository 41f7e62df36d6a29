"""Choosing what helps: a step is taken if it saves enough, and would with other speakers, too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import settle, tiny_config

from hf_hamspk import HamSpkModel
from hf_hamspk.audio_hamspk import SpeechMeasures
from hf_hamspk.calibration_hamspk import Cohort, OperatingPoint, Scorer
from hf_hamspk.data.synthetic import make_corpus
from hf_hamspk.evaluation.calibrating import fit
from hf_hamspk.evaluation.calibration_metrics import log_likelihood_ratio_cost
from hf_hamspk.evaluation.model_calibration import (
    CalibrationCandidate,
    CalibrationReport,
    _helps,
    _useless_points,
    calibrate,
    choose_calibration,
    held_out_cost,
    known_speakers,
)
from hf_hamspk.evaluation.scored_trials import CalibrationSetting, ScoredTrials
from hf_hamspk.evaluation.trials import Trials, join_trials, read_trials
from hf_hamspk.evaluation.verification import EmbeddedFiles

SPEAKERS, UTTERANCES, SIZE = 20, 4, 24
REPORT_FIELDS = ("model", "sufficiency", "skipped", "trained_on", "cohort_skipped", "cohort_left_out", "own_pairs")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return settle(HamSpkModel(tiny_config()))


def scored(model, spread, seed=0) -> ScoredTrials:
    """Embeddings around the direction of each speaker, as far off as `spread(speaker, seconds of speech)` says."""
    draw = np.random.default_rng(seed)
    embedded = EmbeddedFiles()
    for speaker in range(SPEAKERS):
        middle = draw.normal(size=SIZE)
        for utterance in range(UTTERANCES):
            name, speech = f"s{speaker:02}/{utterance}.wav", draw.uniform(1.5, 20)
            noise = spread(speaker, speech) * draw.normal(size=SIZE)
            embedded.embeddings[name] = torch.from_numpy(middle + noise).float()[None]
            embedded.measures[name] = SpeechMeasures(20, speech, 20, 0, -20)
    names = list(embedded.embeddings)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a[:3] == b[:3] or draw.random() < 0.2]
    trials = Trials(np.array([a[:3] == b[:3] for a, b in pairs], int), *zip(*pairs, strict=True))
    return ScoredTrials(model, trials, embedded)


def test_what_does_not_help_is_left_out(model):
    cohort = Cohort(torch.randn(60, SIZE), model.fingerprint())
    found = choose_calibration(scored(model, lambda speaker, speech: 1.0), cohort, quality=("auto",))
    assert found.chosen is found.candidates[0]
    assert str(found.chosen.setting) == "score"
    assert (found.calibration.normalisation, set(found.calibration.weights)) == ("none", {"score"})
    assert found.calibration.cohort is None
    assert {str(candidate.setting) for candidate in found.candidates} > {"AS-norm (20)", "score + speech"}


def test_points_that_accept_nobody_or_everybody_are_left_out_unless_asked_for(model):
    weak = scored(model, lambda speaker, speech: 2.0)
    found = choose_calibration(weak)
    assert list(found.left_out) == ["strict"]
    assert "accepts nobody" in found.left_out["strict"]
    assert [point.name for point in found.calibration.operating_points] == ["balanced", "screening"]
    points = [OperatingPoint("never", 1e-9), OperatingPoint("always", 1 - 1e-9), OperatingPoint("even", 0.5)]
    asked = choose_calibration(weak, operating_points=points)
    assert asked.left_out == {}
    never, always, even = asked.calibration.operating_points
    assert (never.miss_rate, always.false_alarm_rate, even.flaw) == (1.0, 1.0, None)
    assert "never accepts nobody" in str(never.flaw) and "always accepts everybody" in str(always.flaw)
    for extreme in (OperatingPoint("far", 1e-23), OperatingPoint("far", 0.5, 1e308, 5e-324)):
        with pytest.raises(ValueError, match=r"far is the log-likelihood ratio -?\d+, but thresholds must lie"):
            choose_calibration(weak, operating_points=[extreme])
    with pytest.raises(ValueError, match=r"No operating point can be used\. .*never accepts nobody"):
        _useless_points([never, always])


def test_a_calibration_that_is_worse_than_none_is_warned_of(model):
    """Cllr is 1 bit for ratios of 0; a model of noise has more on held-out speakers."""
    useless = next(
        found
        for seed in range(30)
        if (found := attempt(model, 30.0, seed)) is not None and found.chosen.fitted.cost >= 1
    )
    (sentence,) = [one for one in useless.warnings() if "worse than none" in one]
    assert f"its Cllr on held-out speakers is {useless.chosen.fitted.cost:.3f} bits" in sentence
    assert "worse than none" not in str(choose_calibration(scored(model, lambda speaker, speech: 1.0)).warnings())


def test_a_point_that_costs_more_than_one_decision_for_all_is_warned_of(model):
    """A normalised cost above 1 is worse than always accepting or always rejecting."""
    points = [OperatingPoint("even", 0.5), OperatingPoint("rare", 0.02)]
    found = choose_calibration(scored(model, lambda speaker, speech: 1.2), operating_points=points)
    costs = [held_out_cost(found.chosen, found.trials.labels, point) for point in points]
    warned = [point.name for point in points if any(f"point {point.name} is worse" in one for one in found.warnings())]
    assert costs[0] < 1 < costs[1]
    assert warned == ["rare"]


def attempt(model, spread, seed):
    points = [OperatingPoint("even", 0.5)]
    try:
        return choose_calibration(scored(model, lambda speaker, speech: spread, seed), operating_points=points)
    except ValueError:
        return None  # the scores of targets happen to be the lower ones


def test_the_star_is_explained(model):
    cohort = Cohort(torch.randn(60, SIZE), model.fingerprint())

    def choice(*arguments, spread=1.0, **options) -> str:
        found = choose_calibration(scored(model, lambda speaker, speech: spread), *arguments, **options)
        return CalibrationReport(**vars(found), **dict.fromkeys(REPORT_FIELDS)).choice()

    assert choice() == "* marks the setting of the calibration."
    assert "has a smaller Cllr, but normalisation or quality measures" in choice(cohort, quality=("auto",))
    assert "which has the smallest Cllr" in choice(cohort, "as", quality=())
    # All recordings have the same SNR, so that this measure changes nothing.
    assert "which has the smallest Cllr" in choice(quality=("snr",))
    assert "marks the requested setting. score has a smaller Cllr" in choice(quality=("speech",), spread=2.0)


def test_a_quality_measure_that_says_how_far_to_trust_a_score_is_taken(model):
    """Embeddings of short recordings are moved towards one direction that all speakers share."""
    draw = np.random.default_rng(1)
    trials = scored(model, lambda speaker, speech: 0.8)
    shared = 6 * torch.from_numpy(draw.normal(size=SIZE)).float()
    embedded = EmbeddedFiles()
    for name, row in zip(trials.trials.files, trials.embeddings, strict=True):
        speech = float(draw.choice([1.5, 12.0]))
        embedded.measures[name] = SpeechMeasures(20, speech, 20, 0, -20)
        moved = row + shared / speech
        embedded.embeddings[name] = (moved / moved.norm())[None]  # of one magnitude
    found = choose_calibration(ScoredTrials(model, trials.trials, embedded), quality=("auto",))
    assert "speech" in found.chosen.setting.quality
    assert "log_speech_min" in found.calibration.weights


def test_a_gain_of_a_few_speakers_is_no_gain(model):
    trials = scored(model, lambda speaker, speech: 1.0).features(CalibrationSetting(), None)
    plain = CalibrationCandidate(CalibrationSetting(), fit(trials))
    sign = np.where(trials.labels == 1, 1, -1)

    def changed(rows, by: float) -> CalibrationCandidate:
        ratios = plain.fitted.held_out_ratios + np.where(rows, by, 0) * sign
        cost = log_likelihood_ratio_cost(ratios, trials.labels)
        return CalibrationCandidate(CalibrationSetting(), replace(plain.fitted, held_out_ratios=ratios, cost=cost))

    everybody = np.ones(len(trials), bool)
    assert _helps(changed(everybody, 0.5), plain, trials)
    assert not _helps(changed(everybody, 0.001), plain, trials)  # below GAIN
    assert not _helps(changed(everybody, -0.5), plain, trials)
    few = (trials.speakers == 0).any(axis=1) & (trials.labels == 1)
    lucky = changed(few, 50.0)
    lucky = changed(few, 50.0) if lucky.fitted.cost < 0.98 * plain.fitted.cost else changed(few, 500.0)
    assert not _helps(lucky, plain, trials)


def test_training_speakers_are_known_by_the_end_of_their_names(model):
    model.config.id2label = {0: "anna", 1: "bert@0.9", 2: "carl", 3: "eva@home", 4: "eva@home@1.1"}
    assert known_speakers(model, ["corpus/anna", "bert", "dora"]) == ["bert", "corpus/anna"]
    assert known_speakers(model, ["eva", "eva@home", "bert@0.9"]) == ["bert@0.9", "eva@home"]


def test_lists_are_joined_and_contradictions_refused():
    first = Trials(np.array([1, 0]), ("a", "a"), ("b", "c"))
    assert len(join_trials([first, Trials(np.array([0]), ("a",), ("c",))])) == 2
    with pytest.raises(ValueError, match="The pair a c is labelled 0 in one place and 1 in another"):
        join_trials([first, Trials(np.array([1]), ("a",), ("c",))])


@pytest.mark.slow
def test_calibrate_sets_the_calibration_and_returns_what_was_measured(tmp_path, model):
    folder = make_corpus(tmp_path / "corpus", 10, 4, 3, (1.7, 2.1), test_share=0.8)
    model.save_pretrained(tmp_path / "model")
    cohort = Cohort(torch.randn(30, SIZE), model.fingerprint())
    options = {"cohort": cohort, "normalisation": "s", "quality": "none", "progress": False}
    report = calibrate(tmp_path / "model", folder / "trials.txt", folder, **options)
    assert report.model.calibration is report.calibration
    assert (report.calibration.normalisation, report.calibration.cohort) == ("s", cohort.checksum)
    assert (report.calibration.audio, report.calibration.speakers) == ("trials.txt", 8)
    assert (report.skipped, report.trained_on, report.cohort_left_out) == ({}, [], 0)
    assert [len(row) for row in report.candidate_rows()] == [7, 7]
    assert "* " in str(report) and "screening" in str(report)
    Scorer(report.model, report.model.calibration, report.model.cohort)
    # The same trials, as objects and with enrolment models of two files.
    trials = read_trials(folder / "trials.txt")
    files = dict.fromkeys(trials.enrolment)
    models = {name: (name, name) for name in files}
    renamed = Trials(
        trials.labels, tuple(f"m-{n}" for n in trials.enrolment), trials.test, {f"m-{n}": models[n] for n in files}
    )
    again = calibrate(model, [renamed], folder, **options)
    assert model.calibration is again.calibration
    assert again.calibration.audio == f"{len(trials)} trials"
    assert again.calibration.weights["score"] == pytest.approx(report.calibration.weights["score"], rel=1e-3)
    model.calibration = model.cohort = None
    with pytest.raises(ValueError, match=r"normalisation 's' needs a cohort"):
        calibrate(model, trials, folder, **(options | {"cohort": None}))
    with pytest.raises(ValueError, match="stand alone, got none snr"):
        calibrate(model, trials, folder, quality=("none", "snr"))
    assert model.calibration is None
