"""The reasoner's outputs → a prediction that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csr.bundle.format import AtlasEntry, Manifest
from csr.data.decisions import HALF, decide, decision_margin, study_confidence, wants_help
from csr.data.images import Placement
from csr.evaluation.upsampling import Upsampler
from csr.interaction.corrections import Interaction, RegionBox, cells_inside
from serving.interfaces.schemas import (
    ClassScore,
    ConceptFinding,
    Exemplar,
    Fits,
    Peak,
    Prediction,
    ProbedConcept,
    ReaderAnswer,
    crop_path,
)

EXEMPLARS = 3


@dataclass(frozen=True)
class Corrected:
    """What the explanation of a correction needs beside the reasoner's outputs.

    Args:
        interaction: boxes in pixels of the canvas.
        before: the prediction without it.
        maps: K×h×w, the concepts' maps without it.
    """

    interaction: Interaction
    before: Prediction
    maps: np.ndarray


class Explainer:
    """Turns outputs into answers for one bundle. Immutable, so any thread may use it. ``alive``: K×M, what is in use.

    Args:
        manifest: the bundle's.
        atlas: its entries, in the order of the prototypes.
    """

    def __init__(self, manifest: Manifest, atlas: Sequence[AtlasEntry]) -> None:
        self.manifest = manifest
        self.upsampler = Upsampler(manifest.height, manifest.width, manifest.side)
        per_concept = manifest.per_concept
        self._entries = [atlas[k * per_concept : (k + 1) * per_concept] for k in range(len(manifest.concepts))]
        self.alive = np.array([[entry.alive for entry in own] for own in self._entries])
        self._live = [np.flatnonzero(own).tolist() for own in self.alive]
        self._crops = [
            [[crop_path(each.concept, each.index, rank) for rank in range(len(each.sources))] for each in own]
            for own in self._entries
        ]

    def predict(
        self,
        outputs: dict[str, np.ndarray],
        placement: Placement,
        fits: Fits,
        corrected: Corrected | None = None,
    ) -> Prediction:
        """Explains the first study of a batch; what to ask next is for others (`serving.core.questions`).

        Args:
            outputs: of the reasoner, batch first.
            placement: the study's.
            fits: whether the study's image is like those of training.
            corrected: None if there is no interaction.
        """
        one = {name: value[0] for name, value in outputs.items() if name != "similarity_maps"}
        classes, probabilities = self.manifest.classes, one["probabilities"]
        multilabel, below = self.manifest.task == "multilabel", self.manifest.abstain_below
        given = self.manifest.thresholds
        thresholds = np.full(len(classes), HALF) if given is None else np.array(given)
        unsure = below is not None and bool(study_confidence(probabilities, multilabel, thresholds) < below)
        bias = one["logits"] - one["contributions"].sum(0)
        findings = self._findings(one, self._peaks(one["concept_maps"], placement, corrected), placement, corrected)
        return Prediction(
            task=self.manifest.task,
            found=[classes[t] for t in _found(probabilities, multilabel, thresholds)],
            top=classes[int(probabilities.argmax())],
            margin=float(decision_margin(probabilities, multilabel, thresholds)),
            asks_for_help=bool(wants_help(probabilities, self.manifest.ask_margin, multilabel, thresholds)),
            abstains=fits.action == "abstain" or unsure,
            classes=[
                ClassScore(name=name, probability=p, logit=logit, bias=b, threshold=t if multilabel else None)
                for name, p, logit, b, t in zip(
                    classes,
                    probabilities.tolist(),
                    one["logits"].tolist(),
                    bias.tolist(),
                    thresholds.tolist(),
                    strict=True,
                )
            ],
            concepts=findings,
            map_limit=float(max(one["concept_maps"].max(), 0.0)) if corrected is None else corrected.before.map_limit,
            questions=[],
            fits=fits,
        )

    def probe(
        self, likely: np.ndarray, similarity_maps: np.ndarray, maps: np.ndarray, box: RegionBox, placement: Placement
    ) -> list[ProbedConcept]:
        """What speaks for each concept in a box, the likeliest first.

        Args:
            likely: K, how likely the box is about each.
            similarity_maps: K×M×h×w, without interaction.
            maps: K×h×w, the concepts' own, without interaction.
            box: in pixels of the canvas.
            placement: the study's.
        """
        cells = cells_inside(box, self.manifest.side, *maps.shape[-2:])
        scores = similarity_maps[:, :, cells].max(-1)
        return [
            ProbedConcept(
                name=self.manifest.concepts[k],
                probability=float(likely[k]),
                peak=self._peak_inside(maps[k], [box], placement),
                exemplars=self._closest(k, scores[k]),
            )
            for k in np.argsort(-likely, kind="stable").tolist()
        ]

    def _peaks(self, maps: np.ndarray, placement: Placement, corrected: Corrected | None) -> list[Peak | None]:
        """Where each concept's map is largest; None of a concept without a live prototype.

        Where a correction left a map as it was, its peak is what it was: to enlarge maps is most of what this costs.
        """
        still = np.zeros(len(maps), bool)
        if corrected is not None:
            known = [each.peak is not None for each in corrected.before.concepts]
            still = known & (maps == corrected.maps).all((1, 2))
        found: list[Peak | None] = [None] * len(maps)
        moved = [k for k, live in enumerate(self._live) if live and not still[k]]
        if moved:
            own = maps[moved]
            for k, peak in zip(
                moved, _on_image(self.upsampler.peaks(own), own.max((1, 2)).tolist(), placement), strict=True
            ):
                found[k] = peak
        if corrected is not None:
            for k in np.flatnonzero(still).tolist():
                found[k] = corrected.before.concepts[k].peak
        return found

    def _findings(
        self,
        one: dict[str, np.ndarray],
        peaks: Sequence[Peak | None],
        placement: Placement,
        corrected: Corrected | None,
    ) -> list[ConceptFinding]:
        """Each concept's, and what the reader said of it."""
        classes, findings = self.manifest.classes, []
        contributions, likely = one["contributions"].tolist(), one["concept_probabilities"].tolist()
        rejected = corrected.interaction.rejected if corrected else ()
        present = corrected.interaction.present if corrected else ()
        for k, name in enumerate(self.manifest.concepts):
            answer: ReaderAnswer = "none"
            peak = peaks[k]
            if name in rejected:
                answer, peak, exemplars = "rejected", None, []
            elif corrected is not None and name in present:
                answer, exemplars = "confirmed", corrected.before.concepts[k].exemplars
                boxes = [box for box in corrected.interaction.boxes if box.concept == name]
                if boxes and self._live[k]:
                    peak = self._peak_inside(corrected.maps[k], boxes, placement)
            else:
                exemplars = self._closest(k, one["scores"][k])
            findings.append(
                ConceptFinding(
                    name=name,
                    probability=likely[k],
                    answer=answer,
                    contributions=dict(zip(classes, contributions[k], strict=True)),
                    peak=peak,
                    exemplars=exemplars,
                )
            )
        return findings

    def _peak_inside(self, own: np.ndarray, boxes: Sequence[RegionBox], placement: Placement) -> Peak:
        """Where an h×w map is largest inside any of some boxes on the canvas."""
        side = self.manifest.side
        enlarged, inside = self.upsampler.enlarge(own), np.zeros((side, side), bool)
        for box in boxes:
            left, top = int(min(box.x_min, side - 1)), int(min(box.y_min, side - 1))
            inside[top : int(np.ceil(box.y_max)), left : int(np.ceil(box.x_max))] = True
        row, column = divmod(int(np.where(inside, enlarged, -np.inf).argmax()), side)
        (peak,) = _on_image(np.array([[column, row]]) + 0.5, [float(enlarged[row, column])], placement)
        return peak

    def _closest(self, k: int, own: np.ndarray) -> list[Exemplar]:
        """Of the prototypes with the largest of M scores, none if all are pruned: studies, each once, the nearest of
        each prototype before the second of any, the most similar one first."""
        scores: list[float] = own.tolist()
        entries = [self._entries[k][m] for m in sorted(self._live[k], key=lambda m: -scores[m])[:EXEMPLARS]]
        shown: dict[str, tuple[AtlasEntry, int]] = {}
        for rank in range(max((len(entry.sources) for entry in entries), default=0)):
            for entry in entries:
                if rank < len(entry.sources):
                    shown.setdefault(entry.sources[rank].study_id, (entry, rank))
            if len(shown) >= EXEMPLARS:
                break
        return [
            Exemplar(
                index=entry.index,
                rank=rank,
                score=scores[entry.index],
                study_id=study_id,
                usage=entry.usage,
                reliance=entry.reliance,
                crop=self._crops[k][entry.index][rank],
            )
            for study_id, (entry, rank) in list(shown.items())[:EXEMPLARS]
        ]


def _on_image(places: np.ndarray, similarities: Sequence[float], placement: Placement) -> list[Peak]:
    """Of n canvas points (x, y); a margin's is shown at the border."""
    points = np.clip(placement.to_image(np.tile(places, 2))[:, :2], 0, [placement.width, placement.height]).tolist()
    return [Peak(x=x, y=y, similarity=value) for (x, y), value in zip(points, similarities, strict=True)]


def _found(probabilities: np.ndarray, multilabel: bool, thresholds: np.ndarray) -> list[int]:
    """Indices of the classes that a study has, most probable first."""
    said = decide(probabilities, multilabel, thresholds)
    if not multilabel:
        return [int(said)]
    return [t for t in np.argsort(-probabilities, kind="stable").tolist() if said[t]]
