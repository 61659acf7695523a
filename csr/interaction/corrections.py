"""What a reader tells the model: boxes and answers about concepts → the reasoner's inputs. Torch-free.

- A *focus* box (bb⁺ of the paper): look here; what lies outside weighs α.
- An *ignore* box (bb⁻): nothing inside counts.
- A *finding* box names a concept: this here is k. It confirms k, with its place.
- A concept can be *confirmed* or *rejected* without a box.

The arithmetic that applies them lives once, in the reasoner (`csr.network.reasoner`, exported as ``reasoner.onnx``).
Here are the translations it needs, and the decisions where the paper (CSR, section 3.4) is silent:

- a focus or finding box reaches every map cell that it touches: features spread, so the evidence for a finding often
  sits on its rim, and to attend to a little too much costs less than to weaken what the box is about;
- an ignore box reaches the cells that share with it, along both axes, at least half of the shorter of the two, so
  it reaches at least one cell however small or thin it is, and spares its neighbours;
- where an ignore box overlaps another, the ignore box wins;
- α weighs what lies outside the focus boxes only if there is one; with ignore boxes alone the rest keeps weight 1
  (``background="alpha"`` gives the letter of the paper: α there too);
- α is one number for all concepts (the paper), or each concept's own, which the reasoner carries (`OWN_ALPHA`);
- what contradicts itself is refused, and both sides are named: a concept that is confirmed and rejected, a finding box
  of which ignore boxes leave nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

IGNORED_SHARE = 0.5
OWN_ALPHA = -1.0  # what a cell of the importance map holds where every concept has its own α: any negative number

BoxKind = Literal["focus", "ignore", "finding"]
Rejection = Literal["zero", "absent"]


class InteractionError(ValueError):
    """A box or concept that cannot be applied: one sentence a client can show."""


@dataclass(frozen=True)
class RegionBox:
    """A box in pixels of the network's square input; ``concept`` is what a ``finding`` box is about."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    kind: BoxKind = "focus"
    concept: str | None = None


@dataclass(frozen=True)
class Interaction:
    """The whole state of one reader's correction of one study.

    Args:
        boxes: see the module's docstring.
        confirmed, rejected: names of concepts that are, or are not, in the image.
        alpha: weight in [0, 1] outside focus boxes; None: the one that the reasoner carries.
        rejection: what a rejected score becomes at the most: ``absent``, the typical score of training images that
            lack the concept, or ``zero`` (the paper).
        background: see the module's docstring.
    """

    boxes: tuple[RegionBox, ...] = ()
    confirmed: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    alpha: float | None = None
    rejection: Rejection = "absent"
    background: Literal["keep", "alpha"] = "keep"

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise InteractionError(f"alpha: {self.alpha} is outside 0..1")
        if self.rejection not in ("zero", "absent"):
            raise InteractionError(f"rejection: {self.rejection!r} is neither 'zero' nor 'absent'")
        if self.background not in ("keep", "alpha"):
            raise InteractionError(f"background: {self.background!r} is neither 'keep' nor 'alpha'")
        for index, box in enumerate(self.boxes):
            _check_box(box, index)
            if box.concept is not None and box.concept in self.rejected:
                raise InteractionError(f"boxes[{index}]: shows {box.concept!r}, and rejected says that there is none")
        if both := [name for name in self.confirmed if name in self.rejected]:
            raise InteractionError(f"confirmed and rejected both name {both[0]!r}; a concept is one or the other")

    @property
    def present(self) -> tuple[str, ...]:
        """The concepts that are confirmed, with a place or without."""
        named = [box.concept for box in self.boxes if box.concept is not None]
        return tuple(dict.fromkeys([*self.confirmed, *named]))


def _check_box(box: RegionBox, index: int) -> None:
    corners = (box.x_min, box.y_min, box.x_max, box.y_max)
    if not all(math.isfinite(value) for value in corners):
        raise InteractionError(f"boxes[{index}]: coordinates must be finite numbers, got {corners}")
    if box.x_max <= box.x_min or box.y_max <= box.y_min:
        raise InteractionError(f"boxes[{index}]: is empty or inverted, got {corners}")
    if box.kind not in ("focus", "ignore", "finding"):
        raise InteractionError(f"boxes[{index}].kind: {box.kind!r} is none of 'focus', 'ignore', 'finding'")
    if box.kind == "finding" and not box.concept:
        raise InteractionError(f"boxes[{index}].concept: a finding box names what it shows")
    if box.kind != "finding" and box.concept is not None:
        raise InteractionError(f"boxes[{index}].concept: only a finding box names one; its kind is {box.kind!r}")


