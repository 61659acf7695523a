"""Small made-up data that needs no rendering: three concepts, three classes, features that carry the concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from csr.data.prepared import READER_BOX_COLUMNS, PreparedSet, PreparedWriter
from csr.data.records import BOX_COLUMNS, SAID_CLASS, SAID_PREFIX, Collection
from csr.network.guard import Descriptions, Distance, InputGuard
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Floor, Reasoner
from csr.network.trained import TrainedCSR
from csr.training.features import FeatureCache

CONCEPTS = ("round", "streak", "haze")
CLASSES = ("clear", "mild", "severe")
SIDE = 32


def make_collection(train: int = 40, val: int = 16, test: int = 12, seed: int = 0) -> Collection:
    """Labels cycle so that every split holds every class and every concept is both present and absent."""
    rng = np.random.default_rng(seed)
    split = np.repeat(["train", "val", "test"], [train, val, test])
    total = len(split)
    concepts = (rng.random((total, len(CONCEPTS))) < 0.5).astype(np.float32)
    label = np.arange(total) % len(CLASSES)
    concepts[:, 0] = label == 1
    concepts[:, 1] = label == 2
    studies = pd.DataFrame(
        {
            "study_id": [f"s{row:03d}" for row in range(total)],
            "image": [f"s{row:03d}.png" for row in range(total)],
            "split": split,
            "part": split,
            "label": np.array(CLASSES)[label],
            "patient_id": [f"p{row:03d}" for row in range(total)],
            "site": "A",
        }
    )
    for k, name in enumerate(CONCEPTS):
        studies[f"concept:{name}"] = concepts[:, k]
    boxes = [
        (f"s{row:03d}", name, 8.0 * k, 4.0, 8.0 * k + 8, 12.0)
        for row in range(total)
        for k, name in enumerate(CONCEPTS)
        if concepts[row, k] == 1
    ]
    return Collection("made-up", CONCEPTS, CLASSES, studies, pd.DataFrame(boxes, columns=list(BOX_COLUMNS)))


class Pixels(nn.Module):
    """A backbone whose features are the pixels' grey values, 0..255."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 1
        self.map_shift = (0, 0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


def with_labels(collection: Collection, labels: np.ndarray) -> Collection:
    """The same collection with other concept labels (N×K)."""
    studies = collection.studies.copy()
    for k, name in enumerate(collection.concepts):
        studies[f"concept:{name}"] = labels[:, k].astype(np.float32)
    return Collection(collection.name, collection.concepts, collection.classes, studies, collection.boxes)


def corrected(collection: Collection, studies: int = 12, wrong: int = 0) -> Collection:
    """The collection, of whose first training studies readers said the labels; the first ``wrong`` are the opposite."""
    rows, labels = collection.rows("train")[:studies], collection.concept_labels()
    labels[rows[:wrong]] = 1 - labels[rows[:wrong]]
    found = with_labels(collection, labels).studies.copy()
    for name in [SAID_PREFIX + each for each in CONCEPTS] + [SAID_CLASS]:
        found[name] = np.isin(np.arange(len(found)), rows)
    return replace(collection, studies=found)


def make_cache(collection: Collection, width: int = 6, cells: int = 4, seed: int = 1) -> FeatureCache:
    """Features with one loud channel where a concept is, and stage-1 maps that point there."""
    rng = np.random.default_rng(seed)
    labels = collection.concept_labels()
    features = 0.5 * rng.standard_normal((len(labels), width, cells, cells))
    features[:, -1] += 3  # what empty patches look like
    cam = rng.standard_normal((len(labels), labels.shape[1], cells, cells))
    for row, own in enumerate(labels):
        for k in np.flatnonzero(own == 1):
            at = rng.integers(0, cells, 2)
            features[row, k, at[0], at[1]] += 6
            cam[row, k, at[0], at[1]] += 5
    return FeatureCache(features.astype(np.float16), cam.astype(np.float32))


def make_prepared(
    path: Path, collection: Collection, side: int = SIDE, seed: int = 2, drawn: Sequence[tuple] = ()
) -> PreparedSet:
    """A prepared folder of noise images on which a present concept is a bright square in its box.

    Args:
        drawn: rows of `READER_BOX_COLUMNS`, what readers drew.
    """
    rng = np.random.default_rng(seed)
    images = rng.integers(40, 120, (len(collection.studies), 1, side, side), dtype=np.uint8)
    for (row, _), boxes in collection.boxes_by_pair().items():
        for left, top, right, bottom in boxes.astype(int):
            images[row, 0, top:bottom, left:right] += 100
    with PreparedWriter(path, len(images), 1, side) as writer:
        for row, image in enumerate(images):
            writer.write_image(row, image)
        writer.write_tables(collection)
        writer.write_reader_boxes(pd.DataFrame(list(drawn), columns=list(READER_BOX_COLUMNS)))
    return PreparedSet.open(path)


def without_images(collection: Collection, side: int = SIDE) -> PreparedSet:
    """A prepared set for what looks at features only."""
    return PreparedSet(collection, np.zeros((0, 1, side, side), np.uint8), Path("nowhere"))


def make_csr(model: PrototypeModel, reasoner: Reasoner, collection: Collection) -> TrainedCSR:
    """Stages 2 and 3 on features that no network made."""
    return TrainedCSR(nn.Identity(), model, reasoner, collection.concepts, collection.classes)  # type: ignore[arg-type]


def make_reasoner(
    seed: int,
    clip: bool,
    concepts: int = 3,
    per_concept: int = 4,
    width: int = 5,
    classes: int = 3,
    pruned: int = 0,
    floor: Floor = "zero",
) -> Reasoner:
    """A reasoner whose every buffer and weight is random; ``pruned`` prototypes, never a concept's last, are dead."""
    rng = np.random.default_rng(seed)
    reasoner = Reasoner(concepts, per_concept, width, classes, clip, floor).eval()
    prototypes = rng.standard_normal((concepts, per_concept, width))
    prototypes /= np.linalg.norm(prototypes, axis=-1, keepdims=True)
    alive = np.ones((concepts, per_concept))
    for index in rng.choice(concepts * (per_concept - 1), pruned, replace=False):
        alive[index // (per_concept - 1), index % (per_concept - 1)] = 0
    values = {
        "prototypes": prototypes,
        "alive": alive,
        "score_mean": rng.normal(0.3, 0.1, alive.shape),
        "score_std": rng.uniform(0.05, 0.4, alive.shape),
        "absent_scores": rng.uniform(-0.1, 0.3, alive.shape),
        "concept_scale": rng.uniform(2, 8, concepts),
        "concept_shift": rng.normal(0, 1, concepts),
        "alpha": np.linspace(0, 1, concepts),
        "head.weight": rng.standard_normal((classes, concepts * per_concept)),
        "head.bias": rng.standard_normal(classes),
        "temperature": rng.uniform(0.5, 3),
        "present_scores": rng.uniform(0.2, 0.9, alive.shape),  # about what `make_patches` score, so answers matter
        "present_evidence": rng.uniform(0.5, 1, concepts),
        "absent_evidence": rng.uniform(0.3, 0.9, concepts),
    }
    reasoner.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()})
    return reasoner


def make_guard(csr: TrainedCSR, images: torch.Tensor) -> InputGuard:
    """Distances from 0 in plain units, of a guard that fits nothing."""
    describe = Descriptions(images.shape[-1])
    with torch.no_grad():
        described = describe(images, *csr.encoder.depths(images))
    return InputGuard(describe, {part: Distance(each.shape[1], each.shape[1]) for part, each in described.items()})


def make_patches(seed: int, batch: int = 2, width: int = 5, cells: tuple[int, int] = (3, 4)) -> torch.Tensor:
    """Random unit vectors B×D'×h×w."""
    values = np.random.default_rng(seed).standard_normal((batch, width, *cells))
    return torch.tensor(values / np.linalg.norm(values, axis=1, keepdims=True), dtype=torch.float32)
