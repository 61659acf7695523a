"""Boxes and answers → importance map, answers and places, against a cell-by-cell oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csr.interaction.corrections import (
    Interaction,
    InteractionError,
    RegionBox,
    answer_vector,
    importance_map,
    interaction_tensors,
    place_maps,
)

SIDE = 96
CONCEPTS = ("a", "b", "c")
KINDS = st.sampled_from(["focus", "ignore", "finding"])
CASES = settings(deadline=None, max_examples=80)


def overlap(low: float, high: float, start: float, end: float) -> float:
    return max(0.0, min(high, end) - max(low, start))


def reached(box: RegionBox, side: float, height: int, width: int) -> np.ndarray:
    """By the module's words: an ignore box reaches what it shares half with at least, any other what it touches."""
    cells = np.zeros((height, width), bool)
    tall, wide = side / height, side / width
    left, right = max(box.x_min, 0), min(box.x_max, side)
    top, bottom = max(box.y_min, 0), min(box.y_max, side)
    for i, j in np.ndindex(height, width):
        across = overlap(left, right, j * wide, (j + 1) * wide)
        down = overlap(top, bottom, i * tall, (i + 1) * tall)
        least = 0.5 * (1 - 1e-6) if box.kind == "ignore" else 1e-6
        cells[i, j] = across >= least * min(wide, right - left) and down >= least * min(tall, bottom - top)
    return cells


def importance_by_hand(interaction: Interaction, side: float, height: int, width: int) -> np.ndarray:
    weights = np.ones((height, width))
    cells = [(box.kind, reached(box, side, height, width)) for box in interaction.boxes]
    has_focus, has_ignore = (any(kind == each for kind, _ in cells) for each in ("focus", "ignore"))
    for i, j in np.ndindex(height, width):
        kinds = {kind for kind, where in cells if where[i, j]}
        if "ignore" in kinds:
            weights[i, j] = 0
        elif "focus" not in kinds and (has_focus or (has_ignore and interaction.background == "alpha")):
            weights[i, j] = -1 if interaction.alpha is None else interaction.alpha
    return weights


def places_by_hand(interaction: Interaction, height: int, width: int) -> np.ndarray | None:
    """K×h×w, or None where ignore boxes leave nothing of a finding."""
    ignored = np.zeros((height, width), bool)
    for box in interaction.boxes:
        ignored |= reached(box, SIDE, height, width) & (box.kind == "ignore")
    places = np.zeros((len(CONCEPTS), height, width))
    for box in interaction.boxes:
        if box.kind == "finding":
            left = reached(box, SIDE, height, width) & ~ignored
            if not left.any():
                return None
            places[CONCEPTS.index(box.concept)] += left
    return places.clip(max=1)


@st.composite
def boxes(draw, kinds=KINDS):
    """Boxes of every shape that touch the image, some reaching beyond it, some thinner than a pixel."""
    corners = []
    for _ in range(2):
        length = draw(st.floats(1e-3, 1.5 * SIDE))
        low = draw(st.floats(-length + 1e-3, SIDE - 1e-3))
        corners.append((low, low + length))
    (left, right), (top, bottom) = corners
    kind = draw(kinds)
    return RegionBox(left, top, right, bottom, kind, draw(st.sampled_from(CONCEPTS)) if kind == "finding" else None)


@CASES
@given(
    st.lists(boxes(), max_size=3),
    st.none() | st.floats(0, 1),
    st.sampled_from(["keep", "alpha"]),
    st.sampled_from([5, 6, 12]),
)
def test_the_importance_map_equals_the_cell_by_cell_rule(drawn, alpha, background, width):
    interaction = Interaction(tuple(drawn), alpha=alpha, background=background)
    own = importance_map(interaction, SIDE, 6, width)
    np.testing.assert_allclose(own, importance_by_hand(interaction, SIDE, 6, width), atol=1e-6)
    assert own.dtype == np.float32


