"""Studies with any number of classes: losses, metrics, calibration, head, evaluation, readers and bundle."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from csr.baselines.protocol import ExperimentContext
from csr.bundle import writing
from csr.bundle.atlas import build_atlas
from csr.bundle.format import Bundle
from csr.bundle.runtime import BundleRunner
from csr.bundle.writing import ExportConfig, Provenance, write_bundle
from csr.data.decisions import decide, decision_margin, wants_help
from csr.data.records import Collection, validation_errors
from csr.errors import DataError
from csr.evaluation.calibration import abstain_threshold, expected_calibration_error, fit_temperature, risk_coverage
from csr.evaluation.evaluate import evaluate_predictions, rare_classes
from csr.evaluation.metrics import class_f1, correct, macro_auroc, macro_f1
from csr.evaluation.thresholds import choose_thresholds
from csr.interaction.answering import AnswerableCSR, AnswerConfig, answer_curves, findings_of, most_alike
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.reasoner import Reasoner
from csr.network.trained import TrainedCSR
from csr.training.callbacks import SilentCallbacks
from csr.training.class_losses import class_loss
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, train_head
from csr.training.prediction import predict
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.temperature import calibrate_temperature
from csr.training.thresholds import own_thresholds
from tests.csr.synthetic import (
    SIDE,
    make_cache,
    make_collection,
    make_csr,
    make_patches,
    make_prepared,
    make_reasoner,
    without_images,
)

NAN = np.nan
TRUTH = np.array([[1, 0, 1], [0, 0, NAN], [1, 1, 0], [0, NAN, 0]], np.float32)
PROBABILITIES = np.array([[0.9, 0.4, 0.2], [0.6, 0.1, 0.9], [0.7, 0.5, 0.1], [0.2, 0.9, 0.3]])


def with_targets(collection: Collection, unknown: float = 0.0) -> Collection:
    """Two targets that follow from the concepts: any of the first two, and the last; some unknown."""
    labels, rng = collection.concept_labels(), np.random.default_rng(0)
    targets = np.stack([labels[:, :2].any(1), labels[:, 2]], 1).astype(np.float32)
    targets[rng.random(targets.shape) < unknown] = NAN
    studies = collection.studies.drop(columns="label")
    studies = studies.assign(**{"target:marked": targets[:, 0], "target:hazy": targets[:, 1]})
    return replace(collection, task="multilabel", classes=("marked", "hazy"), studies=studies)


def without_classes(collection: Collection) -> Collection:
    return replace(collection, task="concepts", classes=(), studies=collection.studies.drop(columns="label"))


def test_the_loss_is_the_mean_over_known_classes_of_each_study() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0], [5.0, 5.0]])
    truth = torch.tensor([[1.0, 0.0], [NAN, 1.0], [NAN, NAN]])
    first = (log(2) + log(1 + np.exp(2))) / 2
    second = log(1 + np.exp(-3))
    each = class_loss(logits, truth, "none")
    assert each.tolist() == pytest.approx([first, second, 0])
    assert float(class_loss(logits, truth)) == pytest.approx((first + second) / 3)


def test_decisions_and_scores_by_hand() -> None:
    said = decide(PROBABILITIES, multilabel=True)
    assert said.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert correct(TRUTH, said).tolist() == [False, False, True, True]
    # first class: 2 hits, 1 false alarm; second: 1 hit; third: 1 missed
    assert class_f1(TRUTH, said).tolist() == pytest.approx([0.8, 1.0, 0.0])
    assert macro_f1(TRUTH, said, 3) == pytest.approx(0.6)
    aurocs = [roc_auc_score([1, 0, 1, 0], [0.9, 0.6, 0.7, 0.2]), 1.0, roc_auc_score([1, 0, 0], [0.2, 0.1, 0.3])]
    assert macro_auroc(TRUTH, PROBABILITIES) == pytest.approx(np.mean(aurocs))


def test_scores_equal_scikit_learn_s_where_all_is_known() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 2, (50, 4)), rng.integers(0, 2, (50, 4))
    expected = f1_score(truth, said, average="macro", zero_division=0)
    assert macro_f1(truth.astype(np.float32), said, 4) == pytest.approx(expected)


def test_the_margin_is_the_least_certain_class_s() -> None:
    assert decision_margin(PROBABILITIES, multilabel=True).tolist() == pytest.approx([0.2, 0.2, 0.0, 0.4])
    assert wants_help(PROBABILITIES, 0.3, multilabel=True).tolist() == [True, True, True, False]


def test_calibration_error_counts_single_decisions_and_abstaining_whole_studies() -> None:
    truth = np.array([[1, 0], [1, NAN], [0, 0]], np.float32)
    probabilities = np.array([[0.9, 0.2], [0.6, 0.5], [0.1, 0.7]])
    sure = np.array([0.9, 0.8, 0.6, 0.9, 0.7])
    right = np.array([1, 1, 1, 1, 0])
    expected = abs((right - sure)[[0, 3]].sum()) + abs((right - sure)[1]) + abs((right - sure)[2]) + abs(-0.7)
    assert expected_calibration_error(truth, probabilities) == pytest.approx(expected / 5)
    curve = risk_coverage(truth, probabilities)  # confidences .8, .5, .7; the last study is wrong
    assert curve.threshold.tolist() == pytest.approx([0.8, 0.7, 0.5])
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3])
    assert abstain_threshold(truth, probabilities, 0.1) == pytest.approx(0.8)


def test_the_temperature_that_labels_were_drawn_with_is_found() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4000, 3))
    truth = (rng.random(logits.shape) < expit(logits / 2)).astype(np.float32)
    truth[rng.random(truth.shape) < 0.3] = NAN
    assert fit_temperature(logits, truth) == pytest.approx(2, rel=0.05)


def test_the_reasoner_s_probabilities_are_each_class_s_own() -> None:
    single, patches = make_reasoner(0, clip=True), make_patches(0)
    several = Reasoner(3, 4, 5, 3, True, "zero", multilabel=True).eval()
    several.load_state_dict(single.state_dict())
    with torch.no_grad():
        one, many = single(patches), several(patches)
    assert torch.equal(one.logits, many.logits)
    torch.testing.assert_close(many.probabilities, (many.logits / several.temperature).sigmoid())
    torch.testing.assert_close(one.probabilities.sum(1), torch.ones(2))


@pytest.fixture(scope="module")
def trained():
    collection = with_targets(make_collection(160, 60, 40), unknown=0.2)
    cache = make_cache(collection)
    stage2 = PrototypeConfig(per_concept=2, width=8, blocks=1, epochs=6, batch_size=32)
    model = train_prototypes(collection, cache, stage2, SilentCallbacks())
    config = HeadConfig(epochs=20, batch_size=32)
    reasoner = train_head(collection, cache, model, config, SilentCallbacks())
    csr = make_csr(model, reasoner, collection)
    calibrate_temperature(without_images(collection), cache, csr)
    return collection, cache, csr


def test_a_head_learns_several_classes_in_spite_of_unknown_ones(trained) -> None:
    collection, cache, csr = trained
    whole = with_targets(make_collection(160, 60, 40))
    assert np.isnan(collection.truth()[collection.rows("train")]).mean() > 0.1
    report = evaluate_predictions(whole, predict(without_images(whole), cache, csr), SIDE)["test"]
    assert report["macro_f1"] > 0.9 and report["auroc"] > 0.95
    assert 0 <= report["ece"] <= 0.5 and 0 <= report["aurc"] < 0.2


def test_a_checkpoint_remembers_the_task(trained) -> None:
    reasoner = trained[2].reasoner
    again = Reasoner(**reasoner.config).eval()
    again.load_state_dict(reasoner.state_dict())
    assert again.multilabel
    patches = make_patches(3, width=8)
    with torch.no_grad():
        assert torch.equal(again(patches).probabilities, reasoner.cpu().eval()(patches).probabilities)


def test_the_temperature_stays_one_where_every_known_decision_is_right(trained) -> None:
    collection, cache, csr = trained
    csr = csr.with_reasoner(copy.deepcopy(csr.reasoner))
    rows = collection.rows("test")
    said = decide(predict(without_images(collection), cache, csr).probabilities, multilabel=True)
    studies = collection.studies.copy()
    studies["split"] = studies["split"].replace({"val": "spare", "test": "val"})
    studies.loc[rows, ["target:marked", "target:hazy"]] = said.astype(np.float32)
    calibrate_temperature(without_images(replace(collection, studies=studies)), cache, csr)
    assert float(csr.reasoner.temperature) == 1


def test_readers_correct_studies_with_several_classes(trained) -> None:
    collection, cache, csr = trained
    data, rows = without_images(collection, SIDE), collection.rows("test")
    model = AnswerableCSR(cache, csr, rows, SIDE)
    findings = findings_of(data, rows, most_alike(data, cache))
    config = AnswerConfig(policies=("random",), errors=(0.0,), budget=2)
    table, _ = answer_curves(model, collection, rows, findings, config)
    whole = table[(table["trigger"] == "all") & (table["budget"] == 0)].iloc[0]
    expected = evaluate_predictions(collection, predict(without_images(collection), cache, csr), SIDE)["test"]
    assert whole["macro_f1"] == pytest.approx(expected["macro_f1"], abs=1e-6)
    truth = collection.truth()[collection.rows("test")]
    said = decide(predict(without_images(collection), cache, csr).probabilities, multilabel=True)
    assert whole["accuracy"] == pytest.approx(correct(truth, said).mean())
    asked = table[(table["trigger"] == "uncertain") & (table["budget"] == 2)].iloc[0]
    assert asked["replies"] < table[(table["trigger"] == "all") & (table["budget"] == 2)].iloc[0]["replies"]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    collection = with_targets(make_collection())
    data = make_prepared(folder / "prepared", collection)
    model = ConceptModel(ConceptModelConfig("regnetx_002"), 1, len(collection.concepts)).eval()
    (folder / "features").mkdir()
    compute_features(model, data, folder / "features", SilentCallbacks())
    cache = FeatureCache.open(folder / "features")
    stage2 = PrototypeConfig(per_concept=2, width=8, blocks=1, epochs=1)
    prototypes = train_prototypes(collection, cache, stage2, SilentCallbacks())
    reasoner = train_head(collection, cache, prototypes, HeadConfig(epochs=2), SilentCallbacks())
    csr = TrainedCSR(model, prototypes, reasoner, collection.concepts, collection.classes)
    atlas = build_atlas(data, cache, csr)
    return folder, data, cache, csr, atlas


def test_a_bundle_says_its_task_and_computes_it(exported) -> None:
    folder, data, cache, csr, atlas = exported
    origin = Provenance("robust", data.digest(), "test", {})
    bundle, _ = write_bundle(folder / "bundle", data, cache, csr, atlas, ExportConfig(parity_images=4), origin)
    assert Bundle.open(bundle.path).manifest.task == "multilabel"
    runner = BundleRunner(bundle, 1)
    images = np.ascontiguousarray(data.images[data.collection.rows("test")])
    with torch.no_grad():
        expected = csr(torch.from_numpy(images)).probabilities.numpy()
    golden = bundle.golden()
    assert runner.golden_error() < 1e-4
    np.testing.assert_allclose(golden["expected_probabilities"], expit(golden["expected_logits"]), atol=1e-5)
    assert np.abs(expected.sum(1) - 1).max() > 1e-3
    known = {row["diagnosis"] for row in bundle.samples()}
    assert known <= {"marked", "hazy", "marked, hazy"} and known


def test_concepts_only_are_learned_judged_and_not_exported(exported, tmp_path) -> None:
    _, data, _, csr, atlas = exported
    collection = without_classes(make_collection(160, 60, 40))
    cache = make_cache(collection)
    stage2 = PrototypeConfig(per_concept=2, width=8, blocks=1, epochs=4, batch_size=32)
    model = train_prototypes(collection, cache, stage2, SilentCallbacks())
    reasoner = train_head(collection, cache, model, HeadConfig(), SilentCallbacks())
    own = make_csr(model, reasoner, collection)
    calibrate_temperature(without_images(collection), cache, own)
    report = evaluate_predictions(collection, predict(without_images(collection), cache, own), SIDE)["test"]
    assert report["macro_f1"] is None and report["aurc"] is None
    assert report["concept_auroc"] > 0.9 and report["pointing_game"]["pairs"] > 0
    bare = replace(data, collection=without_classes(make_collection()))
    with pytest.raises(DataError, match="has concepts and no classes"):
        write_bundle(tmp_path / "bundle", bare, cache, csr, atlas, ExportConfig(), Provenance("robust", "", "", {}))
    assert not list(tmp_path.iterdir())


def test_each_split_needs_studies_with_and_without_every_class() -> None:
    collection = with_targets(make_collection())
    assert not list(validation_errors(collection))
    studies = collection.studies.copy()
    studies.loc[studies["split"] == "val", "target:hazy"] = 1.0
    studies.loc[studies["split"] == "test", "target:marked"] = 0.0
    found = "\n".join(validation_errors(replace(collection, studies=studies)))
    assert "class 'hazy' has no study without it in split 'val'" in found
    assert "class 'marked' has no study in split 'test'" in found


def test_nothing_is_compared_where_there_are_no_classes(exported) -> None:
    _, data, *_ = exported
    bare = replace(data, collection=without_classes(make_collection()))
    with pytest.raises(DataError, match="task is 'concepts', but the comparison is about finding classes"):
        ExperimentContext(bare, ConceptTrainingConfig(), SilentCallbacks())


def test_thresholds_are_those_that_val_chooses(trained) -> None:
    """A head that is unsure of itself finds nothing at a half, and everything at its own thresholds."""
    collection, cache, csr = trained
    data = without_images(collection)
    shy = csr.with_reasoner(copy.deepcopy(csr.reasoner))
    with torch.no_grad():
        shy.reasoner.head.bias -= 3
        shy.reasoner.temperature.fill_(3)
    thresholds = own_thresholds(data, cache, shy)
    said = predict(data, cache, shy, "val")
    assert said.rows.tolist() == collection.rows("val").tolist()
    assert thresholds.tolist() == choose_thresholds(collection.truth()[said.rows], said.probabilities).tolist()
    assert thresholds.max() < 0.5
    test = predict(data, cache, shy)
    at_own, at_half = (evaluate_predictions(collection, test, SIDE, each)["test"] for each in (thresholds, None))
    assert at_own["macro_f1"] > 0.85 > at_half["macro_f1"]
    assert at_own["auroc"] == at_half["auroc"] and at_own["aurc"] < at_half["aurc"]
    assert own_thresholds(without_images(make_collection()), cache, shy) is None


def test_a_bundle_holds_the_thresholds_and_abstains_from_them_on(exported, tmp_path, monkeypatch) -> None:
    _, data, cache, csr, atlas = exported
    monkeypatch.setattr(writing, "own_thresholds", lambda *given: np.array([0.07, 0.3]))
    config = ExportConfig(parity_images=4, abstain_risk=0.99)
    bundle, _ = write_bundle(tmp_path / "b", data, cache, csr, atlas, config, Provenance("robust", "", "", {}))
    assert bundle.manifest.thresholds == (0.07, 0.3)
    rows = data.collection.rows("val")
    with torch.no_grad():
        said = csr(torch.from_numpy(np.ascontiguousarray(data.images[rows]))).probabilities.numpy()
    expected = abstain_threshold(data.collection.truth()[rows], said, 0.99, np.array([0.07, 0.3]))
    assert bundle.manifest.abstain_below == pytest.approx(expected)


def test_the_report_has_average_precision_and_the_f1_of_rare_findings(trained) -> None:
    collection, cache, csr = trained
    assert rare_classes(collection) == []
    predictions = predict(without_images(collection), cache, csr)
    report = evaluate_predictions(collection, predictions, SIDE)["test"]
    truth = collection.truth()[predictions.rows]
    known = ~np.isnan(truth)
    expected = [
        average_precision_score(truth[known[:, t], t], predictions.probabilities[known[:, t], t]) for t in range(2)
    ]
    assert report["mean_average_precision"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert report["rare_f1"] is None
    studies = collection.studies.copy()
    train = collection.rows("train")
    studies.loc[train, "target:hazy"] = 0.0
    studies.loc[train[:4], "target:hazy"] = 1.0  # 4 of 160
    rare = replace(collection, studies=studies)
    assert rare_classes(rare) == [1]
    thresholds = np.array([0.5, 0.3])
    report = evaluate_predictions(rare, predictions, SIDE, thresholds)["test"]
    own = class_f1(truth[:, 1:], (predictions.probabilities[:, 1:] >= 0.3).astype(int))[0]
    assert report["rare_f1"] == pytest.approx(own, abs=1e-6)
