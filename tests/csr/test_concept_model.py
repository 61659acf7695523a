"""Stage 1's network: pooling against numpy and its limits, maps without bias, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from csr.errors import ConfigError
from csr.network.concept_model import ConceptModel, ConceptModelConfig, pool_maps

MAPS = arrays.arrays(np.float64, (2, 3, 4), elements=st.floats(-8, 8))


def pool(maps: np.ndarray, pooling: str, sharpness: float = 2.0) -> np.ndarray:
    config = ConceptModelConfig(pooling=pooling, sharpness=sharpness)
    return pool_maps(torch.tensor(maps), config).numpy()


@pytest.fixture(scope="module")
def model() -> ConceptModel:
    torch.manual_seed(0)
    return ConceptModel(ConceptModelConfig("test_resnet", stride=8, sharpness=3.0), channels=1, concepts=3).eval()


@settings(deadline=None, max_examples=40)
@given(MAPS)
def test_average_pooling_is_the_mean_over_cells(maps):
    np.testing.assert_allclose(pool(maps, "average"), maps.mean((1, 2)), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(MAPS, st.floats(0.1, 20))
def test_lse_pooling_equals_its_formula(maps, r):
    expected = [np.log(sum(np.exp(r * value) for value in own.ravel()) / own.size) / r for own in maps]
    np.testing.assert_allclose(pool(maps, "lse", r), expected, atol=2e-5)


@settings(deadline=None, max_examples=60)
@given(MAPS, st.floats(0.05, 50))
def test_lse_pooling_lies_between_mean_and_maximum(maps, r):
    pooled = pool(maps, "lse", r)
    slack = 1e-4
    assert (pooled >= maps.mean((1, 2)) - slack).all()
    assert (pooled <= maps.max((1, 2)) + slack).all()


def test_lse_pooling_tends_to_the_mean_for_small_and_to_the_maximum_for_large_sharpness():
    maps = np.random.default_rng(0).normal(0, 3, (5, 4, 4))
    np.testing.assert_allclose(pool(maps, "lse", 1e-2), maps.mean((1, 2)), atol=0.1)
    np.testing.assert_allclose(pool(maps, "lse", 1e4), maps.max((1, 2)), atol=1e-3)
    distances = [np.abs(pool(maps, "lse", r) - maps.max((1, 2))).max() for r in (0.1, 1, 10, 100)]
    assert distances == sorted(distances, reverse=True)


@settings(deadline=None, max_examples=30)
@given(MAPS, st.floats(-5, 5))
def test_lse_pooling_moves_with_a_constant_added_to_the_map(maps, offset):
    np.testing.assert_allclose(pool(maps + offset, "lse"), pool(maps, "lse") + offset, atol=1e-4)


def test_lse_pooling_survives_maps_that_overflow_an_exponential():
    maps = np.array([[[1000.0, -1000.0]]])
    assert pool(maps, "lse", 2.0)[0] == pytest.approx(1000 - np.log(2) / 2, abs=1e-3)


def test_pooling_is_computed_in_float32_whatever_the_maps_are():
    maps = torch.full((1, 8, 8), 0.1, dtype=torch.bfloat16)
    assert pool_maps(maps, ConceptModelConfig()).dtype == torch.float32


def test_a_map_is_a_weighted_sum_of_features_without_bias(model):
    features = np.random.default_rng(0).normal(0, 1, (2, model.width, 2, 3)).astype(np.float32)
    weights = model.to_maps.weight.detach().numpy()[:, :, 0, 0]
    expected = np.zeros((2, 3, 2, 3))
    for b, k, i, j in np.ndindex(expected.shape):
        expected[b, k, i, j] = sum(weights[k, d] * features[b, d, i, j] for d in range(model.width))
    with torch.no_grad():
        np.testing.assert_allclose(model.maps(torch.tensor(features)).numpy(), expected, atol=1e-5)
        assert not model.maps(torch.zeros(1, model.width, 2, 2)).any()


@pytest.mark.parametrize(("stride", "cells"), [(4, 16), (8, 8), (16, 4)])
def test_stride_decides_the_number_of_cells(stride, cells):
    model = ConceptModel(ConceptModelConfig("test_resnet", stride=stride), 1, 2).eval()
    with torch.no_grad():
        maps, logits = model(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    assert maps.shape == (1, 2, cells, cells)
    assert logits.shape == (1, 2)


def test_images_are_standardised_with_statistics_that_travel_with_the_weights(model):
    model.set_normalisation(torch.tensor([0.25]), torch.tensor([0.5]))
    images = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    expected = (np.array([[0, 1], [0.2, 0.4]]) - 0.25) / 0.5
    np.testing.assert_allclose(model.normalise(images)[0, 0].numpy(), expected, atol=1e-6)
    assert float(model.state_dict()["mean"]) == 0.25
    assert float(model.state_dict()["std"]) == 0.5


def test_logits_are_the_pooled_maps(model):
    images = torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        maps, logits = model(images)
    grown = np.exp(3.0 * maps.double().numpy()).mean((2, 3))
    np.testing.assert_allclose(logits.numpy(), np.log(grown) / 3.0, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ConceptModelConfig("no_such_net"), "concepts.backbone"),
        (ConceptModelConfig("test_resnet", stride=7), "concepts.stride"),
        (ConceptModelConfig("test_resnet", checkpoint="absent.pth"), "absent.pth"),
    ],
)
def test_an_impossible_architecture_is_refused_by_naming_the_key(config, words):
    with pytest.raises(ConfigError, match=words):
        ConceptModel(config, 1, 2)
