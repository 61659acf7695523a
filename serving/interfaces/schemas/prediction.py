"""A prediction, and what an interaction changes in it."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from csr.bundle.profile import ReasonCode
from serving.interfaces.schemas.base import Answer

Task = Literal["multiclass", "multilabel"]
ReaderAnswer = Literal["none", "confirmed", "rejected"]


class ClassScore(Answer):
    """One class; ``bias`` and the concepts' contributions sum to ``logit``. ``threshold``: the probability from which
    on it is found, a whole percent, where a study can have several classes (`csr.bundle.format.Manifest.thresholds`),
    else null."""

    name: str
    probability: float
    logit: float
    bias: float
    threshold: float | None = None


class Peak(Answer):
    """Where a concept's map is largest, in pixels of the uploaded image, and the similarity there."""

    x: float
    y: float
    similarity: float


class Exemplar(Answer):
    """A training study that shows what speaks for a concept in this one: source ``rank`` (0 is the nearest) of
    prototype ``index``, whose similarity to this study is ``score``. ``crop`` is the path of its picture."""

    index: int
    rank: int
    score: float
    study_id: str
    usage: float
    reliance: float
    crop: str


def crop_path(concept: str, index: int, rank: int) -> str:
    """Where a prototype's picture is."""
    return f"/v1/atlas/{quote(concept, safe='')}/{index}.png?rank={rank}"


class ConceptFinding(Answer):
    """One concept in one study, and what the reader says of it.

    ``peak`` and ``exemplars`` are empty where nothing speaks for it (rejected, pruned). What a reader says makes
    nothing more similar: a confirmed concept keeps the exemplars that it had without interaction. One that was
    confirmed with its place has its peak there.
    """

    name: str
    probability: float
    answer: ReaderAnswer
    contributions: dict[str, float]
    peak: Peak | None
    exemplars: list[Exemplar]


class NextQuestion(Answer):
    """Whether a concept is there, which is worth asking: see `csr.interaction.questions`.

    ``effect`` is what the answer is expected to tell about the classes, in bits. ``place``: where to look.
    ``if_confirmed`` and ``if_rejected`` are the classes' probabilities after either answer, ``reason`` what is most of
    it in a sentence.
    """

    concept: str
    effect: float
    place: Peak | None
    if_confirmed: dict[str, float]
    if_rejected: dict[str, float]
    reason: str


class MisfitReason(Answer):
    """Why an image does not fit: ``code`` is one of `csr.bundle.profile.ReasonCode`, ``message`` a sentence for
    people."""

    code: ReasonCode
    message: str


class Fits(Answer):
    """Whether an image is like those that the model was trained on; it is where there are no ``reasons``.

    ``score``: how unlike it is by its pixels; above ``limit``, which 1 % of good validation images are, there is a
    reason. What its file says of itself can be another, whatever the score. ``action``: what follows, as the server is
    configured: ``none`` where it fits, else ``warn``, or ``abstain``: the prediction abstains for it. A server that
    refuses what does not fit gives no prediction.
    """

    score: float
    limit: float
    reasons: list[MisfitReason]
    action: Literal["none", "warn", "abstain", "refuse"]


class Prediction(Answer):
    """What the model says about a study, with or without an interaction.

    ``task`` is the bundle's. ``found`` are the classes that the model says the study has, most probable first: ``top``,
    the most probable one, if a study has one class; else those with a probability from their threshold on, which may be
    none.
    ``margin`` is `csr.data.decisions.decision_margin`; ``asks_for_help``: it is below
    `csr.bundle.format.Manifest.ask_margin`. ``map_limit`` is the similarity that overlays draw at full strength: the
    largest of the study without interaction, so that pictures compare. ``abstains``: the model is not sure enough to
    answer (`csr.bundle.format.Manifest.abstain_below`), or the image does not fit and the server abstains from such
    images; the rest is still what it would say. ``fits``: whether the image is like those that it was trained on;
    no interaction changes that. ``questions``: what is
    worth asking the reader next, at most three, that with the largest effect first; none where no answer is expected to
    tell `csr.bundle.format.Manifest.least_effect` bits.
    """

    task: Task
    found: list[str]
    top: str
    margin: float
    asks_for_help: bool
    abstains: bool
    classes: list[ClassScore]
    concepts: list[ConceptFinding]
    map_limit: float
    questions: list[NextQuestion]
    fits: Fits


class ClassChange(Answer):
    """How a class's probability moved."""

    name: str
    before: float
    after: float
    delta: float


class ConceptChange(Answer):
    """How a concept's part moved; for ``effect``, which says how much that can move probabilities, see
    `serving.core.explain`."""

    name: str
    cause: Literal["confirmed", "rejected", "region", "none"]
    effect: float
    probability_delta: float
    contribution_deltas: dict[str, float]


class Changes(Answer):
    """What an interaction did, classes in the model's order and concepts by effect, largest first.

    ``found_before`` and ``found_after`` are the predictions' ``found``: where a study can have several classes, a
    decision changed if one of them is in one of the two only.
    """

    found_before: list[str]
    found_after: list[str]
    top_before: str
    top_after: str
    top_changed: bool
    summary: str
    classes: list[ClassChange]
    concepts: list[ConceptChange]
