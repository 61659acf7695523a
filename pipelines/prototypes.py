"""Stage ``prototypes``: trains projector and prototypes (stage 2 of CSR) on cached features."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from csr.bundle import file_digest
from csr.datasets.prepared import PreparedSet
from csr.drafts import draft_folder
from csr.training.features import FeatureCache
from csr.training.prototypes import PrototypeConfig, to_checkpoint, train_prototypes
from csr.training.reporter import Reporter, State
from pipelines.figures import write_curves
from pipelines.params import Params
from pipelines.stage import CONCEPTS, FEATURES, PREPARED, PROTOTYPES, REPORTS, run_stage
from pipelines.training import train


def fit(prepared: str, features: str, config: PrototypeConfig, reporter: Reporter) -> State:
    """What one worker runs."""
    collection = PreparedSet.open(Path(prepared)).collection
    return to_checkpoint(train_prototypes(collection, FeatureCache.open(Path(features)), config, reporter))


def prototypes(params: Params) -> None:
    """Trains and writes ``build/prototypes/model.pt`` and the curves."""
    function = partial(fit, str(PREPARED.resolve()), str(FEATURES.resolve()), params.prototypes)
    inputs = [file_digest(CONCEPTS / "model.pt")]
    checkpoint, history = train("prototypes", function, params.prototypes, inputs, params.train)
    with draft_folder(PROTOTYPES) as folder:
        torch.save(checkpoint, folder / "model.pt")
    write_curves("prototypes", history, REPORTS / "curves")


if __name__ == "__main__":
    run_stage("prototypes", prototypes)
