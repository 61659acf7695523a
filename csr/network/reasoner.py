"""The reasoner: similarity maps + a clinician's interaction → scores → classes (CSR, sections 3.3 and 3.4).

    S_km(h,w) = ⟨p_km, v'(h,w)⟩, or max(⟨p_km, v'(h,w)⟩, 0) when ``clip`` is set
    A_k(h,w) = A(h,w), or α_k, the concept's own weight, where A(h,w) < 0
    Ŝ_km = A_k ⊙ max(S_km, 0)                       floor ``zero``, and S_km where A_k ≡ 1
    Ŝ_km = min(S_km, a_km) + A_k ⊙ max(S_km − a_km, 0)   floor ``absent``
    s_km = max_hw Ŝ_km, or max(s_km, c_km) if k is confirmed, min(s_km, a_km) if it is rejected
    logit_t = b_t + Σ_km W_t,km · (s_km − mean_km) / std_km
    p_t = softmax_t(logit / τ), or sigmoid(logit_t / τ) where a study can have several classes

Interaction exists here and nowhere else; `csr.bundle.onnx_export` writes this module as ``reasoner.onnx``. A is the
importance map of `csr.interaction.corrections`, one for all concepts; a_km is the absent score, the median over
training images that lack concept k, and c_km the present score, the median over those that show it. Floor ``zero`` is
the letter of the paper, but for the clipping, without which a smaller weight could raise a score; it pushes the scores
of whatever lies outside a box below anything that the head saw in training. Floor ``absent`` takes away only the
evidence beyond what an image without the concept typically shows, so a concept that is weighted away scores as if
absent, exactly as a rejected one does.

A reader's answer changes nothing where the model says so already: a confirmed concept whose evidence (the largest of
its scores) is at least that of a typical training image with it, or a rejected one whose evidence is at most that of a
typical image without it, keeps its scores. Answers are monotone: confirming k never lowers a score of k, rejecting
never raises one. A finding that was confirmed with its place is seen there: inside its boxes the maps of k are at least
c_km (a_km, should that be larger), and outside nothing of them is left beyond a_km. Its scores, which say how much and
not where, do not fall by it.

With ``clip`` the head is trained on clipped scores, so drawing a box changes nothing but what the box says; without it
and with floor ``zero`` (the letter of the paper) the first box also moves every negative score to 0.

The temperature τ calibrates the probabilities and nothing else: logits are the sums of their contributions whatever τ.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from csr.network.prototypes import similarity_maps

Floor = Literal["zero", "absent"]
DEFAULT_ALPHA = 0.2  # outside focus boxes, for every concept, as in the paper's replications


class Reasoning(NamedTuple):
    """What the reasoner says about a batch; K concepts, M prototypes each, T classes, h×w cells."""

    similarity_maps: Tensor  # B×K×M×h×w, weighted
    concept_maps: Tensor  # B×K×h×w, the largest of a concept's live similarity maps at each cell
    scores: Tensor  # B×K×M
    concept_probabilities: Tensor  # B×K
    contributions: Tensor  # B×K×T; logits = bias + their sum over K
    logits: Tensor  # B×T
    probabilities: Tensor  # B×T, calibrated by the temperature


class Reasoner(nn.Module):
    """Prototypes, task head and concept read-out; everything after the projector.

    Args:
        concepts, per_concept, width, classes: K, M, D', T.
        clip, floor: see the module's docstring.
        multilabel: a study can have several classes, or none.
    """

    prototypes: Tensor
    alive: Tensor
    score_mean: Tensor
    score_std: Tensor
    absent_scores: Tensor
    present_scores: Tensor
    absent_evidence: Tensor
    present_evidence: Tensor
    concept_scale: Tensor
    concept_shift: Tensor
    alpha: Tensor
    temperature: Tensor

    def __init__(
        self,
        concepts: int,
        per_concept: int,
        width: int,
        classes: int,
        clip: bool,
        floor: Floor,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.clip = clip
        self.floor = floor
        self.register_buffer("prototypes", torch.zeros(concepts, per_concept, width))
        self.register_buffer("alive", torch.ones(concepts, per_concept))  # 0: pruned from the atlas
        self.register_buffer("score_mean", torch.zeros(concepts, per_concept))
        self.register_buffer("score_std", torch.ones(concepts, per_concept))
        self.register_buffer("absent_scores", torch.zeros(concepts, per_concept))
        self.register_buffer("present_scores", torch.zeros(concepts, per_concept))
        self.register_buffer("absent_evidence", torch.zeros(concepts))
        self.register_buffer("present_evidence", torch.zeros(concepts))
        self.register_buffer("concept_scale", torch.ones(concepts))
        self.register_buffer("concept_shift", torch.zeros(concepts))
        self.register_buffer("alpha", torch.full((concepts,), DEFAULT_ALPHA))
        self.register_buffer("temperature", torch.tensor(1.0))  # see csr.training.temperature
        self.head = nn.Linear(concepts * per_concept, classes)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a reasoner of the same shape."""
        concepts, per_concept, width = self.prototypes.shape
        return {
            "concepts": concepts,
            "per_concept": per_concept,
            "width": width,
            "classes": self.head.out_features,
            "clip": self.clip,
            "floor": self.floor,
            "multilabel": self.multilabel,
        }

    def maps(self, patches: Tensor, importance: Tensor | None = None) -> Tensor:
        """v' B×D'×h×w, A B×h×w → Ŝ B×K×M×h×w."""
        maps = similarity_maps(patches, self.prototypes)
        if self.clip:
            maps = maps.clamp_min(0)
        if importance is None:
            return maps
        elsewhere = importance[:, None] < 0
        weights = torch.where(elsewhere, self.alpha[None, :, None, None], importance[:, None])  # B×K×h×w
        return self.weigh(maps, weights[:, :, None])

    def weigh(self, similarity: Tensor, weights: Tensor) -> Tensor:
        """S B×K×M×h×w, A_k B×K×1×h×w in [0, 1] → Ŝ: monotone in S and in A_k, and S itself where A_k ≡ 1."""
        if self.floor == "absent":
            beyond = (similarity - self.absent_scores[:, :, None, None]).clamp_min(0)
            return similarity - (1 - weights) * beyond  # written so that weight 1 gives S to the last bit
        untouched = weights.eq(1).flatten(2).all(2)[:, :, None, None, None]
        return torch.where(untouched, similarity, weights * similarity.clamp_min(0))

    def scores(self, maps: Tensor) -> Tensor:
        """Ŝ B×K×M×h×w → s B×K×M. Pruned prototypes score as if absent."""
        return self.mask_pruned(maps.flatten(3).amax(-1))

    def answered(self, scores: Tensor, answers: Tensor, absent_weight: Tensor | None = None) -> Tensor:
        """s B×K×M as a reader's answers leave them; see the module's docstring.

        Args:
            answers: B×K, 1 where the concept was confirmed, −1 where it was rejected, else 0.
            absent_weight: B; 0 where rejected scores become 0 instead (the paper), else 1; None: 1 for all.
        """
        evidence = concept_evidence(scores, self.alive)
        raised = (answers > 0) & (evidence < self.present_evidence)
        lowered = (answers < 0) & (evidence > self.absent_evidence)
        present = self.mask_pruned(self.present_scores)  # a pruned prototype has no say, whatever is confirmed
        scores = torch.where(raised[..., None], torch.maximum(scores, present), scores)
        scores = torch.where(lowered[..., None], torch.minimum(scores, self.absent_scores), scores)
        if absent_weight is None:
            return scores
        zeroed = (answers < 0) & (absent_weight[:, None] == 0)
        return torch.where(zeroed[..., None], torch.zeros_like(scores), scores)

    def located(self, maps: Tensor, places: Tensor) -> Tensor:
        """Ŝ B×K×M×h×w as they are seen once findings were located.

        Args:
            places: B×K×h×w, 1 in the cells of the concept's finding boxes, else 0; all 0 where it has none.
        """
        inside = places[:, :, None] > 0
        absent = self.absent_scores[..., None, None]
        present = torch.maximum(self.present_scores[..., None, None], absent)  # or it would be seen outside instead
        seen = torch.where(inside, torch.maximum(maps, present), torch.minimum(maps, absent))
        return torch.where(inside.flatten(3).any(3)[..., None, None], seen, maps)

    def mask_pruned(self, scores: Tensor, alive: Tensor | None = None) -> Tensor:
        """s B×K×M → the same, with pruned prototypes scoring as if absent.

        Args:
            alive: K×M, 0 where a prototype is pruned, else 1; None: as they are.
        """
        alive = self.alive if alive is None else alive
        return alive * scores + (1 - alive) * self.absent_scores

    def standardise(self, scores: Tensor) -> Tensor:
        """s B×K×M → zero mean and unit variance over the training images."""
        return (scores - self.score_mean) / self.score_std

    def forward(
        self,
        patches: Tensor,
        importance: Tensor | None = None,
        answers: Tensor | None = None,
        places: Tensor | None = None,
        absent_weight: Tensor | None = None,
    ) -> Reasoning:
        """Reasons over projected patches v' (B×D'×h×w), with or without an interaction.

        Args:
            importance: A, B×h×w; see `maps`.
            answers, absent_weight: see `answered`.
            places: see `located`; where a concept has one it must be confirmed.
        """
        maps = self.maps(patches, importance)
        scores = self.scores(maps)
        if answers is not None:
            scores = self.answered(scores, answers, absent_weight)
        if places is not None:
            maps = self.located(maps, places)
        contributions = self.contributions(self.standardise(scores))
        logits = contributions.sum(1) + self.head.bias
        evidence = concept_evidence(scores, self.alive)
        return Reasoning(
            similarity_maps=maps,
            concept_maps=concept_maps(maps, self.alive),
            scores=scores,
            concept_probabilities=torch.sigmoid(self.concept_scale * evidence + self.concept_shift),
            contributions=contributions,
            logits=logits,
            probabilities=self.probabilities(logits),
        )

    def contributions(self, standard: Tensor) -> Tensor:
        """Standardised s B×K×M → what each concept adds to each class's logit, B×K×T."""
        weights = self.head.weight.reshape(-1, *standard.shape[1:])
        return torch.einsum("bkm,tkm->bkt", standard, weights)

    def probabilities(self, logits: Tensor) -> Tensor:
        """…×T logits → calibrated probabilities."""
        logits = logits / self.temperature
        return logits.sigmoid() if self.multilabel else logits.softmax(-1)


def concept_maps(maps: Tensor, alive: Tensor) -> Tensor:
    """The map that points for a concept: the largest of its live prototypes' maps. B×K×M×h×w → B×K×h×w."""
    return torch.where(alive[None, :, :, None, None] > 0, maps, -1.0).amax(2)


def concept_evidence(scores: Tensor, alive: Tensor) -> Tensor:
    """The evidence for a concept: the largest of its live prototypes' scores. B×K×M → B×K."""
    return torch.where(alive[None] > 0, scores, -1.0).amax(2)