@CASES
@given(st.lists(boxes(), max_size=4), st.sampled_from([5, 6, 12]))
@example([RegionBox(0, 0, 32, 16, "finding", "b"), RegionBox(0, 0, 16, 16, "ignore")], 6)
@example([RegionBox(0, 0, 32, 16, "ignore"), RegionBox(0, 0, 32, 16, "finding", "b")], 6)
def test_the_places_equal_the_cell_by_cell_rule_or_the_contradiction_is_refused(drawn, width):
    interaction = Interaction(tuple(drawn))
    expected = places_by_hand(interaction, 6, width)
    if expected is None:
        with pytest.raises(InteractionError, match="to ignore all"):
            place_maps(interaction, CONCEPTS, SIDE, 6, width)
        return
    own = place_maps(interaction, CONCEPTS, SIDE, 6, width)
    np.testing.assert_array_equal(own, expected)
    assert own.dtype == np.float32


def test_a_finding_box_weighs_nothing():
    """To say what is here is not to say that the rest matters less."""
    interaction = Interaction((RegionBox(0, 0, 32, 16, "finding", "a"),), alpha=0.0, background="alpha")
    assert (importance_map(interaction, SIDE, 6, 6) == 1).all()


def test_a_finding_box_reaches_every_cell_it_touches_but_those_that_are_ignored():
    finding, ignore = RegionBox(10, 0, 50, 16, "finding", "b"), RegionBox(0, 0, 20, 96, "ignore")
    places = place_maps(Interaction((finding, ignore)), CONCEPTS, SIDE, 6, 6)
    assert np.argwhere(places).tolist() == [[1, 0, 1], [1, 0, 2], [1, 0, 3]]


def test_several_findings_of_one_concept_are_one_set_of_places():
    pair = (RegionBox(0, 0, 16, 16, "finding", "c"), RegionBox(80, 80, 96, 96, "finding", "c"))
    assert np.argwhere(place_maps(Interaction(pair), CONCEPTS, SIDE, 6, 6)).tolist() == [[2, 0, 0], [2, 5, 5]]


def test_no_box_means_weight_one_everywhere_even_with_rejections_and_alpha_background():
    interaction = Interaction(rejected=("a",), alpha=0.0, background="alpha")
    assert (importance_map(interaction, SIDE, 6, 6) == 1).all()


@CASES
@given(boxes(), st.integers(1, 14), st.integers(1, 14))
@example(RegionBox(0, 0, 0.01, 96), 6, 6)
@example(RegionBox(-50, 95.99, 1e-3, 300), 7, 7)
@example(RegionBox(15.99, 15.99, 16.01, 16.01), 6, 6)
def test_every_box_reaches_at_least_one_cell(box, height, width):
    ignore = RegionBox(box.x_min, box.y_min, box.x_max, box.y_max, "ignore")
    weights = importance_map(Interaction((ignore,)), SIDE, height, width)
    assert (weights == 0).any()


@CASES
@given(boxes(), st.integers(1, 14))
def test_a_box_reaches_only_cells_that_it_touches(box, cells):
    ignore = RegionBox(box.x_min, box.y_min, box.x_max, box.y_max, "ignore")
    cell = SIDE / cells
    for i, j in np.argwhere(importance_map(Interaction((ignore,)), SIDE, cells, cells) == 0):
        assert overlap(box.x_min, box.x_max, j * cell, (j + 1) * cell) > 0
        assert overlap(box.y_min, box.y_max, i * cell, (i + 1) * cell) > 0


@CASES
@given(boxes(st.just("focus")), boxes(st.just("ignore")), st.booleans())
def test_the_ignore_box_wins_where_both_overlap_in_either_order(focus, ignore, swapped):
    pair = (ignore, focus) if swapped else (focus, ignore)
    weights = importance_map(Interaction(pair), SIDE, 6, 6)
    assert (weights[reached(ignore, SIDE, 6, 6)] == 0).all()
    rest = reached(focus, SIDE, 6, 6) & ~reached(ignore, SIDE, 6, 6)
    assert (weights[rest] == 1).all()


def test_alpha_weighs_the_outside_of_a_focus_box_only():
    inside = np.zeros((6, 6), bool)
    inside[0, :2] = True
    box = (0.0, 0.0, 32.0, 16.0)
    attend = importance_map(Interaction((RegionBox(*box),), alpha=0.2), SIDE, 6, 6)
    np.testing.assert_allclose(attend, np.where(inside, 1, 0.2).astype(np.float32))
    ignore = importance_map(Interaction((RegionBox(*box, "ignore"),), alpha=0.2), SIDE, 6, 6)
    np.testing.assert_allclose(ignore, np.where(inside, 0, 1))
    letter = Interaction((RegionBox(*box, "ignore"),), alpha=0.2, background="alpha")
    np.testing.assert_allclose(importance_map(letter, SIDE, 6, 6), np.where(inside, 0, 0.2).astype(np.float32))


