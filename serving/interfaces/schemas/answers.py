"""Answers: what the server says."""

from __future__ import annotations

from typing import Literal

from serving.interfaces.schemas.base import Answer
from serving.interfaces.schemas.prediction import Changes, Exemplar, Peak, Prediction
from serving.interfaces.schemas.requests import ImageSize, Region

Timings = dict[str, float]


class ModelRef(Answer):
    """Which bundle answered: its digest, and its version in the registry."""

    version: str
    digest: str


class Record(Answer):
    """The entry of the audit ledger that says so; it was durable before this answer left."""

    number: int
    hash: str


class StudyAnswer(Answer):
    """A study and the prediction without interaction. ``image``: the frame that boxes and peaks are in."""

    digest: str
    image: ImageSize
    model: ModelRef
    prediction: Prediction
    record: Record
    timings_ms: Timings


class StudiesAnswer(Answer):
    """Several studies, in the order of their files."""

    studies: list[StudyAnswer]


class NamedConcept(Answer):
    """How likely a box is about a concept."""

    name: str
    probability: float


class Doubt(Answer):
    """A finding box whose name the evidence inside it contradicts; it was applied as it was drawn.

    ``box`` is its index in the request, ``probability`` how likely it is about the ``concept`` that it names, and
    ``speaks_for`` what it is more likely about, the likeliest first. See `csr.interaction.naming`.
    """

    box: int
    concept: str
    probability: float
    speaks_for: list[NamedConcept]
    message: str


class InteractionAnswer(Answer):
    """A study before and after an interaction.

    ``alpha`` is what weighed the outside of focus boxes: of every concept, or each one's own by its name. ``doubts``
    are questions back to the reader; there are none where the bundle cannot tell what a box is about.
    """

    digest: str
    model: ModelRef
    before: Prediction
    after: Prediction
    changes: Changes
    alpha: float | dict[str, float]
    doubts: list[Doubt]
    record: Record
    timings_ms: Timings


class Frame(Answer):
    """How the square canvas that maps cover lies to the stored image: that is turned by ``turn``
    (`csr.data.orientation`, 1: it is not), and canvas = scale · turned image + (left, top), in pixels."""

    side: int
    scale: float
    left: float
    top: float
    turn: int


class MapsAnswer(Answer):
    """Similarity maps as numbers: K×h×w, in the order of ``concepts``, cells of the canvas from its upper left.

    ``limit`` is the prediction's ``map_limit``. ``absent``: of each concept what images without it score
    (`serving.models.absence`); what a map shows below is no sign of it.
    """

    digest: str
    model: ModelRef
    concepts: list[str]
    frame: Frame
    limit: float
    absent: list[float]
    maps: list[list[list[float]]]
    timings_ms: Timings


class ProbedConcept(Answer):
    """What speaks for a concept in a box.

    ``probability``: how likely the box is about it, over all concepts 1 (`csr.interaction.naming`). ``peak``: where in
    the box its map is largest. ``exemplars``: the prototypes that are most similar to a place in the box; none of a
    concept whose prototypes are all pruned.
    """

    name: str
    probability: float
    peak: Peak
    exemplars: list[Exemplar]


class ProbeAnswer(Answer):
    """What a box may be about: every concept, the likeliest first. It offers names and assumes none."""

    digest: str
    model: ModelRef
    box: Region
    concepts: list[ProbedConcept]
    timings_ms: Timings


class Sample(Answer):
    """A study to try the page with; ``diagnosis`` names its true classes, for people, and boxes are (concept, x_min,
    y_min, x_max, y_max) in pixels of its image."""

    index: int
    study_id: str
    diagnosis: str
    concepts: list[str]
    boxes: list[tuple[str, float, float, float, float]]


class SignedIn(Answer):
    """A browser's session. It ends at ``expires_at``, or earlier once nobody used it for a while since ``used_at``."""

    id: str
    actor: str
    role: str
    opened_at: str
    used_at: str
    expires_at: str


class SessionsAnswer(Answer):
    """Sessions that are open, oldest first."""

    sessions: list[SignedIn]


class Health(Answer):
    """A health check that passed."""

    status: Literal["live", "ready"]


class ErrorDetail(Answer):
    """``code`` is stable and for programs, ``message`` one sentence for people."""

    code: str
    message: str


class ErrorBody(Answer):
    """The body of every answer that is not a success."""

    error: ErrorDetail
