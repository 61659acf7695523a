"""Shared backbones: backbones that several systems share, trained once a seed, frozen, with their features cached.

    concepts_lse       CSR's robust stage 1: log-sum-exp pooling
    concepts_average   the paper's stage 1: average pooling
    concepts_coarse    the robust stage 1 on one level of stride 16, for the ablation
    classes            the black box

A folder: ``model.pt``, ``features.npy``, ``cam.npy`` and ``about.json`` (seconds of training and of computing the
features, trained parameters).
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from csr.baselines.black_box import train_black_box
from csr.baselines.protocol import ExperimentContext, SharedBackbone, TrainedBackbone
from csr.errors import DataError
from csr.network.checkpoint import read_checkpoint, write_checkpoint
from csr.network.concept_model import ConceptModel
from csr.network.rebuild import concept_model_checkpoint, concept_model_from_checkpoint
from csr.presets import PRESETS
from csr.training.concepts import train_concepts
from csr.training.features import FeatureCache, compute_features

SHARED_BACKBONES: tuple[SharedBackbone, ...] = ("concepts_lse", "concepts_average", "concepts_coarse", "classes")
_DIFFERENCES: dict[SharedBackbone, dict[str, Any]] = {
    "concepts_lse": PRESETS["robust"]["concepts.model"],
    "concepts_average": PRESETS["paper"]["concepts.model"],
    "concepts_coarse": {**PRESETS["robust"]["concepts.model"], "stride": 16, "context": None},
}


def train_shared_backbone(kind: SharedBackbone, context: ExperimentContext, folder: Path) -> None:
    """Trains a shared backbone and writes it to ``folder``, an existing and empty one."""
    start = time.perf_counter()
    model = _train(kind, context)
    write_checkpoint(concept_model_checkpoint(model), folder / "model.pt")
    compute_features(model, context.data, folder, context.callbacks)
    seconds = time.perf_counter() - start
    about = {"seconds": seconds, "parameters": sum(parameter.numel() for parameter in model.parameters())}
    (folder / "about.json").write_text(json.dumps(about) + "\n")


def open_shared_backbone(folder: Path) -> tuple[TrainedBackbone, float]:
    """A shared backbone and the seconds that its training and its features took.

    Raises:
        DataError: the folder is missing or incomplete.
    """
    try:
        model = concept_model_from_checkpoint(read_checkpoint(folder / "model.pt", "concept model"))
        seconds = json.loads((folder / "about.json").read_text())["seconds"]
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; train this shared backbone first") from None
    return TrainedBackbone(model, FeatureCache.open(folder)), seconds


def shared_backbone_context(kind: SharedBackbone, context: ExperimentContext) -> ExperimentContext:
    """The context with the concept model that a shared backbone has."""
    model = replace(context.config.model, **_DIFFERENCES[kind])
    return replace(context, config=replace(context.config, model=model))


def _train(kind: SharedBackbone, context: ExperimentContext) -> ConceptModel:
    if kind == "classes":
        return train_black_box(context).model
    own = shared_backbone_context(kind, context)
    return train_concepts(own.data, own.config, own.callbacks)
