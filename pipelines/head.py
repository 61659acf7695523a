"""Stage ``head``: trains the task head (stage 3 of CSR) on the frozen model's scores and calibrates it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.network.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from csr.network.prototypes import prototype_model_from_checkpoint
from csr.network.rebuild import concept_model_from_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import Callbacks, State
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.located import located_cache
from csr.training.temperature import calibrate_temperature
from pipelines.figures.curves import write_curves
from pipelines.params import Params
from pipelines.stage import CONCEPTS, FEATURES, HEAD, PREPARED, PROTOTYPES, REPORTS, run_stage
from pipelines.training import train


class Stages(NamedTuple):
    """Checkpoints of what the head rests on, and whether stage 2 learned from inside boxes."""

    concepts: Checkpoint
    prototypes: Checkpoint
    located: bool = False


def fit(prepared: str, features: str, stages: Stages, config: HeadConfig, callbacks: Callbacks) -> State:
    """What the worker runs."""
    data, cache = PreparedSet.open(Path(prepared)), FeatureCache.open(Path(features))
    if stages.located:
        cache = located_cache(data.collection, cache, data.side)
    collection, prototypes = data.collection, prototype_model_from_checkpoint(stages.prototypes)
    reasoner = train_head(collection, cache, prototypes, config, callbacks, side=data.side)
    concepts = concept_model_from_checkpoint(stages.concepts)
    csr = TrainedCSR(concepts, prototypes, reasoner, collection.concepts, collection.classes)
    calibrate_temperature(data, cache, csr)
    return csr.to_checkpoint()


def head(params: Params) -> None:
    """Trains and writes ``build/head/model.pt``, the whole trained CSR, and the curves. One worker is enough, whatever
    the cluster."""
    concepts = read_checkpoint(CONCEPTS / "model.pt", "concept model")
    prototypes = read_checkpoint(PROTOTYPES / "model.pt", "prototype model")
    stages = Stages(concepts, prototypes, params.prototypes.located)
    function = partial(fit, str(PREPARED.resolve()), str(FEATURES.resolve()), stages, params.head)
    where = replace(params.train, workers=min(params.train.workers, 1))
    checkpoint, history = train("head", function, params.head, [PREPARED, CONCEPTS, FEATURES, PROTOTYPES], where)
    with atomic_folder(HEAD) as folder:
        write_checkpoint(checkpoint, folder / "model.pt")
    write_curves("head", history, REPORTS / "curves")


if __name__ == "__main__":
    run_stage("head", head)
