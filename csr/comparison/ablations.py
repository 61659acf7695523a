"""What each ingredient of the robust preset is worth: it is taken out, alone, and the rest trained again.

A variant says which shared backbone it rests on and which keys of stages 2 and 3 differ from the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from csr.baselines.protocol import SharedBackbone
from csr.comparison.csr_system import Recipe


@dataclass(frozen=True)
class Variant:
    """One row of the ablation table.

    Args:
        title: what differs.
        shared_backbone: stage 1 that it rests on.
        prototypes, head: keys of the `Recipe`'s parts that differ.
    """

    title: str
    shared_backbone: SharedBackbone = "concepts_lse"
    prototypes: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, robust: Recipe) -> Recipe:
        """The recipe with this variant's changes."""
        return Recipe(replace(robust.prototypes, **self.prototypes), replace(robust.head, **self.head))


VARIANTS: dict[str, Variant] = {
    "robust": Variant("robust preset"),
    "average_pooling": Variant("stage 1 pooled by the average", "concepts_average"),
    "coarse_maps": Variant("one level of stride 16 instead of two merged at stride 8", "concepts_coarse"),
    "no_absence": Variant("no absence term", prototypes={"absence": 0.0}),
    "no_agreement": Variant("no agreement term", prototypes={"agreement": 0.0}),
    "no_extra_terms": Variant("neither term: positive vectors alone", prototypes={"absence": 0.0, "agreement": 0.0}),
    "raw_features": Variant("features not standardised", prototypes={"standardise": False}),
    "hard_assignment": Variant("γ = 1000", prototypes={"gamma": 1000.0}),
    "reseed": Variant("γ = 1000, dead prototypes re-seeded", prototypes={"gamma": 1000.0, "reseed": True}),
    "one_prototype": Variant("M = 1", prototypes={"per_concept": 1}),
    "many_prototypes": Variant("M = 20", prototypes={"per_concept": 20}),
    "no_clip": Variant("similarities not clipped at 0", head={"clip": False}),
    "unused_kept": Variant("unused prototypes kept", head={"least_usage": 0.0}),
    "dropout": Variant("concept dropout 0.1 in the head", head={"concept_dropout": 0.1}),
}
