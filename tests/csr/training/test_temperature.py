"""The temperature of the probabilities: chosen on validation studies alone, forgotten nowhere, moving nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from csr.baselines.protocol import ExperimentContext, TrainedBackbone
from csr.comparison.csr_system import Recipe, train_csr
from csr.data.records import Collection
from csr.evaluation.calibration import TEMPERATURES, expected_calibration_error, risk_coverage
from csr.evaluation.evaluate import evaluate_predictions
from csr.evaluation.predictions import Predictions
from csr.interaction.review import retrain_head
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import PrototypeModel, prototype_model_checkpoint
from csr.network.reasoner import DEFAULT_ALPHA, Reasoner
from csr.network.rebuild import concept_model_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, all_scores, class_logits
from csr.training.prediction import predict
from csr.training.prototypes import PrototypeConfig, build_prototype_model, train_prototypes
from csr.training.temperature import calibrate_temperature
from pipelines import head as stage
from tests.csr.synthetic import (
    CLASSES,
    SIDE,
    make_cache,
    make_collection,
    make_csr,
    make_patches,
    make_prepared,
    make_reasoner,
    without_images,
)

STAGE2 = PrototypeConfig(per_concept=2, width=5, blocks=1, epochs=2, batch_size=10)
STAGE3 = HeadConfig(epochs=3, batch_size=10)


def labelled(collection: Collection, rows: np.ndarray, classes: np.ndarray) -> Collection:
    """The same collection, in which some rows have other classes."""
    studies = collection.studies.copy()
    label = studies["label"].to_numpy(object)
    label[rows] = np.array(CLASSES, object)[classes]
    return replace(collection, studies=studies.assign(label=label))


def logits_of(cache: FeatureCache, model: PrototypeModel, reasoner: Reasoner, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return class_logits(reasoner, all_scores(reasoner, model, cache, rows)).double().numpy()


def drawn(logits: np.ndarray, temperature: float, seed: int) -> np.ndarray:
    """Classes drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(logits.shape[1], p=p) for p in softmax(logits / temperature, axis=1)])


@pytest.fixture
def untrained():
    """Many validation studies, and a model of random weights: its logits are as good as any."""
    collection = make_collection(20, 1200, 300)
    torch.manual_seed(0)
    model = build_prototype_model(STAGE2, 6, 3).eval()
    reasoner = make_reasoner(0, clip=True, per_concept=2, floor="absent")
    cache = make_cache(collection)
    with torch.no_grad():  # logits of a trained head's size: far larger ones leave nothing to chance
        scores = all_scores(reasoner, model, cache, collection.rows("val"))
        reasoner.score_mean.copy_(scores.mean(0))
        reasoner.score_std.copy_(scores.std(0))
        reasoner.head.bias.zero_()
        reasoner.head.weight.mul_(2 / class_logits(reasoner, scores).std(0).mean())
    return collection, cache, model, reasoner


@pytest.mark.parametrize("true", [0.4, 2.5])
def test_the_temperature_that_validation_labels_were_drawn_with_is_found_whatever_other_splits_say(untrained, true):
    collection, cache, model, reasoner = untrained
    val, test = collection.rows("val"), collection.rows("test")
    logits = logits_of(cache, model, reasoner, val)
    own = labelled(collection, val, drawn(logits, true, seed=1))
    own = labelled(own, test, drawn(logits_of(cache, model, reasoner, test), 10.0, seed=2))
    calibrate_temperature(without_images(own), cache, make_csr(model, reasoner, own))
    assert float(reasoner.temperature) == pytest.approx(true, rel=0.12)

    truth = own.truth()[val]
    with torch.no_grad():
        answer = reasoner(model.projector.project_maps(cache.batch(val, torch.device("cpu"))[0]))
    np.testing.assert_allclose(answer.logits, logits, atol=1e-4)
    np.testing.assert_allclose(answer.probabilities, softmax(logits / float(reasoner.temperature), axis=1), atol=1e-4)
    np.testing.assert_array_equal(answer.probabilities.argmax(1), logits.argmax(1))
    before, after = (
        expected_calibration_error(truth, p) for p in (softmax(logits, axis=1), answer.probabilities.numpy())
    )
    assert after < 0.05 < before


def test_the_temperature_moves_probabilities_and_nothing_else():
    reasoner, patches = make_reasoner(1, clip=True), make_patches(1)
    cooled = copy.deepcopy(reasoner)
    cooled.temperature.mul_(3)
    with torch.no_grad():
        before, after = reasoner(patches), cooled(patches)
    for name in set(before._fields) - {"probabilities"}:
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert torch.equal(after.probabilities.argsort(), before.probabilities.argsort())
    assert (after.probabilities.amax(1) < before.probabilities.amax(1)).all()


