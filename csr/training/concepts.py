"""Stage 1: trains the concept model by multi-label BCE on concept labels (CSR, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.data.records import NO_CLASS, Collection
from csr.errors import ConfigError
from csr.evaluation.metrics import mean_auroc
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.training.alignment import align
from csr.training.augmentation import AugmentConfig, Draws, Findings, augment
from csr.training.batch_norm import shared_batch_norm
from csr.training.callbacks import Callbacks
from csr.training.few_labels import FewLabels, FewLabelsConfig, known_share, lengthened
from csr.training.fine_tuning import SCRATCH, fine_tuned
from csr.training.frozen_body import remembered
from csr.training.images import image_batches, load_images, set_normalisation
from csr.training.loop import Task, fit
from csr.training.losses import masked_bce, positive_weights
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
from csr.training.stopping import Keep, StoppingRule


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
        few_labels: what is done where concept labels are unknown; see `csr.training.few_labels`.
        epochs: how many there are; with ``patience`` at most.
        patience: epochs without a rise of the validation figure (mean AUROC) after which the rate falls to 0 and the
            training ends; None: it takes its epochs. `csr.training.stopping` is this rule and says what ``least_rise``
            and ``anneal`` mean.
        keep: the weights of the ``last`` epoch, or of the one with the ``best`` validation figure.
        clip: largest norm of a step's gradients; None for no limit.
        accumulate: batches whose gradients make one step, where a batch of the wanted size does not fit into memory.
        positive_weight: ``balanced`` counts a present concept as often as it is rarer than absent
            (`csr.training.losses.positive_weights`).
        sampling: ``balanced`` draws studies so that every class comes as often, with replacement; those without a class
            keep their chance.
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
    few_labels: FewLabelsConfig = field(default_factory=FewLabelsConfig)
    precision: Precision = "auto"
    patience: int | None = None
    least_rise: float = 0.001
    anneal: float = 0.25
    keep: Keep = "last"
    clip: float | None = None
    accumulate: int = 1
    positive_weight: Literal["none", "balanced"] = "none"
    sampling: Literal["plain", "balanced"] = "plain"
    seed: int = 0

    @property
    def stopping(self) -> StoppingRule:
        """When the training ends."""
        return StoppingRule(self.patience, self.least_rise, self.anneal, self.keep)

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
        for key, least in (("patience", 1), ("accumulate", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"concepts.{key}: must be at least {least}, got {value}")
        if not self.least_rise >= 0:
            raise ValueError(f"concepts.least_rise: must be 0 or more, got {self.least_rise}")
        if not 0 < self.anneal <= 1:
            raise ValueError(f"concepts.anneal: must be above 0 and at most 1, got {self.anneal}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"concepts.clip: must be above 0, or null, got {self.clip}")


def train_concepts(data: PreparedSet, config: ConceptTrainingConfig, callbacks: Callbacks) -> ConceptModel:
    """Trains on split ``train`` and reports loss and mean concept AUROC on ``val`` each epoch, then aligns the maps.

    Batches are drawn from the studies that have any label; those without one count in the channels' statistics alone.

    The last epoch's weights are the result, so that nothing is selected on ``val``, unless ``config.keep`` says
    otherwise. Processes of a distributed run share
    every batch and learn what one would.

    Raises:
        ConfigError: a batch that the processes cannot share evenly.
        TrainingError: the loss became NaN or infinite, or ``val`` has no figure to stop by.
    """
    check_share(config.batch_size, world_size(), "concepts")
    seed_everything(seeds(config.seed, "weights"))
    place = device()
    labels = torch.from_numpy(data.collection.concept_labels())
    train, val = data.collection.rows("train"), data.collection.rows("val")
    drawn = data.collection.labelled_rows("train")
    positive = positive_weights(labels[train]).to(place) if config.positive_weight == "balanced" else None
    findings = Findings(data.collection, data.side)
    model = ConceptModel(config.model, data.channels, len(data.collection.concepts))
    set_normalisation(model.backbone, data)
    model = model.to(place).to(memory_format=torch.channels_last)
    known, few = known_share(data.collection), None
    if known < 1 and config.few_labels.weight:
        few = FewLabels(model, data, config.few_labels, config.precision, positive).to(place)
    engine, generator = distribute(model, partly=bool(config.freeze)), torch.Generator()

    def terms(rows: np.ndarray) -> dict[str, Tensor]:
        if few is not None:
            few.follow()
        part = own_part(len(rows))
        own, draws = rows[part], Draws(len(rows), part, generator)
        images = augment(load_images(data, own, place), config.augment, findings, rows, draws)
        with autocast(config.precision), shared_batch_norm():
            _, logits = engine(images)
        if few is not None:
            return few.terms(logits, rows, part)
        loss = masked_bce(logits, labels[own].to(place), positive)
        return {"loss": loss * share_of_mean(~labels[rows].isnan(), part)}

    def after_epoch(epoch: int) -> dict[str, float]:
        return validate(model, data, val)

    task = Task(
        "concepts",
        model if few is None else few,
        drawn,
        terms,
        after_epoch,
        config.warmup,
        precision=config.precision,
        draws=generator,
        figure="val_auroc",
        stopping=config.stopping,
        clip=config.clip,
        accumulate=config.accumulate,
        chances=class_chances(data.collection, drawn) if config.sampling == "balanced" else None,
        before_epoch=(lambda epoch: None) if few is None else few.label,
    )
    budget = replace(config, epochs=lengthened(config.epochs, known, config.few_labels))
    with remembered(task.model, config.freeze):
        fit(fine_tuned(task, config), budget, callbacks)
    align(model, data, labels.numpy())
    return model


def class_chances(collection: Collection, rows: np.ndarray) -> np.ndarray:
    """Chances of rows to be drawn with which every class comes as often; those without a class keep their own.

    Raises:
        ConfigError: the studies have no class each.
    """
    if collection.task != "multiclass":
        raise ConfigError(
            f"concepts.sampling: 'balanced' goes by the one class of each study, and {collection.name} has the task "
            f"{collection.task!r}; set it to plain, concepts.positive_weight weighs rare concepts up"
        )
    classes = collection.truth()[rows]
    known = classes != NO_CLASS
    counts = np.bincount(classes[known], minlength=1)
    weights = np.ones(len(rows))
    weights[known] = known.sum() / (counts > 0).sum() / counts[classes[known]]
    return weights / weights.sum()


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
