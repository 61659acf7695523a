"""Stage ``prototypes``: trains projector and prototypes (stage 2 of CSR) on cached features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from csr.data.atomic_folder import atomic_folder
from csr.data.prepared import PreparedSet
from csr.network.checkpoint import write_checkpoint
from csr.network.prototypes import prototype_model_checkpoint, prototype_model_from_checkpoint
from csr.training.callbacks import Callbacks, State
from csr.training.features import FeatureCache
from csr.training.located import attended_cache
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.selection import CountCurve, count_curve, pilot
from pipelines.figures.count_curve import write_count_curve
from pipelines.figures.curves import write_curves
from pipelines.params import Params, TrainParams
from pipelines.stage import CONCEPTS, FEATURES, PREPARED, PROTOTYPES, REPORTS, run_stage
from pipelines.tracking import log_metrics
from pipelines.training import train


def fit(prepared: Path, features: Path, config: PrototypeConfig, callbacks: Callbacks) -> State:
    """What one worker runs."""
    data = PreparedSet.open(prepared)
    cache = _cache(data, features, config)
    return prototype_model_checkpoint(train_prototypes(data.collection, cache, config, callbacks))


def prototypes(params: Params) -> None:
    """Trains and writes ``build/prototypes/model.pt`` and the curves.

    With ``per_concept: auto`` a pilot is trained first, and the curve that settles M is the pilot's; otherwise the
    curve is that of the trained prototypes. A stage that is interrupted after its pilot trains the pilot again.
    """
    config, curve = params.prototypes, None
    if config.per_concept == "auto":
        state, _ = _train("pilot", pilot(config), params.train)
        curve = _curve(state, config)
        config = replace(config, per_concept=curve.enough)
    checkpoint, history = _train("prototypes", config, params.train)
    with atomic_folder(PROTOTYPES) as folder:
        write_checkpoint(checkpoint, folder / "model.pt")
    write_curves("prototypes", history, REPORTS / "curves")
    curve = curve or _curve(checkpoint, config)
    write_count_curve(curve, PreparedSet.open(PREPARED).collection.concepts, REPORTS / "curves")
    log_metrics("prototypes", {"per_concept": checkpoint["config"]["per_concept"]})


def _train(name: str, config: PrototypeConfig, where: TrainParams) -> tuple[State, list[dict[str, float]]]:
    function, reads = partial(fit, config=config), [PREPARED, FEATURES]
    return train(name, function, config, reads, where, "pipelines.prototypes", rests_on=[CONCEPTS])


def _curve(checkpoint: State, config: PrototypeConfig) -> CountCurve:
    data = PreparedSet.open(PREPARED)
    model, cache = prototype_model_from_checkpoint(checkpoint), _cache(data, FEATURES, config)
    return count_curve(model, data.collection, cache)


def _cache(data: PreparedSet, features: Path, config: PrototypeConfig) -> FeatureCache:
    return attended_cache(data, FeatureCache.open(features), config.located, config.reader_boxes)


if __name__ == "__main__":
    run_stage("prototypes", prototypes)
