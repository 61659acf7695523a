"""Stages of the trials: every system that learns from images gets equally many, over the same kinds of knobs.

    python -m pipelines.comparison.trials MODULE:NAME

MODULE lists NAME in its ``BACKBONES`` or ``SYSTEMS``. Trial 0 is the setting of ``params.yaml``, the others draw each
knob at random, with numbers that do not depend on the system: trial 3 of one system has the learning rate, length and
so on of trial 3 of another. Each system takes the knobs that it has: one that starts from a trained backbone takes
that one's stride, whose own trials chose it; pooling is free where a system's definition leaves it free. Systems on a
frozen backbone have the trials of that backbone and the tries of their last layer.

Ray Tune runs them, one CPU each, or one GPU where there is any, and takes up interrupted ones; each is an MLflow run
below the search's. The best figure on ``val`` decides: class macro AUROC of the finished system, or the mean concept
AUROC where concepts are all that is learned; of equal ones the earlier trial. Trial 0 stays unless the best is above it
by more than ``concepts.least_rise``, what counts as a rise while one is trained, too. Trials read a copy of the
prepared set without its test split, and no features of it, so none can see a test study.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from csr.baselines.protocol import TrainedBackbone, predict
from csr.comparison.training import with_budget
from csr.errors import CSRError, TrainingError
from csr.evaluation.evaluate import rounded
from csr.evaluation.metrics import macro_auroc
from csr.network.checkpoint import read_checkpoint
from csr.network.rebuild import concept_model_from_checkpoint
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache
from csr.training.runtime import seeds
from pipelines.checkpoints import MadeOf, claim, forget
from pipelines.comparison.common import (
    SHARED_BACKBONES_FOLDER,
    TRIALS_FOLDER,
    ComparisonCallbacks,
    comparison_run,
    listed,
    load_comparison,
    make_context,
)
from pipelines.comparison.settings import with_settings
from pipelines.params import Params
from pipelines.stage import PREPARED
from pipelines.tracking import connect, log_metrics
from pipelines.tuning import ray_for_trials, run_trials, without_test

OWN_POOLING = ("classes", "cbm_joint")  # whose definition leaves the pooling free
OWN_BACKBONE = ("classes", "cbm_joint", "cbm_joint_lse", "concepts_lse", "concepts_average")
STRIDES = ({"stride": 8, "context": 16}, {"stride": 16, "context": None})


def drawn_settings(config: ConceptTrainingConfig, number: int) -> dict[str, Any]:
    """All knobs of a trial, the same for every system; none for trial 0, which is the configuration itself."""
    if number == 0:
        return {}
    random = np.random.default_rng(seeds(0, "trials", number))
    length = "epochs" if config.patience is None else "patience"
    factors = 4.0 ** random.uniform(-1, 1), 10.0 ** random.uniform(-1, 1)
    return {
        "learning_rate": float(f"{config.learning_rate * factors[0]:.2g}"),
        "weight_decay": float(f"{config.weight_decay * factors[1]:.2g}"),
        "warmup": float(random.choice([0.05, 0.15, 0.3])),
        length: max(1, round(getattr(config, length) * random.choice([0.5, 1, 2]))),
        **STRIDES[int(random.integers(len(STRIDES)))],
        "pooling": str(random.choice(["average", "lse"])),
    }


def settings_for(name: str, config: ConceptTrainingConfig, number: int) -> dict[str, Any]:
    """Those of the drawn knobs that a system has."""
    absent = set() if name in OWN_POOLING else {"pooling"}
    absent |= set() if name in OWN_BACKBONE else {"stride", "context"}
    return {key: value for key, value in drawn_settings(config, number).items() if key not in absent}


def run(reference: str, params: Params) -> None:
    """Writes the chosen settings into the build folder, and all trials to ``<folder>/trials/<name>.json``."""
    name = reference.rpartition(":")[2]
    found = search(reference, params) if params.comparison.trials else []
    best = best_of(found, params.concepts.least_rise) if found else None
    if best is not None and best["figure"] is None:
        raise TrainingError(f"{name}: all {len(found)} trials failed; the first: {found[0]['failed']}")
    chosen = best["settings"] if best else {}
    trials = [rounded(trial) for trial in found]
    about = {"system": name, "chosen": best["number"] if best else None, "trials": trials}
    for folder, content in (
        (TRIALS_FOLDER, chosen),
        (params.comparison.folder / "trials", about),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def best_of(trials: Sequence[dict[str, Any]], least_rise: float) -> dict[str, Any]:
    """The trial with the best figure, the earlier of equal ones; the first, the default, unless it is beaten by more
    than ``least_rise``. One that failed is beaten by all that did not."""

    def rank(trial: dict[str, Any]) -> float:
        return -math.inf if trial["figure"] is None else trial["figure"]

    default, best = trials[0], max(trials, key=lambda trial: (rank(trial), -trial["number"]))
    return best if rank(best) > rank(default) + least_rise else default


def search(reference: str, params: Params) -> list[dict[str, Any]]:
    """Every trial of a system: ``number, settings, figure, seconds``, and ``failed`` where it says why it has none."""
    name, seed = reference.rpartition(":")[2], params.comparison.seeds[0]
    data = without_test(PREPARED)
    resting = _resting_folder(reference, seed)
    inputs = [data] if resting is None else [data, resting / "model.pt"]
    own = f"trials_{name}"
    made_of = MadeOf.of(own, params.concepts, inputs, 0, reference.partition(":")[0])
    made_of.values["comparison.trials"] = str(params.comparison.trials)
    run_name = claim(own, made_of)
    connect()
    with ray_for_trials(), comparison_run("trials", name, seed, params):
        active = mlflow.active_run()
        assert active is not None
        given = {
            "reference": reference,
            "data": str(data.resolve()),
            "resting": None if resting is None else str(resting.resolve()),
            "params": params,
            "parent": active.info.run_id,
        }
        found = _tuned(run_name, given, params.comparison.trials)
        known = [trial["figure"] for trial in found if trial["figure"] is not None]
        log_metrics("trials", {"best": max(known)} if known else {})
    forget(run_name)
    return sorted(found, key=lambda trial: trial["number"])


def _tuned(run_name: str, given: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """What Ray Tune's trials returned; those that had returned before an interruption are not run again."""
    return [metrics["trial"] for metrics in run_trials(run_name, _trial, given, count)]


