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
        peaks = [
            _on_image(place, float(own.max()), placement)
            for place, own in zip(self.upsampler.peaks(one["concept_maps"]), one["concept_maps"], strict=True)
        ]
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
            concepts=[
                self._finding(k, one, peaks[k], placement, corrected) for k in range(len(self.manifest.concepts))
            ],
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

    def _finding(
        self, k: int, one: dict[str, np.ndarray], peak: Peak, placement: Placement, corrected: Corrected | None
    ) -> ConceptFinding:
        name = self.manifest.concepts[k]
        answer: ReaderAnswer = "none"
        exemplars = self._closest(k, one["scores"][k])
        if corrected is not None and name in corrected.interaction.rejected:
            answer, exemplars = "rejected", []
        if corrected is not None and name in corrected.interaction.present:
            answer, exemplars = "confirmed", corrected.before.concepts[k].exemplars
            if boxes := [box for box in corrected.interaction.boxes if box.concept == name]:
                peak = self._peak_inside(corrected.maps[k], boxes, placement)
        return ConceptFinding(
            name=name,
            probability=float(one["concept_probabilities"][k]),
            answer=answer,
            contributions=dict(zip(self.manifest.classes, one["contributions"][k].tolist(), strict=True)),
            peak=peak if answer != "rejected" and self.alive[k].any() else None,
            exemplars=exemplars,
        )

    def _peak_inside(self, own: np.ndarray, boxes: Sequence[RegionBox], placement: Placement) -> Peak:
        """Where an h×w map is largest inside any of some boxes on the canvas."""
        side = self.manifest.side
        enlarged, inside = self.upsampler.enlarge(own), np.zeros((side, side), bool)
        for box in boxes:
            left, top = int(min(box.x_min, side - 1)), int(min(box.y_min, side - 1))
            inside[top : int(np.ceil(box.y_max)), left : int(np.ceil(box.x_max))] = True
        row, column = divmod(int(np.where(inside, enlarged, -np.inf).argmax()), side)
        return _on_image(np.array([column, row]) + 0.5, float(enlarged[row, column]), placement)

    def _closest(self, k: int, scores: np.ndarray) -> list[Exemplar]:
        """The exemplars of the prototypes with the largest of M scores, none if all are pruned."""
        alive = np.flatnonzero(self.alive[k])
        winners = alive[np.argsort(-scores[alive], kind="stable")][:EXEMPLARS].tolist()
        return self._exemplars(k, winners, scores.tolist()) if winners else []

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
                crop=crop_path(entry.concept, entry.index, rank),
            )
            for study_id, (entry, rank) in list(shown.items())[:EXEMPLARS]
        ]


def _on_image(place: np.ndarray, similarity: float, placement: Placement) -> Peak:
    """Of a canvas (x, y); a margin's is shown at the border."""
    x, y = np.clip(placement.to_image(np.tile(place, 2)[None])[0, :2], 0, [placement.width, placement.height])
    return Peak(x=float(x), y=float(y), similarity=similarity)


def _found(probabilities: np.ndarray, multilabel: bool, thresholds: np.ndarray) -> list[int]:
    """Indices of the classes that a study has, most probable first."""
    said = decide(probabilities, multilabel, thresholds)
    if not multilabel:
        return [int(said)]
    return [t for t in np.argsort(-probabilities, kind="stable").tolist() if said[t]]
