"""Deletion and insertion where the answer is known: a model that looks at one pixel, and one at the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csr.evaluation.faithfulness import (
    SHARES,
    area,
    blurred,
    centre_ranks,
    first_cells,
    map_ranks,
    pasted,
    random_ranks,
    removal_curves,
    square_around,
    wiped,
)

SIDE, CELLS = 32, 8
PIXEL = (13, 21)  # row and column of what the model looks at; cell (3, 5)


def looks_at_one_pixel(images: torch.Tensor) -> np.ndarray:
    return images[:, 0, PIXEL[0], PIXEL[1]].numpy()[:, None] / 255


def white(count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.full((count, 1, SIDE, SIDE), 255, dtype=torch.uint8)
    return images, torch.zeros_like(images)


def map_with_peak(row: int, column: int) -> np.ndarray:
    maps = np.zeros((1, CELLS, CELLS))
    maps[0, row, column] = 1
    return maps


def test_the_right_map_of_a_one_pixel_model_deletes_at_once_and_inserts_at_once() -> None:
    images, plain = white()
    ranks = map_ranks(map_with_peak(3, 5))
    deletion = removal_curves(images, plain, ranks, looks_at_one_pixel, insertion=False)[0, :, 0]
    insertion = removal_curves(images, plain, ranks, looks_at_one_pixel, insertion=True)[0, :, 0]
    np.testing.assert_array_equal(deletion, [1.0] + [0.0] * (len(SHARES) - 1))
    np.testing.assert_array_equal(insertion, [0.0] + [1.0] * (len(SHARES) - 1))


def test_a_map_that_points_elsewhere_last_keeps_the_score_to_the_end() -> None:
    images, plain = white()
    ranks = map_ranks(-map_with_peak(3, 5))
    deletion = removal_curves(images, plain, ranks, looks_at_one_pixel, insertion=False)[0, :, 0]
    np.testing.assert_array_equal(deletion, [1.0] * (len(SHARES) - 1) + [0.0])
    assert area(deletion) > 0.7


def test_every_order_is_alike_to_a_model_that_looks_at_the_mean() -> None:
    images, plain = white(3)
    rng = np.random.default_rng(0)

    def mean(shown: torch.Tensor) -> np.ndarray:
        return shown.float().mean((1, 2, 3)).numpy()[:, None] / 255

    for ranks in (random_ranks(3, CELLS, CELLS, rng), centre_ranks(3, CELLS, CELLS)):
        curve = removal_curves(images, plain, ranks, mean, insertion=False)[..., 0]
        exact = [1 - round(share * CELLS**2) / CELLS**2 for share in SHARES]
        np.testing.assert_allclose(curve, [exact] * 3, rtol=1e-6)


def test_random_orders_lose_the_pixel_half_way_in_the_mean() -> None:
    count = 2000
    images, plain = white(count)
    ranks = random_ranks(count, CELLS, CELLS, np.random.default_rng(1))
    curves = removal_curves(images, plain, ranks, looks_at_one_pixel, insertion=False)[..., 0]
    assert area(curves).mean() == pytest.approx(0.5, abs=0.03)


def test_deletion_and_insertion_meet_at_the_ends() -> None:
    rng = np.random.default_rng(2)
    images = torch.from_numpy(rng.integers(0, 256, (2, 1, SIDE, SIDE), dtype=np.uint8))
    plain, ranks = blurred(images), random_ranks(2, CELLS, CELLS, rng)

    def everything(shown: torch.Tensor) -> np.ndarray:
        return shown.flatten(1).numpy()

    deletion, insertion = (removal_curves(images, plain, ranks, everything, insertion=way) for way in (False, True))
    np.testing.assert_array_equal(deletion[:, 0], insertion[:, -1])
    np.testing.assert_array_equal(deletion[:, -1], insertion[:, 0])
    np.testing.assert_array_equal(deletion[:, 0], everything(images))


def test_area_is_that_of_a_line_and_of_a_constant() -> None:
    assert area(np.full(len(SHARES), 0.3)) == pytest.approx(0.3)
    assert area(1 - np.array(SHARES)) == pytest.approx(0.5)


def test_orders_are_permutations_and_the_middle_comes_first() -> None:
    for ranks in (random_ranks(2, 5, 7, np.random.default_rng(0)), centre_ranks(2, 5, 7)):
        assert (np.sort(ranks.reshape(2, -1)) == np.arange(35)).all()
    assert centre_ranks(1, 5, 7)[0, 2, 3] == 0


def test_first_cells_are_whole_cells() -> None:
    mask = first_cells(map_ranks(map_with_peak(3, 5)), 1 / 64, SIDE)[0]
    assert mask.sum() == (SIDE // CELLS) ** 2
    assert mask[12:16, 20:24].all()


def test_blurring_keeps_the_mean_and_a_constant_and_smooths_the_rest() -> None:
    constant, _ = white()
    assert torch.equal(blurred(constant), constant)
    spot = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    spot[0, 0, 16, 16] = 255
    assert blurred(spot).max() < 20


def test_a_pasted_crop_and_a_wiped_square_change_their_place_alone() -> None:
    images, plain = white(2)
    corners = np.array([[3, 5], [20, 0]])
    crops = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    for changed, value in ((pasted(images, crops, corners), 7), (wiped(images, plain, corners, 4), 0)):
        assert (changed[0, 0, 5:9, 3:7] == value).all()
        assert (changed[1, 0, 0:4, 20:24] == value).all()
        assert (changed != images).sum() == 32
    assert (images == 255).all()


def test_squares_stay_inside_the_image() -> None:
    np.testing.assert_array_equal(square_around(np.array([[0.0, 31.0], [16.0, 16.0]]), SIDE, 8), [[0, 24], [12, 12]])
