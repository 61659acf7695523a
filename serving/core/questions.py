"""What is asked of a reader: the next question, and doubts about boxes that were named.

The next question is whether a concept is there, by its expected effect (`csr.interaction.questions`); those are shown
that are worth asking, with the reason in a sentence. A worklist is ordered by *margin*, the smallest
`csr.data.decisions.decision_margin` first, where the model is least sure of its answer, or by *expected
effect*, that of a study's best question, the largest first, where a reader's answer is expected to tell most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csr.interaction.corrections import Interaction
from csr.interaction.questions import Question, Said, entropy, questions
from serving.core.percent import percent
from serving.core.reasoning import Reasoned
from serving.core.study_cache import EncodedStudy
from serving.interfaces.schemas import ClassScore, Doubt, NamedConcept, NextQuestion, Prediction
from serving.models.in_service import Model

_STILL = 1e-5  # below it a probability did not move
SHOWN = 3  # questions, and concepts that a doubted box may be about


def open_questions(model: Model, study: EncodedStudy, reasoned: Reasoned, said: Prediction) -> list[Question]:
    """Every question that is open, that with the largest effect first.

    Args:
        model, study: who is asked, and about what.
        reasoned: what has been said so far.
        said: the prediction under it.
    """
    likely = np.array([each.probability for each in study.prediction.concepts])

    def ask(answers: np.ndarray) -> np.ndarray:
        others = {name: np.repeat(value, len(answers), 0) for name, value in reasoned.tensors.items()}
        patches = np.repeat(study.patches, len(answers), 0)
        return model.engine.run_reasoner(patches, ("contributions",), **others | {"answers": answers})["contributions"]

    about, outputs = model.manifest, reasoned.outputs
    known = Said(outputs["contributions"][0], outputs["logits"][0], outputs["probabilities"][0])
    answers = reasoned.tensors["answers"][0]
    return questions(answers, known, likely, about.concepts, ask, model.probabilities, about.task == "multilabel")


def may_be_worth_asking(model: Model, said: Prediction) -> bool:
    """False where no question can be: none tells more than there is to know, the entropy of the classes."""
    about = model.manifest
    return float(entropy(_probabilities(said), about.task == "multilabel")) >= about.least_effect


def asking(model: Model, said: Prediction, found: Sequence[Question]) -> Prediction:
    """A prediction with the first few of the questions whose effect is large enough."""
    places = {each.name: each.peak for each in said.concepts}
    classes = model.manifest.classes
    worth = [
        NextQuestion(
            concept=each.concept,
            effect=each.effect,
            place=places[each.concept],
            if_confirmed=dict(zip(classes, each.if_confirmed.tolist(), strict=True)),
            if_rejected=dict(zip(classes, each.if_rejected.tolist(), strict=True)),
            reason=_reason(each, said.classes),
        )
        for each in found[:SHOWN]
        if each.effect >= model.manifest.least_effect
    ]
    return said.model_copy(update={"questions": worth})


def doubts(model: Model, study: EncodedStudy, interaction: Interaction) -> list[Doubt]:
    """Finding boxes whose name `csr.interaction.naming.BoxNaming` doubts.

    Args:
        interaction: boxes in pixels of the canvas.
    """
    naming, about = model.naming, model.manifest
    if naming is None:
        return []
    found = []
    for index, box in enumerate(interaction.boxes):
        if box.concept is None:
            continue
        likely = naming.probabilities(study.maps, box, about.side)
        own = float(likely[about.concepts.index(box.concept)])
        if naming.doubts(about.concepts.index(box.concept), likely):
            ranked = [k for k in np.argsort(-likely, kind="stable") if about.concepts[k] != box.concept][:SHOWN]
            others = [NamedConcept(name=about.concepts[k], probability=float(likely[k])) for k in ranked]
            message = _doubt(index, box.concept, own, others[0])
            found.append(Doubt(box=index, concept=box.concept, probability=own, speaks_for=others, message=message))
    return found


def _doubt(index: int, concept: str, own: float, first: NamedConcept) -> str:
    named = f"Box {index + 1} is named {concept} ({'< 1 %' if own < 0.005 else percent(own)})"
    if first.probability > own:
        return f"{named}, but the evidence inside it speaks for {first.name} ({percent(first.probability)})."
    return f"{named}, but little inside it speaks for that; next comes {first.name} ({percent(first.probability)})."


def _probabilities(said: Prediction) -> np.ndarray:
    return np.array([each.probability for each in said.classes])


def _reason(question: Question, classes: Sequence[ClassScore]) -> str:
    """What either answer does to the class that it moves most."""
    before = np.array([each.probability for each in classes])
    shift, back = np.abs(question.if_confirmed - before), np.abs(question.if_rejected - before)
    yes = int(shift.argmax())
    no = int(back.argmax()) if back.max() > _STILL else yes
    moves = _moves(classes[yes], question.if_confirmed[yes], " from ")
    if_there = f"If {question.concept} is there, {classes[yes].name} {moves}"
    if no == yes:
        return f"{if_there}; if not, it {_moves(classes[no], question.if_rejected[no])}."
    return f"{if_there}; if not, {classes[no].name} {_moves(classes[no], question.if_rejected[no], ' from ')}."


def _moves(old: ClassScore, new: float, origin: str = "") -> str:
    """``origin`` is given where the old value has to be named."""
    was, becomes = percent(old.probability, old.threshold), percent(new, old.threshold)
    if was == becomes:
        return f"stays at {was}"
    return f"{'rises' if new > old.probability else 'falls'}{origin}{was if origin else ''} to {becomes}"
