"""Calibration error, temperature and abstention against by-hand cases and definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from csr.evaluation.calibration import (
    TEMPERATURES,
    abstain_threshold,
    apply_temperature,
    expected_calibration_error,
    fit_temperature,
    risk_coverage,
)

SEEDS = st.integers(0, 10_000)
CASES = settings(deadline=None, max_examples=40)


def binary(*confidences: float) -> np.ndarray:
    """Two-class probabilities that say class 0 with the given confidence."""
    return np.array([[p, 1 - p] for p in confidences])


def random_case(seed: int, studies: int = 25, tied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Truth and three-class probabilities; ``tied`` draws them from few values, so that confidences repeat."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 3, (studies, 3)) if tied else rng.normal(size=(studies, 3)) * 2
    return rng.integers(0, 3, studies), softmax(logits.astype(float), axis=1)


def negative_log_likelihood(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    return -float(log_softmax(logits / temperature, axis=1)[np.arange(len(truth)), truth].mean())


# expected calibration error


def test_calibration_error_worked_out_on_paper():
    probabilities = binary(0.95, 0.85, 0.65, 0.55)
    truth = np.array([0, 1, 0, 1])
    # Ten bins: each study has its own, with gaps 0.05, 0.85, 0.35 and 0.55; two bins: all share (0.5, 1].
    assert expected_calibration_error(truth, probabilities, bins=10) == pytest.approx(1.8 / 4)
    assert expected_calibration_error(truth, probabilities, bins=2) == pytest.approx(abs(2 - 3.0) / 4)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probabilities, truth = binary(0.75, 0.8), np.array([1, 0])
    assert expected_calibration_error(truth, probabilities, bins=4) == pytest.approx((0.75 + 0.2) / 2)


@CASES
@given(SEEDS, st.integers(1, 20))
def test_calibration_error_equals_its_definition(seed, bins):
    truth, probabilities = random_case(seed)
    expected = 0.0
    for b in range(bins):
        inside = [i for i, p in enumerate(probabilities.max(1)) if b / bins < p <= (b + 1) / bins]
        if inside:
            accuracy = sum(probabilities[i].argmax() == truth[i] for i in inside) / len(inside)
            confidence = sum(probabilities[i].max() for i in inside) / len(inside)
            expected += len(inside) / len(truth) * abs(accuracy - confidence)
    assert expected_calibration_error(truth, probabilities, bins) == pytest.approx(expected)


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not():
    assert expected_calibration_error(np.array([0, 0]), binary(1.0, 1.0)) == 0
    assert expected_calibration_error(np.array([1, 1]), binary(1.0, 1.0)) == 1


# temperature


def test_the_temperature_that_overconfident_logits_were_made_with_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6000, 4)) * 3
    truth = np.array([rng.choice(4, p=p) for p in softmax(logits / 2.5, axis=1)])
    temperature = fit_temperature(logits, truth)
    assert temperature == pytest.approx(2.5, rel=0.06)
    before = softmax(logits, axis=1)
    after = apply_temperature(before, temperature)
    assert expected_calibration_error(truth, after) < 0.02 < 0.1 < expected_calibration_error(truth, before)


@CASES
@given(SEEDS)
def test_no_temperature_of_a_grid_is_better(seed):
    truth, probabilities = random_case(seed)
    logits = np.log(probabilities)
    best = negative_log_likelihood(logits, truth, fit_temperature(logits, truth))
    for temperature in np.geomspace(*TEMPERATURES, 60):
        assert best <= negative_log_likelihood(logits, truth, temperature) + 1e-7


def test_logits_and_log_probabilities_have_the_same_temperature():
    rng = np.random.default_rng(1)
    logits, truth = rng.normal(size=(50, 3)) - 2000, rng.integers(0, 3, 50)
    assert fit_temperature(logits, truth) == pytest.approx(
        fit_temperature(log_softmax(logits, axis=1), truth), rel=1e-4
    )


def test_perfect_separation_sharpens_within_bounds_and_leaves_saturated_probabilities_alone():
    truth = np.array([0, 1])
    low, high = TEMPERATURES
    assert low <= fit_temperature(np.eye(2), truth) < 0.06
    assert fit_temperature(2000 * np.eye(2), truth) == pytest.approx(1, abs=0.01)
    assert 19 < fit_temperature(5 * np.eye(2), 1 - truth) <= high


def test_a_true_class_of_probability_zero_does_not_stop_the_search():
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[1.0, 0.0], *[[0.9, 0.1]] * 999]))
    truth = np.array([1] + [0] * 999)
    # A probability that is tiny instead of zero has an inner optimum, and so has zero.
    tiny = np.maximum(logits, np.log(np.finfo(float).tiny))
    assert 2 < fit_temperature(logits, truth) < 10
    assert fit_temperature(logits, truth) == pytest.approx(fit_temperature(tiny, truth))


@CASES
@given(SEEDS, st.floats(0.05, 20))
def test_a_temperature_keeps_the_order_and_one_keeps_everything(seed, temperature):
    _, probabilities = random_case(seed)
    cooled = apply_temperature(probabilities, temperature)
    np.testing.assert_allclose(cooled.sum(1), 1)
    np.testing.assert_array_equal(cooled.argmax(1), probabilities.argmax(1))
    np.testing.assert_allclose(apply_temperature(probabilities, 1.0), probabilities)
    assert (cooled.max(1) <= probabilities.max(1) + 1e-12).all() == (temperature >= 1)


def test_temperature_by_hand_and_zeros_stay_zero():
    # Square roots of 0.64 and 0.36 are 0.8 and 0.6, which sum to 1.4.
    cooled = apply_temperature(np.array([[0.64, 0.36, 0.0], [0.0, 1.0, 0.0]]), 2.0)
    np.testing.assert_allclose(cooled, [[0.8 / 1.4, 0.6 / 1.4, 0], [0, 1, 0]])


# risk and coverage


def test_risk_coverage_worked_out_by_hand_with_a_tie():
    probabilities = binary(0.6, 0.9, 0.7, 0.7, 0.8)
    truth = np.array([0, 0, 1, 0, 1])  # right at 0.9, wrong at 0.8, one of each at 0.7, right at 0.6
    curve = risk_coverage(truth, probabilities)
    np.testing.assert_allclose(curve.threshold, [0.9, 0.8, 0.7, 0.6])
    np.testing.assert_allclose(curve.coverage, [0.2, 0.4, 0.8, 1.0])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 2 / 4, 2 / 5])
    assert curve.area == pytest.approx(0.2 * 0 + 0.2 * 0.5 + 0.4 * 0.5 + 0.2 * 0.4)


@CASES
@given(SEEDS)
def test_the_curve_does_not_depend_on_the_order_of_the_rows(seed):
    truth, probabilities = random_case(seed, tied=True)
    order = np.random.default_rng(seed + 1).permutation(len(truth))
    first, second = risk_coverage(truth, probabilities), risk_coverage(truth[order], probabilities[order])
    assert len(first.coverage) < len(truth)
    np.testing.assert_array_equal(first.coverage, second.coverage)
    np.testing.assert_allclose(first.risk, second.risk)
    assert first.area == pytest.approx(second.area)


@CASES
@given(SEEDS)
def test_without_ties_the_area_is_the_mean_risk_over_all_coverages(seed):
    truth, probabilities = random_case(seed)
    confident_first = np.argsort(-probabilities.max(1))
    wrong = (probabilities.argmax(1) != truth)[confident_first]
    risks = [wrong[:n].mean() for n in range(1, len(truth) + 1)]
    curve = risk_coverage(truth, probabilities)
    np.testing.assert_allclose(curve.risk, risks)
    assert curve.area == pytest.approx(np.mean(risks))


# abstention


@CASES
@given(SEEDS, st.floats(0, 1), st.booleans())
def test_the_threshold_is_the_smallest_confidence_that_meets_the_risk(seed, risk, tied):
    truth, probabilities = random_case(seed, studies=12, tied=tied)
    confidence, wrong = probabilities.max(1), probabilities.argmax(1) != truth
    enough = [t for t in confidence if wrong[confidence >= t].mean() <= risk]
    assert abstain_threshold(truth, probabilities, risk) == (min(enough) if enough else math.inf)


def test_the_threshold_looks_past_a_mistake_of_the_most_confident():
    probabilities, truth = binary(0.95, 0.9, 0.8, 0.7, 0.6), np.array([1, 0, 0, 0, 1])
    # risk: 1, 1/2, 1/3, 1/4, 2/5
    assert abstain_threshold(truth, probabilities, 0.25) == 0.7
    assert abstain_threshold(truth, probabilities, 0.4) == 0.6
    assert abstain_threshold(truth, probabilities, 0.2) == math.inf
