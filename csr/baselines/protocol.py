"""What every system that CSR is compared with looks like: how it is trained, what it answers, how it is judged.

A module of systems lists them in ``SYSTEMS``, and one that trains backbones for several systems lists these in
``BACKBONES``. Nothing else knows them but `csr.comparison.systems`, so a new system concerns its own module alone.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from csr.data.prepared import PreparedSet
from csr.errors import DataError
from csr.evaluation.metrics import macro_f1
from csr.evaluation.pointing import map_peaks
from csr.evaluation.predictions import Predictions
from csr.network.backbone import Backbone
from csr.network.checkpoint import checkpoint, read_checkpoint, write_checkpoint
from csr.network.concept_model import ConceptModel
from csr.training.augmentation import Findings, augment
from csr.training.callbacks import Callbacks
from csr.training.concepts import ConceptTrainingConfig
from csr.training.features import FeatureCache
from csr.training.fine_tuning import fine_tuned
from csr.training.frozen_body import remembered
from csr.training.images import image_batches, load_images, set_normalisation
from csr.training.loop import Task, fit
from csr.training.runtime import autocast, device

SharedBackbone = Literal["concepts_lse", "concepts_average", "concepts_coarse", "classes"]


@dataclass(frozen=True)
class Answer:
    """What a system says about B images: T classes, K concepts.

    Args:
        probabilities: B×T.
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
    """

    data: PreparedSet
    config: ConceptTrainingConfig
    callbacks: Callbacks
    shared_backbone: TrainedBackbone | None = None

    def __post_init__(self) -> None:
        if self.data.collection.task != "multiclass":
            raise DataError(
                f"{self.data.collection.name}: its task is {self.data.collection.task!r}, but the rivals of the "
                "comparison are published for studies with one class each"
            )

    @property
    def concepts(self) -> int:
        return len(self.data.collection.concepts)

    @property
    def classes(self) -> int:
        return len(self.data.collection.classes)

    def build_backbone(self) -> Backbone:
        """A backbone to train: a copy of the shared backbone's, or an untrained one with the training images'
        normalisation.

        Prototypes are published on pretrained backbones, and from random weights their losses do not get off the
        ground within the epochs that others need; the black box's backbone stands in for one that is pretrained.
        """
        if self.shared_backbone is not None:
            return copy.deepcopy(self.shared_backbone.model.backbone).requires_grad_(True)
        backbone = Backbone(self.config.model, self.data.channels)
        set_normalisation(backbone, self.data)
        return backbone

    @property
    def class_rows(self) -> np.ndarray:
        """Training rows whose class is known."""
        return self.data.collection.class_rows("train")

    def class_labels(self, rows: np.ndarray) -> Tensor:
        """Class indices of rows, `csr.data.records.NO_CLASS` where the class is not known."""
        return torch.from_numpy(self.data.collection.truth()[rows]).to(device())

    def concept_labels(self, rows: np.ndarray) -> Tensor:
        """n×K of 1, 0 or NaN."""
        return torch.from_numpy(self.data.collection.concept_labels()[rows]).to(device())


BackboneTraining = Callable[[ExperimentContext], ConceptModel]

# Prototype systems start from the trained black box and train on for half the budget: one and a half times what every
# other system gets.
WARM_START_EPOCHS = 0.5


@dataclass(frozen=True)
class Entry:
    """One compared system.

    Args:
        title: name in tables.
        kind: its class.
        train: trains it.
        shared_backbone: what it rests on or starts from; None: it trains all of itself.
        epochs: its own epochs of images as a share of the budget, beside the shared backbone's, which are the whole
            budget.
    """

    title: str
    kind: type[System]
    train: Callable[[ExperimentContext], System]
    shared_backbone: SharedBackbone | None = None
    epochs: float = 1.0


def train_on_images(
    context: ExperimentContext,
    name: str,
    system: System,
    terms: Callable[[np.ndarray, Tensor], Mapping[str, Tensor]],
    *,
    rows: np.ndarray | None = None,
    epochs: int | None = None,
    rates: Mapping[str, float] | None = None,
    validate: bool = True,
    **budget: Any,
) -> None:
    """One phase of training by augmented images, in place, with the shared optimiser and schedule.

    Args:
        name: of the phase, in reports.
        terms: rows and their augmented images (uint8 B×C×S×S) → loss terms.
        rows: training rows to draw batches from; by default those whose class is known.
        epochs: of this phase; by default the context's, which the phases of a system sum up to.
        rates: prefix of parameter names → factor on the learning rate; see `csr.training.loop.Task`.
        validate: report macro F1 on ``val`` after each epoch.
        budget: other keys of the configuration that this phase replaces.

    Parameters that do not require a gradient stay as they are. Pretrained weights are tuned as the configuration says
    (`csr.training.fine_tuning`), but for those of a shared backbone, which have been.
    """
    collection = context.data.collection
    findings = Findings(collection, context.data.side)
    phase = replace(context.config, epochs=context.config.epochs if epochs is None else epochs, **budget)
    system.to(device()).to(memory_format=torch.channels_last)

    def batch_terms(rows: np.ndarray) -> Mapping[str, Tensor]:
        images = augment(load_images(context.data, rows, device()), phase.augment, findings, rows)
        with autocast(phase.precision):
            return terms(rows, images)

    def after_epoch(epoch: int) -> dict[str, float]:
        if not validate:
            return {}
        val = collection.rows("val")
        predicted = predict(system, context.data, val).probabilities.argmax(1)
        return {"val_macro_f1": macro_f1(collection.truth()[val], predicted, len(collection.classes))}

    chosen = context.class_rows if rows is None else rows
    task = Task(name, system, chosen, batch_terms, after_epoch, phase.warmup, rates or {}, "concepts", phase.precision)
    if context.shared_backbone is not None:
        phase = replace(phase, backbone_rate=1.0, layer_decay=None, freeze=0)
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
        known = [piece.float().cpu().numpy() for piece in pieces if piece is not None]
        return np.concatenate(known) if known else None

    probabilities = gathered([answer.probabilities for answer in answers])
    explanations = gathered([answer.explanations for answer in answers])
    assert probabilities is not None and explanations is not None
    peaks = [map_peaks(answer.maps.float().cpu().numpy(), data.side) for answer in answers if answer.maps is not None]
    return Predictions(
        rows=rows,
        probabilities=probabilities,
        concepts=gathered([answer.concepts for answer in answers]),
        peaks=np.concatenate(peaks) if peaks else None,
        explanations=explanations,
    )
