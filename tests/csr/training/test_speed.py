"""What makes training faster changes what it is asked to change, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csr.errors import ConfigError
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training import concepts
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, concept_logits, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.runtime import tune_gpu
from tests.csr.synthetic import make_collection, make_prepared

NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16)
CONFIG = ConceptTrainingConfig(model=NET, epochs=1, batch_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("speed") / "prepared", make_collection())


def features(model: ConceptModel, data, folder, precision) -> FeatureCache:
    folder.mkdir()
    compute_features(model, data, folder, SilentCallbacks(), precision=precision)
    return FeatureCache.open(folder)


def test_features_and_validation_are_computed_in_the_precision_that_is_asked_for(data, tmp_path):
    torch.manual_seed(0)
    model = ConceptModel(NET, data.channels, 3).eval()
    exact, rough = (features(model, data, tmp_path / kind, kind) for kind in ("float32", "bfloat16"))
    assert rough.features.dtype == np.float16 and rough.cam.dtype == np.float32
    assert not np.array_equal(exact.features, rough.features)
    np.testing.assert_allclose(rough.features, exact.features, atol=0.05 * float(exact.features.std()) + 0.02)
    rows = data.collection.rows("val")
    logits = [concept_logits(model, data, rows, kind) for kind in ("float32", "auto", "bfloat16")]
    assert torch.equal(logits[0], logits[1])  # which is float32 on a CPU
    assert not torch.equal(logits[0], logits[2])
    torch.testing.assert_close(logits[0], logits[2], atol=0.05, rtol=0.05)


def test_a_compiled_step_trains_the_model_itself(data, monkeypatch):
    """What compiles is torch's; here it hands on, and is asked once."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(model) or (lambda images: model(images)))
    plain = train_concepts(data, CONFIG, SilentCallbacks()).state_dict()
    assert not asked
    compiled = train_concepts(data, replace(CONFIG, compile=True), SilentCallbacks()).state_dict()
    assert len(asked) == 1 and all(torch.equal(plain[name], compiled[name]) for name in plain)


def test_compiling_is_refused_where_it_would_not_hold(data, monkeypatch):
    pretrained = replace(NET, checkpoint="weights.pt")
    with pytest.raises(ValueError, match=r"concepts.compile: what a frozen body says is looked up; set it to false"):
        replace(CONFIG, model=pretrained, freeze="all", compile=True)
    monkeypatch.setattr(concepts, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"concepts.compile: works in one process only"):
        train_concepts(data, replace(CONFIG, compile=True), SilentCallbacks())


@pytest.fixture
def switches():
    """Of torch; as they were, afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    yield lambda: (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize(
    ("tf32", "convolutions", "matrices"), [("none", False, False), ("convolutions", True, False), ("all", True, True)]
)
@pytest.mark.parametrize("autotune", [True, False])
def test_a_gpu_is_told_what_it_may_round_and_try(switches, tf32, convolutions, matrices, autotune):
    tune_gpu(tf32, autotune)
    assert switches() == (convolutions, matrices, autotune)


def test_by_default_only_convolutions_are_rounded_and_algorithms_are_tried(switches):
    tune_gpu()
    assert switches() == (True, False, True)
