"""Stage 1: trains the concept model by multi-label BCE on concept labels (CSR, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.evaluation.metrics import mean_auroc
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.alignment import align
from csr.training.augmentation import AugmentConfig, Findings, augment
from csr.training.callbacks import Callbacks
from csr.training.images import channel_statistics, image_batches, load_images
from csr.training.loop import Task, fit
from csr.training.losses import masked_bce
from csr.training.runtime import Precision, autocast, device, distribute, seed_everything


@dataclass(frozen=True)
class ConceptTrainingConfig:
    """How stage 1 is trained; ``model`` says what is trained.

    Args:
        learning_rate: the peak of a one-cycle schedule that warms up during the first ``warmup`` share of steps.
        precision: that the network computes in while it trains; see `csr.training.runtime.number_format`.
    """

    model: ConceptModelConfig = field(default_factory=ConceptModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: float = 0.15
    precision: Precision = "auto"
    seed: int = 0


def train_concepts(data: PreparedSet, config: ConceptTrainingConfig, callbacks: Callbacks) -> ConceptModel:
    """Trains on split ``train`` and reports loss and mean concept AUROC on ``val`` each epoch, then aligns the maps.

    The last epoch's weights are the result, so nothing is selected on ``val``.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    seed_everything(config.seed)
    place = device()
    labels = torch.from_numpy(data.collection.concept_labels())
    train, val = data.collection.rows("train"), data.collection.rows("val")
    findings = Findings(data.collection, data.side)
    model = ConceptModel(config.model, data.channels, len(data.collection.concepts))
    model.backbone.set_normalisation(*channel_statistics(data, train))
    model = model.to(place).to(memory_format=torch.channels_last)
    engine = distribute(model)

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        images = augment(load_images(data, rows, place), config.augment, findings, rows)
        with autocast(config.precision):
            _, logits = engine(images)
        return {"loss": masked_bce(logits, labels[rows].to(place))}

    def after_epoch(epoch: int) -> dict[str, float]:
        return validate(model, data, val)

    fit(
        Task("concepts", model, train, terms, after_epoch, config.warmup, precision=config.precision), config, callbacks
    )
    align(model, data, labels.numpy())
    return model


@torch.no_grad()
def validate(model: ConceptModel, data: PreparedSet, rows: np.ndarray) -> dict[str, float]:
    """Loss and mean AUROC of the concept logits on given rows."""
    labels = data.collection.concept_labels()[rows]
    logits = torch.cat([model(images)[1].cpu() for _, images in image_batches(data, rows, 64)])
    return {
        "val_loss": float(masked_bce(logits, torch.from_numpy(labels))),
        "val_auroc": mean_auroc(labels, logits.numpy()),
    }
