"""PIP-Net: its losses, head and answer on cases computed by hand, its two views, and a small training."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csr.baselines import pipnet as module
from csr.baselines.map_alignment import in_place
from csr.baselines.pipnet import NonNegativeHead, PIPNet, alignment, pipnet, tanh_loss, train_scores
from csr.baselines.protocol import ExperimentContext, predict
from csr.evaluation.metrics import macro_f1
from csr.network.concept_model import ConceptModelConfig
from csr.training.augmentation import AugmentConfig, augment, move, window
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from tests.csr.synthetic import make_collection, make_prepared

SEEDS = st.integers(0, 10_000)
CONFIG = ConceptTrainingConfig(
    model=ConceptModelConfig("test_resnet", stride=8, context=None),
    epochs=14,
    batch_size=8,
    learning_rate=4e-3,
    precision="float32",
)


class Shares(nn.Module):
    """A backbone whose softmax over channels is each channel's share of a pixel's grey values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.map_shift = (0, 0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().log()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", make_collection(train=80))


@pytest.fixture(scope="module")
def trained(data):
    """The trained system, its context, its phases on images, what these showed it, and how often its head shrank."""
    phases, views, shrunk = [], [], []
    train_on_images, forward, shrink = module.train_on_images, PIPNet.forward, NonNegativeHead.shrink

    def record(context, name, system, terms, *, epochs, **others):
        phases.append((name, epochs))
        train_on_images(context, name, system, terms, epochs=epochs, **others)

    def see(system, images):
        if system.training:
            views.append(images.detach().clone())
        return forward(system, images)

    def count(head):
        shrunk.append(head)
        shrink(head)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_on_images", record)
        patch.setattr(PIPNet, "forward", see)
        patch.setattr(NonNegativeHead, "shrink", count)
        context = ExperimentContext(data, CONFIG, SilentCallbacks())
        system = pipnet(context)
    return system, context, phases, views, len(shrunk)


def softmaxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    grown = np.exp(rng.normal(0, 2, shape))
    return grown / grown.sum(1, keepdims=True)


# losses


def test_alignment_of_equal_one_hot_patches_is_zero():
    patches = torch.zeros(2, 3, 2, 2)
    patches[:, 1] = 1
    assert float(alignment(patches, patches)) == pytest.approx(0, abs=1e-6)


def test_alignment_of_equal_patches_that_are_undecided_is_not_zero():
    patches = torch.full((1, 4, 1, 1), 0.25)
    assert float(alignment(patches, patches)) == pytest.approx(math.log(4))


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_alignment_is_the_mean_over_patches_of_the_negative_log_inner_product(seed):
    rng = np.random.default_rng(seed)
    first, second = softmaxes(rng, 2, 5, 2, 3), softmaxes(rng, 2, 5, 2, 3)
    losses = [
        -math.log(sum(first[b, d, i, j] * second[b, d, i, j] for d in range(5)))
        for b in range(2)
        for i in range(2)
        for j in range(3)
    ]
    assert float(alignment(torch.tensor(first), torch.tensor(second))) == pytest.approx(np.mean(losses), rel=1e-6)


def test_alignment_pulls_each_view_with_half_the_weight_while_the_other_is_held_still():
    rng = np.random.default_rng(0)
    first = torch.tensor(softmaxes(rng, 1, 3, 2, 2), requires_grad=True)
    second = torch.tensor(softmaxes(rng, 1, 3, 2, 2), requires_grad=True)
    alignment(first, second).backward()
    inner = (first * second).sum(1, keepdim=True).detach()
    torch.testing.assert_close(first.grad, -second.detach() / inner / 4 / 2)
    torch.testing.assert_close(second.grad, -first.detach() / inner / 4 / 2)


def test_tanh_loss_by_hand():
    scores = torch.tensor([[0.5, 0.0], [0.7, 0.3]])
    expected = -(math.log(math.tanh(1.2)) + math.log(math.tanh(0.3))) / 2
    assert float(tanh_loss(scores)) == pytest.approx(expected, rel=1e-5)


def test_tanh_loss_of_a_prototype_that_is_nowhere_is_finite_and_large():
    scores = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = tanh_loss(scores)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-(math.log(math.tanh(1)) + math.log(1e-8)) / 2, rel=1e-5)
    assert scores.grad[0, 1] < -1e6 and torch.isfinite(scores.grad).all()


