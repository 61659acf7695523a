"""Measures of weights against the plain ones: a study of weight 2 is a study that is there twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csr.evaluation import weighted
from csr.evaluation.calibration import expected_calibration_error
from csr.evaluation.metrics import f1_by_class, macro_auroc, macro_f1, mean_auroc


def studies(seed: int, several: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(8, 30)), 3
    probabilities = rng.random((count, classes)).round(1)
    if several:
        truth = rng.integers(0, 2, (count, classes)).astype(np.float64)
        truth[rng.random(truth.shape) < 0.2] = np.nan
        truth[np.isnan(truth).all(1), 0] = 1  # something is known of every study
    else:
        truth = rng.integers(0, classes, count)
        probabilities = (probabilities + 0.1) / (probabilities + 0.1).sum(1, keepdims=True)
    weights = rng.integers(0, 4, (5, count))
    weights[:, 0] += weights.sum(1) == 0
    return truth, probabilities, weights


@pytest.mark.parametrize("several", [False, True])
@given(seed=st.integers(0, 10_000))
def test_a_weight_is_how_often_a_study_is_there(several: bool, seed: int) -> None:
    truth, probabilities, weights = studies(seed, several)
    said = (probabilities >= 0.5).astype(int) if several else probabilities.argmax(1)
    labels = truth if several else np.eye(3)[truth]
    found_f1 = weighted.macro_f1(truth, said[None], 3, weights)[:, 0]
    found_by_class = weighted.class_f1(truth, said[None], 3, weights)[0]
    found_auroc = weighted.macro_auroc(labels, probabilities, weights)
    found_error = weighted.calibration_error(truth, probabilities, weights)
    for row, own in enumerate(weights):
        again = np.repeat(np.arange(len(truth)), own)
        assert found_f1[row] == pytest.approx(macro_f1(truth[again], said[again], 3))
        assert found_by_class[row] == pytest.approx(f1_by_class(truth[again], said[again], 3))
        of_all = macro_auroc if not several else mean_auroc
        assert found_auroc[row] == pytest.approx(of_all(truth[again], probabilities[again]), nan_ok=True)
        assert found_error[row] == pytest.approx(expected_calibration_error(truth[again], probabilities[again]))


def test_a_ratio_without_anything_counted_is_no_number() -> None:
    hits, counts = np.array([1.0, 0.0, 2.0]), np.array([2.0, 0.0, 2.0])
    assert weighted.ratio(hits, counts, np.array([[1, 1, 1], [0, 3, 0], [2, 0, 1]]))[[0, 2]].tolist() == [0.75, 4 / 6]
    assert np.isnan(weighted.ratio(hits, counts, np.array([[0, 3, 0]]))).all()
