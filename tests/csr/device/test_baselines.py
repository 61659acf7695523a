"""Every system of the comparison and every shared backbone on a GPU, claimed: trained, judged and timed.

With bfloat16, as on such a GPU, so that types are mixed where they would be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from csr.baselines.intcem import TRIES
from csr.comparison.latency import answer_latency
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.comparison.systems import SHARED_BACKBONES
from csr.comparison.training import run_system
from tests.csr.device.claimed import Accelerator, ClaimedTensor
from tests.csr.device.conftest import ENTRIES, resting_on


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    with Accelerator(bfloat16=True) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["concepts_lse", "classes"])
def test_a_shared_backbone(kind, context, accelerator, tmp_path):
    short = replace(context, config=replace(context.config, epochs=1))
    train_shared_backbone(SHARED_BACKBONES[kind], short, tmp_path)
    opened, _ = open_shared_backbone(tmp_path)
    assert np.isfinite(opened.cache.features).all()


@pytest.mark.parametrize("name", ENTRIES)
def test_a_system(name, context, backbones, accelerator, monkeypatch):
    monkeypatch.setattr("csr.baselines.protopnet.TUNING_STEPS", 20)
    monkeypatch.setattr("csr.baselines.pipnet.PRETRAINING", 1 / 3)  # of so few epochs a seventh is none
    monkeypatch.setattr("csr.baselines.intcem.TRIES", TRIES[:1])
    system, result = run_system(ENTRIES[name], resting_on(ENTRIES[name], context, backbones))
    assert all(isinstance(each, ClaimedTensor) for each in [*system.parameters(), *system.buffers()])
    assert np.isfinite(result.test.probabilities).all()
    image = torch.from_numpy(context.data.images[:1]).to("cuda")
    assert answer_latency({name: system}, image, rounds=1)[name] > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["cbm_sequential", "cbm_independent"])
def test_a_clinician_corrects_a_concept_bottleneck(name, context, backbones, accelerator):
    system = ENTRIES[name].train(resting_on(ENTRIES[name], context, backbones))
    rows = context.data.collection.rows("test")
    truth = context.concept_labels(rows)
    _, concepts, _ = system(torch.from_numpy(context.data.images[rows]).to("cuda"))
    corrected = system.classify(system.intervene(concepts, truth, torch.ones_like(truth, dtype=torch.bool)))
    assert corrected.isfinite().all()
