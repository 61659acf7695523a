"""Concept bottleneck models (Koh et al. 2020, arXiv 2007.04612, section 3): image → concepts → linear layer → classes.

ℓ = concept logits, c = true concepts:

    joint         CE(f(ℓ), class) + λ · Σ_k BCE(ℓ_k, c_k), trained at once; λ = 1, the paper's on OAI
    sequential    first the concept model, then f on its predicted logits ℓ
    independent   first the concept model, then f on the true c ∈ {0, 1}; an image is judged by f(σ(ℓ))

The shared backbone of the last two decides how ℓ is pooled: ``concepts_average`` is the paper's, ``concepts_lse`` makes
the CBM on CSR's robust stage 1. On that there is one more, ``cbm_answered``, whose f is fitted to studies that
simulated readers answered, as CSR's head is: what learning with answers is worth can be told from what prototypes are.
Joint pools by the average, and in ``cbm_joint_lse`` as CSR does, so that what joint training is worth can be told from
what the pooling is, unless its trials chose otherwise. Concepts that nobody labelled are left out of the BCE; where the
independent f needs a value of them, it gets the predicted probability. Studies without a class are left out of the CE,
and no f is fitted to them. Where a study can have several classes the CE is a BCE over those that are known, as
`csr.baselines.classes` says; the paper has one class a study, or a number.

f is fitted to convergence by `fit_last_layer` (the official code: by SGD), its strength of regularisation chosen on
``val`` with the inputs that it meets in use, predictions in both cases. The official code weighs the BCE of rare
concepts up, which systems here do, all or none, as ``positive_weight`` of the configuration says.

The paper's λ are 0.01 on CUB, whose 112 concepts make a large sum, and 1 on OAI, ten clinical concepts of a radiograph,
which is what this project's data look like. With 0.01 the concepts of the phantom are not learned at all (AUROC 0.5).

Pointing-game map of concept k: cam_k. Explanations: the K concepts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from csr.baselines.classes import class_probabilities
from csr.baselines.last_layer import fit_last_layer
from csr.baselines.map_alignment import moved_and_in_place
from csr.baselines.protocol import Answer, Entry, ExperimentContext, System, TrainedBackbone, train_on_images
from csr.network.concept_model import ConceptModel, Pooling, pool_maps
from csr.network.rebuild import build_concept_model, concept_model_config
from csr.training.alignment import align
from csr.training.images import image_batches, set_normalisation
from csr.training.interventions import draw_answers
from csr.training.losses import masked_bce
from csr.training.runtime import device, seed_everything, seeds

CONCEPT_WEIGHT = 1.0
ANSWERED = 8  # times that `answered_cbm` sees a study, each with other answers
LEVELS = (0.05, 0.95)  # quantiles of the training logits that stand for an absent and a present concept


class CBM(System):
    """Concept model and the linear layer on its concepts.

    Args:
        concept_model: image → cam and concept logits.
        classes: T.
        inputs: what the linear layer sees: ``logits`` (joint, sequential) or ``probabilities`` (independent).
        multilabel: a study can have several classes.
        joint: the layer has not learned from images that are moved so that maps lie where they look; what is said is
            taken from images in their place (`csr.baselines.map_alignment`).
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        concept_model: ConceptModel,
        classes: int,
        inputs: Literal["logits", "probabilities"] = "logits",
        multilabel: bool = False,
        joint: bool = False,
    ) -> None:
        super().__init__()
        self.concept_model = concept_model
        self.joint = joint
        self.inputs = inputs
        self.multilabel = multilabel
        concepts = concept_model.to_maps.out_channels
        self.head = nn.Linear(concepts, classes)
        # what an intervention sets a logit to; the sigmoid of ±∞ is the truth itself
        self.register_buffer("low", torch.full((concepts,), -torch.inf))
        self.register_buffer("high", torch.full((concepts,), torch.inf))

    @property
    def config(self) -> dict[str, Any]:
        return {
            "concept_model": concept_model_config(self.concept_model),
            "classes": self.head.out_features,
            "inputs": self.inputs,
            "multilabel": self.multilabel,
            "joint": self.joint,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CBM:
        model = build_concept_model(config["concept_model"])
        return cls(model, config["classes"], config["inputs"], config["multilabel"], config["joint"])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 B×C×S×S → (cam B×K×h×w, concept logits B×K, class logits B×T)."""
        maps, concepts = self.concept_model(images)
        return maps, concepts, self.classify(concepts)

    def classify(self, concepts: Tensor) -> Tensor:
        """Concept logits B×K → class logits B×T."""
        return self.head(concepts.sigmoid() if self.inputs == "probabilities" else concepts)

    def intervene(self, concepts: Tensor, truth: Tensor, chosen: Tensor) -> Tensor:
        """Concept logits with the chosen ones set to the truth (Koh et al., section 6.2); give them to `classify`.

        A linear layer on logits has no logit that means certainty, so there the 5th (absent) or 95th (present)
        percentile of the training logits stands for it; a layer on probabilities sees 0 or 1.

        Args:
            concepts: predicted logits B×K.
            truth: B×K of 1, 0 or NaN; an unknown concept stays as predicted.
            chosen: B×K bool.
        """
        told = torch.where(truth > 0.5, self.high, self.low)
        return torch.where(chosen & ~truth.isnan(), told, concepts)

    def set_levels(self, concepts: Tensor) -> None:
        """Takes `intervene`'s levels from the concept logits n×K of the training images."""
        low, high = (torch.quantile(concepts.float(), level, dim=0) for level in LEVELS)
        self.low.copy_(low)
        self.high.copy_(high)

    def answer(self, images: Tensor) -> Answer:
        if self.joint:
            (maps, _, _), (_, concepts, logits) = moved_and_in_place(self, self.concept_model.backbone, images)
        else:
            maps, concepts, logits = self(images)
        probabilities = class_probabilities(logits, self.multilabel)
        return Answer(probabilities, concepts, maps, concepts.new_full((len(concepts),), concepts.shape[1]))


def joint_cbm(context: ExperimentContext, pooling: Pooling = "average") -> CBM:
    """Trains concepts and classes together, the concept maps pooled that way."""
    seed_everything(seeds(context.config.seed, "weights"))
    collection, train = context.data.collection, context.data.collection.rows("train")
    model = ConceptModel(
        replace(context.config.model, pooling=context.pooling or pooling), context.data.channels, context.concepts
    )
    set_normalisation(model.backbone, context.data)
    system = CBM(model, context.classes, multilabel=context.multilabel, joint=True)
    positive = context.positive_weights()

    def terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        _, concepts, logits = system(images)
        bce = masked_bce(concepts, context.concept_labels(rows), positive) * context.concepts
        return {"class": context.class_loss(logits, rows), "concept": CONCEPT_WEIGHT * bce}

    train_on_images(context, "cbm_joint", system, terms, rows=collection.labelled_rows("train"))
    with torch.no_grad():
        model.eval()
        system.set_levels(torch.cat([model(images)[1] for _, images in image_batches(context.data, train, 64)]))
    align(model, context.data, collection.concept_labels())
    return system


def sequential_cbm(context: ExperimentContext) -> CBM:
    """Fits the linear layer to the logits that the shared backbone's concept model predicts for the training images."""
    shared, (train, val) = _frozen(context)
    logits = concept_logits(shared, train)
    system = CBM(shared.model, context.classes, multilabel=context.multilabel)
    system.head = fit_last_layer(context, logits, concept_logits(shared, val))
    system.set_levels(logits)
    return system.to(device()).eval()


def answered_cbm(context: ExperimentContext) -> CBM:
    """As `sequential_cbm`, but the linear layer is fitted to studies that simulated readers answered, as CSR's head is
    (`csr.training.interventions.draw_answers`, every study, no reader errs): each `ANSWERED` times, anew."""
    shared, (train, val) = _frozen(context)
    seed_everything(seeds(context.config.seed, "answers"))
    logits, truth = concept_logits(shared, train), context.concept_labels(train)
    system = CBM(shared.model, context.classes, multilabel=context.multilabel).to(logits.device)
    system.set_levels(logits)
    answers = [draw_answers(truth, 1.0, 0.0) for _ in range(ANSWERED)]
    answered = torch.cat([system.intervene(logits, (each > 0).float(), each != 0) for each in answers])
    system.head = fit_last_layer(context, answered, concept_logits(shared, val), copies=ANSWERED)
    return system.to(device()).eval()


def independent_cbm(context: ExperimentContext) -> CBM:
    """Fits the linear layer to the true concepts of the training images."""
    shared, (train, val) = _frozen(context)
    predicted = concept_logits(shared, train).sigmoid()
    truth = context.concept_labels(train)
    system = CBM(shared.model, context.classes, "probabilities", context.multilabel)
    system.head = fit_last_layer(
        context, torch.where(truth.isnan(), predicted, truth), concept_logits(shared, val).sigmoid()
    )
    return system.to(device()).eval()


def _frozen(context: ExperimentContext) -> tuple[TrainedBackbone, tuple[np.ndarray, np.ndarray]]:
    assert context.shared_backbone is not None
    return context.shared_backbone, (context.class_rows, context.data.collection.rows("val"))


def concept_logits(shared: TrainedBackbone, rows: np.ndarray) -> Tensor:
    """ℓ n×K of rows, from the cached maps."""
    chunks = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    maps = (torch.from_numpy(shared.cache.cam[chunk]).to(device()) for chunk in chunks)
    return torch.cat([pool_maps(part, shared.model.config) for part in maps])


SYSTEMS = {
    "cbm_joint": Entry("CBM, joint", CBM, joint_cbm),
    "cbm_joint_lse": Entry("CBM, joint, CSR's pooling", CBM, partial(joint_cbm, pooling="lse")),
    "cbm_sequential": Entry("CBM, sequential", CBM, sequential_cbm, "concepts_average"),
    "cbm_independent": Entry("CBM, independent", CBM, independent_cbm, "concepts_average"),
    "cbm_shared": Entry("CBM on CSR's stage 1", CBM, sequential_cbm, "concepts_lse"),
    "cbm_answered": Entry("CBM on CSR's stage 1, trained with answers", CBM, answered_cbm, "concepts_lse"),
}