def _trial(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """One trial, in a process of Ray's."""
    number, params = config["number"], given["params"]
    name, start = given["reference"].rpartition(":")[2], time.perf_counter()
    settings = settings_for(name, params.concepts, number)
    connect()
    tags = {"comparison": "trial", "system": name, "trial": str(number)}
    with mlflow.start_run(run_name=f"{name}-trial-{number}", nested=True, parent_run_id=given["parent"], tags=tags):
        mlflow.log_params(settings)
        resting = None if given["resting"] is None else Path(given["resting"])
        said: dict[str, Any] = {}
        try:
            figure = figure_of(given["reference"], settings, Path(given["data"]), resting, params)
            if not math.isfinite(figure):
                raise TrainingError(f"{name}: the validation split tells no figure, no class or concept being in it")
            log_metrics("trial", {"figure": figure})
            said["figure"] = figure
        except CSRError as error:  # a setting that does not train is a trial, too
            said |= {"figure": None, "failed": str(error)}
    seconds = time.perf_counter() - start
    return {"trial": {"number": number, "settings": settings, **said, "seconds": seconds}}


def figure_of(reference: str, settings: dict[str, Any], data: Path, resting: Path | None, params: Params) -> float:
    """Trains a system or backbone with some settings and returns its figure on ``val``.

    Args:
        data: the prepared set without its test split.
        resting: folder of the shared backbone that the system starts from.
    """
    kind, entry = _entry(reference)
    name, seed = reference.rpartition(":")[2], params.comparison.seeds[0]
    context = with_settings(make_context(params, seed, name, data), settings)
    callbacks = context.callbacks
    assert isinstance(callbacks, ComparisonCallbacks)
    if kind == "BACKBONES":
        entry(context)
        curve = callbacks.curves[-1]
        return curve.values[curve.kept - 1]
    if resting is not None:
        context = replace(context, shared_backbone=_model_alone(resting))
    system = entry.train(with_budget(entry, context))
    val = context.data.collection.rows("val")
    return macro_auroc(context.data.collection.truth()[val], predict(system, context.data, val).probabilities)


def _entry(reference: str) -> tuple[str, Any]:
    """Which table of its module holds it, and the entry."""
    module, _, name = reference.partition(":")
    table = "BACKBONES" if name in getattr(importlib.import_module(module), "BACKBONES", {}) else "SYSTEMS"
    return table, listed(reference, table)[1]


def _resting_folder(reference: str, seed: int) -> Path | None:
    kind, entry = _entry(reference)
    if kind == "BACKBONES" or entry.shared_backbone is None:
        return None
    return SHARED_BACKBONES_FOLDER / f"{entry.shared_backbone}-{seed}"


def _model_alone(folder: Path) -> TrainedBackbone:
    """A shared backbone without its cached features, among which are those of the test split."""
    model = concept_model_from_checkpoint(read_checkpoint(folder / "model.pt", "concept model"))
    return TrainedBackbone(model, FeatureCache(np.empty((0, 0, 0, 0), np.float16), np.empty((0, 0, 0, 0), np.float32)))


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.comparison.trials")
    parser.add_argument("reference", metavar="MODULE:NAME")
    given = parser.parse_args()
    try:
        _entry(given.reference)
        run(given.reference, load_comparison())
    except CSRError as error:
        sys.exit(f"trials {given.reference}: {error}")


if __name__ == "__main__":
    main()
