"""Stage 1: trains the concept model by multi-label BCE on concept labels (CSR, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.evaluation.metrics import mean_auroc
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.alignment import align
from csr.training.augmentation import AugmentConfig, Draws, Findings, augment
from csr.training.batch_norm import shared_batch_norm
from csr.training.callbacks import Callbacks
from csr.training.fine_tuning import SCRATCH, fine_tuned
from csr.training.frozen_body import remembered
from csr.training.images import image_batches, load_images, set_normalisation
from csr.training.loop import Task, fit
from csr.training.losses import masked_bce
from csr.training.runtime import (
    Precision,
    autocast,
    check_share,
    device,
    distribute,
    gather,
    own_part,
    seed_everything,
    seeds,
    share_of_mean,
    world_size,
)


@dataclass(frozen=True)
class ConceptTrainingConfig:
    """How stage 1 is trained; ``model`` says what is trained. The defaults are for training from scratch;
    `csr.training.fine_tuning.PRETRAINED` are those for pretrained weights, which ``params.yaml`` takes by itself.

    Args:
        batch_size: images a step, of all workers together: each takes an equal part.
        learning_rate: the peak of a one-cycle schedule that warms up during the first ``warmup`` share of steps.
        precision: that the network computes in while it trains; see `csr.training.runtime.number_format`.
        decay_norms: whether weight decay also pulls norms and biases towards 0, and what timm spares in the backbone,
            such as position embeddings.
        backbone_rate: factor on the learning rate of the backbone's pretrained weights.
        layer_decay: further factor for each layer between such a weight and the maps, in (0, 1]; None for none.
        freeze: epochs from the start in which the pretrained weights and running statistics stay as they are, or
            ``all``, in which case `csr.training.frozen_body` computes little twice. `csr.training.fine_tuning` says
            which weights the last three are about.
    """

    model: ConceptModelConfig = field(default_factory=ConceptModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = SCRATCH.learning_rate
    weight_decay: float = 0.02
    warmup: float = SCRATCH.warmup
    decay_norms: bool = SCRATCH.decay_norms
    backbone_rate: float = SCRATCH.backbone_rate
    layer_decay: float | None = SCRATCH.layer_decay
    freeze: int | Literal["all"] = 0
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.backbone_rate > 0:
            raise ValueError(
                f"concepts.backbone_rate: must be above 0, got {self.backbone_rate}; concepts.freeze keeps weights as "
                "they are"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"concepts.layer_decay: must be above 0 and at most 1, or null, got {self.layer_decay}")
        if self.freeze != "all" and self.freeze < 0:
            raise ValueError(f"concepts.freeze: must be a number of epochs or all, got {self.freeze}")
        if self.freeze and not (self.model.pretrained or self.model.checkpoint):
            raise ValueError(
                "concepts.freeze: there are no pretrained weights to keep; set concepts.model.pretrained or "
                "concepts.model.checkpoint, or this to 0"
            )


def train_concepts(data: PreparedSet, config: ConceptTrainingConfig, callbacks: Callbacks) -> ConceptModel:
    """Trains on split ``train`` and reports loss and mean concept AUROC on ``val`` each epoch, then aligns the maps.

    Batches are drawn from the studies that have any label; those without one count in the channels' statistics alone.

    The last epoch's weights are the result, so nothing is selected on ``val``. Processes of a distributed run share
    every batch and learn what one would.

    Raises:
        ConfigError: a batch that the processes cannot share evenly.
        TrainingError: the loss became NaN or infinite.
    """
    check_share(config.batch_size, world_size(), "concepts")
    seed_everything(seeds(config.seed, "weights"))
    place = device()
    labels = torch.from_numpy(data.collection.concept_labels())
    val = data.collection.rows("val")
    findings = Findings(data.collection, data.side)
    model = ConceptModel(config.model, data.channels, len(data.collection.concepts))
    set_normalisation(model.backbone, data)
    model = model.to(place).to(memory_format=torch.channels_last)
    engine, generator = distribute(model, partly=bool(config.freeze)), torch.Generator()

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        part = own_part(len(rows))
        own, draws = rows[part], Draws(len(rows), part, generator)
        images = augment(load_images(data, own, place), config.augment, findings, rows, draws)
        with autocast(config.precision), shared_batch_norm():
            _, logits = engine(images)
        return {"loss": masked_bce(logits, labels[own].to(place)) * share_of_mean(~labels[rows].isnan(), part)}

    def after_epoch(epoch: int) -> dict[str, float]:
        return validate(model, data, val)

    task = Task(
        "concepts",
        model,
        data.collection.labelled_rows("train"),
        terms,
        after_epoch,
        config.warmup,
        precision=config.precision,
        draws=generator,
    )
    with remembered(model, config.freeze):
        fit(fine_tuned(task, config), config, callbacks)
    align(model, data, labels.numpy())
    return model


@torch.no_grad()
def validate(model: ConceptModel, data: PreparedSet, rows: np.ndarray) -> dict[str, float]:
    """Loss and mean AUROC of the concept logits on given rows, of which each process looks at its part."""
    labels = data.collection.concept_labels()[rows]
    own = [model(images)[1].cpu() for _, images in image_batches(data, rows[own_part(len(rows))], 64)]
    logits = gather(torch.cat([torch.zeros(0, labels.shape[1]), *own]))
    return {
        "val_loss": float(masked_bce(logits, torch.from_numpy(labels))),
        "val_auroc": mean_auroc(labels, logits.numpy()),
    }
