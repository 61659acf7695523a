"""What readers signed and reviewers agreed on, out of the ledger into rows of a feedback set (`csr.data.feedback`).

Only what a person put their name to counts: signed readings, of each reader the last one, and reviews that are agreed
(`serving.core.reviews`). Corrections that nobody signed, and studies that were skipped, stay in the ledger. So do
comments, and who the readers are: a pseudonym is HMAC-SHA256 of the actor with the ledger's key, the same in every set
of one store, which only who has the key can follow back.

Boxes are moved to the canvas from the image that they were drawn on, as the ledger says that it lay there when the
reading was signed: the same pixels may since have been uploaded in another size.
"""

from __future__ import annotations

import hashlib
import hmac
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csr.data.feedback import FeedbackBox, PrototypeReview, Reading, ReviewSource
from csr.data.images import Placement
from csr.interaction.corrections import Interaction, InteractionError, RegionBox
from serving.core.frames import on_canvas
from serving.core.recording import readings
from serving.core.reviews import reviews
from serving.errors import StoreError
from serving.interfaces.schemas import InteractionRequest, ReadingAnswer, ReviewAnswer
from serving.store import Store
from serving.store.entries import Receipt
from serving.store.ledger import Ledger
from serving.store.rows import KINDS
from serving.store.studies import load_study

SUPERSEDED, NOT_AGREED = "readings that their reader signed anew", "reviews that are not agreed"
OTHER_BUNDLE, NO_SOURCES = "reviews of a bundle that was not given", "reviews of a prototype that resembles no study"
Looks = Mapping[str, Mapping[tuple[str, int], tuple[ReviewSource, ...]]]
_PSEUDONYM = 16  # hexadecimal digits


@dataclass(frozen=True)
class Feedback:
    """What goes into a set.

    Args:
        readings: one of each study and reader.
        reviews: one of each prototype.
        through: the last ledger entry that is in it; number 0 where none is.
        left_out: counts by reason.
    """

    readings: list[Reading]
    reviews: list[PrototypeReview]
    through: Receipt
    left_out: Counter[str]


def collect_feedback(store: Store, secret: bytes, looks: Looks, second_reader: bool, head: Receipt) -> Feedback:
    """The feedback in a ledger.

    Args:
        store: whose ledger was verified.
        secret: the ledger's key.
        looks: of each bundle whose reviews count, by its digest, what its prototypes resemble.
        second_reader: see `serving.core.reviews`.
        head: up to which it was verified; what came since is not looked at.

    Raises:
        AlteredStudyError: a study's pixels are not those that were added.
        StoreError: an entry cannot be read, or the database does not answer.
    """
    left_out: Counter[str] = Counter()
    last: dict[tuple[str, str], ReadingAnswer] = {}
    for each in readings(store.ledger, until=head.number):
        left_out[SUPERSEDED] += (each.digest, each.reader) in last
        last[each.digest, each.reader] = each
    placed = _placements(store.ledger, head.number)
    sides = {digest: load_study(store.database, digest).canvas.shape[-1] for digest, _ in last}
    signed = [_reading(each, secret, placed[each.digest], sides[each.digest]) for each in last.values()]
    said = [
        review
        for bundle in sorted({row["bundle"] for row in store.ledger.entries("review", until=head.number)})
        for answer in reviews(store.ledger, bundle, second_reader, until=head.number)
        if (review := _review(answer, secret, looks, left_out)) is not None
    ]
    numbers = [*(each.number for each in signed), *(each.number for each in said)]
    return Feedback(signed, said, _receipt(store.ledger, max(numbers, default=0)), +left_out)


def _reading(answer: ReadingAnswer, secret: bytes, placed: list[tuple[int, Placement]], side: int) -> Reading:
    number, state = answer.record.number, answer.state
    at = bisect(placed, number, key=lambda each: each[0]) - 1
    if at < 0:
        raise StoreError(f"ledger entry {number}: no entry before it says of which image; see csr audit verify")
    return Reading(
        study=answer.digest,
        reader=_pseudonym(secret, answer.reader),
        decision=answer.decision,
        found=tuple(sorted(answer.found)),
        classes=tuple(sorted(each.name for each in answer.classes)),
        confirmed=tuple(sorted(set(state.confirmed))),
        rejected=tuple(sorted(set(state.rejected))),
        boxes=_boxes(state, _drawn_on(state, placed[at][1], side), number),
        number=number,
        bundle=answer.model.digest,
        model=answer.model.version,
        month=_month(answer.at),
    )


def _drawn_on(state: InteractionRequest, known: Placement, side: int) -> Placement:
    if state.image is None:
        return known
    turn = known.turn if state.image.turn is None else state.image.turn
    return Placement.of(state.image.width, state.image.height, side, turn)


def _boxes(state: InteractionRequest, place: Placement, number: int) -> tuple[FeedbackBox, ...]:
    try:
        drawn = on_canvas(Interaction(tuple(RegionBox(**box.model_dump()) for box in state.boxes)), place).boxes
    except InteractionError as error:
        raise StoreError(f"ledger entry {number}: {error}; see csr audit verify") from None
    return tuple(FeedbackBox(box.kind, box.concept, box.x_min, box.y_min, box.x_max, box.y_max) for box in drawn)


def _review(answer: ReviewAnswer, secret: bytes, looks: Looks, left_out: Counter[str]) -> PrototypeReview | None:
    """As a row, or counted if it is none."""
    sources = looks.get(answer.bundle, {}).get((answer.concept, answer.index), ())
    for why, holds in (
        (NOT_AGREED, answer.status != "agreed"),
        (OTHER_BUNDLE, answer.bundle not in looks),
        (NO_SOURCES, not sources),
    ):
        if holds:
            left_out[why] += 1
            return None
    agree = [word.reviewer for word in answer.said if word.verdict == answer.verdict]
    return PrototypeReview(
        bundle=answer.bundle,
        concept=answer.concept,
        index=answer.index,
        verdict=answer.verdict,
        reason=answer.reason,
        reviewers=tuple(sorted(_pseudonym(secret, reviewer) for reviewer in agree)),
        number=answer.record.number,
        month=_month(answer.at),
        sources=sources,
    )


def _placements(ledger: Ledger, until: int) -> dict[str, list[tuple[int, Placement]]]:
    """Where each study's image lay on its canvas, from which entry on."""
    known: dict[str, dict[str, Any]] = defaultdict(lambda: {"turn": 1})
    found: dict[str, list[tuple[int, Placement]]] = defaultdict(list)
    entries = [row for kind in KINDS for row in ledger.entries(kind, until=until)]
    for row in sorted(entries, key=lambda row: row["number"]):
        for values in row["body"]["rows"].get("study", ()):
            own = known[values["digest"]]
            own |= values
            lies = own["width"], own["height"], own["scale"], own["offset_left"], own["offset_top"], own["turn"]
            found[values["digest"]].append((row["number"], Placement(*lies)))
    return found


def _receipt(ledger: Ledger, number: int) -> Receipt:
    if not number:
        return Receipt(0, "")
    return Receipt(number, next(ledger.entries(after=number - 1, until=number))["hash"])


def _pseudonym(secret: bytes, actor: str) -> str:
    return "reader-" + hmac.new(secret, b"feedback " + actor.encode(), hashlib.sha256).hexdigest()[:_PSEUDONYM]


def _month(at: str) -> str:
    return at[:7]
