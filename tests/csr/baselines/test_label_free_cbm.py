"""Label-free CBM: the similarity by hand, directions that follow the encoder, concepts that do not are left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csr.baselines.label_free_cbm import CUTOFF, SYSTEMS, cubed_similarity, fit_directions, label_free_cbm
from csr.baselines.last_layer import pooled_features
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict, refusal
from csr.comparison.training import run_system
from csr.errors import DataError
from csr.evaluation.metrics import mean_auroc
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from tests.csr.synthetic import make_cache, make_collection, make_prepared

NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=6)
CONFIG = ConceptTrainingConfig(model=NET, epochs=2, batch_size=8, precision="float32")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ExperimentContext:
    """Features show the concepts in their first channels; the encoder sees the first two, and knows no third."""
    data = make_prepared(tmp_path_factory.mktemp("data") / "prepared", make_collection(train=90, val=60))
    torch.manual_seed(0)
    shared = TrainedBackbone(ConceptModel(NET, 1, 3).eval(), make_cache(data.collection))
    seen = shared.cache.features.astype(np.float64).mean((2, 3))[:, :3]
    scores = 0.2 + 0.05 * seen + 0.001 * np.random.default_rng(0).standard_normal(seen.shape)
    scores[:, 2] = np.nan
    return ExperimentContext(data, CONFIG, SilentCallbacks(), shared, text_scores=scores)


def test_the_similarity_is_the_cosine_of_standardised_cubes() -> None:
    rng = np.random.default_rng(1)
    found, wanted = rng.standard_normal((2, 40, 3))
    expected = []
    for one, other in zip(found.T, wanted.T, strict=True):
        cubes = [((each - each.mean()) / each.std()) ** 3 for each in (one, other)]
        expected.append(cubes[0] @ cubes[1] / np.linalg.norm(cubes[0]) / np.linalg.norm(cubes[1]))
    np.testing.assert_allclose(cubed_similarity(torch.from_numpy(found), torch.from_numpy(wanted)), expected)
    scaled = cubed_similarity(torch.from_numpy(3 * found + 7), torch.from_numpy(found))
    np.testing.assert_allclose(scaled, 1)


def test_directions_follow_the_scores_whatever_the_features_scale() -> None:
    rng = np.random.default_rng(2)
    features = torch.from_numpy(rng.standard_normal((400, 5)) * [1, 10, 0.1, 1, 1] + [0, 50, 0, 1, 0])
    wanted = torch.stack([features[:, 1] / 10, features[:, 2] * 10 - features[:, 3]], 1)
    torch.manual_seed(0)
    vectors, offsets, similar = fit_directions(features[:300], wanted[:300], features[300:], wanted[300:])
    assert similar.min() > 0.9
    scores = features[:300] @ vectors.T + offsets
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scores.std(0), 1, atol=1e-6)
    torch.manual_seed(0)
    again = fit_directions(features[:300], wanted[:300], features[300:], wanted[300:])
    np.testing.assert_array_equal(again[0], vectors)


def test_what_the_encoder_sees_is_found_and_what_it_was_not_asked_about_is_left_out(context: ExperimentContext) -> None:
    system = label_free_cbm(context)
    val = context.data.collection.rows("val")
    features = torch.from_numpy(pooled_features(context.shared_backbone, val))  # type: ignore[arg-type]
    scores = features @ system.to_maps.weight[:, :, 0, 0].T + system.to_maps.bias
    labels = context.data.collection.concept_labels()[val]
    assert mean_auroc(labels[:, :2], scores.detach().numpy()[:, :2]) > 0.95
    assert not scores[:, 2].any() and not system.head.weight[:, 2].any()
    predictions = predict(system, context.data, val)
    assert predictions.explanations is not None and predictions.explanations.max() <= 2


def test_an_encoder_that_sees_nothing_is_no_bottleneck(context: ExperimentContext) -> None:
    assert context.text_scores is not None
    noise = np.random.default_rng(3).standard_normal(context.text_scores.shape)
    with pytest.raises(DataError, match=f"on val is .*, {CUTOFF} is needed"):
        label_free_cbm(replace(context, text_scores=noise))


def test_without_an_encoder_it_is_left_out_and_says_why(context: ExperimentContext) -> None:
    (entry,) = SYSTEMS.values()
    assert refusal(entry, context.data.collection, encoder=True) is None
    reason = refusal(entry, context.data.collection, encoder=False)
    assert reason == "Label-free CBM learns from an image-text encoder, and data.text_concepts names none"
    with pytest.raises(DataError, match=r"data\.text_concepts names none: leave it out"):
        run_system(entry, replace(context, text_scores=None))
    with pytest.raises(DataError, match="needs the scores"):
        label_free_cbm(replace(context, text_scores=None))
