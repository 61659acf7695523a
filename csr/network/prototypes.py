"""Prototypes p and what is compared with them: local concept vectors in training, patches in use (CSR, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.network.checkpoint import Checkpoint, checkpoint
from csr.network.projector import Projector


class Prototypes(nn.Module):
    """K×M unit vectors of D' numbers; row k holds the prototypes of concept k.

    Args:
        concepts: K.
        per_concept: M.
        width: D'.
    """

    def __init__(self, concepts: int, per_concept: int, width: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(concepts, per_concept, width))

    def unit(self) -> Tensor:
        """p K×M×D', L2-normalised."""
        return F.normalize(self.raw, dim=-1)

    def similarity_maps(self, patches: Tensor) -> Tensor:
        """S_km(h,w) = ⟨p_km, v'(h,w)⟩. ``patches`` B×D'×h×w → B×K×M×h×w."""
        return similarity_maps(patches, self.unit())


class PrototypeModel(nn.Module):
    """What stage 2 learns: the projector, and the prototypes in the space that it projects to.

    Args:
        features: D, channels of the backbone's features.
        concepts, per_concept: K and M.
        width: D', length of projected vectors.
        blocks: residual blocks of the projector.
    """

    def __init__(self, features: int, concepts: int, per_concept: int, width: int, blocks: int) -> None:
        super().__init__()
        self.projector = Projector(features, width, blocks)
        self.prototypes = Prototypes(concepts, per_concept, width)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make a model of the same shape."""
        concepts, per_concept, width = self.prototypes.raw.shape
        return {
            "features": self.projector.inlet.in_features,
            "concepts": concepts,
            "per_concept": per_concept,
            "width": width,
            "blocks": len(self.projector.blocks),
        }


def similarity_maps(patches: Tensor, prototypes: Tensor) -> Tensor:
    """Inner products of B×D'×h×w patches with K×M×D' prototypes → B×K×M×h×w."""
    concepts, per_concept, width = prototypes.shape
    batch, _, height, columns = patches.shape
    flat = prototypes.reshape(concepts * per_concept, width) @ patches.reshape(batch, width, height * columns)
    return flat.reshape(batch, concepts, per_concept, height, columns)


def local_concept_vectors(features: Tensor, maps: Tensor) -> Tensor:
    """v_k = Σ_hw softmax_hw(cam_k) · f. ``features`` B×D×h×w, ``maps`` B×K×h×w → B×K×D."""
    attention = maps.flatten(2).softmax(-1)
    return attention @ features.flatten(2).transpose(1, 2)


def prototype_model_checkpoint(model: PrototypeModel) -> Checkpoint:
    """All that is needed to rebuild a stage 2."""
    return checkpoint("prototype model", model.config, model.state_dict())


def prototype_model_from_checkpoint(content: Checkpoint) -> PrototypeModel:
    """The inverse of `prototype_model_checkpoint`, for evaluation."""
    model = PrototypeModel(**content["config"])
    model.load_state_dict(content["weights"])
    return model.eval()
