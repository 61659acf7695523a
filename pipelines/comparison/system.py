"""What the stages ``csr`` and ``rival`` share: one system is trained with one seed, judged and kept."""

from __future__ import annotations

import json
from dataclasses import replace

from csr.baselines.protocol import Entry, save_system
from csr.comparison.runs import save_predictions
from csr.comparison.shared_backbones import open_shared_backbone
from csr.comparison.training import run_system
from csr.evaluation.evaluate import rounded
from pipelines.comparison.common import (
    PREDICTIONS_FOLDER,
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    comparison_run,
    make_context,
    write_curves,
)
from pipelines.comparison.settings import chosen_settings, with_settings
from pipelines.params import Params
from pipelines.tracking import log_metrics


def train_and_keep(name: str, entry: Entry, seed: int, params: Params) -> None:
    """Writes the report, the predictions and the trained system, and logs an MLflow run."""
    with comparison_run("system", name, seed, params):
        context, seconds = with_settings(make_context(params, seed, name), chosen_settings(name)), 0.0
        if entry.shared_backbone:
            shared, seconds = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{entry.shared_backbone}-{seed}")
            context = replace(context, shared_backbone=shared)
        system, result = run_system(entry, context, seconds)
        for part, numbers in result.report.items():
            flat = {key: value for key, value in numbers.items() if isinstance(value, float)}
            flat |= {f"pointing_{key}": value for key, value in numbers["pointing_game"].items() if value is not None}
            log_metrics(part, flat)
        log_metrics("system", result.about)
    write_curves(context, name, seed, params)
    save_predictions(PREDICTIONS_FOLDER / f"{name}-{seed}.npz", result.validation, result.test)
    SYSTEMS_FOLDER.mkdir(parents=True, exist_ok=True)
    save_system(system, SYSTEMS_FOLDER / f"{name}-{seed}.pt")
    folder = params.comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    report = {"system": name, "title": entry.title, "seed": seed, **result.about, **result.report}
    (folder / f"{name}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")
