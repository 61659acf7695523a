"""Atlas refinement: a reviewer looks at what each prototype resembles and prunes those that rest on something else.

The paper prunes prototypes that lean on shortcuts by hand (CSR, section 3.4; TBX11K: pointing game 60.9 → 79.5, macro
F1 94.4 → 94.0) and does not say by which rule. Here the rule is stated, and it uses only what a reviewer sees:

    Of each prototype, show the crops around the peak of its similarity map in the `CROPS` training images with its
    concept that it resembles most. Prune it if fewer than `SHOWN` of them show the concept.

A reviewer knows a finding on sight; a simulated one (`review`) takes the training boxes for that knowledge: a crop
shows the concept if its centre lies within half a cell of one of the image's boxes of that concept. Neither knows what
the shortcut is or that there is one. A concept is never left without a prototype: the one with the most crops that show
it stays. What an earlier review pruned stays pruned.

Pruning can only choose among what was learned. Where all that a concept has rests on something else, a reviewer can say
where the finding is: she draws it in the images of the crops that she was shown, and stage 2 learns the concept's
prototypes anew from what lies inside (`relearn`). The paper has no such step.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.data.records import CONCEPT_PREFIX, Collection
from csr.evaluation.peaks import map_peaks
from csr.evaluation.pointing import inside
from csr.network.trained import TrainedCSR
from csr.training.callbacks import Callbacks
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.located import confined
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.runtime import device
from csr.training.temperature import calibrate_temperature

CROPS = 10
SHOWN = 0.5


@torch.no_grad()
def review(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR) -> pd.DataFrame:
    """The simulated reviewer's verdict on every prototype.

    Returns:
        One row a prototype: ``concept, prototype, crops`` (how many were seen), ``shown`` (share that shows the
        concept, NaN if no training image has a box of it), ``wins`` (share of the training images with a box of the
        concept in which it is the most similar live one; 0 once pruned), ``rows`` (of the images that the crops are
        from) and ``prune``.
    """
    collection = data.collection
    boxes, cell = collection.boxes_by_pair(), data.side / cache.features.shape[-1]
    labels = collection.concept_labels()
    rows = np.array(
        [row for row in collection.rows("train") if any((int(row), k) in boxes for k in range(labels.shape[1]))]
    )
    csr = csr.to(device()).eval()
    scores, alive = _scores(cache, csr, rows), csr.reasoner.alive.cpu().numpy() > 0
    # of each prototype, the images with its concept that it resembles most: K×M lists of positions in rows
    nearest = []
    for k in range(len(collection.concepts)):
        own = np.array([i for i, row in enumerate(rows) if (int(row), k) in boxes], np.int64)
        live = np.where(alive[k], scores[own, k], -np.inf)
        wins = alive[k] * np.bincount(live.argmax(1), minlength=scores.shape[2]) / max(1, len(own))
        ranks = np.argsort(-scores[own, k], axis=0, kind="stable")[:CROPS]
        nearest += [(k, m, own[ranks[:, m]], wins[m]) for m in range(scores.shape[2])]
    wanted = {(i, k, m) for k, m, positions, _ in nearest for i in positions.tolist()}
    peaks = _peaks(data, cache, csr, rows, wanted)
    verdicts = []
    for k, m, positions, won in nearest:
        verdict = {"concept": collection.concepts[k], "prototype": m, "crops": 0, "shown": np.nan, "wins": np.nan}
        verdict["rows"] = tuple(rows[positions].tolist())
        if len(positions):
            seen = [inside(peaks[i, k, m], _grown(boxes[int(rows[i]), k], cell / 2)) for i in positions.tolist()]
            verdict |= {"crops": len(positions), "shown": float(np.mean(seen)), "wins": float(won)}
        verdicts.append(verdict)
    table = pd.DataFrame(verdicts)
    table["prune"] = (table["shown"] < SHOWN) | ~alive.ravel()
    for _, group in table[alive.ravel()].groupby("concept", sort=False):
        if group["prune"].all():
            table.loc[group["shown"].idxmax(), "prune"] = False
    return table


def prune(csr: TrainedCSR, verdicts: pd.DataFrame) -> TrainedCSR:
    """The same without the prototypes that `review` (or a person) marked ``prune``; the head stays as it is. Stages 1
    and 2 are shared with the original."""
    refined = copy.deepcopy(csr.reasoner)
    flagged = torch.tensor(verdicts["prune"].to_numpy(bool)).reshape(refined.alive.shape)
    refined.alive[flagged.to(refined.alive.device)] = 0
    return csr.with_reasoner(refined)


def retrain_head(
    data: PreparedSet, cache: FeatureCache, refined: TrainedCSR, config: HeadConfig, callbacks: Callbacks
) -> TrainedCSR:
    """Trains the head anew on the prototypes that are left. Pruned ones score as if absent, a constant, so the bias
    can say what they say and the new head gives them no weight. It is calibrated anew too."""
    alive = refined.reasoner.alive
    model = refined.prototype_model
    reasoner = train_head(data.collection, cache, model, config, callbacks, alive=alive, side=data.side)
    retrained = refined.with_reasoner(reasoner)
    calibrate_temperature(data, cache, retrained)
    return retrained


def relearn(
    data: PreparedSet,
    cache: FeatureCache,
    csr: TrainedCSR,
    verdicts: pd.DataFrame,
    prototypes: PrototypeConfig,
    head: HeadConfig,
    callbacks: Callbacks,
) -> TrainedCSR:
    """Trains stages 2 and 3 anew, with the findings drawn in of concepts that rest on something else.

    Such a concept (`misled`) is learned from the images whose crops the reviewer saw, inside her boxes, for which the
    data set's stand; what the other training images with it show is not known any more, those without it stay. All
    other concepts are learned as before. Stage 1 is shared with the original.

    Args:
        verdicts: of `review`, on ``csr``.

    Raises:
        DataError: a concept whose reviewed images are none.
    """
    collection, drawn = _drawn(data, cache, verdicts)
    model = train_prototypes(collection, drawn, prototypes, callbacks)
    reasoner = train_head(data.collection, drawn, model, head, callbacks, side=data.side)
    relearned = TrainedCSR(csr.concept_model, model, reasoner, csr.concepts, csr.classes)
    calibrate_temperature(data, cache, relearned)
    return relearned


def misled(verdicts: pd.DataFrame) -> dict[str, list[int]]:
    """Concepts of which a prototype that wins training images was not shown by its crops → rows of all their crops."""
    seen = verdicts[verdicts["crops"] > 0]
    bad = seen[(seen["shown"] < SHOWN) & (seen["wins"] > 0)]["concept"].unique()
    rows = seen.groupby("concept", sort=False)["rows"].agg(lambda own: sorted(set().union(*own)))
    return {name: rows[name] for name in bad}


def _drawn(data: PreparedSet, cache: FeatureCache, verdicts: pd.DataFrame) -> tuple[Collection, FeatureCache]:
    """The collection with what is not known any more, and the features with attention inside the reviewer's boxes."""
    collection, boxes = data.collection, data.collection.boxes_by_pair()
    drawn: dict[tuple[int, int], np.ndarray] = {}
    studies = collection.studies.copy()
    train = np.isin(np.arange(len(studies)), collection.rows("train"))
    for name, rows in misled(verdicts).items():
        k = collection.concepts.index(name)
        drawn |= {(row, k): boxes[row, k] for row in rows}
        column = f"{CONCEPT_PREFIX}{name}"
        unseen = train & (studies[column] == 1) & ~np.isin(np.arange(len(studies)), rows)
        studies.loc[unseen.to_numpy(), column] = np.nan
    return replace(collection, studies=studies), confined(cache, drawn, data.side)


