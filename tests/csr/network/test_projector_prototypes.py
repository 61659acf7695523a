"""The projector, the prototypes and local concept vectors against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.network.projector import Projector
from csr.network.prototypes import Prototypes, local_concept_vectors, similarity_maps

SEEDS = st.integers(0, 10_000)


def make_projector(seed: int, blocks: int = 2) -> Projector:
    torch.manual_seed(seed)
    projector = Projector(4, 6, blocks).eval()
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    projector.set_standardisation(torch.randn(4), torch.rand(4) + 0.5)
    return projector


def project_by_hand(projector: Projector, vector: np.ndarray) -> np.ndarray:
    state = {name: value.double().numpy() for name, value in projector.state_dict().items()}
    x = (vector - state["mean"]) / state["std"]
    x = state["inlet.weight"] @ x + state["inlet.bias"]
    for block in range(len(projector.blocks)):
        own = {name.split("inner.")[1]: v for name, v in state.items() if name.startswith(f"blocks.{block}.")}
        y = own["0.weight"] @ x + own["0.bias"]
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * own["1.weight"] + own["1.bias"]
        x = x + own["3.weight"] @ np.maximum(y, 0) + own["3.bias"]
    return x / np.sqrt((x**2).sum())


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_projection_is_standardisation_then_residual_blocks_then_unit_length(seed):
    projector = make_projector(seed)
    vector = np.random.default_rng(seed).normal(0, 2, 4)
    with torch.no_grad():
        own = projector(torch.tensor(vector, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(own, project_by_hand(projector, vector), atol=2e-5)
    assert np.linalg.norm(own) == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_a_lone_vector_is_projected_as_it_is_inside_a_map(seed):
    projector = make_projector(seed)
    features = torch.tensor(np.random.default_rng(seed).normal(0, 2, (2, 4, 3, 2)), dtype=torch.float32)
    with torch.no_grad():
        maps = projector.project_maps(features)
        for b, i, j in np.ndindex(2, 3, 2):
            np.testing.assert_allclose(maps[b, :, i, j], projector(features[b, :, i, j]), atol=2e-6)


def test_a_patch_does_not_feel_its_neighbours_in_training_mode_either():
    projector = make_projector(0).train()
    features = torch.randn(2, 4, 3, 3)
    changed = features.clone()
    changed[0, :, 1, 1] += 5
    with torch.no_grad():
        moved = (projector.project_maps(changed) - projector.project_maps(features)).abs().sum(1) > 1e-6
    assert moved.nonzero().tolist() == [[0, 1, 1]]


def test_standardisation_of_a_constant_channel_stays_finite():
    projector = Projector(2, 3)
    projector.set_standardisation(torch.zeros(2), torch.zeros(2))
    assert torch.isfinite(projector(torch.tensor([[0.0, 0.0]]))).all()


def test_standardisation_makes_the_projection_blind_to_a_channels_units():
    plain = make_projector(1)
    plain.set_standardisation(torch.zeros(4), torch.ones(4))
    rescaled = make_projector(1)
    factor, offset = torch.tensor([2.0, 0.5, 10.0, 1.0]), torch.tensor([1.0, -3.0, 0.0, 7.0])
    rescaled.set_standardisation(offset, factor)
    vectors = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(rescaled(vectors * factor + offset), plain(vectors), atol=1e-5, rtol=1e-5)


def test_prototypes_are_unit_vectors_whatever_their_raw_length():
    prototypes = Prototypes(3, 4, 5)
    with torch.no_grad():
        prototypes.raw.mul_(torch.rand(3, 4, 1) * 10 + 0.1)
        raw, own = prototypes.raw.numpy(), prototypes.unit().numpy()
    np.testing.assert_allclose(own, raw / np.sqrt((raw**2).sum(-1, keepdims=True)), atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_similarity_maps_are_inner_products_of_every_prototype_with_every_patch(seed):
    rng = np.random.default_rng(seed)
    patches, prototypes = rng.standard_normal((2, 5, 3, 4)), rng.standard_normal((3, 2, 5))
    expected = np.zeros((2, 3, 2, 3, 4))
    for b, k, m, i, j in np.ndindex(expected.shape):
        expected[b, k, m, i, j] = sum(prototypes[k, m, d] * patches[b, d, i, j] for d in range(5))
    own = similarity_maps(torch.tensor(patches), torch.tensor(prototypes)).numpy()
    np.testing.assert_allclose(own, expected, atol=1e-12)


def test_the_prototypes_own_maps_use_unit_prototypes():
    prototypes, patches = Prototypes(2, 3, 4), torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        own = prototypes.similarity_maps(patches)
        prototypes.raw.mul_(7)
        torch.testing.assert_close(prototypes.similarity_maps(patches), own)


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_local_concept_vectors_equal_the_loop(seed):
    rng = np.random.default_rng(seed)
    features, cam = rng.normal(0, 2, (2, 4, 3, 2)), rng.normal(0, 3, (2, 5, 3, 2))
    expected = np.zeros((2, 5, 4))
    for b in range(2):
        for k in range(5):
            weights = np.exp(cam[b, k]) / np.exp(cam[b, k]).sum()
            for i, j in np.ndindex(3, 2):
                expected[b, k] += weights[i, j] * features[b, :, i, j]
    own = local_concept_vectors(torch.tensor(features), torch.tensor(cam)).numpy()
    np.testing.assert_allclose(own, expected, atol=1e-10)


def test_a_local_concept_vector_is_the_mean_for_a_flat_map_and_one_patch_for_a_sharp_one():
    features = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    cam = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    cam[0, 1, 2, 0] = 1000
    flat, sharp = local_concept_vectors(features, cam)[0]
    torch.testing.assert_close(flat, features[0].mean((1, 2)))
    torch.testing.assert_close(sharp, features[0, :, 2, 0])
