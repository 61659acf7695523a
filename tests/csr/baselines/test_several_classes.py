"""Studies with several classes: every rival that knows them trains, answers and comes back; one class a study is as it
was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from csr.baselines import cbm, intcem, scbm
from csr.baselines.black_box import train_black_box
from csr.baselines.classes import class_probabilities, known_class_loss, solve_elastic_net, validation_figure
from csr.baselines.protocol import ExperimentContext, load_system, predict, refusal, save_system
from csr.comparison.csr_system import Recipe
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.comparison.training import run_system
from csr.data.records import NO_CLASS, Collection
from csr.errors import DataError
from csr.evaluation.evaluate import evaluate_predictions
from csr.evaluation.thresholds import validation_thresholds
from csr.network.concept_model import ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.head import HeadConfig
from csr.training.prototypes import PrototypeConfig
from tests.csr.synthetic import make_collection, make_prepared

NAN = np.nan
NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16, pooling="lse")
CONFIG = ConceptTrainingConfig(model=NET, epochs=2, batch_size=16, precision="float32")
RECIPE = Recipe(PrototypeConfig(per_concept=2, width=8, blocks=1, epochs=1), HeadConfig(epochs=4))
ENTRIES = systems({"robust": RECIPE, "paper": RECIPE}, encoder=False)
ONE_CLASS = ("protopnet", "protopool", "prototree")


def with_targets(collection: Collection) -> Collection:
    """Two targets that follow from the concepts, some unknown, and one study of which none is known."""
    labels, rng = collection.concept_labels(), np.random.default_rng(0)
    targets = np.stack([labels[:, :2].any(1), labels[:, 2]], 1).astype(np.float32)
    targets[rng.random(targets.shape) < 0.1] = NAN
    targets[collection.rows("train")[0]] = NAN
    studies = collection.studies.drop(columns="label")
    studies = studies.assign(**{"target:marked": targets[:, 0], "target:hazy": targets[:, 1]})
    return replace(collection, task="multilabel", classes=("marked", "hazy"), studies=studies)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory) -> dict[str | None, ExperimentContext]:
    """By shared backbone."""
    folder = tmp_path_factory.mktemp("several")
    data = make_prepared(folder / "prepared", with_targets(make_collection(train=48, val=24)))
    context = ExperimentContext(data, CONFIG, SilentCallbacks())
    found: dict[str | None, ExperimentContext] = {None: context}
    for kind in ("concepts_lse", "concepts_average", "classes"):
        (folder / kind).mkdir()
        train_shared_backbone(SHARED_BACKBONES[kind], context, folder / kind)
        found[kind] = replace(context, shared_backbone=open_shared_backbone(folder / kind)[0])
    return found


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in ONE_CLASS])
def test_a_rival_trains_on_several_classes_and_answers_each_by_itself(contexts, name, tmp_path, monkeypatch):
    monkeypatch.setattr(intcem, "TRIES", intcem.TRIES[:1])
    monkeypatch.setattr(scbm, "TRIES", (("amortised", 1.0),))
    entry = ENTRIES[name]
    context = replace(contexts[entry.shared_backbone], callbacks=SilentCallbacks())
    system, result = run_system(entry, context)
    collection = context.data.collection
    probabilities = result.test.probabilities
    assert probabilities.shape == (len(collection.rows("test")), 2)
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    assert np.abs(probabilities.sum(1) - 1).max() > 1e-3
    thresholds = validation_thresholds(collection, result.validation)
    assert result.report == evaluate_predictions(collection, result.test, context.data.side, thresholds)
    assert result.report["test"]["mean_average_precision"] > 0
    assert context.callbacks.history or entry.shared_backbone
    save_system(system, tmp_path / "system.pt")
    again = predict(load_system(entry.kind, tmp_path / "system.pt"), context.data, collection.rows("test"))
    np.testing.assert_allclose(again.probabilities, probabilities, atol=1e-5)


@pytest.mark.parametrize("name", ONE_CLASS)
def test_a_rival_that_is_published_for_one_class_a_study_is_refused_and_says_so(contexts, name):
    entry = ENTRIES[name]
    with pytest.raises(DataError, match=f"{entry.title} is published for studies with one class each, and those of"):
        run_system(entry, contexts["classes"])
    assert refusal(entry, make_collection(), encoder=False) is None
    assert all(
        refusal(other, with_targets(make_collection()), encoder=False) is None
        for other in map(ENTRIES.get, ("cbm_joint",))
    )


# last layers


@pytest.mark.parametrize("l1_ratio", [0.0, 0.99])
def test_several_classes_are_a_logistic_regression_each_on_what_is_known(l1_ratio):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((80, 3))
    truth = (inputs @ rng.normal(0, 1.5, (3, 2)) + rng.logistic(size=(80, 2)) > 0.5).astype(np.float64)
    truth[rng.random(truth.shape) < 0.2] = NAN
    weight, bias = solve_elastic_net(inputs, truth, np.zeros((80, 2)), 0.5, l1_ratio)
    for t in range(2):
        known = ~np.isnan(truth[:, t])
        other = LogisticRegression(
            C=3 / (0.5 * known.sum()), l1_ratio=l1_ratio, solver="saga", tol=1e-9, max_iter=50_000
        ).fit(inputs[known], truth[known, t])
        np.testing.assert_allclose(weight[t], other.coef_[0], atol=2e-4)
        assert bias[t] == pytest.approx(other.intercept_[0], abs=2e-4)


def test_a_class_adds_to_the_logits_that_it_is_given():
    """What is given says everything: the layer need not say more."""
    rng = np.random.default_rng(1)
    given = rng.normal(0, 2, (4000, 1))
    truth = (rng.logistic(size=(4000, 1)) < given).astype(np.float64)
    weight, bias = solve_elastic_net(rng.standard_normal((4000, 2)), truth, given, 1e-3, 0.0)
    assert np.abs(weight).max() < 0.1 and abs(bias[0]) < 0.1


# what is lost


def test_the_loss_leaves_out_whatever_nobody_knows():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0], [5.0, 5.0]])
    truth = torch.tensor([[1.0, 0.0], [NAN, 1.0], [NAN, NAN]])
    expected = ((np.log(2) + np.log(1 + np.exp(2))) / 2 + np.log(1 + np.exp(-3))) / 2
    assert float(known_class_loss(logits, truth)) == pytest.approx(expected)
    assert float(known_class_loss(logits[2:], truth[2:])) == 0
    classes = torch.tensor([1, NO_CLASS, 0])
    kept = torch.tensor([0, 2])
    assert torch.equal(known_class_loss(logits, classes), F.cross_entropy(logits[kept], classes[kept]))
    assert float(known_class_loss(logits, torch.full((3,), NO_CLASS))) == 0


def test_settings_are_chosen_by_f1_at_the_thresholds_of_val_and_then_by_the_loss():
    truth = np.r_[np.ones(6), np.zeros(60)][:, None].astype(np.float32)
    right = torch.from_numpy(np.where(truth == 1, -1.0, -3.0))
    shy, bold = validation_figure(truth, right), validation_figure(truth, 3 * right + 5)
    assert shy[0] == bold[0] == 1  # no probability of the first reaches a half
    assert bold[1] > shy[1]
    one = np.array([0, 1, 1])
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert validation_figure(one, logits) == (pytest.approx(2 / 3), -float(F.cross_entropy(logits, torch.tensor(one))))


# one class a study


@pytest.mark.parametrize("train", [train_black_box, cbm.joint_cbm])
def test_one_class_a_study_is_trained_by_the_cross_entropy_to_the_last_bit(train, tmp_path, monkeypatch):
    data = make_prepared(tmp_path / "prepared", make_collection())
    context = ExperimentContext(data, CONFIG, SilentCallbacks())
    own = train(context)
    plain = lambda self, logits, rows: F.cross_entropy(logits.float(), self.class_labels(rows))  # noqa: E731
    monkeypatch.setattr(ExperimentContext, "class_loss", plain)
    expected = train(replace(context, callbacks=SilentCallbacks()))
    for name, value in expected.state_dict().items():
        assert torch.equal(own.state_dict()[name], value), name
    rows = data.collection.rows("test")
    logits = predict(own, data, rows).probabilities
    np.testing.assert_allclose(logits.sum(1), 1, atol=1e-6)


def test_probabilities_are_the_task_s():
    logits = torch.tensor([[0.0, 1.0, -2.0]])
    torch.testing.assert_close(class_probabilities(logits, False), logits.softmax(-1))
    torch.testing.assert_close(class_probabilities(logits, True), 1 / (1 + torch.exp(-logits)))