def test_where_validation_studies_cannot_tell_the_temperature_is_one(untrained):
    collection, cache, model, reasoner = untrained
    val, csr = collection.rows("val"), make_csr(model, reasoner, collection)
    right = logits_of(cache, model, reasoner, val).argmax(1)
    assert len(set(right)) == 3
    none = collection.studies.assign(split=collection.studies["split"].replace("val", "train"))
    blank = {
        "empty": replace(collection, studies=none),
        "one class": labelled(collection, val, np.zeros(len(val), int)),
        "all right": labelled(collection, val, right),
    }
    for name, own in blank.items():
        reasoner.temperature.fill_(7.0)
        calibrate_temperature(without_images(own), cache, csr)
        assert float(reasoner.temperature) == 1, name
    right[0] = (right[0] + 1) % 3  # one mistake is enough to know that certainty is too much
    calibrate_temperature(without_images(labelled(collection, val, right)), cache, csr)
    assert TEMPERATURES[0] < float(reasoner.temperature) < 1


def test_calibrating_leaves_everything_else_as_it_is(untrained):
    """Above all α: what lies outside a focus box is not for validation studies to say."""
    collection, cache, model, reasoner = untrained
    reasoner.temperature.fill_(7.0)
    before = {name: value.clone() for name, value in reasoner.state_dict().items()}
    calibrate_temperature(without_images(collection), cache, make_csr(model, reasoner, collection))
    after = reasoner.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == ["temperature"]


# whoever trains a head calibrates it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = make_prepared(folder / "prepared", make_collection(40, 60, 12))
    cache = make_cache(data.collection)
    (folder / "features").mkdir()
    np.save(folder / "features" / "features.npy", cache.features)
    np.save(folder / "features" / "cam.npy", cache.cam)
    return folder, data, cache, train_prototypes(data.collection, cache, STAGE2, SilentCallbacks())


def by_the_pipeline(folder, data, cache, model) -> TrainedCSR:
    names = folder / "prepared", folder / "features"
    concepts = ConceptModel(ConceptModelConfig("test_resnet", stride=8), 1, 3)
    stages = stage.Stages(concept_model_checkpoint(concepts), prototype_model_checkpoint(model))
    return TrainedCSR.from_checkpoint(stage.fit(*names, stages, STAGE3, SilentCallbacks()))


def by_the_comparison(folder, data, cache, model) -> TrainedCSR:
    config = ConceptTrainingConfig(model=ConceptModelConfig("test_resnet", stride=8))
    shared_backbone = TrainedBackbone(ConceptModel(config.model, 1, 3), cache)
    system = train_csr(ExperimentContext(data, config, SilentCallbacks(), shared_backbone), Recipe(STAGE2, STAGE3))
    return system.csr


def by_refinement(folder, data, cache, model) -> TrainedCSR:
    refined = make_csr(model, make_reasoner(0, clip=True, per_concept=2, pruned=1), data.collection)
    return retrain_head(data, cache, refined, STAGE3, SilentCallbacks())


@pytest.mark.parametrize("train", [by_the_pipeline, by_the_comparison, by_refinement])
def test_a_trained_head_comes_calibrated(trained, train):
    _, data, cache, _ = trained
    csr = train(*trained)
    reasoner, expected = csr.reasoner, copy.deepcopy(csr.reasoner)
    calibrate_temperature(data, cache, csr.with_reasoner(expected))
    assert float(reasoner.temperature) == pytest.approx(float(expected.temperature), rel=1e-3)
    assert abs(float(reasoner.temperature) - 1) > 0.05
    assert (reasoner.alpha == DEFAULT_ALPHA).all()


def test_a_heads_checkpoint_keeps_the_temperature():
    reasoner = make_reasoner(3, clip=True)
    again = Reasoner(**reasoner.config).eval()
    again.load_state_dict(reasoner.state_dict())
    assert float(again.temperature) == float(reasoner.temperature) != 1
    patches = make_patches(3)
    with torch.no_grad():
        assert torch.equal(again(patches).probabilities, reasoner(patches).probabilities)


# the report


def test_every_part_is_judged_by_the_calibration_of_its_own_studies():
    collection = make_collection(20, 20, 60)
    rows = collection.rows("test")
    studies = collection.studies.copy()
    studies.loc[rows[:25], "part"] = "shifted"
    collection = replace(collection, studies=studies)
    probabilities = softmax(np.random.default_rng(0).normal(size=(60, 3)), axis=1)
    report = evaluate_predictions(collection, Predictions(rows, probabilities, None, None), SIDE)
    truth = collection.truth()[rows]
    for part, own in (("shifted", slice(0, 25)), ("test", slice(25, 60))):
        ece = expected_calibration_error(truth[own], probabilities[own])
        assert report[part]["ece"] == pytest.approx(ece, abs=1e-6)
        assert report[part]["aurc"] == pytest.approx(risk_coverage(truth[own], probabilities[own]).area, abs=1e-6)
    assert report["shifted"]["ece"] != report["test"]["ece"]


def test_calibration_reaches_the_predictions_that_are_judged(untrained):
    collection, cache, model, reasoner = untrained
    hot = copy.deepcopy(reasoner)
    hot.temperature.mul_(5)
    data = without_images(collection)
    before, after = (predict(data, cache, make_csr(model, each, collection)) for each in (reasoner, hot))
    np.testing.assert_array_equal(after.probabilities.argmax(1), before.probabilities.argmax(1))
    assert after.probabilities.max(1).mean() < before.probabilities.max(1).mean() - 0.05
