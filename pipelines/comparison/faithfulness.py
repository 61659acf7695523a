"""Stage ``faithfulness``: whether what CSR and a CBM on its stage 1 show is what they look at, for one seed.

python -m pipelines.comparison.faithfulness cbm_shared SEED
"""

from __future__ import annotations

from csr.baselines.cbm import CBM
from csr.baselines.protocol import load_system
from csr.bundle.atlas import build_atlas
from csr.comparison.csr_system import CSRSystem
from csr.comparison.faithfulness import (
    FaithfulnessConfig,
    Systems,
    curve_areas,
    exemplar_effects,
    pointed_effects,
)
from csr.comparison.shared_backbones import open_shared_backbone
from csr.training.runtime import device
from pipelines.comparison.common import (
    SHARED_BACKBONES_FOLDER,
    SYSTEMS_FOLDER,
    command_line,
    comparison_run,
    make_context,
)
from pipelines.params import Params


def run(name: str, seed: int, params: Params) -> None:
    """Writes ``<folder>/faithfulness/{curves,exemplars,pointed}-<name>-<seed>.csv``."""
    data = make_context(params, seed, name).data
    with comparison_run("faithfulness", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"concepts_lse-{seed}")
        csr = load_system(CSRSystem, SYSTEMS_FOLDER / f"csr_robust-{seed}.pt").csr
        cbm = load_system(CBM, SYSTEMS_FOLDER / f"{name}-{seed}.pt")
        systems = Systems(shared.model.to(device()).eval(), csr.to(device()).eval(), cbm.to(device()).eval())
        config = FaithfulnessConfig(seed=seed)
        tables = {
            "curves": curve_areas(systems, data, config),
            "exemplars": exemplar_effects(systems, data, build_atlas(data, shared.cache, csr), config),
            "pointed": pointed_effects(systems, data, config),
        }
    folder = params.comparison.folder / "faithfulness"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, table in tables.items():
        table.insert(0, "seed", seed)
        table.round(4).to_csv(folder / f"{kind}-{name}-{seed}.csv", index=False)


if __name__ == "__main__":
    command_line("faithfulness", ["cbm_shared"], run)
