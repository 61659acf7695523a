"""The losses against loops written from the formulas, and the identities that tell the three margins apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.training.losses import MOST, masked_bce, positive_weights
from csr.training.prototype_losses import absence, agreement, prototype_contrastive, soft_similarity

SEEDS = st.integers(0, 10_000)


def bce_by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    total, count = 0.0, 0
    for logit, label in zip(logits.ravel(), labels.ravel(), strict=True):
        if not math.isnan(label):
            p = 1 / (1 + math.exp(-logit))
            total -= label * math.log(p) + (1 - label) * math.log(1 - p)
            count += 1
    return total / count if count else 0.0


def random_labels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([0.0, 1.0, np.nan], shape)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def tensor(values: np.ndarray, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


# masked BCE


@settings(deadline=None, max_examples=40)
@given(SEEDS)
def test_masked_bce_is_the_mean_over_known_labels(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (4, 3)), random_labels(rng, (4, 3))
    value = masked_bce(tensor(logits), tensor(labels))
    assert float(value) == pytest.approx(bce_by_hand(logits, labels), rel=1e-5, abs=1e-7)


def test_masked_bce_of_nothing_known_is_zero_with_zero_gradient():
    logits = tensor(np.array([[3.0, -2.0]]), grad=True)
    loss = masked_bce(logits, torch.full((1, 2), float("nan")))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@settings(deadline=None, max_examples=40)
@given(SEEDS)
def test_unknown_labels_do_not_change_the_gradient_of_known_ones(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (5, 2)), random_labels(rng, (5, 2))
    labels[0, 0] = 1
    whole = tensor(logits, grad=True)
    masked_bce(whole, tensor(labels)).backward()
    known = ~np.isnan(labels)
    alone = tensor(logits[known], grad=True)
    masked_bce(alone[None], tensor(labels[known])[None]).backward()
    np.testing.assert_allclose(whole.grad.numpy()[known], alone.grad.numpy(), atol=1e-7)
    assert (whole.grad.numpy()[~known] == 0).all()


# soft assignment


def soft_similarity_by_hand(vectors, prototypes, gamma):
    sim = np.zeros((len(vectors), len(prototypes)))
    assigned = np.zeros((len(vectors), *prototypes.shape[:2]))
    for n, vector in enumerate(vectors):
        for k, own in enumerate(prototypes):
            inner = np.array([sum(a * b for a, b in zip(p, vector, strict=True)) for p in own])
            weights = np.exp(gamma * (inner - inner.max()))
            assigned[n, k] = weights / weights.sum()
            sim[n, k] = (assigned[n, k] * inner).sum()
    return sim, assigned


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([0.0, 1.0, 10.0, 1000.0]))
def test_soft_similarity_equals_the_loop(seed, gamma):
    rng = np.random.default_rng(seed)
    vectors, prototypes = unit(rng.standard_normal((3, 4))), unit(rng.standard_normal((2, 5, 4)))
    sim, assigned = soft_similarity(tensor(vectors), tensor(prototypes), gamma)
    expected, weights = soft_similarity_by_hand(vectors, prototypes, gamma)
    np.testing.assert_allclose(sim.numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(assigned.numpy(), weights, atol=1e-10)


def test_soft_similarity_goes_from_the_mean_to_the_best_prototype_as_gamma_grows():
    rng = np.random.default_rng(0)
    vectors, prototypes = unit(rng.standard_normal((6, 4))), unit(rng.standard_normal((2, 5, 4)))
    inner = np.einsum("nd,kmd->nkm", vectors, prototypes)
    flat, _ = soft_similarity(tensor(vectors), tensor(prototypes), 0.0)
    sharp, assigned = soft_similarity(tensor(vectors), tensor(prototypes), 1e5)
    np.testing.assert_allclose(flat.numpy(), inner.mean(-1), atol=1e-12)
    np.testing.assert_allclose(sharp.numpy(), inner.max(-1), atol=1e-6)
    np.testing.assert_array_equal(assigned.numpy().argmax(-1), inner.argmax(-1))


# the contrastive loss and its margin


def contrastive_by_hand(sim, concept, scale, delta, margin):
    losses = []
    for row, own in zip(sim, concept, strict=True):
        shift = {"numerator": delta, "plus": delta, "minus": -delta}[margin]
        top = math.exp(scale * (row[own] + shift))
        others = sum(math.exp(scale * value) for k, value in enumerate(row) if k != own)
        below = others + (math.exp(scale * row[own]) if margin == "numerator" else top)
        losses.append(-math.log(top / below))
    return float(np.mean(losses))


def similarities(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (5, 4)), rng.integers(0, 4, 5)


def test_a_present_concept_counts_as_often_as_it_is_told_to() -> None:
    logits, labels = torch.tensor([[0.3, -1.0], [2.0, 0.5]]), torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    sigmoid = logits.sigmoid()
    terms = [-3 * sigmoid[0, 0].log(), -(1 - sigmoid[0, 1]).log(), -7 * sigmoid[1, 1].log()]
    assert masked_bce(logits, labels, torch.tensor([3.0, 7.0])) == pytest.approx(float(sum(terms)) / 3)


def test_rare_concepts_weigh_as_absent_over_present_ones_within_bounds() -> None:
    columns = {"rare": (2, 14), "even": (8, 8), "common": (14, 2), "hardly": (1, 15), "never": (0, 16)}
    labels = torch.tensor([[1.0] * present + [0.0] * absent for present, absent in columns.values()]).T
    assert positive_weights(labels).tolist() == [7, 1, 1, 15, 16]
    many = torch.cat([labels[:, :1], torch.full((1000, 1), float("nan")), torch.zeros(1000, 1)])
    assert positive_weights(many).tolist() == [MOST]
    assert positive_weights(torch.cat([labels, torch.full((100, 5), float("nan"))])).tolist() == [7, 1, 1, 15, 16]


@pytest.mark.parametrize("margin", ["numerator", "plus", "minus"])
@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(1, 20), st.floats(0, 0.5))
def test_contrastive_loss_equals_its_definition(margin, seed, scale, delta):
    sim, concept = similarities(seed)
    value = prototype_contrastive(tensor(sim), torch.tensor(concept), scale, delta, margin)
    assert float(value) == pytest.approx(contrastive_by_hand(sim, concept, scale, delta, margin), rel=1e-8, abs=1e-8)


def gradient(seed: int, delta: float, margin: str) -> tuple[float, np.ndarray]:
    sim, concept = similarities(seed)
    leaf = tensor(sim, grad=True)
    loss = prototype_contrastive(leaf, torch.tensor(concept), 20.0, delta, margin)
    loss.backward()
    return loss.item(), leaf.grad.numpy()


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.01, 0.5))
def test_numerator_margin_has_the_gradient_of_plain_cross_entropy(seed, delta):
    sim, concept = similarities(seed)
    leaf = tensor(sim, grad=True)
    plain = torch.nn.functional.cross_entropy(20.0 * leaf, torch.tensor(concept))
    plain.backward()
    value, own = gradient(seed, delta, "numerator")
    np.testing.assert_allclose(own, leaf.grad.numpy(), atol=1e-12)
    assert value == pytest.approx(plain.item() - 20.0 * delta)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.01, 0.5))
def test_plus_is_an_anti_margin_and_minus_a_margin(seed, delta):
    sim, concept = similarities(seed)
    plain = prototype_contrastive(tensor(sim), torch.tensor(concept), 20.0, 0.0)
    plus = prototype_contrastive(tensor(sim), torch.tensor(concept), 20.0, delta, "plus")
    minus = prototype_contrastive(tensor(sim), torch.tensor(concept), 20.0, delta, "minus")
    mirrored = prototype_contrastive(tensor(sim), torch.tensor(concept), 20.0, -delta, "plus")
    assert plus < plain < minus
    assert float(minus) == pytest.approx(float(mirrored), rel=1e-12)


def test_minus_equals_plain_cross_entropy_on_vectors_that_are_delta_further_away():
    sim, concept = similarities(3)
    away = sim.copy()
    away[np.arange(5), concept] -= 0.1
    expected = prototype_contrastive(tensor(away), torch.tensor(concept), 20.0, 0.0)
    assert float(prototype_contrastive(tensor(sim), torch.tensor(concept), 20.0, 0.1, "minus")) == pytest.approx(
        float(expected)
    )


@pytest.mark.parametrize("margin", ["numerator", "plus", "minus"])
def test_contrastive_loss_of_a_batch_without_positives_is_finite(margin):
    empty = torch.zeros(0, 4, requires_grad=True)
    value = prototype_contrastive(empty, torch.zeros(0, dtype=torch.long), margin=margin)
    assert torch.isfinite(value)


# absence


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_absence_is_bce_on_the_scaled_shifted_maximum(seed):
    rng = np.random.default_rng(seed)
    maps, labels = rng.uniform(-1, 1, (3, 2, 4, 3, 3)), random_labels(rng, (3, 2))
    scale, shift = rng.uniform(1, 10, 2), rng.normal(0, 3, 2)
    logits = np.zeros((3, 2))
    for b in range(3):
        for k in range(2):
            logits[b, k] = scale[k] * max(maps[b, k, m, i, j] for m in range(4) for i in range(3) for j in range(3))
            logits[b, k] += shift[k]
    value = absence(tensor(maps), tensor(labels), tensor(scale), tensor(shift))
    assert float(value) == pytest.approx(bce_by_hand(logits, labels), rel=1e-5, abs=1e-7)


def test_absence_pulls_down_the_best_patch_of_an_image_that_lacks_the_concept():
    maps = tensor(np.random.default_rng(0).uniform(-1, 1, (1, 1, 2, 3, 3)), grad=True)
    absence(maps, torch.zeros(1, 1), tensor(np.array([10.0])), tensor(np.array([-5.0]))).backward()
    assert maps.grad.argmax() == maps.detach().argmax()
    assert (maps.grad > 0).sum() == 1
    assert maps.grad.min() == 0


def test_absence_leaves_images_with_unknown_labels_alone():
    maps = tensor(np.random.default_rng(0).uniform(-1, 1, (2, 1, 2, 3, 3)), grad=True)
    labels = torch.tensor([[float("nan")], [0.0]])
    absence(maps, labels, tensor(np.array([10.0])), tensor(np.array([-5.0]))).backward()
    assert not maps.grad[0].any()
    assert maps.grad[1].any()


# agreement


def softmax(values: np.ndarray) -> np.ndarray:
    grown = np.exp(values - values.max())
    return grown / grown.sum()


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(1, 20))
def test_agreement_is_the_divergence_of_the_two_attentions(seed, temperature):
    rng = np.random.default_rng(seed)
    maps, cam = rng.uniform(-1, 1, (3, 2, 4, 3, 3)), rng.normal(0, 2, (3, 2, 3, 3))
    labels = random_labels(rng, (3, 2))
    labels[0, 0] = 1
    divergences = []
    for b, k in np.argwhere(labels == 1):
        target = softmax(cam[b, k].ravel())
        own = softmax(temperature * maps[b, k].max(0).ravel())
        divergences.append(sum(p * math.log(p / q) for p, q in zip(target, own, strict=True)))
    value = agreement(tensor(maps), tensor(cam), tensor(labels), temperature)
    assert float(value) == pytest.approx(float(np.mean(divergences)), rel=1e-8, abs=1e-10)


def test_agreement_is_zero_where_both_maps_attend_alike():
    cam = np.random.default_rng(0).normal(0, 2, (2, 3, 4, 4))
    maps = np.stack([cam / 20 - 1, cam / 20], 2)
    assert float(agreement(tensor(maps), tensor(cam), torch.ones(2, 3), 20.0)) == pytest.approx(0, abs=1e-12)


def test_agreement_teaches_the_prototypes_and_never_stage_1():
    rng = np.random.default_rng(0)
    maps, cam = tensor(rng.uniform(-1, 1, (2, 1, 2, 3, 3)), True), tensor(rng.normal(0, 1, (2, 1, 3, 3)), True)
    agreement(maps, cam, torch.tensor([[1.0], [float("nan")]])).backward()
    assert cam.grad is None
    assert maps.grad[0].any()
    assert not maps.grad[1].any()


def test_agreement_without_present_concepts_is_zero_and_can_be_differentiated():
    maps = tensor(np.ones((2, 1, 2, 3, 3)), grad=True)
    value = agreement(maps, tensor(np.ones((2, 1, 3, 3))), torch.tensor([[0.0], [float("nan")]]))
    value.backward()
    assert value.item() == 0
    assert not maps.grad.any()
