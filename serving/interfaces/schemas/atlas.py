"""The atlas: what prototypes do, what pruning them would do, and what reviewers say of them."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, ConfigDict, Field

from csr.bundle.format import AtlasEntry, AtlasSource
from serving.interfaces.schemas.answers import Record, Timings
from serving.interfaces.schemas.base import Answer, Request
from serving.interfaces.schemas.requests import ConceptName

MAX_REVIEWS = 5000  # prototypes of one request
Verdict = Literal["keep", "prune"]
ReviewReason = Literal["artefact", "other_finding", "duplicate", "not_typical", "other", "none"]
ReviewStatus = Literal["agreed", "proposed", "disputed"]


class ReviewRequest(Request):
    """What a reviewer says of a prototype; ``prune`` takes it out of the next training.

    Args:
        verdict, comment: what, and in the reviewer's words.
        reason: ``artefact``: it rests on something that is no finding; ``other_finding``: on another finding;
            ``duplicate``: a similar one says the same; ``not_typical``: its sources do not show the concept well.
    """

    verdict: Verdict
    reason: ReviewReason = "none"
    comment: str = Field(default="", max_length=1000)


class PrototypeName(Request):
    """Which prototype."""

    concept: ConceptName
    index: int = Field(ge=0, lt=10**9)


class NamedReview(ReviewRequest):
    """What a reviewer says of one of several prototypes."""

    concept: ConceptName
    index: int = Field(ge=0, lt=10**9)

    @property
    def said(self) -> ReviewRequest:
        """Without the prototype's name."""
        return ReviewRequest(verdict=self.verdict, reason=self.reason, comment=self.comment)


class ReviewsRequest(Request):
    """Reviews of several prototypes, put on record all or none; each prototype once."""

    reviews: list[NamedReview] = Field(min_length=1, max_length=MAX_REVIEWS)


class PreviewRequest(Request):
    """Prototypes that might be pruned, together."""

    pruned: list[PrototypeName] = Field(default=[], max_length=MAX_REVIEWS)


class AtlasAnswer(Answer):
    """The atlas of the champion, concept by concept."""

    entries: list[AtlasEntry]
    timings_ms: Timings


class SimilarPrototype(Answer):
    """Another prototype, and the cosine between the two."""

    concept: str
    index: int
    cosine: float


class DecidedStudy(Answer):
    """A validation study that a prototype speaks for.

    ``contribution``: what it adds to the logit of the predicted class; ``share``: of the sum of all prototypes'
    absolute contributions to it; ``right``: whether the study has that class, None if that is not known.
    """

    study_id: str
    cls: str = Field(validation_alias=AliasChoices("cls", "class"), serialization_alias="class")
    contribution: float
    share: float
    right: bool | None

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)


class AtlasEntryAnswer(Answer):
    """One prototype (`csr.bundle.format.AtlasEntry`) and what it does on validation studies, which a bundle older than
    format 8 does not say: then ``places`` is None, and ``similar`` and ``decides`` are empty.

    ``places``: h×w, on how many validation studies that show the concept its map is largest in each cell. ``similar``:
    the most similar other prototypes, of any concept. ``decides``: the studies to whose predicted class it contributes
    most. ``maps``: whether its crops can be had with their similarity maps.
    """

    concept: str
    index: int
    sources: tuple[AtlasSource, ...]
    usage: float
    reliance: float
    weights: dict[str, float]
    alive: bool
    places: list[list[int]] | None
    similar: list[SimilarPrototype]
    decides: list[DecidedStudy]
    maps: bool
    timings_ms: Timings


class PruningFigures(Answer):
    """On the bundle's validation studies; ``pointing`` is None if they have no boxes."""

    macro_f1: float
    pointing: float | None


class ClassEffect(Answer):
    """A class's F1 before and after."""

    name: str
    f1_before: float
    f1_after: float


class ConceptEffect(Answer):
    """A concept's pointing game before and after; None where no study has a box of it."""

    name: str
    pointing_before: float | None
    pointing_after: float | None


class PreviewAnswer(Answer):
    """What pruning would do on the bundle's validation studies: the pipeline's figures (`csr.bundle.pruning`).

    ``changed``: studies of which something else is said.
    """

    studies: int
    before: PruningFigures
    after: PruningFigures
    changed: int
    classes: list[ClassEffect]
    concepts: list[ConceptEffect]
    timings_ms: Timings


class ReviewerWord(Answer):
    """The last word of one reviewer on a prototype."""

    reviewer: str
    verdict: Verdict
    reason: ReviewReason
    comment: str
    at: str
    record: Record


class ReviewAnswer(Answer):
    """The last word on one prototype of a bundle.

    ``status``: ``agreed``, it counts; ``proposed``, a second reviewer must say so too; ``disputed``, reviewers say
    different things (`serving.core.reviews`). ``said``: the last word of each reviewer, in the order in which they
    first spoke.
    """

    bundle: str
    concept: str
    index: int
    verdict: Verdict
    reason: ReviewReason
    comment: str
    reviewer: str
    at: str
    record: Record
    status: ReviewStatus
    said: list[ReviewerWord]


class ReviewedAnswer(Answer):
    """What several reviews came to, in their order; see `ReviewAnswer`."""

    reviews: list[ReviewAnswer]


class ReviewsAnswer(Answer):
    """The last word on each prototype of a bundle that anybody reviewed; ``second_reader``: whether a prune counts only
    once two reviewers said it."""

    reviews: list[ReviewAnswer]
    second_reader: bool
    timings_ms: Timings
