"""Stochastic CBM: the normal distribution of concept logits, its losses, and what a told concept does to the others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from csr.baselines import scbm
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.baselines.scbm import (
    Bottleneck,
    Normal,
    SCBMConfig,
    Studies,
    answered_f1,
    concept_loss,
    precision_loss,
    relaxed_concepts,
    train_bottleneck,
)
from csr.comparison.answerable_scbm import AnswerableSCBM
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache, compute_features
from tests.csr.synthetic import make_collection, make_prepared

CASES = settings(deadline=None, max_examples=15)
NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16, pooling="lse", sharpness=3.0)
REACH = torch.tensor([0.0, *chi2.ppf(0.99, np.arange(1, 5))], dtype=torch.float32)


def make_normal(seed: int, studies: int = 3, concepts: int = 4) -> Normal:
    rng = torch.Generator().manual_seed(seed)
    factor = 0.5 * torch.randn(studies, concepts, concepts, generator=rng).tril()
    diagonal = torch.arange(concepts)
    factor[:, diagonal, diagonal] = factor[:, diagonal, diagonal].abs() + 0.5
    return Normal(torch.randn(studies, concepts, generator=rng), factor)


def pairs(count: int, seed: int, twins: float = 0.95) -> Studies:
    """Two concepts that are nearly always both there or both absent. Stage 1 sees the second badly and the first not at
    all; the class is the second."""
    rng = torch.Generator().manual_seed(seed)
    first = torch.rand(count, generator=rng) < 0.5
    second = torch.where(torch.rand(count, generator=rng) < twins, first, ~first)
    truth = torch.stack([first, second], 1).float()
    known = torch.ones(count, 2, dtype=torch.bool)
    seen = torch.randn(count, 2, generator=rng) + torch.stack([torch.zeros(count), 1.4 * second - 0.7], 1)
    return Studies(seen, torch.zeros(count, 3), truth, known, second.long())


@pytest.fixture(scope="module")
def trained() -> Bottleneck:
    config = SCBMConfig("global", precision_weight=0.01, epochs=25, batch_size=32, learning_rate=2e-2)
    return train_bottleneck(pairs(400, 0), pairs(60, 1), 2, config, SilentCallbacks())


# the distribution


@CASES
@given(st.integers(0, 1000))
def test_draws_have_the_mean_and_the_covariance(seed):
    normal = make_normal(seed)
    draws = normal.draw(torch.randn(40_000, 4))
    covariance = normal.factor @ normal.factor.mT
    np.testing.assert_allclose(draws.mean(1), normal.mean, atol=0.06)
    for study in range(3):
        np.testing.assert_allclose(np.cov(draws[study].T), covariance[study], atol=0.15)


def test_what_was_told_lies_on_its_confidence_region_and_the_rest_follows_the_conditional_distribution():
    """Against the textbook's formula of a conditional normal distribution."""
    normal = make_normal(3)
    told = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0.0]])
    truth = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0.0]])
    draws = normal.draw(torch.randn(60_000, 4))
    given_ = normal.given(draws, truth, told, REACH)
    assert torch.equal(given_[2], draws[2])
    covariance = (normal.factor @ normal.factor.mT).numpy()
    for study, own in ((0, [0]), (1, [1, 3])):
        rest = [k for k in range(4) if k not in own]
        fixed = given_[study][:, own]
        assert float(fixed.std(0).max()) < 1e-5
        moved = (fixed[0] - normal.mean[study][own]).numpy()
        signs = 2 * truth[study][own].numpy() - 1
        np.testing.assert_allclose(moved * signs, np.abs(moved[0]), rtol=1e-4)  # towards the truth, all by as much
        marginal = covariance[study][np.ix_(own, own)]
        assert moved @ np.linalg.inv(marginal) @ moved == pytest.approx(chi2.ppf(0.99, len(own)), rel=1e-4)
        slope = covariance[study][np.ix_(rest, own)] @ np.linalg.inv(marginal)
        np.testing.assert_allclose(
            given_[study][:, rest].mean(0), normal.mean[study][rest].numpy() + slope @ moved, atol=0.03
        )
        expected = covariance[study][np.ix_(rest, rest)] - slope @ covariance[study][np.ix_(own, rest)]
        np.testing.assert_allclose(np.cov(given_[study][:, rest].T), expected, atol=0.05)


def test_without_correlation_nothing_else_moves():
    normal = replace(make_normal(0), factor=torch.eye(4).expand(3, 4, 4))
    draws = normal.draw(torch.randn(50, 4))
    told = torch.tensor([[0, 1, 0, 0.0]]).expand(3, -1)
    given_ = normal.given(draws, torch.ones(3, 4), told, REACH)
    torch.testing.assert_close(given_[:, :, [0, 2, 3]], draws[:, :, [0, 2, 3]])
    np.testing.assert_allclose(given_[:, 0, 1] - normal.mean[:, 1], math.sqrt(chi2.ppf(0.99, 1)), rtol=1e-5)


@pytest.mark.parametrize("covariance", ["global", "amortised"])
def test_a_covariance_is_one_for_all_or_each_study_s_own(covariance):
    torch.manual_seed(0)
    bottleneck = Bottleneck(3, 5, 2, covariance, multilabel=False)
    with torch.no_grad():
        normal = bottleneck.normal(torch.randn(4, 3), torch.randn(4, 5))
    assert torch.equal(normal.factor, normal.factor.tril())
    assert (normal.factor.diagonal(dim1=1, dim2=2) > 0).all()
    alike = torch.allclose(normal.factor[0], normal.factor[1], atol=1e-7)
    assert alike == (covariance == "global")


