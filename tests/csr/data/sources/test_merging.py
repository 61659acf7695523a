"""Merging boxes: against loops over pixels, on cases worked out by hand, and on what must not change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.data.records import CORNERS
from csr.data.sources.merging import merge_overlapping


def table(*rows: tuple[str, str, float, float, float, float]) -> pd.DataFrame:
    boxes = pd.DataFrame(rows, columns=["study_id", "concept", *CORNERS]).astype(dict.fromkeys(CORNERS, np.float64))
    return boxes.assign(where=[f"boxes.csv row {row + 2}" for row in range(len(boxes))])


def merged(boxes: pd.DataFrame, least_iou: float = 0.5) -> list[list[float]]:
    return merge_overlapping(boxes, least_iou)[CORNERS].to_numpy().tolist()


def test_boxes_that_overlap_become_their_mean_and_the_others_stay_bit_for_bit():
    boxes = table(("a", "nodule", 0, 0, 10, 10), ("a", "nodule", 50.3, 50.7, 60.1, 61.9), ("a", "nodule", 2, 0, 12, 10))
    found = merge_overlapping(boxes, 0.5)  # 80 of 120 pixels are shared: 2/3
    assert found[CORNERS].to_numpy().tolist() == [[1, 0, 11, 10], [50.3, 50.7, 60.1, 61.9]]
    assert found["where"].tolist() == ["boxes.csv row 2", "boxes.csv row 3"]


@pytest.mark.parametrize(("least_iou", "count"), [(2 / 3, 1), (2 / 3 + 1e-9, 2), (1e-9, 1), (1.0, 2)])
def test_the_overlap_counts_from_the_threshold_on(least_iou, count):
    assert len(merged(table(("a", "n", 0, 0, 10, 10), ("a", "n", 2, 0, 12, 10)), least_iou)) == count


def test_boxes_that_only_touch_never_merge_and_equal_ones_always_do():
    assert len(merged(table(("a", "n", 0, 0, 10, 10), ("a", "n", 10, 0, 20, 10)), 1e-9)) == 2
    assert merged(table(("a", "n", 0, 0, 3, 3), ("a", "n", 0, 0, 3, 3)), 1.0) == [[0, 0, 3, 3]]


def test_a_chain_of_overlaps_is_one_group():
    chain = [("a", "n", 3.0 * step, 0, 3.0 * step + 10, 10) for step in range(3)]  # ends share 4 of 16
    assert merged(table(*chain)) == [[3, 0, 13, 10]]
    assert len(merged(table(chain[0], chain[2]))) == 2


def test_other_findings_and_other_images_are_other_boxes():
    box = (0, 0, 10, 10)
    assert len(merged(table(("a", "nodule", *box), ("a", "effusion", *box), ("b", "nodule", *box)))) == 3


def test_nothing_is_nothing():
    assert merge_overlapping(table(), 0.5).empty


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
def test_groups_and_corners_are_those_of_loops(seed, least_iou):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, (14, 2))
    corners = np.hstack([low, low + rng.integers(1, 12, (14, 2))])
    names = rng.integers(0, 2, (14, 2))
    boxes = table(*((f"s{s}", f"c{c}", *box) for (s, c), box in zip(names.tolist(), corners.tolist(), strict=True)))

    def pixels(box: np.ndarray) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    def together(i: int, j: int) -> bool:
        one, two = pixels(corners[i]), pixels(corners[j])
        return bool((names[i] == names[j]).all()) and len(one & two) / len(one | two) >= least_iou

    left, expected = list(range(14)), []
    while left:
        group = [left.pop(0)]
        for member in group:  # grows while it is walked
            near = [i for i in left if together(member, i)]
            group += near
            left = [i for i in left if i not in near]
        expected.append(corners[sorted(group)].mean(0).tolist())
    np.testing.assert_allclose(merged(boxes, least_iou), expected, rtol=1e-12)
