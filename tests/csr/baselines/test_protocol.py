"""The protocol of the comparison: what a system's answers become, and what one phase of training may touch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from csr.baselines import protocol
from csr.baselines.protocol import (
    Answer,
    Entry,
    ExperimentContext,
    System,
    TrainedBackbone,
    bottleneck_epochs,
    predict,
    train_on_images,
)
from csr.comparison.training import with_budget
from csr.evaluation.metrics import macro_f1
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.loop import Task, fit
from tests.csr.synthetic import SIDE, make_collection, make_prepared, with_labels

STILL = AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0)
CONFIG = ConceptTrainingConfig(augment=STILL, epochs=4, batch_size=8, learning_rate=0.01, precision="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    labels = make_collection().concept_labels()
    labels[3, 2] = np.nan
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", with_labels(make_collection(), labels))


def context(data, config=CONFIG) -> ExperimentContext:
    return ExperimentContext(data, config, SilentCallbacks())


# predictions


class Fixed(System):
    """Answers that can be read off an image: its mean brightness, and maps of its brightest cell and that mirrored."""

    config = from_config = None  # never saved

    def __init__(self, concepts: bool = True, maps: bool = True) -> None:
        super().__init__()
        self.concepts, self.maps = concepts, maps
        self.modes: list[bool] = []

    def answer(self, images):
        self.modes.append(self.training)
        mean = images.float().mean((1, 2, 3)) / 255
        small = F.avg_pool2d(images.float(), 8)  # B×1×4×4
        brightest = (small == small.amax((2, 3), keepdim=True)).float()
        return Answer(
            torch.stack([mean, 1 - mean], 1),
            torch.stack([mean, -mean, 2 * mean], 1) if self.concepts else None,
            torch.cat([brightest, brightest.flip(-1), brightest], 1) if self.maps else None,
            (mean * 100).long(),
        )


@pytest.mark.parametrize("batch_size", [5, 64])
def test_predictions_are_the_answers_in_the_order_of_the_rows(data, batch_size):
    rows = np.array([7, 3, 40, 41, 67, 12, 13])
    predictions = predict(Fixed(), data, rows, batch_size)
    means = data.images[rows].mean((1, 2, 3)) / 255
    np.testing.assert_array_equal(predictions.rows, rows)
    np.testing.assert_allclose(predictions.probabilities, np.stack([means, 1 - means], 1), atol=1e-6)
    np.testing.assert_allclose(predictions.concepts, np.stack([means, -means, 2 * means], 1), atol=1e-6)
    np.testing.assert_allclose(predictions.explanations, np.floor(means * 100), atol=1)


def test_peaks_are_pixels_in_the_cells_of_the_maps_maxima(data):
    rows = np.arange(20)
    peaks = predict(Fixed(), data, rows, batch_size=8).peaks
    assert peaks.shape == (20, 3, 2)
    cells = data.images[rows][:, 0].reshape(20, 4, 8, 4, 8).mean((2, 4)).reshape(20, 16).argmax(1)
    np.testing.assert_array_equal(peaks[:, 0] // 8, np.stack([cells % 4, cells // 4], 1))
    np.testing.assert_array_equal(peaks[:, 1] // 8, np.stack([3 - cells % 4, cells // 4], 1))
    np.testing.assert_array_equal(peaks[:, 2], peaks[:, 0])


def test_a_system_without_concepts_or_maps_has_none_in_its_predictions(data):
    rows = np.arange(10)
    neither = predict(Fixed(concepts=False, maps=False), data, rows, batch_size=4)
    assert neither.concepts is None and neither.peaks is None
    assert neither.probabilities.shape == (10, 2)
    only_maps = predict(Fixed(concepts=False), data, rows, batch_size=4)
    assert only_maps.concepts is None and only_maps.peaks.shape == (10, 3, 2)
    only_concepts = predict(Fixed(maps=False), data, rows, batch_size=4)
    assert only_concepts.peaks is None and only_concepts.concepts.shape == (10, 3)


def test_predicting_needs_no_training_mode_and_leaves_it_as_it_was(data):
    system = Fixed()
    for mode in (True, False):
        system.train(mode)
        predict(system, data, np.arange(4))
        assert system.training is mode
    assert system.modes == [False, False]


# learning rates


class Parts(nn.Module):
    """Three numbers with names, all 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in ("deep", "wide")})
        self.head = nn.Linear(1, 1, bias=False)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def moved(rates: dict[str, float], warmup: float = 0.0, epochs: int = 1) -> dict[str, float]:
    """How far AdamW moves each number against a constant gradient: by the sum of its learning rates."""
    model = Parts()

    def terms(rows):
        return {"sum": torch.stack([parameter.sum() for parameter in model.parameters()]).sum()}

    budget = ConceptTrainingConfig(epochs=epochs, batch_size=4, learning_rate=0.5, weight_decay=0.0)
    fit(Task("parts", model, np.arange(4), terms, lambda epoch: {}, warmup, rates), budget, SilentCallbacks())
    return {name.removesuffix(".weight"): -parameter.item() for name, parameter in model.named_parameters()}


