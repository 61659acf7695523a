"""Post-hoc concept bottleneck models: concept activation vectors by hand, the sparse layer, and the residual."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csr.baselines import posthoc_cbm as module
from csr.baselines.black_box import train_black_box
from csr.baselines.last_layer import pooled_features
from csr.baselines.posthoc_cbm import PosthocCBM, concept_bank, hybrid_posthoc_cbm, posthoc_cbm
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.evaluation.metrics import macro_f1
from csr.network.backbone import Backbone, BackboneConfig
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache, compute_features
from tests.csr.synthetic import make_cache, make_collection, make_prepared, with_labels

NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=6)
CONFIG = ConceptTrainingConfig(model=NET, epochs=2, batch_size=8, precision="float32")
SQUARE = np.array([[0, 0], [0, 1], [4, 0], [4, 1]], np.float32)  # the plane between left and right is x = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared images whose third concept is unknown in every fourth study."""
    collection = make_collection(train=60, val=30)
    labels = collection.concept_labels()
    labels[::4, 2] = np.nan
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", with_labels(collection, labels))


@pytest.fixture(scope="module")
def context(data):
    """Rests on made-up features that show the concepts in their first three channels."""
    torch.manual_seed(0)
    model = ConceptModel(NET, 1, 3).eval()
    return ExperimentContext(data, CONFIG, SilentCallbacks(), TrainedBackbone(model, make_cache(data.collection)))


@pytest.fixture(scope="module")
def plain(context):
    return posthoc_cbm(context)


@pytest.fixture(scope="module")
def hybrid(context):
    return hybrid_posthoc_cbm(context)


def splits(context: ExperimentContext) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """f̄ and classes of each split."""
    collection = context.data.collection
    every = context.shared_backbone.cache.features.astype(np.float64).mean((2, 3))
    return {
        name: (every[collection.rows(name)], collection.truth()[collection.rows(name)])
        for name in ("train", "val", "test")
    }


def bank_of(system: PosthocCBM) -> tuple[np.ndarray, np.ndarray]:
    return system.to_maps.weight.detach().numpy()[:, :, 0, 0], system.to_maps.bias.detach().numpy()


# concept activation vectors


def test_a_vector_is_the_unit_normal_of_the_plane_between_present_and_absent():
    labels = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]], np.float32)
    vectors, offsets = concept_bank(SQUARE, labels, 100.0)
    np.testing.assert_allclose(vectors, [[1, 0], [0, 1], [-1, 0]], atol=0.02)
    np.testing.assert_allclose(offsets, [-2, -0.5, 2], atol=0.02)
    np.testing.assert_allclose(SQUARE @ vectors[0] + offsets[0], [-2, -2, 2, 2], atol=0.05)  # signed distances


def test_a_vector_has_length_one_whatever_the_strength():
    labels = np.array([[0], [0], [1], [1]], np.float32)
    for strength in module.SVM_STRENGTHS:
        assert np.linalg.norm(concept_bank(SQUARE, labels, strength)[0]) == pytest.approx(1)


def test_kinds_of_images_weigh_alike_however_many_there_are():
    """Overlapping points: without the weights the rarer kind would be given up."""
    rng = np.random.default_rng(0)
    absent, present = rng.normal(-0.5, 1, (400, 1)), rng.normal(0.5, 1, (20, 1))
    features = np.concatenate([absent, present]).astype(np.float32)
    labels = np.repeat([0.0, 1.0], [400, 20])[:, None].astype(np.float32)
    vectors, offsets = concept_bank(features, labels, 0.1)
    scores = features @ vectors.T + offsets
    assert (scores[400:] > 0).mean() > 0.5
    assert (scores[:400] < 0).mean() > 0.5


def test_images_whose_concept_is_unknown_are_left_out_of_its_vector_only():
    rng = np.random.default_rng(1)
    features = rng.standard_normal((40, 3)).astype(np.float32)
    labels = (features[:, :2] + 0.3 * rng.standard_normal((40, 2)) > 0).astype(np.float32)
    labels[:10, 0] = np.nan
    vectors, offsets = concept_bank(features, labels, 1.0)
    known = concept_bank(features[10:], labels[10:, :1], 1.0)
    every = concept_bank(features, labels[:, 1:], 1.0)
    np.testing.assert_allclose(vectors, np.concatenate([known[0], every[0]]), atol=1e-6)
    np.testing.assert_allclose(offsets, np.concatenate([known[1], every[1]]), atol=1e-6)