@CASES
@given(st.lists(boxes(st.just("focus")), min_size=1, max_size=3))
def test_alpha_one_makes_focus_boxes_harmless(drawn):
    assert (importance_map(Interaction(tuple(drawn), alpha=1.0), SIDE, 6, 6) == 1).all()


def test_without_an_alpha_the_outside_of_a_focus_box_is_marked_for_each_concepts_own():
    weights = importance_map(Interaction((RegionBox(0, 0, 32, 16), RegionBox(80, 80, 96, 96, "ignore"))), SIDE, 6, 6)
    assert weights[0, :2].tolist() == [1, 1]
    assert weights[5, 5] == 0
    assert (weights < 0).sum() == 33
    alone = importance_map(Interaction((RegionBox(80, 80, 96, 96, "ignore"),)), SIDE, 6, 6)
    assert (alone == 1).sum() == 35


def test_a_focus_box_reaches_every_cell_it_touches_and_an_ignore_box_what_it_covers_half():
    corners = (10.0, 0.0, 33.0, 16.0)  # 6 of the first cell's 16 columns, all of the second's, 1 of the third's
    attend = importance_map(Interaction((RegionBox(*corners),)), SIDE, 6, 6)
    ignore = importance_map(Interaction((RegionBox(*corners, "ignore"),)), SIDE, 6, 6)
    assert np.flatnonzero(attend[0] == 1).tolist() == [0, 1, 2]
    assert np.flatnonzero(ignore[0] == 0).tolist() == [1]
    assert not (attend[1] == 1).any()


def test_axes_are_not_swapped():
    weights = importance_map(Interaction((RegionBox(64, 0, 96, 16, "ignore"),)), SIDE, 6, 3)
    assert np.argwhere(weights == 0).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    "corners", [(96, 0, 120, 20), (0, 96, 20, 120), (-20, 0, 0, 20), (0, -20, 20, 0), (500, 500, 600, 600)]
)
def test_a_box_outside_the_image_is_refused_by_its_index(corners):
    pair = (RegionBox(0, 0, 10, 10), RegionBox(*corners))
    with pytest.raises(InteractionError, match=r"boxes\[1\].*outside"):
        importance_map(Interaction(pair), SIDE, 6, 6)


