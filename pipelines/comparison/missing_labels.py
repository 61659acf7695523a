"""Stage ``missing_labels``: CSR and a CBM on its stage 1, trained from the start on some of the concept labels.

python -m pipelines.comparison.missing_labels PERCENT_HIDDEN SEED

Labels of split ``train`` are hidden at random; every stage is trained on what is left, and judged on all of them.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from csr.baselines import cbm
from csr.baselines.protocol import predict
from csr.comparison.concept_backbones import BACKBONES
from csr.comparison.csr_system import csr_systems
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.data.missing import hide_concept_labels
from csr.evaluation.evaluate import evaluate_predictions, rounded
from csr.evaluation.thresholds import validation_thresholds
from pipelines.comparison.common import BUILD, command_line, comparison_run, make_context
from pipelines.comparison.recipes import recipes
from pipelines.comparison.settings import chosen_settings, with_settings
from pipelines.params import Params

HIDDEN = ("50", "90")  # percent
SYSTEMS = ("csr_robust", "cbm_shared")  # the systems that rest on the robust stage 1


def run(hidden: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/missing_labels/<percent>-<seed>.json``."""
    context = with_settings(make_context(params, seed, f"missing_{hidden}"), chosen_settings("concepts_lse"))
    entries = csr_systems(recipes()) | cbm.SYSTEMS
    whole = context.data.collection
    partly = replace(
        context, data=replace(context.data, collection=hide_concept_labels(whole, int(hidden) / 100, seed))
    )
    report: dict[str, Any] = {"hidden": int(hidden), "seed": seed}
    BUILD.mkdir(parents=True, exist_ok=True)
    with comparison_run("missing_labels", hidden, seed, params), tempfile.TemporaryDirectory(dir=BUILD) as folder:
        train_shared_backbone("concepts_lse", BACKBONES["concepts_lse"], partly, Path(folder))
        shared, _ = open_shared_backbone(Path(folder))
        for name in SYSTEMS:
            system = entries[name].train(replace(partly, shared_backbone=shared))
            thresholds = validation_thresholds(whole, predict(system, context.data, whole.rows("val")))
            predictions = predict(system, context.data, whole.rows("test"))
            report[name] = evaluate_predictions(whole, predictions, context.data.side, thresholds)
    out = params.comparison.folder / "missing_labels"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{hidden}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")


if __name__ == "__main__":
    command_line("missing_labels", list(HIDDEN), run)
