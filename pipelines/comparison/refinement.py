"""Stage ``refinement``: prunes the atlas as a reviewer would, or learns it anew from where she says that findings are,
and judges CSR before and after, for one seed.

python -m pipelines.comparison.refinement {csr_robust,csr_paper} SEED
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from csr.baselines.protocol import load_system
from csr.comparison.csr_system import CSRSystem, csr_systems
from csr.comparison.shared_backbones import open_shared_backbone
from csr.evaluation.evaluate import evaluate_predictions, rounded
from csr.interaction.review import misled, prune, relearn, retrain_head, review
from csr.training.prediction import predict
from csr.training.thresholds import own_thresholds
from pipelines.comparison.common import (
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    command_line,
    comparison_run,
    make_context,
)
from pipelines.comparison.recipes import recipes
from pipelines.params import Params

PRESET_OF = {"csr_robust": "robust", "csr_paper": "paper"}


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/refinement/<name>-<seed>.json`` and the reviewer's verdicts beside it as CSV."""
    every = recipes()
    context = make_context(params, seed, name)
    with comparison_run("refinement", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{csr_systems(every)[name].shared_backbone}-{seed}")
        csr = load_system(CSRSystem, SYSTEMS_FOLDER / f"{name}-{seed}.pt").csr
        data, cache = context.data, shared.cache
        verdicts = review(data, cache, csr)
        masked = prune(csr, verdicts)
        recipe = every[PRESET_OF[name]]
        stage2, head = replace(recipe.prototypes, seed=seed), replace(recipe.head, seed=seed)
        kinds = {"before": csr, "masked": masked}
        kinds["retrained"] = retrain_head(data, cache, masked, head, context.callbacks)
        drawn = sum(map(len, misled(verdicts).values()))
        if drawn:
            kinds["relearned"] = relearn(data, cache, csr, verdicts, stage2, head, context.callbacks)
        report: dict[str, Any] = {"drawn": drawn}
        for kind, each in kinds.items():
            predictions = predict(data, cache, each)
            report[kind] = {
                "prototypes": int(each.reasoner.alive.sum()),
                **evaluate_predictions(data.collection, predictions, data.side, own_thresholds(data, cache, each)),
            }
    folder = params.comparison.folder / "refinement"
    folder.mkdir(parents=True, exist_ok=True)
    verdicts.drop(columns="rows").round(6).to_csv(folder / f"{name}-{seed}.csv", index=False)
    (folder / f"{name}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")


if __name__ == "__main__":
    command_line("refinement", sorted(PRESET_OF), run)
