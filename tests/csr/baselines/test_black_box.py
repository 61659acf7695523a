"""The black box: its map is Grad-CAM, written down in closed form, and it learns."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csr.baselines.black_box import BlackBox, black_box, train_black_box
from csr.baselines.protocol import ExperimentContext, TrainedBackbone, predict
from csr.data.prepared import PreparedSet
from csr.evaluation.thresholds import validation_f1
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache, compute_features
from tests.csr.synthetic import make_collection, make_prepared

NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16, pooling="lse")
STILL = AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "prepared", make_collection())


def test_the_map_is_grad_cam_of_the_predicted_class_up_to_the_number_of_cells():
    """Selvaraju et al. 2017, eq. 1 and 2, with the gradients taken by autograd."""
    torch.manual_seed(0)
    model = ConceptModel(ConceptModelConfig("test_convnext", stride=8, context=None, pooling="average"), 1, 4).eval()
    system = BlackBox(model, concepts=3).eval()
    images = torch.randint(0, 255, (6, 1, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        answer = system.answer(images)
    features = model.features(images).detach().requires_grad_()
    logits = model.to_maps(features).mean((2, 3))
    predicted = logits.argmax(1)
    (gradient,) = torch.autograd.grad(logits.gather(1, predicted[:, None]).sum(), features)
    weights = gradient.mean((2, 3))
    gradcam = torch.einsum("bd,bdhw->bhw", weights, features).relu()
    assert gradcam.amax((1, 2)).min() > 0
    for concept in range(3):
        np.testing.assert_allclose(answer.maps[:, concept], 4 * 6 * gradcam.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answer.probabilities, logits.softmax(-1).detach(), atol=1e-6)
    assert answer.concepts is None
    assert answer.explanations.tolist() == [0] * 6


def test_the_foundation_is_trained_by_class_labels_and_pools_by_the_average(data, tmp_path):
    config = ConceptTrainingConfig(
        model=NET, augment=STILL, epochs=12, batch_size=8, learning_rate=4e-3, precision="float32"
    )
    own = ExperimentContext(data, config, SilentCallbacks())
    system = train_black_box(own)
    history = own.callbacks.history
    assert set(history[0]) == {"epoch", "train_class", "val_macro_f1", "val_macro_auroc"}
    assert history[-1]["train_class"] < 0.5 * history[0]["train_class"]
    assert history[-1]["val_macro_f1"] > 0.8
    assert system.model.config.pooling == "average"
    assert system.model.to_maps.out_channels == 3
    train = data.images[data.collection.rows("train")] / 255
    assert float(system.model.backbone.mean) == pytest.approx(train.mean(), abs=1e-5)

    rows = data.collection.rows("test")
    again = predict(black_box(resting(system.model, data, config, tmp_path)), data, rows)
    assert again.concepts is None
    assert again.peaks.shape == (len(rows), 3, 2)
    np.testing.assert_array_equal(again.explanations, 0)


def resting(model: ConceptModel, data: PreparedSet, config: ConceptTrainingConfig, folder: Path) -> ExperimentContext:
    compute_features(model, data, folder, SilentCallbacks())
    return ExperimentContext(data, config, SilentCallbacks(), TrainedBackbone(model, FeatureCache.open(folder)))


def figure(system: BlackBox, data: PreparedSet) -> float:
    rows = data.collection.rows("val")
    return validation_f1(data.collection.truth()[rows], predict(system, data, rows).probabilities)


@pytest.mark.parametrize("pooling", ["average", "lse"])
def test_a_last_layer_that_training_left_half_done_is_fitted_anew_and_a_good_one_stays(data, tmp_path, pooling):
    """The backbone stays as it was, for those that start from it."""
    config = ConceptTrainingConfig(
        model=replace(NET, pooling=pooling), augment=STILL, epochs=12, batch_size=8, learning_rate=4e-3
    )
    trained = train_black_box(ExperimentContext(data, config, SilentCallbacks(), pooling=pooling)).model.eval()
    good = resting(trained, data, config, tmp_path)
    own = figure(BlackBox(trained, 3), data)
    assert figure(black_box(good), data) >= own > 0.4

    spoilt = deepcopy(trained)
    with torch.no_grad():
        spoilt.to_maps.weight.zero_()
    before = {name: value.clone() for name, value in spoilt.state_dict().items()}
    mended = black_box(resting(spoilt, data, config, tmp_path))
    assert figure(mended, data) > figure(BlackBox(spoilt, 3), data) + 0.2
    assert all(torch.equal(value, before[name]) for name, value in spoilt.state_dict().items())
    assert mended.model.config.pooling == "average"
