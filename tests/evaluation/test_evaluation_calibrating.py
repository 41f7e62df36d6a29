"""Logistic regression, cross-validation over speakers, and how many pairs are enough."""

import math
import re
from statistics import NormalDist

import numpy as np
import pytest
from scipy.optimize import minimize

from hf_hamspk.calibration_hamspk import DEFAULT_OPERATING_POINTS, SCORE
from hf_hamspk.evaluation.calibrating import (
    CalibrationTrials,
    cross_validate,
    fit,
    fit_map,
    logistic_regression,
    speaker_folds,
)
from hf_hamspk.evaluation.calibration_metrics import log_likelihood_ratio_cost
from hf_hamspk.evaluation.sufficiency import ENOUGH, assess_size, speaker_counts

SEPARATION = 4.0


def gaussian_trials(speakers: int = 20, utterances: int = 4, separation: float = SEPARATION, seed: int = 0, **features):
    """All pairs within speakers and as many between; the true log-likelihood ratio is `separation x score`."""
    draw = np.random.default_rng(seed)
    who = np.repeat(np.arange(speakers), utterances)
    first, second = np.triu_indices(len(who), 1)
    same = who[first] == who[second]
    keep = same | (draw.random(len(same)) < 3 * same.mean())
    first, second, same = first[keep], second[keep], same[keep]
    score = draw.standard_normal(len(same)) + np.where(same, separation / 2, -separation / 2)
    values = {SCORE: score} | {name: make(draw, len(same)) for name, make in features.items()}
    return CalibrationTrials(same.astype(np.int8), values, np.stack([who[first], who[second]], axis=1))


def test_gaussian_scores_get_their_true_log_likelihood_ratio():
    """Two unit Gaussians d apart: the log-likelihood ratio is d times the score, whatever the numbers of trials."""
    draw = np.random.default_rng(0)
    for targets, impostors in ((40000, 40000), (4000, 80000)):
        labels = np.repeat([1, 0], [targets, impostors])
        score = draw.standard_normal(len(labels)) + np.where(labels == 1, 1.0, -1.0)
        offset, weights = logistic_regression(5 + score[:, None] / 3, labels)
        assert weights[0] == pytest.approx(3 * 2.0, rel=0.04)
        assert offset + 5 * weights[0] == pytest.approx(0.0, abs=0.06)


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_agrees_with_a_general_optimiser(prior):
    draw = np.random.default_rng(1)
    labels = np.repeat([1, 0], [60, 300])
    features = draw.standard_normal((360, 3)) @ np.diag([1.0, 30.0, 0.1]) + np.where(labels, 0.8, 0.0)[:, None] + 7
    shift = np.log(prior / (1 - prior))
    scaled = (features - features.mean(0)) / features.std(0)

    def cost(solution):
        z = solution[0] + scaled @ solution[1:] + shift
        loss = prior * np.logaddexp(0, -z[labels == 1]).mean() + (1 - prior) * np.logaddexp(0, z[labels == 0]).mean()
        return loss + 0.01 / 60 / 2 * solution[1:] @ solution[1:]

    best = minimize(cost, np.zeros(4), tol=1e-13)
    offset, weights = logistic_regression(features, labels, prior)
    ours = offset + features @ weights
    np.testing.assert_allclose(ours, best.x[0] + scaled @ best.x[1:], atol=2e-4)
    assert cost(np.append(offset + features.mean(0) @ weights, weights * features.std(0))) <= best.fun + 1e-12


@pytest.mark.slow
def test_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    trials = gaussian_trials()
    weight = np.where(trials.labels == 1, 0.5 / trials.targets, 0.5 / (len(trials) - trials.targets))
    model = linear_model.LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
    model.fit(trials.matrix([SCORE]), trials.labels, sample_weight=weight * len(trials))
    offset, weights = logistic_regression(trials.matrix([SCORE]), trials.labels, ridge=0.0)
    assert weights[0] == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert offset == pytest.approx(model.intercept_[0], abs=1e-4)


def test_counts_are_repetitions():
    trials = gaussian_trials(speakers=8)
    counts = np.random.default_rng(3).integers(0, 4, len(trials))
    repeated = np.repeat(np.arange(len(trials)), counts)
    matrix = trials.matrix([SCORE])
    once = logistic_regression(matrix, trials.labels, counts=counts)
    again = logistic_regression(matrix[repeated], trials.labels[repeated])
    assert once[0] == pytest.approx(again[0], abs=1e-8)
    assert once[1] == pytest.approx(again[1], abs=1e-8)