def test_features_are_averaged_over_space_for_any_rows():
    features = np.random.default_rng(0).normal(0, 1, (600, 4, 2, 3)).astype(np.float16)
    shared = TrainedBackbone(ConceptModel(NET, 1, 3), FeatureCache(features, np.zeros((600, 3, 2, 3))))
    rows = np.random.default_rng(1).permutation(600)[:530]
    expected = features.astype(np.float64)[rows].sum((2, 3)) / 6
    np.testing.assert_allclose(pooled_features(shared, rows), expected, atol=1e-5)


def test_the_svms_strength_is_one_for_all_concepts_and_the_best_on_val(context, monkeypatch):
    """Only the bank of C = 1 looks at the channels that carry the concepts; those of the others are shuffled."""
    seen = []

    def bank(features, labels, strength):
        seen.append((features, labels, strength))
        own = np.eye(6, dtype=np.float32)[:3]
        return (own if strength == 1.0 else np.roll(own, 1, 0)), np.full(3, -0.2, np.float32)

    monkeypatch.setattr(module, "concept_bank", bank)
    vectors, offsets = bank_of(posthoc_cbm(context))
    np.testing.assert_array_equal(vectors, np.eye(6)[:3])
    np.testing.assert_allclose(offsets, -0.2)
    assert [strength for _, _, strength in seen] == [0.001, 0.01, 0.1, 1.0, 10.0]
    train = context.data.collection.rows("train")
    for features, labels, _ in seen:
        np.testing.assert_allclose(features, splits(context)["train"][0], atol=1e-5)
        np.testing.assert_array_equal(labels, context.data.collection.concept_labels()[train])


# the system


def make_system(residual: bool) -> PosthocCBM:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig("test_convnext", stride=8, context=16, width=6), 1)
    vectors = torch.nn.functional.normalize(torch.randn(3, 6), dim=1)
    head = torch.nn.Linear(3, 4)
    with torch.no_grad():
        head.weight[:, 1] = 0
        head.weight[:3, 2] = 0  # used by the last class alone
    return PosthocCBM(backbone, vectors, torch.randn(3), head, torch.nn.Linear(6, 4) if residual else None).eval()


