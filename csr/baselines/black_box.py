"""The black box: the same backbone, global average pooling and one linear layer, trained by cross-entropy alone.

Where a study can have several classes that is a binary one a class (`csr.baselines.classes`).

It is the shared backbone ``classes``: a concept model with one map a class whose average-pooled maps are the class
logits, since pooling and a 1×1 convolution commute.

As a system its last layer is the one of training or one that is fitted anew to the frozen features
(`csr.baselines.last_layer.fit_last_layer`), whichever has the better figure on ``val``: a training ends by the class
AUROC, which says little of where the classes are parted. What starts from the backbone does not see it.

Pointing-game map: Grad-CAM (Selvaraju et al. 2017) of the most probable class, the same for every concept. After global
average pooling and one linear layer the gradient of logit t with respect to feature d is W_td/(hw) in every cell, so

    gradcam = ReLU( Σ_d W_td · f_d(h,w) )        up to a factor that does not move its maximum.

Trials may pool by log-sum-exp instead: its gradient spreads W_td over the cells by weights that sum up to 1, so that
their mean is the same.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csr.baselines.classes import class_probabilities, validation_figure
from csr.baselines.last_layer import fit_last_layer, pooled_features
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
    """Backbone, pooling, linear layer; its bias is 0 unless the layer was fitted anew."""

    bias: Tensor

    def __init__(self, model: ConceptModel, concepts: int, multilabel: bool = False) -> None:
        super().__init__()
        self.model = model
        self.concepts = concepts
        self.multilabel = multilabel
        self.register_buffer("bias", torch.zeros(model.to_maps.out_channels))

    def logits(self, maps: Tensor) -> Tensor:
        """Maps of the classes B×T×h×w → B×T."""
        return self.model.pool(maps) + self.bias

    @property
    def config(self) -> dict[str, Any]:
        model = concept_model_config(self.model)
        return {"model": model, "concepts": self.concepts, "multilabel": self.multilabel}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BlackBox:
        return cls(build_concept_model(config["model"]), config["concepts"], config["multilabel"])

    def answer(self, images: Tensor) -> Answer:
        maps = self.model.maps(self.model.features(images))
        logits = self.logits(maps)
        own = torch.arange(len(maps), device=maps.device)
        gradcam = maps[own, logits.argmax(1)].clamp_min(0)
        repeated = gradcam[:, None].expand(-1, self.concepts, -1, -1)
        return Answer(class_probabilities(logits, self.multilabel), None, repeated, logits.new_zeros(len(logits)))


def train_black_box(context: ExperimentContext) -> BlackBox:
    """Trains the shared backbone ``classes``."""
    seed_everything(seeds(context.config.seed, "weights"))
    model = ConceptModel(
        replace(context.config.model, pooling=context.pooling or "average"), context.data.channels, context.classes
    )
    set_normalisation(model.backbone, context.data)
    system = BlackBox(model, context.concepts, context.multilabel)

    def terms(rows: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        _, logits = model(images)
        return {"class": context.class_loss(logits, rows)}

    train_on_images(context, "black_box", system, terms)
    align(model, context.data, context.data.collection.class_indicators())
    return system


def black_box(context: ExperimentContext) -> BlackBox:
    """The shared backbone ``classes``, with its own last layer or one that is fitted anew."""
    assert context.shared_backbone is not None
    own = BlackBox(context.shared_backbone.model, context.concepts, context.multilabel)
    best = max((own, _refitted(context)), key=lambda system: _figure(system, context))  # of equal ones the first
    return best.to(device()).eval()


def _refitted(context: ExperimentContext) -> BlackBox:
    shared, val = context.shared_backbone, context.data.collection.rows("val")
    assert shared is not None
    train_inputs, val_inputs = (torch.from_numpy(pooled_features(shared, rows)) for rows in (context.class_rows, val))
    layer = fit_last_layer(context, train_inputs, val_inputs)
    model = deepcopy(shared.model)
    model.config = replace(model.config, pooling="average")
    system = BlackBox(model, context.concepts, context.multilabel)
    with torch.no_grad():
        model.to_maps.weight.copy_(layer.weight[:, :, None, None])
        system.bias.copy_(layer.bias)
    return system


def _figure(system: BlackBox, context: ExperimentContext) -> tuple[float, float]:
    """`csr.baselines.classes.validation_figure`, on the cached features."""
    shared, collection = context.shared_backbone, context.data.collection
    assert shared is not None
    rows, place, logits = collection.rows("val"), system.bias.device, []
    with torch.no_grad():
        for start in range(0, len(rows), 256):
            features = torch.from_numpy(shared.cache.features[rows[start : start + 256]].astype(np.float32))
            logits.append(system.logits(system.model.maps(features.to(place))).cpu())
    return validation_figure(collection.truth()[rows], torch.cat(logits))


BACKBONES: dict[SharedBackbone, BackboneTraining] = {"classes": lambda context: train_black_box(context).model}
SYSTEMS = {"black_box": Entry("Black box, Grad-CAM", BlackBox, black_box, "classes")}
