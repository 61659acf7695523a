"""Stage ``head``: trains the task head (stage 3 of CSR) on the frozen model's scores and calibrates it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from csr.data.atomic_folder import atomic_folder
from csr.data.feedback import FeedbackSet, PrototypeReview
from csr.data.prepared import PreparedSet
from csr.network.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from csr.network.prototypes import prototype_model_from_checkpoint
from csr.network.rebuild import concept_model_from_checkpoint
from csr.network.trained import TrainedCSR
from csr.training.callbacks import Callbacks, State
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.located import attended_cache
from csr.training.reviewed import Reviewed, reviewed
from csr.training.temperature import calibrate_temperature
from pipelines.feedback_set import learned_from
from pipelines.figures.curves import write_curves
from pipelines.params import Params
from pipelines.stage import CONCEPTS, FEATURES, HEAD, PREPARED, PROTOTYPES, REPORTS, run_stage
from pipelines.training import train


class Stages(NamedTuple):
    """Checkpoints of what the head rests on, whether stage 2 learned from inside boxes and readers' boxes, and what
    reviewers said of earlier prototypes."""

    concepts: Checkpoint
    prototypes: Checkpoint
    located: bool = False
    reader_boxes: bool = True
    reviews: tuple[PrototypeReview, ...] = ()


def fit(prepared: Path, features: Path, stages: Stages, config: HeadConfig, callbacks: Callbacks) -> State:
    """What the worker runs."""
    data = PreparedSet.open(prepared)
    cache = attended_cache(data, FeatureCache.open(features), stages.located, stages.reader_boxes)
    collection, prototypes = data.collection, prototype_model_from_checkpoint(stages.prototypes)
    alive = _left(reviewed(collection, cache, prototypes, stages.reviews)) if stages.reviews else None
    reasoner = train_head(collection, cache, prototypes, config, callbacks, alive=alive, side=data.side)
    concepts = concept_model_from_checkpoint(stages.concepts)
    csr = TrainedCSR(concepts, prototypes, reasoner, collection.concepts, collection.classes)
    calibrate_temperature(data, cache, csr)
    return csr.to_checkpoint()


def _left(found: Reviewed) -> Tensor:
    """What reviewers left of the prototypes, K×M; says what became of their reviews."""
    print(f"feedback: {int((found.alive == 0).sum())} prototypes leave, as reviewers said")
    for why, count in sorted(found.not_pruned.items()):
        print(f"not pruned: {count}, for {why}")
    return found.alive


def head(params: Params) -> None:
    """Trains and writes ``build/head/model.pt``, the whole trained CSR, and the curves. One worker is enough, whatever
    the cluster."""
    concepts = read_checkpoint(CONCEPTS / "model.pt", "concept model")
    prototypes = read_checkpoint(PROTOTYPES / "model.pt", "prototype model")
    rests_on = [CONCEPTS, PROTOTYPES]
    reviews: tuple[PrototypeReview, ...] = ()
    if folder := learned_from(params.data):
        rests_on.append(folder)
        reviews = FeedbackSet.open(folder).reviews
    stage2 = params.prototypes
    stages = Stages(concepts, prototypes, stage2.located, stage2.reader_boxes, reviews)
    function = partial(fit, stages=stages, config=params.head)
    where = replace(params.train, workers=min(params.train.workers, 1))
    checkpoint, history = train("head", function, params.head, [PREPARED, FEATURES], where, rests_on=rests_on)
    with atomic_folder(HEAD) as folder:
        write_checkpoint(checkpoint, folder / "model.pt")
    write_curves("head", history, REPORTS / "curves")


if __name__ == "__main__":
    run_stage("head", head)
