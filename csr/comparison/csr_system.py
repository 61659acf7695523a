"""CSR as one of the compared systems: stages 2 and 3 on a trained stage 1.

Pointing-game map of concept k: the largest similarity map of its live prototypes. Explanations: the K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from csr.baselines.protocol import Answer, Entry, ExperimentContext, SharedBackbone, System
from csr.interaction.alpha import calibrate
from csr.network.csr import CSR, Encoder
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, PrototypeModel, train_prototypes
from csr.training.runtime import device


@dataclass(frozen=True)
class Recipe:
    """Configuration of stages 2 and 3; the defaults are the recipe ``robust``."""

    prototypes: PrototypeConfig = field(default_factory=PrototypeConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


class CSRSystem(System):
    """CSR, and stage 2's model, from which atlas and refinement are made."""

    def __init__(self, network: CSR, stage2: PrototypeModel) -> None:
        super().__init__()
        self.network = network
        self.stage2 = stage2
        self.prototypes = int(network.reasoner.alive.sum())

    def answer(self, images: Tensor) -> Answer:
        said = self.network(images)
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
    stage2_config, head_config = replace(recipe.prototypes, seed=seed), replace(recipe.head, seed=seed)
    stage2 = train_prototypes(collection, shared.cache, stage2_config, context.callbacks)
    reasoner = train_head(collection, shared.cache, stage2, head_config, context.callbacks)
    calibrate(collection, shared.cache, stage2, reasoner, context.data.side)
    return CSRSystem(CSR(Encoder(shared.model, stage2.projector), reasoner), stage2).to(device()).eval()


_ENTRIES: dict[str, tuple[str, str, SharedBackbone]] = {
    "csr_robust": ("CSR, robust", "robust", "concepts_lse"),
    "csr_paper": ("CSR, to the letter", "paper", "concepts_average"),
}


def csr_systems(recipes: Mapping[str, Recipe]) -> dict[str, Entry]:
    """CSR by every given recipe: ``robust`` makes ``csr_robust``, ``paper`` makes ``csr_paper``."""
    return {
        name: Entry(title, partial(train_csr, recipe=recipes[recipe]), backbone)
        for name, (title, recipe, backbone) in _ENTRIES.items()
        if recipe in recipes
    }
