"""How readers who differ come to one label.

Of each reader the last signed reading of a study counts. A kept reading says of a concept that it is there (confirmed,
or a finding box), that it is not (rejected), or nothing; a reverted one says nothing of concepts. Every signed reading
says of each class of its model whether the reader signed it as found.

    present = yes > no;  absent = no > yes;  unknown where yes = no

Who says nothing has no vote, so one reader decides where nobody else spoke. The majority is Warfield's plain case, that
of readers who are equally good; `csr.data.sources.vindr_cxr` offers the same for a published set.

Boxes follow the labels. Finding boxes of a concept that came out present are all kept, and those of several readers
that overlap become one (`csr.data.sources.merging`). A focus box is kept. An ignore box is kept unless what another
reader drew as a focus or as such a finding overlaps it: one says that this counts, the other that it does not.

Not covered: how good a reader is, and doubt: a label is known or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from csr.data.feedback.rows import FeedbackBox, Label, Reading

RULE = "majority of those who say anything, ties are unknown (1)"  # to be changed with what `resolve` does


def resolve(readings: Iterable[Reading]) -> list[Label]:
    """The labels that readings come to, sorted by study, kind and name.

    Args:
        readings: at most one of each study and reader, in any order.
    """
    votes: dict[tuple[str, str, str], list[int]] = {}
    for reading in readings:
        said = [("class", name, name in reading.found) for name in reading.classes]
        if reading.decision == "keep":
            said += [("concept", name, True) for name in reading.present]
            said += [("concept", name, False) for name in set(reading.rejected)]
        for kind, name, there in said:
            votes.setdefault((reading.study, kind, name), [0, 0])[0 if there else 1] += 1
    return [
        Label(study, kind, name, None if yes == no else yes > no, yes, no)  # type: ignore[arg-type]
        for (study, kind, name), (yes, no) in sorted(votes.items())
    ]


def agreed_boxes(readings: Sequence[Reading], labels: Iterable[Label]) -> list[FeedbackBox]:
    """The boxes that count of one study, those of several readers not yet merged.

    Args:
        readings: of the study.
        labels: what `resolve` made of them.
    """
    present = {label.name for label in labels if label.kind == "concept" and label.present}
    drawn = [
        (reading.reader, box)
        for reading in sorted(readings, key=lambda each: each.number)
        if reading.decision == "keep"
        for box in reading.boxes
        if box.kind != "finding" or box.concept in present
    ]
    return [
        box
        for reader, box in drawn
        if box.kind != "ignore"
        or not any(other != reader and each.kind != "ignore" and _overlap(box, each) for other, each in drawn)
    ]


def _overlap(one: FeedbackBox, other: FeedbackBox) -> bool:
    across = min(one.x_max, other.x_max) > max(one.x_min, other.x_min)
    return across and min(one.y_max, other.y_max) > max(one.y_min, other.y_min)
