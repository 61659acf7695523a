"""The reasoner's outputs → a prediction a person can read, and two predictions → what changed and why.

A concept's *effect* on an interaction is max_t Δc_t − min_t Δc_t, where c_t is its contribution to the logit of class
t: a shift that is the same for every class moves no probability, and this leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from csr.bundle import AtlasEntry, Manifest
from csr.images import Placement
from csr.interaction import wants_help
from serving.maps import Upsampler
from serving.schemas import (
    Changes,
    ClassChange,
    ClassScore,
    ConceptChange,
    ConceptFinding,
    Exemplar,
    Peak,
    Prediction,
)

EXEMPLARS = 3
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
        below = self.manifest.abstain_below
        ranked = np.sort(probabilities)[::-1]
        bias = one["logits"] - one["contributions"].sum(0)
        peaks = placement.to_image(np.tile(self.upsampler.peaks(one["concept_maps"]), 2))[:, :2]
        peaks = np.clip(peaks, 0, [placement.width, placement.height])  # a margin's peak is shown at the border
        return Prediction(
            top=classes[int(probabilities.argmax())],
            margin=float(ranked[0] - ranked[1]) if len(ranked) > 1 else 1.0,
            asks_for_help=len(ranked) > 1 and bool(wants_help(probabilities, self.manifest.ask_margin)),
            abstains=below is not None and float(ranked[0]) < below,
            classes=[
                ClassScore(name=name, probability=p, logit=logit, bias=b)
                for name, p, logit, b in zip(
                    classes, probabilities.tolist(), one["logits"].tolist(), bias.tolist(), strict=True
                )
            ],
            concepts=[self._finding(k, one, peaks[k], rejected) for k in range(len(self.manifest.concepts))],
            map_limit=float(max(one["concept_maps"].max(), 0.0)) if map_limit is None else map_limit,
            maps=one["concept_maps"],
        )

    def _finding(self, k: int, one: dict[str, np.ndarray], peak: np.ndarray, rejected: Sequence[str]) -> ConceptFinding:
        name = self.manifest.concepts[k]
        alive, gone = np.flatnonzero(self._alive[k]), name in rejected
        winners = alive[np.argsort(-one["scores"][k, alive], kind="stable")][:EXEMPLARS]
        speaks = len(alive) > 0 and not gone
        return ConceptFinding(
            name=name,
            probability=float(one["concept_probabilities"][k]),
            rejected=gone,
            contributions=dict(zip(self.manifest.classes, one["contributions"][k].tolist(), strict=True)),
            peak=Peak(x=peak[0], y=peak[1], similarity=float(one["concept_maps"][k].max())) if speaks else None,
            exemplars=[self._exemplar(k, int(m), float(one["scores"][k, m])) for m in winners] if speaks else [],
        )

    def _exemplar(self, k: int, m: int, score: float) -> Exemplar:
        entry = self._entries[k][m]
        return Exemplar(
            index=entry.index, score=score, study_id=entry.study_id, usage=entry.usage, reliance=entry.reliance
        )


def compare(before: Prediction, after: Prediction) -> Changes:
    """What moved between two predictions of one study, and why."""
    classes = [
        ClassChange(
            name=old.name, before=old.probability, after=new.probability, delta=new.probability - old.probability
        )
        for old, new in zip(before.classes, after.classes, strict=True)
    ]
    concepts = [_concept_change(old, new) for old, new in zip(before.concepts, after.concepts, strict=True)]
    concepts.sort(key=lambda change: -change.effect)
    return Changes(
        top_before=before.top,
        top_after=after.top,
        top_changed=before.top != after.top,
        summary=_summary(before, after, concepts),
        classes=classes,
        concepts=concepts,
    )


def _concept_change(old: ConceptFinding, new: ConceptFinding) -> ConceptChange:
    deltas = {name: new.contributions[name] - value for name, value in old.contributions.items()}
    cause: Literal["rejected", "region", "none"] = "none"
    if new.rejected:
        cause = "rejected"
    elif max(abs(delta) for delta in deltas.values()) > _STILL:
        cause = "region"
    return ConceptChange(
        name=new.name,
        cause=cause,
        effect=max(deltas.values()) - min(deltas.values()),
        probability_delta=new.probability - old.probability,
        contribution_deltas=deltas,
    )


def _summary(before: Prediction, after: Prediction, changes: Sequence[ConceptChange]) -> str:
    """One sentence on what happened and one on why, in terms of the two classes between which it happened."""
    moved = [change for change in changes if change.effect > _STILL]
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
    shifts.sort(key=lambda pair: -abs(pair[0]))
    causes = {"rejected": "rejected", "region": "boxes", "none": ""}
    parts = [f"{change.name} {_signed(shift)} ({causes[change.cause]})" for shift, change in shifts[:3]]
    return f"{verdict} For {after.top} against {rival}: {', '.join(parts)}."


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(prediction: Prediction, name: str) -> str:
    return next(f"{each.probability * 100:.0f} %" for each in prediction.classes if each.name == name)