def test_a_parameter_learns_at_the_factor_of_the_first_prefix_that_fits_its_name():
    expected = {"body.deep": 0.05, "body.wide": 0.25, "head": 0.5}
    assert moved({"body.deep": 0.1, "body": 0.5}) == pytest.approx(expected, rel=1e-4)
    expected = {"body.deep": 0.25, "body.wide": 0.25, "head": 0.5}
    assert moved({"body": 0.5, "body.deep": 0.1}) == pytest.approx(expected, rel=1e-4)
    assert moved({}) == pytest.approx(dict.fromkeys(expected, 0.5), rel=1e-4)
    assert moved({"body": 0.0})["body.deep"] == 0


def test_factors_hold_under_the_warm_up_schedule_too():
    """One-cycle over ten steps with a rise of half: the rates' sum is the same share of the peak for all."""
    plain = moved({}, warmup=0.5, epochs=10)
    slower = moved({"body.wide": 0.2}, warmup=0.5, epochs=10)
    assert plain["head"] < 0.5 * 10 * 0.7
    assert slower["head"] == pytest.approx(plain["head"], rel=1e-4)
    assert slower["body.wide"] == pytest.approx(0.2 * plain["body.wide"], rel=1e-4)


# training on images


class Linear(System):
    """A linear layer on 4×4 mean brightnesses, scaled by a number for each."""

    config = from_config = None  # never saved

    def __init__(self, data) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.data = data
        self.scale = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 3)
        self.seen: list[tuple[np.ndarray, torch.Tensor]] = []

    def forward(self, images):
        return self.head(self.scale * (F.avg_pool2d(images.float(), 8).flatten(1) / 64 - 1.5))

    def answer(self, images):
        return Answer(self(images).softmax(-1), None, None, torch.zeros(len(images)))

    def terms(self, rows, images):
        self.seen.append((rows, images))
        classes = torch.from_numpy(self.data.collection.truth()[rows])
        return {"class": F.cross_entropy(self(images), classes), "weights": 1e-3 * self.head.weight.square().sum()}


def test_a_phase_of_no_epochs_leaves_the_system_as_it_is(data):
    system, own = Linear(data).train(), context(data)
    before = system.head.weight.clone()
    train_on_images(own, "linear", system, system.terms, epochs=0)
    assert not own.callbacks.history and not system.training
    assert torch.equal(system.head.weight, before)


