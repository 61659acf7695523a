"""ProtoPNet: its formulas on cases computed by hand, push and pruning on known patches, and a small training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csr.baselines import protopnet as module
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.baselines.protopnet import (
    ProtoPNet,
    cluster_and_separation,
    log_similarity,
    nearest_patches,
    other_classes,
    protopnet,
    spread_patches,
    squared_distances,
    training_distances,
    tune_last_layer,
    worth_keeping,
)
from csr.data.prepared import PreparedSet, PreparedWriter
from csr.evaluation.metrics import macro_f1
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from tests.csr.synthetic import Pixels, make_collection

SEEDS = st.integers(0, 10_000)
CONFIG = ConceptTrainingConfig(
    model=ConceptModelConfig("test_resnet", stride=4, context=None),
    augment=AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0),
    epochs=30,
    batch_size=8,
    learning_rate=1e-2,
    precision="float32",
)


def write_set(path: Path, images: np.ndarray, **splits: int) -> PreparedSet:
    """A prepared set of the given images, with as many a split as given and labels that cycle through three classes.

    It has no boxes, which smaller images than those of `make_prepared` could not hold.
    """
    collection = make_collection(**splits)
    with PreparedWriter(path, len(images), 1, images.shape[-1]) as writer:
        for row, image in enumerate(images):
            writer.write_image(row, image)
        writer.write_tables(replace(collection, boxes=collection.boxes[:0]))
    return PreparedSet.open(path)


def make_spots(path: Path) -> PreparedSet:
    """Noise images that a single patch classifies: no spot, a bright one or a dark one, anywhere."""
    rng = np.random.default_rng(0)
    images = rng.integers(110, 121, (120, 1, 32, 32), dtype=np.uint8)
    for row, image in enumerate(images):
        top, left = rng.integers(0, 25, 2)
        if row % 3:
            image[0, top : top + 8, left : left + 8] = 250 if row % 3 == 1 else 0
    return write_set(path, images, train=72, val=24, test=24)


def setting_of(data: PreparedSet, epochs: int = CONFIG.epochs) -> ExperimentContext:
    return ExperimentContext(data, replace(CONFIG, epochs=epochs), SilentCallbacks())


@pytest.fixture(scope="module")
def spots(tmp_path_factory) -> PreparedSet:
    return make_spots(tmp_path_factory.mktemp("spots") / "prepared")


@pytest.fixture(scope="module")
def trained(spots) -> tuple[ProtoPNet, ExperimentContext]:
    context = setting_of(spots)
    return protopnet(context), context


def grey_system(prototypes: list[float], owners: list[int], weights: list[list[float]]) -> ProtoPNet:
    """A system whose latent patches are the pixels' grey values and whose prototypes are grey values."""
    system = ProtoPNet(Pixels(), len(weights), concepts=2).eval()
    system.add_on = nn.Identity()
    system.prototype_vectors = nn.Parameter(torch.tensor(prototypes)[:, None])
    system.owners = torch.tensor(owners)
    system.last_layer.weight = nn.Parameter(torch.tensor(weights))
    system.prototypes = len(prototypes)
    return system


# formulas


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_squared_distances_equal_the_loop(seed):
    rng = np.random.default_rng(seed)
    z, p = rng.random((2, 5, 3, 4), np.float32), rng.random((6, 5), np.float32)
    expected = ((z[:, None] - p[None, :, :, None, None]) ** 2).sum(2)
    np.testing.assert_allclose(squared_distances(torch.tensor(z), torch.tensor(p)).numpy(), expected, atol=1e-5)


def test_squared_distances_are_as_exact_under_autocast():
    p = torch.full((1, 128), 0.5)
    z = (p + 0.01).reshape(1, 128, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        distance = squared_distances(z, p)
    assert distance.dtype == torch.float32
    assert float(distance) == pytest.approx(128 * 0.01**2, rel=1e-2)


def test_squared_distances_are_never_negative():
    p = torch.rand(40, 128, generator=torch.manual_seed(0))
    assert squared_distances(p.T[None, :, :, None], p).min() == 0


def test_log_similarity_by_hand():
    similarity = log_similarity(torch.tensor([0.0, 1.0, 1e6]))
    expected = [math.log(1e4), math.log(2 / 1.0001), 0]
    np.testing.assert_allclose(similarity.numpy(), expected, atol=1e-5)


def test_cluster_is_the_nearest_own_and_separation_the_nearest_foreign_prototype():
    nearest = torch.tensor([[1.0, 3.0, 5.0, 2.0], [4.0, 0.5, 6.0, 8.0]])
    cluster, separation = cluster_and_separation(nearest, torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1]))
    assert cluster == (1 + 6) / 2
    assert separation == (2 + 0.5) / 2


def test_last_layer_starts_at_one_to_the_own_and_minus_a_half_to_other_classes_and_is_fixed():
    system = ProtoPNet(Pixels(), 3, concepts=2)
    weight = system.last_layer.weight
    assert system.prototypes == 30
    assert system.last_layer.bias is None and not weight.requires_grad
    expected = np.full((3, 30), -0.5)
    expected[0, :10] = expected[1, 10:20] = expected[2, 20:] = 1
    np.testing.assert_array_equal(weight.detach().numpy(), expected)


