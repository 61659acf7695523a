"""The index against the formula computed from the raw window, and what it does where something changed or nothing."""

from __future__ import annotations

import math
import threading
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from csr.bundle.format import Bundle, ConceptReference
from csr.bundle.writing import concept_references
from serving.telemetry.drift import ALARM, LEAST, WINDOW, ConceptDrift

REFERENCES = [
    ConceptReference("a", (0.2, 0.6), (0.5, 0.3, 0.2)),
    ConceptReference("b", (0.5,), (0.9, 0.1)),
    ConceptReference("constant", (), (1.0,)),
]
studies = st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.2001, 0.5, 0.6, 0.9, 1.0]), min_size=3, max_size=3))


def by_hand(reference: ConceptReference, values: list[float]) -> float:
    """The formula, bin after bin, by comparing numbers."""
    total, bins = 0.0, list(pairwise([-math.inf, *reference.edges, math.inf]))
    for (low, high), share in zip(bins, reference.shares, strict=True):
        inside = sum(low < value <= high for value in values)
        actual = (inside + 0.5) / (len(values) + 0.5 * len(bins))
        total += (actual - share) * math.log(actual / share)
    return total


@given(studies, st.integers(1, 6), st.integers(0, 6))
def test_the_index_is_the_formula_on_the_last_studies(rows: list[list[float]], least: int, more: int) -> None:
    drift = ConceptDrift(REFERENCES, window=least + more, least=least)
    for row in rows:
        drift.add(np.array(row))
    recent = rows[-(least + more) :]
    assert drift.studies == len(recent)
    values = drift.values()
    assert list(values) == ["a", "b", "constant"]
    assert values["constant"] is None
    for k, reference in enumerate(REFERENCES[:2]):
        if len(recent) < least:
            assert values[reference.concept] is None
        else:
            assert values[reference.concept] == pytest.approx(by_hand(reference, [row[k] for row in recent]))


def test_the_index_is_jeffreys_divergence() -> None:
    drift = ConceptDrift(REFERENCES[:1], window=200, least=200)
    counts = (20, 60, 120)
    for value in np.repeat([0.1, 0.4, 0.8], counts):
        drift.add(np.array([value]))
    actual = (np.array(counts) + 0.5) / 201.5
    expected = stats.entropy(actual, REFERENCES[0].shares) + stats.entropy(REFERENCES[0].shares, actual)
    assert drift.values()["a"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong", [np.zeros(2), np.zeros((1, 3)), np.array([0.1, np.nan, 0.2]), np.array([0.1, np.inf, 0.2])]
)
def test_what_is_not_one_number_a_concept_is_refused_and_not_counted(wrong: np.ndarray) -> None:
    drift = ConceptDrift(REFERENCES)
    with pytest.raises(ValueError, match="expected 3 finite numbers"):
        drift.add(wrong)
    assert drift.studies == 0


@pytest.mark.parametrize(("window", "least"), [(10, 11), (10, 0), (0, 0)])
def test_a_window_that_never_has_enough_is_refused(window: int, least: int) -> None:
    with pytest.raises(ValueError, match="least"):
        ConceptDrift(REFERENCES, window, least)


def test_without_a_change_the_index_follows_its_law_and_stays_below_the_alarm() -> None:
    """N·PSI is about χ² with B − 1 degrees of freedom."""
    rng = np.random.default_rng(0)
    (reference,) = concept_references(["a"], rng.beta(0.5, 2, (20_000, 1)))
    found = []
    for _ in range(400):
        drift = ConceptDrift([reference], LEAST, LEAST)
        for value in rng.beta(0.5, 2, (LEAST, 1)):
            drift.add(value)
        index = drift.values()["a"]
        assert index is not None
        found.append(index * LEAST)
    assert np.mean(found) == pytest.approx(9, rel=0.1)
    assert np.quantile(found, 0.95) == pytest.approx(stats.chi2(9).ppf(0.95), rel=0.15)
    assert max(found) / LEAST < ALARM


def test_a_change_raises_the_alarm_and_its_end_lets_it_fall_again() -> None:
    rng = np.random.default_rng(1)
    references = concept_references(["a", "b"], rng.beta(2, 2, (5000, 2)))
    drift = ConceptDrift(references)

    def serve(own: float) -> dict[str, float | None]:
        for row in np.stack([rng.beta(own, 2, WINDOW), rng.beta(2, 2, WINDOW)], 1):
            drift.add(row)
        return drift.values()

    for own, alarmed in ((2, False), (5, True), (2, False)):
        a, b = serve(own).values()
        assert a is not None and b is not None
        assert (a > ALARM) == alarmed
        assert b < 0.1


def test_any_number_of_threads_may_count() -> None:
    drift = ConceptDrift(REFERENCES, window=64, least=1)
    rows = np.random.default_rng(2).random((4, 500, 3))

    def count(part: np.ndarray) -> None:
        for row in part:
            drift.add(row)
            drift.values()

    threads = [threading.Thread(target=count, args=(part,)) for part in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drift.studies == 64
    for row in np.tile([0.1, 0.1, 0.1], (64, 1)):  # a lost count would stay for ever
        drift.add(row)
    assert drift.values()["a"] == pytest.approx(by_hand(REFERENCES[0], [0.1] * 64))


def test_memory_is_the_window_and_not_what_was_served() -> None:
    drift = ConceptDrift(REFERENCES, window=50, least=10)
    before = Counter({name: held.nbytes for name, held in vars(drift).items() if isinstance(held, np.ndarray)})
    for _ in range(500):
        drift.add(np.zeros(3))
    assert before == {name: held.nbytes for name, held in vars(drift).items() if isinstance(held, np.ndarray)}
    assert drift.studies == 50


def test_a_bundles_own_reference_serves(bundle: Bundle) -> None:
    drift = ConceptDrift(bundle.reference(), window=5, least=1)
    drift.add(np.full(len(bundle.manifest.concepts), 0.5, np.float32))
    assert list(drift.values()) == list(bundle.manifest.concepts)
    assert all(value is None or value > 0 for value in drift.values().values())
