"""Prepared images as tensors: batches of them, and the statistics that normalise them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.network.backbone import Backbone
from csr.training.runtime import device


def load_images(data: PreparedSet, rows: np.ndarray, place: torch.device) -> Tensor:
    """Rows of the prepared images as a uint8 B×C×S×S tensor on ``place``."""
    images = torch.from_numpy(np.ascontiguousarray(data.images[rows])).to(place, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last)


def image_batches(data: PreparedSet, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows and their images, in order, for evaluation."""
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        yield chosen, load_images(data, chosen, device())


def channel_statistics(data: PreparedSet, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in 0..1 units, over at most 500 evenly spaced rows."""
    sample = data.images[rows[:: max(1, len(rows) // 500)]].astype(np.float32) / 255
    return torch.from_numpy(sample.mean((0, 2, 3))), torch.from_numpy(sample.std((0, 2, 3))).clamp_min(1e-3)


def set_normalisation(backbone: Backbone, data: PreparedSet) -> None:
    """Normalises images by the training images' statistics, unless the backbone's weights brought their own."""
    if not backbone.normalised:
        backbone.set_normalisation(*channel_statistics(data, data.collection.rows("train")))
