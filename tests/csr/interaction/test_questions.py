"""The next question against a numpy oracle: what an answer is expected to tell about the classes, in bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.interaction.questions import Question, Said, entropy, expected_effects, questions

CASES = settings(deadline=None, max_examples=60)
CONCEPTS = ("a", "b", "c", "d")
BOTH = pytest.mark.parametrize("multilabel", [False, True])


def entropy_by_hand(probabilities: np.ndarray, multilabel: bool) -> float:
    total = 0.0
    for p in probabilities.astype(float):
        for own in (p, 1 - p) if multilabel else (p,):
            total -= own * np.log2(own) if own > 0 else 0
    return total


def drawn(rng: np.random.Generator, *shape: int, multilabel: bool) -> np.ndarray:
    """Class probabilities, some of them certain."""
    values = rng.random(shape) ** rng.choice([1, 8])
    values[rng.random(shape[:-1]) < 0.1] = np.eye(shape[-1])[0]
    return values if multilabel else values / values.sum(-1, keepdims=True)


class Model:
    """K concepts that each add to T logits what their own answer says, by a table that is drawn at random; remembers
    what it was asked."""

    def __init__(self, seed: int, multilabel: bool) -> None:
        rng = np.random.default_rng(seed)
        self.table = rng.normal(0, 2, (3, len(CONCEPTS), 3))
        self.bias, self.multilabel = rng.normal(size=3), multilabel
        self.asked: list[list[float]] = []

    def __call__(self, answers: np.ndarray) -> np.ndarray:
        self.asked += answers.tolist()
        return np.stack([self.contributions(each) for each in answers])

    def contributions(self, answers: np.ndarray) -> np.ndarray:
        return self.table[answers.astype(int), np.arange(len(CONCEPTS))]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        if self.multilabel:
            return 1 / (1 + np.exp(-logits))
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def said(self, answers: np.ndarray) -> Said:
        contributions = self.contributions(answers)
        logits = contributions.sum(0) + self.bias
        return Said(contributions, logits, self.probabilities(logits))


def found_by(model: Model, answers: np.ndarray, likely: np.ndarray) -> list[Question]:
    return questions(answers, model.said(answers), likely, CONCEPTS, model, model.probabilities, model.multilabel)


@BOTH
@CASES
@given(st.integers(0, 10_000))
def test_expected_effects_equal_the_formula(multilabel, seed):
    rng = np.random.default_rng(seed)
    before, present, absent = (drawn(rng, 5, *own, 3, multilabel=multilabel) for own in ((), (4,), (4,)))
    likely = rng.random((5, 4))
    effects = expected_effects(before, present, absent, likely, multilabel)
    assert effects.shape == (5, 4)
    for n, k in np.ndindex(5, 4):
        told = likely[n, k] * entropy_by_hand(present[n, k], multilabel)
        told += (1 - likely[n, k]) * entropy_by_hand(absent[n, k], multilabel)
        assert effects[n, k] == pytest.approx(entropy_by_hand(before[n], multilabel) - told, abs=1e-6)


def test_entropies_that_are_known():
    bits = entropy(np.array([[0.5, 0.5], [1, 0], [0.25, 0.75]]), False)
    assert bits.tolist() == pytest.approx([1, 0, 0.8112781], abs=1e-7)
    assert entropy(np.full(8, 0.125), False) == pytest.approx(3)
    assert entropy(np.array([0.5, 0.5, 1.0]), True) == pytest.approx(2)
    assert entropy(np.array([0.5], np.float32), True).dtype == np.float64


def test_an_answer_that_settles_everything_is_worth_all_that_is_open_and_one_that_changes_nothing_nothing():
    half = np.array([0.5, 0.5])
    present, absent = np.array([[1.0, 0], [0.5, 0.5]]), np.array([[0, 1.0], [0.5, 0.5]])
    effects = expected_effects(half, present, absent, np.array([0.3, 0.3]), False)
    assert effects.tolist() == pytest.approx([1, 0], abs=1e-9)


@BOTH
@CASES
@given(st.integers(0, 10_000), st.lists(st.sampled_from([-1, 0, 1]), min_size=4, max_size=4))
def test_every_open_concept_is_a_question_and_the_most_telling_comes_first(
    multilabel: bool, seed: int, given_answers: list[int]
) -> None:
    """Against reasoning once for each answer."""
    answers = np.array(given_answers, np.float32)
    model, likely = Model(seed, multilabel), np.random.default_rng(seed).random(4)
    found = found_by(model, answers, likely)
    assert {each.concept for each in found} == {name for name, one in zip(CONCEPTS, answers, strict=True) if not one}
    assert [each.effect for each in found] == sorted((each.effect for each in found), reverse=True)
    before = model.said(answers).probabilities
    for each in found:
        k = CONCEPTS.index(each.concept)
        after = []
        for answer in (1, -1):
            told = answers.copy()
            told[k] = answer
            after.append(model.said(told).probabilities)
        np.testing.assert_allclose([each.if_confirmed, each.if_rejected], after, atol=1e-12)
        told_bits = likely[k] * entropy_by_hand(after[0], multilabel)
        told_bits += (1 - likely[k]) * entropy_by_hand(after[1], multilabel)
        assert each.effect == pytest.approx(entropy_by_hand(before, multilabel) - told_bits, abs=1e-6)


def test_what_was_said_before_is_kept_and_two_reasonings_tell_everything() -> None:
    model = Model(0, False)
    found = found_by(model, np.array([0, 1, 0, -1], np.float32), np.full(4, 0.5))
    assert sorted(each.concept for each in found) == ["a", "c"]
    assert model.asked == [[1, 1, 1, -1], [-1, 1, -1, -1]]


def test_where_everything_was_answered_nothing_is_asked() -> None:
    model = Model(0, False)
    assert found_by(model, np.array([1, 1, -1, -1], np.float32), np.full(4, 0.5)) == []
    assert model.asked == []
