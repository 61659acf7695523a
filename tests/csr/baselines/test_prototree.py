"""ProtoTree: paths, leaves, pruning and routing on trees drawn by hand, and a small training."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csr.baselines import protopnet
from csr.baselines import prototree as prototree_module
from csr.baselines.map_alignment import in_place
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.baselines.prototree import (
    LeafLearner,
    ProtoTree,
    complete_tree,
    greedy_leaf,
    leaf_gain,
    log_mixture,
    log_path_probabilities,
    prototree,
    reachable_classes,
    root,
    worth_keeping,
)
from csr.evaluation.metrics import macro_f1
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.images import image_batches
from tests.csr.baselines.test_protopnet import Pixels, make_spots, setting_of

SEEDS = st.integers(0, 10_000)
# a tree of depth 2: node 0 above nodes 1 (leaves 0, 1) and 2 (leaves 2, 3)
DEPTH_2 = [[-1, -1, 0], [-1, 1, 0], [1, 0, -1], [1, 0, 1]]
SURE_0, SURE_1, UNSURE = [9.0, 0.0], [0.0, 9.0], [0.0, 0.0]


def softmax(values: np.ndarray) -> np.ndarray:
    grown = np.exp(values - values.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def paths_by_hand(right: list[float]) -> list[float]:
    """Probabilities of the leaves of a complete tree whose nodes go right with the given probabilities."""

    def below(node: int, arriving: float) -> list[float]:
        if node >= len(right):
            return [arriving]
        return below(2 * node + 1, arriving * (1 - right[node])) + below(2 * node + 2, arriving * right[node])

    return below(0, 1.0)


def grey_tree(prototypes: list[float], leaves: list[list[float]]) -> ProtoTree:
    """A tree whose latent patches are grey values divided by 10, and whose prototypes are such values."""
    tree = ProtoTree(Pixels(), classes=len(leaves[0]), concepts=2, depth=int(math.log2(len(leaves)))).eval()
    tree.add_on = nn.Identity()
    tree.encode = lambda images: images.float() / 10
    tree.prototype_vectors = nn.Parameter(torch.tensor(prototypes)[:, None])
    tree.leaves = torch.tensor(leaves)
    return tree


# the soft tree


def test_complete_tree_by_hand():
    np.testing.assert_array_equal(complete_tree(2).numpy(), DEPTH_2)
    assert complete_tree(5).shape == (32, 31)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 4))
def test_path_probabilities_are_the_products_along_the_paths(seed, depth):
    distances = np.random.default_rng(seed).uniform(0.01, 3, (3, 2**depth - 1)).astype(np.float32)
    paths = log_path_probabilities(torch.tensor(distances), complete_tree(depth)).exp().numpy()
    expected = [paths_by_hand(list(np.exp(-row))) for row in distances.astype(float)]
    np.testing.assert_allclose(paths, expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(paths.sum(1), 1, atol=1e-5)


def test_paths_are_finite_and_can_be_differentiated_where_a_prototype_is_met_or_far_away():
    squared = torch.tensor([[0.0, 1e4, 0.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        paths = log_path_probabilities(root(squared), complete_tree(2))
    paths.sum().backward()
    assert paths.dtype == torch.float32
    assert torch.isfinite(paths).all()
    assert torch.isfinite(squared.grad).all()
    assert paths.argmax() == 3


def test_going_right_takes_the_distance_and_not_its_square():
    tree = grey_tree([0.0], [SURE_0, SURE_1])
    tree.encode = lambda images: torch.tensor([0.3, 0.4]).reshape(1, 2, 1, 1)
    tree.prototype_vectors = nn.Parameter(torch.zeros(1, 2))
    paths, _ = tree(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
    assert float(paths[0, 1].detach()) == pytest.approx(-0.5, rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_the_prediction_is_the_mixture_of_the_leaves(seed):
    rng = np.random.default_rng(seed)
    paths, leaves = softmax(rng.normal(0, 2, (3, 4))), rng.normal(0, 2, (4, 5))
    mixture = log_mixture(torch.tensor(np.log(paths)), torch.tensor(leaves)).exp()
    np.testing.assert_allclose(mixture.numpy(), paths @ softmax(leaves), rtol=1e-6)


# leaves


def gain_by_hand(paths, leaves, labels):
    gain, shares = np.zeros_like(leaves), softmax(leaves)
    for path, label in zip(paths, labels, strict=True):
        target = np.eye(leaves.shape[1])[label]
        predicted = path @ shares
        for leaf in range(len(leaves)):
            gain[leaf] += shares[leaf] * target * path[leaf] / predicted
    return gain


def random_batch(rng, leaves):
    """π B×L, log π, log ŷ and classes of a batch of 6."""
    paths, labels = softmax(rng.normal(0, 2, (6, len(leaves)))), rng.integers(0, leaves.shape[1], 6)
    logs = torch.tensor(np.log(paths))
    return paths, logs, log_mixture(logs, torch.tensor(leaves)), labels


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_leaf_gain_equals_the_loop_and_hands_out_one_an_image(seed):
    rng = np.random.default_rng(seed)
    leaves = rng.normal(0, 2, (4, 3))
    paths, logs, mixture, labels = random_batch(rng, leaves)
    gain = leaf_gain(logs, mixture, torch.tensor(leaves), torch.tensor(labels)).numpy()
    np.testing.assert_allclose(gain, gain_by_hand(paths, leaves, labels), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(gain.sum(0), np.bincount(labels, minlength=3))


def test_leaves_lose_a_share_of_what_they_were_when_the_epoch_began():
    rng = np.random.default_rng(0)
    tree = ProtoTree(Pixels(), classes=3, concepts=2, depth=2)
    tree.leaves = tree.leaves.double()
    expected, learner = np.zeros((4, 3)), LeafLearner(tree, batches=2)
    start = expected
    for step in range(6):
        if step % 2 == 0:
            start = expected
        paths, logs, mixture, labels = random_batch(rng, expected)
        gain = gain_by_hand(paths, expected, labels)
        expected = np.maximum(expected - start / 2, 0) + gain
        learner.update(logs, mixture, torch.tensor(labels))
        np.testing.assert_allclose(tree.leaves.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert expected.sum() == pytest.approx(12)  # an epoch's images: what earlier epochs gave is gone


def test_leaves_never_fall_below_zero():
    tree = ProtoTree(Pixels(), classes=2, concepts=2, depth=1)
    learner = LeafLearner(tree, batches=1)
    tree.leaves[:] = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    learner.batches = 2
    learner.start = tree.leaves * 4  # more than there is, as rounding may have it
    learner.seen = 1
    logs = torch.tensor([[0.9, 0.1]]).log()
    learner.update(logs, log_mixture(logs, tree.leaves), torch.tensor([0]))
    assert tree.leaves.min() == 0
    assert tree.leaves[0, 0] > 0


def test_leaves_are_no_parameters():
    assert "leaves" not in dict(ProtoTree(Pixels(), classes=2, concepts=2).named_parameters())


# pruning


@pytest.mark.parametrize(
    ("leaves", "kept_leaves", "kept_nodes"),
    [
        ([UNSURE, SURE_0, SURE_1, SURE_0], [1, 2, 3], [0, 2]),  # leaf 1 takes the place of node 1
        ([UNSURE, UNSURE, SURE_1, SURE_0], [2, 3], [2]),  # and node 2 that of the root
        ([UNSURE, SURE_0, UNSURE, SURE_1], [1, 3], [0]),
        ([SURE_1, SURE_0, SURE_1, SURE_0], [0, 1, 2, 3], [0, 1, 2]),
        ([UNSURE, UNSURE, UNSURE, UNSURE], [0, 1, 2, 3], [0, 1, 2]),  # nothing would be left
        ([UNSURE, UNSURE, SURE_1, UNSURE], [0, 1, 2, 3], [0, 1, 2]),  # no decision would be left
    ],
)
def test_pruning_drops_uniform_leaves_and_nodes_with_one_side(leaves, kept_leaves, kept_nodes):
    of_leaves, of_nodes = worth_keeping(torch.tensor(DEPTH_2), torch.tensor(leaves))
    assert of_leaves.nonzero()[:, 0].tolist() == kept_leaves
    assert of_nodes.nonzero()[:, 0].tolist() == kept_nodes


@pytest.mark.parametrize(("above", "stays"), [(0.009, False), (0.011, True)])
def test_a_leaf_stays_if_it_is_surer_than_uniform_by_more_than_a_hundredth(above, stays):
    leaf = np.log([0.2 + above, *[(0.8 - above) / 4] * 4])
    leaves = torch.tensor(np.stack([leaf, 9 * np.eye(5)[0], 9 * np.eye(5)[1], 9 * np.eye(5)[2]]))
    assert worth_keeping(torch.tensor(DEPTH_2), leaves)[0][0] == stays


def test_the_sibling_takes_the_place_of_a_node_that_lost_its_other_side():
    tree = grey_tree([1.0, 2.0, 3.0], [UNSURE, SURE_0, SURE_1, SURE_0])
    images = torch.full((1, 1, 2, 2), 25, dtype=torch.uint8)
    tree.prune()
    paths, mixture = tree(images)
    first, third = math.exp(-1.5), math.exp(-0.5)
    expected = [1 - first, first * (1 - third), first * third]
    np.testing.assert_allclose(paths.exp().detach().numpy()[0], expected, rtol=1e-4)
    np.testing.assert_allclose(mixture.exp().sum().item(), 1, rtol=1e-5)
    assert tree.prototypes == 2
    assert tree.prototype_vectors[:, 0].tolist() == [1.0, 3.0]


def test_a_node_may_show_the_classes_that_lead_below_it():
    leaves = torch.tensor([[0.0, 5, 0], [0, 0, 5], [5, 0, 0], [5, 1, 0]])
    allowed = reachable_classes(torch.tensor(DEPTH_2), leaves)
    np.testing.assert_array_equal(allowed.numpy(), [[1, 1, 1], [0, 1, 1], [1, 0, 0]])


# answers


def test_greedy_routing_goes_right_above_one_half():
    near, far = math.log(2) - 0.01, math.log(2) + 0.01
    distances = torch.tensor([[far, far, near], [far, near, near], [near, near, far], [near, far, near]])
    assert greedy_leaf(distances, torch.tensor(DEPTH_2)).tolist() == [0, 1, 2, 3]


def test_greedy_routing_in_a_pruned_tree_asks_only_the_nodes_that_are_left():
    turns = torch.tensor([[-1, 0], [1, -1], [1, 1]])
    assert greedy_leaf(torch.tensor([[5.0, 0.1], [0.1, 5.0], [0.1, 0.1]]), turns).tolist() == [0, 1, 2]


def test_the_map_is_that_of_the_most_present_prototype_on_the_greedy_path():
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    images[0, 0, 0, 1], images[0, 0, 2, 3], images[0, 0, 3, 0] = 50, 100, 150
    # right at the root (5.2 against 5.0), right at node 2 (10.1 against 10.0); node 1 (15.0) is met but not asked
    tree = grey_tree([5.2, 15.0, 10.1], [SURE_0, SURE_0, SURE_0, SURE_1])
    with torch.no_grad():
        answer = tree.answer(images)
    assert answer.explanations.tolist() == [2]
    assert answer.maps.shape == (1, 2, 4, 4)
    assert answer.maps[0, 0].argmax() == 2 * 4 + 3
    assert answer.maps[0, 1, 2, 3] == pytest.approx(math.exp(-0.1), rel=1e-4)
    assert answer.concepts is None


def test_probabilities_are_those_of_the_soft_tree():
    tree = grey_tree([1.0], [SURE_0, SURE_1])
    images = torch.full((1, 1, 2, 2), 15, dtype=torch.uint8)  # half a unit away: right, but not surely
    with torch.no_grad():
        answer = tree.answer(images)
    sure = 1 / (1 + math.exp(-9))
    right = math.exp(-0.5)
    np.testing.assert_allclose(answer.probabilities[0, 1].item(), right * sure + (1 - right) * (1 - sure), rtol=1e-4)


# a small training


@pytest.mark.parametrize(("start", "rates"), [("pretrained", {"backbone.body.": 0.01}), ("scratch", {})])
def test_a_pretrained_backbone_learns_slowly_but_for_its_last_layers(tmp_path, monkeypatch, start, rates):
    seen = []

    def record(context, name, system, terms, *, epochs, rates=None):
        held = {key.split(".")[1] for key, value in system.named_parameters() if not value.requires_grad}
        seen.append((name, epochs, rates, held))

    monkeypatch.setattr(protopnet, "train_on_images", record)
    monkeypatch.setattr(prototree_module, "train_on_images", record)
    net = ConceptModelConfig("test_convnext", stride=8, context=16, width=16)
    shared = TrainedBackbone(ConceptModel(net, 1, 3), None) if start == "pretrained" else None
    prototree(replace(setting_of(make_spots(tmp_path / "prepared"), 12), shared_backbone=shared))
    assert seen == [("prototree_warm_up", 1, None, {"body"}), ("prototree_joint", 11, rates, set())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[ProtoTree, ExperimentContext]:
    context = setting_of(make_spots(tmp_path_factory.mktemp("spots") / "prepared"))
    return prototree(context), context


def test_the_budget_is_spent_exactly(trained):
    _, context = trained
    assert len(context.callbacks.history) == context.config.epochs


def test_every_prototype_is_a_latent_patch_of_a_training_image_of_a_class_below_its_node(trained):
    system, context = trained
    allowed = reachable_classes(system.turns, system.leaves)
    rows = context.data.collection.rows("train")
    with torch.no_grad(), in_place(system.backbone):
        squared = torch.cat([system.squared_distances(x) for _, x in image_batches(context.data, rows, 32)])
    foreign = ~allowed[:, context.class_labels(rows)].T
    nearest = squared.amin((2, 3)).masked_fill(foreign, torch.inf).amin(0)
    assert nearest.max() < 1e-3
    assert squared.median() > 1e-2  # and not because all patches are alike


def test_a_small_training_beats_chance(trained):
    system, context = trained
    rows = context.data.collection.rows("test")
    predictions = predict(system, context.data, rows)
    truth = context.data.collection.truth()[rows]
    assert macro_f1(truth, predictions.probabilities.argmax(1), 3) > 0.8
    assert predictions.peaks.shape == (len(rows), 3, 2)
    assert predictions.explanations.min() >= 1
    assert predictions.explanations.max() <= 5
    assert system.prototypes == len(system.prototype_vectors) <= 31
