"""What goes over the wire: requests, checked strictly, and answers, which the data plane builds directly.

Requests forbid unknown keys, coerce nothing, and take finite numbers only.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PlainSerializer, WithJsonSchema

from csr.bundle import AtlasEntry, Manifest
from csr.interaction import Interaction, InteractionError, RegionBox
from serving.errors import InvalidInteractionError, ServingError

Task = Literal["multiclass", "multilabel"]

MAX_BOXES = 200
MAX_REJECTED = 500


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class ImageSize(_Request):
    """A size in pixels."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)


class Box(_Request):
    """A region in pixels of the uploaded image; ``positive``: look here, ``negative``: ignore that."""

    x_min: FiniteFloat
    y_min: FiniteFloat
    x_max: FiniteFloat
    y_max: FiniteFloat
    kind: Literal["positive", "negative"] = "positive"


class InteractionRequest(_Request):
    """The whole state of one reader's correction; what is not given has the model's default.

    Args:
        boxes: regions to attend to or to ignore.
        rejected: names of concepts whose evidence is taken away.
        alpha: weight of what lies outside positive boxes, one for all concepts.
        rejection, background: see `csr.interaction.Interaction`.
        image: the size of the image that the boxes were drawn on. If given, it must be the study's: files of
            different sizes can show the same study, and boxes are in pixels of one of them.
    """

    boxes: list[Box] = Field(default=[], max_length=MAX_BOXES)
    rejected: list[Annotated[str, Field(max_length=200)]] = Field(default=[], max_length=MAX_REJECTED)
    alpha: FiniteFloat | None = Field(default=None, ge=0, le=1)
    rejection: Literal["zero", "absent"] | None = None
    background: Literal["keep", "alpha"] = "keep"
    image: ImageSize | None = None

    def interaction(self, manifest: Manifest) -> Interaction:
        """As the method knows it, boxes still in pixels of the uploaded image.

        Raises:
            InvalidInteractionError: an empty or inverted box.
        """
        try:
            return Interaction(
                boxes=tuple(RegionBox(box.x_min, box.y_min, box.x_max, box.y_max, box.kind) for box in self.boxes),
                rejected=tuple(self.rejected),
                alpha=manifest.default_alpha if self.alpha is None else self.alpha,
                rejection=manifest.rejection if self.rejection is None else self.rejection,  # type: ignore[arg-type]
                background=self.background,
            )
        except InteractionError as error:
            raise InvalidInteractionError(str(error)) from None


def _rounded(maps: np.ndarray) -> list[Any]:
    return np.round(maps.astype(np.float64), 4).tolist()


_MAPS_SCHEMA = {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}}
Maps = Annotated[np.ndarray, PlainSerializer(_rounded), WithJsonSchema(_MAPS_SCHEMA)]


class ClassScore(_Answer):
    """One class; ``bias`` and the concepts' contributions sum to ``logit``."""

    name: str
    probability: float
    logit: float
    bias: float


class Peak(_Answer):
    """Where a concept's map is largest, in pixels of the uploaded image, and the similarity there."""

    x: float
    y: float
    similarity: float


class Exemplar(_Answer):
    """An atlas entry that speaks for a concept in this study, with its score here."""

    index: int
    score: float
    study_id: str
    usage: float
    reliance: float


class ConceptFinding(_Answer):
    """One concept in one study. ``peak`` and ``exemplars`` are empty where nothing speaks for it (rejected, pruned)."""

    name: str
    probability: float
    rejected: bool
    contributions: dict[str, float]
    peak: Peak | None
    exemplars: list[Exemplar]


class Prediction(_Answer):
    """What the model says about a study, with or without an interaction.

    ``task`` is the bundle's. ``found`` are the classes that the model says the study has, most probable first: ``top``,
    the most probable one, if a study has one class; else those with a probability from a half on, which may be none.
    ``margin`` is `csr.interaction.decision_margin`; ``asks_for_help``: it is below `csr.bundle.Manifest.ask_margin`.
    ``maps`` is K×h×w over the square canvas, ``map_limit`` the similarity that overlays draw at full strength: the
    largest of the study without interaction, so that pictures compare. ``abstains``: the model is not sure enough to
    answer (`csr.bundle.Manifest.abstain_below`); the rest is still what it would say.
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
    maps: Maps


class ClassChange(_Answer):
    """How a class's probability moved."""

    name: str
    before: float
    after: float
    delta: float


class ConceptChange(_Answer):
    """How a concept's part moved; for ``effect``, which says how much that can move probabilities, see
    `serving.explain`."""

    name: str
    cause: Literal["rejected", "region", "none"]
    effect: float
    probability_delta: float
    contribution_deltas: dict[str, float]


class Changes(_Answer):
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


Timings = dict[str, float]


class StudyAnswer(_Answer):
    """A study and the prediction without interaction. ``image``: the frame that boxes and peaks are in."""

    digest: str
    image: ImageSize
    prediction: Prediction
    timings_ms: Timings


class InteractionAnswer(_Answer):
    """A study before and after an interaction."""

    digest: str
    before: Prediction
    after: Prediction
    changes: Changes
    timings_ms: Timings


class AtlasAnswer(_Answer):
    """The atlas, concept by concept."""

    entries: list[AtlasEntry]


class ModelAnswer(_Answer):
    """The served bundle."""

    bundle_digest: str
    manifest: Manifest


class Sample(_Answer):
    """A study to try the page with; ``diagnosis`` names its true classes, for people, and boxes are (concept, x_min,
    y_min, x_max, y_max) in pixels of its image."""

    index: int
    study_id: str
    diagnosis: str
    concepts: list[str]
    boxes: list[tuple[str, float, float, float, float]]


class Health(_Answer):
    """A health check that passed."""

    status: Literal["live", "ready"]


class ErrorDetail(_Answer):
    """``code`` is stable and for programs, ``message`` one sentence for people."""

    code: str
    message: str


class ErrorBody(_Answer):
    """The body of every answer that is not a success."""

    error: ErrorDetail

    @classmethod
    def of(cls, error: ServingError) -> ErrorBody:
        return cls(error=ErrorDetail(code=error.code, message=str(error)))
