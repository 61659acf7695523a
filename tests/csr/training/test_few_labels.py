"""Unknown concept labels in stages 1 and 2: soft labels, the teacher, and that nothing happens where all are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csr.data.missing import hide_concept_labels
from csr.data.prepared import PreparedSet
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training import few_labels, prototypes
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.few_labels import FewLabels, FewLabelsConfig, known_share, lengthened
from csr.training.losses import masked_bce
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.soft_labels import fitted_labels, soft_labels, with_pseudo_labels
from tests.csr.synthetic import make_cache, make_collection, make_prepared, with_labels
from tests.csr.training.test_training import Interruption, Recorder

NET = ConceptModelConfig("test_resnet", stride=8, context=None)
STAGE1 = ConceptTrainingConfig(NET, AugmentConfig(), epochs=3, batch_size=8, precision="float32")
STAGE2 = PrototypeConfig(per_concept=2, width=8, blocks=1, epochs=2, batch_size=8, precision="float32")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared(tmp_path_factory.mktemp("whole") / "prepared", make_collection(60))


@pytest.fixture(scope="module")
def partly(whole: PreparedSet) -> PreparedSet:
    return replace(whole, collection=hide_concept_labels(whole.collection, 0.6, 0))


def made(data: PreparedSet, **changes: Any) -> FewLabels:
    torch.manual_seed(0)
    return FewLabels(ConceptModel(NET, 1, 3), data, FewLabelsConfig(**changes), "float32")


def trained(data: PreparedSet, callbacks: Any = None, **changes: Any) -> dict[str, torch.Tensor]:
    return train_concepts(data, replace(STAGE1, **changes), callbacks or SilentCallbacks()).state_dict()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)


# off


def test_where_every_label_is_known_no_setting_changes_a_bit_and_no_teacher_is_made(whole, monkeypatch):
    monkeypatch.setattr(few_labels.FewLabels, "__init__", lambda *given: pytest.fail("a teacher was made"))
    settings = (FewLabelsConfig(), FewLabelsConfig(weight=0), FewLabelsConfig(3.0, False, 0.5, longest=4.0))
    first, *others = (trained(whole, few_labels=each) for each in settings)
    for other in others:
        assert_equal(first, other)
    cache = make_cache(whole.collection)
    first, other = (
        train_prototypes(whole.collection, cache, replace(STAGE2, confidence=each), SilentCallbacks()).state_dict()
        for each in (0.9, 1.0)
    )
    assert_equal(first, other)


def test_at_weight_0_unknown_labels_are_left_out_as_by_the_masked_loss(partly, monkeypatch):
    monkeypatch.setattr(few_labels.FewLabels, "__init__", lambda *given: pytest.fail("a teacher was made"))
    callbacks = SilentCallbacks()
    trained(partly, callbacks, few_labels=FewLabelsConfig(weight=0))
    assert all("train_soft_loss" not in row for row in callbacks.history)


# soft labels


def test_without_classes_or_a_network_a_soft_label_is_its_concepts_base_rate():
    labels = np.array([[1, 0], [1, np.nan], [0, 1], [np.nan, 0]], np.float32)
    np.testing.assert_allclose(soft_labels(labels, None, None), np.tile([2 / 3, 1 / 3], (4, 1)), atol=1e-3)


def test_with_many_labels_a_soft_label_is_the_concepts_rate_among_the_known_of_the_class():
    rng = np.random.default_rng(0)
    classes = np.eye(3)[rng.integers(3, size=6000)]
    chance = classes @ [0.1, 0.5, 0.8]
    labels = (rng.random(6000) < chance).astype(np.float32)[:, None]
    labels[rng.random(6000) < 0.3] = np.nan
    rates = [np.nanmean(labels[own == 1, 0]) for own in classes.T]
    np.testing.assert_allclose(soft_labels(labels, classes, None)[:, 0], classes @ rates, atol=0.01)
    unknown = classes.copy()
    unknown[:100] = np.nan  # their class: the mixture of all
    found = soft_labels(labels, unknown, None)[:, 0]
    assert np.ptp(found[:100]) == 0
    assert rates[0] < found[0] < rates[2]


def test_evidence_counts_for_what_it_is_worth_and_whatever_its_scale():
    rng = np.random.default_rng(1)
    truth = rng.random((2000, 1)) < 0.3
    labels = np.where(rng.random((2000, 1)) < 0.5, truth, np.nan).astype(np.float32)
    told, noise = truth + 0.5 * rng.standard_normal((2000, 1)), rng.standard_normal((2000, 1))
    good, same, useless = (soft_labels(labels, None, each)[:, 0] for each in (told, 100 * told - 7, noise))
    np.testing.assert_allclose(good, same, atol=1e-4)
    assert (np.diff(good[np.argsort(told[:, 0])]) >= 0).all()
    assert good[truth[:, 0]].mean() > 0.55 > 0.3 > good[~truth[:, 0]].mean()
    assert np.abs(useless - np.nanmean(labels)).max() < 0.15


@pytest.mark.parametrize("value", [1, 0, np.nan])
def test_a_concept_with_labels_of_one_kind_or_none_gets_no_soft_label(value):
    labels = np.array([[1, value], [0, np.nan], [np.nan, value]], np.float32)
    found = soft_labels(labels, np.eye(3), np.ones((3, 2)))
    assert np.isnan(found[:, 1]).all()
    assert not np.isnan(found[:, 0]).any()


def test_what_an_encoder_filled_is_not_fitted_to_unless_there_is_nothing_else(whole):
    studies = whole.collection.studies.copy()
    filled = np.arange(len(studies)) % 2 == 0
    studies["filled:round"] = filled
    studies["filled:haze"] = True
    collection = replace(whole.collection, studies=studies)
    rows, labels = collection.rows("train"), whole.collection.concept_labels()
    found = fitted_labels(collection, rows)
    np.testing.assert_array_equal(np.isnan(found[:, 0]), filled[rows])
    np.testing.assert_array_equal(found[~filled[rows], 0], labels[rows][~filled[rows], 0])
    np.testing.assert_array_equal(found[:, 1:], labels[rows][:, 1:])


# the loss


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_the_loss_is_the_weighted_mean_over_known_and_soft_labels(partly, weight):
    few = made(partly, weight=weight)
    few.label(0)
    rows = partly.collection.rows("train")[:16]
    labels = torch.from_numpy(partly.collection.concept_labels()[rows])
    known = ~labels.isnan()
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    targets, weights = torch.where(known, labels, few._soft[rows]), torch.where(known, 1.0, weight)
    losses = F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="none")
    terms = few.terms(logits, rows, slice(0, 16))
    torch.testing.assert_close(sum(terms.values()), losses.sum() / weights.sum())
    torch.testing.assert_close(terms["loss"], losses[known].sum() / weights.sum())


def test_known_labels_are_never_overridden_and_labels_that_stay_unknown_cost_nothing(partly):
    few = made(partly)
    few.label(0)
    rows = partly.collection.rows("train")[:16]
    labels = torch.from_numpy(partly.collection.concept_labels()[rows])
    known = ~labels.isnan()
    few._soft[rows] = torch.where(known, 1 - labels, few._soft[rows])  # a soft label that contradicts each known one
    logits = torch.zeros(16, 3, requires_grad=True)
    sum(few.terms(logits, rows, slice(0, 16)).values()).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[known] * 48, 0.5 - labels[known])
    few._soft[:] = torch.nan
    terms = few.terms(logits, rows, slice(0, 16))
    torch.testing.assert_close(terms["loss"], masked_bce(logits, labels))
    assert terms["soft_loss"] == 0


# the teacher


def test_the_teacher_is_the_moving_average_of_the_weights_and_statistics(partly):
    few = made(partly, decay=0.8)
    few.follow()
    expected = {name: value.clone() for name, value in few.student.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        with torch.no_grad():
            for value in few.student.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator))
        few.follow()
        for name, value in few.student.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.8 * expected[name] + 0.2 * value
    for name, value in few.teacher.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_training_moves_the_teacher_behind_the_student_and_never_by_a_gradient(partly):
    seen = []

    class Watched(SilentCallbacks):
        def epoch(self, metrics, state):
            super().epoch(metrics, state)
            seen.append({name: value.clone() for name, value in state()["model"].items()})

    callbacks = Watched()
    trained(partly, callbacks, few_labels=FewLabelsConfig(decay=0.0))
    for state in seen:  # at decay 0 it is the student as it was before the last step
        for name in (name for name in state if name.startswith("student.") and name.endswith("to_maps.weight")):
            assert not torch.equal(state[name], state[name.replace("student.", "teacher.module.")])
    assert all(row["train_soft_loss"] > 0 for row in callbacks.history)
    few = made(partly)
    assert not any(value.requires_grad for value in few.teacher.parameters())


def test_soft_labels_come_from_the_teachers_view_of_the_images_as_they_are(partly):
    few = made(partly)
    few.follow()
    with torch.no_grad():
        few.student.to_maps.weight.add_(1)  # the teacher stays as it was
    few.label(1)
    few.train()
    rows = partly.collection.labelled_rows("train")
    twin = made(partly).student.eval()
    with torch.no_grad():
        logits = twin(torch.from_numpy(np.ascontiguousarray(partly.images[rows])))[1].numpy()
    indicators = partly.collection.class_indicators()[rows]
    expected = soft_labels(partly.collection.concept_labels()[rows], indicators, logits)
    torch.testing.assert_close(few._soft[rows], torch.from_numpy(expected), atol=1e-4, rtol=1e-4)
    few.label(0)
    without = soft_labels(partly.collection.concept_labels()[rows], indicators, None)
    torch.testing.assert_close(few._soft[rows], torch.from_numpy(without))


@pytest.mark.parametrize("cut", [1, 2])
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(partly, cut):
    whole, first = Recorder(), Recorder(cut_in_epoch=cut)
    expected = trained(partly, whole)
    with pytest.raises(Interruption):
        trained(partly, first)
    torch.manual_seed(987)
    rest = Recorder(first.checkpoint)
    assert_equal(expected, trained(partly, rest))
    assert rest.history == whole.history[cut:]


# the schedule


@pytest.mark.parametrize(("known", "longest", "expected"), [(1, 3, 12), (0.5, 3, 24), (0.1, 3, 36), (0.1, 1, 12)])
def test_the_schedule_grows_with_the_share_of_unknown_labels_up_to_a_limit(known, longest, expected):
    assert lengthened(12, known, FewLabelsConfig(longest=longest)) == expected


def test_a_run_has_as_many_epochs_as_the_schedule(partly):
    callbacks = SilentCallbacks()
    trained(partly, callbacks, epochs=2, few_labels=FewLabelsConfig(longest=2.0))
    assert known_share(partly.collection) == pytest.approx(0.4)
    assert len(callbacks.history) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1}, r"few_labels\.weight: must be at least 0, got -1"),
        ({"decay": 1.0}, r"few_labels\.decay: must be at least 0 and below 1, got 1\.0"),
        ({"longest": 0.5}, r"few_labels\.longest: must be at least 1, got 0\.5"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FewLabelsConfig(**changes)


@pytest.mark.parametrize("confidence", [0.5, 1.1, 0.2])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ValueError, match=r"prototypes\.confidence: must be above 0\.5 and at most 1, got"):
        PrototypeConfig(confidence=confidence)


# stage 2


def test_sure_guesses_take_the_place_of_unknown_labels_of_training_studies_alone(whole):
    collection = make_collection(400, 40, 40)
    cache = make_cache(collection)
    labels = collection.concept_labels()
    hidden = hide_concept_labels(collection, 0.8, 0)
    hidden = with_labels(hidden, np.where(np.arange(480)[:, None] >= 470, np.nan, hidden.concept_labels()))
    before = hidden.concept_labels()
    known = ~np.isnan(before)
    found = with_pseudo_labels(hidden, cache, 0.9)
    np.testing.assert_array_equal(found[known], before[known])
    assert np.isnan(found[470:]).all()
    filled = ~known & ~np.isnan(found)
    assert filled[:400].sum() > 0.7 * (~known[:400]).sum()
    assert (found == labels)[filled].mean() > 0.9
    surer = ~np.isnan(with_pseudo_labels(hidden, cache, 0.99))
    assert (surer <= ~np.isnan(found)).all() and surer.sum() < (~np.isnan(found)).sum()
    np.testing.assert_array_equal(with_pseudo_labels(hidden, cache, 1.0), before)


def test_a_study_without_any_label_gets_no_guess():
    collection = make_collection(60)
    studies = collection.studies.copy()
    studies.loc[:9, ["label", *(f"concept:{name}" for name in collection.concepts)]] = np.nan
    nothing = hide_concept_labels(replace(collection, studies=studies), 0.3, 0)
    assert np.isnan(with_pseudo_labels(nothing, make_cache(collection), 0.6)[:10]).all()


def test_stage_2_is_trained_on_them(monkeypatch):
    collection = hide_concept_labels(make_collection(200), 0.8, 0)
    cache, given = make_cache(make_collection(200)), []
    original = prototypes.positive_vectors

    def watched(features, cam, labels, present=None):
        given.append(labels)
        return original(features, cam, labels, present)

    monkeypatch.setattr(prototypes, "positive_vectors", watched)
    counts = {}
    for confidence in (0.9, 1.0):
        given.clear()
        train_prototypes(collection, cache, replace(STAGE2, epochs=1, confidence=confidence), SilentCallbacks())
        counts[confidence] = sum(int((~labels.isnan()).sum()) for labels in given)
    assert counts[0.9] > 2 * counts[1.0]
