"""What a trained CSR is for: answering, being corrected, being judged, and being packed for the server."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from csr.bundle.atlas import build_atlas
from csr.bundle.format import Bundle
from csr.bundle.writing import ExportConfig, Provenance, write_bundle
from csr.data.prepared import PreparedSet
from csr.evaluation.evaluate import evaluate_predictions
from csr.evaluation.peaks import map_peaks
from csr.evaluation.predictions import Predictions
from csr.evaluation.thresholds import validation_thresholds
from csr.interaction.corrections import Interaction, interaction_tensors
from csr.interaction.few_shot import Examples, add_concepts, box_attention
from csr.network.reasoner import Reasoning
from csr.network.trained import TrainedCSR
from csr.training.callbacks import Callbacks, SilentCallbacks
from csr.training.concepts import image_batches
from csr.training.features import FeatureCache, compute_features
from csr.training.head import HeadConfig
from csr.training.runtime import device


@torch.no_grad()
def predict(csr: TrainedCSR, images: np.ndarray, interactions: Sequence[Interaction] = ()) -> Reasoning:
    """What is concluded about images, and about images and what somebody says of them.

    Args:
        csr: moved to the GPU if there is one.
        images: B×C×S×S uint8, as a prepared set holds them.
        interactions: one an image; none for the model's own answer.

    Returns:
        Tensors on the CPU: maps, scores, concept probabilities, contributions, logits and probabilities.

    Raises:
        InteractionError: a box outside the image or an unknown concept.
        ValueError: as many interactions as images are needed, or none.
    """
    csr = csr.to(device()).eval()
    patches = csr.encoder(torch.from_numpy(np.ascontiguousarray(images)).to(csr.place))
    tensors: dict[str, np.ndarray] = {}
    if interactions:
        if len(interactions) != len(images):
            raise ValueError(f"{len(interactions)} interactions for {len(images)} images; give one each")
        tensors = interaction_tensors(interactions, csr.concepts, images.shape[-1], *patches.shape[-2:])
    said = csr.reasoner(patches, **{name: torch.from_numpy(value).to(csr.place) for name, value in tensors.items()})
    return Reasoning(*(value.cpu() for value in said))


@torch.no_grad()
def evaluate(csr: TrainedCSR, data: PreparedSet) -> dict[str, dict[str, Any]]:
    """The test split part by part: macro F1, AUROC, calibration, pointing game.

    Returns:
        By part; see `csr.evaluation.evaluate.evaluate_predictions`.
    """
    thresholds = None
    if data.collection.task == "multilabel":
        thresholds = validation_thresholds(data.collection, _predict(csr, data, "val"))
    return evaluate_predictions(data.collection, _predict(csr, data, "test"), data.side, thresholds)


def _predict(csr: TrainedCSR, data: PreparedSet, split: str) -> Predictions:
    csr, rows = csr.to(device()).eval(), data.collection.rows(split)
    probabilities, concepts, peaks = [], [], []
    for _, images in image_batches(data, rows, 64):
        said = csr(images)
        probabilities.append(said.probabilities.cpu().numpy())
        concepts.append(said.concept_probabilities.cpu().numpy())
        peaks.append(map_peaks(said.concept_maps, data.side))
    return Predictions(rows, *map(np.concatenate, (probabilities, concepts, peaks)))


def add_concept(
    csr: TrainedCSR,
    data: PreparedSet,
    examples: Examples,
    head: HeadConfig | None = None,
    callbacks: Callbacks | None = None,
) -> tuple[TrainedCSR, PreparedSet]:
    """A model that knows one concept more, from a few boxed examples (`csr.interaction.few_shot`).

    Args:
        csr: trained; it is not changed.
        data: what it was trained on.
        examples: a `csr.interaction.few_shot.Examples`: name, boxes, and rows of studies that lack it.
        head: how the head is trained anew on all concepts; None for the defaults.
        callbacks: told of every epoch; None: nobody.

    Returns:
        The model, and the data with the examples' labels and boxes: what `export_bundle` takes with it.

    Raises:
        DataError: the examples do not fit.
        TrainingError: the head's loss became NaN or infinite.
    """
    with TemporaryDirectory(prefix="csr-features-") as folder:
        compute_features(csr.concept_model, data, Path(folder), SilentCallbacks())
        cache = box_attention(data.collection, FeatureCache.open(Path(folder)), data.side)
        told = callbacks or SilentCallbacks()
        return add_concepts(csr, data, cache, [examples], head or HeadConfig(), told)[:2]


def export_bundle(csr: TrainedCSR, data: PreparedSet, path: Path, config: ExportConfig | None = None) -> Bundle:
    """Writes the bundle that ``csr serve --bundle`` serves and `csr.bundle.runtime.BundleRunner` runs.

    Args:
        csr: moved to the CPU.
        data: what it was trained on, or what `add_concept` returned with it: the atlas shows its training images, and
            its test images prove that the exported graphs compute the same.
        path: the folder; replaced if it exists.
        config: None for the defaults.

    Raises:
        BundleError: the exported graphs compute something else; nothing is written.
        ConfigError: no threshold brings the errors on ``val`` down to ``config.abstain_risk``; nothing is written.
        DataError: the data set has concepts only, so the model says nothing that could be served.
    """
    origin = Provenance("custom", data.digest(), f"csr {version('csr')}", evaluate(csr, data))
    with TemporaryDirectory(prefix="csr-features-") as folder:
        compute_features(csr.concept_model, data, Path(folder), SilentCallbacks())
        cache = box_attention(data.collection, FeatureCache.open(Path(folder)), data.side)
        atlas = build_atlas(data, cache, csr)
        return write_bundle(path, data, cache, csr, atlas, config or ExportConfig(), origin)[0]
