"""Random changes of training images that leave in the picture what the labels say is there.

They are drawn on the CPU, wherever the images are: findings are looked for there, and no GPU is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csr.data.records import Collection
from csr.training.runtime import send

KEPT = 0.5  # share of a finding's boxes that must stay in the picture
REDRAWS = 10
_GRID = 7  # points a box and axis by which that share is measured


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; concepts must survive them. All in uniform ranges around no change.

    Args:
        rotate: degrees. shift: share of the side. scale: share. brightness, contrast: share of the grey range.
        flip: mirror left and right; off where side matters, as in a chest.
    """

    rotate: float = 5.0
    shift: float = 0.05
    scale: float = 0.08
    brightness: float = 0.1
    contrast: float = 0.15
    flip: bool = False


class Findings:
    """Where the findings of a collection's studies are: the boxes of each concept that is present in a study.

    Args:
        side: of the prepared images, in pixels; boxes are in them.
    """

    def __init__(self, collection: Collection, side: int) -> None:
        labels = collection.concept_labels()
        shown = [(row, boxes) for (row, k), boxes in collection.boxes_by_pair().items() if labels[row, k] == 1]
        shown.sort(key=lambda pair: pair[0])  # an image's findings lie side by side, and so do a finding's points
        points = [_points(boxes, side) for _, boxes in shown]
        self._points = np.concatenate([np.empty((0, 2), np.float32), *points])
        self._first_point = np.cumsum([0] + [len(each) for each in points])
        self._first_finding = np.searchsorted([row for row, _ in shown], np.arange(len(labels) + 1))

    def lost(self, rows: np.ndarray, transforms: Tensor) -> Tensor:
        """B bool: which images a move robs of a finding, by leaving less than `KEPT` of its boxes in the picture.

        Args:
            rows: B rows of the collection.
            transforms: B×2×3 on the CPU, from the moved picture to the image, as `torch.nn.functional.affine_grid`
                takes them.
        """
        moves = transforms.numpy()
        findings, image = _ranges(self._first_finding[rows], self._first_finding[rows + 1])
        points, finding = _ranges(self._first_point[findings], self._first_point[findings + 1])
        inverse, shift = np.linalg.inv(moves[:, :, :2]), moves[:, :, 2]
        own = image[finding]
        moved = np.einsum("pxy,py->px", inverse[own], self._points[points] - shift[own])
        inside = (np.abs(moved) <= 1).all(1)
        kept = np.bincount(finding, inside, len(findings)) / np.bincount(finding, minlength=len(findings))
        lost = np.zeros(len(rows), bool)
        lost[image[kept < KEPT]] = True
        return torch.from_numpy(lost)


def _ranges(first: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All indices of n ranges one after the other, and which range each is of."""
    counts = end - first
    of = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(of)) + (first - (np.cumsum(counts) - counts))[of], of


def _points(boxes: np.ndarray, side: int) -> np.ndarray:
    """Evenly spaced points in n×4 boxes, as (x, y) in −1..1 of the image: (n · `_GRID`²)×2."""
    steps = (np.arange(_GRID) + 0.5) / _GRID
    x = boxes[:, None, None, 0] + steps[None, :, None] * (boxes[:, 2] - boxes[:, 0])[:, None, None]
    y = boxes[:, None, None, 1] + steps[None, None, :] * (boxes[:, 3] - boxes[:, 1])[:, None, None]
    points = np.stack(np.broadcast_arrays(x, y), -1).reshape(-1, 2)
    return (2 * points / side - 1).astype(np.float32)


@dataclass(frozen=True)
class Draws:
    """Where the random numbers of a batch come from.

    They are drawn on the CPU, for a whole batch in every process, so that an image changes alike on every device and
    however many processes share the batch.

    Args:
        count: B, images of the whole batch.
        part: of the batch, the images that are to be changed.
        generator: torch's global one by default.
    """

    count: int
    part: slice = field(default_factory=lambda: slice(None))
    generator: torch.Generator | None = None

    def spread(self, width: float) -> Tensor:
        """B numbers in ±width."""
        return (torch.rand(self.count, generator=self.generator) * 2 - 1) * width


def augment(
    images: Tensor,
    config: AugmentConfig,
    findings: Findings | None = None,
    rows: np.ndarray | None = None,
    draws: Draws | None = None,
) -> Tensor:
    """uint8 B×C×S×S → the same, each image moved and windowed at random.

    Args:
        findings: what no move may cut away: such a move is drawn again, and after `REDRAWS` times the image stays.
        rows: of the collection, of the whole batch, by which ``findings`` knows the images.
        draws: by default the images are the whole batch.
    """
    draws = draws or Draws(len(images))
    return window(move(images, config, findings, rows, draws), config, draws)


def move(
    images: Tensor,
    config: AugmentConfig,
    findings: Findings | None = None,
    rows: np.ndarray | None = None,
    draws: Draws | None = None,
) -> Tensor:
    """uint8 B×C×S×S → float32 0..255, each image rotated, scaled, shifted and perhaps mirrored at random; see
    `augment`."""
    draws = draws or Draws(len(images))
    return moved(images, config, draw_moves(config, findings, rows, draws))


def draw_moves(config: AugmentConfig, findings: Findings | None, rows: np.ndarray | None, draws: Draws) -> Tensor:
    """The moves of the part of a batch that is to be changed, B×2×3 on the CPU: from the moved picture to the image, in
    −1..1 of the side; see `augment`."""
    transforms = _draw_moves(draws, config)
    if findings is not None and rows is not None:
        lost = np.arange(len(rows))
        for tried in range(REDRAWS + 1):
            lost = lost[findings.lost(rows[lost], transforms[lost]).numpy()]
            if not len(lost):
                break
            drawn = _draw_moves(replace(draws, count=len(lost)), config) if tried < REDRAWS else torch.eye(2, 3)
            transforms[lost] = drawn
    return transforms[draws.part]


def moved(images: Tensor, config: AugmentConfig, transforms: Tensor) -> Tensor:
    """uint8 B×C×S×S → float32 0..255 by the moves that `draw_moves` drew."""
    own = send(transforms, images.device)
    if not (config.rotate or config.shift or config.scale):  # mirrored or not, to the bit and without resampling
        return torch.where((own[:, 0, 0] < 0)[:, None, None, None], images.flip(-1), images).float()
    grid = F.affine_grid(own, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False, padding_mode="reflection")


def _draw_moves(draws: Draws, config: AugmentConfig) -> Tensor:
    """B×2×3 transforms from moved pictures to images, in −1..1 of the side."""
    angle = torch.deg2rad(draws.spread(config.rotate))
    zoom = 1 + draws.spread(config.scale)
    mirror = torch.where(draws.spread(1.0) < 0, -1.0, 1.0) if config.flip else torch.ones(draws.count)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    dx, dy = 2 * draws.spread(config.shift), 2 * draws.spread(config.shift)
    rows = [mirror * cos, -sin, dx, mirror * sin, cos, dy]
    return torch.stack(rows, 1).view(draws.count, 2, 3)


def window(images: Tensor, config: AugmentConfig, draws: Draws | None = None) -> Tensor:
    """B×C×S×S of 0..255 → uint8, the contrast and brightness of each image changed at random; no cell moves."""
    draws = draws or Draws(len(images))
    gain = send((1 + draws.spread(config.contrast))[draws.part], images.device)[:, None, None, None]
    offset = send((255 * draws.spread(config.brightness))[draws.part], images.device)[:, None, None, None]
    windowed = images.float()
    if config.contrast or config.brightness:
        windowed = (windowed - 127.5) * gain + 127.5 + offset
    return windowed.clamp(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)
