"""Stage ``interventions``: what simulated clinicians' interactions do to CSR, for one seed.

python -m pipelines.comparison.interventions {csr_robust,csr_paper} SEED
"""

from __future__ import annotations

from dataclasses import replace

from csr.baselines.protocol import load_system
from csr.comparison.csr_system import CSRSystem, csr_systems
from csr.comparison.shared_backbones import open_shared_backbone
from csr.interaction.curves import InterventionConfig, intervention_curves
from pipelines.comparison.common import (
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    command_line,
    comparison_run,
    make_context,
)
from pipelines.comparison.recipes import recipes
from pipelines.params import Params

# the paper knows one rejection, zero
KINDS = {
    "csr_robust": InterventionConfig(),
    "csr_paper": InterventionConfig(rejections=("zero",), orders=("uncertainty",)),
}


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/interventions/<name>-<seed>.csv``."""
    shared_kind = csr_systems(recipes())[name].shared_backbone
    context = make_context(params, seed, name)
    with comparison_run("interventions", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"{shared_kind}-{seed}")
        csr = load_system(CSRSystem, SYSTEMS_FOLDER / f"{name}-{seed}.pt").csr
        table = intervention_curves(context.data, shared.cache, csr, replace(KINDS[name], seed=seed))
    folder = params.comparison.folder / "interventions"
    folder.mkdir(parents=True, exist_ok=True)
    table.insert(0, "seed", seed)
    table.round(6).to_csv(folder / f"{name}-{seed}.csv", index=False)


if __name__ == "__main__":
    command_line("interventions", sorted(KINDS), run)
