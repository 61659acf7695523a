"""The pointing game (Zhang et al. 2018, as CSR uses it): where maps point, and whether that is where the findings are.

The map of a present concept is enlarged to the image's size by bicubic interpolation; it is a hit when its maximum lies
in one of the concept's boxes, tolerance 0. Torch-free; `csr.evaluation.peaks` finds the maxima.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Pointing:
    """Results of the pointing game.

    Args:
        pair: share of hits over all (image, concept) pairs that have a box.
        image: the same, averaged over an image's pairs first.
        chance: the mean share of the image that a pair's boxes cover: what a random point hits.
        centre: what always pointing at the concept's mean position in the training boxes hits.
        pairs: number of pairs.
        by_concept, chance_by_concept, centre_by_concept: ``pair, chance, centre`` of each concept, NaN where it has no
            box. Small findings have levels of their own: a mean over concepts hides which are found.
        pairs_by_concept: number of pairs of each concept.
    """

    pair: float
    image: float
    chance: float
    centre: float
    pairs: int
    by_concept: np.ndarray
    chance_by_concept: np.ndarray
    centre_by_concept: np.ndarray
    pairs_by_concept: np.ndarray


def pointing_game(
    peaks: np.ndarray, boxes: dict[tuple[int, int], np.ndarray], rows: np.ndarray, centres: np.ndarray, side: int
) -> Pointing:
    """Plays the pointing game.

    Args:
        peaks: n×K×2 points (x, y), in the order of ``rows``.
        boxes: (row, concept) → boxes, as `csr.data.records.Collection.boxes_by_pair` gives them.
        rows: the n rows that are judged.
        centres: K×2 mean box centres in training.
        side: image side in pixels.
    """
    outcomes = []
    for position, row in enumerate(rows):
        for concept in range(peaks.shape[1]):
            found = boxes.get((int(row), concept))
            if found is not None:
                hit, level = inside(peaks[position, concept], found), inside(centres[concept], found)
                outcomes.append((position, concept, hit, _covered(found, side), level))
    columns = ["position", "concept", "hit", "chance", "centre"]
    table = pd.DataFrame(outcomes, columns=columns).astype(np.float64)
    own = table.groupby("concept")
    levels = own[["hit", "chance", "centre"]].mean().reindex(range(peaks.shape[1]))
    return Pointing(
        pair=float(table["hit"].mean()),
        image=float(table.groupby("position")["hit"].mean().mean()),
        chance=float(table["chance"].mean()),
        centre=float(table["centre"].mean()),
        pairs=len(table),
        by_concept=levels["hit"].to_numpy(),
        chance_by_concept=levels["chance"].to_numpy(),
        centre_by_concept=levels["centre"].to_numpy(),
        pairs_by_concept=own.size().reindex(range(peaks.shape[1]), fill_value=0).to_numpy(),
    )


def inside(point: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether a point (x, y) lies in one of n×4 boxes, edges included."""
    x, y = point
    return bool(((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])).any())


def _covered(boxes: np.ndarray, side: int) -> float:
    mask = np.zeros((side, side), bool)
    for x_min, y_min, x_max, y_max in np.clip(np.rint(boxes), 0, side).astype(int):
        mask[y_min:y_max, x_min:x_max] = True
    return float(mask.mean())


def mean_box_centres(
    boxes: dict[tuple[int, int], np.ndarray], rows: np.ndarray, concepts: int, side: int
) -> np.ndarray:
    """K×2 mean box centre (x, y) of each concept over given (training) rows; the image's middle where it has none."""
    wanted = set(rows.tolist())
    centres = np.full((concepts, 2), side / 2)
    for concept in range(concepts):
        own = [found for (row, k), found in boxes.items() if k == concept and row in wanted]
        if own:
            every = np.concatenate(own)
            centres[concept] = ((every[:, :2] + every[:, 2:]) / 2).mean(0)
    return centres
