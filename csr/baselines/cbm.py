"""Concept bottleneck model, joint (Koh et al. 2020, arXiv 2007.04612): image → concepts → one linear layer → classes.

    loss = CE(classes) + λ · Σ_k BCE(concept_k),   λ = 0.01 in the paper (CUB)

Concept logits are the average-pooled concept maps, as in CSR's stage 1 to the letter; the linear layer sees the logits.
Pointing-game map of concept k: cam_k.
Not covered yet: independent and sequential training, intervention.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.baselines.protocol import Outcome
from csr.datasets.prepared import PreparedSet
from csr.evaluation import Predictions
from csr.losses import masked_bce
from csr.metrics import macro_f1, map_peaks
from csr.network.concept_model import ConceptModel
from csr.training.concepts import ConceptTrainingConfig, augment, channel_statistics, image_batches, load_images
from csr.training.loop import Task, fit
from csr.training.reporter import Reporter
from csr.training.runtime import autocast, device, distribute, seed_everything

CONCEPT_WEIGHT = 0.01


class JointCBM(nn.Module):
    """Concept model and the linear layer on its logits."""

    def __init__(self, concept_model: ConceptModel, concepts: int, classes: int) -> None:
        super().__init__()
        self.concept_model = concept_model
        self.head = nn.Linear(concepts, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 B×C×S×S → (cam B×K×h×w, concept logits B×K, class logits B×T)."""
        maps, concepts = self.concept_model(images)
        return maps, concepts, self.head(concepts)


def joint_cbm(data: PreparedSet, config: ConceptTrainingConfig, reporter: Reporter) -> Outcome:
    """Trains and predicts; see `csr.baselines.protocol.Baseline`."""
    seed_everything(config.seed)
    place, collection = device(), data.collection
    train, val = collection.rows("train"), collection.rows("val")
    labels, classes = torch.from_numpy(collection.concept_labels()), torch.from_numpy(collection.class_labels())
    concept_model = ConceptModel(replace(config.model, pooling="average"), data.channels, len(collection.concepts))
    concept_model.set_normalisation(*channel_statistics(data, train))
    model = JointCBM(concept_model, len(collection.concepts), len(collection.classes))
    model = model.to(place).to(memory_format=torch.channels_last)
    engine = distribute(model)

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        images = augment(load_images(data, rows, place), config.augment)
        with autocast(config.precision):
            _, concepts, logits = engine(images)
        bce = masked_bce(concepts, labels[rows].to(place)) * labels.shape[1]
        return {"class": F.cross_entropy(logits.float(), classes[rows].to(place)), "concept": CONCEPT_WEIGHT * bce}

    def after_epoch(epoch: int) -> dict[str, float]:
        predicted = _predict(model, data, val).probabilities.argmax(1)
        return {"val_macro_f1": macro_f1(classes[val].numpy(), predicted, len(collection.classes))}

    fit(Task("cbm_joint", model, train, terms, after_epoch, config.warmup), config, reporter)
    predictions = _predict(model, data, collection.rows("test"))
    return Outcome(predictions, sum(p.numel() for p in model.parameters()), len(collection.concepts))


@torch.no_grad()
def _predict(model: JointCBM, data: PreparedSet, rows: np.ndarray) -> Predictions:
    probabilities, concepts, peaks = [], [], []
    for _, images in image_batches(data, rows, 64):
        maps, scores, logits = model(images)
        probabilities.append(logits.softmax(-1).cpu().numpy())
        concepts.append(scores.cpu().numpy())
        peaks.append(map_peaks(maps.cpu().numpy(), data.side))
    return Predictions(rows, np.concatenate(probabilities), np.concatenate(concepts), np.concatenate(peaks))
