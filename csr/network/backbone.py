"""The backbone F: image → features f B×D×h×w, one cell for every stride×stride pixels (CSR, section 3.1).

One level of a timm network, or two: with ``context`` a deeper level is enlarged and merged into the finer one as in a
feature pyramid (Lin et al. 2017, arXiv 1612.03144, section 3), so that fine cells know what surrounds them:

    f = ReLU(BN(conv3×3( conv1×1(f_stride) + enlarge(conv1×1(f_context)) )))

Stride 16 is too coarse for findings of a dozen pixels: the map's maximum then lies in the right cell and beside the
finding. Every system of the comparison rests on the same backbone.

A map cell must also look at the pixels that it is drawn over. A stride-2 convolution with symmetric padding centres its
output i on input 2i, so after four of them cell i looks at pixel 16·i, half a cell up and left of the middle of the
pixels it is drawn over: maps then point half a cell down and right of every finding, which a finding smaller than a
cell does not forgive. Such backbones get half a stride of padding in front, and their first row and column of cells,
which look outside the image, are dropped. Backbones with TensorFlow's SAME padding look half a cell the other way;
patchify stems and average-pooled shortcuts are centred as they are. Which it is is measured when the model is built.

Training moves where cells look, too (`csr.training.alignment` says why, and measures it); images are then moved by as
much before they are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.errors import ConfigError


@dataclass(frozen=True)
class BackboneConfig:
    """What the backbone is made of.

    Args:
        backbone: a timm model name with ``features_only`` support.
        pretrained: timm's published weights (downloads them), or
        checkpoint: a local file of backbone weights, or neither: from scratch.
        stride: input pixels a map cell, a power of two that the backbone offers.
        context: stride of a deeper level that is merged into the finer one, or None.
        width: D where levels are merged; otherwise D is the level's own.
    """

    backbone: str = "regnetx_002"
    pretrained: bool = False
    checkpoint: str | None = None
    stride: int = 8
    context: int | None = 16
    width: int = 128


class Backbone(nn.Module):
    """Normalisation and feature extractor.

    Args:
        config: architecture.
        channels: image channels, 1 or 3.

    Raises:
        ConfigError: timm does not know the backbone, or it has no such levels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.body = _build_body(config, channels)
        widths: list[int] = self.body.feature_info.channels()
        self.cell_offset = measure_cell_offset(self.body, channels, config.stride)
        self.map_shift = (0, 0)  # pixels right and down of their middle that cells look, after training
        self.width = config.width if config.context else widths[0]
        if config.context:
            if self.cell_offset > 0:
                raise ConfigError(
                    f"concepts.model.context: cells of {config.backbone} look down and right of their pixels "
                    "(TensorFlow's SAME padding); merging two levels of such a backbone is not supported, set it to "
                    "null"
                )
            self.fine = nn.Conv2d(widths[0], config.width, 1, bias=False)
            self.deep = nn.Conv2d(widths[1], config.width, 1, bias=False)
            self.merge = nn.Sequential(
                nn.Conv2d(config.width, config.width, 3, padding=1, bias=False),
                nn.BatchNorm2d(config.width),
                nn.ReLU(),
            )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Stores the channel statistics (C, in 0..1 units) that travel with the weights."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def get_extra_state(self) -> Tensor:
        """``cell_offset`` and ``map_shift`` travel with the weights: a measurement must not be made twice."""
        return torch.tensor([self.cell_offset, *self.map_shift])

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of `get_extra_state`."""
        self.cell_offset, *map_shift = (int(value) for value in state)
        self.map_shift = (map_shift[0], map_shift[1])

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 B×C×H×W → standardised float32."""
        return (images.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, images: Tensor) -> Tensor:
        """uint8 B×C×H×W → f B×D×h×w, cell (i, j) centred on the pixels it covers."""
        return self.depths(images)[1]

    def depths(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 B×C×H×W → the finest level as the body gives it, and f of `forward`: two depths of one run."""
        deepest = self.config.context or self.config.stride
        if images.shape[-1] % deepest or images.shape[-2] % deepest:
            height, width = images.shape[-2:]
            raise ConfigError(f"data.side: {height}×{width} is not a multiple of the deepest stride {deepest}")
        normal, half = _moved(self.normalise(images), *self.map_shift), self.config.stride // 2
        if self.cell_offset < 0:
            levels = self.body(F.pad(normal, (half, 0, half, 0)))
            return levels[0], self._merged(levels)[..., 1:, 1:]
        if self.cell_offset > 0:
            levels = self.body(F.pad(normal, (half, half, half, half)))
            return levels[0], self._merged(levels)[..., :-1, :-1]
        levels = self.body(normal)
        return levels[0], self._merged(levels)

    def _merged(self, levels: list[Tensor]) -> Tensor:
        if not self.config.context:
            return levels[0]
        fine = self.fine(levels[0])
        # cells that look at the upper left corner of their pixels coincide at the corners, others at the edges
        enlarged = F.interpolate(
            self.deep(levels[1]), size=fine.shape[-2:], mode="bilinear", align_corners=self.cell_offset < 0
        )
        return self.merge(fine + enlarged)


def _moved(images: Tensor, right: int, down: int) -> Tensor:
    """Images moved by whole pixels; what comes in at an edge is a reflection, as in augmentation."""
    height, width = images.shape[-2:]
    reflected = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="reflect")
    top, left = max(-down, 0), max(-right, 0)
    return reflected[..., top : top + height, left : left + width]


def measure_cell_offset(body: nn.Module, channels: int, stride: int) -> int:
    """Where cells of the finest level look: −1 at their upper left corner, 0 at their middle, 1 at their lower right.

    Measured as the centre of mass of |∂f(middle cell)/∂x|², which is near one of the three whatever the weights are.
    The global random state is left as it was, and so are the running statistics.
    """
    cells = 16
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        images = torch.randn(8, channels, cells * stride, cells * stride, requires_grad=True)
        training = body.training
        features = body.eval()(images)[0]
        body.train(training)
        middle = features.shape[-1] // 2
        (gradient,) = torch.autograd.grad(features[..., middle, middle].square().sum(), images)
    weight = gradient.square().sum((0, 1, 2))
    seen = float((weight * (torch.arange(len(weight)) + 0.5)).sum() / weight.sum())
    offset = seen / stride - (middle + 0.5)
    return -1 if offset < -0.25 else 1 if offset > 0.25 else 0


def _build_body(config: BackboneConfig, channels: int) -> Any:  # timm's FeatureListNet, untyped
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise ConfigError(f"concepts.model.checkpoint: no file {config.checkpoint!r}")
    if config.context is not None and config.context <= config.stride:
        raise ConfigError(
            f"concepts.model.context: must be a deeper level than concepts.model.stride {config.stride}, "
            f"got {config.context}"
        )
    try:
        levels: Any = timm.create_model(config.backbone, features_only=True)
    except RuntimeError as error:
        raise ConfigError(f"concepts.model.backbone: {error}") from None
    reductions = levels.feature_info.reduction()
    wanted = [config.stride] + ([config.context] if config.context else [])
    for key, stride in zip(("stride", "context"), wanted, strict=False):
        if stride not in reductions:
            offered = ", ".join(map(str, reductions))
            raise ConfigError(
                f"concepts.model.{key}: {config.backbone} has levels of stride {offered}, none of {stride}"
            )
    overlay = {"file": config.checkpoint} if config.checkpoint else None
    return timm.create_model(
        config.backbone,
        pretrained=config.pretrained or config.checkpoint is not None,
        pretrained_cfg_overlay=overlay,
        features_only=True,
        out_indices=tuple(reductions.index(stride) for stride in wanted),
        in_chans=channels,
    )
