"""Concepts from a few boxed examples: prototypes that must find what the boxes show, and a model that is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from csr.bundle.atlas import build_atlas
from csr.bundle.runtime import BundleRunner
from csr.bundle.writing import ExportConfig, Provenance, write_bundle
from csr.data.held_out import concept_fold, without_concepts
from csr.errors import ConfigError, DataError
from csr.interaction.few_shot import Examples, FewShotConfig, add_concepts, box_attention, fit_prototypes, with_examples
from csr.training.callbacks import SilentCallbacks
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig
from tests.conftest import TinyRun


def examples(run: TinyRun, name: str = "device", count: int = 4) -> Examples:
    """Boxes of a concept that the tiny run knows, under another name."""
    collection = run.data.collection
    k, boxes, labels = collection.concepts.index("effusion"), collection.boxes_by_pair(), collection.concept_labels()
    train = collection.rows("train")
    shown = [int(row) for row in train if (int(row), k) in boxes][:count]
    return Examples(name, {row: boxes[row, k] for row in shown}, train[labels[train, k] == 0][:count])


def test_the_new_model_knows_one_concept_more_and_keeps_the_others(tiny_run: TinyRun) -> None:
    before = tiny_run.csr.reasoner.prototypes.clone()
    csr, data, cache = add_concepts(
        tiny_run.csr, tiny_run.data, tiny_run.cache, [examples(tiny_run)], HeadConfig(epochs=2), SilentCallbacks()
    )
    assert csr.concepts == (*tiny_run.csr.concepts, "device") == data.collection.concepts
    assert torch.equal(csr.reasoner.prototypes[:-1], before)
    assert torch.equal(tiny_run.csr.reasoner.prototypes, before)
    assert csr.concept_model is tiny_run.csr.concept_model
    features = cache.batch(data.collection.rows("test")[:2], csr.place)[0]
    said = csr.reasoner(csr.project(features))
    assert said.concept_probabilities.shape == (2, len(csr.concepts))
    old = tiny_run.csr.reasoner(tiny_run.csr.project(features))
    torch.testing.assert_close(said.concept_maps[:, :-1], old.concept_maps)


def test_it_is_saved_exported_and_served(tiny_run: TinyRun, tmp_path: Path) -> None:
    given = examples(tiny_run)
    csr, data, cache = add_concepts(
        tiny_run.csr, tiny_run.data, tiny_run.cache, [given], HeadConfig(epochs=2), SilentCallbacks()
    )
    csr.save(tmp_path / "csr.pt")
    assert type(csr).load(tmp_path / "csr.pt").concepts == csr.concepts
    atlas = build_atlas(data, cache, csr)
    shown = set(data.collection.studies["study_id"].iloc[list(given.boxes)])
    own = [entry for entry in atlas.entries if entry.concept == "device"]
    assert own and {source.study_id for entry in own for source in entry.sources} <= shown
    bundle, _ = write_bundle(
        tmp_path / "bundle", data, cache, csr, atlas, ExportConfig(), Provenance("custom", "digest", "test", {})
    )
    assert bundle.manifest.concepts == csr.concepts
    assert BundleRunner(bundle) is not None


def test_prototypes_find_what_only_the_boxes_hold(tiny_run: TinyRun) -> None:
    """Features with a mark in one cell of the only box: the prototypes' best cell must be that one, and score more than
    anything in images without it."""
    given = examples(tiny_run)
    given = Examples("device", {row: boxes[:1] for row, boxes in given.boxes.items()}, given.absent)
    rows = [*given.boxes, *given.absent.tolist()]
    features = np.array(tiny_run.cache.features[rows], np.float32)
    rng = np.random.default_rng(0)
    mark = rng.normal(0, 4, features.shape[1])
    places = []
    for i, row in enumerate(given.boxes):
        x, y = (given.boxes[row][0][:2] + given.boxes[row][0][2:]) / 2 * features.shape[-1] / tiny_run.data.side
        places.append((int(y), int(x)))
        features[i, :, int(y), int(x)] += mark * features.std()
    whole = np.zeros((len(tiny_run.data.collection.studies), *features.shape[1:]), np.float32)
    whole[rows] = features
    cache = FeatureCache(whole, tiny_run.cache.cam)
    found = fit_prototypes(tiny_run.csr, cache, given, tiny_run.data.side, FewShotConfig())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    maps = torch.einsum("bdhw,md->bmhw", tiny_run.csr.project(torch.from_numpy(features)), found).amax(1)
    best = maps.flatten(1).amax(1)
    assert best[: len(given.boxes)].min() > best[len(given.boxes) :].max()
    for i, place in enumerate(places):
        assert divmod(int(maps[i].argmax()), maps.shape[-1]) == place


def test_box_attention_is_flat_inside_the_boxes_and_nothing_outside(tiny_run: TinyRun) -> None:
    known = with_examples(tiny_run.data, given := examples(tiny_run)).collection
    cache = box_attention(known, tiny_run.cache, tiny_run.data.side)
    np.testing.assert_array_equal(cache.cam[:, :-1], tiny_run.cache.cam)
    row = next(iter(given.boxes))
    weights = torch.from_numpy(cache.cam[row, -1]).flatten().softmax(0)
    inside = weights > 1e-6
    assert float(weights[inside].max() - weights[inside].min()) < 1e-6
    assert 0 < int(inside.sum()) < weights.numel()
    assert box_attention(tiny_run.data.collection, tiny_run.cache, tiny_run.data.side) is tiny_run.cache


def test_examples_that_do_not_fit_are_refused_by_name(tiny_run: TinyRun) -> None:
    given, data = examples(tiny_run), tiny_run.data
    row, test = next(iter(given.boxes)), int(data.collection.rows("test")[0])
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    wrong = {
        "knows it already": Examples("nodule", given.boxes, given.absent),
        "no example lacks it": Examples("device", given.boxes, np.zeros(0, int)),
        "no example shows it": Examples("device", {}, given.absent),
        "not of split 'train'": Examples("device", {test: box}, given.absent),
        "to show it and to lack it": Examples("device", given.boxes, np.array([row])),
        "reaches out of": Examples("device", {row: box + 60}, given.absent),
    }
    for message, each in wrong.items():
        with pytest.raises(DataError, match=message):
            with_examples(data, each)


def test_every_concept_is_in_one_fold_and_leaves_no_trace(tiny_run: TinyRun) -> None:
    collection = tiny_run.data.collection
    folds = [concept_fold(collection.concepts, fold) for fold in range(3)]
    assert sorted(name for fold in folds for name in fold) == sorted(collection.concepts)
    partial = without_concepts(collection, folds[1])
    assert not set(folds[1]) & set(partial.concepts)
    assert not set(folds[1]) & set(partial.boxes["concept"])
    assert not [name for name in folds[1] if f"concept:{name}" in partial.studies]
    assert (partial.truth() == collection.truth()).all()
    for names in (("tumor",), collection.concepts):
        with pytest.raises(ConfigError):
            without_concepts(collection, names)