def test_other_classes_masks_all_but_the_own_weight():
    mask = other_classes(torch.tensor([1, 0, 1]), 3)
    np.testing.assert_array_equal(mask.numpy(), [[True, False, True], [False, True, False], [True, True, True]])


def test_tuning_shrinks_weights_to_other_classes_alone_where_nothing_is_to_be_learned():
    system = ProtoPNet(Pixels(), 3, concepts=2)
    tune_last_layer(system.last_layer, torch.zeros(6, 30), torch.tensor([0, 1, 2] * 2), system.owners)
    other = other_classes(system.owners, 3)
    assert (system.last_layer.weight[~other] == 1).all()
    assert system.last_layer.weight[other].abs().max() < 0.02
    assert not system.last_layer.weight.requires_grad


def test_tuning_corrects_a_layer_that_is_wrong():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[-0.5, 0.2], [0.2, -0.5]])
    similarities, labels = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    assert (layer(similarities).argmax(1) != labels).all()
    tune_last_layer(layer, similarities, labels, torch.tensor([0, 1]))
    assert (layer(similarities).argmax(1) == labels).all()


def test_prototypes_stay_if_three_of_their_six_nearest_images_are_of_their_class():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    ranks = torch.arange(8.0)
    columns = [ranks, ranks.flip(0), ranks.flip(0), torch.tensor([7.0, 6, 0, 1, 2, 3, 4, 5])]
    # six nearest: rows 0–5 (three of class 0), rows 7–2 (two of class 0), the same (four of class 1), rows 2–7 (two)
    kept = worth_keeping(torch.stack(columns, 1), labels, torch.tensor([0, 0, 1, 0]))
    assert kept.tolist() == [True, False, True, False]


def test_prototypes_all_stay_if_all_would_go():
    distances, labels = torch.rand(8, 3), torch.zeros(8, dtype=torch.long)
    assert worth_keeping(distances, labels, torch.ones(3, dtype=torch.long)).all()


def test_keeping_some_prototypes_takes_the_others_share_out_of_the_logits():
    system = grey_system([0.0, 10.0, 20.0], [0, 1, 1], [[1.0, -0.5, -0.3], [-0.5, 1.0, 0.7]])
    nearest = torch.tensor([[1.0, 2.0, 3.0]])
    expected = system.classify(nearest) - system.last_layer.weight[:, 1] * log_similarity(nearest[:, 1])
    system.keep(torch.tensor([True, False, True]))
    torch.testing.assert_close(system.classify(nearest[:, [0, 2]]), expected)
    assert system.prototypes == 2
    assert system.owners.tolist() == [0, 1]
    assert system.prototype_vectors[:, 0].tolist() == [0.0, 20.0]


# where prototypes start


def test_prototypes_start_from_patches_that_lie_apart(tmp_path):
    context = setting_of(grey_set(tmp_path / "set"))
    rows = np.array([1, 3, 66])  # almost all patches are 200, one in each image is not
    patches = spread_patches(lambda images: images.float(), 4, rows, context)
    assert sorted(patches[:, 0].tolist()) == [90, 101, 104, 200]
    again = spread_patches(lambda images: images.float(), 4, rows, context)
    assert torch.equal(again, patches)


def test_prototypes_can_start_where_all_patches_are_alike(tmp_path):
    context = setting_of(grey_set(tmp_path / "set"))
    patches = spread_patches(lambda images: images.float(), 3, np.array([0, 2]), context)
    assert patches.tolist() == [[200.0]] * 3


def test_each_class_starts_from_its_own_images(spots, monkeypatch):
    seen = []

    def see(encode, count, rows, context):
        seen.append((count, set(context.data.collection.truth()[rows].tolist()), len(rows)))
        return torch.rand(count, 128)

    monkeypatch.setattr(module, "spread_patches", see)
    monkeypatch.setattr(module, "train_on_images", lambda *phase, **others: None)
    monkeypatch.setattr(module, "TUNING_STEPS", 1)
    protopnet(setting_of(spots))
    assert seen == [(10, {0}, 24), (10, {1}, 24), (10, {2}, 24)]


# push


def grey_set(path: Path) -> PreparedSet:
    """70 training images of which only three hold a pixel near 100: see the test. A val image holds 100 itself."""
    images = np.full((74, 1, 4, 4), 200, np.uint8)
    images[3, 0, 1, 2] = 90  # class 0
    images[66, 0, 3, 0] = 104  # class 0, in the second batch
    images[1, 0, 0, 0] = 101  # class 1
    images[72, 0, 2, 2] = 100  # class 0, val
    return write_set(path, images, train=70, val=3, test=1)


