"""Requests: what a client says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from csr.bundle.format import Manifest
from csr.interaction.corrections import BoxKind, Interaction, InteractionError, RegionBox
from serving.errors import InvalidInteractionError
from serving.interfaces.schemas.base import Request

MAX_BOXES = 200
MAX_ANSWERS = 500  # confirmed, and as many rejected
Order = Literal["margin", "effect", "newest"]  # of a worklist
MOST_SKIPPED = 10_000  # studies that a page of the worklist may start behind by their number
Mine = Literal["unread", "read", "signed", "skipped"]  # how far a reader is with a study
Progress = Literal["all", "unread", "read", "signed", "skipped"]
ConceptName = Annotated[str, Field(max_length=200)]


class ImageSize(Request):
    """A size in pixels, as the file stores the image.

    Args:
        width, height: of the stored image.
        turn: what brought it upright before the model saw it, as EXIF numbers it (`csr.data.orientation`): 1, nothing.
            A request need not say it.
    """

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    turn: int | None = Field(default=None, ge=1, le=8)

    def fits(self, known: ImageSize) -> bool:
        """Whether coordinates of this image are those of a known one."""
        return (self.width, self.height) == (known.width, known.height) and self.turn in (None, known.turn)


class Region(Request):
    """A rectangle in pixels of the uploaded image."""

    x_min: FiniteFloat
    y_min: FiniteFloat
    x_max: FiniteFloat
    y_max: FiniteFloat


class Box(Region):
    """What a reader says of a region; ``focus``: look here, ``ignore``: nothing in here counts, ``finding``: this here
    is ``concept``, which no other kind has."""

    kind: BoxKind = "focus"
    concept: ConceptName | None = None


class InteractionRequest(Request):
    """The whole state of one reader's correction; what is not given has the model's default.

    Args:
        boxes: regions to focus on or to ignore, and findings with their names and places.
        confirmed, rejected: names of concepts that are, or are not, in the image.
        alpha: weight of what lies outside focus boxes, one for all concepts.
        rejection, background: see `csr.interaction.corrections.Interaction`.
        image: the size of the image that the boxes were drawn on. If given, it must be the study's: files of
            different sizes can show the same study, and boxes are in pixels of one of them.
    """

    boxes: list[Box] = Field(default=[], max_length=MAX_BOXES)
    confirmed: list[ConceptName] = Field(default=[], max_length=MAX_ANSWERS)
    rejected: list[ConceptName] = Field(default=[], max_length=MAX_ANSWERS)
    alpha: FiniteFloat | None = Field(default=None, ge=0, le=1)
    rejection: Literal["zero", "absent"] | None = None
    background: Literal["keep", "alpha"] = "keep"
    image: ImageSize | None = None

    def interaction(self, manifest: Manifest) -> Interaction:
        """As the method knows it, boxes still in pixels of the uploaded image.

        Raises:
            InvalidInteractionError: an empty or inverted box, a finding box without a name, or what contradicts itself.
        """
        try:
            return Interaction(
                boxes=tuple(RegionBox(**box.model_dump()) for box in self.boxes),
                confirmed=tuple(self.confirmed),
                rejected=tuple(self.rejected),
                alpha=self.alpha,
                rejection=manifest.rejection if self.rejection is None else self.rejection,  # type: ignore[arg-type]
                background=self.background,
            )
        except InteractionError as error:
            raise InvalidInteractionError(str(error)) from None


class ProbeRequest(Request):
    """What is in this box? ``image`` as in `InteractionRequest`."""

    box: Region
    image: ImageSize | None = None
