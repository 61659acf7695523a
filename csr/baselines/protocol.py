"""What every system that CSR is compared with looks like: how it is trained, what it answers, how it is judged.

How long each learns: where the configuration has a ``patience``, every phase that learns from images and answers at its
end, the shared backbones' too, ends by the one rule of `csr.training.stopping`, and the configuration's epochs are the
cap of all phases of a system together. Two phases have no figure to end by: PIP-Net's pretraining, whose scores feed no
classes yet, takes its published share of the cap; what hardens by a schedule (ProtoPool's slots) is not judged before
the schedule is over. What is fitted to frozen features costs no images and has a length of its own: last layers, to
convergence; IntCEM's bottleneck; CSR's stages 2 and 3.

A module of systems lists them in ``SYSTEMS``, and one that trains backbones for several systems lists these in
``BACKBONES``. Nothing else knows them but `csr.comparison.systems`, so a new system concerns its own module alone.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from csr.baselines.classes import known_class_loss
from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.errors import DataError
from csr.evaluation.metrics import macro_auroc
from csr.evaluation.peaks import peak_pixels, pixel_centres
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import validation_f1
from csr.network.backbone import Backbone
from csr.network.checkpoint import checkpoint, read_checkpoint, write_checkpoint
from csr.network.concept_model import ConceptModel, Pooling
from csr.training.augmentation import Findings, augment
from csr.training.callbacks import Callbacks
from csr.training.concepts import ConceptTrainingConfig, class_chances
from csr.training.features import FeatureCache
from csr.training.fine_tuning import fine_tuned
from csr.training.frozen_body import remembered
from csr.training.images import image_batches, read_images, send_images, set_normalisation
from csr.training.loop import Task, fit
from csr.training.losses import positive_weights
from csr.training.runtime import autocast, count_batches, device, send

SharedBackbone = Literal["concepts_lse", "concepts_average", "concepts_coarse", "classes"]


@dataclass(frozen=True)
class Answer:
    """What a system says about B images: T classes, K concepts.

    Args:
        probabilities: B×T, which sum to 1 where a study has one class, and are each class's own where it can have
            several (`csr.baselines.classes.class_probabilities`).
        concepts: B×K concept scores on any monotone scale, or None if the system knows no concepts.
        maps: B×K×h×w, what plays the pointing game for each concept, or None.
        explanations: B, how many items explain each prediction: concepts, or prototypes that fire, or 0 for none.
    """

    probabilities: Tensor
    concepts: Tensor | None
    maps: Tensor | None
    explanations: Tensor


class System(nn.Module, ABC):
    """A trained system. ``prototypes`` is how many it holds after its own pruning; 0 if it has none."""

    prototypes: int = 0

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain types from which `from_config` makes a system of the same shape."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A system of that shape, whose weights are still to be loaded."""

    @abstractmethod
    def answer(self, images: Tensor) -> Answer:
        """uint8 B×C×S×S → its answer."""


def save_system(system: System, file: Path) -> None:
    """Writes a trained system: its shape and its weights."""
    config = {"system": system.config, "prototypes": system.prototypes}
    write_checkpoint(checkpoint("compared system", config, system.state_dict()), file)


SomeSystem = TypeVar("SomeSystem", bound=System)


def load_system(kind: type[SomeSystem], file: Path) -> SomeSystem:
    """Reads what `save_system` wrote of a system of that class, on the CPU and for evaluation.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file holds something else or is of another format.
    """
    content = read_checkpoint(file, "compared system")
    system = kind.from_config(content["config"]["system"])
    system.load_state_dict(content["weights"])
    system.prototypes = content["config"]["prototypes"]
    return system.eval()


@dataclass(frozen=True)
class TrainedBackbone:
    """A backbone that several systems share: trained once, frozen, its features cached.

    Args:
        model: the concept model; that of ``classes`` has one map a class.
        cache: features of every study of the prepared set, and the model's maps.
    """

    model: ConceptModel
    cache: FeatureCache


