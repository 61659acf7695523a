"""What the comparison's stages share: where things lie, parameters, and one MLflow run a system and seed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from csr.baselines.protocol import ExperimentContext
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError, CSRError
from csr.evaluation.evaluate import rounded
from csr.training.callbacks import SilentCallbacks, State
from csr.training.concepts import ConceptTrainingConfig
from csr.training.runtime import use_device
from csr.training.stopping import Curve
from pipelines.flatten import flatten
from pipelines.params import Params, load_params
from pipelines.runs.rows import data_inputs, result, source_tags
from pipelines.stage import PREPARED
from pipelines.tracking import connect, log_metrics

BUILD = Path("build/comparison")
SHARED_BACKBONES_FOLDER = BUILD / "shared_backbones"
PREDICTIONS_FOLDER = BUILD / "predictions"
SYSTEMS_FOLDER = BUILD / "systems"
TRIALS_FOLDER = BUILD / "trials"  # the settings that trials chose
DECISIONS_FOLDER = BUILD / "decisions"  # of every study after replies
PRESET = "robust"  # of what all systems have in common; `preset` of params.yaml is for the default pipeline


class ComparisonCallbacks(SilentCallbacks):
    """Logs each epoch to MLflow's active run, and keeps the learning curves. Keeps no checkpoint: a system of several
    phases starts anew."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage
        self.curves: list[Curve] = []

    def epoch(self, metrics: Mapping[str, float], state: Callable[[], State]) -> None:
        super().epoch(metrics, state)
        numbers = {name: value for name, value in metrics.items() if name != "epoch"}
        log_metrics(self._stage, numbers, step=len(self.history) - 1)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        print(f"{self._stage}  epoch {int(metrics['epoch']) + 1}  {shown}", flush=True)

    def finished(self, curve: Curve) -> None:
        self.curves.append(curve)


def write_curves(context: ExperimentContext, name: str, seed: int, params: Params, settings: Mapping[str, Any]) -> None:
    """Writes the learning curves of every phase to ``<folder>/curves/<name>-<seed>.json``, if there is any.

    Args:
        settings: those that trials chose and it was trained with.
    """
    assert isinstance(context.callbacks, ComparisonCallbacks)
    curves = context.callbacks.curves
    if curves:
        phases = [{**asdict(each), "values": [rounded(value) for value in each.values]} for each in curves]
        content = {"settings": dict(settings), "phases": phases}
        folder = params.comparison.folder / "curves"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{seed}.json").write_text(json.dumps(content, indent=1) + "\n")


def make_context(params: Params, seed: int, name: str, prepared: Path = PREPARED) -> ExperimentContext:
    """The context that all systems of a seed share; computes where ``params.yaml`` says from now on."""
    use_device(params.train.device)
    if params.train.threads:
        torch.set_num_threads(params.train.threads)
    config = replace(params.concepts, seed=seed)
    return ExperimentContext(PreparedSet.open(prepared), config, ComparisonCallbacks(name))


@contextmanager
def comparison_run(
    kind: str, name: str, seed: int, params: Params, config: ConceptTrainingConfig | None = None
) -> Iterator[None]:
    """An MLflow run of its own, tagged so that the comparison's runs can be found. It says what data it reads, which in
    trials is no test study, and in its note the result.

    Args:
        config: that it trains with; None: that of ``params.yaml``.
    """
    config = config or replace(params.concepts, seed=seed)
    client = connect()
    splits = ("train", "val") if kind == "trials" else ("train", "val", "test")
    tags = source_tags(f"pipelines/comparison/{kind}.py") | {"comparison": kind, "system": name, "seed": str(seed)}
    with mlflow.start_run(run_name=f"{name}-{seed}", tags=tags) as run:
        client.log_inputs(run.info.run_id, data_inputs(params.data, PREPARED, splits))
        mlflow.log_params({"system": name, "seed": seed, **flatten(config, "concepts")})
        yield
        if found := result(client.get_run(run.info.run_id).data.metrics):
            mlflow.set_tag(MLFLOW_RUN_NOTE, f"**{found}.**")


def load_comparison() -> Params:
    """``params.yaml`` as the comparison reads it."""
    return load_params(preset=PRESET)


def listed(reference: str, table: str) -> tuple[str, Any]:
    """Name and entry of ``module:name`` in a table of that module.

    A stage's command names the module, so that DVC's dependencies of the stage hold this module and no other system's;
    see `pipelines.dependencies`.

    Raises:
        ConfigError: there is no such entry.
    """
    module, _, name = reference.partition(":")
    try:
        return name, getattr(importlib.import_module(module), table)[name]
    except (ImportError, AttributeError, KeyError, ValueError):
        raise ConfigError(f"{reference!r} is not MODULE:NAME of an entry in a module's {table}") from None


def command_line(program: str, choices: list[str] | None, body: Callable[[str, int, Params], None]) -> None:
    """``NAME SEED`` for a stage of the matrix; a mistake that a person can mend ends it with one sentence."""
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.comparison.{program}")
    parser.add_argument("name", choices=choices)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    try:
        body(given.name, given.seed, load_comparison())
    except CSRError as error:
        sys.exit(f"{program} {given.name}: {error}")
