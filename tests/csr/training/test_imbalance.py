"""Rare concepts and rare classes: what weighs them up reaches the training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csr.data.records import NO_CLASS
from csr.errors import ConfigError
from csr.network.concept_model import ConceptModelConfig
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, class_chances, train_concepts
from csr.training.images import image_batches
from csr.training.runtime import batches, seeds
from tests.csr.synthetic import make_collection, make_prepared, with_labels

STILL = AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0)
CONFIG = ConceptTrainingConfig(
    ConceptModelConfig("test_resnet", stride=8),
    STILL,
    epochs=6,
    batch_size=8,
    precision="float32",
)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """Concept ``round`` is present in four of forty training studies, chosen regardless of their images."""
    collection = make_collection()
    labels = collection.concept_labels()
    labels[:, 0] = np.arange(len(labels)) % 10 == 0
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", with_labels(collection, labels))


def mean_probability(data, config) -> np.ndarray:
    model = train_concepts(data, config, SilentCallbacks())
    rows = data.collection.rows("train")
    with torch.no_grad():
        return torch.cat([model(images)[1].sigmoid() for _, images in image_batches(data, rows, 64)]).mean(0).numpy()


def test_a_rare_concept_that_is_weighed_up_is_no_longer_said_to_be_absent(rare) -> None:
    """Nothing in the images tells it, so its probability goes to the share of the weight that is present: a tenth
    without weights, a half with nine times."""
    plain = mean_probability(rare, CONFIG)
    balanced = mean_probability(rare, replace(CONFIG, positive_weight="balanced"))
    assert balanced[0] > 1.5 * plain[0]
    assert abs(balanced[0] - 0.5) < abs(plain[0] - 0.5)


def test_every_class_comes_as_often_and_a_study_without_one_as_often_as_before() -> None:
    collection = make_collection()
    studies = collection.studies.copy()
    studies.loc[studies["label"] == "severe", "label"] = "mild"
    studies.loc[:9, "label"] = None
    collection = replace(collection, studies=studies)
    rows = collection.labelled_rows("train")
    chances, classes = class_chances(collection, rows), collection.truth()[rows]
    assert chances.sum() == pytest.approx(1)
    assert chances[classes == NO_CLASS] == pytest.approx(1 / len(rows))
    assert chances[classes == 0].sum() == pytest.approx(chances[classes == 1].sum())
    drawn = np.concatenate(list(batches(np.repeat(rows, 500), 100, seeds(0, "order"), np.repeat(chances, 500) / 500)))
    shares = np.bincount(collection.truth()[drawn] + 1, minlength=3) / len(drawn)
    assert shares == pytest.approx([0.25, 0.375, 0.375], abs=0.015)


def test_balanced_drawing_is_for_studies_with_one_class_each() -> None:
    with pytest.raises(ConfigError, match=r"concepts\.sampling: 'balanced' goes by the one class"):
        class_chances(replace(make_collection(), task="concepts", classes=()), np.arange(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patience": 0}, r"concepts\.patience: must be at least 1, got 0"),
        ({"accumulate": 0}, r"concepts\.accumulate: must be at least 1, got 0"),
        ({"least_rise": -0.1}, r"concepts\.least_rise: must be 0 or more"),
        ({"anneal": 0.0}, r"concepts\.anneal: must be above 0 and at most 1"),
        ({"clip": 0.0}, r"concepts\.clip: must be above 0, or null"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_its_name(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
