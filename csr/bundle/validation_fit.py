"""Collects what `csr.bundle.validation` holds from split ``val``, and the maps over the atlas' crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from csr.bundle.format import AtlasEntry
from csr.bundle.validation import SIMILAR, ValidationSet
from csr.data.prepared import PreparedSet
from csr.evaluation.upsampling import Upsampler
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache

STUDIES = 400  # validation studies at most
MAP_BYTES = 64 << 20  # of their maps at most; beyond it, fewer studies
_AT_ONCE = 4  # studies: all of their similarity maps are in memory


@torch.no_grad()
def fit_validation(
    data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, studies: int = STUDIES, map_bytes: int = MAP_BYTES
) -> ValidationSet:
    """What the model says of validation studies, from the cached features that the pipeline judges it with.

    Args:
        csr: on the CPU, for evaluation.
        studies: at most; of more in the split, evenly spread ones.
        map_bytes: of the maps of concepts with boxes, at most; where they take more, fewer studies are taken.
    """
    collection, boxes = data.collection, data.collection.boxes_by_pair()
    concepts, per_concept = csr.reasoner.alive.shape
    each = per_concept * int(np.prod(cache.features.shape[-2:])) * 4
    rows = _spread(collection.rows("val"), studies)
    while len(rows) > 1 and each * sum((int(row), k) in boxes for row in rows for k in range(concepts)) > map_bytes:
        rows = _spread(rows, len(rows) * 9 // 10)
    live = csr.reasoner.alive.numpy() > 0
    scores, peaks, pairs, maps = [], [], [], []
    for start in range(0, len(rows), _AT_ONCE):
        features, _ = cache.batch(rows[start : start + _AT_ONCE], torch.device("cpu"))
        said = csr.reasoner(csr.project(features))
        similarity = np.where(live[:, :, None, None], said.similarity_maps.numpy(), np.float32(0))
        scores.append(said.scores.numpy())
        peaks.append(similarity.reshape(*similarity.shape[:3], -1).argmax(-1))
        for i, row in enumerate(rows[start : start + _AT_ONCE].tolist()):
            own = [k for k in range(concepts) if (row, k) in boxes]
            pairs += [(start + i, k) for k in own]
            maps.append(similarity[i, own])
    counts = [len(boxes[int(rows[study]), k]) for study, k in pairs]
    similar, cosines = similar_prototypes(csr.reasoner.prototypes.reshape(concepts * per_concept, -1).numpy())
    return ValidationSet(
        study_ids=collection.studies["study_id"].to_numpy(str)[rows],
        truth=collection.truth()[rows],
        labels=collection.concept_labels()[rows],
        scores=np.concatenate(scores),
        peaks=np.concatenate(peaks).astype(np.int32),
        pairs=np.array(pairs, np.int32).reshape(-1, 2),
        maps=np.concatenate(maps),
        boxes=np.concatenate([np.zeros((0, 4)), *(boxes[int(rows[study]), k] for study, k in pairs)]),
        box_pairs=np.repeat(np.arange(len(pairs)), counts).astype(np.int32),
        similar=similar,
        cosines=cosines,
    )


def similar_prototypes(prototypes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n×D' prototypes → n×`SIMILAR` indices of the most similar others, −1 where there are no more, and cosines."""
    unit = prototypes / np.maximum(np.linalg.norm(prototypes, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    count = min(SIMILAR, len(unit) - 1)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    missing = ((0, 0), (0, SIMILAR - count))
    similar = np.pad(nearest, missing, constant_values=-1).astype(np.int32)
    return similar, np.pad(np.take_along_axis(cosines, nearest, 1), missing).astype(np.float32)


@torch.no_grad()
def crop_maps(
    data: PreparedSet, cache: FeatureCache, csr: TrainedCSR, entries: Sequence[AtlasEntry], crop_side: int
) -> np.ndarray:
    """S×c×c uint8: over each source's crop the prototype's similarity map, see `csr.bundle.format`.

    Args:
        csr: on the CPU, for evaluation.
        entries: of the atlas, in the order of the prototypes.
        crop_side: c, the side of a crop in pixels.
    """
    row_of = {study: row for row, study in enumerate(data.collection.studies["study_id"])}
    per_concept = csr.reasoner.alive.shape[1]
    height, width = cache.features.shape[-2:]
    upsampler = Upsampler(height, width, data.side)
    shown = [(place, source) for place, entry in enumerate(entries) for source in entry.sources]
    crops = np.zeros((len(shown), crop_side, crop_side), np.uint8)
    for number, (place, source) in enumerate(shown):
        features, _ = cache.batch(np.array([row_of[source.study_id]]), torch.device("cpu"))
        similar = csr.reasoner.maps(csr.project(features))[0, place // per_concept, place % per_concept].numpy()
        left, top = round(source.box[0]), round(source.box[1])
        enlarged = upsampler.enlarge(similar)[top : top + crop_side, left : left + crop_side]
        crops[number] = np.rint(255 * np.clip(enlarged, 0, 1))
    return crops


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
