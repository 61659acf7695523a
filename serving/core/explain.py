"""The reasoner's outputs → a prediction a person can read, and two predictions → what changed and why.

A concept's *effect* on an interaction says how far it can move probabilities. With c_t its contribution to the logit of
class t, it is max_t Δc_t − min_t Δc_t where a study has one class: probabilities are a softmax then, a shift that is
the same for every class moves none of them, and this leaves it out. Where a study can have several classes, each
probability is a sigmoid of its own logit, the same shift moves them all, and the effect is max_t |Δc_t|.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from csr.bundle.format import AtlasEntry, Manifest
from csr.data.images import Placement
from csr.interaction.corrections import decision_margin, wants_help
from serving.core.overlays import Upsampler
from serving.interfaces.schemas import (
    Changes,
    ClassChange,
    ClassScore,
    ConceptChange,
    ConceptFinding,
    Exemplar,
    Peak,
    Prediction,
    Task,
)

EXEMPLARS = 3
_NAMED = 3  # classes or concepts that a summary names
_STILL = 1e-6  # logits: below it a change is rounding


class Explainer:
    """Turns outputs into answers for one bundle. Immutable, so any thread may use it.

    Args:
        manifest: the bundle's.
        atlas: its entries, in the order of the prototypes.
    """

    def __init__(self, manifest: Manifest, atlas: Sequence[AtlasEntry]) -> None:
        self.manifest = manifest
        self.upsampler = Upsampler(manifest.height, manifest.width, manifest.side)
        per_concept = manifest.per_concept
        self._entries = [atlas[k * per_concept : (k + 1) * per_concept] for k in range(len(manifest.concepts))]
        self._alive = np.array([[entry.alive for entry in own] for own in self._entries])

    def predict(
        self,
        outputs: dict[str, np.ndarray],
        placement: Placement,
        rejected: Sequence[str] = (),
        map_limit: float | None = None,
    ) -> Prediction:
        """Explains the first study of a batch.

        Args:
            outputs: of the reasoner, batch first.
            placement: the study's.
            rejected: the interaction's rejected concepts.
            map_limit: of the study without interaction; None if this is it.
        """
        one = {name: value[0] for name, value in outputs.items() if name != "similarity_maps"}
        classes, probabilities = self.manifest.classes, one["probabilities"]
        multilabel, below = self.manifest.task == "multilabel", self.manifest.abstain_below
        bias = one["logits"] - one["contributions"].sum(0)
        peaks = placement.to_image(np.tile(self.upsampler.peaks(one["concept_maps"]), 2))[:, :2]
        peaks = np.clip(peaks, 0, [placement.width, placement.height])  # a margin's peak is shown at the border
        return Prediction(
            task=self.manifest.task,
            found=[classes[t] for t in _found(probabilities, multilabel)],
            top=classes[int(probabilities.argmax())],
            margin=float(decision_margin(probabilities, multilabel)),
            asks_for_help=bool(wants_help(probabilities, self.manifest.ask_margin, multilabel)),
            abstains=below is not None and _confidence(probabilities, multilabel) < below,
            classes=[
                ClassScore(name=name, probability=p, logit=logit, bias=b)
                for name, p, logit, b in zip(
                    classes, probabilities.tolist(), one["logits"].tolist(), bias.tolist(), strict=True
                )
            ],
            concepts=[self._finding(k, one, peaks[k], rejected) for k in range(len(self.manifest.concepts))],
            map_limit=float(max(one["concept_maps"].max(), 0.0)) if map_limit is None else map_limit,
        )

    def _finding(self, k: int, one: dict[str, np.ndarray], peak: np.ndarray, rejected: Sequence[str]) -> ConceptFinding:
        name = self.manifest.concepts[k]
        alive, gone = np.flatnonzero(self._alive[k]), name in rejected
        winners = alive[np.argsort(-one["scores"][k, alive], kind="stable")][:EXEMPLARS].tolist()
        speaks = len(alive) > 0 and not gone
        return ConceptFinding(
            name=name,
            probability=float(one["concept_probabilities"][k]),
            rejected=gone,
            contributions=dict(zip(self.manifest.classes, one["contributions"][k].tolist(), strict=True)),
            peak=Peak(x=peak[0], y=peak[1], similarity=float(one["concept_maps"][k].max())) if speaks else None,
            exemplars=self._exemplars(k, winners, one["scores"][k].tolist()) if speaks else [],
        )

    def _exemplars(self, k: int, winners: list[int], scores: list[float]) -> list[Exemplar]:
        """Studies, each once: the nearest of each prototype before the second of any, the most similar one first."""
        entries = [self._entries[k][m] for m in winners]
        shown: dict[str, tuple[AtlasEntry, int]] = {}
        for rank in range(max(len(entry.sources) for entry in entries)):
            for entry in entries:
                if rank < len(entry.sources):
                    shown.setdefault(entry.sources[rank].study_id, (entry, rank))
        return [
            Exemplar(
                index=entry.index,
                rank=rank,
                score=scores[entry.index],
                study_id=study_id,
                usage=entry.usage,
                reliance=entry.reliance,
            )
            for study_id, (entry, rank) in list(shown.items())[:EXEMPLARS]
        ]


def _found(probabilities: np.ndarray, multilabel: bool) -> list[int]:
    """Indices of the classes that a study has, most probable first: what `csr.evaluation.metrics.decide` says, without
    torch."""
    ranked = np.argsort(-probabilities, kind="stable").tolist()
    return [t for t in ranked if probabilities[t] >= 0.5] if multilabel else ranked[:1]


def _confidence(probabilities: np.ndarray, multilabel: bool) -> float:
    """How sure the answer is: what `csr.evaluation.calibration.study_confidence` says, without torch."""
    sure = probabilities.astype(np.float64)
    return float(np.maximum(sure, 1 - sure).min() if multilabel else sure.max())


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
    cause: Literal["rejected", "region", "none"] = "none"
    if new.rejected:
        cause = "rejected"
    elif largest > _STILL:
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
    causes = {"rejected": "rejected", "region": "boxes", "none": ""}
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
    probability = next(each.probability for each in prediction.classes if each.name == name)
    rounded = f"{probability * 100:.0f} %"
    if prediction.task == "multilabel" and rounded == "50 %" and probability < 0.5:
        return "< 50 %"  # rounded up it would say that the class is found
    return rounded
