"""A step of training waits for the GPU as seldom as is stated here; each wait leaves the GPU without work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from csr.baselines.intcem import IntCEMConfig, studies_of, train_bottleneck
from csr.comparison.shared_backbones import train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES
from csr.training.augmentation import AugmentConfig
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import train_concepts, validate
from csr.training.features import compute_features
from csr.training.head import train_head
from csr.training.prediction import predict
from csr.training.prototypes import train_prototypes
from csr.training.runtime import device
from tests.csr.device.claimed import Accelerator
from tests.csr.device.conftest import ENTRIES, STAGE1, STAGE2, STAGE3, resting_on

WILD = AugmentConfig(shift=0.4, flip=True)  # moves that cut findings away, and are drawn again


class Counted(SilentCallbacks):
    """Notes what each step but an epoch's last reads from the GPU."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__()
        self._accelerator = accelerator
        self.steps: list[Counter[str]] = []

    def track(self, items: Iterable, total: int, description: str) -> Iterable:
        before = None
        for item in items:
            now = self._accelerator.reads.copy()
            if before is not None:
                self.steps.append(now - before)
            before = now
            yield item

    def assert_at_most(self, **reads: int) -> None:
        assert len(self.steps) > 1
        for kind in ("number", "copy", "shape", "upload"):
            most = max(step[kind] for step in self.steps)
            assert most <= reads.get(kind, 0), f"{kind}: {most}"


def test_a_step_of_stage_1_reads_nothing(stages, accelerator):
    callbacks = Counted(accelerator)
    train_concepts(stages.data, replace(STAGE1, augment=WILD), callbacks)
    callbacks.assert_at_most()


@pytest.mark.parametrize("extra", [0.0, 1.0])
def test_a_step_of_stage_2_reads_nothing(stages, accelerator, extra):
    callbacks = Counted(accelerator)
    train_prototypes(stages.data.collection, stages.cache, replace(STAGE2, absence=extra, agreement=extra), callbacks)
    callbacks.assert_at_most()


def test_a_step_of_stage_3_reads_nothing(stages, accelerator):
    callbacks = Counted(accelerator)
    train_head(stages.data.collection, stages.cache, stages.prototype_model(), STAGE3, callbacks)
    callbacks.assert_at_most()


def test_features_are_read_back_a_batch_at_a_time(stages, accelerator, tmp_path):
    callbacks = Counted(accelerator)
    compute_features(stages.concept_model(), stages.data, tmp_path, callbacks, batch_size=16)
    callbacks.assert_at_most(copy=2)


@pytest.mark.parametrize("count", [20, 60, 150])
def test_predicting_reads_what_is_said_once_however_many_studies_there_are(stages, accelerator, count):
    """Probabilities, concepts and where the maps peak; the maps themselves stay where they are."""
    csr = stages.csr().to(device())
    repeated = np.resize(stages.data.collection.rows("test"), count)
    accelerator.reads.clear()
    with patch.object(type(stages.data.collection), "rows", lambda self, split: repeated):
        assert len(predict(stages.data, stages.cache, csr).peaks) == count
    assert +accelerator.reads == {"copy": 3}


def test_an_epochs_validation_reads_its_logits_once(stages, accelerator):
    model, rows = stages.concept_model().to(device()), np.resize(stages.data.collection.rows("val"), 150)
    accelerator.reads.clear()
    validate(model, stages.data, rows)
    assert +accelerator.reads == {"copy": 1}


def test_images_and_features_are_sent_from_memory_that_a_gpu_reads_by_itself(stages, accelerator):
    epoch = len(stages.data.collection.labelled_rows("train"))
    train_concepts(stages.data, replace(STAGE1, epochs=1), SilentCallbacks())
    assert accelerator.pinned >= epoch // STAGE1.batch_size
    accelerator.pinned = 0
    train_prototypes(stages.data.collection, stages.cache, replace(STAGE2, epochs=1), SilentCallbacks())
    assert accelerator.pinned >= 2 * (epoch // STAGE2.batch_size)


@pytest.mark.parametrize("name", ["cbm_joint", "protopnet", "protopool", "prototree", "pipnet"])
def test_a_step_of_a_baseline_reads_nothing(name, context, backbones, accelerator, monkeypatch):
    monkeypatch.setattr("csr.baselines.protopnet.TUNING_STEPS", 2)
    callbacks = Counted(accelerator)
    entry = ENTRIES[name]
    entry.train(replace(resting_on(entry, context, backbones), callbacks=callbacks))
    callbacks.assert_at_most()


def test_a_step_of_intcem_reads_nothing(context, backbones, accelerator):
    callbacks = Counted(accelerator)
    own = resting_on(ENTRIES["intcem_shared"], context, backbones)
    train, val = (studies_of(own, split) for split in ("train", "val"))
    train_bottleneck(train, val, own.classes, IntCEMConfig(epochs=2, batch_size=8), callbacks)
    callbacks.assert_at_most()


def test_a_step_of_the_black_box_reads_nothing(context, accelerator, tmp_path):
    callbacks = Counted(accelerator)
    short = replace(context, config=replace(context.config, epochs=2), callbacks=callbacks)
    train_shared_backbone(SHARED_BACKBONES["classes"], short, tmp_path)
    callbacks.assert_at_most(copy=2)  # two a batch of features
