"""A trained CSR: concept model, projector and prototypes, reasoner, as one object and one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csr.network.checkpoint import Checkpoint, checkpoint, read_checkpoint, write_checkpoint
from csr.network.concept_model import ConceptModel
from csr.network.projector import Projector
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Reasoner, Reasoning
from csr.network.rebuild import build_concept_model, concept_model_config


class Encoder(nn.Module):
    """uint8 B×C×S×S → v' B×D'×h×w; normalisation, backbone and projector in one graph."""

    def __init__(self, concept_model: ConceptModel, projector: Projector) -> None:
        super().__init__()
        self.concept_model = concept_model
        self.projector = projector

    def forward(self, images: Tensor) -> Tensor:
        return self.projector.project_maps(self.concept_model.features(images))

    def depths(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 B×C×S×S → the backbone's finest level and v'."""
        fine, features = self.concept_model.backbone.depths(images)
        return fine, self.projector.project_maps(features)


class TrainedCSR(nn.Module):
    """What the three stages have trained; see the modules of its parts.

    Args:
        concept_model: stage 1.
        prototype_model: stage 2, projector and prototypes.
        reasoner: stage 3, which holds the prototypes that are compared, the head and all calibration.
        concepts: names of the K concepts.
        classes: names of the T classes; none where only concepts are predicted.
    """

    def __init__(
        self,
        concept_model: ConceptModel,
        prototype_model: PrototypeModel,
        reasoner: Reasoner,
        concepts: tuple[str, ...],
        classes: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.concept_model = concept_model
        self.prototype_model = prototype_model
        self.reasoner = reasoner
        self.concepts = concepts
        self.classes = classes

    @property
    def encoder(self) -> Encoder:
        """Image → projected patches, over the same weights."""
        return Encoder(self.concept_model, self.prototype_model.projector)

    @property
    def place(self) -> torch.device:
        """Where the weights are."""
        return self.reasoner.prototypes.device

    def project(self, features: Tensor) -> Tensor:
        """Backbone features f B×D×h×w → projected patches v' B×D'×h×w."""
        return self.prototype_model.projector.project_maps(features)

    def forward(self, images: Tensor) -> Reasoning:
        """uint8 B×C×S×S → everything that is concluded without an interaction."""
        return self.reasoner(self.encoder(images))

    def with_reasoner(self, reasoner: Reasoner) -> TrainedCSR:
        """The same stages 1 and 2 (shared, not copied) under another reasoner."""
        return TrainedCSR(self.concept_model, self.prototype_model, reasoner, self.concepts, self.classes)

    @property
    def config(self) -> dict[str, Any]:
        """Plain types from which `from_config` makes one of the same shape."""
        return {
            "concept_model": concept_model_config(self.concept_model),
            "prototype_model": self.prototype_model.config,
            "reasoner": self.reasoner.config,
            "concepts": list(self.concepts),
            "classes": list(self.classes),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainedCSR:
        """An object of the same shape, whose weights are still to be loaded."""
        return cls(
            build_concept_model(config["concept_model"]),
            PrototypeModel(**config["prototype_model"]),
            Reasoner(**config["reasoner"]),
            tuple(config["concepts"]),
            tuple(config["classes"]),
        )

    def to_checkpoint(self) -> Checkpoint:
        """All that is needed to rebuild it: plain types and tensors."""
        return checkpoint("trained CSR", self.config, self.state_dict())

    @classmethod
    def from_checkpoint(cls, content: Checkpoint) -> TrainedCSR:
        """The inverse of `to_checkpoint`, for evaluation."""
        csr = cls.from_config(content["config"])
        csr.load_state_dict(content["weights"])
        return csr.eval()

    def save(self, file: Path) -> None:
        """Writes one file."""
        write_checkpoint(self.to_checkpoint(), file)

    @classmethod
    def load(cls, file: Path) -> TrainedCSR:
        """Reads what `save` wrote, on the CPU and for evaluation.

        Raises:
            FileNotFoundError: no such file.
            DataError: the file holds something else or is of another format.
        """
        return cls.from_checkpoint(read_checkpoint(file, "trained CSR"))
