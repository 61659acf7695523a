"""Stage ``interventions``: what simulated readers' interactions do to CSR, for one seed.

python -m pipelines.comparison.interventions {csr_robust,csr_paper} SEED
"""

from __future__ import annotations

from dataclasses import replace

import torch

from csr.comparison.foundations import open_foundation
from csr.comparison.systems import systems
from csr.interventions import InterventionConfig, intervention_curves
from pipelines.comparison.common import (
    FOUNDATIONS_FOLDER,
    SYSTEMS_FOLDER,
    command_line,
    comparison_run,
    make_setting,
    recipes,
)
from pipelines.params import Params

# α of both presets is what their bundles serve: each concept's own, and the replications' 0.2; the paper knows one
# rejection, zero
KINDS = {
    "csr_robust": InterventionConfig(),
    "csr_paper": InterventionConfig(alpha=0.2, rejections=("zero",), orders=("uncertainty",)),
}


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/interventions/<name>-<seed>.csv``."""
    foundation_kind = systems(recipes())[name].foundation
    setting = make_setting(params, seed, name)
    with comparison_run("interventions", name, seed, params):
        foundation, _ = open_foundation(FOUNDATIONS_FOLDER / f"{foundation_kind}-{seed}")
        system = torch.load(SYSTEMS_FOLDER / f"{name}-{seed}.pt", weights_only=False)
        table = intervention_curves(
            setting.data.collection,
            foundation.cache,
            system.stage2,
            system.network.reasoner,
            setting.data.side,
            replace(KINDS[name], seed=seed),
        )
    folder = params.comparison.folder / "interventions"
    folder.mkdir(parents=True, exist_ok=True)
    table.insert(0, "seed", seed)
    table.round(6).to_csv(folder / f"{name}-{seed}.csv", index=False)


if __name__ == "__main__":
    command_line("interventions", sorted(KINDS), run)
