"""The black box: the same backbone, global average pooling and one linear layer, trained by cross-entropy alone.

It is the shared backbone ``classes``: a concept model with one map a class whose average-pooled maps are the class
logits, since pooling and a 1×1 convolution commute.

Pointing-game map: Grad-CAM (Selvaraju et al. 2017) of the predicted class, the same for every concept. After global
average pooling and one linear layer the gradient of logit t with respect to feature d is W_td/(hw) in every cell, so

    gradcam = ReLU( Σ_d W_td · f_d(h,w) )        up to a factor that does not move its maximum.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csr.baselines.protocol import (
    Answer,
    BackboneTraining,
    Entry,
    ExperimentContext,
    SharedBackbone,
    System,
    train_on_images,
)
from csr.network.concept_model import ConceptModel
from csr.network.rebuild import build_concept_model, concept_model_config
from csr.training.alignment import align
from csr.training.images import set_normalisation
from csr.training.runtime import device, seed_everything, seeds


class BlackBox(System):
    """Backbone, average pooling, linear layer."""

    def __init__(self, model: ConceptModel, concepts: int) -> None:
        super().__init__()
        self.model = model
        self.concepts = concepts

    @property
    def config(self) -> dict[str, Any]:
        return {"model": concept_model_config(self.model), "concepts": self.concepts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BlackBox:
        return cls(build_concept_model(config["model"]), config["concepts"])

    def answer(self, images: Tensor) -> Answer:
        maps, logits = self.model(images)
        own = torch.arange(len(maps), device=maps.device)
        gradcam = maps[own, logits.argmax(1)].clamp_min(0)
        repeated = gradcam[:, None].expand(-1, self.concepts, -1, -1)
        return Answer(logits.softmax(-1), None, repeated, logits.new_zeros(len(logits)))


def train_black_box(context: ExperimentContext) -> BlackBox:
    """Trains the shared backbone ``classes``."""
    seed_everything(seeds(context.config.seed, "weights"))
    model = ConceptModel(replace(context.config.model, pooling="average"), context.data.channels, context.classes)
    set_normalisation(model.backbone, context.data)
    system = BlackBox(model, context.concepts)

    def terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        _, logits = model(images)
        return {"class": F.cross_entropy(logits.float(), context.class_labels(rows))}

    train_on_images(context, "black_box", system, terms)
    align(model, context.data, context.data.collection.class_indicators())
    return system


def black_box(context: ExperimentContext) -> BlackBox:
    """The shared backbone ``classes`` itself."""
    assert context.shared_backbone is not None
    return BlackBox(context.shared_backbone.model, context.concepts).to(device()).eval()


BACKBONES: dict[SharedBackbone, BackboneTraining] = {"classes": lambda context: train_black_box(context).model}
SYSTEMS = {"black_box": Entry("Black box, Grad-CAM", BlackBox, black_box, "classes")}
