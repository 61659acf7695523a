"""What reviewers say of prototypes, and which of it counts.

By default one reviewer suffices: the last word on a prototype is ``agreed``. With a second reader, each reviewer's last
word counts beside the others':

- ``agreed``    nobody says prune, or two or more reviewers do and nobody says keep
- ``proposed``  one reviewer says prune, and nobody else says anything
- ``disputed``  one says prune and another keep

A reviewer is who an API key or a provider's token names; a person with two keys is two. Only what is agreed may reach a
training (`serving.core.feedback`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from serving.errors import StoreError
from serving.interfaces.schemas import (
    NamedReview,
    Record,
    ReviewAnswer,
    ReviewerWord,
    ReviewRequest,
    ReviewsRequest,
    ReviewStatus,
)
from serving.models.in_service import Model
from serving.store.entries import Caller, Entry
from serving.store.ledger import Ledger

SECOND = 2  # reviewers


def review_entry(caller: Caller, model: Model, concept: str, index: int, review: ReviewRequest) -> Entry:
    """A reviewer's word on a prototype."""
    request = {"concept": concept, "index": index, **review.model_dump()}
    return Entry("review", caller, model.digest, {"version": model.version, "request": request})


def reviews_entry(caller: Caller, model: Model, request: ReviewsRequest) -> Entry:
    """A reviewer's words on several prototypes, said together."""
    return Entry("review", caller, model.digest, {"version": model.version, "request": request.model_dump()})


def reviews(ledger: Ledger, bundle: str, second_reader: bool, until: int | None = None) -> Iterator[ReviewAnswer]:
    """The last word on each prototype of a bundle, in the order in which they were first reviewed.

    Args:
        until: of the entries with this number or a lower one.

    Raises:
        StoreError: a review cannot be read, or the database does not answer.
    """
    words: dict[tuple[str, int], dict[str, ReviewerWord]] = {}
    for row in ledger.entries("review", until=until):
        if row["bundle"] == bundle:
            about = {
                "reviewer": row["actor"],
                "at": row["at"],
                "record": Record(number=row["number"], hash=row["hash"]),
            }
            for each in named_reviews(row):
                word = ReviewerWord(**about, **each.said.model_dump())
                words.setdefault((each.concept, each.index), {})[row["actor"]] = word
    for (concept, index), by_reviewer in words.items():
        said_by = list(by_reviewer.values())
        last = max(said_by, key=lambda word: word.record.number)
        status = settle([word.verdict for word in said_by], second_reader)
        yield ReviewAnswer(
            bundle=bundle, concept=concept, index=index, status=status, said=said_by, **last.model_dump()
        )


def named_reviews(row: Mapping[str, Any]) -> list[NamedReview]:
    """What an entry of the ledger says of prototypes.

    Raises:
        StoreError: it is no review.
    """
    try:
        said = row["body"]["request"]
        return [NamedReview.model_validate(each) for each in said.get("reviews", [said])]
    except (KeyError, TypeError, AttributeError, ValidationError):
        raise StoreError(f"ledger entry {row['number']} is no review; see csr audit verify") from None


def settle(verdicts: Sequence[str], second_reader: bool) -> ReviewStatus:
    """Whether what reviewers say of one prototype counts; see the module's docstring.

    Args:
        verdicts: the last one of each reviewer.
        second_reader: whether a prune needs two.
    """
    prune = sum(verdict == "prune" for verdict in verdicts)
    if not second_reader or not prune:
        return "agreed"
    if prune < len(verdicts):
        return "disputed"
    return "agreed" if prune >= SECOND else "proposed"
