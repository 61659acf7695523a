"""Stage 1's network: pooling against numpy and its limits, maps without bias, merged levels, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from csr.errors import ConfigError
from csr.network.backbone import Backbone, BackboneConfig
from csr.network.concept_model import ConceptModel, ConceptModelConfig, pool_maps

MAPS = arrays.arrays(np.float64, (2, 3, 4), elements=st.floats(-8, 8))


def pool(maps: np.ndarray, pooling: str, sharpness: float = 2.0) -> np.ndarray:
    config = ConceptModelConfig(pooling=pooling, sharpness=sharpness)
    return pool_maps(torch.tensor(maps), config).numpy()


@pytest.fixture(scope="module")
def model() -> ConceptModel:
    torch.manual_seed(0)
    config = ConceptModelConfig("test_resnet", stride=8, context=None, sharpness=3.0)
    return ConceptModel(config, channels=1, concepts=3).eval()


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
    features = np.random.default_rng(0).normal(0, 1, (2, model.backbone.width, 2, 3)).astype(np.float32)
    weights = model.to_maps.weight.detach().numpy()[:, :, 0, 0]
    expected = np.zeros((2, 3, 2, 3))
    for b, k, i, j in np.ndindex(expected.shape):
        expected[b, k, i, j] = sum(weights[k, d] * features[b, d, i, j] for d in range(model.backbone.width))
    with torch.no_grad():
        np.testing.assert_allclose(model.maps(torch.tensor(features)).numpy(), expected, atol=1e-5)
        assert not model.maps(torch.zeros(1, model.backbone.width, 2, 2)).any()


@pytest.mark.parametrize(
    ("stride", "context", "cells"), [(4, None, 16), (8, None, 8), (16, None, 4), (4, 8, 16), (4, 16, 16), (8, 16, 8)]
)
def test_stride_decides_the_number_of_cells_and_context_does_not(stride, context, cells):
    model = ConceptModel(ConceptModelConfig("test_resnet", stride=stride, context=context), 1, 2).eval()
    with torch.no_grad():
        maps, logits = model(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    assert maps.shape == (1, 2, cells, cells)
    assert logits.shape == (1, 2)


def test_merged_features_are_the_sum_of_both_levels_convolved_normalised_and_cut_at_zero():
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig("test_convnext", stride=8, context=16, width=5), 1).eval()
    images = torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8)
    norm = backbone.merge[1]
    for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        torch.nn.init.uniform_(values, 0.5, 1)
    with torch.no_grad():
        fine, deep = backbone.body(backbone.normalise(images))
        assert fine.shape[-1] == 4 and deep.shape[-1] == 2
        # a new cell lies a quarter of a coarse cell from the middle of its own coarse cell
        mix = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
        enlarged = torch.einsum("ia,bdac,jc->bdij", mix, deep, mix)
        total = torch.einsum("ed,bdij->beij", backbone.fine.weight[..., 0, 0], fine)
        total += torch.einsum("ed,bdij->beij", backbone.deep.weight[..., 0, 0], enlarged)
        padded = torch.nn.functional.pad(total, (1, 1, 1, 1))
        conv = torch.zeros_like(total)
        for i, j in np.ndindex(4, 4):
            conv[..., i, j] = torch.einsum("edxy,bdxy->be", backbone.merge[0].weight, padded[..., i : i + 3, j : j + 3])
        shape = (1, 5, 1, 1)
        conv = (conv - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
        expected = (conv * norm.weight.view(shape) + norm.bias.view(shape)).clamp_min(0)
        np.testing.assert_allclose(backbone(images), expected, atol=1e-4)
    assert 0 < (expected > 0).float().mean() < 1


def test_width_is_the_levels_own_unless_levels_are_merged():
    assert Backbone(BackboneConfig("test_convnext", stride=8, context=None, width=5), 1).width == 32
    assert Backbone(BackboneConfig("test_convnext", stride=8, context=16, width=5), 1).width == 5


def test_images_are_standardised_with_statistics_that_travel_with_the_weights(model):
    model.backbone.set_normalisation(torch.tensor([0.25]), torch.tensor([0.5]))
    images = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    expected = (np.array([[0, 1], [0.2, 0.4]]) - 0.25) / 0.5
    np.testing.assert_allclose(model.backbone.normalise(images)[0, 0].numpy(), expected, atol=1e-6)
    assert float(model.state_dict()["backbone.mean"]) == 0.25
    assert float(model.state_dict()["backbone.std"]) == 0.5


def test_logits_are_the_pooled_maps(model):
    images = torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        maps, logits = model(images)
    grown = np.exp(3.0 * maps.double().numpy()).mean((2, 3))
    np.testing.assert_allclose(logits.numpy(), np.log(grown) / 3.0, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ConceptModelConfig("no_such_net"), "concepts.model.backbone: Unknown model"),
        (ConceptModelConfig("test_resnet", stride=7), "concepts.model.stride: .* none of 7"),
        (ConceptModelConfig("test_resnet", stride=8, context=24), "concepts.model.context: .* none of 24"),
        (ConceptModelConfig("test_convnext", stride=2, context=None), "concepts.model.stride: .* stride 4, 8, 16, 32"),
        (ConceptModelConfig("test_resnet", stride=16, context=16), "concepts.model.context: must be a deeper level"),
        (ConceptModelConfig("test_resnet", stride=16, context=8), "concepts.model.context: must be a deeper level"),
        (
            ConceptModelConfig("test_vit", stride=8),
            "concepts.model.stride: a cell of test_vit is its patch of 16 pixels",
        ),
        (ConceptModelConfig("test_vit", stride=16, context=32), "concepts.model.context: test_vit has no deeper level"),
        (ConceptModelConfig("test_resnet", checkpoint="absent.pth"), "concepts.model.checkpoint: no file 'absent.pth'"),
    ],
)
def test_an_impossible_architecture_is_refused_by_naming_the_key(config, words):
    with pytest.raises(ConfigError, match=f"^{words}"):
        ConceptModel(config, 1, 2)


@pytest.mark.parametrize(("context", "side", "deepest"), [(None, 36, 8), (16, 40, 16), (16, 36, 16)])
def test_images_that_do_not_hold_whole_cells_of_the_deepest_level_are_refused(context, side, deepest):
    backbone = Backbone(BackboneConfig("test_resnet", stride=8, context=context), 1).eval()
    for height, width in ((side, 64), (64, side)):
        with pytest.raises(ConfigError, match=f"data.side: {height}×{width} is not a multiple .* {deepest}$"):
            backbone(torch.zeros(1, 1, height, width, dtype=torch.uint8))
    assert backbone(torch.zeros(1, 1, 64, 64, dtype=torch.uint8)).shape[-2:] == (8, 8)
