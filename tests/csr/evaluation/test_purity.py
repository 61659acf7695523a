"""Purity of prototypes against forms: by hand, and what must hold whatever the findings are."""

from __future__ import annotations

import numpy as np
import pytest

from csr.evaluation.purity import NO_FORM, SortedFindings, chance, purity, stands_for


def findings(*rows: tuple[int, int, int]) -> SortedFindings:
    """Rows of concept, winner, form."""
    return SortedFindings(*np.array(rows).T)


TRAIN = findings((0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 1), (1, 0, 0), (1, 0, 0), (1, 2, 1), (1, 2, 0))


def test_a_prototype_stands_for_what_it_wins_most():
    found = stands_for(TRAIN, concepts=2, per_concept=3, forms=2)
    np.testing.assert_array_equal(found, [[0, 1, NO_FORM], [0, NO_FORM, 0]])


def test_by_hand():
    test = findings((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 2, 1), (1, 0, 0), (1, 2, 1))
    found = purity(TRAIN, test, concepts=2, per_concept=3, forms=2)
    assert found.purity == pytest.approx(3 / 6)  # the first, the third and the fifth
    assert found.coverage == pytest.approx(3 / 4)  # concept 1 has no prototype of form 1
    np.testing.assert_allclose(found.by_concept, [2 / 4, 1 / 2])
    np.testing.assert_allclose(found.recall, [2 / 2, 1 / 4])
    np.testing.assert_allclose(found.precision, [2 / 4, 1 / 1])
    np.testing.assert_allclose(found.recall_by_concept, [[1, 1 / 3], [1, 0]])


def drawn(seed: int, per_concept: int, n: int = 400) -> SortedFindings:
    rng = np.random.default_rng(seed)
    return SortedFindings(rng.integers(3, size=n), rng.integers(per_concept, size=n), (rng.random(n) < 0.2).astype(int))


def test_one_prototype_a_concept_finds_the_frequent_form_alone_and_so_does_chance():
    train, test = drawn(0, 1), drawn(1, 1)
    found = purity(train, test, 3, 1, 2)
    assert found.purity == pytest.approx((test.form == 0).mean())
    assert found.coverage == 0.5
    np.testing.assert_array_equal(found.recall, [1, 0])
    assert np.isnan(found.precision[1])
    assert {each.purity for each in chance(train, test, 3, 1, 2, draws=5)} == {found.purity}


def test_prototypes_that_know_the_form_are_pure_and_above_every_shuffle():
    train, test = drawn(0, 2), drawn(1, 2)
    train, test = (SortedFindings(each.concept, each.form, each.form) for each in (train, test))
    found, shuffled = purity(train, test, 3, 2, 2), chance(train, test, 3, 2, 2, draws=20)
    assert found.purity == found.coverage == 1
    np.testing.assert_array_equal(found.recall, [1, 1])
    assert max(each.recall[1] for each in shuffled) < 0.5


def test_prototypes_that_know_nothing_are_within_chance():
    train, test = drawn(0, 5), drawn(1, 5)
    found, shuffled = purity(train, test, 3, 5, 2), chance(train, test, 3, 5, 2)
    low, high = np.percentile([each.purity for each in shuffled], [0.5, 99.5])
    assert low <= found.purity <= high


def test_shuffling_keeps_the_forms_of_each_concept_and_is_seeded():
    train, test = drawn(0, 5), drawn(1, 5)
    first, second = (chance(train, test, 3, 5, 2, draws=3) for _ in range(2))
    assert [each.purity for each in first] == [each.purity for each in second]
    one = SortedFindings(train.concept, train.winner, np.zeros_like(train.form))  # nothing to shuffle
    assert {each.coverage for each in chance(one, test, 3, 5, 2, draws=3)} == {1.0}
