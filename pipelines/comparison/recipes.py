"""CSR's stages 2 and 3 as the comparison trains them."""

from __future__ import annotations

from csr.comparison.csr_system import Recipe
from pipelines.params import load_params


def recipes() -> dict[str, Recipe]:
    """Both presets' recipes; keys that ``params.yaml`` sets itself hold for both."""
    found = {}
    for preset in ("robust", "paper"):
        params = load_params(preset=preset)
        found[preset] = Recipe(params.prototypes, params.head)
    return found
