"""Stage ``forms``: do several prototypes a concept find the two forms that each has? Stages 2 and 3 by several recipes
on one stage 1, for one seed. Only the phantom of ``params/forms.yaml`` has forms.

python -m pipelines.comparison.forms concepts_lse SEED
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from csr.comparison.csr_system import Recipe, train_csr
from csr.comparison.forms import (
    RECIPES,
    by_form,
    forms_of,
    probe_auroc,
    settle,
    sort_by_clusters,
    sort_by_prototypes,
    sorting_report,
    vectors_of,
)
from csr.comparison.shared_backbones import open_shared_backbone
from csr.evaluation.evaluate import evaluate_predictions, rounded
from csr.training.prediction import predict
from pipelines.comparison.common import SHARED_BACKBONES_FOLDER, command_line, comparison_run, make_context
from pipelines.comparison.recipes import recipes
from pipelines.params import Params

FOLDER = Path("reports/forms")
CLUSTERS = 5  # of k-means: as many as the robust recipe has prototypes


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``reports/forms/<seed>.json``.

    Raises:
        DataError: the prepared set has no forms.
    """
    context, robust = make_context(params, seed, "forms"), recipes()["robust"]
    data, concepts = context.data, context.concepts
    forms_of(data.collection)  # before anything is trained
    report: dict[str, Any] = {"seed": seed, "recipes": {}}
    with comparison_run("forms", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{name}-{seed}")
        own = replace(context, shared_backbone=shared)
        for recipe, (title, keys) in RECIPES.items():
            stage2 = replace(robust.prototypes, **keys, seed=seed)
            stage2 = settle(stage2, data, shared.cache, context.callbacks)
            csr = train_csr(own, Recipe(stage2, robust.head)).csr
            train, test = (vectors_of(csr, data, shared.cache, split) for split in ("train", "test"))
            first, second = sort_by_prototypes(csr, train), sort_by_prototypes(csr, test)
            predictions = predict(data, shared.cache, csr)
            assert isinstance(stage2.per_concept, int)
            report["recipes"][recipe] = {
                "title": title,
                "per_concept": stage2.per_concept,
                "alive": int(csr.reasoner.alive.sum()),
                "sorting": sorting_report(first, second, concepts, stage2.per_concept),
                "by_form": by_form(data, predictions),
                "probe": probe_auroc(train.projected, test.projected, (train, test), concepts).tolist(),
                "parts": evaluate_predictions(data.collection, predictions, data.side),
            }
            if recipe == "robust":
                report["probe"] = probe_auroc(train.raw, test.raw, (train, test), concepts).tolist()
                report["clusters"] = {
                    kind: sorting_report(
                        *sort_by_clusters(train, test, CLUSTERS, kind == "projected", seed), concepts, CLUSTERS
                    )
                    for kind in ("raw", "projected")
                }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")


if __name__ == "__main__":
    command_line("forms", ["concepts_lse"], run)
