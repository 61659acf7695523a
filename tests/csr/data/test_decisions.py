"""What probabilities say: decisions at thresholds, and how sure they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from csr.data.decisions import HALF, centred, decide, decision_margin, study_confidence, wants_help

CASES = settings(deadline=None, max_examples=80)
PERCENT = st.integers(1, 99).map(lambda percent: percent / 100)


@CASES
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0.01, 1))
def test_help_is_wanted_when_the_best_two_are_close(values, margin):
    first, second = sorted(values, reverse=True)[:2]
    assume(abs(first - second - margin) > 1e-9)
    assert bool(wants_help(np.array(values), margin)) == (first - second < margin)


def test_help_is_decided_image_by_image_at_the_papers_margin():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.1, 0.2, 0.7], [0.2, 0.45, 0.35]])
    assert wants_help(probabilities).tolist() == [False, True, False, True]


@CASES
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5))
def test_thresholds_of_a_half_change_nothing_to_the_last_bit(values):
    p = np.array([values], np.float32)
    halves = np.full(len(values), HALF)
    for measure in (decide, study_confidence, decision_margin):
        plain = measure(p.astype(np.float64), True) if measure is decision_margin else measure(p, True)
        np.testing.assert_array_equal(measure(p, True, thresholds=halves), plain)
    assert decide(p, False, halves).tolist() == decide(p, False).tolist() == [int(np.argmax(values))]


@CASES
@given(st.floats(0, 1), PERCENT)
def test_a_class_is_there_from_its_threshold_on_and_centred_probabilities_say_so_at_a_half(p, threshold):
    said = decide(np.array([p]), True, np.array([threshold]))
    assert bool(said[0]) == (p >= threshold)
    own = float(centred(np.array([p]), np.array([threshold]))[0])
    assert 0 <= own <= 1
    assert (own >= HALF) == (p >= threshold)


@CASES
@given(PERCENT, st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_centring_keeps_the_order_and_the_ends(threshold, values):
    values = np.sort(np.array([0.0, threshold, 1.0, *values]))
    found = centred(values[:, None], np.array([threshold]))[:, 0]
    assert (np.diff(found) >= -1e-15).all()
    assert found[0] == 0 and found[-1] == 1
    assert found[values == threshold] == pytest.approx(HALF)


def test_a_study_is_as_sure_as_its_least_certain_decision_by_hand():
    p, thresholds = np.array([[0.1, 0.9], [0.3, 0.2]]), np.array([0.2, 0.6])
    # .1 is half-way below .2, .9 three quarters above .6; .3 an eighth above .2, .2 two thirds below .6
    assert decide(p, True, thresholds).tolist() == [[0, 1], [1, 0]]
    assert study_confidence(p, True, thresholds).tolist() == pytest.approx([0.75, 0.5625])
    assert decision_margin(p, True, thresholds).tolist() == pytest.approx([0.5, 0.125])
    assert wants_help(p, 0.3, True, thresholds).tolist() == [False, True]
