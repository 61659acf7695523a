"""One tiny training run, shared by the whole session: real stages on a real, small phantom, nothing faked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None)  # a busy machine is slow; what must be quick is marked `timed`
settings.load_profile("tests")

for variable, value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_WAIT_POLICY": "passive",
}.items():
    os.environ[variable] = value


@dataclass(frozen=True)
class TinyRun:
    """Everything that stages 1 to 3 and the export made from a phantom of 64-pixel images."""

    data: object  # csr.data.prepared.PreparedSet
    cache: object  # csr.training.features.FeatureCache
    csr: object  # csr.network.trained.TrainedCSR
    bundle: object  # csr.bundle.format.Bundle
    parity: float
    folder: Path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of all stages: 8 concepts more than noise is not expected of it, but every number in it is computed."""
    from csr.bundle.atlas import build_atlas
    from csr.bundle.writing import ExportConfig, Provenance, write_bundle
    from csr.data.phantom import PhantomConfig, generate
    from csr.data.prepared import PreparedSet
    from csr.network.concept_model import ConceptModelConfig
    from csr.network.trained import TrainedCSR
    from csr.training.callbacks import SilentCallbacks
    from csr.training.concepts import ConceptTrainingConfig, train_concepts
    from csr.training.features import FeatureCache, compute_features
    from csr.training.head import HeadConfig, train_head
    from csr.training.prototypes import PrototypeConfig, train_prototypes
    from csr.training.temperature import calibrate_temperature

    folder = tmp_path_factory.mktemp("tiny")
    generate(PhantomConfig(train=160, val=60, test=60, contrast=2.0), 64, folder / "prepared")
    data = PreparedSet.open(folder / "prepared")
    callbacks = SilentCallbacks()
    stage1 = ConceptTrainingConfig(
        ConceptModelConfig("regnetx_002"), epochs=1, batch_size=32, learning_rate=2e-3, precision="float32"
    )
    concept_model = train_concepts(data, stage1, callbacks)
    (folder / "features").mkdir()
    compute_features(concept_model, data, folder / "features", callbacks)
    cache = FeatureCache.open(folder / "features")
    stage2 = PrototypeConfig(per_concept=3, width=32, epochs=2)
    prototype_model = train_prototypes(data.collection, cache, stage2, callbacks)
    reasoner = train_head(data.collection, cache, prototype_model, HeadConfig(epochs=5), callbacks)
    collection = data.collection
    csr = TrainedCSR(concept_model, prototype_model, reasoner, collection.concepts, collection.classes)
    calibrate_temperature(data, cache, csr)
    atlas = build_atlas(data, cache, csr)
    origin = Provenance("robust", data.digest(), "test", {"iid": {"macro_f1": 0.5}})
    bundle, parity = write_bundle(folder / "bundle", data, cache, csr, atlas, ExportConfig(), origin)
    return TinyRun(data, cache, csr, bundle, parity, folder)


@pytest.fixture(scope="session")
def multilabel_bundle(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The tiny run's bundle with another head: a study has every disease whose rule reaches the threshold, or none.

    What comes before the head knows no classes, so it is the same.
    """
    from dataclasses import replace

    import numpy as np

    from csr.bundle.atlas import build_atlas
    from csr.bundle.writing import ExportConfig, Provenance, write_bundle
    from csr.data.phantom.plan import RULE_THRESHOLD, RULE_WEIGHTS
    from csr.data.prepared import PreparedSet
    from csr.network.trained import TrainedCSR
    from csr.training.callbacks import SilentCallbacks
    from csr.training.head import HeadConfig, train_head
    from csr.training.temperature import calibrate_temperature

    given: PreparedSet = tiny_run.data  # type: ignore[assignment]
    diseases = tuple(RULE_WEIGHTS.index)
    present = given.collection.concept_labels() @ RULE_WEIGHTS[list(given.collection.concepts)].to_numpy().T
    targets = (present >= RULE_THRESHOLD).astype(np.float32)
    targets[given.collection.rows("train")[0], 0] = np.nan
    columns = {f"target:{name}": targets[:, t] for t, name in enumerate(diseases)}
    studies = given.collection.studies.drop(columns="label").assign(**columns)
    collection = replace(given.collection, classes=diseases, studies=studies, task="multilabel")
    data = replace(given, collection=collection)
    head = HeadConfig(epochs=5)
    reasoner = train_head(collection, tiny_run.cache, tiny_run.csr.prototype_model, head, SilentCallbacks())
    given_csr: TrainedCSR = tiny_run.csr  # type: ignore[assignment]
    csr = TrainedCSR(
        given_csr.concept_model, given_csr.prototype_model, reasoner, collection.concepts, collection.classes
    )
    calibrate_temperature(data, tiny_run.cache, csr)
    atlas = build_atlas(data, tiny_run.cache, csr)
    origin = Provenance("robust", given.digest(), "test", {"iid": {"macro_f1": 0.5}})
    folder = tmp_path_factory.mktemp("multilabel") / "bundle"
    bundle, _ = write_bundle(folder, data, tiny_run.cache, csr, atlas, ExportConfig(), origin)
    return bundle


@pytest.fixture(scope="session", params=["int8", "float16"])
def reduced_bundle(request: pytest.FixtureRequest, tiny_run: TinyRun) -> object:
    """The tiny run's bundle with its encoder in another precision, which may change much of what is hardly trained."""
    import numpy as np

    from csr.bundle.atlas import Atlas
    from csr.bundle.reduced import ReducedLimits
    from csr.bundle.writing import ExportConfig, Provenance, write_bundle

    limits = ReducedLimits(agreement=0.5, f1=0.3, pointing=0.5, probability=0.5, fit=0.2)
    config = ExportConfig(
        precision=request.param, calibration_images=24, reduced_limits=limits, parity_images=8, abstain_risk=0.9
    )
    atlas = Atlas(tiny_run.bundle.atlas(), np.array(tiny_run.bundle.crops()))  # type: ignore[attr-defined]
    origin = Provenance("robust", tiny_run.data.digest(), "test", {"iid": {"macro_f1": 0.5}})  # type: ignore[attr-defined]
    folder = tiny_run.folder / request.param
    bundle, _ = write_bundle(folder, tiny_run.data, tiny_run.cache, tiny_run.csr, atlas, config, origin)  # type: ignore[arg-type]
    return bundle


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small image-text encoder, trained here on shapes and their captions."""
    import torch

    from tests.csr.toy_encoder import train_encoder

    file = tmp_path_factory.mktemp("toy_encoder") / "toy.pt"
    torch.save(train_encoder().state_dict(), file)
    return file
