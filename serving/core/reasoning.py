"""One model, one study: encoding it, and reasoning on it under an interaction."""

from __future__ import annotations

import numpy as np

from csr.data.images import Placement
from csr.interaction.corrections import InteractionError
from serving.core.frames import on_canvas
from serving.core.study_cache import EncodedStudy
from serving.core.timing import Timing
from serving.errors import InvalidInteractionError
from serving.interfaces.schemas import InteractionRequest
from serving.models.in_service import Model

_WITHOUT_PROTOTYPE_MAPS = (
    "concept_maps",
    "scores",
    "concept_probabilities",
    "contributions",
    "logits",
    "probabilities",
)
Outputs = dict[str, np.ndarray]


def encoded_study(
    model: Model,
    digest: str,
    canvas: np.ndarray,
    placement: Placement,
    timing: Timing,
    patches: np.ndarray | None = None,
) -> tuple[EncodedStudy, Outputs]:
    """A study as a model sees it, and the reasoner's outputs without interaction.

    Args:
        model: that looks at it.
        digest, canvas, placement: of the study.
        timing: gets the laps ``encode``, ``reason`` and ``explain``.
        patches: if it was encoded before.
    """
    if patches is None:
        patches = model.engine.encode(canvas[None])
        timing.lap("encode")
    plain = InteractionRequest().interaction(model.manifest)  # so that an empty interaction changes nothing
    outputs = model.engine.reason(patches, [plain], _WITHOUT_PROTOTYPE_MAPS)
    timing.lap("reason")
    prediction = model.explainer.predict(outputs, placement)
    timing.lap("explain")
    maps = outputs["concept_maps"][0]
    return EncodedStudy(digest, model.digest, canvas, placement, patches, maps, prediction), outputs


def reason(model: Model, study: EncodedStudy, request: InteractionRequest) -> Outputs:
    """The reasoner's outputs on a study under an interaction.

    Raises:
        InvalidInteractionError: a box outside the image, or an unknown concept.
    """
    interaction = request.interaction(model.manifest)
    try:
        return model.engine.reason(study.patches, [on_canvas(interaction, study.placement)], _WITHOUT_PROTOTYPE_MAPS)
    except InteractionError as error:
        raise InvalidInteractionError(str(error)) from None
