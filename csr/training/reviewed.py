"""Prototypes that reviewers pruned, found again in a training that learned them anew.

A review names a prototype of an earlier bundle. Where nothing changed before stage 3 it is still there under its
number; else the prototypes are others, in another space. What a reviewer saw is the training studies that it resembles
most, I(p) of the paper (CSR, section 3.2; `csr.bundle.atlas`), so the prototype is found again by them. With v' their
projected local concept vectors of the review's concept k:

- it is still there under its number m if ⟨p_km, v'⟩ of each is what the atlas said;
- else what stands for them now is the prototype of k that is nearest to more than half of them, if there is one.

A prototype that stands for one that was pruned and for one that was kept stays. So do all of a concept that would be
left without any, as in `csr.training.head`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from csr.data.feedback import PrototypeReview
from csr.data.records import Collection
from csr.network.prototypes import PrototypeModel, local_concept_vectors
from csr.training.features import FeatureCache
from csr.training.runtime import device

SAME = 1e-3  # by which a similarity may differ from the atlas's, which another machine computed
GONE, UNLIKE, KEPT, LAST = (
    "its sources are not trained on",
    "nothing is like it",
    "another was kept",
    "none would be left",
)


@dataclass
class Reviewed:
    """What became of reviews.

    Args:
        alive: K×M, 0 where a prototype is pruned.
        not_pruned: of the reviews that say prune, how many prune nothing, by why.
    """

    alive: Tensor
    not_pruned: Counter[str] = field(default_factory=Counter)


@torch.no_grad()
def reviewed(
    collection: Collection, cache: FeatureCache, model: PrototypeModel, reviews: Sequence[PrototypeReview]
) -> Reviewed:
    """Which prototypes are left of those that stage 2 has learned, by what reviewers said of earlier ones."""
    model = model.to(device())
    found = Reviewed(torch.ones(model.prototypes.raw.shape[:2], device=device()))
    said: dict[tuple[int, int], list[str]] = {}
    for review in reviews:
        k, rows, similar = _sources(collection, review)
        place = _found_again(cache, model, review, k, rows, similar) if len(rows) else GONE
        if isinstance(place, int):
            said.setdefault((k, place), []).append(review.verdict)
        elif review.verdict == "prune":
            found.not_pruned[place] += 1
    for (k, m), verdicts in said.items():
        if "keep" not in verdicts:
            found.alive[k, m] = 0
        else:
            found.not_pruned[KEPT] += verdicts.count("prune")
    for k in torch.nonzero(~found.alive.any(1))[:, 0].tolist():
        found.not_pruned[LAST] += sum(verdicts.count("prune") for (own, _), verdicts in said.items() if own == k)
        found.alive[k] = 1
    found.not_pruned = +found.not_pruned  # without zeros
    return found


def _sources(collection: Collection, review: PrototypeReview) -> tuple[int, np.ndarray, np.ndarray]:
    """The concept's index, the rows of the review's sources that are trained on and show the concept, and what the
    atlas says of their similarity."""
    if review.concept not in collection.concepts:
        return -1, np.zeros(0, np.int64), np.zeros(0)
    k = collection.concepts.index(review.concept)
    present = collection.concept_labels()[:, k] == 1
    row_of = {collection.studies["study_id"].iat[row]: row for row in collection.rows("train") if present[row]}
    there = [(row_of[each.study_id], each.similarity) for each in review.sources if each.study_id in row_of]
    return k, np.array([row for row, _ in there], np.int64), np.array([value for _, value in there])


def _found_again(
    cache: FeatureCache, model: PrototypeModel, review: PrototypeReview, k: int, rows: np.ndarray, similar: np.ndarray
) -> int | str:
    """The index of the prototype that the review is about, or why there is none."""
    unit = model.prototypes.unit()[k]
    vectors = model.projector(local_concept_vectors(*cache.batch(rows, unit.device))[:, k])
    inner = (vectors @ unit.T).cpu().numpy()
    all_there = review.index < len(unit) and len(rows) == len(review.sources)
    if all_there and np.abs(inner[:, review.index] - similar).max() <= SAME:
        return review.index
    winner, wins = Counter(inner.argmax(1).tolist()).most_common(1)[0]
    return winner if 2 * wins > len(rows) else UNLIKE
