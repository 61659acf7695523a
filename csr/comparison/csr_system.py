"""CSR as one of the compared systems: stages 2 and 3 on a trained stage 1.

Pointing-game map of concept k: the largest similarity map of its live prototypes. Explanations: the K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from csr.baselines.protocol import Answer, Entry, ExperimentContext, SharedBackbone, System
from csr.network.trained import TrainedCSR
from csr.training.head import HeadConfig, train_head
from csr.training.located import attended_cache
from csr.training.prototypes import PrototypeConfig, train_prototypes
from csr.training.runtime import device
from csr.training.temperature import calibrate_temperature


@dataclass(frozen=True)
class Recipe:
    """Configuration of stages 2 and 3; the defaults are the recipe ``robust``."""

    prototypes: PrototypeConfig = field(default_factory=PrototypeConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


class CSRSystem(System):
    """CSR, wrapped."""

    def __init__(self, csr: TrainedCSR) -> None:
        super().__init__()
        self.csr = csr
        self.prototypes = int(csr.reasoner.alive.sum())

    @property
    def config(self) -> dict[str, Any]:
        return self.csr.config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CSRSystem:
        return cls(TrainedCSR.from_config(config))

    def answer(self, images: Tensor) -> Answer:
        said = self.csr(images)
        concepts = said.concept_maps.shape[1]
        return Answer(
            said.probabilities,
            said.concept_probabilities,
            said.concept_maps,
            said.probabilities.new_full((len(images),), concepts),
        )


def train_csr(context: ExperimentContext, recipe: Recipe) -> CSRSystem:
    """Trains stages 2 and 3 on the context's shared backbone."""
    assert context.shared_backbone is not None
    shared, collection, seed = context.shared_backbone, context.data.collection, context.config.seed
    stage2, stage3 = replace(recipe.prototypes, seed=seed), replace(recipe.head, seed=seed)
    side = context.data.side
    cache = attended_cache(context.data, shared.cache, stage2.located, stage2.reader_boxes)
    prototypes = train_prototypes(collection, cache, stage2, context.callbacks)
    reasoner = train_head(collection, cache, prototypes, stage3, context.callbacks, side=side)
    csr = TrainedCSR(shared.model, prototypes, reasoner, collection.concepts, collection.classes)
    calibrate_temperature(context.data, shared.cache, csr)
    return CSRSystem(csr).to(device()).eval()


_ENTRIES: dict[str, tuple[str, str, SharedBackbone]] = {
    "csr_robust": ("CSR, robust", "robust", "concepts_lse"),
    "csr_paper": ("CSR, to the letter", "paper", "concepts_average"),
}


def csr_systems(recipes: Mapping[str, Recipe]) -> dict[str, Entry]:
    """CSR by every given recipe: ``robust`` makes ``csr_robust``, ``paper`` makes ``csr_paper``."""
    return {
        name: Entry(title, CSRSystem, partial(train_csr, recipe=recipes[recipe]), backbone)
        for name, (title, recipe, backbone) in _ENTRIES.items()
        if recipe in recipes
    }
