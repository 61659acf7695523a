"""The data-quality suite: each blemish, planted in a sound set, is warned of, and a sound set is not.

``python -m csr data check PATH`` runs the same checks on a folder of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from csr.data.prepared import PreparedSet
from csr.data.quality import quality_warnings
from csr.data.records import BOX_COLUMNS, Collection

SIDE = 32
COUNTS = {"train": 300, "val": 100, "test": 150}


def sound(tmp_path: object) -> PreparedSet:
    """Two classes, two concepts that go with them but not wholly, a box a finding, two sites, pictures of noise."""
    rng = np.random.default_rng(0)
    split = np.repeat(list(COUNTS), list(COUNTS.values()))
    total = len(split)
    ill = np.arange(total) % 2 == 0
    concepts = np.stack([np.where(ill, rng.random(total) < 0.8, rng.random(total) < 0.2), rng.random(total) < 0.4], 1)
    studies = pd.DataFrame(
        {
            "study_id": [f"s{row}" for row in range(total)],
            "split": split,
            "part": split,
            "label": np.where(ill, "ill", "well"),
            "patient_id": [f"p{row}" for row in range(total)],
            "site": np.where(rng.random(total) < 0.5, "A", "B"),
            "concept:spot": concepts[:, 0].astype(np.float32),
            "concept:haze": concepts[:, 1].astype(np.float32),
        }
    )
    corners = rng.uniform(1, 20, (total, 2))
    boxes = [
        (f"s{row}", name, *corners[row], *(corners[row] + 8))
        for row in range(total)
        for k, name in enumerate(("spot", "haze"))
        if concepts[row, k]
    ]
    table = pd.DataFrame(boxes, columns=list(BOX_COLUMNS))
    collection = Collection("sound", ("spot", "haze"), ("ill", "well"), studies, table)
    images = rng.integers(0, 256, (total, 1, SIDE, SIDE), dtype=np.uint8)
    return PreparedSet(collection, images, tmp_path)


@pytest.fixture
def data(tmp_path):
    return sound(tmp_path)


def changed(data: PreparedSet, **columns: object) -> PreparedSet:
    collection = data.collection
    names = {name.replace("concept_", "concept:"): value for name, value in columns.items()}
    return replace(data, collection=replace(collection, studies=collection.studies.assign(**names)))


def with_boxes(data: PreparedSet, change: Callable[[pd.DataFrame], pd.DataFrame]) -> PreparedSet:
    return replace(data, collection=replace(data.collection, boxes=change(data.collection.boxes.copy())))


def test_a_sound_set_has_no_warning(data):
    assert quality_warnings(data) == []


def rare(data):
    few = np.zeros(len(data.collection.studies), np.float32)
    few[:7] = 1
    few[-20:] = 1
    return changed(data, concept_haze=few)


def shifted(data):
    haze = data.collection.studies["concept:haze"].to_numpy(copy=True)
    test = data.collection.rows("test")
    haze[test] = np.arange(len(test)) % 10 != 0
    return changed(data, concept_haze=haze)


def telling(data):
    return changed(data, concept_haze=(data.collection.studies["label"] == "well").astype(np.float32))


def unboxed(data):
    test = set(data.collection.studies["study_id"][data.collection.rows("test")])
    return with_boxes(data, lambda boxes: boxes[(boxes["concept"] == "spot") | ~boxes["study_id"].isin(test)])


def whole(data):
    def widen(boxes):
        own = boxes["concept"] == "haze"
        boxes.loc[own, ["x_min", "y_min"]], boxes.loc[own, ["x_max", "y_max"]] = 0.0, 31.5
        return boxes

    return with_boxes(data, widen)


def repeated(data):
    def move(boxes):
        boxes.loc[boxes["concept"] == "haze", ["x_min", "y_min", "x_max", "y_max"]] = [4.0, 4.0, 9.0, 9.0]
        return boxes

    return with_boxes(data, move)


def flat(data):
    images = data.images.copy()
    images[3], images[8] = 0, 7
    return replace(data, images=images)


def doubled(data):
    images = data.images.copy()
    images[5] = images[9]
    return replace(data, images=images)


BLEMISHES = [
    (rare, "split 'train' has fewer than 20 studies with haze (7)"),
    (shifted, "differ between 'train' and 'test': haze ("),
    (telling, "concept 'haze' says the same as class 'ill'"),
    (unboxed, "split 'test' has no box of haze: for these pointing is not judged"),
    (whole, "boxes of 'haze' cover 97% of the picture"),
    (repeated, "boxes of 'haze' are the same"),
    (flat, "2 pictures show nothing but one grey: s3, s8"),
    (doubled, "1 pictures are there more than once: s5, s9"),
]


@pytest.mark.parametrize(("plant", "sentence"), BLEMISHES, ids=[plant.__name__ for plant, _ in BLEMISHES])
def test_a_blemish_is_warned_of(data, plant, sentence):
    found = quality_warnings(plant(data))
    assert any(sentence in text for text in found), found


def test_unknown_labels_are_left_out(data):
    haze = data.collection.studies["concept:haze"].to_numpy(copy=True)
    haze[::3] = np.nan
    assert quality_warnings(changed(data, concept_haze=haze)) == []