def test_a_phase_trains_on_every_training_image_and_reports_each_epoch(data):
    system, own = Linear(data), context(data)
    train_on_images(own, "linear", system, system.terms)
    assert [row["epoch"] for row in own.callbacks.history] == [0, 1, 2, 3]
    assert set(own.callbacks.history[0]) == {"epoch", "train_class", "train_weights", "val_macro_f1", "val_macro_auroc"}
    assert own.callbacks.history[-1]["train_class"] < own.callbacks.history[0]["train_class"]
    for epoch in range(4):
        rows = np.concatenate([rows for rows, _ in system.seen[5 * epoch : 5 * epoch + 5]])
        assert sorted(rows) == data.collection.rows("train").tolist()
    for rows, images in system.seen:
        assert images.dtype == torch.uint8
        assert np.abs(images.numpy().astype(int) - data.images[rows]).max() <= 1  # a still augmentation
    assert not system.training


def test_the_reported_macro_f1_is_that_of_the_predictions_on_val(data):
    system, own = Linear(data), context(data)
    train_on_images(own, "linear", system, system.terms, epochs=1, learning_rate=1e-3)
    val = data.collection.rows("val")
    predicted = predict(system, data, val).probabilities.argmax(1)
    expected = macro_f1(data.collection.truth()[val], predicted, 3)
    assert own.callbacks.history[-1]["val_macro_f1"] == expected
    assert 0 < expected < 1


def test_a_phase_may_be_shorter_blind_and_have_a_budget_of_its_own(data):
    system, own = Linear(data), context(data)
    before = [parameter.detach().clone() for parameter in system.parameters()]
    train_on_images(own, "short", system, system.terms, epochs=2, validate=False, learning_rate=0.0, batch_size=20)
    assert [row["epoch"] for row in own.callbacks.history] == [0, 1]
    assert "val_macro_f1" not in own.callbacks.history[0]
    assert [len(rows) for rows, _ in system.seen] == [20] * 4
    for parameter, old in zip(system.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


class Curves(SilentCallbacks):
    """Keeps the learning curves."""

    def __init__(self) -> None:
        super().__init__()
        self.curves = []

    def finished(self, curve):
        self.curves.append(curve)


def test_a_phase_ends_by_the_rule_and_one_without_a_figure_takes_its_epochs(data):
    """A rate of 0 changes nothing, so the figure never rises."""
    ruled = replace(CONFIG, epochs=30, patience=2, learning_rate=0.0)
    own = replace(context(data, ruled), callbacks=Curves())
    train_on_images(own, "ends", Linear(data), Linear(data).terms)
    (curve,) = own.callbacks.curves
    assert (curve.phase, curve.figure, curve.ended, curve.fall) == ("ends", "val_macro_auroc", "risen", 3)
    assert curve.images == (40, 80, 120, 160) and len(own.callbacks.history) == 4
    for changes, epochs in (({"earliest": 10}, 15), ({"validate": False}, 30), ({"epochs": 2}, 2)):
        own = replace(context(data, ruled), callbacks=Curves())
        train_on_images(own, "ends", Linear(data), Linear(data).terms, **changes)
        assert len(own.callbacks.history) == epochs


def test_a_system_has_its_share_of_the_budget_or_under_the_rule_the_whole_cap(data):
    entry = Entry("Half", Linear, lambda context: Linear(data), epochs=0.5)
    plain = context(data, replace(CONFIG, epochs=12))
    assert with_budget(entry, plain).config.epochs == 6
    assert with_budget(entry, replace(plain, config=replace(plain.config, patience=3))).config.epochs == 12


def test_a_frozen_parameter_stays_and_a_slow_one_lags(data):
    system = Linear(data)
    system.head.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in system.named_parameters()}
    train_on_images(context(data), "frozen", system, system.terms)
    assert torch.equal(system.head.weight, before["head.weight"])
    assert torch.equal(system.head.bias, before["head.bias"])
    far = (system.scale - before["scale"]).abs().max()
    assert far > 0
    slow = Linear(data)
    slow.head.requires_grad_(False)
    train_on_images(context(data), "slow", slow, slow.terms, rates={"scale": 0.1})
    assert 0 < (slow.scale - before["scale"]).abs().max() < 0.2 * far


