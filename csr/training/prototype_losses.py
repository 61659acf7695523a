"""The losses of stage 2, as pure functions. K concepts, M prototypes a concept, h×w cells.

Sources: CSR (arXiv 2503.06873), section 3.2 and supplement; SoftTriple (arXiv 1909.05235) for the margin's sign; the
absence and agreement terms are this project's own (the ``robust`` preset).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from csr.training.losses import masked_bce

Margin = Literal["numerator", "plus", "minus"]


def soft_similarity(vectors: Tensor, prototypes: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Similarity of vectors to every concept, soft-assigned over its prototypes.

        q_m = softmax_m(γ⟨p_km, v'⟩),   sim_k = Σ_m q_m⟨p_km, v'⟩

    Args:
        vectors: n×D', unit length.
        prototypes: K×M×D', unit length.
        gamma: γ; 1000 is in effect an argmax.

    Returns:
        sim n×K and assignments q n×K×M.
    """
    inner = torch.einsum("nd,kmd->nkm", vectors, prototypes)
    assignments = (gamma * inner).softmax(-1)
    return (assignments * inner).sum(-1), assignments


def prototype_contrastive(
    similarity: Tensor,
    concept: Tensor,
    scale: float = 20.0,
    delta: float = 0.1,
    margin: Margin = "minus",
    counts: Tensor | None = None,
) -> Tensor:
    """Multi-prototype contrastive loss, averaged over vectors. λ = ``scale``, δ = ``delta``.

        numerator:  ℓ = −log [ exp(λ(sim_k̃ + δ)) / Σ_k exp(λ sim_k) ]                        = plain CE − λδ
        plus:       ℓ = −log [ exp(λ(sim_k̃ + δ)) / (exp(λ(sim_k̃ + δ)) + Σ_{k≠k̃} exp(λ sim_k)) ]   an anti-margin
        minus:      as ``plus`` with −δ: SoftTriple's margin

    Args:
        similarity: sim n×K.
        concept: n indices k̃ of the vectors' own concepts.
        counts: n, how many times a vector counts; None: once.
    """
    if not len(concept):  # a batch in which no concept is present
        return similarity.sum() * 0
    if margin == "numerator":
        return _mean_entropy(scale * similarity, concept, counts) - scale * delta
    shift = delta if margin == "plus" else -delta
    own = F.one_hot(concept, similarity.shape[1]).to(similarity.dtype)
    return _mean_entropy(scale * (similarity + shift * own), concept, counts)


def _mean_entropy(logits: Tensor, concept: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None:
        return F.cross_entropy(logits, concept)
    return (counts * F.cross_entropy(logits, concept, reduction="none")).sum() / counts.sum().clamp_min(1e-9)


def present_pairs(labels: Tensor) -> Tensor:
    """2×n: image and concept of each present concept, by labels B×K, where 1 is present."""
    return (labels == 1).nonzero().T


def absence(maps: Tensor, labels: Tensor, scale: Tensor, shift: Tensor, counts: Tensor | None = None) -> Tensor:
    """BCE that shows P and the prototypes the images that lack a concept, too.

        ℓ = BCE( scale_k · max_{m,hw} S_km(h,w) + shift_k , label_k ), over known labels

    Args:
        maps: S B×K×M×h×w.
        labels: B×K of 1, 0 or NaN.
        scale, shift: K each, learned.
        counts: B×K, how many times a label counts; None: once.
    """
    return masked_bce(scale * maps.flatten(2).amax(-1) + shift, labels, counts=counts)


def agreement(
    maps: Tensor,
    cam: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    counts: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """KL(stage-1 attention ‖ attention of the similarity map), averaged over present concepts.

        target = softmax_hw(cam_k),   own = softmax_hw(temperature · max_m S_km)

    Args:
        maps: S B×K×M×h×w.
        cam: B×K×h×w, not differentiated.
        labels: B×K of 1, 0 or NaN.
        counts: B×K, how many times a label counts; None: once.
        present: `present_pairs` of the labels; None: they are looked up, for which a GPU must be waited for.
    """
    image, concept = present_pairs(labels) if present is None else present
    if not len(image):
        return maps.sum() * 0
    target = cam.flatten(2)[image, concept].detach().log_softmax(-1)
    own = (temperature * maps.amax(2).flatten(2)[image, concept]).log_softmax(-1)
    if counts is None:
        return F.kl_div(own, target, log_target=True, reduction="batchmean")
    each, times = F.kl_div(own, target, log_target=True, reduction="none").sum(-1), counts[image, concept]
    return (times * each).sum() / times.sum().clamp_min(1e-9)
