"""The next question against a numpy oracle: what an answer is expected to tell about the classes, in bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.interaction.corrections import Interaction, RegionBox
from csr.interaction.questions import entropy, expected_effects, questions

CASES = settings(deadline=None, max_examples=60)
CONCEPTS = ("a", "b", "c", "d")
FINDING = RegionBox(0, 0, 5, 5, "finding", "b")
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
    """Answers by a table: class probabilities of every set of answers, drawn at random; remembers what it was asked."""

    def __init__(self, seed: int, multilabel: bool) -> None:
        self.seed, self.multilabel, self.asked = seed, multilabel, []

    def __call__(self, interactions: Sequence[Interaction]) -> np.ndarray:
        self.asked += interactions
        return np.stack([self.answer(each) for each in interactions])

    def answer(self, interaction: Interaction) -> np.ndarray:
        said = [1 if name in interaction.present else 2 if name in interaction.rejected else 0 for name in CONCEPTS]
        return drawn(np.random.default_rng([self.seed, *said]), 3, multilabel=self.multilabel)


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
@given(st.integers(0, 10_000), st.sets(st.sampled_from(CONCEPTS)), st.data())
def test_every_open_concept_is_a_question_and_the_most_telling_comes_first(multilabel, seed, known, data):
    yes = data.draw(st.sets(st.sampled_from(sorted(known)))) if known else set()
    boxes = (FINDING,) if "b" in yes and data.draw(st.booleans()) else ()
    said = Interaction(boxes, tuple(yes - {"b"} if boxes else yes), tuple(known - yes), alpha=0.3, rejection="zero")
    model = Model(seed, multilabel)
    before, likely = model.answer(said), np.random.default_rng(seed).random(4)
    found = questions(said, before, likely, CONCEPTS, model, multilabel)
    assert {each.concept for each in found} == set(CONCEPTS) - known
    assert [each.effect for each in found] == sorted((each.effect for each in found), reverse=True)
    for each in found:
        k = CONCEPTS.index(each.concept)
        after = [
            model.answer(Interaction(boxes, (*said.confirmed, *more), (*said.rejected, *less)))
            for more, less in (((each.concept,), ()), ((), (each.concept,)))
        ]
        np.testing.assert_array_equal([each.if_confirmed, each.if_rejected], after)
        told = likely[k] * entropy_by_hand(after[0], multilabel)
        told += (1 - likely[k]) * entropy_by_hand(after[1], multilabel)
        assert each.effect == pytest.approx(entropy_by_hand(before, multilabel) - told, abs=1e-6)


def test_what_was_said_before_is_kept_in_every_question_and_nothing_contradictory_is_asked():
    """An interaction that contradicted itself would be refused where it is made."""
    said = Interaction((RegionBox(0, 0, 9, 9, "ignore"), FINDING), rejected=("d",), alpha=0.5, background="alpha")
    model = Model(0, False)
    found = questions(said, model.answer(said), np.full(4, 0.5), CONCEPTS, model)
    assert sorted(each.concept for each in found) == ["a", "c"]
    assert len(model.asked) == 4
    for each in model.asked:
        assert (each.boxes, each.alpha, each.background) == (said.boxes, 0.5, "alpha")
        assert "d" in each.rejected and "b" in each.present
        assert len({*each.present, *each.rejected}) == 3


def test_where_everything_was_answered_nothing_is_asked():
    said, model = Interaction((FINDING,), confirmed=("a",), rejected=("c", "d")), Model(0, False)
    assert questions(said, model.answer(said), np.full(4, 0.5), CONCEPTS, model) == []
    assert model.asked == []
