"""CSR's stage 1 as shared backbones, three kinds of it.

concepts_lse       log-sum-exp pooling, as the robust recipe has it
concepts_average   average pooling, as the paper has it
concepts_coarse    log-sum-exp pooling on one level of stride 16, for the ablation
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from csr.baselines.protocol import BackboneTraining, ExperimentContext, SharedBackbone
from csr.network.concept_model import ConceptModel
from csr.training.concepts import train_concepts

_DIFFERENCES: dict[SharedBackbone, dict[str, Any]] = {
    "concepts_lse": {"pooling": "lse"},
    "concepts_average": {"pooling": "average"},
    "concepts_coarse": {"pooling": "lse", "stride": 16, "context": None},
}


def shared_backbone_context(kind: SharedBackbone, context: ExperimentContext) -> ExperimentContext:
    """The context with the concept model that a shared backbone has."""
    model = replace(context.config.model, **_DIFFERENCES[kind])
    return replace(context, config=replace(context.config, model=model))


def _train(context: ExperimentContext, kind: SharedBackbone) -> ConceptModel:
    own = shared_backbone_context(kind, context)
    return train_concepts(own.data, own.config, own.callbacks)


BACKBONES: dict[SharedBackbone, BackboneTraining] = {kind: partial(_train, kind=kind) for kind in _DIFFERENCES}
