"""Post-hoc concept bottleneck models (Yuksekgonul et al. 2022, arXiv 2205.15480, section 2): PCBM and PCBM-h.

On the frozen features f of a trained black box (shared backbone ``classes``), f̄ = their average over space:

    concept activation vector    c_k, φ_k = linear SVM between images with and without concept k
    concept score                s_k = (⟨c_k, f̄⟩ + φ_k) / ‖c_k‖, the signed distance from the SVM's plane
    PCBM                         logits = W s + b, elastic net λ/(K·T) · (α ‖W‖₁ + (1 − α)/2 · ‖W‖²), α = 0.99
    PCBM-h                       logits = W s + b (frozen) + R f̄ + r, R and r by cross-entropy and L2

The SVM's C is one for all concepts, the one of the official grid with the best mean AUROC on ``val``; λ and the
strength of R's L2 are chosen on ``val`` as every last layer's, see `csr.baselines.last_layer.fit_last_layer`. Images
whose concept is unknown are left out of its SVM, those without a class out of the last layers.

Where this differs from the official code: that draws equally many images with and without a concept, here all count and
are weighted to balance; its SVM has the plain hinge loss, here it is squared; its classes are fitted one against the
rest by SGD, here jointly and to convergence, on standardised scores; its residual is trained by Adam for 10 epochs
(paper: learning rate 0.01, L2 0.01), here to convergence.

Pointing-game map of concept k: (⟨c_k, f(h,w)⟩ + φ_k) / ‖c_k‖, whose average is s_k. Explanations: the concepts with a
weight for any class, since the softmax weighs all classes against each other. PCBM-h counts the same, though nothing
explains what its residual adds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from csr.baselines.classes import class_probabilities
from csr.baselines.last_layer import fit_last_layer, pooled_features
from csr.baselines.protocol import Answer, Entry, ExperimentContext, System
from csr.evaluation.metrics import mean_auroc
from csr.network.backbone import Backbone
from csr.network.rebuild import backbone_config, build_backbone
from csr.training.runtime import device

SVM_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # C
L1_RATIO = 0.99  # α


class PosthocCBM(System):
    """Frozen backbone, concept scores, a sparse linear layer on them, and for PCBM-h a residual on the features.

    Args:
        backbone: of the black box.
        vectors: c_k / ‖c_k‖, K×D.
        offsets: φ_k / ‖c_k‖, K.
        head: K → T.
        residual: D → T, or None for plain PCBM.
        multilabel: a study can have several classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        vectors: Tensor,
        offsets: Tensor,
        head: nn.Linear,
        residual: nn.Linear | None = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.backbone = backbone
        self.to_maps = nn.Conv2d(vectors.shape[1], vectors.shape[0], kernel_size=1)
        self.to_maps.weight = nn.Parameter(vectors[:, :, None, None].clone())
        self.to_maps.bias = nn.Parameter(offsets.clone())
        self.head = head
        self.residual = residual

    @property
    def config(self) -> dict[str, Any]:
        return {
            "backbone": backbone_config(self.backbone),
            "concepts": self.head.in_features,
            "classes": self.head.out_features,
            "residual": self.residual is not None,
            "multilabel": self.multilabel,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PosthocCBM:
        backbone, concepts, classes = build_backbone(config["backbone"]), config["concepts"], config["classes"]
        vectors, offsets = torch.zeros(concepts, backbone.width), torch.zeros(concepts)
        residual = nn.Linear(backbone.width, classes) if config["residual"] else None
        return cls(backbone, vectors, offsets, nn.Linear(concepts, classes), residual, config["multilabel"])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 B×C×S×S → (concept maps B×K×h×w, concept scores B×K, class logits B×T)."""
        features = self.backbone(images)
        maps = self.to_maps(features)
        scores = maps.mean((2, 3))
        logits = self.head(scores)
        if self.residual is not None:
            logits = logits + self.residual(features.mean((2, 3)))
        return maps, scores, logits

    def answer(self, images: Tensor) -> Answer:
        maps, scores, logits = self(images)
        used = (self.head.weight != 0).any(0).sum()
        return Answer(class_probabilities(logits, self.multilabel), scores, maps, used.expand(len(images)))


def posthoc_cbm(context: ExperimentContext) -> PosthocCBM:
    """PCBM on the shared backbone ``classes``."""
    assert context.shared_backbone is not None
    collection = context.data.collection
    train, val = collection.rows("train"), collection.rows("val")
    features, val_features = (
        pooled_features(context.shared_backbone, train),
        pooled_features(context.shared_backbone, val),
    )
    labels = collection.concept_labels()
    banks = [concept_bank(features, labels[train], strength) for strength in SVM_STRENGTHS]
    vectors, offsets = max(
        banks, key=lambda bank: np.nan_to_num(mean_auroc(labels[val], val_features @ bank[0].T + bank[1]))
    )
    classed = features[np.isin(train, context.class_rows)]
    scores, val_scores = (torch.from_numpy(part @ vectors.T + offsets) for part in (classed, val_features))
    head = fit_last_layer(context, scores, val_scores, L1_RATIO)
    backbone = context.shared_backbone.model.backbone
    bank = torch.from_numpy(vectors), torch.from_numpy(offsets)
    return PosthocCBM(backbone, *bank, head, multilabel=context.multilabel).to(device()).eval()


def hybrid_posthoc_cbm(context: ExperimentContext) -> PosthocCBM:
    """PCBM-h on the shared backbone ``classes``: the residual is fitted to what PCBM leaves."""
    assert context.shared_backbone is not None
    system = posthoc_cbm(context)
    splits = (context.class_rows, context.data.collection.rows("val"))
    features, val_features = (torch.from_numpy(pooled_features(context.shared_backbone, rows)) for rows in splits)
    given = _sparse_logits(system, features), _sparse_logits(system, val_features)
    system.residual = fit_last_layer(context, features, val_features, given=given)
    return system.to(device()).eval()


def concept_bank(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit concept activation vectors c_k / ‖c_k‖ K×D and offsets φ_k / ‖c_k‖ K.

    Args:
        features: f̄ n×D.
        labels: n×K of 1, 0 or NaN; each concept has both kinds.
        strength: C of the SVM.
    """
    vectors, offsets = [], []
    for own in labels.T:
        known = ~np.isnan(own)
        # liblinear shrinks the intercept as if it were a weight; around the mean there is little to shrink
        mean = features[known].mean(0)
        svm = LinearSVC(C=strength, dual=False, class_weight="balanced", max_iter=10_000)
        svm.fit(features[known] - mean, own[known].astype(int))
        vector = svm.coef_[0]
        norm = max(float(np.linalg.norm(vector)), 1e-12)
        vectors.append(vector / norm)
        offsets.append((svm.intercept_[0] - vector @ mean) / norm)
    return np.array(vectors, np.float32), np.array(offsets, np.float32)


@torch.no_grad()
def _sparse_logits(system: PosthocCBM, features: Tensor) -> Tensor:
    """PCBM's logits n×T for f̄ n×D."""
    return system.head(system.to_maps(features[:, :, None, None].to(device())).flatten(1))


SYSTEMS = {
    "posthoc_cbm": Entry("Post-hoc CBM", PosthocCBM, posthoc_cbm, "classes"),
    "posthoc_cbm_hybrid": Entry("Post-hoc CBM, hybrid", PosthocCBM, hybrid_posthoc_cbm, "classes"),
}
