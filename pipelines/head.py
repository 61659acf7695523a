"""Stage ``head``: trains the task head (stage 3 of CSR) on the frozen model's scores and calibrates it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.interaction.alpha import calibrate
from csr.training.callbacks import Callbacks, State
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, to_checkpoint, train_head
from csr.training.prototypes import from_checkpoint
from pipelines.figures.curves import write_curves
from pipelines.params import Params
from pipelines.stage import FEATURES, HEAD, PREPARED, PROTOTYPES, REPORTS, run_stage
from pipelines.training import train


def fit(prepared: str, features: str, prototypes: State, config: HeadConfig, callbacks: Callbacks) -> State:
    """What the worker runs."""
    data = PreparedSet.open(Path(prepared))
    cache = FeatureCache.open(Path(features))
    model = from_checkpoint(prototypes)
    reasoner = train_head(data.collection, cache, model, config, callbacks)
    calibrate(data.collection, cache, model, reasoner, data.side)
    return to_checkpoint(reasoner, config)


def head(params: Params) -> None:
    """Trains and writes ``build/head/model.pt`` and the curves. One worker is enough, whatever the cluster."""
    state = torch.load(PROTOTYPES / "model.pt", weights_only=True)
    function = partial(fit, str(PREPARED.resolve()), str(FEATURES.resolve()), state, params.head)
    where = replace(params.train, workers=min(params.train.workers, 1))
    checkpoint, history = train("head", function, params.head, [PREPARED, FEATURES, PROTOTYPES], where)
    with atomic_folder(HEAD) as folder:
        torch.save(checkpoint, folder / "model.pt")
    write_curves("head", history, REPORTS / "curves")


if __name__ == "__main__":
    run_stage("head", head)
