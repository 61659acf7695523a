"""How readers who differ come to one label: the rule, against counts by hand and as properties."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.data.feedback import FeedbackBox, Label, Reading, resolve
from csr.data.feedback.consensus import agreed_boxes
from tests.csr.data.feedback.examples import finding, reading

STUDIES = ("0" * 64, "1" * 64)
NAMES = ("round", "streak", "haze")


@st.composite
def a_reading(draw: st.DrawFn, study: str, reader: str) -> Reading:
    said = draw(st.lists(st.sampled_from(("yes", "box", "no", "nothing")), min_size=3, max_size=3))
    words = dict(zip(NAMES, said, strict=True))
    return reading(
        study,
        draw(st.integers(1, 10**6)),
        reader,
        decision=draw(st.sampled_from(("keep", "revert"))),
        found=tuple(draw(st.sets(st.sampled_from(("clear", "mild", "severe"))))),
        confirmed=tuple(name for name, word in words.items() if word == "yes"),
        rejected=tuple(name for name, word in words.items() if word == "no"),
        boxes=tuple(finding(name, 1, 2, 8, 9) for name, word in words.items() if word == "box"),
    )


@st.composite
def some_readings(draw: st.DrawFn) -> list[Reading]:
    pairs = draw(st.sets(st.tuples(st.sampled_from(STUDIES), st.sampled_from("abcde"))))
    return [draw(a_reading(study, reader)) for study, reader in sorted(pairs)]


@settings(max_examples=30, deadline=None)
@given(some_readings(), st.randoms())
def test_labels_are_the_majority_of_those_who_speak_whatever_the_order(readings: list[Reading], random: object) -> None:
    labels = resolve(readings)
    shuffled = list(readings)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert resolve(shuffled) == labels
    votes: Counter[tuple[str, str, str, bool]] = Counter()
    for each in readings:
        for name in each.classes:
            votes[each.study, "class", name, name in each.found] += 1
        if each.decision == "keep":
            for name in NAMES:
                if name in each.confirmed or any(box.concept == name for box in each.boxes):
                    votes[each.study, "concept", name, True] += 1
                elif name in each.rejected:
                    votes[each.study, "concept", name, False] += 1
    keys = {key[:3] for key in votes}
    assert [(label.study, label.kind, label.name) for label in labels] == sorted(keys)
    for label in labels:
        yes, no = (votes[label.study, label.kind, label.name, there] for there in (True, False))
        assert (label.yes, label.no) == (yes, no)
        assert label.present is (True if yes > no else False if no > yes else None)


@settings(max_examples=30, deadline=None)
@given(some_readings())
def test_one_study_is_not_another_and_one_more_vote_for_what_won_changes_nothing(readings: list[Reading]) -> None:
    labels = resolve(readings)
    for study in STUDIES:
        own = [each for each in readings if each.study == study]
        assert resolve(own) == [label for label in labels if label.study == study]
        won = {label.name for label in labels if label.study == study and label.kind == "concept" and label.present}
        more = resolve([*own, reading(study, 10**7, "one more", confirmed=tuple(won))])
        assert {label.name for label in more if label.kind == "concept" and label.present} == won


def test_a_reverted_reading_says_nothing_of_concepts_but_its_class() -> None:
    said = reading(STUDIES[0], decision="revert", found=("mild",), confirmed=("round",), rejected=("haze",))
    assert resolve([said]) == [
        Label(STUDIES[0], "class", "clear", False, 0, 1),
        Label(STUDIES[0], "class", "mild", True, 1, 0),
        Label(STUDIES[0], "class", "severe", False, 0, 1),
    ]


IGNORE, FOCUS = FeedbackBox("ignore", None, 0, 0, 6, 6), FeedbackBox("focus", None, 20, 20, 30, 30)


def kept(*readings: Reading) -> list[FeedbackBox]:
    return agreed_boxes(readings, resolve(readings))


def test_boxes_follow_the_labels() -> None:
    drawn = finding("round", 4, 4, 12, 12)
    one = reading(STUDIES[0], 1, "a", boxes=(drawn, FOCUS))
    assert kept(one) == [drawn, FOCUS]
    assert kept(one, reading(STUDIES[0], 2, "b", rejected=("round",))) == [FOCUS], "a tie is no finding"
    assert kept(reading(STUDIES[0], 1, "a", decision="revert", boxes=(drawn, FOCUS))) == []


@pytest.mark.parametrize(
    ("other", "stays"),
    [
        (finding("round", 5, 5, 12, 12), False),
        (finding("round", 6, 6, 12, 12), True),  # edges touch, nothing is shared
        (FeedbackBox("focus", None, 0, 0, 2, 2), False),
        (FeedbackBox("ignore", None, 1, 1, 9, 9), True),
    ],
)
def test_what_one_reader_ignores_and_another_points_at_is_not_ignored(other: FeedbackBox, stays: bool) -> None:
    found = kept(reading(STUDIES[0], 1, "a", boxes=(IGNORE,)), reading(STUDIES[0], 2, "b", boxes=(other,)))
    assert (IGNORE in found) is stays and other in found
    assert kept(reading(STUDIES[0], 1, "a", boxes=(IGNORE, other))) == [IGNORE, other], "of one reader both stand"
