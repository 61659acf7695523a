"""What simulated readers tell the head while it is trained: answers about concepts, and boxes.

The head learns what to make of corrections, as IntCEM does (Espinosa Zarlenga et al., NeurIPS 2023).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from csr.data.records import Collection
from csr.interaction.corrections import Interaction, RegionBox, importance_map
from csr.interaction.placing import elsewhere, shifted
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Reasoner
from csr.training.features import FeatureCache
from csr.training.runtime import device

_BATCH = 64
_SPOT = 1 / 6  # side of a box in an image without any, as a share of the image's


def draw_answers(labels: Tensor, share: float, error: float) -> Tensor:
    """What a simulated reader says of some of B×K labels (1, 0 or NaN): 1 confirmed, −1 rejected, 0 not asked."""
    place = labels.device
    chance = torch.rand(len(labels), 1, device=place) * (torch.rand(len(labels), 1, device=place) < share)
    asked = (torch.rand(labels.shape, device=place) < chance) & ~labels.isnan()
    wrong = torch.rand(labels.shape, device=place) < error
    return asked * (2 * labels.nan_to_num(0) - 1) * (1 - 2 * wrong.float())


def draw_boxes(boxes: np.ndarray, side: int, rng: np.random.Generator) -> Interaction:
    """One reader's boxes on an image whose findings lie in n×4 boxes: focus boxes around one finding or around all, or
    an ignore box. Each is, equally likely, where it should be (a focus box on a finding, an ignore box off all), moved
    by half its size, or where it should not be."""
    place = rng.choice(["right", "shifted", "wrong"])
    if rng.random() < 0.5 and len(boxes):
        chosen = boxes if rng.random() < 0.5 else boxes[[rng.integers(len(boxes))]]
        drawn = [_placed(box, boxes, place, side, rng) for box in chosen]
        return Interaction(tuple(_region(box, "focus") for box in drawn))
    size = np.array([0, 0, _SPOT * side, _SPOT * side])
    off = elsewhere(boxes[rng.integers(len(boxes))] if len(boxes) else size, boxes, side, rng)
    if place == "right" or not len(boxes):
        return Interaction((_region(off, "ignore"),))
    on = boxes[rng.integers(len(boxes))]
    return Interaction((_region(on if place == "wrong" else shifted(on, side, rng), "ignore"),))


def _placed(box: np.ndarray, boxes: np.ndarray, place: str, side: int, rng: np.random.Generator) -> np.ndarray:
    if place == "shifted":
        return shifted(box, side, rng)
    return elsewhere(box, boxes, side, rng) if place == "wrong" else box


def _region(corners: np.ndarray, kind: Literal["focus", "ignore"]) -> RegionBox:
    x_min, y_min, x_max, y_max = (float(value) for value in corners)
    return RegionBox(x_min, y_min, x_max, y_max, kind)


@torch.no_grad()
def boxed_scores(
    reasoner: Reasoner,
    model: PrototypeModel,
    cache: FeatureCache,
    collection: Collection,
    rows: np.ndarray,
    side: int,
    views: int,
    rng: np.random.Generator,
) -> Tensor:
    """s n×V×K×M of the given rows, each under the boxes of V simulated readers (`draw_boxes`).

    Args:
        side: of the square that the collection's boxes are in pixels of.
        views: V.
    """
    height, width = cache.features.shape[2:]
    by_row: dict[int, list[np.ndarray]] = {}
    for (row, _), found in collection.boxes_by_pair().items():
        by_row.setdefault(row, []).append(found)
    pieces = []
    for start in range(0, len(rows), _BATCH):
        chosen = rows[start : start + _BATCH]
        drawn = [
            [draw_boxes(np.concatenate([*by_row.get(int(row), []), np.zeros((0, 4))]), side, rng) for row in chosen]
            for _ in range(views)
        ]
        patches = model.projector.project_maps(cache.batch(chosen, device())[0])
        seen = []
        for own in drawn:
            importance = np.stack([importance_map(each, side, height, width) for each in own])
            seen.append(reasoner.scores(reasoner.maps(patches, torch.from_numpy(importance).to(device()))))
        pieces.append(torch.stack(seen, 1))
    return torch.cat(pieces)
