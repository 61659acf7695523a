"""A label-free concept bottleneck model (Oikarinen et al. 2023, arXiv 2304.06129, section 3); it needs an encoder.

Nobody labels concepts: an image-text encoder scores how much each image looks like each concept's text, and concept
directions are fitted to these scores on the frozen features f of a trained black box (shared backbone ``classes``),
f̄ = their average over space, P = the encoder's scores (`csr.data.text_concepts.labels.concept_scores`):

    q_k       = W_c,k f̄ over the training images
    W_c       by Adam, such that Σ_k sim(q_k, P_k) is largest; sim = cosine of q̂³ and P̂³, where ^ subtracts the mean
              and divides by the standard deviation                                     (equation 1, ``cos cubed``)
    kept      concepts whose sim on ``val`` is at least 0.45; the steps of W_c are those with the best mean sim there
    logits    = W_F s + b_F, s = the kept q, elastic net with α = 0.99                  (equation 3)

λ of the last layer is chosen on ``val`` as every last layer's (`csr.baselines.last_layer.fit_last_layer`); the official
code fixes it by data set. Differences: the official code drops concepts whose texts the encoder hardly responds to and
takes concepts from a language model; here they are the data set's own, those that ``data.text_concepts`` describes, so
that they can be judged. Concepts that are not kept, or not described, have the score 0 everywhere.

Pointing-game map of concept k: W_c,k f(h,w), whose average is q_k. Explanations: the concepts with a weight for any
class.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from csr.baselines.last_layer import fit_last_layer, pooled_features
from csr.baselines.posthoc_cbm import L1_RATIO, PosthocCBM
from csr.baselines.protocol import Entry, ExperimentContext
from csr.errors import DataError
from csr.training.runtime import device, seed_everything, seeds

CUTOFF = 0.45  # least similarity on val of a concept that is kept
STEPS = 1000
LEARNING_RATE = 1e-3
_LOOK = 10  # steps between looks at val


def label_free_cbm(context: ExperimentContext) -> PosthocCBM:
    """Concept directions by the encoder's scores, and a sparse layer on them.

    Raises:
        DataError: no encoder's scores are given, or no direction resembles them.
    """
    assert context.shared_backbone is not None
    if context.text_scores is None:
        raise DataError("a label-free CBM needs the scores of an image-text encoder (data.text_concepts)")
    collection = context.data.collection
    train, val = collection.rows("train"), collection.rows("val")
    features, val_features = (
        torch.from_numpy(pooled_features(context.shared_backbone, rows)).double() for rows in (train, val)
    )
    scores, val_scores = (torch.from_numpy(context.text_scores[rows]).double() for rows in (train, val))
    described = torch.from_numpy(~np.isnan(context.text_scores[train]).any(0))
    vectors, offsets = torch.zeros(context.concepts, features.shape[1]), torch.zeros(context.concepts)
    seed_everything(seeds(context.config.seed, "weights"))
    found, centres, similar = fit_directions(features, scores[:, described], val_features, val_scores[:, described])
    vectors[described], offsets[described] = found.float(), centres.float()
    kept = torch.zeros(context.concepts, dtype=torch.bool)
    kept[described] = similar >= CUTOFF
    if not kept.any():
        raise DataError(
            f"{collection.name}: no direction of the features follows the encoder's scores of any concept: the best "
            f"similarity on val is {similar.max():.2f}, {CUTOFF} is needed"
        )
    vectors[~kept], offsets[~kept] = 0, 0
    classed = np.isin(train, context.class_rows)
    concepts, val_concepts = (part.float() @ vectors.T + offsets for part in (features[classed], val_features))
    head = fit_last_layer(context, concepts, val_concepts, L1_RATIO)
    with torch.no_grad():
        head.weight[:, ~kept] = 0
    backbone = context.shared_backbone.model.backbone
    return PosthocCBM(backbone, vectors, offsets, head, multilabel=context.multilabel).to(device()).eval()


def fit_directions(
    features: Tensor, scores: Tensor, val_features: Tensor, val_scores: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """W_c in units in which training scores have mean 0 and variance 1.

    Args:
        features: f̄ n×D of training images, and of validation images.
        scores: P n×K of them.

    Returns:
        Directions K×D, offsets K, and the similarities on ``val``, K.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-8)
    standard, val_standard = (features - mean) / std, (val_features - mean) / std
    shape = scores.shape[1], features.shape[1]
    weights = (torch.randn(shape, dtype=torch.float64) / features.shape[1] ** 0.5).requires_grad_(True)
    optimizer = torch.optim.Adam([weights], LEARNING_RATE)
    best, best_similar = weights.detach().clone(), cubed_similarity(val_standard @ weights.detach().T, val_scores)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (-cubed_similarity(standard @ weights.T, scores).sum()).backward()
        optimizer.step()
        if step % _LOOK == 0:
            similar = cubed_similarity(val_standard @ weights.detach().T, val_scores)
            if similar.mean() > best_similar.mean():
                best, best_similar = weights.detach().clone(), similar
    spread = (standard @ best.T).std(0).clamp_min(1e-8)
    vectors = best / spread[:, None] / std
    return vectors, -(vectors @ mean), best_similar


def cubed_similarity(found: Tensor, wanted: Tensor) -> Tensor:
    """n×K, n×K → K cosines of the columns' third powers, once they have mean 0 and variance 1; within −1 and 1."""

    def cubed(values: Tensor) -> Tensor:
        centred = values - values.mean(0)
        third = (centred / centred.std(0, correction=0).clamp_min(1e-8)) ** 3
        return third / third.norm(dim=0).clamp_min(1e-8)

    return (cubed(found) * cubed(wanted)).sum(0)


SYSTEMS = {"label_free_cbm": Entry("Label-free CBM", PosthocCBM, label_free_cbm, "classes", encoder=True)}
