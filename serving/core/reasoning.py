"""One model, one study: encoding it, and reasoning on it under an interaction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csr.bundle.profile import FileFacts
from csr.data.images import Placement
from csr.interaction.corrections import Interaction, InteractionError, interaction_tensors
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
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reasoned:
    """What the reasoner says of one study.

    Args:
        interaction: under which, boxes in pixels of the canvas.
        tensors: the same as the reasoner takes it, `csr.interaction.corrections.interaction_tensors`.
        outputs: of the reasoner, but for the prototypes' maps.
    """

    interaction: Interaction
    tensors: Arrays
    outputs: Arrays


def encoded_study(
    model: Model,
    digest: str,
    canvas: np.ndarray,
    placement: Placement,
    facts: tuple[FileFacts, ...],
    action: MisfitAction,
    timing: Timing,
    held: EncodedStudy | None = None,
) -> tuple[EncodedStudy, Reasoned]:
    """A study as a model sees it, and what the reasoner says of it without interaction.

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
    reasoned = _reasoned(model, patches, plain)
    timing.lap("reason")
    prediction = model.explainer.predict(reasoned.outputs, placement, judge(model, scores, facts, placement, action))
    timing.lap("explain")
    maps = reasoned.outputs["concept_maps"][0]
    return EncodedStudy(digest, model.digest, canvas, placement, facts, patches, scores, maps, prediction), reasoned


def reason(model: Model, study: EncodedStudy, request: InteractionRequest) -> Reasoned:
    """Reasons on a study under an interaction.

    Raises:
        InvalidInteractionError: a box outside the image, an unknown concept, or what contradicts itself.
    """
    try:
        return _reasoned(model, study.patches, on_canvas(request.interaction(model.manifest), study.placement))
    except InteractionError as error:
        raise InvalidInteractionError(str(error)) from None


def explain(
    model: Model, study: EncodedStudy, request: InteractionRequest, timing: Timing
) -> tuple[Reasoned, Prediction]:
    """What a model says of a study under an interaction, and the prediction, without questions.

    Args:
        timing: gets the laps ``reason`` and ``explain``.

    Raises:
        InvalidInteractionError: see `reason`.
    """
    reasoned = reason(model, study, request)
    timing.lap("reason")
    corrected = Corrected(reasoned.interaction, study.prediction, study.maps)
    after = model.explainer.predict(reasoned.outputs, study.placement, study.prediction.fits, corrected)
    timing.lap("explain")
    return reasoned, after


def _reasoned(model: Model, patches: np.ndarray, interaction: Interaction) -> Reasoned:
    about = model.manifest
    tensors = interaction_tensors([interaction], about.concepts, about.side, about.height, about.width)
    return Reasoned(interaction, tensors, model.engine.run_reasoner(patches, _WITHOUT_PROTOTYPE_MAPS, **tensors))
