"""Where simulated readers put boxes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.interaction.placing import elsewhere, shifted

SIDE = 64


@st.composite
def boxes(draw):
    extent = np.array([draw(st.integers(2, 40)), draw(st.integers(2, 40))], float)
    corner = np.array([draw(st.integers(0, SIDE - int(each))) for each in extent], float)
    return np.concatenate([corner, corner + extent])


@settings(deadline=None)
@given(boxes(), st.integers(0, 1000))
def test_a_box_keeps_its_size_and_stays_in_the_image(box, seed):
    rng = np.random.default_rng(seed)
    for moved in (shifted(box, SIDE, rng), elsewhere(box, box[None], SIDE, rng)):
        np.testing.assert_allclose(moved[2:] - moved[:2], box[2:] - box[:2])
        assert (moved[:2] >= 0).all() and (moved[2:] <= SIDE + 1e-9).all()


def test_a_careless_hand_is_off_by_half_of_the_box_in_any_direction():
    box, rng = np.array([26.0, 28, 38, 36]), np.random.default_rng(0)
    steps = np.stack([shifted(box, SIDE, rng)[:2] - box[:2] for _ in range(400)]) / np.array([6, 4])
    np.testing.assert_allclose(np.hypot(*steps.T), 1)
    np.testing.assert_allclose(steps.mean(0), 0, atol=0.15)


def test_elsewhere_is_off_the_findings_where_there_is_room():
    findings, rng = np.array([[0.0, 0, 20, 20], [30, 30, 40, 40]]), np.random.default_rng(0)
    for _ in range(50):
        x_min, y_min, x_max, y_max = elsewhere(findings[1], findings, SIDE, rng)
        apart = [x_max <= left or right <= x_min or y_max <= top or low <= y_min for left, top, right, low in findings]
        assert all(apart)
