"""Stage ``boxes``: how well CSR names boxes, and what focus boxes do to its classes, for one seed.

python -m pipelines.comparison.boxes csr_robust SEED
"""

from __future__ import annotations

import json

from csr.baselines.protocol import load_system
from csr.comparison.csr_system import CSRSystem
from csr.comparison.shared_backbones import open_shared_backbone
from csr.evaluation.evaluate import rounded
from csr.interaction.answering import most_alike
from csr.interaction.box_figures import focus_figures, naming_figures
from csr.interaction.naming_fit import fit_naming
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
    """Writes ``<folder>/boxes/<name>-<seed>.json``."""
    context = make_context(params, seed, name)
    data = context.data
    with comparison_run("boxes", name, seed, params):
        shared, _ = open_shared_backbone(SHARED_BACKBONES_FOLDER / f"concepts_lse-{seed}")
        csr = load_system(CSRSystem, SYSTEMS_FOLDER / f"{name}-{seed}.pt").csr.to(device()).eval()
        naming, alike = fit_naming(data, shared.cache, csr), most_alike(data, shared.cache)
        report = {}
        for part in data.collection.test_parts():
            rows = data.collection.rows("test", part)
            report[part] = focus_figures(data, shared.cache, csr, rows, seed)
            if naming is not None:
                report[part] |= naming_figures(data, shared.cache, csr, naming, rows, alike)
    folder = params.comparison.folder / "boxes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{seed}.json").write_text(json.dumps(rounded(report), indent=2) + "\n")


if __name__ == "__main__":
    command_line("boxes", ["csr_robust"], run)
