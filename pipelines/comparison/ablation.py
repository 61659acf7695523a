"""Stage ``ablation``: CSR's robust preset without one of its ingredients, for one seed.

python -m pipelines.comparison.ablation VARIANT SEED
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from csr.baselines.protocol import predict
from csr.comparison.ablations import VARIANTS
from csr.comparison.csr_system import train_csr
from csr.comparison.shared_backbones import open_shared_backbone
from csr.evaluation.evaluate import evaluate_predictions, rounded
from csr.evaluation.thresholds import validation_thresholds
from pipelines.comparison.common import SHARED_BACKBONES_FOLDER, command_line, comparison_run, make_context
from pipelines.comparison.recipes import recipes
from pipelines.params import Params


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/ablation/<variant>-<seed>.json``."""
    variant, context = VARIANTS[name], make_context(params, seed, name)
    with comparison_run("ablation", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{variant.shared_backbone}-{seed}")
        own = replace(context, shared_backbone=shared)
        system = train_csr(own, variant.recipe(recipes()["robust"]))
        collection = own.data.collection
        report: dict[str, Any] = {}
        validation = predict(system, own.data, collection.rows("val"))
        thresholds = validation_thresholds(collection, validation)
        for predictions in (validation, predict(system, own.data, collection.rows("test"))):
            report |= evaluate_predictions(collection, predictions, own.data.side, thresholds)
    folder = params.comparison.folder / "ablation"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"variant": name, "title": variant.title, "seed": seed}
    (folder / f"{name}-{seed}.json").write_text(json.dumps(rounded({**about, **report}), indent=2) + "\n")


if __name__ == "__main__":
    command_line("ablation", list(VARIANTS), run)
