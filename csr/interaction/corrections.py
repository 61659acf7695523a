"""What a clinician tells the model: boxes and rejected concepts → importance map and prototype mask. Torch-free.

The arithmetic that applies them lives once, in the reasoner (`csr.network.reasoner`, exported as ``reasoner.onnx``).
Here are the two translations it needs, and the decisions where the paper (CSR, section 3.4) is silent:

- a positive box reaches every map cell that it touches: features spread, so the evidence for a finding often sits on
  its rim, and to attend to a little too much costs less than to weaken what the box is about;
- a negative box reaches the cells that share with it, along both axes, at least half of the shorter of the two, so
  it reaches at least one cell however small or thin it is, and spares its neighbours;
- where a positive and a negative box overlap, the negative one wins;
- α weighs what lies outside the boxes only if there is a positive box to attend to; with negative boxes alone the
  rest keeps weight 1 (``background="alpha"`` gives the letter of the paper: α there too);
- α is one number for all concepts (the paper), or each concept's own, which the reasoner carries (`OWN_ALPHA`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

NEGATIVE_SHARE = 0.5
OWN_ALPHA = -1.0  # what a cell of the importance map holds where every concept has its own α: any negative number


class InteractionError(ValueError):
    """A box or concept that cannot be applied: one sentence a client can show."""


@dataclass(frozen=True)
class RegionBox:
    """A box in pixels of the network's square input; ``positive``: look here, ``negative``: ignore that."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    kind: Literal["positive", "negative"] = "positive"


@dataclass(frozen=True)
class Interaction:
    """The whole state of one clinician's correction of one study.

    Args:
        boxes: regions to attend to or to ignore.
        rejected: names of concepts whose evidence is taken away.
        alpha: weight in [0, 1] outside all boxes, or None for each concept's own, calibrated one.
        rejection: what a rejected score becomes: ``zero`` (the paper) or ``absent``, the typical score of training
            images that lack the concept.
        background: see the module's docstring.
    """

    boxes: tuple[RegionBox, ...] = ()
    rejected: tuple[str, ...] = ()
    alpha: float | None = None
    rejection: Literal["zero", "absent"] = "absent"
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


def _check_box(box: RegionBox, index: int) -> None:
    corners = (box.x_min, box.y_min, box.x_max, box.y_max)
    if not all(math.isfinite(value) for value in corners):
        raise InteractionError(f"boxes[{index}]: coordinates must be finite numbers, got {corners}")
    if box.x_max <= box.x_min or box.y_max <= box.y_min:
        raise InteractionError(f"boxes[{index}]: is empty or inverted, got {corners}")
    if box.kind not in ("positive", "negative"):
        raise InteractionError(f"boxes[{index}].kind: {box.kind!r} is neither 'positive' nor 'negative'")


def importance_map(interaction: Interaction, side: int, height: int, width: int) -> np.ndarray:
    """A of the paper: 1 inside positive boxes, 0 inside negative ones, α, `OWN_ALPHA` or 1 elsewhere.

    Args:
        interaction: whose boxes are in pixels of a side×side input.
        side: the input's side in pixels.
        height, width: the similarity map's size in cells.

    Returns:
        height×width float32; all 1 without boxes.

    Raises:
        InteractionError: a box lies outside the image.
    """
    attend = np.zeros((height, width), bool)
    ignore = np.zeros((height, width), bool)
    for index, box in enumerate(interaction.boxes):
        if box.x_max <= 0 or box.y_max <= 0 or box.x_min >= side or box.y_min >= side:
            raise InteractionError(f"boxes[{index}]: lies outside the {side}×{side} image")
        target = attend if box.kind == "positive" else ignore
        target |= _cells_inside(box, side, height, width)
    faint = attend.any() or (bool(interaction.boxes) and interaction.background == "alpha")
    outside = OWN_ALPHA if interaction.alpha is None else interaction.alpha
    weights = np.full((height, width), outside if faint else 1.0, np.float32)
    weights[attend] = 1.0
    weights[ignore] = 0.0
    return weights


def _cells_inside(box: RegionBox, side: int, height: int, width: int) -> np.ndarray:
    across = _shares(max(box.x_min, 0.0), min(box.x_max, float(side)), side / width, width)
    down = _shares(max(box.y_min, 0.0), min(box.y_max, float(side)), side / height, height)
    least = 1e-9 if box.kind == "positive" else NEGATIVE_SHARE - 1e-9  # to touch along an edge is to share nothing
    return np.outer(down > least, across > least)


def _shares(low: float, high: float, cell: float, count: int) -> np.ndarray:
    """What each of ``count`` cells of length ``cell`` shares with [low, high], over the shorter of the two lengths."""
    starts = np.arange(count) * cell
    return (np.minimum(starts + cell, high) - np.maximum(starts, low)) / min(cell, high - low)


def prototype_mask(rejected: Iterable[str], concepts: Sequence[str], per_concept: int) -> np.ndarray:
    """K×M float32: 0 for every prototype of a rejected concept, 1 elsewhere.

    Raises:
        InteractionError: an unknown concept.
    """
    mask = np.ones((len(concepts), per_concept), np.float32)
    for name in rejected:
        if name not in concepts:
            raise InteractionError(f"rejected: unknown concept {name!r}; this model knows {', '.join(concepts)}")
        mask[list(concepts).index(name)] = 0
    return mask


def interaction_tensors(
    interactions: Sequence[Interaction], concepts: Sequence[str], per_concept: int, side: int, height: int, width: int
) -> dict[str, np.ndarray]:
    """The reasoner's inputs for B interactions with studies of side×side pixels and height×width cells.

    Returns:
        ``importance`` B×h×w, ``prototype_mask`` B×K×M and ``absent_weight`` B, all float32.

    Raises:
        InteractionError: a box outside the image or an unknown concept.
    """
    return {
        "importance": np.stack([importance_map(each, side, height, width) for each in interactions]),
        "prototype_mask": np.stack([prototype_mask(each.rejected, concepts, per_concept) for each in interactions]),
        "absent_weight": np.array([each.rejection == "absent" for each in interactions], np.float32),
    }


def decision_margin(probabilities: np.ndarray, multilabel: bool = False) -> np.ndarray:
    """How far an answer is from another: p(top-1) − p(top-2), or, where a study can have several classes, the smallest
    |p − (1 − p)|, which is the same for every class against its absence. …×T → …; 1 for a single class."""
    if multilabel:
        return np.abs(2 * probabilities - 1).min(-1)
    if probabilities.shape[-1] == 1:
        return np.ones(probabilities.shape[:-1])
    top = np.sort(probabilities, axis=-1)
    return top[..., -1] - top[..., -2]


def wants_help(probabilities: np.ndarray, margin: float = 0.3, multilabel: bool = False) -> np.ndarray:
    """The paper's trigger: True where the `decision_margin` is below ``margin``. …×T → …."""
    return decision_margin(probabilities, multilabel) < margin
