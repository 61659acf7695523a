"""Stage 1 learns from the boxes that readers drew: a concept's map is to say so inside them, and nothing outside.

The score of a concept is its map, pooled over all cells. Of some cells R alone it is what the whole map's would be if
no other cell held any evidence:

    lse:      ℓ_R = (1/r) · log( (1/hw) Σ_{R} exp(r · cam_k(h,w)) )       so that  exp(r·ℓ) = exp(r·ℓ_R) + exp(r·ℓ_rest)
    average:  ℓ_R = (1/hw) Σ_{R} cam_k(h,w)                               so that  ℓ = ℓ_R + ℓ_rest

A reader's boxes say of a study and concept in which cells I the evidence lies and in which cells O there is none:

    loss = weight · Σ ( [I not empty] · BCE(ℓ_I, 1) + [O not empty] · BCE(ℓ_O, 0) ) / #known labels of the batch

I: of a present concept the cells that its finding boxes reach, or the focus boxes where it has none, without what is
ignored; empty where it has neither. O: where I is not empty, the cells that are clear of its boxes by a cell or more,
whose fields of view reach into them; and, whatever is known of the concept, the cells that an ignore box reaches. In
effect a concept that is present must peak inside; nothing is said of where it peaks there.

It is the constraint of being right for the right reasons (Ross et al. 2017, arXiv 1703.03717) put on the maps instead
of on the gradients, which need a second derivative: the maps are the only way from image to score here. Each term
counts as one label, as it is one BCE among those of the labels; a mean of its own would make a few boxes as loud as all
labels. Boxes move with the image that is augmented.

Not covered: masks by pixel, and boxes of the data set's own (``prototypes.located`` uses them in stage 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.data.records import CORNERS
from csr.network.concept_model import ConceptModelConfig

# of either axis, from which an ignore box takes a cell: that of `csr.interaction.corrections`, of which stage 1 knows
# nothing, so that an edit there does not train it again; the tests hold the two together
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class _Drawn:
    """What was drawn of one study, in pixels, n×4 each; finding boxes by their concept."""

    focus: Tensor
    ignore: Tensor
    findings: dict[int, Tensor]


class ReaderBoxes:
    """Where readers say that evidence is, and is not, in the studies of a prepared set.

    Args:
        data: a set that feedback joined (`csr.data.feedback.joining`); without any box nothing is ever said.
    """

    def __init__(self, data: PreparedSet) -> None:
        self._side = data.side
        self._concepts = len(data.collection.concepts)
        self._drawn: dict[int, _Drawn] = {}
        index_of = {name: k for k, name in enumerate(data.collection.concepts)}
        row_of = {study: row for row, study in enumerate(data.collection.studies["study_id"])}
        for study, own in data.reader_boxes().groupby("study_id", sort=False):
            focus, ignore, found = (own[own["kind"] == kind] for kind in ("focus", "ignore", "finding"))
            findings = {index_of[name]: _corners(each) for name, each in found.groupby("concept", sort=False)}
            self._drawn[row_of[study]] = _Drawn(_corners(focus), _corners(ignore), findings)

    def __bool__(self) -> bool:
        return bool(self._drawn)

    def cells(
        self, rows: np.ndarray, present: Tensor, transforms: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """I and O of moved pictures, B×K×h×w bool each, on the CPU.

        A cell of the moved picture counts as one of the image, of that size, around the point that its middle shows.

        Args:
            rows: B rows of the collection.
            present: B×K bool, the concepts that are known to be there.
            transforms: B×2×3 on the CPU, from the moved picture to the image (`csr.training.augmentation.draw_moves`).
        """
        inside = torch.zeros(len(rows), self._concepts, height, width, dtype=torch.bool)
        outside = inside.clone()
        cell = self._side / torch.tensor([width, height])
        for index, row in enumerate(rows.tolist()):
            if (drawn := self._drawn.get(row)) is None:
                continue
            grid = F.affine_grid(transforms[index : index + 1].double(), [1, 1, height, width], align_corners=False)
            middles = (grid[0] + 1) / 2 * self._side
            ignored = _reached(drawn.ignore, middles, cell, IGNORED_SHARE)
            outside[index] = ignored
            for k in present[index].nonzero()[:, 0].tolist():
                boxes = drawn.findings.get(k, drawn.focus)
                reached = _reached(boxes, middles, cell, 0.0) & ~ignored
                if reached.any():  # what is ignored whole is no place
                    inside[index, k] = reached
                    margin = torch.cat([-cell, cell])
                    outside[index, k] |= ~_reached(boxes + margin, middles, cell, 0.0)
        return inside, outside


def _corners(table: pd.DataFrame) -> Tensor:
    return torch.from_numpy(table[CORNERS].to_numpy(np.float64, copy=True))


def _reached(boxes: Tensor, middles: Tensor, cell: Tensor, least: float) -> Tensor:
    """h×w bool: the cells around ``middles`` h×w×2 that any of n×4 boxes reaches, as
    `csr.interaction.corrections.cells_inside` has it: of either axis more than ``least`` of the shorter length."""
    if not len(boxes):
        return torch.zeros(middles.shape[:2], dtype=torch.bool)
    low, high = boxes[:, None, None, :2], boxes[:, None, None, 2:]
    shared = torch.minimum(middles + cell / 2, high) - torch.maximum(middles - cell / 2, low)
    enough = shared / torch.minimum(cell, high - low)
    return (enough > least + (-1e-9 if least else 1e-9)).all(-1).any(0)


def region_scores(maps: Tensor, region: Tensor, config: ConceptModelConfig) -> Tensor:
    """ℓ_R of cam …×h×w and R …×h×w bool, which must hold a cell, in float32; see the module's docstring."""
    cells, chosen = maps.float().flatten(-2), region.flatten(-2)
    if config.pooling == "average":
        return (cells * chosen).sum(-1) / cells.shape[-1]
    r = config.sharpness
    return (torch.logsumexp((r * cells).masked_fill(~chosen, -torch.inf), -1) - math.log(cells.shape[-1])) / r


def box_loss(maps: Tensor, inside: Tensor, outside: Tensor, config: ConceptModelConfig) -> Tensor:
    """The sum over studies and concepts of what the boxes cost, before weight and mean; see the module's docstring.

    Args:
        maps: cam B×K×h×w.
        inside, outside: I and O, B×K×h×w bool.
    """
    total = torch.zeros((), device=maps.device)
    for region, sign in ((inside, -1.0), (outside, 1.0)):
        image, concept = region.flatten(2).any(-1).nonzero(as_tuple=True)
        if len(image):
            scores = region_scores(maps[image, concept], region[image, concept], config)
            total = total + F.softplus(sign * scores).sum()
    return total
