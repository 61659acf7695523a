"""What the stages ``csr`` and ``rival`` share: one system is trained with one seed, judged and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from csr.baselines.protocol import Entry, ExperimentContext, refusal, save_system
from csr.comparison.runs import save_predictions
from csr.comparison.shared_backbones import open_shared_backbone
from csr.comparison.training import run_system
from csr.data.prepared import PreparedSet
from csr.evaluation.evaluate import rounded
from pipelines.comparison.common import (
    PREDICTIONS_FOLDER,
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    comparison_run,
    make_context,
    write_curves,
)
from pipelines.comparison.settings import chosen_settings, read_settings, with_settings
from pipelines.params import Params
from pipelines.stage import PREPARED
from pipelines.tracking import log_metrics


def train_and_keep(
    name: str,
    entry: Entry,
    seed: int,
    params: Params,
    complete: Callable[[ExperimentContext, Params], ExperimentContext] = lambda context, params: context,
) -> None:
    """Writes the report, the predictions and the trained system, and logs an MLflow run.

    A system that is published for another task than the data set's, or lacks what it learns from, is left out: its
    files say so or are empty, since DVC wants them, and the report gives the reason.

    Args:
        complete: adds to the context what this system alone needs.
    """
    encoder = params.data.text_concepts is not None
    if reason := refusal(entry, PreparedSet.open(PREPARED).collection, encoder):
        _leave_out(name, entry, seed, params, reason)
        return
    settings, seconds, resting = chosen_settings(name), 0.0, None
    context = with_settings(make_context(params, seed, name), settings)
    with comparison_run("system", name, seed, params, context.config):
        if entry.shared_backbone:
            folder = SHARED_BACKBONES_FOLDER / f"{entry.shared_backbone}-{seed}"
            shared, seconds = open_shared_backbone(folder)
            context = replace(context, shared_backbone=shared)
            resting = {"kind": entry.shared_backbone, "settings": read_settings(folder)}
        system, result = run_system(entry, complete(context, params), seconds)
        for part, numbers in result.report.items():
            flat = {key: value for key, value in numbers.items() if isinstance(value, float)}
            flat |= {f"pointing_{key}": value for key, value in numbers["pointing_game"].items() if value is not None}
            log_metrics(part, flat)
        log_metrics("system", result.about)
    write_curves(context, name, seed, params, settings)
    save_predictions(PREDICTIONS_FOLDER / f"{name}-{seed}.npz", result.validation, result.test)
    SYSTEMS_FOLDER.mkdir(parents=True, exist_ok=True)
    save_system(system, SYSTEMS_FOLDER / f"{name}-{seed}.pt")
    trained_with = {"settings": settings, "shared_backbone": resting}
    _write_report(name, entry, seed, params, {**result.about, **trained_with, **result.report})


def _leave_out(name: str, entry: Entry, seed: int, params: Params, reason: str) -> None:
    print(f"{name}: left out. {reason}.")
    for file in (PREDICTIONS_FOLDER / f"{name}-{seed}.npz", SYSTEMS_FOLDER / f"{name}-{seed}.pt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    _write_report(name, entry, seed, params, {"left_out": reason})


def _write_report(name: str, entry: Entry, seed: int, params: Params, content: Mapping[str, Any]) -> None:
    folder = params.comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    report = {"system": name, "title": entry.title, "seed": seed, **content}
    (folder / f"{name}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")
