"""α, the weight of what lies outside positive boxes, for each concept: chosen on validation boxes after stage 3.

The paper has one α for all concepts and no word on how it was found. A box weighs every concept: it helps where it
takes false evidence away and harms where it takes away another finding, and how much of each depends on how well a
concept's maps point. So a perfect clinician draws boxes on the validation studies, on each finding alone and on all
together, and each concept gets, of a small grid, the α with the least cross-entropy of the classes, by coordinate
descent from 1, no weighting. A step is taken only if its gain exceeds one standard error over the studies (the
one-standard-error rule of Breiman et al. 1984): what cannot be told from no weighting stays no weighting.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.interaction.corrections import Interaction, RegionBox, importance_map
from csr.network.reasoner import DEFAULT_ALPHA
from csr.network.trained import TrainedCSR
from csr.training.class_losses import class_loss
from csr.training.features import FeatureCache
from csr.training.runtime import device
from csr.training.temperature import calibrate_temperature

GRID = (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0)
_LOWEST = -1.0  # of all cosines: what a map with no cell outside the boxes holds there
_ROUNDING = 1e-6


def calibrate(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR) -> None:
    """Sets what depends on a trained head: ``csr.reasoner.alpha`` and ``csr.reasoner.temperature``."""
    calibrate_alpha(data, cache, csr)
    calibrate_temperature(data, cache, csr)


@torch.no_grad()
def calibrate_alpha(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR) -> None:
    """Sets ``csr.reasoner.alpha`` from split ``val``; a concept without a box there keeps `DEFAULT_ALPHA`.

    Args:
        csr: with its head trained.
    """
    place = device()
    csr = csr.to(place).eval()
    collection, reasoner = data.collection, csr.reasoner
    boxes = collection.boxes_by_pair()
    outlines = list(_outlines(collection, boxes))
    reasoner.alpha.fill_(DEFAULT_ALPHA)
    if not outlines or not collection.classes:
        return
    extremes = torch.cat([_extremes(cache, csr, data.side, boxes, *each) for each in outlines])
    study = torch.tensor([index for index, (_, sets) in enumerate(outlines) for _ in sets], device=place)
    truth = torch.from_numpy(collection.truth()[[row for row, _ in outlines]]).to(place)
    share = 1 / torch.bincount(study)[study]  # a study counts once, however many ways to draw on it

    def losses(alpha: Tensor) -> Tensor:
        """What the classes cost each study, mean over its outlines."""
        weights = torch.stack([torch.ones_like(alpha), alpha], -1)[None, :, None, None]  # inside, outside
        scores = reasoner.scores(reasoner.weigh(extremes, weights))
        logits = reasoner.head(reasoner.standardise(scores).flatten(1))
        each = class_loss(logits, truth[study], "none") * share
        return torch.zeros(len(outlines), device=place).index_add(0, study, each)

    boxed = sorted({k for _, sets in outlines for k in sets[-1]})
    alpha = reasoner.alpha.clone()
    alpha[boxed] = 1.0
    present, moved = losses(alpha), True
    while moved:  # ends: each step lowers the mean loss, and the grid is finite
        moved = False
        for k in boxed:
            trials = [torch.where(torch.arange(len(alpha), device=place) == k, value, alpha) for value in GRID]
            after = [losses(trial) for trial in trials]
            best = min(range(len(GRID)), key=lambda index: float(after[index].mean()))
            gain = present - after[best]
            if gain.mean() > max(float(gain.std(correction=0)) / len(gain) ** 0.5, _ROUNDING):
                alpha, present, moved = trials[best], after[best], True
    reasoner.alpha.copy_(alpha)


def _outlines(
    collection: Collection, boxes: dict[tuple[int, int], np.ndarray]
) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """Validation rows with boxes, and the sets of present concepts that are drawn on: each alone, all together last."""
    labels = collection.concept_labels()
    for row in collection.rows("val").tolist():
        own = tuple(k for k in range(labels.shape[1]) if labels[row, k] == 1 and (row, k) in boxes)
        if own:
            yield row, [(k,) for k in own] + ([own] if len(own) > 1 else [])


def _extremes(
    cache: FeatureCache,
    csr: TrainedCSR,
    side: int,
    boxes: dict[tuple[int, int], np.ndarray],
    row: int,
    sets: list[tuple[int, ...]],
) -> Tensor:
    """The largest similarity inside and outside each outline, as maps of two cells: n×K×M×1×2.

    Weighting is monotone and weighs all cells inside alike and all outside alike, so these two say all that the scores
    depend on, whatever α.
    """
    features, _ = cache.batch(np.array([row]), csr.place)
    maps = csr.reasoner.maps(csr.project(features))
    height, width = maps.shape[-2:]
    pieces = []
    for concepts in sets:
        drawn = tuple(RegionBox(*corners) for k in concepts for corners in boxes[row, k].tolist())
        importance = torch.from_numpy(importance_map(Interaction(drawn), side, height, width)).to(maps.device)
        halves = [torch.where(where, maps, _LOWEST).amax((-2, -1)) for where in (importance > 0, importance < 0)]
        pieces.append(torch.stack(halves, -1)[..., None, :])
    return torch.cat(pieces)
