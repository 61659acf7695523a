"""Stage ``few_shot``: concepts that stages 1 and 2 know nothing of, added from a few boxed examples, for one seed.

python -m pipelines.comparison.few_shot FOLD SEED
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from csr.baselines.protocol import load_system
from csr.comparison.csr_system import CSRSystem
from csr.comparison.few_shot import FewShotTrials, Found, class_figures, concept_figures, find_concepts
from csr.comparison.shared_backbones import open_shared_backbone
from csr.data.held_out import FOLDS, concept_fold
from csr.evaluation.evaluate import evaluate_predictions, rounded
from csr.training.prediction import predict
from pipelines.comparison.common import (
    BUILD,
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    command_line,
    comparison_run,
    make_context,
)
from pipelines.comparison.held_out import HELD_OUT_FOLDER, held_out_context
from pipelines.comparison.recipes import recipes
from pipelines.params import Params

CLASS_COUNTS = (10,)  # boxed examples after which classes are judged, which takes a head each
FEW_SHOT_FOLDER = BUILD / "few_shot"  # scores of every test study, for the report's intervals


def run(fold: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/few_shot/<fold>-<seed>.json`` and, into the build folder, every study's scores."""
    context = make_context(params, seed, f"few_shot_{fold}")
    data, whole = context.data, context.data.collection
    names, trials = concept_fold(whole.concepts, int(fold)), FewShotTrials(seed=seed)
    with comparison_run("few_shot", fold, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"held_out_{fold}-{seed}")
        partial = replace(held_out_context(context, int(fold)), shared_backbone=shared)
        csr = load_system(CSRSystem, HELD_OUT_FOLDER / f"{fold}-{seed}.pt").csr
        every, test = np.arange(len(whole.studies)), whole.rows("test")
        found = find_concepts(partial, csr, whole, names, trials, every)
        full, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"concepts_lse-{seed}")
        said = predict(data, full.cache, load_system(CSRSystem, SYSTEMS_FOLDER / f"csr_robust-{seed}.pt").csr)
        head = replace(recipes()["robust"].head, seed=seed)
        report: dict[str, Any] = {"fold": int(fold), "seed": seed, "concepts": [], "classes": []}
        scores: dict[str, np.ndarray] = {}
        assert said.concepts is not None and said.peaks is not None
        for name in names:
            k = whole.concepts.index(name)
            supervised = Found(said.concepts[:, k], said.peaks[:, k])
            scores[f"full/{name}"] = supervised.scores
            line = {"system": "full", "concept": name, "n": None, "draw": 0}
            report["concepts"].append(line | concept_figures(whole, name, supervised, test))
        for (system, name, n, draw), each in found.items():
            own = Found(each.scores[test], each.peaks[test])
            scores[f"{system}/{name}/{n}/{draw}"] = own.scores
            line = {"system": system, "concept": name, "n": n, "draw": draw}
            report["concepts"].append(line | concept_figures(whole, name, own, test))
        report["classes"] = class_figures(partial, csr, whole, names, replace(trials, counts=CLASS_COUNTS), found, head)
        report["full"] = {part: own["macro_f1"] for part, own in evaluate_predictions(whole, said, data.side).items()}
    folder = params.comparison.folder / "few_shot"
    folder.mkdir(parents=True, exist_ok=True)
    FEW_SHOT_FOLDER.mkdir(parents=True, exist_ok=True)
    (folder / f"{fold}-{seed}.json").write_text(json.dumps(rounded(report), indent=1) + "\n")
    np.savez_compressed(FEW_SHOT_FOLDER / f"{fold}-{seed}.npz", **scores)  # type: ignore[arg-type]


if __name__ == "__main__":
    command_line("few_shot", [str(fold) for fold in range(FOLDS)], run)
