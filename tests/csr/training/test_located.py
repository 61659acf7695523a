"""Concept vectors from inside boxes: where attention goes, and what stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from csr.baselines.protocol import ExperimentContext, TrainedBackbone
from csr.comparison.csr_system import Recipe, train_csr
from csr.data.prepared import READER_BOX_COLUMNS
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import local_concept_vectors, prototype_model_checkpoint
from csr.network.rebuild import concept_model_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.located import attended_cache, confined, located_cache, reader_cache
from csr.training.prototypes import PrototypeConfig, train_prototypes
from pipelines import head, prototypes
from tests.csr.synthetic import CONCEPTS, SIDE, make_cache, make_collection, make_prepared


def attention(cache: FeatureCache) -> np.ndarray:
    cam = torch.from_numpy(np.array(cache.cam))
    return cam.flatten(2).softmax(-1).reshape(cam.shape).numpy()


def test_attention_of_present_concepts_of_training_images_is_inside_their_boxes() -> None:
    collection, side = make_collection(), SIDE
    cache = make_cache(collection)
    cell, before, after = (
        side // cache.cam.shape[-1],
        attention(cache),
        attention(located_cache(collection, cache, side)),
    )
    boxes, train = collection.boxes_by_pair(), set(collection.rows("train").tolist())
    for row in range(len(before)):
        for k in range(len(CONCEPTS)):
            if row not in train or (row, k) not in boxes:
                np.testing.assert_array_equal(after[row, k], before[row, k])
                continue
            (left, top), (right, bottom) = np.floor(boxes[row, k][0, :2] / cell), np.ceil(boxes[row, k][0, 2:] / cell)
            inside = np.zeros_like(after[row, k], bool)
            inside[int(top) : int(bottom), int(left) : int(right)] = True
            np.testing.assert_allclose(after[row, k][inside].sum(), 1, atol=1e-6)
            share = before[row, k] * inside
            np.testing.assert_allclose(after[row, k], share / share.sum(), atol=1e-5)  # as it was, within the boxes


def test_a_box_smaller_than_a_cell_keeps_the_cell_that_it_lies_in() -> None:
    features = np.arange(2 * 16, dtype=np.float16).reshape(1, 2, 4, 4)
    cache = FeatureCache(features, np.random.default_rng(0).normal(size=(1, 1, 4, 4)).astype(np.float32))
    found = confined(cache, {(0, 0): np.array([[17.0, 9.0, 18.0, 10.0]])}, 32)
    vector = local_concept_vectors(torch.from_numpy(features).float(), torch.from_numpy(found.cam))
    torch.testing.assert_close(vector[0, 0], torch.from_numpy(features[0, :, 1, 2]).float())


def test_the_maps_on_file_stay() -> None:
    collection = make_collection()
    cache = make_cache(collection)
    kept = np.array(cache.cam)
    assert located_cache(collection, cache, SIDE).features is cache.features
    np.testing.assert_array_equal(cache.cam, kept)


# whoever runs the stages

STAGE1 = ConceptTrainingConfig(model=ConceptModelConfig("test_resnet", stride=8))
STAGE2 = PrototypeConfig(per_concept=2, width=8, epochs=2, precision="float32", located=True)
STAGE3 = HeadConfig(epochs=2, least_usage=0.3)  # so that whose vectors are counted shows in what is kept


def by_the_pipeline(folder: Path, data, cache: FeatureCache) -> TrainedCSR:
    names = folder / "prepared", folder / "features"
    model = prototypes.fit(*names, STAGE2, SilentCallbacks())
    concepts = concept_model_checkpoint(ConceptModel(STAGE1.model, 1, 3))
    return TrainedCSR.from_checkpoint(head.fit(*names, head.Stages(concepts, model, True), STAGE3, SilentCallbacks()))


def by_the_comparison(folder: Path, data, cache: FeatureCache) -> TrainedCSR:
    shared = TrainedBackbone(ConceptModel(STAGE1.model, 1, 3), cache)
    return train_csr(ExperimentContext(data, STAGE1, SilentCallbacks(), shared), Recipe(STAGE2, STAGE3)).csr


@pytest.mark.parametrize("train", [by_the_pipeline, by_the_comparison])
def test_stages_2_and_3_learn_from_inside_boxes(train, tmp_path: Path) -> None:
    data = make_prepared(tmp_path / "prepared", make_collection(40, 16, 12))
    cache = make_cache(data.collection)
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "features.npy", cache.features)
    np.save(tmp_path / "features" / "cam.npy", cache.cam)
    found = train(tmp_path, data, cache)
    located = located_cache(data.collection, cache, data.side)
    model = train_prototypes(data.collection, located, STAGE2, SilentCallbacks())
    expected = train_head(data.collection, located, model, STAGE3, SilentCallbacks(), side=data.side)
    for name, value in prototype_model_checkpoint(model)["weights"].items():
        torch.testing.assert_close(found.prototype_model.state_dict()[name], value, msg=name)
    torch.testing.assert_close(found.reasoner.alive.cpu(), expected.alive.cpu())
    torch.testing.assert_close(found.reasoner.head.weight.cpu(), expected.head.weight.cpu())
    elsewhere = train_prototypes(data.collection, cache, STAGE2, SilentCallbacks())
    assert not torch.allclose(elsewhere.prototypes.raw, model.prototypes.raw)


def drawn(*rows: tuple[str, str, str | None, float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(READER_BOX_COLUMNS))


def test_readers_boxes_say_where_a_corrected_study_is_learned_from() -> None:
    collection = make_collection()
    cache = make_cache(collection)
    labels = collection.concept_labels()
    row = next(row for row in collection.rows("train") if labels[row, 0] == 1 and labels[row, 2] == 1)
    study = collection.studies["study_id"].iat[row]
    cell = SIDE // cache.cam.shape[-1]
    assert cell == 8
    before = attention(cache)
    boxes = drawn(
        (study, "finding", CONCEPTS[0], 8, 0, 24, 8),
        (study, "focus", None, 0, 16, 32, 32),
        (study, "ignore", None, 0, 0, 16, 32),
    )
    after = attention(reader_cache(collection, cache, boxes, SIDE))
    expected = {
        0: np.array([[0, 0, 1, 0]] + [[0] * 4] * 3),  # the finding, without what is ignored
        1: np.array([[0, 0, 1, 1]] * 4),  # absent: all but what is ignored
        2: np.array([[0] * 4] * 2 + [[0, 0, 1, 1]] * 2),  # present: the focus, without what is ignored
    }
    for k, inside in expected.items():
        share = before[row, k] * inside
        np.testing.assert_allclose(after[row, k], share / share.sum(), atol=1e-5)
    others = np.arange(len(before)) != row
    np.testing.assert_array_equal(after[others], before[others])


def test_what_ignores_all_and_no_box_at_all_change_nothing() -> None:
    collection = make_collection()
    cache = make_cache(collection)
    whole = drawn((collection.studies["study_id"].iat[0], "ignore", None, 0, 0, 32, 32))
    np.testing.assert_array_equal(reader_cache(collection, cache, whole, SIDE).cam, cache.cam)
    assert reader_cache(collection, cache, drawn(), SIDE) is cache


def test_readers_boxes_count_if_the_configuration_says_so(tmp_path: Path) -> None:
    data = make_prepared(tmp_path / "data", make_collection())
    cache = make_cache(data.collection)
    assert attended_cache(data, cache, located=False, reader_boxes=True) is cache, "nobody drew anything"
    boxes = drawn((data.collection.studies["study_id"].iat[1], "ignore", None, 0, 0, 16, 32))
    boxes.to_parquet(data.path / "reader_boxes.parquet", index=False)
    assert attended_cache(data, cache, located=False, reader_boxes=False) is cache
    expected = reader_cache(data.collection, cache, boxes, SIDE)
    np.testing.assert_array_equal(attended_cache(data, cache, located=False, reader_boxes=True).cam, expected.cam)
