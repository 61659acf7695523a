"""What the tests on a claimed GPU share: made-up data, and all three stages trained on the CPU as checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from csr.baselines.protocol import Entry, ExperimentContext
from csr.comparison.csr_system import Recipe
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES, systems
from csr.data.prepared import PreparedSet
from csr.network.checkpoint import Checkpoint
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.prototypes import PrototypeModel, prototype_model_checkpoint, prototype_model_from_checkpoint
from csr.network.rebuild import concept_model_checkpoint, concept_model_from_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.runtime import use_device
from csr.training.temperature import calibrate_temperature
from tests.csr.device.claimed import Accelerator
from tests.csr.synthetic import make_collection, make_prepared

NET = ConceptModelConfig("test_convnext", stride=8, context=16, width=16)
# float32, which is the same to the last bit on the CPU; what `auto` chooses on a GPU is the baselines' to try
STAGE1 = ConceptTrainingConfig(model=NET, epochs=2, batch_size=8, precision="float32")
STAGE2 = PrototypeConfig(per_concept=8, width=8, blocks=1, epochs=3, batch_size=10, reseed=True, precision="float32")
STAGE3 = HeadConfig(epochs=2, batch_size=10, least_usage=0.1, concept_dropout=0.3)
ROBUST = Recipe(PrototypeConfig(per_concept=2, width=8, epochs=1), HeadConfig(epochs=2))
PAPER = Recipe(
    PrototypeConfig(per_concept=7, width=8, absence=0.0, agreement=0.0, standardise=False, epochs=1),
    HeadConfig(clip=False, floor="zero", least_usage=0.0, epochs=2),
)
ENTRIES = systems({"robust": ROBUST, "paper": PAPER}, encoder=False)
EPOCHS = 6  # of which those that start from the black box have half


@dataclass(frozen=True)
class Stages:
    """What each stage wrote. A stage reads these files into new models, on the CPU, so tests do too."""

    data: PreparedSet
    cache: FeatureCache
    stage1: Checkpoint
    stage2: Checkpoint
    stage3: Checkpoint

    def concept_model(self) -> ConceptModel:
        return concept_model_from_checkpoint(copy.deepcopy(self.stage1))

    def prototype_model(self) -> PrototypeModel:
        return prototype_model_from_checkpoint(copy.deepcopy(self.stage2))

    def csr(self) -> TrainedCSR:
        return TrainedCSR.from_checkpoint(copy.deepcopy(self.stage3))


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """A claimed GPU for one test."""
    use_device("auto")
    with Accelerator() as opened:
        yield opened


@pytest.fixture(scope="package")
def stages(tmp_path_factory) -> Stages:
    """All stages, trained on the CPU: what those that are trained on the claimed GPU are compared with."""
    folder: Path = tmp_path_factory.mktemp("stages")
    data = make_prepared(folder / "prepared", make_collection())
    callbacks = SilentCallbacks()
    model = train_concepts(data, STAGE1, callbacks)
    (folder / "features").mkdir()
    compute_features(model, data, folder / "features", callbacks)
    cache = FeatureCache.open(folder / "features")
    stage2 = train_prototypes(data.collection, cache, STAGE2, callbacks)
    reasoner = train_head(data.collection, cache, stage2, STAGE3, callbacks)
    csr = TrainedCSR(model, stage2, reasoner, data.collection.concepts, data.collection.classes)
    calibrate_temperature(data, cache, csr)
    written = concept_model_checkpoint(model), prototype_model_checkpoint(stage2), csr.to_checkpoint()
    return Stages(data, cache, *written)


@pytest.fixture(scope="package")
def context(stages) -> ExperimentContext:
    return ExperimentContext(
        stages.data, replace(STAGE1, epochs=EPOCHS, batch_size=20, seed=3, precision="auto"), SilentCallbacks()
    )


@pytest.fixture(scope="package")
def backbones(context, tmp_path_factory):
    """All shared backbones, trained on the CPU; one is opened anew for each system, as every stage does."""
    folder = tmp_path_factory.mktemp("backbones")
    short = replace(context, config=replace(context.config, epochs=1))
    for kind, train in SHARED_BACKBONES.items():
        (folder / kind).mkdir()
        train_shared_backbone(train, short, folder / kind)
    return folder


def resting_on(entry: Entry, context: ExperimentContext, backbones: Path) -> ExperimentContext:
    """The context with the shared backbone of a system, if it has one, on the CPU as its file is."""
    if entry.shared_backbone is None:
        return context
    return replace(context, shared_backbone=open_shared_backbone(backbones / entry.shared_backbone)[0])
