"""Macro F1 and AUROC against by-hand cases and definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.evaluation.metrics import macro_auroc, macro_f1, mean_auroc

SEEDS = st.integers(0, 10_000)
CASES = settings(deadline=None, max_examples=40)


def macro_f1_by_hand(truth, predicted, classes):
    values = []
    for c in range(classes):
        hit = sum(t == c and p == c for t, p in zip(truth, predicted, strict=True))
        false_alarm = sum(t != c and p == c for t, p in zip(truth, predicted, strict=True))
        missed = sum(t == c and p != c for t, p in zip(truth, predicted, strict=True))
        total = 2 * hit + false_alarm + missed
        values.append(2 * hit / total if total else 0.0)
    return sum(values) / classes


def auroc_by_hand(truth, score):
    """Share of (positive, negative) pairs in which the positive scores higher; ties count half."""
    pairs = [(p, n) for p in score[truth == 1] for n in score[truth == 0]]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def test_macro_f1_of_a_confusion_matrix_worked_out_on_paper():
    truth = np.array([0] * 5 + [1] * 4 + [2] * 1)
    predicted = np.array([0, 0, 0, 0, 1, 1, 1, 0, 0, 1])
    # class 0: 4 hits, 2 false, 1 missed → 8/11; class 1: 2 hits, 2 false, 2 missed → 1/2; class 2: never → 0
    assert macro_f1(truth, predicted, 3) == pytest.approx((8 / 11 + 1 / 2 + 0) / 3)


@CASES
@given(SEEDS, st.integers(2, 5))
def test_macro_f1_equals_its_definition(seed, classes):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, classes, (2, 12))
    assert macro_f1(truth, predicted, classes) == pytest.approx(macro_f1_by_hand(truth, predicted, classes))


def test_a_class_neither_present_nor_predicted_counts_zero():
    assert macro_f1(np.array([0, 1]), np.array([0, 1]), 4) == pytest.approx(0.5)


@CASES
@given(SEEDS)
def test_auroc_counts_pairs_with_ties_half_and_leaves_unknown_labels_out(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0.0, 1.0, np.nan], (14, 3))
    labels[0], labels[1] = 0, 1
    scores = rng.integers(0, 5, (14, 3)) / 4
    expected = np.mean([auroc_by_hand(labels[:, k], scores[:, k]) for k in range(3)])
    assert mean_auroc(labels, scores) == pytest.approx(expected)


def test_auroc_leaves_out_columns_of_one_kind_and_is_nan_when_none_is_left():
    labels, scores = np.array([[1.0, 1], [0, 1], [1, 1]]), np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.2]])
    assert mean_auroc(labels, scores) == 1.0
    assert math.isnan(mean_auroc(labels[:, 1:], scores[:, 1:]))


def test_macro_auroc_is_one_against_the_rest():
    rng = np.random.default_rng(0)
    truth, probabilities = rng.integers(0, 3, 20), rng.random((20, 3))
    expected = np.mean([auroc_by_hand((truth == t).astype(float), probabilities[:, t]) for t in range(3)])
    assert macro_auroc(truth, probabilities) == pytest.approx(expected)