# the head


def head_of(weight: list[list[float]]) -> NonNegativeHead:
    head = NonNegativeHead(len(weight[0]), len(weight))
    head.weight.data = torch.tensor(weight)
    return head


def test_the_head_counts_positive_weights_alone_and_squares_what_it_sums():
    head = head_of([[1.0, -2.0, 0.0], [0.5, 3.0, 1.0]])
    logits = head(torch.tensor([[1.0, 0.5, 0.0]]))
    np.testing.assert_allclose(logits.detach().numpy(), [[math.log(1 + 1), math.log(1 + 4)]], rtol=1e-6)


def test_the_heads_weights_start_near_one():
    torch.manual_seed(0)
    weight = NonNegativeHead(500, 4).weight.detach()
    assert float(weight.mean()) == pytest.approx(1, abs=0.02)
    assert float(weight.std()) == pytest.approx(0.1, abs=0.01)


def test_shrinking_takes_a_thousandth_off_and_stops_at_zero():
    head = head_of([[1.0, 0.0004, 0.0, -0.5]])
    head.shrink()
    np.testing.assert_allclose(head.weight.detach().numpy(), [[0.999, 0, 0, 0]], rtol=1e-6)


def test_pruning_zeroes_small_weights_and_prototypes_that_never_fire():
    head = head_of([[0.5, 0.0009, 0.7, 0.0], [0.0, 0.2, 0.7, 0.0008]])
    assert head.relevant().tolist() == [True, True, True, False]
    head.prune(torch.tensor([True, True, False, True]))
    expected = torch.tensor([[0.5, 0, 0, 0], [0, 0.2, 0, 0]])
    assert torch.equal(head.weight, expected)
    assert head.relevant().tolist() == [True, True, False, False]


# patches, scores and answers


