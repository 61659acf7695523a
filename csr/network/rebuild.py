"""What a network is made of, in plain types, and the same network built from that; see `csr.network.checkpoint`."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from csr.network.backbone import Backbone, BackboneConfig
from csr.network.checkpoint import Checkpoint, checkpoint
from csr.network.concept_model import ConceptModel, ConceptModelConfig

# never fetch weights, or their statistics, that others will replace
_UNTRAINED = {"pretrained": False, "checkpoint": None, "normalisation": "auto"}


def backbone_config(backbone: Backbone) -> dict[str, Any]:
    """Plain types for `build_backbone`."""
    known = {each.name: getattr(backbone.config, each.name) for each in fields(BackboneConfig)}
    return {"backbone": known | _UNTRAINED, "channels": int(backbone.mean.numel())}


def build_backbone(config: dict[str, Any]) -> Backbone:
    """An untrained backbone of that shape."""
    return Backbone(BackboneConfig(**config["backbone"]), config["channels"])


def concept_model_config(model: ConceptModel) -> dict[str, Any]:
    """Plain types for `build_concept_model`."""
    return {
        "model": asdict(model.config) | _UNTRAINED,
        "channels": int(model.backbone.mean.numel()),
        "concepts": model.to_maps.out_channels,
    }


def build_concept_model(config: dict[str, Any]) -> ConceptModel:
    """An untrained concept model of that shape."""
    return ConceptModel(ConceptModelConfig(**config["model"]), config["channels"], config["concepts"])


def concept_model_checkpoint(model: ConceptModel) -> Checkpoint:
    """All that is needed to rebuild a stage 1."""
    return checkpoint("concept model", concept_model_config(model), model.state_dict())


def concept_model_from_checkpoint(content: Checkpoint) -> ConceptModel:
    """The inverse of `concept_model_checkpoint`, for evaluation."""
    model = build_concept_model(content["config"])
    model.load_state_dict(content["weights"])
    return model.eval()