@pytest.mark.parametrize(
    "corners",
    [(10, 0, 10, 20), (20, 0, 10, 20), (0, 20, 10, 5), (float("nan"), 0, 5, 5), (0, 0, float("inf"), 5)],
)
def test_an_empty_inverted_or_infinite_box_is_refused_by_its_index(corners):
    with pytest.raises(InteractionError, match=r"boxes\[0\]"):
        Interaction((RegionBox(*corners),))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 1.1}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"rejection": "half"}, "rejection"),
        ({"background": "grey"}, "background"),
        ({"boxes": (RegionBox(0, 0, 5, 5, "maybe"),)}, r"boxes\[0\]\.kind: 'maybe'"),
        ({"boxes": (RegionBox(0, 0, 5, 5, "finding"),)}, r"boxes\[0\]\.concept: a finding box names what it shows"),
        ({"boxes": (RegionBox(0, 0, 5, 5, "finding", ""),)}, r"boxes\[0\]\.concept: a finding box names"),
        ({"boxes": (RegionBox(0, 0, 5, 5, "focus", "a"),)}, r"boxes\[0\]\.concept: only a finding box.*'focus'"),
        ({"boxes": (RegionBox(0, 0, 5, 5, "ignore", "a"),)}, r"boxes\[0\]\.concept: only a finding box.*'ignore'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(change, word):
    with pytest.raises(InteractionError, match=word):
        Interaction(**change)


# what contradicts itself


def test_a_concept_that_is_confirmed_and_rejected_is_refused_by_its_name():
    with pytest.raises(InteractionError, match="confirmed and rejected both name 'b'"):
        Interaction(confirmed=("a", "b"), rejected=("c", "b"))


def test_a_finding_box_of_a_rejected_concept_is_refused_by_both():
    pair = (RegionBox(0, 0, 5, 5), RegionBox(0, 0, 5, 5, "finding", "b"))
    with pytest.raises(InteractionError, match=r"boxes\[1\]: shows 'b', and rejected says that there is none"):
        Interaction(pair, rejected=("b",))
    assert Interaction(pair, confirmed=("b",), rejected=("a",)).present == ("b",)


def test_a_finding_inside_an_ignore_box_is_refused_by_both_and_not_by_a_bystander():
    trio = (
        RegionBox(80, 80, 96, 96, "ignore"),
        RegionBox(20, 20, 30, 30, "finding", "a"),
        RegionBox(16, 16, 48, 48, "ignore"),
    )
    words = r"^boxes\[1\]: this finding of 'a' lies where boxes\[2\] says to ignore all$"
    with pytest.raises(InteractionError, match=words):
        place_maps(Interaction(trio), CONCEPTS, SIDE, 6, 6)


def test_a_finding_that_several_ignore_boxes_cover_together_is_refused_by_all_of_them():
    left, right = RegionBox(0, 0, 32, 32, "ignore"), RegionBox(32, 0, 64, 32, "ignore")
    finding = RegionBox(16, 0, 48, 16, "finding", "a")
    words = r"boxes\[2\].*'a' lies where boxes\[0\] and boxes\[1\] say to ignore all"
    with pytest.raises(InteractionError, match=words):
        place_maps(Interaction((left, right, finding)), CONCEPTS, SIDE, 6, 6)
    alone = place_maps(Interaction((left, finding)), CONCEPTS, SIDE, 6, 6)
    assert np.argwhere(alone).tolist() == [[0, 0, 2]]


# answers


@CASES
@given(st.permutations(CONCEPTS), st.integers(0, 3), st.integers(0, 3))
def test_the_answers_are_one_for_confirmed_minus_one_for_rejected_and_zero_for_the_rest(names, first, second):
    confirmed, rejected = tuple(names[:first]), tuple(names[first : first + second])
    answers = answer_vector(Interaction(confirmed=confirmed, rejected=rejected), CONCEPTS)
    assert answers.tolist() == [1 if name in confirmed else -1 if name in rejected else 0 for name in CONCEPTS]
    assert answers.dtype == np.float32


def test_a_finding_box_confirms_its_concept():
    boxes = (RegionBox(0, 0, 5, 5, "finding", "c"), RegionBox(9, 9, 15, 15, "finding", "c"), RegionBox(0, 0, 9, 9))
    interaction = Interaction(boxes, confirmed=("a",), rejected=("b",))
    assert interaction.present == ("a", "c")
    assert answer_vector(interaction, CONCEPTS).tolist() == [1, -1, 1]


@pytest.mark.parametrize("key", ["confirmed", "rejected"])
def test_an_unknown_concept_is_refused_and_the_known_ones_are_named(key):
    with pytest.raises(InteractionError, match=rf"{key}: unknown concept 'ghost'.*nodule, mass"):
        answer_vector(Interaction(**{key: ("nodule", "ghost")}), ("nodule", "mass"))


def test_a_finding_box_of_an_unknown_concept_is_refused_by_its_index():
    pair = (RegionBox(0, 0, 5, 5), RegionBox(0, 0, 5, 5, "finding", "ghost"))
    with pytest.raises(InteractionError, match=r"boxes\[1\]\.concept: unknown concept 'ghost'.*nodule, mass"):
        place_maps(Interaction(pair), ("nodule", "mass"), SIDE, 6, 6)


def test_the_tensors_of_a_batch_hold_each_interaction_in_its_place():
    pair = (
        Interaction((RegionBox(0, 0, 32, 16, "ignore"),), confirmed=("a",), rejection="zero"),
        Interaction((RegionBox(80, 0, 96, 16, "finding", "a"),), rejected=("b",)),
    )
    tensors = interaction_tensors(pair, ("a", "b"), SIDE, 6, 4)
    assert list(tensors) == ["importance", "answers", "places", "absent_weight"]  # the reasoner's order
    assert tensors["importance"].shape == (2, 6, 4)
    np.testing.assert_array_equal(tensors["importance"][0], importance_map(pair[0], SIDE, 6, 4))
    assert (tensors["importance"][1] == 1).all()
    assert tensors["answers"].tolist() == [[1, 0], [1, -1]]
    assert tensors["places"].shape == (2, 2, 6, 4)
    assert np.argwhere(tensors["places"]).tolist() == [[1, 0, 0, 3]]
    assert tensors["absent_weight"].tolist() == [0, 1]
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float32)}
