"""Puts a bundle together from trained parts: graphs, atlas, golden case, samples, manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csr.atlas import Atlas
from csr.bundle import REASONER_OUTPUTS, Bundle, write_atlas, write_manifest
from csr.datasets.prepared import PreparedSet
from csr.drafts import draft_folder
from csr.export import export_graphs, measure_parity, require_parity
from csr.images import to_png
from csr.interaction import Interaction, RegionBox, importance_map, prototype_mask
from csr.network.csr import CSR
from csr.records import BOX_COLUMNS


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from; see `csr.bundle.Manifest`."""

    preset: str
    data_digest: str
    code_revision: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class ExportConfig:
    """What a bundle carries beside its graphs.

    Args:
        alpha, rejection, ask_margin: the serving defaults written to the manifest.
        parity_images: how many test images parity is measured on. tolerance: the largest allowed |Δlogit|.
        samples: how many test images to pack, spread over the classes.
    """

    alpha: float = 0.2
    rejection: str = "absent"
    ask_margin: float = 0.3
    parity_images: int = 64
    tolerance: float = 1e-4
    samples: int = 10


def write_bundle(
    path: Path, data: PreparedSet, model: CSR, atlas: Atlas, config: ExportConfig, origin: Provenance
) -> tuple[Bundle, float]:
    """Writes the bundle to ``path``, whole or not at all.

    Returns:
        The opened bundle and the measured parity, max |Δlogit| over real test images with and without an interaction.

    Raises:
        BundleError: parity is above ``config.tolerance``; nothing is written.
    """
    model = model.cpu().eval()
    test = data.collection.rows("test")
    chosen = test[np.linspace(0, len(test) - 1, min(config.parity_images, len(test))).astype(int)]
    images = torch.from_numpy(np.ascontiguousarray(data.images[chosen]))
    with torch.no_grad():
        height, width = model.encoder(images[:1]).shape[-2:]
    tensors = _interactions(data, model, len(chosen), (height, width), config)
    with draft_folder(path) as draft:
        export_graphs(model, images[:2], draft)
        gap = measure_parity(model, images, tensors, draft)
        require_parity(gap, config.tolerance)
        _write_golden(draft / "golden.npz", model, images[:2], {name: value[:2] for name, value in tensors.items()})
        write_atlas(draft, atlas.entries, atlas.crops)
        _write_samples(draft / "samples", data, config.samples)
        write_manifest(
            draft,
            preset=origin.preset,
            concepts=data.collection.concepts,
            classes=data.collection.classes,
            channels=data.channels,
            side=data.side,
            height=height,
            width=width,
            per_concept=model.reasoner.alive.shape[1],
            patch_width=model.reasoner.prototypes.shape[2],
            alpha=config.alpha,
            rejection=config.rejection,
            ask_margin=config.ask_margin,
            backbone=model.encoder.concept_model.config.backbone,
            data=data.collection.name,
            data_digest=origin.data_digest,
            code_revision=origin.code_revision,
            metrics=origin.metrics,
        )
    return Bundle.open(path), gap


def _interactions(
    data: PreparedSet, model: CSR, count: int, size: tuple[int, int], config: ExportConfig
) -> dict[str, np.ndarray]:
    """One fixed interaction an image: a positive box that wanders, a negative one, one rejected concept."""
    concepts, per_concept = model.reasoner.alive.shape
    side = float(data.side)
    importance, masks = [], []
    for index in range(count):
        shift = side * 0.5 * index / count
        boxes = (
            RegionBox(shift, shift, shift + side / 3, shift + side / 2, "positive"),
            RegionBox(0, 0, side / 4, side / 4, "negative"),
        )
        rejected = (data.collection.concepts[index % concepts],)
        interaction = Interaction(boxes, rejected, alpha=config.alpha)
        importance.append(importance_map(interaction, data.side, *size))
        masks.append(prototype_mask(rejected, data.collection.concepts, per_concept))
    weight = np.arange(count, dtype=np.float32) % 2
    return {"importance": np.stack(importance), "prototype_mask": np.stack(masks), "absent_weight": weight}


@torch.no_grad()
def _write_golden(file: Path, model: CSR, images: torch.Tensor, tensors: dict[str, np.ndarray]) -> None:
    answer = model.reasoner(model.encoder(images), *(torch.from_numpy(value) for value in tensors.values()))
    expected = {f"expected_{name}": getattr(answer, name).numpy() for name in REASONER_OUTPUTS}
    del expected["expected_similarity_maps"]  # the concept maps stand for them at an M-th of the size
    arrays: dict[str, Any] = {"image": images.numpy(), **tensors, **expected}
    np.savez_compressed(file, **arrays)


def _write_samples(folder: Path, data: PreparedSet, count: int) -> None:
    folder.mkdir()
    studies = data.collection.studies
    rows: list[dict[str, Any]] = []
    test = data.collection.rows("test")
    by_class = [test[studies["label"].to_numpy()[test] == name] for name in data.collection.classes]
    for turn in range(count):
        own = by_class[turn % len(by_class)]
        row = int(own[(turn // len(by_class)) % len(own)])
        study = str(studies["study_id"].iat[row])
        file = f"{len(rows):02d}.png"
        (folder / file).write_bytes(to_png(data.images[row]))
        boxes = data.collection.boxes
        present = [name for name in data.collection.concepts if studies[f"concept:{name}"].iat[row] == 1]
        own_boxes = boxes.loc[boxes["study_id"] == study, list(BOX_COLUMNS[1:])].values.tolist()
        label = str(studies["label"].iat[row])
        rows.append({"study_id": study, "file": file, "label": label, "concepts": present, "boxes": own_boxes})
    (folder / "samples.json").write_text(json.dumps(rows, indent=1) + "\n")
