"""Stage ``answers``: what simulated readers' answers do to CSR and to rivals on its stage 1, for one seed.

python -m pipelines.comparison.answers {csr_robust,csr_paper,cbm_shared,intcem_shared} SEED
"""

from __future__ import annotations

from csr.baselines.cbm import CBM
from csr.baselines.intcem import IntCEM
from csr.baselines.protocol import load_system
from csr.comparison.answerable_cbm import AnswerableCBM
from csr.comparison.answerable_intcem import AnswerableIntCEM
from csr.comparison.csr_system import CSRSystem
from csr.comparison.shared_backbones import open_shared_backbone
from csr.interaction.answering import Answerable, AnswerableCSR, AnswerConfig, answer_curves
from pipelines.comparison.common import (
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
    "intcem_shared": "concepts_lse",
}


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/answers/<name>-<seed>.csv``."""
    context = make_context(params, seed, name)
    collection = context.data.collection
    rows = collection.rows("test")
    with comparison_run("answers", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{BACKBONES[name]}-{seed}")
        file = SYSTEMS_FOLDER / f"{name}-{seed}.pt"
        model: Answerable
        if name == "cbm_shared":
            model = AnswerableCBM(load_system(CBM, file), shared, rows)
        elif name == "intcem_shared":
            model = AnswerableIntCEM(load_system(IntCEM, file), shared, rows)
        else:
            model = AnswerableCSR(shared.cache, load_system(CSRSystem, file).csr, rows)
        table = answer_curves(model, collection, rows, AnswerConfig(seed=seed))
    folder = params.comparison.folder / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    table.insert(0, "seed", seed)
    table.round(6).to_csv(folder / f"{name}-{seed}.csv", index=False)


if __name__ == "__main__":
    command_line("answers", sorted(BACKBONES), run)
