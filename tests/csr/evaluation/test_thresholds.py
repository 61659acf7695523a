"""Thresholds of several classes: the rule against a search by scikit-learn, and where it keeps a half."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from csr.evaluation.metrics import macro_f1
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import LEAST, choose_thresholds, validation_f1, validation_thresholds
from tests.csr.synthetic import make_collection

NAN = np.nan
GRID = [percent / 100 for percent in range(1, 100)]


def column(values) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9), st.floats(0, 3))
def test_a_threshold_has_the_largest_f1_of_all_whole_percents_and_lies_nearest_a_half(seed, share, signal):
    rng = np.random.default_rng(seed)
    truth = (rng.random(60) < share).astype(np.float64)
    truth[:LEAST], truth[LEAST : 2 * LEAST] = 1, 0
    said = 1 / (1 + np.exp(-(signal * (truth - 0.5) + rng.normal(-0.5, 1, 60))))
    truth[rng.random(60) < 0.1] = NAN
    known = ~np.isnan(truth)
    f1 = np.array([f1_score(truth[known], said[known] >= each, zero_division=0) for each in GRID])
    everything = f1_score(truth[known], np.ones(known.sum()))
    (found,) = choose_thresholds(truth[:, None], said[:, None])
    enough = min((truth[known] == 1).sum(), (truth[known] == 0).sum()) >= LEAST
    if not enough or f1.max() <= everything + 1e-9:
        assert found == 0.5
        return
    assert found in GRID
    assert f1[GRID.index(found)] == pytest.approx(f1.max(), abs=1e-12)
    best = [each for each, value in zip(GRID, f1, strict=True) if value >= f1.max() - 1e-12]
    assert abs(found - 0.5) == pytest.approx(min(abs(each - 0.5) for each in best))


def test_a_rare_finding_that_is_ranked_rightly_is_found_though_no_probability_reaches_a_half():
    truth = column([1] * 6 + [0] * 94)
    said = column([0.12] * 6 + [0.04] * 94)
    assert choose_thresholds(truth, said).tolist() == [0.12]  # of .05 … .12 that nearest a half
    assert validation_f1(truth, said) == 1
    assert macro_f1(truth, (said >= 0.5).astype(int), 1) == 0


def test_of_two_as_near_the_larger_is_taken():
    """F1 is 2/3 up to .40, where half of what is called present is wrong, and from .60 on, where half is missed."""
    truth = column([1] * 10 + [0] * 10 + [1] * 10 + [0] * 20)
    said = column([0.9] * 10 + [0.1] * 10 + [0.40] * 10 + [0.59] * 20)
    assert choose_thresholds(truth, said).tolist() == [0.6]
    assert f1_score(truth, said >= 0.4) == f1_score(truth, said >= 0.6) == pytest.approx(2 / 3)


@pytest.mark.parametrize("positives", [0, 1, LEAST - 1])
def test_too_few_examples_keep_a_half(positives):
    truth = np.zeros(50)
    truth[:positives] = 1
    said = np.where(truth == 1, 0.3, 0.1)
    for own, scores in ((truth, said), (1 - truth, 1 - said)):  # too few of either kind
        assert choose_thresholds(own[:, None], scores[:, None]).tolist() == [0.5]
    truth[:LEAST] = 1
    assert choose_thresholds(truth[:, None], np.where(truth == 1, 0.3, 0.1)[:, None]).tolist() == [0.3]


def test_a_label_that_nobody_knows_on_val_keeps_a_half_and_the_others_do_not_mind():
    truth = np.c_[np.full(40, NAN), np.r_[np.ones(20), np.zeros(20)]]
    said = np.c_[np.linspace(0, 1, 40), np.r_[np.full(20, 0.2), np.full(20, 0.1)]]
    assert choose_thresholds(truth, said).tolist() == [0.5, 0.2]


def test_a_score_that_says_nothing_keeps_a_half_rather_than_calling_everything_present():
    truth = column([1] * 10 + [0] * 40)
    assert choose_thresholds(truth, np.full((50, 1), 0.2)).tolist() == [0.5]
    upside_down = column([0.1] * 10 + [0.3] * 40)
    assert choose_thresholds(truth, upside_down).tolist() == [0.5]


def test_only_studies_with_several_classes_have_thresholds():
    collection = make_collection()
    rows = collection.rows("val")
    said = Predictions(rows, np.full((len(rows), 3), 1 / 3), None, None)
    assert validation_thresholds(collection, said) is None
    assert validation_f1(np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]]) == pytest.approx(2 / 3)
