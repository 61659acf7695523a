"""One model, one study: encoding it, and reasoning on it under an interaction."""

from __future__ import annotations

import numpy as np

from csr.bundle.profile import FileFacts
from csr.data.images import Placement
from csr.interaction.corrections import Interaction, InteractionError
from serving.core.fit import MisfitAction, judge
from serving.core.frames import on_canvas
from serving.core.study_cache import EncodedStudy
from serving.core.timing import Timing
from serving.errors import InvalidInteractionError
from serving.interfaces.schemas import InteractionRequest, Prediction
from serving.models.explainer import Corrected
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
    facts: tuple[FileFacts, ...],
    action: MisfitAction,
    timing: Timing,
    held: EncodedStudy | None = None,
) -> tuple[EncodedStudy, Outputs]:
    """A study as a model sees it, and the reasoner's outputs without interaction.

    Args:
        model: that looks at it.
        digest, canvas, placement, facts: of the study.
        action: what follows if it does not fit.
        timing: gets the laps ``encode``, ``reason`` and ``explain``.
        held: if it was encoded before.
    """
    if held is None:
        encoded = model.engine.run_encoder(canvas[None])
        patches, scores = encoded["patches"], encoded["fit_scores"][0]
        timing.lap("encode")
    else:
        patches, scores = held.patches, held.fit_scores
    plain = InteractionRequest().interaction(model.manifest)  # so that an empty interaction changes nothing
    outputs = model.engine.reason(patches, [plain], _WITHOUT_PROTOTYPE_MAPS)
    timing.lap("reason")
    prediction = model.explainer.predict(outputs, placement, judge(model, scores, facts, placement, action))
    timing.lap("explain")
    maps = outputs["concept_maps"][0]
    return EncodedStudy(digest, model.digest, canvas, placement, facts, patches, scores, maps, prediction), outputs


def reason(model: Model, study: EncodedStudy, request: InteractionRequest) -> tuple[Interaction, Outputs]:
    """An interaction with its boxes in pixels of the canvas, and the reasoner's outputs on a study under it.

    Raises:
        InvalidInteractionError: a box outside the image, an unknown concept, or what contradicts itself.
    """
    try:
        interaction = on_canvas(request.interaction(model.manifest), study.placement)
        return interaction, model.engine.reason(study.patches, [interaction], _WITHOUT_PROTOTYPE_MAPS)
    except InteractionError as error:
        raise InvalidInteractionError(str(error)) from None


def explain(
    model: Model, study: EncodedStudy, request: InteractionRequest, timing: Timing
) -> tuple[Interaction, Prediction]:
    """The prediction under an interaction, without questions, and the interaction on the canvas.

    Args:
        timing: gets the laps ``reason`` and ``explain``.

    Raises:
        InvalidInteractionError: see `reason`.
    """
    interaction, outputs = reason(model, study, request)
    timing.lap("reason")
    corrected = Corrected(interaction, study.prediction, study.maps)
    after = model.explainer.predict(outputs, study.placement, study.prediction.fits, corrected)
    timing.lap("explain")
    return interaction, after
