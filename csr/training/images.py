"""Prepared images as tensors: batches of them, and the statistics that normalise them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.network.backbone import Backbone
from csr.training.read_ahead import read_ahead
from csr.training.runtime import device, pinned, send


def read_images(data: PreparedSet, rows: np.ndarray) -> Tensor:
    """Rows of the prepared images as a uint8 B×C×S×S tensor on the CPU, ready to be sent (`send_images`)."""
    return pinned(torch.from_numpy(np.ascontiguousarray(data.images[rows])))


def send_images(images: Tensor, place: torch.device) -> Tensor:
    """What `read_images` read, on ``place`` and with channels last."""
    return send(images, place).contiguous(memory_format=torch.channels_last)


def load_images(data: PreparedSet, rows: np.ndarray, place: torch.device) -> Tensor:
    """Rows of the prepared images as a uint8 B×C×S×S tensor on ``place``."""
    return send_images(read_images(data, rows), place)


def image_batches(data: PreparedSet, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Rows and their images, in order, for evaluation; the next ones are read meanwhile."""
    pieces = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    with read_ahead(pieces, partial(read_images, data)) as batches:
        for chosen, images in batches:
            yield chosen, send_images(images, device())


def channel_statistics(data: PreparedSet, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in 0..1 units, over at most 500 evenly spaced rows."""
    sample = data.images[rows[:: max(1, len(rows) // 500)]].astype(np.float32) / 255
    return torch.from_numpy(sample.mean((0, 2, 3))), torch.from_numpy(sample.std((0, 2, 3))).clamp_min(1e-3)


def set_normalisation(backbone: Backbone, data: PreparedSet) -> None:
    """Normalises images by the training images' statistics, unless the backbone's weights brought their own."""
    if not backbone.normalised:
        backbone.set_normalisation(*channel_statistics(data, data.collection.rows("train")))
