"""Concepts defined by text: an image-text encoder of the user's labels training images that nobody has labelled.

A concept's direction is where its name lies in the space that images and texts share, as in the multimodal concepts of
post-hoc CBMs (Yuksekgonul et al. 2022); like label-free CBMs (Oikarinen et al. 2023) the encoder stands in
for annotators, and unlike them it may abstain: what it is unsure of stays unknown, and what is known stays as it is.
"""

from csr.data.text_concepts.encoder import ImageTextEncoder, load_encoder, open_clip_encoder
from csr.data.text_concepts.labels import (
    Calibration,
    FilledConcept,
    TextConcept,
    TextConceptConfig,
    calibrate,
    concept_directions,
    concept_scores,
    fill_labels,
)

__all__ = [
    "Calibration",
    "FilledConcept",
    "ImageTextEncoder",
    "TextConcept",
    "TextConceptConfig",
    "calibrate",
    "concept_directions",
    "concept_scores",
    "fill_labels",
    "load_encoder",
    "open_clip_encoder",
]
