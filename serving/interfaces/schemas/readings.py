"""Who reads, what waits for them, and what they sign."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from serving.interfaces.schemas.answers import ModelRef, Record, Timings
from serving.interfaces.schemas.base import Answer, Request
from serving.interfaces.schemas.requests import InteractionRequest, Mine

MAX_COMMENT = 2000  # characters
Decision = Literal["keep", "revert"]
AgreementVerdict = Literal["none", "one", "same", "differ", "hidden"]
Comment = Annotated[str, Field(max_length=MAX_COMMENT)]


class MeAnswer(Answer):
    """Who asks: the pseudonym that the ledger keeps, and the role."""

    actor: str
    role: Literal["reader", "reviewer", "admin"]


class ReadingRequest(Request):
    """A reader's last word on a study.

    Args:
        state: all that they said of it, whatever they decide.
        decision: ``keep``: the corrections stand; ``revert``: the study is signed as it was predicted, and the
            corrections are on record without being applied.
        comment: for whoever reads the reading.
        model: the digest of the bundle whose numbers the reader saw. If given, it must be the one that answers now.
    """

    state: InteractionRequest = InteractionRequest()
    decision: Decision
    comment: Comment = ""
    model: Annotated[str, Field(max_length=64)] | None = None


class ClassProbability(Answer):
    """A class and how probable it is."""

    name: str
    probability: float


class ReadingAnswer(Answer):
    """A signed reading, as the ledger has it.

    ``found``, ``top`` and ``classes``, the most probable first, are what ``model`` says of the study after what the
    reader decided: under ``state`` if they keep it, else without. ``at`` is when it was put on record, ``supersedes``
    the number of the same reader's reading before it.
    """

    digest: str
    reader: str
    at: str
    model: ModelRef
    decision: Decision
    comment: str
    found: list[str]
    top: str
    classes: list[ClassProbability]
    state: InteractionRequest
    record: Record
    supersedes: int | None


class ConceptAgreement(Answer):
    """How many readers kept a confirmation of a concept, and how many a rejection. A finding box confirms."""

    name: str
    confirmed: int
    rejected: int


class Agreement(Answer):
    """What a study's readers agree on, by the last reading of each.

    ``verdict``: nobody has signed (``none``), ``one`` has, or several that found the ``same`` classes or ``differ``; it
    is ``hidden``, and ``concepts`` empty, to who reads blind where there are several.
    """

    readers: int
    verdict: AgreementVerdict
    concepts: list[ConceptAgreement]


class ReadingsAnswer(Answer):
    """The last reading of each reader, the oldest first.

    Reading is blind: the others' are ``hidden``, and only counted, until one has signed one's own. Administrators see
    all."""

    digest: str
    readings: list[ReadingAnswer]
    hidden: int
    agreement: Agreement
    timings_ms: Timings


class SkipRequest(Request):
    """Why a reader does not read a study that the worklist offers."""

    reason: Comment = ""


class SkipAnswer(Answer):
    """A study that a reader skips, until they sign it after all."""

    digest: str
    reader: str
    at: str
    reason: str
    record: Record


class FeedbackCount(Answer):
    """How much the next training would find that is newer than ledger entry ``after``: ``readings``, of each study and
    reader one, and ``reviews`` of prototypes, of each prototype and reviewer one. ``through`` is where the ledger ends;
    where that is before ``after``, it is not the ledger that was asked before.
    """

    after: int
    through: int
    readings: int
    reviews: int


class WorklistItem(Answer):
    """A study that waits for a reader.

    ``margin``: see `csr.data.decisions.decision_margin`; ``expected_effect`` is that of the best question
    (`serving.core.questions`). ``confidence`` is the probability of ``top``; it, ``found`` and ``fits`` (whether the
    image is like the training images) are null where a server of an earlier version assessed the study, until it is
    opened.
    ``mine`` is how far the caller is with it, ``readers`` how many have signed it, and ``agreement`` as in `Agreement`.
    """

    digest: str
    model: ModelRef
    added_at: str
    top: str
    confidence: float | None
    found: list[str] | None
    margin: float
    expected_effect: float
    asks_for_help: bool
    abstains: bool
    fits: bool | None
    assessed_at: str
    interactions: int
    last_interaction_at: str | None
    mine: Mine
    readers: int
    agreement: AgreementVerdict


class WorklistAnswer(Answer):
    """A page of the worklist.

    ``next_after`` is what the next page is asked for with, null on the last one. ``next_offset`` is its number, null
    beyond study 10,000 too. ``total`` counts the studies of all pages up to 1,000; if there are more, ``total_exact``
    is false.
    """

    items: list[WorklistItem]
    next_after: str | None
    next_offset: int | None
    total: int
    total_exact: bool
    timings_ms: Timings
