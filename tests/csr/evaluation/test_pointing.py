"""Where a map points, and the pointing game, against by-hand cases and definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.evaluation.peaks import map_peaks
from csr.evaluation.pointing import inside, mean_box_centres, pointing_game

CASES = settings(deadline=None, max_examples=40)


@CASES
@given(st.integers(0, 5), st.integers(0, 7))
def test_a_lone_bright_cell_is_pointed_at_inside_that_cell(row, column):
    maps = np.zeros((1, 1, 6, 8))
    maps[0, 0, row, column] = 1
    x, y = map_peaks(maps, 48)[0, 0]
    assert column * 6 <= x <= (column + 1) * 6
    assert row * 8 <= y <= (row + 1) * 8


def test_the_enlargement_is_smooth_so_that_the_peak_leans_towards_a_bright_neighbour():
    maps = np.zeros((1, 1, 5, 5))
    maps[0, 0, 2, 2], maps[0, 0, 2, 3] = 1.0, 0.9
    x, y = map_peaks(maps, 100)[0, 0]
    assert 50 < x <= 60
    assert y == pytest.approx(50, abs=0.5)


def test_peaks_keep_the_order_of_many_maps():
    rng = np.random.default_rng(0)
    maps = rng.random((90, 7, 4, 4))  # more than one chunk
    peaks = map_peaks(maps, 16)
    assert peaks.shape == (90, 7, 2)
    np.testing.assert_array_equal(peaks[77, 3], map_peaks(maps[77, 3], 16))


# the pointing game


def test_pointing_game_worked_out_by_hand():
    boxes = {
        (10, 0): np.array([[0.0, 0, 5, 10]]),  # covers 50 of 100
        (10, 1): np.array([[0.0, 0, 1, 10], [0, 0, 10, 1]]),  # 10 + 10 − 1 shared = 19
        (11, 0): np.array([[8.0, 8, 10, 10]]),  # 4
        (99, 0): np.array([[0.0, 0, 10, 10]]),  # not judged
    }
    peaks = np.array([[[2.5, 2.5], [5.5, 5.5]], [[0.5, 9.5], [0.5, 0.5]]])  # hit, miss; miss, no box
    centres = np.array([[9.0, 9.0], [0.5, 7.0]])  # misses (10, 0), hits (11, 0), hits (10, 1)
    result = pointing_game(peaks, boxes, np.array([10, 11]), centres, 10)
    assert result.pairs == 3
    assert result.pair == pytest.approx(1 / 3)
    assert result.image == pytest.approx((1 / 2 + 0) / 2)
    assert result.chance == pytest.approx((0.50 + 0.19 + 0.04) / 3)
    assert result.centre == pytest.approx(2 / 3)
    np.testing.assert_allclose(result.by_concept, [1 / 2, 0])
    np.testing.assert_allclose(result.chance_by_concept, [(0.50 + 0.04) / 2, 0.19])
    np.testing.assert_allclose(result.centre_by_concept, [1 / 2, 1])
    assert result.pairs_by_concept.tolist() == [2, 1]


def test_a_concept_without_boxes_has_no_hit_rate_and_without_any_box_nothing_has():
    peaks, centres = np.zeros((1, 2, 2)), np.zeros((2, 2))
    some = pointing_game(peaks, {(0, 1): np.array([[0.0, 0, 4, 4]])}, np.array([0]), centres, 8)
    assert math.isnan(some.by_concept[0])
    assert some.by_concept[1] == 1
    assert math.isnan(some.chance_by_concept[0]) and math.isnan(some.centre_by_concept[0])
    assert some.pairs_by_concept.tolist() == [0, 1]
    none = pointing_game(peaks, {}, np.array([0]), centres, 8)
    assert none.pairs == 0
    assert all(math.isnan(value) for value in (none.pair, none.image, none.chance, none.centre))
    assert np.isnan([none.by_concept, none.chance_by_concept, none.centre_by_concept]).all()


def test_chance_is_what_random_points_hit():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 21, (30, 2, 2)), axis=1).reshape(30, 4) + np.array([0, 0, 1, 1])
    boxes = {(row, 0): corner[None].astype(float) for row, corner in enumerate(corners)}
    rows, centres = np.arange(30), np.full((1, 2), 10.0)
    level = pointing_game(np.zeros((30, 1, 2)), boxes, rows, centres, 21).chance
    rates = [pointing_game(rng.random((30, 1, 2)) * 21, boxes, rows, centres, 21).pair for _ in range(300)]
    assert np.mean(rates) == pytest.approx(level, abs=0.02)


@pytest.mark.parametrize(
    ("point", "expected"), [((2, 2), True), ((4, 6), True), ((4.01, 6), False), ((3, 1.99), False), ((9.5, 9.5), True)]
)
def test_a_point_is_inside_up_to_and_including_the_edges_of_any_box(point, expected):
    assert inside(np.array(point), np.array([[2.0, 2, 4, 6], [9, 9, 10, 10]])) == expected


def test_mean_box_centres_use_training_boxes_only_and_default_to_the_middle():
    boxes = {
        (0, 0): np.array([[0.0, 0, 4, 8], [8, 8, 12, 12]]),
        (1, 0): np.array([[2.0, 4, 4, 6]]),
        (2, 0): np.array([[30.0, 30, 32, 32]]),  # a test row
    }
    centres = mean_box_centres(boxes, np.array([0, 1]), 2, 32)
    np.testing.assert_allclose(centres, [[(2 + 10 + 3) / 3, (4 + 10 + 5) / 3], [16, 16]])
