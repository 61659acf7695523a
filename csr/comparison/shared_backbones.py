"""Shared backbones: backbones that several systems share, trained once a seed, frozen, with their features cached.

`csr.comparison.concept_backbones` trains CSR's stage 1, `csr.baselines.black_box` the one that knows classes only.

A folder: ``model.pt``, ``features.npy``, ``cam.npy`` and ``about.json`` (seconds of training and of computing the
features, trained parameters).
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from csr.baselines.protocol import BackboneTraining, ExperimentContext, TrainedBackbone
from csr.errors import DataError
from csr.network.checkpoint import read_checkpoint, write_checkpoint
from csr.network.rebuild import concept_model_checkpoint, concept_model_from_checkpoint
from csr.training.features import FeatureCache, compute_features


def train_shared_backbone(train: BackboneTraining, context: ExperimentContext, folder: Path) -> None:
    """Trains a shared backbone and writes it to ``folder``, an existing and empty one."""
    start = time.perf_counter()
    model = train(context)
    write_checkpoint(concept_model_checkpoint(model), folder / "model.pt")
    compute_features(model, context.data, folder, context.callbacks, precision=context.config.precision)
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
