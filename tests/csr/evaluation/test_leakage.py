"""Leakage against its definition, by-hand information, and systems that are known to leak or not to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from csr.evaluation.leakage import leakage

SEEDS = st.integers(0, 10_000)
CASES = settings(deadline=None, max_examples=20)


def world(seed: int, studies: int = 1000, concepts: int = 3, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Concept labels that depend on the class, and the class."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, studies)
    rates = rng.uniform(0.1, 0.9, (classes, concepts))
    return (rng.random((studies, concepts)) < rates[truth]).astype(float), truth


def corrected_entropy(*codes: np.ndarray) -> float:
    """Entropy of code tuples from scipy, with the Miller-Madow term."""
    counts = np.unique(np.stack(codes, 1), axis=0, return_counts=True)[1]
    return float(entropy(counts)) + (len(counts) - 1) / (2 * counts.sum())


def corrected_information(first: np.ndarray, second: np.ndarray) -> float:
    """Mutual information from scikit-learn, with the Miller-Madow terms of its three entropies."""
    cells = [len(np.unique(np.stack(codes, 1), axis=0)) for codes in ([first], [second], [first, second])]
    return max(0.0, mutual_info_score(first, second) + (cells[0] + cells[1] - cells[2] - 1) / (2 * len(first)))


# the definition


@CASES
@given(SEEDS)
def test_both_scores_equal_their_definitions_on_scores_of_three_values(seed):
    labels, truth = world(seed, studies=90)
    rng = np.random.default_rng(seed + 1)
    scores = np.stack([rng.permutation(np.repeat([0, 1, 2], 30)) for _ in range(3)], 1)  # thirds: one bin each
    scores[:, 0] = np.sort(scores[:, 0])[np.argsort(np.argsort(truth))]  # the first one tells the class
    scores[:, 1] = scores[:, 0]  # and the second repeats it
    labels[:2] = [[0] * 3, [1] * 3]
    # The cut where the positives begin splits no value here: every rank of a value is that value's mean rank.
    result = leakage(scores, labels, truth)
    for k in range(3):
        gain = corrected_information(scores[:, k], truth) - corrected_information(labels[:, k], truth)
        assert result.by_concept[k] == pytest.approx(max(0, gain / corrected_entropy(truth)))
        for j in range(k):
            terms = [
                corrected_information(codes[:, j], codes[:, k])
                / math.sqrt(corrected_entropy(codes[:, j]) * corrected_entropy(codes[:, k]))
                for codes in (scores, labels)
            ]
            assert result.by_pair[j, k] == result.by_pair[k, j] == pytest.approx(max(0, terms[0] - terms[1]))
    assert result.concepts_task == pytest.approx(np.mean(result.by_concept))
    assert result.interconcept == pytest.approx(np.mean(result.by_pair[np.triu_indices(3, 1)]))
    assert result.by_pair[0, 1] > 0.5


def test_a_score_that_is_the_class_worked_out_on_paper():
    labels = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]] * 1000)
    truth = labels.max(1).astype(int)  # c1 or c2: H(y) = 0.8113 bits, I(c1; y) = 0.3113 bits
    result = leakage(np.stack([truth, labels[:, 1]], 1), labels, truth)
    np.testing.assert_allclose(result.by_concept, [1 - 0.311278 / 0.811278, 0], atol=5e-4)
    # I(y; c2) is the same 0.3113 bits; H(c2) is 1 bit, and the labels tell nothing of each other.
    assert result.interconcept == pytest.approx(0.311278 / math.sqrt(0.811278), abs=5e-4)


# systems that do not leak


@CASES
@given(SEEDS, st.sampled_from([0.05, 0.3]))
def test_scores_equal_to_the_labels_leak_nothing(seed, unknown):
    labels, truth = world(seed, studies=120)
    labels[:, 2] = np.arange(120) == 7  # as rare as can be
    rng = np.random.default_rng(seed)
    scores = labels.copy()
    labels[rng.random(labels.shape) < unknown] = np.nan
    labels[7, 2] = 1
    result = leakage(scores, labels, truth)
    assert result.concepts_task == pytest.approx(0, abs=1e-12)
    assert result.interconcept == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_noisy_scores_of_the_own_concept_leak_nothing(noise):
    labels, truth = world(0)
    result = leakage(labels + noise * np.random.default_rng(1).normal(size=labels.shape), labels, truth)
    assert result.concepts_task < 0.01
    assert result.interconcept < 0.01


# systems that do


def test_a_class_hidden_in_good_concept_scores_is_seen_the_more_the_louder_it_is():
    labels, truth = world(0)
    rng = np.random.default_rng(1)
    offsets, noise = rng.normal(size=(4, 3)), rng.normal(size=labels.shape)
    results = [leakage(10 * labels + noise + loud * offsets[truth], labels, truth) for loud in (0, 0.5, 1, 2)]
    assert results[0].concepts_task < 0.005
    assert np.all(np.diff([result.concepts_task for result in results]) > 0.01)
    # The class is then common to the concepts, so they also tell of one another.
    assert results[3].interconcept > results[0].interconcept + 0.01


def test_a_concept_hidden_in_another_is_leakage_between_these_two_only():
    labels = np.random.default_rng(0).integers(0, 2, (1000, 3)).astype(float)
    truth = np.random.default_rng(1).integers(0, 4, 1000)
    scores = 10 * labels + np.random.default_rng(2).normal(size=labels.shape)
    scores[:, 0] += 3 * labels[:, 1]
    result = leakage(scores, labels, truth)
    assert result.by_pair[0, 1] > 0.1
    assert max(result.by_pair[0, 2], result.by_pair[1, 2], result.concepts_task) < 0.02


def test_what_a_rare_concept_hides_is_not_lost_in_a_bin_that_it_shares():
    truth = np.repeat([0, 1, 2], [570, 390, 40])
    label = (truth == 2).astype(float)
    rng = np.random.default_rng(0)
    score = np.where(label == 1, 100, rng.normal(size=1000) + 0.5 * truth)  # the rest tells class 0 from 1 a little
    assert leakage(score[:, None], label[:, None], truth).concepts_task > 0.02


# scales, gaps, and nothing to compare with


@CASES
@given(SEEDS)
def test_only_the_order_of_the_scores_counts(seed):
    labels, truth = world(seed, studies=100)
    scores = np.random.default_rng(seed).normal(size=labels.shape) + truth[:, None]
    plain, bent = leakage(scores, labels, truth), leakage(np.exp(3 * scores), labels, truth)
    np.testing.assert_array_equal(plain.by_concept, bent.by_concept)
    np.testing.assert_array_equal(plain.by_pair, bent.by_pair)


def test_scores_where_the_label_is_unknown_do_not_matter():
    labels, truth = world(0, studies=200)
    rng = np.random.default_rng(1)
    scores = labels + rng.normal(size=labels.shape) + truth[:, None]
    labels[rng.random(labels.shape) < 0.3] = np.nan
    changed = np.where(np.isnan(labels), rng.normal(size=labels.shape), scores)
    np.testing.assert_array_equal(leakage(scores, labels, truth).by_concept, leakage(changed, labels, truth).by_concept)
    np.testing.assert_array_equal(leakage(scores, labels, truth).by_pair, leakage(changed, labels, truth).by_pair)


def test_a_concept_that_does_not_vary_is_left_out():
    labels, truth = world(0, studies=200)
    scores = labels + truth[:, None]
    whole = leakage(scores, labels, truth)
    labels[:, 2] = np.where(labels[:, 2] == 1, 1, np.nan)
    result = leakage(scores, labels, truth)
    assert np.isnan(result.by_concept).tolist() == [False, False, True]
    assert result.concepts_task == pytest.approx(whole.by_concept[:2].mean())
    assert result.interconcept == whole.by_pair[0, 1] > 0
    assert np.isnan(result.by_pair[2]).all()


def test_one_class_one_concept_or_constant_scores():
    labels, truth = world(0, studies=200)
    assert math.isnan(leakage(labels, labels, np.zeros_like(truth)).concepts_task)
    assert math.isnan(leakage(labels[:, :1], labels[:, :1], truth).interconcept)
    with np.errstate(all="raise"):
        silent = leakage(np.zeros_like(labels), labels, truth)
    assert (silent.concepts_task, silent.interconcept) == (0, 0)