@dataclass(frozen=True)
class ExperimentContext:
    """What every system is given alike.

    Args:
        data: the prepared set. Splits ``train`` and ``val`` are for training and choosing; ``test`` is not touched. Of
            studies without a class only the concepts can be learned.
        config: backbone, augmentation, epochs, optimiser and seed.
        callbacks: told of every epoch.
        shared_backbone: the trained backbone that the system rests on or starts from, if it does not train all of its
            own.
        pooling: in place of the system's own, where its definition leaves the pooling free; None: its own.
        text_scores: N×K cosines of images and concepts by an image-text encoder, NaN where it was not asked; None
            where no encoder is given.
    """

    data: PreparedSet
    config: ConceptTrainingConfig
    callbacks: Callbacks
    shared_backbone: TrainedBackbone | None = None
    pooling: Pooling | None = None
    text_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.data.collection.task == "concepts":
            raise DataError(
                f"{self.data.collection.name}: its task is 'concepts', but the comparison is about finding classes"
            )

    @property
    def concepts(self) -> int:
        return len(self.data.collection.concepts)

    @property
    def classes(self) -> int:
        return len(self.data.collection.classes)

    @property
    def multilabel(self) -> bool:
        """A study can have several classes, or none."""
        return self.data.collection.task == "multilabel"

    def build_backbone(self) -> Backbone:
        """A backbone to train: a copy of the shared backbone's, or an untrained one with the training images'
        normalisation.

        Prototypes are published on pretrained backbones, and from random weights their losses do not get off the
        ground within the epochs that others need; the black box's backbone stands in for one that is pretrained. It
        sees images in their place again, as when it was trained: how far maps look aside is measured anew at the end.
        """
        if self.shared_backbone is not None:
            backbone = copy.deepcopy(self.shared_backbone.model.backbone).requires_grad_(True)
            backbone.map_shift = (0, 0)
            return backbone
        backbone = Backbone(self.config.model, self.data.channels)
        set_normalisation(backbone, self.data)
        return backbone

    @property
    def class_rows(self) -> np.ndarray:
        """Training rows whose class is known."""
        return self.data.collection.class_rows("train")

    def class_labels(self, rows: np.ndarray) -> Tensor:
        """What is true of rows: class indices, `csr.data.records.NO_CLASS` where the class is not known, or, where a
        study can have several, n×T of 1, 0 or NaN."""
        return send(torch.from_numpy(self.data.collection.truth()[rows]), device())

    def class_loss(self, logits: Tensor, rows: np.ndarray) -> Tensor:
        """`csr.baselines.classes.known_class_loss` of the logits B×T of B rows."""
        return known_class_loss(logits, self.class_labels(rows))

    def concept_labels(self, rows: np.ndarray) -> Tensor:
        """n×K of 1, 0 or NaN."""
        return send(torch.from_numpy(self.data.collection.concept_labels()[rows]), device())

    def positive_weights(self) -> Tensor | None:
        """K, how many times a present concept counts in the BCE; None: once."""
        if self.config.positive_weight == "none":
            return None
        return positive_weights(self.concept_labels(self.data.collection.rows("train")))


BackboneTraining = Callable[[ExperimentContext], ConceptModel]

# Prototype systems start from the trained black box and train on for half the budget: one and a half times what every
# other system gets.
WARM_START_EPOCHS = 0.5
LEAST_STEPS = 740  # of a bottleneck on frozen features: what its epochs are on the phantom, where they were settled


def bottleneck_epochs(rows: int, epochs: int, batch_size: int) -> int:
    """Epochs of a bottleneck on frozen features: as many more as a small set needs for `LEAST_STEPS`."""
    return max(epochs, math.ceil(LEAST_STEPS / count_batches(rows, batch_size)))


@dataclass(frozen=True)
class Entry:
    """One compared system.

    Args:
        title: name in tables.
        kind: its class.
        train: trains it.
        shared_backbone: what it rests on or starts from; None: it trains all of itself.
        epochs: its own epochs of images as a share of the budget, beside the shared backbone's, which are the whole
            budget. Where the configuration has a ``patience``, all systems have the whole of it as their cap.
        one_class: it is published for studies with one class each, and does not say what else it would do.
        start: name of the system that its training starts from, below which it should not end.
        encoder: it needs an image-text encoder's scores.
    """

    title: str
    kind: type[System]
    train: Callable[[ExperimentContext], System]
    shared_backbone: SharedBackbone | None = None
    epochs: float = 1.0
    one_class: bool = False
    start: str | None = None
    encoder: bool = False


def refusal(entry: Entry, collection: Collection, encoder: bool) -> str | None:
    """Why a system is left out of the comparison on a data set; None if it is not.

    Args:
        encoder: an image-text encoder is given.
    """
    if entry.encoder and not encoder:
        return f"{entry.title} learns from an image-text encoder, and data.text_concepts names none"
    if not entry.one_class or collection.task != "multilabel":
        return None
    return (
        f"{entry.title} is published for studies with one class each, and those of {collection.name} can have several"
    )