def test_push_takes_the_nearest_training_patch_of_the_allowed_classes(tmp_path):
    prototypes = torch.tensor([[100.0], [100.0], [100.0], [93.0]])
    allowed = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]]).bool()
    pushed = nearest_patches(lambda images: images.float(), prototypes, allowed, setting_of(grey_set(tmp_path / "set")))
    assert pushed[:, 0].tolist() == [104, 101, 101, 90]
    assert prototypes[:, 0].tolist() == [100, 100, 100, 93]


def test_push_leaves_a_prototype_whose_classes_have_no_image(tmp_path):
    context = setting_of(grey_set(tmp_path / "set"))
    pushed = nearest_patches(lambda images: images.float(), torch.tensor([[7.0]]), torch.zeros(1, 3).bool(), context)
    assert pushed.tolist() == [[7.0]]


# answers


def test_the_map_is_that_of_the_own_prototype_that_contributes_most():
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    images[0, 0, 0, 1], images[0, 0, 2, 3], images[0, 0, 3, 0] = 50, 100, 150
    # 50 is met exactly but weighs little; 100 almost and weighs most; 150 exactly, and is of the other class
    system = grey_system([50.0, 100.5, 150.0], [0, 0, 1], [[0.1, 3.0, 4.0], [0.0, 0.0, 1.0]])
    with torch.no_grad():
        answer = system.answer(images)
    assert answer.probabilities.argmax() == 0
    assert answer.maps.shape == (1, 2, 4, 4)
    assert answer.maps[0, 0].argmax() == 2 * 4 + 3
    assert answer.maps[0, 1, 2, 3] == pytest.approx(math.log(1.25 / 0.2501), rel=1e-4)
    assert answer.concepts is None
    assert answer.explanations.tolist() == [3]


def test_the_map_of_a_class_without_prototypes_is_that_of_any_prototype():
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    images[0, 0, 0, 1], images[0, 0, 2, 3] = 90, 150
    system = grey_system([100.0, 150.0], [0, 0], [[-1.0, -2.0], [1.0, 2.0]])
    with torch.no_grad():
        answer = system.answer(images)
    assert answer.probabilities.argmax() == 1
    assert answer.maps[0, 0].argmax() == 2 * 4 + 3


# the phases


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [0, 1, 0]), (2, [1, 1, 0]), (6, [1, 3, 2]), (12, [1, 6, 5]), (30, [3, 14, 13])]
)
def test_phases_share_the_budget_and_train_what_they_should(spots, monkeypatch, epochs, expected):
    seen, pushed = [], []

    def record(context, name, system, terms, *, epochs, rates=None):
        trained = {name.split(".")[0] for name, value in system.named_parameters() if value.requires_grad}
        seen.append((name, epochs, rates, trained))

    def push(encode, prototypes, allowed, context):
        pushed.append(len(seen))
        return prototypes

    monkeypatch.setattr(module, "train_on_images", record)
    monkeypatch.setattr(module, "nearest_patches", push)
    monkeypatch.setattr(module, "TUNING_STEPS", 1)
    shared = TrainedBackbone(ConceptModel(CONFIG.model, 1, 3), None)
    protopnet(replace(setting_of(spots, epochs), shared_backbone=shared))
    parts, slow = {"add_on", "prototype_vectors"}, {"backbone.": pytest.approx(1e-4 / 3e-3)}
    assert seen == [
        ("protopnet_warm_up", expected[0], None, parts),
        ("protopnet_round_1", expected[1], slow, parts | {"backbone"}),
        ("protopnet_round_2", expected[2], slow, parts | {"backbone"}),
    ]
    assert pushed == [2, 3]  # after each round


def test_a_backbone_from_scratch_is_trained_at_the_full_rate(spots, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "train_on_images", lambda *args, rates=None, **phase: seen.append(rates))
    monkeypatch.setattr(module, "TUNING_STEPS", 1)
    protopnet(setting_of(spots))
    assert len(seen) == 3
    assert not any(seen)


def test_the_budget_is_spent_exactly(trained):
    _, context = trained
    assert len(context.callbacks.history) == context.config.epochs


def test_every_prototype_is_a_latent_patch_of_an_unaugmented_training_image_of_its_class(trained):
    system, context = trained
    distances, labels = training_distances(system, context)
    own = distances.masked_fill(labels[:, None] != system.owners, torch.inf)
    assert own.amin(0).max() < 1e-4
    assert distances.median() > 1e-3  # and not because all patches are alike


def test_the_last_layer_was_tuned_on_what_the_system_sees(trained):
    system, _ = trained
    other = other_classes(system.owners, 3)
    assert system.last_layer.weight.shape == other.shape == (3, system.prototypes)
    assert (system.last_layer.weight[other] != -0.5).all()


def test_a_small_training_beats_chance(trained):
    system, context = trained
    rows = context.data.collection.rows("test")
    predictions = predict(system, context.data, rows)
    truth = context.data.collection.truth()[rows]
    assert macro_f1(truth, predictions.probabilities.argmax(1), 3) > 0.8
    assert predictions.peaks.shape == (len(rows), 3, 2)
    assert (predictions.explanations == system.prototypes).all()
