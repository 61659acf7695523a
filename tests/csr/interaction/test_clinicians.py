"""Simulated clinicians, case by case: what each does, in which order, how often it errs, and that seeds settle it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.interaction.clinicians import Action, Answer, Clinician, ClinicianConfig, Truth
from csr.interaction.corrections import RegionBox

SIDE, CELL = 96, 8.0
FAR = (90.0, 90.0)
CASES = settings(deadline=None, max_examples=60)
LEFT, RIGHT = np.array([[8.0, 8, 24, 24]]), np.array([[40.0, 40, 56, 56], [70.0, 40, 80, 50]])


def answer_of(asserted: list[float], peaks: list[tuple[float, float]], stakes: list[float] | None = None) -> Answer:
    """Three classes, of which the first two are likeliest; concept k moves their margin by ``stakes[k]``."""
    stakes = stakes or [1.0] * len(asserted)
    contributions = np.array([[stake / 2, -stake / 2, 9.0] for stake in stakes])
    return Answer(np.array([0.5, 0.4, 0.1]), np.array(asserted), contributions, np.array(peaks, float))


def clinician_of(truth: Truth, row: int = 0, **config: object) -> Clinician:
    return Clinician(ClinicianConfig(**config), truth, row, SIDE, CELL)  # type: ignore[arg-type]


def play(clinician: Clinician, answer: Answer, most: int = 20) -> list[Action]:
    """The actions of a clinician to whom the model always answers the same."""
    actions = []
    while len(actions) < most and (action := clinician.act(answer)) is not None:
        actions.append(action)
    return actions


# a perfect clinician


def test_concept_mode_rejects_what_is_asserted_and_absent_and_nothing_else():
    truth = Truth(np.array([0, 1, 0, np.nan, 0]))
    answer = answer_of([0.9, 0.9, 0.4, 0.9, 0.6], [FAR] * 5)
    actions = play(clinician_of(truth, mode="concept"), answer)
    assert actions == [Action("reject", 0, None, False), Action("reject", 4, None, False)]


def test_nothing_to_correct_is_no_action():
    truth = Truth(np.array([1.0, 0]), {0: LEFT})
    assert play(clinician_of(truth), answer_of([0.9, 0.1], [(16, 16), FAR])) == []


def test_a_missed_finding_gets_its_box_and_then_so_does_every_other_finding():
    truth = Truth(np.array([1.0, 1, 0]), {0: LEFT, 1: RIGHT})
    answer = answer_of([0.2, 0.9, 0.1], [FAR, (48, 48), FAR], [1, 5, 9])
    actions = play(clinician_of(truth, mode="spatial"), answer)
    assert [(action.kind, action.concept) for action in actions] == [("focus", 0), ("focus", 1), ("focus", 1)]
    assert [action.box for action in actions] == [RegionBox(*box) for box in [*LEFT.tolist(), *RIGHT.tolist()]]


def test_a_finding_that_the_map_touches_is_not_missed():
    """Half a cell: the centre of a cell that touches the box from outside."""
    truth = Truth(np.array([1.0]), {0: LEFT})
    assert play(clinician_of(truth), answer_of([0.9], [(24 + CELL / 2, 16)])) == []
    assert len(play(clinician_of(truth), answer_of([0.4], [(24 + CELL / 2 + 0.1, 16)]))) == 1


def test_a_false_spot_gets_an_ignore_box_that_touches_no_finding():
    truth = Truth(np.array([0.0, 1]), {1: LEFT})
    clinician = clinician_of(truth, mode="spatial", spot=1 / 4)
    action = clinician.act(answer_of([0.9, 0.9], [(60, 60), (16, 16)]))
    assert action == Action("ignore", 0, RegionBox(48, 48, 72, 72, "ignore"), False)
    near = clinician.act(answer_of([0.9, 0.9], [(30, 16), (16, 16)]))  # 6 pixels from the finding
    assert near == Action("ignore", 0, RegionBox(24, 10, 36, 22, "ignore"), False)


def test_an_ignore_box_at_the_border_stays_in_the_image():
    clinician = clinician_of(Truth(np.array([0.0])), mode="spatial", spot=1 / 4)
    action = clinician.act(answer_of([0.9], [(92, 4)]))
    assert action is not None
    assert action.box == RegionBox(80, 0, 96, 16, "ignore")


def test_a_spot_on_another_concepts_finding_is_not_erased():
    truth = Truth(np.array([0.0, 1]), {1: LEFT})
    assert play(clinician_of(truth, mode="spatial"), answer_of([0.9, 0.9], [(16, 16), (16, 16)])) == []


def test_a_present_concept_without_a_box_and_an_unknown_one_get_no_focus_box():
    truth = Truth(np.array([1.0, np.nan]), {1: LEFT})
    assert play(clinician_of(truth, mode="spatial"), answer_of([0.1, 0.1], [FAR, FAR])) == []


def test_what_is_rejected_is_not_erased_as_well_but_a_reader_without_rejections_erases():
    truth = Truth(np.array([0.0]))
    answer = answer_of([0.9], [FAR])
    assert [action.kind for action in play(clinician_of(truth, mode="both"), answer)] == ["reject"]
    assert [action.kind for action in play(clinician_of(truth, mode="spatial"), answer, most=2)] == ["ignore"] * 2


# the order


def test_uncertainty_goes_by_what_decides_between_the_two_likeliest_classes():
    truth = Truth(np.zeros(3))
    answer = answer_of([0.9, 0.9, 0.9], [FAR] * 3, [1, -7, 3])
    assert [action.concept for action in play(clinician_of(truth, mode="concept"), answer)] == [1, 2, 0]


def test_uncertainty_does_not_look_at_the_probability_of_a_third_class():
    contributions = np.array([[1.0, 0, 0], [0, 0, 100]])
    answer = Answer(np.array([0.5, 0.4, 0.1]), np.array([0.9, 0.9]), contributions, np.array([FAR, FAR]))
    assert [action.concept for action in play(clinician_of(Truth(np.zeros(2)), mode="concept"), answer)] == [0, 1]


def test_of_several_classes_the_least_certain_one_decides():
    contributions = np.array([[9.0, 1, 0], [0, -2, 0], [5.0, 0, 9]])
    answer = Answer(np.array([0.9, 0.6, 0.2]), np.full(3, 0.9), contributions, np.array([FAR] * 3))
    actions = play(clinician_of(Truth(np.zeros(3)), mode="concept", multilabel=True), answer)
    assert [action.concept for action in actions] == [1, 0, 2]


def test_at_random_every_order_comes_up_and_each_interaction_is_as_likely_to_be_first():
    truth, answer = Truth(np.zeros(3)), answer_of([0.9] * 3, [FAR] * 3, [1, 2, 3])
    orders = [
        tuple(action.concept for action in play(clinician_of(truth, row, mode="concept", order="random"), answer))
        for row in range(600)
    ]
    assert len(set(orders)) == 6
    assert np.bincount([order[0] for order in orders]).min() > 150


# errors


def test_the_error_rate_is_realised():
    truth, answer = Truth(np.array([0.0, 0, 0, 1]), {3: LEFT}), answer_of([0.9] * 4, [FAR] * 4)
    for error in (0.0, 0.1, 0.3, 1.0):
        firsts = [clinician_of(truth, row, error=error).act(answer) for row in range(2000)]
        assert np.mean([action.wrong for action in firsts if action]) == pytest.approx(error, abs=0.03)


def test_the_mistakes_of_the_better_are_among_those_of_the_worse():
    truth, answer = Truth(np.zeros(4)), answer_of([0.9] * 4, [FAR] * 4)
    for row in range(50):
        few, many = (clinician_of(truth, row, mode="concept", error=error).act(answer) for error in (0.1, 0.3))
        assert few is not None and many is not None
        assert many.wrong or not few.wrong


def test_a_mistaken_rejection_hits_the_asserted_present_concept_most_at_stake():
    truth = Truth(np.array([0.0, 1, 1, 1]))
    answer = answer_of([0.9, 0.9, 0.9, 0.1], [FAR] * 4, [1, 2, 3, 9])
    actions = play(clinician_of(truth, mode="concept", error=1), answer, most=3)
    assert [action.concept for action in actions] == [2, 1, 3]
    assert all(action.wrong for action in actions)


def test_a_mistake_in_a_study_without_findings_confirms_the_false_one():
    clinician = clinician_of(Truth(np.array([0.0])), mode="concept", error=1)
    assert clinician.act(answer_of([0.9], [FAR])) == Action("reject", None, None, True)
    assert clinician.interaction(["a"], "absent", None).rejected == ()


def test_a_misplaced_focus_box_keeps_its_size_and_leaves_the_finding():
    for row in range(20):
        action = clinician_of(Truth(np.array([1.0]), {0: LEFT}), row, error=1).act(answer_of([0.1], [FAR]))
        assert action is not None and action.wrong and action.box is not None
        box = action.box
        assert (box.x_max - box.x_min, box.y_max - box.y_min) == pytest.approx((16, 16))
        assert box.x_min >= 24 or box.y_min >= 24 or box.x_max <= 8 or box.y_max <= 8
        assert min(box.x_min, box.y_min) >= 0 and max(box.x_max, box.y_max) <= SIDE


def test_a_mistaken_ignore_box_covers_a_true_finding_or_where_there_is_none_another_place():
    answer = answer_of([0.1, 0.9], [(16, 16), FAR])
    action = clinician_of(Truth(np.array([1.0, 0]), {0: LEFT}), mode="spatial", error=1).act(answer)
    assert action == Action("ignore", 1, RegionBox(8, 8, 24, 24, "ignore"), True)
    elsewhere = clinician_of(Truth(np.array([0.0, 0])), mode="spatial", error=1).act(answer)
    assert elsewhere is not None and elsewhere.box is not None
    assert not (elsewhere.box.x_min <= 90 <= elsewhere.box.x_max and elsewhere.box.y_min <= 90 <= elsewhere.box.y_max)


@pytest.mark.parametrize("error", [-0.1, 1.1, float("nan")])
def test_an_error_rate_out_of_range_is_refused(error):
    with pytest.raises(ValueError, match="error"):
        ClinicianConfig(error=error)


# what comes out


def test_the_interaction_holds_all_that_was_done():
    truth = Truth(np.array([1.0, 0]), {0: LEFT})
    clinician = clinician_of(truth)
    play(clinician, answer_of([0.1, 0.9], [FAR, (60, 60)], [1, 2]))
    interaction = clinician.interaction(["a", "b"], "zero", 0.4)
    assert interaction.rejected == ("b",)
    assert interaction.boxes == (RegionBox(*LEFT[0].tolist()),)
    assert (interaction.rejection, interaction.alpha) == ("zero", 0.4)


@CASES
@given(
    st.integers(0, 1000),
    st.sampled_from(["spatial", "concept", "both"]),
    st.sampled_from(["uncertainty", "random"]),
    st.floats(0, 1),
)
def test_the_same_seed_and_row_do_the_same(row, mode, order, error):
    rng = np.random.default_rng(row)
    truth = Truth(rng.integers(0, 2, 4).astype(float), {0: LEFT, 1: RIGHT})
    answer = answer_of(rng.random(4).tolist(), (rng.random((4, 2)) * SIDE).tolist(), rng.random(4).tolist())
    first, second = (play(clinician_of(truth, row, mode=mode, order=order, error=error), answer) for _ in range(2))
    assert first == second


@CASES
@given(st.integers(0, 1000), st.sampled_from(["spatial", "concept", "both"]))
def test_a_perfect_reader_never_says_anything_false(row, mode):
    rng = np.random.default_rng(row)
    truth = Truth(np.array([1.0, 1, 0, 0]), {0: LEFT, 1: RIGHT})
    answer = answer_of(rng.random(4).tolist(), (rng.random((4, 2)) * SIDE).tolist(), rng.random(4).tolist())
    for action in play(clinician_of(truth, row, mode=mode, order="random"), answer):
        assert not action.wrong
        if action.kind == "reject":
            assert truth.labels[action.concept] == 0
        elif action.kind == "focus":
            assert action.box in [RegionBox(*box) for box in truth.boxes[action.concept].tolist()]
        else:
            assert action.box is not None
            for left, top, right, bottom in np.concatenate([LEFT, RIGHT]):
                across = min(right, action.box.x_max) - max(left, action.box.x_min)
                down = min(bottom, action.box.y_max) - max(top, action.box.y_min)
                assert min(across, down) <= 1e-9
