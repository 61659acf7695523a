"""The black box: the same backbone, global average pooling and one linear layer, trained by cross-entropy alone.

Pointing-game map: Grad-CAM (Selvaraju et al. 2017) of the predicted class, the same for every concept. After global
average pooling and one linear layer the gradient of logit t with respect to feature d is W_td/(hw) in every cell, so

    gradcam = ReLU( Σ_d W_td · f_d(h,w) )        up to a factor that does not move its maximum.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.baselines.protocol import Outcome
from csr.datasets.prepared import PreparedSet
from csr.evaluation import Predictions
from csr.metrics import macro_f1, map_peaks
from csr.network.concept_model import ConceptModel
from csr.training.concepts import ConceptTrainingConfig, augment, channel_statistics, image_batches, load_images
from csr.training.loop import Task, fit
from csr.training.reporter import Reporter
from csr.training.runtime import autocast, device, distribute, seed_everything


class BlackBox(nn.Module):
    """Backbone, average pooling, linear layer."""

    def __init__(self, backbone: ConceptModel, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 B×C×S×S → (features B×D×h×w, class logits B×T)."""
        features = self.backbone.features(images)
        return features, self.head(features.float().mean((2, 3)))


def black_box(data: PreparedSet, config: ConceptTrainingConfig, reporter: Reporter) -> Outcome:
    """Trains and predicts; see `csr.baselines.protocol.Baseline`."""
    seed_everything(config.seed)
    place, collection = device(), data.collection
    train, val = collection.rows("train"), collection.rows("val")
    classes = torch.from_numpy(collection.class_labels())
    backbone = ConceptModel(config.model, data.channels, 1)
    backbone.to_maps.requires_grad_(False)  # the concept maps are not part of this system
    backbone.set_normalisation(*channel_statistics(data, train))
    model = BlackBox(backbone, len(collection.classes)).to(place).to(memory_format=torch.channels_last)
    engine = distribute(model)

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        images = augment(load_images(data, rows, place), config.augment)
        with autocast(config.precision):
            _, logits = engine(images)
        return {"class": F.cross_entropy(logits.float(), classes[rows].to(place))}

    def after_epoch(epoch: int) -> dict[str, float]:
        predicted = _predict(model, data, val).probabilities.argmax(1)
        return {"val_macro_f1": macro_f1(classes[val].numpy(), predicted, len(collection.classes))}

    fit(Task("black_box", model, train, terms, after_epoch, config.warmup), config, reporter)
    predictions = _predict(model, data, collection.rows("test"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Outcome(predictions, trained, 0)


@torch.no_grad()
def _predict(model: BlackBox, data: PreparedSet, rows: np.ndarray) -> Predictions:
    concepts = len(data.collection.concepts)
    probabilities, peaks = [], []
    for _, images in image_batches(data, rows, 64):
        features, logits = model(images)
        weights = model.head.weight[logits.argmax(1)]
        gradcam = torch.einsum("bd,bdhw->bhw", weights, features.float()).clamp_min(0)
        probabilities.append(logits.softmax(-1).cpu().numpy())
        peaks.append(np.repeat(map_peaks(gradcam.cpu().numpy(), data.side)[:, None], concepts, axis=1))
    return Predictions(rows, np.concatenate(probabilities), None, np.concatenate(peaks))
