"""CSR's stages 2 and 3 as the comparison trains them."""

from __future__ import annotations

from dataclasses import replace

from csr.comparison.csr_system import Recipe
from pipelines.params import load_params


def recipes() -> dict[str, Recipe]:
    """Both presets' recipes; keys that ``params.yaml`` sets itself hold for both, but that the paper's prototypes see
    no box."""
    robust, paper = (load_params(preset=preset) for preset in ("robust", "paper"))
    return {
        "robust": Recipe(robust.prototypes, robust.head),
        "paper": Recipe(replace(paper.prototypes, located=False), paper.head),
    }
