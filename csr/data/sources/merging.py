"""Several readers' boxes of one finding, made one.

Readers who see the same thing draw boxes that overlap but never agree to the pixel. Weighted boxes fusion (Solovyev et
al. 2021, arXiv 1910.13302) averages them by confidence; people give none, so here all count the same:

    IoU(a, b) = |a ∩ b| / |a ∪ b|;  boxes of one image and finding with IoU ≥ t belong together, and so do those that a
    chain of such pairs connects; each group becomes one box, whose corners are the means of the group's corners.

Who drew a box does not matter: one reader's boxes are merged too if they overlap as much. A box that no other overlaps
stays as it is; whether a finding counts at all is the vote's business, not this rule's.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from csr.data.records import CORNERS


def merge_overlapping(boxes: pd.DataFrame, least_iou: float) -> pd.DataFrame:
    """One box for each group of boxes that overlap, in the place and with the other columns of the group's first.

    Args:
        boxes: ``study_id, concept`` and corners as numbers.
        least_iou: t, greater than 0 and at most 1; 1 merges boxes that are equal.
    """
    pairs = boxes.groupby(["study_id", "concept"], sort=False).ngroup().to_numpy()
    corners = boxes[CORNERS].to_numpy(np.float64)
    group = np.arange(len(boxes))  # named by its first box
    order = np.argsort(pairs, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(pairs[order])) + 1):
        if len(rows) > 1:
            _, own = connected_components(_iou(corners[rows]) >= least_iou, directed=False)
            group[rows] = [rows[np.flatnonzero(own == label)[0]] for label in own]
    merged = boxes.assign(**{name: boxes[name].groupby(group).transform("mean") for name in CORNERS})
    return merged[group == np.arange(len(boxes))].reset_index(drop=True)


def _iou(boxes: np.ndarray) -> np.ndarray:
    """n×n intersection over union of n×4 boxes."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    sides = np.minimum(high, boxes[:, 2:]) - np.maximum(low, boxes[:, :2])
    shared = sides.clip(0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return shared / (areas[:, None] + areas - shared)