class OnBackbone(System):
    """A backbone of ones, and a number beside it, that all move against a constant gradient."""

    config = from_config = None  # never saved

    def __init__(self, context) -> None:
        super().__init__()
        self.backbone, self.beside = context.build_backbone(), nn.Parameter(torch.ones(()))
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def answer(self, images):
        return Answer(torch.full((len(images), 3), 1 / 3), None, None, torch.zeros(len(images)))

    def terms(self, rows, images):
        return {"sum": torch.stack([parameter.sum() for parameter in self.parameters()]).sum()}


@pytest.mark.parametrize(("shared", "freeze"), [(False, 0), (True, 0), (True, 3), (False, "all"), (True, "all")])
def test_pretrained_weights_are_tuned_as_configured_unless_a_shared_backbone_has_been(data, tmp_path, shared, freeze):
    weights = tmp_path / "body.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0, in_chans=1).state_dict(), weights)
    net = ConceptModelConfig("test_resnet", stride=8, context=None, checkpoint=str(weights))
    config = ConceptTrainingConfig(
        model=net,
        augment=STILL,
        epochs=1,
        batch_size=40,
        weight_decay=0.0,
        warmup=0.0,
        backbone_rate=0.1,
        freeze=freeze,
    )
    own = context(data, config)
    if shared:
        own = replace(own, shared_backbone=TrainedBackbone(ConceptModel(net, 1, 3), cache=None))
    system = OnBackbone(own)
    before = {name: value.detach().clone() for name, value in system.backbone.named_parameters()}
    train_on_images(own, "one", system, system.terms, validate=False)
    assert 1 - system.beside.item() == pytest.approx(4e-3, rel=1e-3)
    for name, value in system.backbone.named_parameters():
        rate = 0 if freeze == "all" else 4e-3 if shared else 4e-4
        assert (before[name] - value.detach()).double().mean().item() == pytest.approx(rate, rel=1e-2), name


def test_images_are_changed_as_the_budget_says(data):
    config = ConceptTrainingConfig(augment=AugmentConfig(rotate=20, brightness=0.3), epochs=1, batch_size=8)
    system = Linear(data)
    train_on_images(context(data, config), "linear", system, system.terms)
    changes = [np.abs(images.numpy().astype(int) - data.images[rows]).mean() for rows, images in system.seen]
    assert min(changes) > 5


# what a system is given


def test_a_setting_knows_sizes_and_labels(data):
    own, rows = context(data), np.array([3, 0, 50])
    assert (own.concepts, own.classes) == (3, 3)
    assert own.class_labels(rows).tolist() == [0, 0, 50 % 3]
    np.testing.assert_array_equal(own.concept_labels(rows), data.collection.concept_labels()[rows])
    assert own.concept_labels(rows)[0, 2].isnan()


def test_an_untrained_backbone_has_the_statistics_of_the_training_images(data):
    config = ConceptTrainingConfig(model=ConceptModelConfig("test_convnext", stride=8, context=None))
    backbone = context(data, config).build_backbone()
    train = data.images[data.collection.rows("train")] / 255
    assert float(backbone.mean) == pytest.approx(train.mean(), abs=1e-5)
    assert float(backbone.std) == pytest.approx(train.std(), abs=1e-5)
    assert backbone(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)).shape == (1, 32, 4, 4)


@pytest.mark.parametrize(("rows", "epochs"), [(2400, 20), (112_000, 20), (1000, 50), (242, 247), (5, 740)])
def test_a_bottleneck_has_as_many_steps_on_a_small_set_as_on_the_phantom(
    monkeypatch: pytest.MonkeyPatch, rows: int, epochs: int
) -> None:
    monkeypatch.setattr(protocol, "LEAST_STEPS", 740)
    assert bottleneck_epochs(rows, 20, 64) == epochs
