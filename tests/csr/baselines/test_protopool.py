"""ProtoPool: its formulas and answer on cases computed by hand, and a small training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csr.baselines import protopool as module
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.baselines.protopool import (
    ProtoPool,
    cluster_and_separation,
    focal_similarity,
    orthogonality,
    protopool,
    sharpness_at,
)
from csr.evaluation.metrics import macro_f1
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache
from csr.training.images import image_batches
from tests.csr.baselines.test_protopnet import make_spots
from tests.csr.synthetic import Pixels

SEEDS = st.integers(0, 10_000)
CONFIG = ConceptTrainingConfig(
    model=ConceptModelConfig("test_resnet", stride=8, context=None),
    augment=AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0),
    epochs=12,
    batch_size=8,
    learning_rate=4e-3,
    precision="float32",
)


def grey_system(pool: list[float], filled: list[list[int]], weights: list[list[float]] | None = None) -> ProtoPool:
    """A system whose patches are grey values, whose prototypes are grey values, and whose slots are filled as given."""
    classes, slots = len(filled), len(filled[0])
    system = ProtoPool(Pixels(), classes, concepts=2, pool=len(pool), slots=slots, depth=1).eval()
    system.add_on = nn.Identity()
    system.pool.data = torch.tensor(pool)[:, None]
    system.choice.data = nn.functional.one_hot(torch.tensor(filled), len(pool)).float()
    if weights is not None:
        system.last_layer.weight.data = torch.tensor(weights)
    return system


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_spots(tmp_path_factory.mktemp("spots") / "prepared")


@pytest.fixture(scope="module")
def trained(data):
    """The trained system, its context, and of each phase its epochs and what it trained."""
    phases = []
    warm_up, train_on_images = module.warm_up, module.train_on_images

    def see(system: ProtoPool) -> dict[str, bool]:
        return {name: parameter.requires_grad for name, parameter in system.named_parameters()}

    def record_warm_up(context, name, system, backbone, terms):
        left = warm_up(context, name, system, backbone, terms)
        phases.append((context.config.epochs - left, system.sharpness, see(system)))
        return left

    def record(context, name, system, terms, *, epochs, earliest, rates):
        train_on_images(context, name, system, terms, epochs=epochs, earliest=earliest, rates=rates)
        phases.append((epochs, system.sharpness, see(system)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "warm_up", record_warm_up)
        patch.setattr(module, "train_on_images", record)
        context = ExperimentContext(data, CONFIG, SilentCallbacks())
        return protopool(context), context, phases


# focal similarity


def test_focal_similarity_by_hand():
    distances = torch.tensor([[[[0.0, 1.0], [1.0, 3.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    at_0, at_1, at_3 = math.log(1 / 1e-4), math.log(2 / 1.0001), math.log(4 / 3.0001)
    expected = [at_0 - (at_0 + 2 * at_1 + at_3) / 4, 0]
    np.testing.assert_allclose(focal_similarity(distances).numpy(), [expected], rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_focal_similarity_is_the_best_minus_the_mean_of_similarities(seed):
    distances = torch.tensor(np.random.default_rng(seed).exponential(1, (2, 3, 2, 4)))
    focal = focal_similarity(distances)
    for b in range(2):
        for p in range(3):
            cells = [math.log((d + 1) / (d + 1e-4)) for d in distances[b, p].flatten().tolist()]
            assert float(focal[b, p]) == pytest.approx(max(cells) - sum(cells) / 8, abs=1e-9)


# slots


def test_a_training_assignment_is_a_distribution_for_every_slot():
    torch.manual_seed(0)
    system = ProtoPool(Pixels(), 3, concepts=1, pool=7, slots=4)
    assignment = system.assignment()
    assert assignment.shape == (3, 4, 7)
    np.testing.assert_allclose(assignment.sum(-1).detach().numpy(), 1, rtol=1e-5)
    assert not torch.equal(assignment, system.assignment())  # drawn anew
    assert assignment.max(-1).values.median() < 0.99  # and not hard yet


def test_slots_harden_to_their_best_prototype():
    torch.manual_seed(0)
    system = ProtoPool(Pixels(), 3, concepts=1, pool=7, slots=4)
    system.choice.data = torch.stack([torch.randperm(7) for _ in range(12)]).view(3, 4, 7) * 0.1
    best = system.choice.argmax(-1)
    system.sharpness = 1000.0
    assignment = system.assignment()
    assert (assignment.max(-1).values > 0.999).all()
    assert torch.equal(assignment.argmax(-1), best)
    system.eval()
    assert torch.equal(system.assignment(), nn.functional.one_hot(best, 7).float())


def test_a_soft_slot_learns_and_a_drawn_one_is_differentiable():
    system = ProtoPool(Pixels(), 2, concepts=1, pool=5, slots=2)
    (system.assignment() * torch.arange(5.0)).sum().backward()
    assert (system.choice.grad != 0).any(-1).all()


def test_sharpness_rises_with_the_root_of_progress_and_stays():
    assert [sharpness_at(share) for share in (0, 0.25, 1, 1.3)] == [1, 500, 1000, 1000]
    assert sharpness_at(1e-9) == 1


def test_slots_mix_the_focal_similarities_of_their_prototypes():
    system = ProtoPool(Pixels(), 2, concepts=1, pool=3, slots=2)
    assignment = torch.tensor([[[1.0, 0, 0], [0, 0.5, 0.5]], [[0, 0, 1.0], [0.2, 0.3, 0.5]]])
    slots = system.slots(torch.tensor([[1.0, 2.0, 4.0]]), assignment)
    np.testing.assert_allclose(slots.numpy(), [[1, 3, 4, 0.2 + 0.6 + 2]], rtol=1e-6)


def test_logits_are_the_sums_over_a_classes_own_slots_at_first():
    system = ProtoPool(Pixels(), 3, concepts=1, pool=5, slots=2)
    assert not system.last_layer.weight.requires_grad
    logits = system.logits(torch.tensor([[1.0, 2.0, 10.0, 20.0, 100.0, 200.0]]))
    assert logits.tolist() == [[3, 30, 300]]


# losses


def test_orthogonality_is_zero_for_disjoint_slots_whatever_other_classes_hold():
    assignment = torch.eye(4)[torch.tensor([[0, 1], [1, 0], [2, 3]])]
    assert float(orthogonality(assignment)) == pytest.approx(0, abs=1e-6)


def test_orthogonality_counts_every_slot_that_repeats_another():
    assignment = torch.eye(4)[torch.tensor([[0, 0, 1], [1, 2, 3]])]
    assert float(orthogonality(assignment)) == pytest.approx(2 / 6)  # two of six slots have one double each


def test_orthogonality_by_hand():
    assignment = torch.tensor([[[0.6, 0.8, 0.0], [0.0, 1.0, 0.0]]])
    assert float(orthogonality(assignment)) == pytest.approx(0.8, rel=1e-5)
    assert float(orthogonality(assignment * 0.5)) == pytest.approx(0.8, rel=1e-5)  # cosines


def test_cluster_is_the_nearest_held_and_separation_the_nearest_other_prototype():
    nearest = torch.tensor([[1.0, 3.0, 5.0, 2.0], [4.0, 0.5, 6.0, 8.0]])
    held = torch.tensor([[True, True, False, False], [False, False, True, True]])
    cluster, separation = cluster_and_separation(nearest, held)
    assert cluster == (1 + 6) / 2
    assert separation == (2 + 0.5) / 2


def test_distances_are_exact_under_autocast():
    torch.manual_seed(0)
    system = ProtoPool(Pixels(), 2, concepts=1)
    images = torch.randint(0, 20, (2, 1, 4, 4), dtype=torch.uint8)
    expected = system.distances(images)
    with torch.autocast("cpu", torch.bfloat16):
        distances = system.distances(images)
        logits = system.logits(system.slots(focal_similarity(distances), system.assignment()))
    assert distances.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(distances, expected)
    patches = system.patches(images)
    by_hand = ((patches[:, None] - system.pool[None, :, :, None, None]) ** 2).sum(2)
    torch.testing.assert_close(distances, by_hand, atol=1e-3, rtol=1e-3)


# answers


def spotted() -> torch.Tensor:
    """One 4×4 image: 0 everywhere but 50 at (0, 1), 100 at (2, 3) and 150 at (3, 0)."""
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    images[0, 0, 0, 1], images[0, 0, 2, 3], images[0, 0, 3, 0] = 50, 100, 150
    return images


def test_an_answer_by_hand():
    # class 0 holds 50 twice, class 1 holds 100 and 150; nobody holds 200
    system = grey_system([50.0, 100.5, 150.0, 200.0], [[0, 0], [1, 2]])
    with torch.no_grad():
        answer = system.answer(spotted())
    grey = np.array([0] * 13 + [50, 100, 150])
    cells = [np.log(((grey - p) ** 2 + 1) / ((grey - p) ** 2 + 1e-4)) for p in (50, 100.5, 150)]
    focal = [values.max() - values.mean() for values in cells]
    logits = np.array([2 * focal[0], focal[1] + focal[2]])
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(answer.probabilities.numpy(), [expected], rtol=1e-4)
    assert answer.concepts is None
    assert answer.explanations.tolist() == [3]
    assert answer.maps.shape == (1, 2, 4, 4)
    assert answer.maps[0, 0].argmax() == answer.maps[0, 1].argmax() == 1  # prototype 50 for class 0
    assert answer.maps[0, 0, 0, 1] == pytest.approx(math.log(1e4), rel=1e-4)


def test_a_prototype_contributes_through_all_its_slots_and_only_to_the_predicted_class():
    # to class 0, 50 adds 3 + 3 through the slots of both classes and 150 adds 5; to class 1, 150 adds most
    filled, weights = [[0, 2], [0, 1]], [[3.0, 5.0, 3.0, 0.0], [0.0, 6.0, 0.0, 0.0]]
    with torch.no_grad():
        answer = grey_system([50.0, 100.0, 150.0], filled, weights).answer(spotted())
        assert answer.probabilities.argmax() == 0
        assert answer.maps[0, 0].argmax() == 1
        weights[1][1] = 60.0
        answer = grey_system([50.0, 100.0, 150.0], filled, weights).answer(spotted())
        assert answer.probabilities.argmax() == 1
        assert answer.maps[0, 0].argmax() == 3 * 4


def test_prototypes_that_fill_no_slot_are_not_used():
    assert grey_system([0.0] * 6, [[4, 1], [1, 1]]).used().tolist() == [1, 4]


# the phases


def test_the_phases_share_the_budget_and_the_last_layer_waits(trained):
    system, context, phases = trained
    assert len(context.callbacks.history) == context.config.epochs
    assert [epochs for epochs, _, _ in phases] == [1, 11]
    for _, _, trainable in phases:
        assert not trainable["last_layer.weight"]
        assert trainable["pool"] and trainable["choice"] and trainable["add_on.0.weight"]
    own = nn.functional.one_hot(system.owners).T
    assert (system.last_layer.weight != own).all()  # but was tuned in the end


def test_slots_are_hard_before_training_ends(trained):
    _, _, phases = trained
    warm_steps, annealing = 9, 0.75 * 12 * 9  # 72 images in batches of 8
    assert phases[0][1] == pytest.approx(1000 * math.sqrt((warm_steps - 1) / annealing))
    assert phases[1][1] == 1000


def test_every_prototype_in_use_is_a_training_patch_of_a_class_that_holds_it(trained):
    system, context, _ = trained
    rows = context.data.collection.rows("train")
    with torch.no_grad():
        distances = torch.cat([system.distances(images) for _, images in image_batches(context.data, rows, 64)])
    nearest, held = distances.amin((2, 3)), system.assignment().amax(1)[context.class_labels(rows)] > 0
    own = nearest.masked_fill(~held, torch.inf).amin(0)
    assert own[system.used()].max() < 1e-4
    assert distances.median() > 1e-3  # and not because all patches are alike


def test_only_prototypes_in_use_are_counted(trained):
    system, _, _ = trained
    assert system.prototypes == len(set(system.choice.argmax(-1).flatten().tolist()))
    assert 10 <= system.prototypes <= 30


def test_slots_of_a_class_hold_different_prototypes(trained):
    system, _, _ = trained
    for held in system.choice.argmax(-1):
        assert len(held.unique()) >= 9


def test_a_small_training_beats_chance(trained, data):
    system, _, _ = trained
    rows = data.collection.rows("test")
    predictions = predict(system, data, rows)
    assert macro_f1(data.collection.truth()[rows], predictions.probabilities.argmax(1), 3) > 0.8
    assert (predictions.explanations == system.prototypes).all()


@pytest.mark.parametrize(("pretrained", "expected"), [(True, {"backbone.": 1 / 30}), (False, {})])
def test_a_pretrained_backbone_is_started_from_and_learns_slowly(data, monkeypatch, pretrained, expected):
    model = ConceptModel(CONFIG.model, 1, 3)
    shared = TrainedBackbone(model, FeatureCache(np.empty(0), np.empty(0))) if pretrained else None
    seen = []

    def record(context, name, system, terms, *, epochs, earliest, rates):
        seen.append(rates)

    monkeypatch.setattr(module, "warm_up", lambda context, *others: context.config.epochs)
    monkeypatch.setattr(module, "train_on_images", record)
    system = protopool(ExperimentContext(data, CONFIG, SilentCallbacks(), shared))
    assert seen == [expected]
    own, given = system.backbone.state_dict(), model.backbone.state_dict()
    same = all(torch.equal(own[key], given[key]) for key in own if key.endswith("weight"))
    assert same == pretrained
