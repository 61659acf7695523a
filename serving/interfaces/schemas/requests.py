"""Requests: what a client says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from csr.bundle.format import Manifest
from csr.interaction.corrections import Interaction, InteractionError, RegionBox
from serving.errors import InvalidInteractionError
from serving.interfaces.schemas.base import Request

MAX_BOXES = 200
MAX_REJECTED = 500
Verdict = Literal["keep", "prune"]
Order = Literal["margin", "effect"]  # of a worklist
Progress = Literal["all", "unread", "read"]


class ImageSize(Request):
    """A size in pixels."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)


class Box(Request):
    """A region in pixels of the uploaded image; ``positive``: look here, ``negative``: ignore that."""

    x_min: FiniteFloat
    y_min: FiniteFloat
    x_max: FiniteFloat
    y_max: FiniteFloat
    kind: Literal["positive", "negative"] = "positive"


class InteractionRequest(Request):
    """The whole state of one reader's correction; what is not given has the model's default.

    Args:
        boxes: regions to attend to or to ignore.
        rejected: names of concepts whose evidence is taken away.
        alpha: weight of what lies outside positive boxes, one for all concepts.
        rejection, background: see `csr.interaction.corrections.Interaction`.
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


class ReviewRequest(Request):
    """What a reviewer says of a prototype; ``prune`` takes it out of the next training."""

    verdict: Verdict
    comment: str = Field(default="", max_length=1000)
