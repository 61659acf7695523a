"""Attention inside boxes: where experts have said where a finding is, its concept vectors are taken from there.

Stage 1 learns from labels of whole images, so concepts that always go together share one map: in a small retinal set
every image with microaneurysms has haemorrhages too, and nothing tells its maps which is which. Where a part of the
training images has boxes, prototypes need not guess: local concept vectors, and the agreement term, attend to the cells
that the boxes reach (``prototypes.located``). Stage 1, and what rests on it alone, sees no box. The paper learns from
image labels only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from csr.data.records import Collection
from csr.interaction.corrections import RegionBox, cells_inside
from csr.training.features import FeatureCache

_OUTSIDE = 50.0  # of a concept map, by which what lies outside the boxes is less: a softmax makes it nothing


def located_cache(collection: Collection, cache: FeatureCache, side: int) -> FeatureCache:
    """The features with the maps of training images confined to their boxes, where a present concept has any.

    Other maps, those of validation and test images among them, stay. Holds all maps in memory.

    Args:
        side: of the prepared images, in pixels.
    """
    train, labels = set(collection.rows("train").tolist()), collection.concept_labels()
    boxes = {
        (row, k): own for (row, k), own in collection.boxes_by_pair().items() if row in train and labels[row, k] == 1
    }
    return confined(cache, boxes, side)


def confined(cache: FeatureCache, boxes: Mapping[tuple[int, int], np.ndarray], side: int) -> FeatureCache:
    """The features with the maps of (row, concept) pairs as they are in the cells that the pair's n×4 boxes reach, and
    so much less elsewhere that attention stays inside."""
    cam = np.array(cache.cam)
    for (row, k), own in boxes.items():
        inside = [cells_inside(RegionBox(*box), side, *cam.shape[2:]) for box in own.tolist()]
        cam[row, k][~np.any(inside, axis=0)] = cam[row, k].min() - _OUTSIDE
    return FeatureCache(cache.features, cam)
