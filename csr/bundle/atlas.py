"""The atlas: what each prototype looks like, how often it wins, and how much the head relies on it.

    I(p_km) = argmax over training images with label k = 1 of ⟨p_km, v'_k⟩      (CSR, section 3.2; printed as argmin)

The prototype is not replaced by that vector. Beside I(p) an entry names the next nearest studies. Usage (the share of
the concept's training vectors that a live prototype wins among the live ones, `csr.training.prototypes.usage`) and
reliance are shown side by side because they say different things: a prototype that seldom wins can decide much. Of a
pruned prototype both are 0, while its sources stay: they show what was pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from csr.bundle.format import AtlasEntry, AtlasSource
from csr.data.prepared import PreparedSet
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Reasoner
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache
from csr.training.head import all_scores
from csr.training.prototypes import all_positive_vectors, positive_vectors, usage
from csr.training.runtime import device

SOURCES = 3  # training studies that an entry names
CROP_CELLS = 3.0  # side of a crop in map cells: about what a patch sees, without the whole receptive field
_NOBODY = -1


@dataclass(frozen=True)
class Atlas:
    """Entries concept by concept, and the crops of their sources, S×C×c×c uint8 in the same order."""

    entries: list[AtlasEntry]
    crops: np.ndarray


@torch.no_grad()
def build_atlas(data: PreparedSet, cache: FeatureCache, csr: TrainedCSR) -> Atlas:
    """Finds each prototype's sources in split ``train`` and measures its usage and reliance."""
    csr = csr.to(device())
    reasoner = csr.reasoner
    rows = data.collection.rows("train")
    nearest, similarity = _nearest(data, cache, csr.prototype_model, rows)
    positive = all_positive_vectors(cache, torch.from_numpy(data.collection.concept_labels()), rows, csr.place)
    won = usage(csr.prototype_model, *positive, reasoner.alive)
    reliance = _reliance(reasoner, all_scores(reasoner, csr.prototype_model, cache, rows))
    concepts, per_concept = won.shape
    weights = reasoner.head.weight.reshape(-1, concepts, per_concept).cpu().numpy()
    crop_side = min(data.side, max(8, round(CROP_CELLS * data.side / cache.features.shape[-1])))

    entries: list[AtlasEntry] = []
    crops: list[np.ndarray] = []
    for k, concept in enumerate(data.collection.concepts):
        for m in range(per_concept):
            sources = []
            for row, value in zip(nearest[k, m].tolist(), similarity[k, m].tolist(), strict=True):
                if row == _NOBODY:
                    continue
                features, _ = cache.batch(np.array([row]), csr.place)
                similar = reasoner.maps(csr.project(features))[0, k, m].cpu().numpy()
                left, top = _crop_corner(similar, data.side, crop_side)
                right, bottom = left + crop_side, top + crop_side
                crops.append(np.array(data.images[row][:, top:bottom, left:right]))
                box = (float(left), float(top), float(right), float(bottom))
                sources.append(AtlasSource(data.collection.studies["study_id"].iat[row], box, value))
            entries.append(
                AtlasEntry(
                    concept=concept,
                    index=m,
                    sources=tuple(sources),
                    usage=float(won[k, m]),
                    reliance=float(reliance[k, m]),
                    weights={name: float(weights[t, k, m]) for t, name in enumerate(data.collection.classes)},
                    alive=bool(reasoner.alive[k, m] > 0),
                )
            )
    return Atlas(entries, np.stack(crops))


def _nearest(
    data: PreparedSet, cache: FeatureCache, model: PrototypeModel, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """K×M×`SOURCES` rows, the nearest first and `_NOBODY` where there are no more; and their similarities."""
    unit = model.prototypes.unit()
    concepts, per_concept, _ = unit.shape
    labels = torch.from_numpy(data.collection.concept_labels())
    best = np.full((concepts, per_concept, SOURCES), -np.inf)
    nearest = np.full((concepts, per_concept, SOURCES), _NOBODY)
    for start in range(0, len(rows), 256):
        chosen = rows[start : start + 256]
        features, cam = cache.batch(chosen, unit.device)
        present = labels[chosen].to(unit.device)
        vectors, concept = positive_vectors(features, cam, present)
        owner = chosen[(present == 1).nonzero()[:, 0].cpu().numpy()]
        inner = torch.einsum("nd,nmd->nm", model.projector(vectors), unit[concept]).cpu().numpy()
        for k in range(concepts):
            own = (concept == k).cpu().numpy()
            if not own.any():
                continue
            similar = np.concatenate([best[k], inner[own].T], 1)
            whose = np.concatenate([nearest[k], np.tile(owner[own], (per_concept, 1))], 1)
            order = np.argsort(-similar, axis=1, kind="stable")[:, :SOURCES]
            best[k], nearest[k] = np.take_along_axis(similar, order, 1), np.take_along_axis(whose, order, 1)
    return nearest, best


def _reliance(reasoner: Reasoner, scores: torch.Tensor) -> np.ndarray:
    """K×M share of the head's mean absolute contribution |W·standardised score|; 0 once pruned."""
    standard = reasoner.standardise(scores).abs().mean(0)
    strength = reasoner.alive * reasoner.head.weight.abs().sum(0).reshape(standard.shape) * standard
    return (strength / strength.sum().clamp_min(1e-12)).cpu().numpy()


def _crop_corner(similar: np.ndarray, side: int, crop: int) -> tuple[int, int]:
    """Left and top of a crop centred on the most similar cell, moved inside the image."""
    height, width = similar.shape
    row, column = np.unravel_index(similar.argmax(), similar.shape)
    left = round((column + 0.5) * side / width - crop / 2)
    top = round((row + 0.5) * side / height - crop / 2)
    return int(np.clip(left, 0, side - crop)), int(np.clip(top, 0, side - crop))