def test_moving_and_stretching_scores_changes_nothing():
    trials = gaussian_trials()
    ratios = fit_map(trials)(trials.features)
    moved = CalibrationTrials(trials.labels, {SCORE: 100 + 0.01 * trials.features[SCORE]}, trials.speakers)
    np.testing.assert_allclose(fit_map(moved)(moved.features), ratios, atol=1e-6)


def test_separable_scores_have_finite_ratios():
    labels = np.repeat([1, 0], 20)
    for score in (labels + 0.0, np.linspace(1, -1, 40)):
        offset, weights = logistic_regression(score[:, None], labels)
        ratios = offset + weights[0] * score
        assert (ratios[:20] > 0).all() and (ratios[20:] < 0).all()
        assert 2 < np.abs(ratios).max() < 30


def test_one_class_is_refused():
    for labels in (np.ones(30), np.zeros(30)):
        with pytest.raises(ValueError, match="A calibration needs target and impostor trials"):
            logistic_regression(np.arange(30.0)[:, None], labels)
    with pytest.raises(ValueError, match="prior must lie strictly between 0 and 1, got 1"):
        logistic_regression(np.arange(30.0)[:, None], np.arange(30) % 2, prior=1)


def test_fitted_points_have_the_error_rates_of_held_out_speakers():
    trials = gaussian_trials(speakers=60, utterances=6)
    fitted = fit(trials)
    assert fitted.cost == log_likelihood_ratio_cost(fitted.held_out_ratios, trials.labels)
    assert [point.name for point in fitted.operating_points] == ["balanced", "strict", "screening"]
    normal = NormalDist()
    for point in fitted.operating_points:
        edge = point.threshold / SEPARATION
        assert point.miss_rate == pytest.approx(normal.cdf(edge - SEPARATION / 2), abs=0.04)
        assert point.false_alarm_rate == pytest.approx(1 - normal.cdf(edge + SEPARATION / 2), abs=0.02)
    strict, screening = fitted.operating_points[1:]
    assert strict.miss_rate > screening.miss_rate
    assert strict.false_alarm_rate < screening.false_alarm_rate


def test_no_speaker_is_tested_by_a_map_that_knew_it():
    """The trials of one speaker made absurd do not change the ratios of anybody else's folds... of that speaker."""
    trials = gaussian_trials(speakers=10)
    before = cross_validate(trials)
    of_first = (trials.speakers == 0).any(axis=1)
    scores = trials.features[SCORE].copy()
    labels = trials.labels.copy()
    labels[of_first & (trials.speakers[:, 0] != trials.speakers[:, 1])] = 0
    scores[of_first] = np.where(labels[of_first] == 1, -3.0, 3.0)
    absurd = CalibrationTrials(labels, {SCORE: scores}, trials.speakers)
    after = cross_validate(absurd)
    # The map that answers for the first speaker did not see these trials: the same line as before.
    slope = (before[of_first] - np.mean(before[of_first])) @ (trials.features[SCORE][of_first])
    assert slope > 0
    folds = speaker_folds(trials.speakers)
    own = of_first & (folds == folds[of_first][0, 0]).all(axis=1)
    line = np.polyfit(trials.features[SCORE][own], before[own], 1)
    np.testing.assert_allclose(after[own], np.polyval(line, scores[own]), atol=1e-6)
    assert not np.allclose(before[~of_first], after[~of_first])


def test_folds_keep_speakers_together():
    speakers = np.random.default_rng(0).integers(0, 13, (500, 2))
    folds = speaker_folds(speakers)
    assert set(folds.ravel()) == set(range(5))
    for speaker in range(13):
        assert len(set(folds[speakers == speaker])) == 1


def test_a_useful_quality_measure_lowers_the_held_out_cost():
    """Impostor scores rise with the measure; a useless one does not help, a constant one is left out."""
    trials = gaussian_trials(
        40, snr_min=lambda draw, n: draw.uniform(0, 30, n), snr_max=lambda draw, n: np.full(n, 30.0)
    )
    features = trials.features | {SCORE: trials.features[SCORE] + 0.1 * trials.features["snr_min"]}
    trials = CalibrationTrials(trials.labels, features, trials.speakers)
    plain, aware = fit(trials), fit(trials, [SCORE, "snr_min", "snr_max"])
    assert aware.cost < 0.9 * plain.cost
    assert aware.constant == ["snr_max"]
    assert aware.map.weights["snr_min"] == pytest.approx(-0.1 * aware.map.weights[SCORE], rel=0.2)