def _scores(cache: FeatureCache, csr: TrainedCSR, rows: np.ndarray) -> np.ndarray:
    """n×K×M, the largest value of each similarity map."""
    scores = [np.zeros((0, *csr.reasoner.alive.shape), np.float32)]
    for start in range(0, len(rows), 32):
        scores.append(_maps(cache, csr, rows[start : start + 32]).flatten(3).amax(-1).cpu().numpy())
    return np.concatenate(scores)


def _peaks(
    data: PreparedSet,
    cache: FeatureCache,
    csr: TrainedCSR,
    rows: np.ndarray,
    wanted: set[tuple[int, int, int]],
) -> dict[tuple[int, int, int], np.ndarray]:
    """Where the similarity maps (x, y) of the wanted (position in rows, concept, prototype) peak."""
    found = {}
    by_image: dict[int, list[tuple[int, int]]] = {}
    for i, k, m in sorted(wanted):
        by_image.setdefault(i, []).append((k, m))
    for i, own in by_image.items():
        concepts, prototypes = np.array(own).T
        maps = _maps(cache, csr, rows[i : i + 1])[0, concepts, prototypes]
        for (k, m), peak in zip(own, map_peaks(maps, data.side), strict=True):
            found[i, k, m] = peak
    return found


def _maps(cache: FeatureCache, csr: TrainedCSR, rows: np.ndarray) -> Tensor:
    """Similarity maps n×K×M×h×w."""
    features, _ = cache.batch(rows, csr.place)
    return csr.reasoner.maps(csr.project(features))


def _grown(boxes: np.ndarray, margin: float) -> np.ndarray:
    """n×4 boxes, larger by a margin on every side."""
    return boxes + np.array([-margin, -margin, margin, margin])
