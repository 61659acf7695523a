"""Two predictions of one study → what changed, and why.

A concept's *effect* on an interaction says how far it can move probabilities. With c_t its contribution to the logit of
class t, it is max_t Δc_t − min_t Δc_t where a study has one class: probabilities are a softmax then, a shift that is
the same for every class moves none of them, and this leaves it out. Where a study can have several classes, each
probability is a sigmoid of its own logit, the same shift moves them all, and the effect is max_t |Δc_t|.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from serving.core.percent import percent
from serving.interfaces.schemas import Changes, ClassChange, ConceptChange, ConceptFinding, Prediction, Task

_NAMED = 3  # classes or concepts that a summary names
_STILL = 1e-6  # logits: below it a change is rounding


def compare(before: Prediction, after: Prediction) -> Changes:
    """What moved between two predictions of one study, and why."""
    classes = [
        ClassChange(
            name=old.name, before=old.probability, after=new.probability, delta=new.probability - old.probability
        )
        for old, new in zip(before.classes, after.classes, strict=True)
    ]
    concepts = [_concept_change(old, new, after.task) for old, new in zip(before.concepts, after.concepts, strict=True)]
    concepts.sort(key=lambda change: -change.effect)
    summary = _found_summary if after.task == "multilabel" else _top_summary
    return Changes(
        found_before=before.found,
        found_after=after.found,
        top_before=before.top,
        top_after=after.top,
        top_changed=before.top != after.top,
        summary=summary(before, after, [change for change in concepts if change.effect > _STILL]),
        classes=classes,
        concepts=concepts,
    )


def _concept_change(old: ConceptFinding, new: ConceptFinding, task: Task) -> ConceptChange:
    deltas = {name: new.contributions[name] - value for name, value in old.contributions.items()}
    largest = max(abs(delta) for delta in deltas.values())
    cause: Literal["confirmed", "rejected", "region", "none"] = new.answer
    if cause == "none" and largest > _STILL:
        cause = "region"
    return ConceptChange(
        name=new.name,
        cause=cause,
        effect=largest if task == "multilabel" else max(deltas.values()) - min(deltas.values()),
        probability_delta=new.probability - old.probability,
        contribution_deltas=deltas,
    )


def _top_summary(before: Prediction, after: Prediction, moved: Sequence[ConceptChange]) -> str:
    """One sentence on what happened and one on why, in terms of the two classes between which it happened."""
    if not moved:
        return f"No change: {before.top} stays at {_percent(before, before.top)}."
    if after.top != before.top:
        rival = before.top
        verdict = f"{rival} ({_percent(before, rival)}) gives way to {after.top} ({_percent(after, after.top)})."
    else:
        others = [each.name for each in sorted(after.classes, key=lambda each: -each.probability)]
        rival = next((name for name in others if name != after.top), after.top)
        verdict = f"{after.top} stays on top, {_percent(before, after.top)} → {_percent(after, after.top)}."
    shifts = [(change.contribution_deltas[after.top] - change.contribution_deltas[rival], change) for change in moved]
    return f"{verdict} For {after.top} against {rival}: {_reasons(shifts)}."


def _found_summary(before: Prediction, after: Prediction, moved: Sequence[ConceptChange]) -> str:
    """The same where a study can have several classes: which of them are found, and why the one that moved most did, of
    those that were gained or lost if any was."""
    if not moved:
        stay = _listed([f"{name} ({_percent(after, name)})" for name in after.found])
        return f"No change. The findings stay: {stay}."
    old, new = ({each.name: each.probability for each in prediction.classes} for prediction in (before, after))
    by_shift = sorted(new, key=lambda name: -abs(new[name] - old[name]))
    decided = [name for name in by_shift if (name in before.found) != (name in after.found)]
    if decided:
        first = decided[0]
        verdict = f"{_listed([_decision(before, after, name) for name in decided])}. For {first}"
    else:
        first = by_shift[0]
        stay = _listed([f"{name} ({_step(before, after, name)})" for name in after.found])
        verdict = f"The findings stay: {stay}. The largest change is {first}, {_step(before, after, first)}"
    return f"{verdict}: {_reasons([(change.contribution_deltas[first], change) for change in moved])}."


def _decision(before: Prediction, after: Prediction, name: str) -> str:
    turn = "is now found" if name in after.found else "is no longer found"
    return f"{name} ({_percent(before, name)}) {turn} ({_percent(after, name)})"


def _reasons(shifts: Sequence[tuple[float, ConceptChange]]) -> str:
    """The concepts with the largest shifts."""
    causes = {"confirmed": "confirmed", "rejected": "rejected", "region": "boxes", "none": ""}
    largest = sorted(shifts, key=lambda pair: -abs(pair[0]))[:_NAMED]
    return ", ".join(f"{change.name} {_signed(shift)} ({causes[change.cause]})" for shift, change in largest)


def _listed(parts: Sequence[str]) -> str:
    """The first few of what there may be many of, or ``none``."""
    more = [f"and {len(parts) - _NAMED} more"] if len(parts) > _NAMED else []
    return ", ".join([*parts[:_NAMED], *more]) or "none"


def _step(before: Prediction, after: Prediction, name: str) -> str:
    return f"{_percent(before, name)} → {_percent(after, name)}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(prediction: Prediction, name: str) -> str:
    own = next(each for each in prediction.classes if each.name == name)
    return percent(own.probability, own.threshold)
