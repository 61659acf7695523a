"""Stage of the system that learns concepts from an image-text encoder in the place of labels.

python -m pipelines.comparison.label_free MODULE:NAME SEED

The encoder and the concepts' texts are ``data.text_concepts`` of ``params.yaml``. Without them the system is left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from csr.baselines.protocol import ExperimentContext
from csr.data.text_concepts import concept_directions, concept_scores, load_encoder
from csr.training.runtime import device
from pipelines.comparison.common import command_line, listed
from pipelines.comparison.system import train_and_keep
from pipelines.params import Params


def with_text_scores(context: ExperimentContext, params: Params) -> ExperimentContext:
    """The context with the encoder's scores of training and validation images for the concepts that it is told of.

    Raises:
        ConfigError: the encoder cannot be had, or does not know what to make of the texts.
    """
    texts, collection = params.data.text_concepts, context.data.collection
    assert texts is not None
    encoder = load_encoder(texts.factory, Path(texts.checkpoint), texts.options, device())
    directions = concept_directions(encoder, texts, collection.concepts)
    rows = np.sort(np.concatenate([collection.rows("train"), collection.rows("val")]))
    columns = np.array([collection.concepts.index(name) for name in texts.concepts])
    scores = np.full((len(collection.studies), len(collection.concepts)), np.nan)
    scores[np.ix_(rows, columns)] = concept_scores(encoder, context.data.images, rows, directions, texts.batch_size)
    return replace(context, text_scores=scores)


def run(reference: str, seed: int, params: Params) -> None:
    """See `pipelines.comparison.system.train_and_keep`."""
    name, entry = listed(reference, "SYSTEMS")
    train_and_keep(name, entry, seed, params, complete=with_text_scores)


if __name__ == "__main__":
    command_line("label_free", None, run)