@pytest.mark.parametrize("residual", [False, True])
def test_answers_follow_the_formulas(residual):
    system = make_system(residual)
    images = torch.randint(0, 255, (2, 1, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        answer = system.answer(images)
        features = system.backbone(images).double().numpy()
    vectors, offsets = bank_of(system)
    for b, k in np.ndindex(2, 3):
        for i, j in np.ndindex(4, 6):
            own = sum(vectors[k, d] * features[b, d, i, j] for d in range(6)) + offsets[k]
            assert float(answer.maps[b, k, i, j]) == pytest.approx(own, abs=1e-4)
    scores = features.mean((2, 3)) @ vectors.T + offsets
    np.testing.assert_allclose(answer.concepts, scores, atol=1e-4)
    logits = scores @ system.head.weight.detach().numpy().T + system.head.bias.detach().numpy()
    if residual:
        pooled = features.mean((2, 3))
        logits += pooled @ system.residual.weight.detach().numpy().T + system.residual.bias.detach().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)
    assert answer.explanations.tolist() == [2, 2]  # concepts with a weight for any class, with or without residual


def test_the_sparse_layer_gets_scores_of_the_chosen_bank_and_the_papers_ratio(context, monkeypatch):
    calls = []

    def record(own, train_inputs, val_inputs, l1_ratio):
        calls.append((train_inputs, val_inputs, l1_ratio))
        return torch.nn.Linear(3, 3)

    monkeypatch.setattr(module, "fit_last_layer", record)
    vectors, offsets = bank_of(posthoc_cbm(context))
    ((train_inputs, val_inputs, l1_ratio),) = calls
    np.testing.assert_allclose(train_inputs, splits(context)["train"][0] @ vectors.T + offsets, atol=1e-4)
    np.testing.assert_allclose(val_inputs, splits(context)["val"][0] @ vectors.T + offsets, atol=1e-4)
    assert l1_ratio == 0.99


def logits_of(system: PosthocCBM, features: np.ndarray) -> torch.Tensor:
    vectors, offsets = bank_of(system)
    pooled = torch.from_numpy(features).float()
    with torch.no_grad():
        logits = system.head(pooled @ torch.from_numpy(vectors).T + torch.from_numpy(offsets))
        return logits if system.residual is None else logits + system.residual(pooled)


def test_vectors_and_classes_are_found_in_features_that_show_the_concepts(plain, context):
    vectors, _ = bank_of(plain)
    np.testing.assert_array_equal(vectors.argmax(1), [0, 1, 2])  # the loud channel of each concept
    features, classes = splits(context)["test"]
    assert macro_f1(classes, logits_of(plain, features).argmax(1).numpy(), 3) > 0.85
    assert plain.residual is None


def test_the_hybrid_keeps_the_sparse_layer_and_adds_to_its_logits(plain, hybrid, context, monkeypatch):
    assert torch.equal(hybrid.to_maps.weight, plain.to_maps.weight)
    assert torch.equal(hybrid.head.weight, plain.head.weight)
    assert torch.equal(hybrid.head.bias, plain.head.bias)
    features, classes = splits(context)["train"]
    truth = torch.from_numpy(classes)
    before, after = (
        float(torch.nn.functional.cross_entropy(logits_of(system, features), truth)) for system in (plain, hybrid)
    )
    assert after < before

    calls = []
    fit = module.fit_last_layer

    def record(own, *inputs, **given):
        calls.append((inputs, given))
        return fit(own, *inputs, **given)

    monkeypatch.setattr(module, "fit_last_layer", record)
    hybrid_posthoc_cbm(context)
    inputs, given = calls[1]
    for split, own, logits in zip(("train", "val"), inputs, given["given"], strict=True):
        np.testing.assert_allclose(own, splits(context)[split][0], atol=1e-5)
        np.testing.assert_allclose(logits, logits_of(plain, splits(context)[split][0]), atol=1e-4)


def test_the_residual_finds_what_no_concept_says(context, data):
    """Classes that another channel carries, and concepts that say nothing about them."""
    rng = np.random.default_rng(0)
    labels = (rng.random((len(data.collection.studies), 3)) < 0.5).astype(np.float32)
    cache = context.shared_backbone.cache
    features = rng.normal(0, 0.3, cache.features.shape)
    features[:, :3] += 2 * labels[:, :, None, None]
    features[:, 3] += data.collection.truth()[:, None, None]
    own = ExperimentContext(
        type(data)(with_labels(data.collection, labels), data.images, data.path),
        CONFIG,
        SilentCallbacks(),
        TrainedBackbone(context.shared_backbone.model, FeatureCache(features.astype(np.float16), cache.cam)),
    )
    test, classes = splits(own)["test"]
    f1 = [
        macro_f1(classes, logits_of(train(own), test).argmax(1).numpy(), 3)
        for train in (posthoc_cbm, hybrid_posthoc_cbm)
    ]
    assert f1[0] < 0.6
    assert f1[1] > 0.9


def test_on_a_trained_black_box_images_are_answered_as_the_cache_is(data, tmp_path):
    black = train_black_box(ExperimentContext(data, CONFIG, SilentCallbacks()))
    compute_features(black.model, data, tmp_path, SilentCallbacks())
    own = ExperimentContext(data, CONFIG, SilentCallbacks(), TrainedBackbone(black.model, FeatureCache.open(tmp_path)))
    system = hybrid_posthoc_cbm(own)
    predictions = predict(system, data, data.collection.rows("test"))
    expected = logits_of(system, splits(own)["test"][0]).softmax(-1)
    np.testing.assert_allclose(predictions.probabilities, expected, atol=2e-3)
    assert predictions.concepts.shape == (12, 3)
    assert predictions.peaks.shape == (12, 3, 2)
    used = int((system.head.weight != 0).any(0).sum())
    np.testing.assert_array_equal(predictions.explanations, used)
    assert not own.callbacks.history  # the black box is not trained again