def importance_map(interaction: Interaction, side: int, height: int, width: int) -> np.ndarray:
    """A of the paper: 1 inside focus boxes, 0 inside ignore boxes, α, `OWN_ALPHA` or 1 elsewhere.

    Args:
        interaction: whose boxes are in pixels of a side×side input.
        side: the input's side in pixels.
        height, width: the similarity map's size in cells.

    Returns:
        height×width float32; all 1 without focus and ignore boxes.

    Raises:
        InteractionError: a box lies outside the image.
    """
    attend = _cells(interaction, "focus", side, height, width).any(0)
    ignore = _cells(interaction, "ignore", side, height, width).any(0)
    faint = attend.any() or (ignore.any() and interaction.background == "alpha")
    outside = OWN_ALPHA if interaction.alpha is None else interaction.alpha
    weights = np.full((height, width), outside if faint else 1.0, np.float32)
    weights[attend] = 1.0
    weights[ignore] = 0.0
    return weights


def place_maps(interaction: Interaction, concepts: Sequence[str], side: int, height: int, width: int) -> np.ndarray:
    """K×h×w float32: 1 in the cells of a concept's finding boxes that no ignore box takes, else 0.

    Raises:
        InteractionError: a box lies outside the image, names an unknown concept, or is ignored whole.
    """
    places = np.zeros((len(concepts), height, width), np.float32)
    ignore = _cells(interaction, "ignore", side, height, width).any(0)
    own = [(index, box) for index, box in enumerate(interaction.boxes) if box.kind == "finding"]
    for (index, box), cells in zip(own, _cells(interaction, "finding", side, height, width), strict=True):
        k = _index(f"boxes[{index}].concept", str(box.concept), concepts)
        if not (cells & ~ignore).any():
            ignoring = [
                f"boxes[{other}]"
                for other, each in enumerate(interaction.boxes)
                if each.kind == "ignore" and (cells & cells_inside(each, side, height, width)).any()
            ]
            says = f"{' and '.join(ignoring)} say{'s' if len(ignoring) == 1 else ''}"
            raise InteractionError(f"boxes[{index}]: this finding of {box.concept!r} lies where {says} to ignore all")
        places[k, cells & ~ignore] = 1
    return places


def _cells(interaction: Interaction, kind: BoxKind, side: int, height: int, width: int) -> np.ndarray:
    """The cells of each box of a kind, n×h×w bool.

    Raises:
        InteractionError: a box lies outside the image.
    """
    found = []
    for index, box in enumerate(interaction.boxes):
        if box.x_max <= 0 or box.y_max <= 0 or box.x_min >= side or box.y_min >= side:
            raise InteractionError(f"boxes[{index}]: lies outside the {side}×{side} image")
        if box.kind == kind:
            found.append(cells_inside(box, side, height, width))
    return np.array(found, bool).reshape(-1, height, width)


def cells_inside(box: RegionBox, side: int, height: int, width: int) -> np.ndarray:
    """The map cells that a box reaches, h×w bool; see the module's docstring."""
    across = _shares(max(box.x_min, 0.0), min(box.x_max, float(side)), side / width, width)
    down = _shares(max(box.y_min, 0.0), min(box.y_max, float(side)), side / height, height)
    least = IGNORED_SHARE - 1e-9 if box.kind == "ignore" else 1e-9  # to touch along an edge is to share nothing
    return np.outer(down > least, across > least)


def _shares(low: float, high: float, cell: float, count: int) -> np.ndarray:
    """What each of ``count`` cells of length ``cell`` shares with [low, high], over the shorter of the two lengths."""
    starts = np.arange(count) * cell
    return (np.minimum(starts + cell, high) - np.maximum(starts, low)) / min(cell, high - low)


def answer_vector(interaction: Interaction, concepts: Sequence[str]) -> np.ndarray:
    """K float32: 1 for confirmed concepts, −1 for rejected ones, else 0.

    Raises:
        InteractionError: an unknown concept.
    """
    answers = np.zeros(len(concepts), np.float32)
    for key, names, value in (("confirmed", interaction.present, 1), ("rejected", interaction.rejected, -1)):
        for name in names:
            answers[_index(key, name, concepts)] = value
    return answers


def _index(key: str, name: str, concepts: Sequence[str]) -> int:
    if name not in concepts:
        raise InteractionError(f"{key}: unknown concept {name!r}; this model knows {', '.join(concepts)}")
    return list(concepts).index(name)


def interaction_tensors(
    interactions: Sequence[Interaction], concepts: Sequence[str], side: int, height: int, width: int
) -> dict[str, np.ndarray]:
    """The reasoner's inputs for B interactions with studies of side×side pixels and height×width cells.

    Returns:
        ``importance`` B×h×w, ``answers`` B×K, ``places`` B×K×h×w and ``absent_weight`` B, all float32.

    Raises:
        InteractionError: a box outside the image or an unknown concept, or what contradicts itself.
    """
    places = [place_maps(each, concepts, side, height, width) for each in interactions]  # first: it names the box
    return {
        "importance": np.stack([importance_map(each, side, height, width) for each in interactions]),
        "answers": np.stack([answer_vector(each, concepts) for each in interactions]),
        "places": np.stack(places),
        "absent_weight": np.array([each.rejection == "absent" for each in interactions], np.float32),
    }