@pytest.mark.parametrize(
    ("speakers", "utterances", "names", "message"),
    [
        (
            8,
            2,
            [SCORE],
            "expected at least 20 of each kind (10 for each of 2 fitted numbers), got 8 target pairs and 22 impostor",
        ),
        (3, 8, [SCORE], "Too few speakers to calibrate on: expected at least 4, got 3"),
        (
            8,
            3,
            [SCORE, "snr_min"],
            "expected at least 30 of each kind (10 for each of 3 fitted numbers)",
        ),
    ],
)
def test_too_little_is_refused(speakers, utterances, names, message):
    trials = gaussian_trials(speakers, utterances, snr_min=lambda draw, n: draw.standard_normal(n))
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(trials, names)


def test_swapped_labels_and_bad_trials_are_refused():
    trials = gaussian_trials()
    with pytest.raises(ValueError, match=r"the labels are swapped \(1 must be the label of a target pair\)"):
        fit(CalibrationTrials(1 - trials.labels, trials.features, trials.speakers))
    with pytest.raises(ValueError, match=r"features must contain 'score', got \['snr_min'\]"):
        CalibrationTrials(trials.labels, {"snr_min": trials.features[SCORE]}, trials.speakers)
    with pytest.raises(ValueError, match="'score' contains NaN or infinite values"):
        CalibrationTrials(trials.labels, {SCORE: trials.features[SCORE] * np.nan}, trials.speakers)
    with pytest.raises(ValueError, match="speakers must have shape"):
        CalibrationTrials(trials.labels, trials.features, trials.speakers[:, 0])
    with pytest.raises(ValueError, match="one entry per trial"):
        CalibrationTrials(trials.labels, {SCORE: trials.features[SCORE][1:]}, trials.speakers)


@pytest.mark.slow
def test_the_uncertainty_is_that_of_repeated_recordings():
    """The half-width agrees with the spread over independent draws of speakers."""
    threshold = DEFAULT_OPERATING_POINTS[0].threshold
    slopes = []
    for seed in range(40):
        trials = gaussian_trials(speakers=20, seed=seed)
        fitted = fit_map(trials)
        slopes.append(fitted.offset / fitted.weights[SCORE])
    assessed = [
        assess_size(gaussian_trials(speakers=20, seed=seed), fit_map(gaussian_trials(20, seed=seed)))
        for seed in range(3)
    ]
    low, high = np.mean([each.points[0].score_interval for each in assessed], axis=0)
    # Independent trials: the bootstrap over speakers counts the chance of the single trial up to three times.
    assert 1.0 < (high - low) / (2 * 1.96 * np.std(slopes)) < 2.2
    assert threshold == 0.0
    assert abs(assessed[0].points[0].score) < 0.3


def test_more_speakers_are_surer_and_enough_is_said():
    few, many = (gaussian_trials(speakers, 4, 2.5) for speakers in (12, 200))
    few, many = (assess_size(trials, fit_map(trials), replicates=60) for trials in (few, many))
    for unsure, sure in zip(few.points, many.points, strict=True):
        assert sure.half_width < unsure.half_width
        assert sure.score_interval[0] < sure.score < sure.score_interval[1]
    assert many.points[0].half_width < ENOUGH < few.points[1].half_width
    assert re.fullmatch(
        r"balanced: with 1200 target pairs of 200 speakers, the threshold at score -?\d\.\d+ \(-?\d\.\d+ to \d\.\d+\) "
        r"is uncertain by \+-0\.\d\d in log-likelihood ratio; this is enough",
        many.sentences()[0],
    )
    # The half-width falls with the root of the number of speakers.
    assert [point.speakers for point in few.points] == [
        math.ceil(12 * point.half_width**2 / ENOUGH**2) for point in few.points
    ]
    wanted = few.points[1].speakers
    assert wanted > 12
    assert f"for +-0.5, use {wanted} speakers or more ({6 * wanted} target pairs)" in few.sentences()[1]


def test_a_draw_counts_pairs_by_their_speakers():
    speakers = np.array([[0, 0], [0, 1], [1, 2], [2, 2]])
    draw = np.random.default_rng(5)
    drawn = np.bincount(np.random.default_rng(5).integers(3, size=3), minlength=3)
    expected = [drawn[0], drawn[0] * drawn[1], drawn[1] * drawn[2], drawn[2]]
    assert speaker_counts(speakers, draw).tolist() == expected