# the losses


def test_the_losses_equal_their_definitions():
    normal, rng = make_normal(1), torch.Generator().manual_seed(0)
    draws = normal.draw(torch.randn(7, 4, generator=rng))
    truth = (torch.rand(3, 4, generator=rng) < 0.5).float()
    known = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    p = 1 / (1 + np.exp(-draws.double().numpy()))
    chances = np.where(truth[:, None] == 1, p, 1 - p)
    chances = np.where(known[:, None], chances, 1)
    expected = -np.log(chances.prod(2).mean(1)).mean()
    assert float(concept_loss(draws, truth, known)) == pytest.approx(expected, rel=1e-5)
    inverse = np.abs(np.linalg.inv((normal.factor @ normal.factor.mT).double().numpy()))
    off = (inverse.sum((1, 2)) - np.trace(inverse, axis1=1, axis2=2)) / 12
    assert float(precision_loss(normal.factor)) == pytest.approx(off.mean(), rel=1e-4)


@pytest.mark.parametrize("multilabel", [False, True])
def test_classes_are_judged_by_the_mean_probability_of_the_samples(multilabel):
    torch.manual_seed(0)
    bottleneck = Bottleneck(3, 5, 4, "global", multilabel)
    concepts = (torch.rand(2, 9, 3) < 0.5).float()
    with torch.no_grad():
        found = bottleneck.classify(concepts)
        each = bottleneck.head(concepts)
    mean = each.sigmoid().mean(1) if multilabel else each.softmax(-1).mean(1)
    torch.testing.assert_close(found.sigmoid() if multilabel else found.softmax(-1), mean)


def test_relaxed_concepts_are_drawn_with_their_chance_and_have_a_gradient():
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, 0.0, 1.0]).requires_grad_()
    drawn = relaxed_concepts(logits.expand(20_000, -1), 0.7)
    values = drawn.detach()
    assert ((values - values.round()).abs() < 1e-6).all() and set(values.round().unique().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(values.mean(0), torch.sigmoid(logits.detach()), atol=0.015)
    drawn.mean().backward()
    assert (logits.grad > 0).all()


# what it learns


def test_an_answer_about_one_concept_tells_what_correlates_with_it(trained):
    """Nothing but the first concept is told; the class is the second."""
    test = pairs(300, 2)
    with torch.no_grad():
        normal = trained.normal(test.logits, test.features)
        told = torch.tensor([1.0, 0.0]).expand(300, -1)
        likely, logits = trained.answer(normal, test.truth, told)
        before, alone = trained.answer(normal, test.truth, torch.zeros_like(told))
    assert torch.equal(likely[:, 0], test.truth[:, 0])
    assert float((alone.argmax(1) == test.classes).float().mean()) < 0.8
    assert float((logits.argmax(1) == test.classes).float().mean()) > 0.85
    moved = likely[:, 1] - before[:, 1]
    assert (moved[test.truth[:, 0] == 1] > 0).all() and (moved[test.truth[:, 0] == 0] < 0).all()
    curve = answered_f1(trained, test, 2)
    assert curve[1] > curve[0] + 0.1 and curve[2] > 0.98


def test_a_seed_gives_the_same_bottleneck_twice_and_another_seed_another():
    config = SCBMConfig(epochs=1, batch_size=32)
    one, two, other = (
        train_bottleneck(pairs(64, 0), pairs(20, 1), 2, each, SilentCallbacks())
        for each in (config, config, replace(config, seed=1))
    )
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name
    assert not torch.equal(other.head.weight, one.head.weight)


# the whole system


def test_answers_to_images_are_those_from_the_cache_and_the_same_in_any_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(scbm, "TRIES", (("global", 1.0), ("amortised", 1.0)))
    collection = make_collection(train=40, val=16)
    data = make_prepared(tmp_path / "prepared", collection)
    torch.manual_seed(0)
    model = ConceptModel(NET, 1, 3).eval()
    (tmp_path / "features").mkdir()
    compute_features(model, data, tmp_path / "features", SilentCallbacks())
    shared = TrainedBackbone(model, FeatureCache.open(tmp_path / "features"))
    config = ConceptTrainingConfig(model=NET, precision="float32")
    context = ExperimentContext(data, config, SilentCallbacks(), shared)
    system = scbm.scbm(context)
    rows = collection.rows("test")
    whole, single = predict(system, data, rows), predict(system, data, rows, batch_size=1)
    np.testing.assert_allclose(single.probabilities, whole.probabilities, atol=1e-5)
    assert whole.peaks.shape == (len(rows), 3, 2) and (whole.explanations == 3).all()
    asked = AnswerableSCBM(system, shared, rows)
    np.testing.assert_allclose(asked.ask(np.zeros((len(rows), 3))), whole.probabilities, atol=0.03)
    np.testing.assert_allclose(asked.likely, whole.concepts, atol=0.03)
    answers = np.zeros((len(rows), 3))
    answers[:, 1] = 1
    assert np.abs(asked.ask(answers) - asked.ask(np.zeros_like(answers))).max() > 1e-3
