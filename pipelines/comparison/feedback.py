"""Stage ``feedback``: simulated readers correct new studies of another site, and CSR is trained on with what they said,
for one seed. Only the phantom has another site to draw studies of.

python -m pipelines.comparison.feedback ARM SEED

What is deployed is ``csr_robust`` of the first seed. Training goes on from its stage 1 for a few epochs, as one would
retrain a model that is in use; stages 2 and 3 are trained anew. ``none`` has the same epochs without any feedback. SEED
is that of the new studies, of the readers and of what is trained.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from csr.baselines.protocol import ExperimentContext, load_system
from csr.comparison.csr_system import CSRSystem, Recipe, train_csr
from csr.comparison.feedback import ARMS, correct, least_sure, new_studies, what_it_says, write_set
from csr.comparison.shared_backbones import open_shared_backbone, train_shared_backbone
from csr.data.feedback.joining import join_feedback
from csr.data.prepared import PreparedSet
from csr.errors import ConfigError
from csr.evaluation.evaluate import evaluate_predictions, rounded
from csr.evaluation.metrics import macro_f1
from csr.network.concept_model import ConceptModel
from csr.training.concepts import train_concepts
from csr.training.prediction import predict
from pipelines.comparison.common import (
    BUILD,
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    command_line,
    comparison_run,
    make_context,
)
from pipelines.comparison.recipes import recipes
from pipelines.params import Params

FOLDER = Path("reports/feedback")
EPOCHS, RATE = 4, 1e-3  # of stage 1; a quarter of the rate from scratch, as for pretrained weights


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``reports/feedback/<arm>-<seed>.json``: what the next model is worth, and the classes that it gives the
    test studies.

    Raises:
        ConfigError: the data set is not the phantom.
    """
    if params.data.source != "phantom":
        raise ConfigError("data.source: only the phantom has another site to draw new studies of; set it to phantom")
    arm, context, robust = ARMS[name], make_context(params, seed, f"feedback_{name}"), recipes()["robust"]
    stage1, stage2, stage3 = (dict(arm.keys.get(stage, {})) for stage in ("concepts", "prototypes", "head"))
    first = params.comparison.seeds[0]
    deployed = load_system(CSRSystem, SYSTEMS_FOLDER / f"csr_robust-{first}.pt").csr
    start = SHARED_BACKBONES_FOLDER / f"concepts_lse-{first}" / "model.pt"
    stage1 |= {"start": str(start), "epochs": EPOCHS, "learning_rate": RATE}
    BUILD.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"title": arm.title, "seed": seed, "studies": arm.studies, "error": arm.error}
    with comparison_run("feedback", name, seed, params), tempfile.TemporaryDirectory(dir=BUILD) as made:
        folder, data = Path(made), context.data
        met, rows = new_studies(params.data.phantom, params.data.side, seed, folder / "new")
        said = what_it_says(deployed, met, rows)
        if arm.studies:
            readings = correct(met, rows, said, arm.studies, arm.error, seed)
            feedback = write_set(met, rows, readings, folder / "set")
            _, joined = join_feedback(data, feedback, folder / "prepared", arm.classes, params.data.near_bits)
            data = PreparedSet.open(folder / "prepared")
            report["joined"] = {"added": joined.added, "left_out": joined.left_out.total()}
        own = replace(context, data=data, config=replace(context.config, **stage1))
        (folder / "stage1").mkdir()
        train_shared_backbone(_train_stage_1, own, folder / "stage1")
        shared, _ = open_shared_backbone(folder / "stage1")
        recipe = Recipe(replace(robust.prototypes, **stage2), replace(robust.head, **stage3))
        csr = train_csr(replace(own, shared_backbone=shared), recipe).csr
        predictions = predict(data, shared.cache, csr)
        report["parts"] = evaluate_predictions(data.collection, predictions, data.side)
        # the new studies that readers of no arm of this seed correct: what a site can know of the next model
        rest = np.delete(rows, least_sure(said, max(each.studies for each in ARMS.values())))
        predicted = what_it_says(csr, met, rest).predicted
        report["uncorrected"] = macro_f1(met.collection.truth()[rest], predicted, len(met.collection.classes))
        history = context.callbacks.history  # type: ignore[attr-defined]
        report["doubted"] = [each["doubted"] for each in history if "doubted" in each]
    FOLDER.mkdir(parents=True, exist_ok=True)
    report["classes"] = predictions.probabilities.argmax(1).tolist()
    (FOLDER / f"{name}-{seed}.json").write_text(json.dumps(rounded(report)) + "\n")


def _train_stage_1(context: ExperimentContext) -> ConceptModel:
    return train_concepts(context.data, context.config, context.callbacks)


if __name__ == "__main__":
    command_line("feedback", list(ARMS), run)
