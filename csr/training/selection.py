"""How many prototypes a concept needs: M from stage-2 diagnostics, with the curve that justifies it.

A pilot is trained with `PILOT` prototypes a concept. Each concept's prototypes are ranked by greedy facility location
on *training* vectors (Cornuéjols, Fisher & Nemhauser 1977): the next one is that which raises

    Σ_i max over chosen m of ⟨p_km, v'_i⟩

the most. The curve says what the first M of them explain of *validation* vectors, concept by concept:

    E_k(M) = mean_i max_{m ≤ M} ⟨p_km, v'_i⟩,   shortfall_k(M) = (E_k(M_max) − E_k(M)) / SE_k

with SE_k the standard error of E_k(M_max). M is the smallest number at which no concept falls short by more than one
standard error: the one-standard-error rule (Breiman et al. 1984; Hastie et al., Elements of Statistical Learning,
7.10). It is asked of every concept because M is shared: in a mean over all vectors, frequent concepts of one look
outvote a rare one of many. An image gives at most one vector a concept, so a concept's vectors are as independent as
the images are. A concept with fewer than two validation vectors has no standard error and no say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from csr.data.records import Collection
from csr.errors import DataError
from csr.network.prototypes import PrototypeModel
from csr.training.features import FeatureCache
from csr.training.prototypes import PrototypeConfig, all_positive_vectors
from csr.training.runtime import device

PILOT = 16  # the most prototypes a concept that can be chosen; the pilot costs about one more stage 2


@dataclass(frozen=True)
class CountCurve:
    """What the best 1, 2, … M_max prototypes of each of K concepts explain of validation vectors.

    Args:
        order: K×M_max, the prototypes of each concept, best first.
        within: M_max mean similarities of a vector to the nearest of its own concept's prototypes.
        accuracy: M_max shares of vectors whose nearest prototype is of their own concept.
        shortfall: M_max×K in standard errors, NaN for a concept without a say; see the module's docstring.
    """

    order: np.ndarray
    within: np.ndarray
    accuracy: np.ndarray
    shortfall: np.ndarray

    @property
    def enough(self) -> int:
        """The smallest M that falls short by at most one standard error.

        Raises:
            DataError: no concept has a say.
        """
        if np.isnan(self.shortfall).all():
            raise DataError(
                "prototypes.per_concept: 'auto' needs a concept that is present in two studies of split 'val' or more; "
                "move some there, or give a number"
            )
        return int((np.nanmax(self.shortfall, 1) <= 1).argmax()) + 1


def pilot(config: PrototypeConfig) -> PrototypeConfig:
    """The configuration of the pilot that settles ``auto``."""
    return replace(config, per_concept=PILOT)


@torch.no_grad()
def count_curve(model: PrototypeModel, collection: Collection, cache: FeatureCache) -> CountCurve:
    """The curve of a trained stage 2: vectors of split ``train`` rank its prototypes, those of ``val`` judge them."""
    place = device()
    model, labels = model.to(place), torch.from_numpy(collection.concept_labels())
    vectors = []
    for split in ("train", "val"):
        own, concept = all_positive_vectors(cache, labels, collection.rows(split), place)
        vectors += [model.projector(own).cpu().numpy(), concept.cpu().numpy()]
    return explained(model.prototypes.unit().cpu().numpy(), *vectors)


def explained(
    prototypes: np.ndarray, train: np.ndarray, train_concept: np.ndarray, val: np.ndarray, val_concept: np.ndarray
) -> CountCurve:
    """The curve of unit prototypes K×M×D' on unit vectors n×D' and the n indices of their concepts."""
    concepts = len(prototypes)
    order = np.stack([rank(train[train_concept == k] @ prototypes[k].T) for k in range(concepts)])
    ranked = np.take_along_axis(prototypes, order[..., None], 1)
    nearest = np.maximum.accumulate(np.einsum("nd,kmd->nkm", val, ranked).astype(np.float64), 2)
    every = np.arange(len(val))
    own = nearest[every, val_concept]
    nearest[every, val_concept] = -np.inf
    others = nearest.max(1)
    shortfall = np.stack([_shortfall(own[val_concept == k]) for k in range(concepts)], 1)
    if not len(val):
        unknown = np.full(own.shape[1], np.nan)
        return CountCurve(order, unknown, unknown, shortfall)
    return CountCurve(order, own.mean(0), (own > others).mean(0), shortfall)


def rank(similarity: np.ndarray) -> np.ndarray:
    """Greedy facility location: the M columns of n×M similarities, the one that adds the most first."""
    reached = np.full(len(similarity), -1.0)
    order: list[int] = []
    for _ in range(similarity.shape[1]):
        total = np.maximum(reached[:, None], similarity).sum(0)
        total[order] = -np.inf
        order.append(int(total.argmax()))
        reached = np.maximum(reached, similarity[:, order[-1]])
    return np.array(order)


def _shortfall(own: np.ndarray) -> np.ndarray:
    """M shortfalls of one concept, in standard errors, from its n×M similarities to the nearest of the first 1…M."""
    if len(own) < 2:
        return np.full(own.shape[1], np.nan)
    missing = (own[:, -1:] - own).mean(0)
    error = own[:, -1].std(ddof=1) / np.sqrt(len(own))
    return np.divide(missing, error, out=np.where(missing > 0, np.inf, 0.0), where=error > 0)
