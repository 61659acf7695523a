"""The frozen backbone's features, computed once and memory-mapped, so that stages 2 and 3 never touch an image.

A folder: ``features.npy`` N×D×h×w float16 and ``cam.npy`` N×K×h×w float32, rows as in the prepared set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from csr.data.prepared import PreparedSet
from csr.errors import DataError
from csr.training.callbacks import Callbacks
from csr.training.images import image_batches
from csr.training.runtime import Precision, autocast, device, pinned, send

if TYPE_CHECKING:
    from csr.network.concept_model import ConceptModel


@dataclass(frozen=True)
class FeatureCache:
    """Memory-mapped features of every study of a prepared set."""

    features: np.ndarray  # N×D×h×w float16
    cam: np.ndarray  # N×K×h×w float32

    @classmethod
    def open(cls, path: Path) -> FeatureCache:
        try:
            return cls(np.load(path / "features.npy", mmap_mode="r"), np.load(path / "cam.npy", mmap_mode="r"))
        except FileNotFoundError as error:
            raise DataError(f"{error.filename}: missing; run the stage 'features' (dvc repro features) first") from None

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """f B×D×h×w and cam B×K×h×w of the given rows as they are on disk, on the CPU, ready for `sent`."""
        features, cam = (torch.from_numpy(np.ascontiguousarray(part[rows])) for part in (self.features, self.cam))
        return pinned(features), pinned(cam)

    @staticmethod
    def sent(cached: tuple[Tensor, Tensor], place: torch.device) -> tuple[Tensor, Tensor]:
        """What `read` read, on ``place``: f B×D×h×w float32 and cam B×K×h×w."""
        return send(cached[0], place).float(), send(cached[1], place)

    def batch(self, rows: np.ndarray, place: torch.device) -> tuple[Tensor, Tensor]:
        """f B×D×h×w float32 and cam B×K×h×w of the given rows."""
        return self.sent(self.read(rows), place)


@torch.no_grad()
def compute_features(
    model: ConceptModel,
    data: PreparedSet,
    path: Path,
    callbacks: Callbacks,
    batch_size: int = 64,
    precision: Precision = "float32",
) -> None:
    """Runs the backbone over all images and writes the cache to ``path`` (an existing, empty folder).

    Args:
        precision: that the backbone computes in; see `csr.training.runtime.number_format`.
    """
    model = model.eval().to(device()).to(memory_format=torch.channels_last)
    rows = np.arange(len(data.images))
    features = cam = None
    total = -(-len(rows) // batch_size)
    for chosen, images in callbacks.track(image_batches(data, rows, batch_size), total, "features"):
        with autocast(precision):
            values = model.features(images)
            maps = model.maps(values)
        if features is None or cam is None:
            features = _allocate(path / "features.npy", np.float16, len(rows), values)
            cam = _allocate(path / "cam.npy", np.float32, len(rows), maps)
        features[chosen] = values.clamp(-65504, 65504).half().cpu().numpy()
        cam[chosen] = maps.float().cpu().numpy()
    for written in (features, cam):
        if written is not None:
            written.flush()


def _allocate(file: Path, kind: type, count: int, example: Tensor) -> np.memmap:
    return np.lib.format.open_memmap(file, "w+", kind, (count, *example.shape[1:]))
