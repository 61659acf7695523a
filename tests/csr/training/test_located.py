"""Concept vectors from inside boxes: where attention goes, and what stays as it was."""

from __future__ import annotations

import numpy as np
import torch

from csr.network.prototypes import local_concept_vectors
from csr.training.features import FeatureCache
from csr.training.located import confined, located_cache
from tests.csr.synthetic import CONCEPTS, SIDE, make_cache, make_collection


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
