"""The reasoner's outputs → a prediction that a person can read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csr.bundle.format import AtlasEntry, Manifest
from csr.data.images import Placement
from csr.interaction.corrections import decision_margin, wants_help
from serving.interfaces.schemas import ClassScore, ConceptFinding, Exemplar, Peak, Prediction
from serving.models.upsampling import Upsampler

EXEMPLARS = 3


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
