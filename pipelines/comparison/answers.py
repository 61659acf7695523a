"""Stage ``answers``: what simulated readers' replies do to CSR, and to bottlenecks on its stage 1, for one seed.

python -m pipelines.comparison.answers {csr_robust,csr_paper,cbm_shared,cbm_answered,scbm_shared,intcem_shared} SEED
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csr.baselines.cbm import CBM
from csr.baselines.intcem import IntCEM
from csr.baselines.protocol import TrainedBackbone, load_system
from csr.baselines.scbm import SCBM
from csr.comparison.answerable_cbm import AnswerableCBM
from csr.comparison.answerable_intcem import AnswerableIntCEM
from csr.comparison.answerable_scbm import AnswerableSCBM
from csr.comparison.csr_system import CSRSystem
from csr.comparison.shared_backbones import open_shared_backbone
from csr.data.prepared import PreparedSet
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import validation_thresholds
from csr.interaction.answering import (
    Answerable,
    AnswerableCSR,
    AnswerConfig,
    answer_curves,
    findings_of,
    most_alike,
)
from csr.interaction.naming_fit import fit_naming
from csr.training.runtime import device
from pipelines.comparison.common import (
    DECISIONS_FOLDER,
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    command_line,
    comparison_run,
    make_context,
)
from pipelines.params import Params

BACKBONES = {
    "csr_robust": "concepts_lse",
    "csr_paper": "concepts_average",
    "cbm_shared": "concepts_lse",
    "cbm_answered": "concepts_lse",
    "scbm_shared": "concepts_lse",
    "intcem_shared": "concepts_lse",
}
KINDS = {
    "csr_robust": AnswerConfig(("keys", "findings", "questioned", "regions")),
    "csr_paper": AnswerConfig(("keys", "regions"), ("effect", "worthwhile")),
    "cbm_shared": AnswerConfig(),
    "cbm_answered": AnswerConfig(),
    "scbm_shared": AnswerConfig(),
    "intcem_shared": AnswerConfig(policies=("effect", "worthwhile", "learned")),
}


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/answers/<name>-<seed>.csv`` and, into the build folder, every study's decisions."""
    context = make_context(params, seed, name)
    data = context.data
    rows = data.collection.rows("test")
    config = replace(KINDS[name], seed=seed, least_effect=params.export.least_effect)
    with comparison_run("answers", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{BACKBONES[name]}-{seed}")
        findings = findings_of(data, rows, most_alike(data, shared.cache))
        model = answerable(name, seed, data, shared, rows)
        thresholds = None
        if data.collection.task == "multilabel":
            val = data.collection.rows("val")
            said = answerable(name, seed, data, shared, val).ask(np.zeros((len(val), context.concepts)))
            thresholds = validation_thresholds(data.collection, Predictions(val, said, None, None))
        table, decisions = answer_curves(model, data.collection, rows, findings, config, thresholds)
    folder = params.comparison.folder / "answers"
    for each in (folder, DECISIONS_FOLDER):
        each.mkdir(parents=True, exist_ok=True)
    table.insert(0, "seed", seed)
    table.round(6).to_csv(folder / f"{name}-{seed}.csv", index=False)
    np.savez_compressed(DECISIONS_FOLDER / f"{name}-{seed}.npz", **decisions)  # type: ignore[arg-type]


def answerable(name: str, seed: int, data: PreparedSet, shared: TrainedBackbone, rows: np.ndarray) -> Answerable:
    """A trained system that takes answers about the studies of some rows."""
    file = SYSTEMS_FOLDER / f"{name}-{seed}.pt"
    if name in ("cbm_shared", "cbm_answered"):
        return AnswerableCBM(load_system(CBM, file), shared, rows)
    if name == "scbm_shared":
        return AnswerableSCBM(load_system(SCBM, file), shared, rows)
    if name == "intcem_shared":
        return AnswerableIntCEM(load_system(IntCEM, file), shared, rows)
    csr = load_system(CSRSystem, file).csr.to(device()).eval()
    letter = name == "csr_paper"
    naming = None if letter else fit_naming(data, shared.cache, csr)
    return AnswerableCSR(shared.cache, csr, rows, data.side, zero=letter, naming=naming)


if __name__ == "__main__":
    command_line("answers", sorted(BACKBONES), run)
