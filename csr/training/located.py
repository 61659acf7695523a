"""Attention inside boxes: where experts have said where a finding is, its concept vectors are taken from there.

Stage 1 learns from labels of whole images, so concepts that always go together share one map: in a small retinal set
every image with microaneurysms has haemorrhages too, and nothing tells its maps which is which. Where a part of the
training images has boxes, prototypes need not guess: local concept vectors, and the agreement term, attend to the cells
that the boxes reach (``prototypes.located``). Stage 1, and what rests on it alone, does not see them. The paper learns
from image labels only.

Where readers corrected training studies (`csr.data.feedback`) their boxes say the same of each, in their own words
(``prototypes.reader_boxes``, `reader_cache`); stage 1 learns from these, too (`csr.training.reader_boxes`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from csr.data.prepared import READER_BOX_COLUMNS, PreparedSet
from csr.data.records import Collection
from csr.interaction.corrections import RegionBox, cells_inside
from csr.training.features import FeatureCache

_OUTSIDE = 50.0  # of a concept map, by which what lies outside the boxes is less: a softmax makes it nothing


def attended_cache(data: PreparedSet, cache: FeatureCache, located: bool, reader_boxes: bool) -> FeatureCache:
    """The features that stages 2 and 3 learn from, by what their configuration says of boxes.

    Args:
        located: all boxes of training images count, see `located_cache`.
        reader_boxes: what readers drew counts, see `reader_cache`.
    """
    if located:
        cache = located_cache(data.collection, cache, data.side)
    return reader_cache(data.collection, cache, data.reader_boxes(), data.side) if reader_boxes else cache


def reader_cache(collection: Collection, cache: FeatureCache, drawn: pd.DataFrame, side: int) -> FeatureCache:
    """The features with the maps of corrected studies as their readers' boxes have it.

    A concept is attended to in its finding boxes, else, where it is present, in the focus boxes, else everywhere; but
    nowhere in what is ignored, unless nothing is left then. Boxes reach cells as `csr.interaction.corrections` says.
    Holds all maps in memory where there is any box; without one the features are what was given.

    Args:
        drawn: see `csr.data.prepared.PreparedSet.reader_boxes`.
        side: of the prepared images, in pixels.
    """
    if drawn.empty:
        return cache
    cam, labels = np.array(cache.cam), collection.concept_labels()
    row_of = {study: row for row, study in enumerate(collection.studies["study_id"])}
    for study, own in drawn.groupby("study_id", sort=False):
        row = row_of[study]
        reached = [
            (kind, concept, cells_inside(RegionBox(x_min, y_min, x_max, y_max, kind), side, *cam.shape[2:]))
            for kind, concept, x_min, y_min, x_max, y_max in own[list(READER_BOX_COLUMNS[1:])].itertuples(index=False)
        ]
        nothing = np.zeros(cam.shape[2:], bool)
        focus, ignore = (
            np.any([nothing, *(cells for kind, _, cells in reached if kind == wanted)], axis=0)
            for wanted in ("focus", "ignore")
        )
        for k, name in enumerate(collection.concepts):
            found = np.any([nothing, *(cells for _, concept, cells in reached if concept == name)], axis=0)
            inside = found if found.any() else focus if labels[row, k] == 1 and focus.any() else ~nothing
            inside = inside & ~ignore
            if inside.any() and not inside.all():
                cam[row, k][~inside] = cam[row, k].min() - _OUTSIDE
    return FeatureCache(cache.features, cam)


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
