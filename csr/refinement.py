"""Atlas refinement: a reviewer looks at what each prototype resembles and prunes those that rest on something else.

The paper prunes prototypes that lean on shortcuts by hand (CSR, section 3.4; TBX11K: pointing game 60.9 → 79.5, macro
F1 94.4 → 94.0) and does not say by which rule. Here the rule is stated, and it uses only what a reviewer sees:

    Of each prototype, show the crops around the peak of its similarity map in the `CROPS` training images with its
    concept that it resembles most. Prune it if fewer than `SHOWN` of them show the concept.

A reviewer knows a finding on sight; a simulated one (`review`) takes the training boxes for that knowledge: a crop
shows the concept if its centre lies within half a cell of one of the image's boxes of that concept. Neither knows what
the shortcut is or that there is one. A concept is never left without a prototype: the one with the most crops that show
it stays. What an earlier review pruned stays pruned.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from csr.datasets.prepared import PreparedSet
from csr.metrics import inside, map_peaks
from csr.network.reasoner import Reasoner
from csr.training.calibration import calibrate
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeModel
from csr.training.reporter import Reporter
from csr.training.runtime import device

CROPS = 10
SHOWN = 0.5


@torch.no_grad()
def review(data: PreparedSet, cache: FeatureCache, model: PrototypeModel, reasoner: Reasoner) -> pd.DataFrame:
    """The simulated reviewer's verdict on every prototype.

    Returns:
        One row a prototype: ``concept, prototype, crops`` (how many were seen), ``shown`` (share that shows the
        concept, NaN if no training image has a box of it), ``usage`` (share of the training images with a box of the
        concept in which it is the most similar one) and ``prune``.
    """
    collection = data.collection
    boxes, cell = collection.boxes_by_pair(), data.side / cache.features.shape[-1]
    labels = collection.concept_labels()
    rows = np.array(
        [row for row in collection.rows("train") if any((int(row), k) in boxes for k in range(labels.shape[1]))]
    )
    verdicts = []
    scores, peaks = _scores_and_peaks(data, cache, model, reasoner, rows) if len(rows) else (None, None)
    for k, concept in enumerate(collection.concepts):
        own = np.array([i for i, row in enumerate(rows) if (int(row), k) in boxes], np.int64)
        for m in range(reasoner.prototypes.shape[1]):
            verdict = {"concept": concept, "prototype": m, "crops": 0, "shown": np.nan, "usage": np.nan}
            if len(own):
                assert scores is not None and peaks is not None
                nearest = own[np.argsort(-scores[own, k, m], kind="stable")[:CROPS]]
                seen = [inside(peaks[i, k, m], _grown(boxes[int(rows[i]), k], cell / 2)) for i in nearest]
                usage = float((scores[own, k].argmax(1) == m).mean())
                verdict |= {"crops": len(nearest), "shown": float(np.mean(seen)), "usage": usage}
            verdicts.append(verdict)
    table = pd.DataFrame(verdicts)
    alive = reasoner.alive.flatten().cpu().numpy() > 0
    table["prune"] = (table["shown"] < SHOWN) | ~alive
    for _, group in table[alive].groupby("concept", sort=False):
        if group["prune"].all():
            table.loc[group["shown"].idxmax(), "prune"] = False
    return table


def prune(reasoner: Reasoner, verdicts: pd.DataFrame) -> Reasoner:
    """A copy of the reasoner without the prototypes that `review` (or a person) marked ``prune``; the head stays."""
    refined = copy.deepcopy(reasoner)
    flagged = torch.tensor(verdicts["prune"].to_numpy(bool)).reshape(reasoner.alive.shape)
    refined.alive[flagged.to(refined.alive.device)] = 0
    return refined


def retrain_head(
    data: PreparedSet,
    cache: FeatureCache,
    model: PrototypeModel,
    refined: Reasoner,
    config: HeadConfig,
    reporter: Reporter,
) -> Reasoner:
    """Trains the head anew on the prototypes that are left. Pruned ones score as if absent, a constant, so the bias
    can say what they say and the new head gives them no weight. It is calibrated anew too."""
    retrained = train_head(data.collection, cache, model, config, reporter, alive=refined.alive)
    # a constant is standardised to 0 but for rounding, which Adam's steps, being of one size, do not take for nothing
    pruned = retrained.alive.flatten() == 0
    constant = retrained.standardise(retrained.absent_scores).flatten()[pruned]
    with torch.no_grad():
        retrained.head.bias.add_(retrained.head.weight[:, pruned] @ constant)
        retrained.head.weight[:, pruned] = 0
    calibrate(data.collection, cache, model, retrained, data.side)
    return retrained


def _scores_and_peaks(
    data: PreparedSet, cache: FeatureCache, model: PrototypeModel, reasoner: Reasoner, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """n×K×M scores and n×K×M×2 peaks of the similarity maps."""
    place = device()
    model, reasoner = model.to(place).eval(), reasoner.to(place).eval()
    scores, peaks = [], []
    for start in range(0, len(rows), 32):
        features, _ = cache.batch(rows[start : start + 32], place)
        maps: Tensor = reasoner.maps(model.projector.project_maps(features))
        scores.append(maps.flatten(3).amax(-1).cpu().numpy())
        peaks.append(map_peaks(maps.cpu().numpy(), data.side))
    return np.concatenate(scores), np.concatenate(peaks)


def _grown(boxes: np.ndarray, margin: float) -> np.ndarray:
    """n×4 boxes, larger by a margin on every side."""
    return boxes + np.array([-margin, -margin, margin, margin])
