"""The report's pointing game concept by concept, every system that has maps beside chance and the mean position.

Findings differ in size and place: a microaneurysm of three pixels and an exudate of thirty have levels of their own,
and a mean over concepts can hide that one of them is never found.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from csr.comparison.report import spread
from csr.comparison.runs import Runs
from csr.data.html_report import Section, Table
from csr.data.records import Collection
from csr.evaluation.pointing import Pointing, mean_box_centres, pointing_game


def concept_pointing_section(collection: Collection, runs: Mapping[str, Runs], side: int) -> list[Section]:
    """A table a test part, a row a concept; nothing where no box is judged or no system has maps.

    Args:
        side: of the prepared images, in pixels.
    """
    with_maps = [each for each in runs.values() if all(test.peaks is not None for test in each.test)]
    if not with_maps:
        return []
    boxes = collection.boxes_by_pair()
    centres = mean_box_centres(boxes, collection.rows("train"), len(collection.concepts), side)
    tables = []
    for part in collection.test_parts():
        played = [_play(collection, each, part, boxes, centres, side) for each in with_maps]
        levels, rows = played[0][0], []
        for k in np.flatnonzero(levels.pairs_by_concept):
            hits = [spread([float(one.by_concept[k]) for one in seeds]) for seeds in played]
            level = (f"{levels.chance_by_concept[k]:.3f}", f"{levels.centre_by_concept[k]:.3f}")
            rows.append((collection.concepts[k], str(levels.pairs_by_concept[k]), *level, *hits))
        if rows:
            tables.append(
                Table(part, ("concept", "pairs", "chance", "centre", *(each.title for each in with_maps)), rows)
            )
    if not tables:
        return []
    note = (
        "Share of hits in the studies in which the concept has boxes, mean ± standard deviation over the seeds. Chance "
        "is the share of the image that the boxes cover, centre what always pointing at the concept's mean position in "
        "training hits."
    )
    return [Section("Pointing by concept", (note,), tuple(tables))]


def _play(
    collection: Collection,
    runs: Runs,
    part: str,
    boxes: dict[tuple[int, int], np.ndarray],
    centres: np.ndarray,
    side: int,
) -> list[Pointing]:
    """The game of every seed on one test part."""
    chosen = np.isin(runs.test[0].rows, collection.rows("test", part))
    rows = runs.test[0].rows[chosen]
    return [
        pointing_game(test.peaks[chosen], boxes, rows, centres, side) for test in runs.test if test.peaks is not None
    ]
