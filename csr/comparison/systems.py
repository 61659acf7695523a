"""Every compared system and every shared backbone, in the order of the tables.

For those who need all of them. Whoever trains one takes it from its own module, so that the others are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from csr.baselines import (
    black_box,
    cbm,
    intcem,
    label_free_cbm,
    pipnet,
    posthoc_cbm,
    protopnet,
    protopool,
    prototree,
    scbm,
)
from csr.baselines.protocol import BackboneTraining, Entry, SharedBackbone
from csr.comparison import concept_backbones
from csr.comparison.csr_system import Recipe, csr_systems

SHARED_BACKBONES: dict[SharedBackbone, BackboneTraining] = {**concept_backbones.BACKBONES, **black_box.BACKBONES}


def systems(recipes: Mapping[str, Recipe], encoder: bool = True) -> dict[str, Entry]:
    """All compared systems, by name.

    Args:
        recipes: stages 2 and 3 of CSR as ``robust``, ``paper`` or both.
        encoder: with those that learn from an image-text encoder.
    """
    found = csr_systems(recipes)
    for module in (
        cbm,
        scbm,
        intcem,
        posthoc_cbm,
        label_free_cbm,
        protopnet,
        protopool,
        prototree,
        pipnet,
        black_box,
    ):
        found |= module.SYSTEMS
    return {name: entry for name, entry in found.items() if encoder or not entry.encoder}