def test_scores_are_the_maxima_over_patches_of_the_softmax_over_prototypes():
    images = torch.tensor([[[[10, 80]], [[30, 20]]]], dtype=torch.uint8)  # two channels, one row of two patches
    patches, scores = PIPNet(Shares(2), 3, concepts=1)(images)
    np.testing.assert_allclose(patches[0, :, 0].numpy(), [[0.25, 0.8], [0.75, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(scores.numpy(), [[0.8, 0.75]], rtol=1e-6)


def test_softmax_head_and_losses_are_exact_under_autocast():
    torch.manual_seed(0)
    system = PIPNet(Shares(40), 3, concepts=1)
    images = torch.randint(1, 256, (2, 40, 3, 3), dtype=torch.uint8)
    patches, scores = system(images)
    with torch.autocast("cpu", torch.bfloat16):
        again, scored = system(images)
        logits, aligned = system.head(scored), alignment(again, again.flip(0))
    assert logits.dtype == aligned.dtype == scored.dtype == torch.float32
    torch.testing.assert_close(logits, system.head(scores))
    torch.testing.assert_close(aligned, alignment(patches, patches.flip(0)))


def handmade() -> tuple[PIPNet, torch.Tensor]:
    """Two classes, four prototypes. Shares in the patches: 0 peaks at (0, 0), 1 at (0, 1), 2 nowhere, 3 at (1, 1)."""
    system = PIPNet(Shares(4), 2, concepts=3).eval()
    system.head.weight.data = torch.tensor([[1.0, 2.0, 100.0, 0.0], [1.5, 0.0, 0.0, 0.0005]])
    image = torch.tensor([[[90, 5], [46, 20]], [[4, 80], [40, 20]], [[4, 9], [9, 9]], [[2, 6], [5, 51]]])
    return system, image[None].to(torch.uint8)


def test_an_answer_by_hand():
    system, images = handmade()
    with torch.no_grad():
        answer = system.answer(images)
    # scores 0.9, 0.8, 0.09 and 0.51: the third is too low to count, whatever its weight
    outputs = np.array([0.9 + 2 * 0.8, 1.5 * 0.9 + 0.0005 * 0.51])
    expected = (1 + outputs**2) / (1 + outputs**2).sum()
    np.testing.assert_allclose(answer.probabilities.numpy(), [expected], rtol=1e-5)
    assert answer.concepts is None
    assert answer.explanations.tolist() == [2]  # 0 and 1; 2 does not fire, 3 has no weight that matters
    assert answer.maps.shape == (1, 3, 2, 2)
    for k in range(3):  # prototype 1 contributes 1.6 to class 0, prototype 0 only 0.9
        np.testing.assert_allclose(answer.maps[0, k].numpy(), [[0.04, 0.8], [0.4, 0.2]], rtol=1e-5)


def test_the_map_follows_the_predicted_class():
    system, images = handmade()
    system.head.weight.data[1, 0] = 9
    with torch.no_grad():
        answer = system.answer(images)
    assert answer.probabilities.argmax() == 1
    np.testing.assert_allclose(answer.maps[0, 0].numpy(), [[0.9, 0.05], [0.46, 0.2]], rtol=1e-5)


def test_an_image_in_which_nothing_fires_is_of_every_class_alike():
    system = PIPNet(Shares(20), 2, concepts=1).eval()
    with torch.no_grad():
        answer = system.answer(torch.full((1, 20, 2, 2), 7, dtype=torch.uint8))
    assert answer.probabilities.tolist() == [[0.5, 0.5]]
    assert answer.explanations.tolist() == [0]


# two views


def test_augmenting_is_moving_and_then_windowing():
    images = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    config = AugmentConfig(flip=True)
    torch.manual_seed(0)
    expected = augment(images, config)
    torch.manual_seed(0)
    assert torch.equal(window(move(images, config), config), expected)


def test_moving_keeps_grey_values_and_windowing_keeps_places():
    images = torch.full((8, 1, 16, 16), 100, dtype=torch.uint8)
    assert (move(images, AugmentConfig()) - 100).abs().max() < 1e-3
    images[:, :, 3, 5], images[:, :, 9, 2] = 160, 60
    windowed = window(images, AugmentConfig()).flatten(1)
    assert (windowed.int().argmax(1) == 3 * 16 + 5).all()
    assert (windowed.int().argmin(1) == 9 * 16 + 2).all()
    assert len(windowed[:, 0].unique()) > 4


def test_views_show_the_same_patches_in_another_window(trained):
    _, _, _, views, _ = trained
    first, second = views[0].float().flatten(2).chunk(2)
    assert len(first) == CONFIG.batch_size
    for one, other in zip(first[:, 0], second[:, 0], strict=True):
        seen = (one > 0) & (one < 255) & (other > 0) & (other < 255)
        assert np.corrcoef(one[seen], other[seen])[0, 1] > 0.999  # noise: a shift of a pixel would undo it
    assert not torch.equal(first, second)


def test_images_are_moved_from_epoch_to_epoch(trained, data):
    _, _, _, views, _ = trained
    raw = torch.from_numpy(np.array(data.images[data.collection.rows("train")])).float().flatten(1)
    for view in views[0].float().flatten(1):
        assert np.corrcoef(np.stack([view, *raw]))[0, 1:].max() < 0.9


# the phases


def test_a_seventh_of_the_budget_pretrains_and_the_head_alone_sees_no_image(trained):
    _, context, phases, _, _ = trained
    assert phases == [("pipnet_pretraining", 2), ("pipnet", 12)]
    terms = [sorted(key for key in row if key.startswith("train_")) for row in context.callbacks.history]
    pretraining, head = ["train_alignment", "train_tanh"], ["train_class"]
    assert terms == [pretraining] * 2 + [head] * 3 + [["train_alignment", "train_class", "train_tanh"]] * 12


def test_pretraining_leaves_the_head_and_head_epochs_the_backbone(data, monkeypatch):
    states = []

    def record(context, name, system, terms, *, epochs, **others):
        states.append({key: value.clone() for key, value in system.state_dict().items()})

    monkeypatch.setattr(module, "train_on_images", record)
    pipnet(ExperimentContext(data, CONFIG, SilentCallbacks()))
    before, after = states
    assert not torch.equal(before["head.weight"], after["head.weight"])
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("backbone."))


def test_the_head_alone_learns_each_images_own_class_from_its_own_scores(data, monkeypatch):
    tasks = []
    monkeypatch.setattr(module, "train_on_images", lambda *phase, **others: None)
    monkeypatch.setattr(module, "fit", lambda task, budget, callbacks: tasks.append((task, budget.epochs)))
    monkeypatch.setattr(module, "align_answers", lambda *given: None)  # which moves what the scores were taken from
    system = pipnet(ExperimentContext(data, CONFIG, SilentCallbacks()))
    ((task, epochs),) = tasks
    assert epochs == 3
    rows = data.collection.rows("train")[[2, 3, 30, 60, 61, 79]]
    system.head.weight.data.uniform_()
    loss = task.terms(rows)["class"]
    with torch.no_grad():
        logits = system.head(system(torch.from_numpy(np.array(data.images[rows])))[1])
    expected = -logits.log_softmax(-1)[torch.arange(6), torch.from_numpy(data.collection.truth()[rows])].mean()
    torch.testing.assert_close(loss, 2 * expected)


def test_alignment_grows_to_its_whole_weight_over_pretraining(data, monkeypatch):
    rows = data.collection.rows("train")[:8]
    images = torch.from_numpy(np.array(data.images[rows]))
    still = replace(CONFIG, augment=AugmentConfig(contrast=0, brightness=0))

    @torch.no_grad()
    def record(context, name, system, terms, *, epochs, **others):
        if name == "pipnet_pretraining":
            patches, scores = system.eval()(images)
            seen = [terms(rows, images) for _ in range(2 * 10)]
            weights = [float(each["alignment"] / alignment(patches, patches)) for each in seen]
            np.testing.assert_allclose(weights, np.arange(1, 21) / 20, rtol=1e-4)
            assert float(seen[0]["tanh"]) == pytest.approx(5 * float(tanh_loss(scores)), rel=1e-4)

    monkeypatch.setattr(module, "train_on_images", record)
    pipnet(ExperimentContext(data, still, SilentCallbacks()))


def test_a_budget_too_small_to_pretrain_trains(data):
    system = pipnet(ExperimentContext(data, replace(CONFIG, epochs=1), SilentCallbacks()))
    assert torch.isfinite(system.head.weight).all()


def test_the_head_shrinks_at_every_step_that_trains_it(trained):
    *_, shrunk = trained
    assert shrunk == (3 + 12) * 10


def test_the_trained_head_is_sparse_and_counts_its_prototypes(trained):
    system, context, _, _, _ = trained
    weight = system.head.weight.detach()
    assert ((weight == 0) | (weight > 1e-3)).all()
    assert 0 < system.prototypes == int((weight > 0).any(0).sum()) < weight.shape[1]
    with in_place(system.backbone):
        scores = train_scores(system, context)
    assert scores.shape == (80, weight.shape[1])
    assert (scores > 0.1).any(0)[(weight > 0).any(0)].all()


def test_a_small_training_beats_chance(trained, data):
    system, _, _, _, _ = trained
    rows = data.collection.rows("test")
    predictions = predict(system, data, rows)
    assert macro_f1(data.collection.truth()[rows], predictions.probabilities.argmax(1), 3) > 0.6
    assert (predictions.explanations <= system.prototypes).all()
    assert predictions.explanations.max() > 0
