"""The measured correction of where maps look (`csr.training.alignment`), for systems whose maps are of prototypes.

Concept models are aligned by the concepts' labels. A prototype knows no concept, so what is looked at is the map that
plays the pointing game, that of the predicted class's strongest prototype, on training images of each class: class
labels alone, no box and no concept label. Backbones train on, so each system is measured anew, at the end.
"""

from __future__ import annotations

from torch import Tensor

from csr.baselines.protocol import ExperimentContext, System
from csr.network.backbone import Backbone
from csr.training.alignment import align_maps


def align_answers(system: System, backbone: Backbone, context: ExperimentContext) -> None:
    """Measures the shift of a system's answers' maps, which are one for all concepts, and sets ``backbone.map_shift``.

    A system whose prototypes are patches of training images is aligned before they are taken from there.
    """

    def maps_of(images: Tensor, column: int) -> Tensor:
        maps = system.answer(images).maps
        assert maps is not None
        return maps[:, 0]

    align_maps(system, backbone, maps_of, context.data, context.data.collection.class_indicators())
