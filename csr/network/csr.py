"""The whole CSR as inference sees it: encoder (image → projected patches) and reasoner (patches → everything)."""

from __future__ import annotations

from torch import Tensor, nn

from csr.network.concept_model import ConceptModel
from csr.network.projector import Projector
from csr.network.reasoner import Reasoner, Reasoning


class Encoder(nn.Module):
    """uint8 B×C×S×S → v' B×D'×h×w; normalisation, backbone and projector in one graph."""

    def __init__(self, concept_model: ConceptModel, projector: Projector) -> None:
        super().__init__()
        self.concept_model = concept_model
        self.projector = projector

    def forward(self, images: Tensor) -> Tensor:
        return self.projector.project_maps(self.concept_model.features(images))


class CSR(nn.Module):
    """Encoder and reasoner together."""

    def __init__(self, encoder: Encoder, reasoner: Reasoner) -> None:
        super().__init__()
        self.encoder = encoder
        self.reasoner = reasoner

    def forward(self, images: Tensor) -> Reasoning:
        return self.reasoner(self.encoder(images))