def train_on_images(
    context: ExperimentContext,
    name: str,
    system: System,
    terms: Callable[[np.ndarray, Tensor], Mapping[str, Tensor]],
    *,
    rows: np.ndarray | None = None,
    epochs: int | None = None,
    earliest: int = 0,
    rates: Mapping[str, float] | None = None,
    spared: Set[str] = frozenset(),
    validate: bool = True,
    **budget: Any,
) -> None:
    """One phase of training by augmented images, in place, with the shared optimiser and schedule.

    Args:
        name: of the phase, in reports.
        terms: rows and their augmented images (uint8 B×C×S×S) → loss terms.
        rows: training rows to draw batches from; by default those whose class is known.
        epochs: of this phase, 0 for none; by default the context's, which the phases of a system sum up to. Where the
            configuration has a ``patience``, at most so many: each phase ends by the rule of `csr.training.stopping`,
            which goes by the macro AUROC on ``val``.
        earliest: epochs before which the rule does not count, while the loss still changes by a schedule of its own.
        rates: prefix of parameter names → factor on the learning rate; see `csr.training.loop.Task`.
        spared: names of parameters that weight decay leaves alone.
        validate: report macro F1 and macro AUROC on ``val`` after each epoch. A phase that answers nothing yet has
            no such figure, and takes its epochs.
        budget: other keys of the configuration that this phase replaces.

    Parameters that do not require a gradient stay as they are. Pretrained weights are tuned as the configuration says
    (`csr.training.fine_tuning`), but for those of a shared backbone, which have been, unless they are frozen for good.
    """
    collection = context.data.collection
    findings = Findings(collection, context.data.side)
    phase = replace(context.config, epochs=context.config.epochs if epochs is None else epochs, **budget)
    system.to(device()).to(memory_format=torch.channels_last)
    if phase.epochs == 0:  # a short training has no epoch for each of its phases
        system.eval()
        return

    def batch_terms(rows: np.ndarray, images: Tensor) -> Mapping[str, Tensor]:
        images = augment(send_images(images, device()), phase.augment, findings, rows)
        with autocast(phase.precision):
            return terms(rows, images)

    def after_epoch(epoch: int) -> dict[str, float]:
        if not validate:
            return {}
        val = collection.rows("val")
        truth, probabilities = collection.truth()[val], predict(system, context.data, val).probabilities
        f1 = validation_f1(truth, probabilities)
        return {"val_macro_f1": f1, "val_macro_auroc": macro_auroc(truth, probabilities)}

    chosen = context.class_rows if rows is None else rows
    task = Task(
        name,
        system,
        chosen,
        batch_terms,
        after_epoch,
        phase.warmup,
        rates or {},
        "concepts",
        phase.precision,
        figure="val_macro_auroc" if validate else "",
        spared=spared,
        stopping=phase.stopping,
        earliest=earliest,
        clip=phase.clip,
        accumulate=phase.accumulate,
        chances=class_chances(collection, chosen) if phase.sampling == "balanced" else None,
        read=partial(read_images, context.data),
    )
    if context.shared_backbone is not None:
        phase = replace(phase, backbone_rate=1.0, layer_decay=None, freeze="all" if phase.freeze == "all" else 0)
    with remembered(system, phase.freeze):
        fit(fine_tuned(task, phase), phase, context.callbacks)


@torch.no_grad()
def predict(system: System, data: PreparedSet, rows: np.ndarray, batch_size: int = 64) -> Predictions:
    """A system's answers on given rows."""
    training = system.training
    system.eval()
    answers = [system.answer(images) for _, images in image_batches(data, rows, batch_size)]
    system.train(training)

    def gathered(pieces: list[Tensor | None]) -> np.ndarray | None:
        known = [piece.float() for piece in pieces if piece is not None]
        return torch.cat(known).cpu().numpy() if known else None

    probabilities = gathered([answer.probabilities for answer in answers])
    explanations = gathered([answer.explanations for answer in answers])
    assert probabilities is not None and explanations is not None
    peaks = [peak_pixels(answer.maps, data.side) for answer in answers if answer.maps is not None]
    return Predictions(
        rows=rows,
        probabilities=probabilities,
        concepts=gathered([answer.concepts for answer in answers]),
        peaks=pixel_centres(torch.cat(peaks).cpu().numpy(), data.side) if peaks else None,
        explanations=explanations,
    )
