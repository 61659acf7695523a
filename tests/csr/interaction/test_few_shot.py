"""Concepts from a few boxed examples: prototypes that must find what the boxes show, and a model that is whole.

That such a model is saved, exported and served is in ``tests/csr/workflow/test_concept.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csr.data.held_out import concept_fold, without_concepts
from csr.data.phantom.plan import CONCEPTS
from csr.errors import ConfigError, DataError
from csr.interaction.few_shot import (
    Examples,
    FewShotConfig,
    add_concepts,
    box_attention,
    example_cells,
    fit_prototypes,
    with_examples,
)
from csr.network.trained import TrainedCSR
from csr.training.callbacks import SilentCallbacks
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, train_prototypes
from tests.csr.synthetic import SIDE, make_cache, make_collection, make_csr, without_images

COLLECTION = make_collection(train=80, val=20, test=20)
CACHE = make_cache(COLLECTION)
DATA = without_images(COLLECTION)
HEAD = HeadConfig(epochs=2)
TRAIN = COLLECTION.rows("train")


@pytest.fixture(scope="module")
def trained() -> TrainedCSR:
    callbacks = SilentCallbacks()
    model = train_prototypes(COLLECTION, CACHE, PrototypeConfig(per_concept=3, width=8, epochs=1), callbacks)
    return make_csr(model, train_head(COLLECTION, CACHE, model, HEAD, callbacks), COLLECTION).eval()


def examples(name: str = "device", boxed: int = 4) -> Examples:
    """One box in each of some training images, each elsewhere, and as many images without."""
    places = [(i % 4, i // 4 % 4) for i in range(boxed)]
    boxes = {int(TRAIN[i]): np.array([[8.0 * x, 8.0 * y, 8.0 * x + 8, 8.0 * y + 8]]) for i, (x, y) in enumerate(places)}
    return Examples(name, boxes, TRAIN[boxed : 2 * boxed])


def test_the_new_model_knows_more_concepts_and_keeps_the_others(trained: TrainedCSR) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    csr, data, cache = add_concepts(trained, DATA, CACHE, [examples(), examples("clip", 1)], HEAD, SilentCallbacks())
    assert csr.concepts == (*COLLECTION.concepts, "device", "clip") == data.collection.concepts
    assert torch.equal(csr.reasoner.prototypes[:3], trained.reasoner.prototypes)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert csr.reasoner.alive[-1].tolist() == [1, 0, 0]  # of one example there is one prototype
    features = cache.batch(COLLECTION.rows("test")[:2], csr.place)[0]
    said, old = (each.reasoner(each.project(features)) for each in (csr, trained))
    assert said.concept_probabilities.shape == (2, 5)
    torch.testing.assert_close(said.concept_maps[:, :3], old.concept_maps)
    assert cache.cam.shape[1] == 5


def test_prototypes_find_what_only_the_boxes_hold(trained: TrainedCSR) -> None:
    """A mark in the one cell of each box: the prototypes' best cell must be that one, and score more than anything in
    images without it."""
    given = examples(boxed=6)
    features = np.array(CACHE.features, np.float32)
    cells, owner = example_cells(given, SIDE, 4, 4)
    rows = [*given.boxes, *given.absent.tolist()]
    mark = np.random.default_rng(0).normal(0, 6, features.shape[1])
    for place, image in zip(cells, owner, strict=True):
        assert place.sum() == 1
        features[rows[image]][:, place] += mark[:, None]
    found = fit_prototypes(trained, FeatureCache(features, CACHE.cam), given, SIDE, FewShotConfig())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    with torch.no_grad():
        patches = trained.project(torch.from_numpy(features[rows]))
    maps = torch.einsum("bdhw,md->bmhw", patches, found).amax(1).flatten(1)
    best = maps.amax(1)
    assert best[:6].min() > best[6:].max()
    np.testing.assert_array_equal(maps[:6].argmax(1).numpy(), cells.reshape(6, -1).argmax(1))


def test_box_attention_is_flat_inside_the_boxes_and_nothing_outside() -> None:
    given = examples()
    known = with_examples(DATA, given).collection
    cache = box_attention(known, CACHE, SIDE)
    np.testing.assert_array_equal(cache.cam[:, :-1], CACHE.cam)
    cells, _ = example_cells(given, SIDE, 4, 4)
    for row, own in zip(given.boxes, cells, strict=True):
        weights = torch.from_numpy(cache.cam[row, -1]).flatten().softmax(0).numpy()
        np.testing.assert_allclose(weights, own.flatten() / own.sum(), atol=1e-9)
    assert box_attention(COLLECTION, CACHE, SIDE) is CACHE


def test_labels_of_examples_are_known_and_no_others() -> None:
    given = examples()
    known = with_examples(DATA, given).collection
    labels = known.concept_labels()[:, -1]
    assert (labels[list(given.boxes)] == 1).all() and (labels[given.absent] == 0).all()
    assert np.isnan(labels).sum() == len(labels) - len(given.boxes) - len(given.absent)
    np.testing.assert_array_equal(known.boxes_of(int(TRAIN[1]), "device"), given.boxes[int(TRAIN[1])])
    assert "concept:device" not in COLLECTION.studies


def test_examples_that_do_not_fit_are_refused_by_name() -> None:
    given = examples()
    row, test = next(iter(given.boxes)), int(COLLECTION.rows("test")[0])
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    wrong = {
        "knows it already": Examples("haze", given.boxes, given.absent),
        "no example lacks it": Examples("device", given.boxes, np.zeros(0, int)),
        "no example shows it": Examples("device", {}, given.absent),
        "not of split 'train'": Examples("device", {test: box}, given.absent),
        "to show it and to lack it": Examples("device", given.boxes, np.array([row])),
        "reaches out of": Examples("device", {row: box + 30}, given.absent),
    }
    for message, each in wrong.items():
        with pytest.raises(DataError, match=message):
            with_examples(DATA, each)


def test_every_concept_is_in_one_fold() -> None:
    folds = [concept_fold(CONCEPTS, fold) for fold in range(3)]
    assert sorted(name for fold in folds for name in fold) == sorted(CONCEPTS)


def test_a_concept_held_out_leaves_no_trace() -> None:
    partial = without_concepts(COLLECTION, ("streak",))
    assert partial.concepts == ("round", "haze")
    assert set(partial.boxes["concept"]) == {"round", "haze"}
    assert "concept:streak" not in partial.studies
    assert (partial.truth() == COLLECTION.truth()).all()
    for names in (("tumor",), COLLECTION.concepts):
        with pytest.raises(ConfigError):
            without_concepts(COLLECTION, names)
