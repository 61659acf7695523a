"""A model small enough to work out by hand: one prototype a concept, one class a concept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from csr.data.records import BOX_COLUMNS, Collection
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Reasoner
from csr.training.features import FeatureCache
from tests.csr.synthetic import make_csr, without_images

SIDE, CELLS = 32, 4
CONCEPTS, CLASSES = ("a", "b"), ("none", "has a", "has b")


@dataclass
class Study:
    """Present concepts, and per concept what the model sees where: similarity and cell (row, column)."""

    label: str
    present: dict[str, tuple[int, int]]
    seen: list[tuple[str, float, tuple[int, int]]]


TRUE_A = Study("has a", {"a": (0, 0)}, [("a", 0.8, (0, 0))])
HAS_B = Study("has b", {"b": (1, 1)}, [("b", 0.9, (1, 1))])


def make_run(studies: list[Study], split: str = "test", part: str | None = None, alpha: float = 0.2):
    """A collection, its features, and a model whose patches are unit vectors: a, b and 'nothing'."""
    rows = pd.DataFrame(
        {
            "study_id": [f"s{index}" for index in range(len(studies))],
            "split": split,
            "part": part or split,
            "label": [study.label for study in studies],
            **{f"concept:{name}": [float(name in study.present) for study in studies] for name in CONCEPTS},
        }
    )
    cell = SIDE // CELLS
    boxes = [
        (f"s{index}", name, column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        for index, study in enumerate(studies)
        for name, (row, column) in study.present.items()
    ]
    collection = Collection("toy", CONCEPTS, CLASSES, rows, pd.DataFrame(boxes, columns=list(BOX_COLUMNS)))
    patches = np.zeros((len(studies), 3, CELLS, CELLS), np.float16)
    patches[:, 2] = 1
    for index, study in enumerate(studies):
        for name, similarity, (row, column) in study.seen:
            patches[index, :, row, column] = 0
            patches[index, CONCEPTS.index(name), row, column] = similarity
            patches[index, 2, row, column] = (1 - similarity**2) ** 0.5
    cache = FeatureCache(patches, np.zeros((len(studies), 2, CELLS, CELLS), np.float32))
    model = PrototypeModel(features=3, concepts=2, per_concept=1, width=3, blocks=0)
    with torch.no_grad():
        model.projector.inlet.weight.copy_(torch.eye(3))
        model.projector.inlet.bias.zero_()
    reasoner = Reasoner(2, 1, 3, 3, clip=True, floor="absent")
    with torch.no_grad():
        reasoner.prototypes.copy_(torch.eye(3)[:2, None])
        reasoner.absent_scores.fill_(0.1)
        reasoner.concept_scale.fill_(20.0)
        reasoner.concept_shift.fill_(-10.0)  # asserted above 0.5
        reasoner.alpha.fill_(alpha)
        reasoner.head.weight.copy_(10 * torch.tensor([[0.0, 0], [1, 0], [0, 1]]))
        reasoner.head.bias.copy_(torch.tensor([4.0, 0, 0]))
    return without_images(collection, SIDE), cache, make_csr(model, reasoner, collection)
