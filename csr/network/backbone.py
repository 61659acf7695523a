"""The backbone F: image → features f B×D×h×w, one cell for every stride×stride pixels (CSR, section 3.1).

One level of a timm network, or two: with ``context`` a deeper level is enlarged and merged into the finer one as in a
feature pyramid (Lin et al. 2017, arXiv 1612.03144, section 3), so that fine cells know what surrounds them:

    f = ReLU(BN(conv3×3( conv1×1(f_stride) + enlarge(conv1×1(f_context)) )))

Stride 16 is too coarse for findings of a dozen pixels: the map's maximum then lies in the right cell and beside the
finding. Every system of the comparison rests on the same backbone.

A map cell must also look at the pixels that it is drawn over. A stride-2 convolution with symmetric padding centres its
output i on input 2i, so after four of them cell i looks at pixel 16·i, half a cell up and left of the middle of the
pixels it is drawn over: maps then point half a cell down and right of every finding, which a finding smaller than a
cell does not forgive. Backbones with TensorFlow's SAME padding look half a cell the other way; patchify stems are
centred as they are; and trained weights may look anywhere in their field of view. So how far each level looks from the
middle of its cells is measured when the model is built, with the weights that it starts from, and undone: the image is
padded by so much, cells that look outside it are dropped, and the deeper level is enlarged to where the finer one
looks.

Training moves where cells look, too (`csr.training.alignment` says why, and measures it); images are then moved by as
much before they are looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.errors import ConfigError, cause_of
from csr.network.cell_offset import CELLS, TOKENS, Centring, measure_cell_offsets, whole_pixels
from csr.network.timm_networks import TokenFeatures, is_made_of_tokens, level_settings, network_settings, whole_network
from csr.network.weights import Preprocessing, load_weights


@dataclass(frozen=True)
class BackboneConfig:
    """What the backbone is made of.

    Args:
        backbone: a timm model name with ``features_only`` support, or a network of tokens such as a vision transformer.
        pretrained: timm's published weights (downloads them), or
        checkpoint: a local file of backbone weights (`csr.network.weights`), or neither: from scratch.
        normalisation: of images. ``auto``: what pretrained weights were trained with, and from scratch the training
            images' mean and standard deviation; ``images``: these always; or a mean and a std.
        stride: input pixels a map cell, one that the backbone offers: a power of two, or its patch.
        context: stride of a deeper level that is merged into the finer one, or None.
        width: D where levels are merged; otherwise D is the level's own.
    """

    backbone: str = "regnetx_002"
    pretrained: bool = False
    checkpoint: str | None = None
    normalisation: Literal["auto", "images"] | Preprocessing = "auto"
    stride: int = 8
    context: int | None = 16
    width: int = 128

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the levels that are used, the finest first."""
        return (self.stride, self.context) if self.context else (self.stride,)


class Backbone(nn.Module):
    """Normalisation and feature extractor.

    Args:
        config: architecture.
        channels: image channels, 1 or 3.

    Raises:
        ConfigError: timm does not know the backbone, or it has no such levels, or its weights cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.body, widths, preprocessing = _build_body(config, channels)
        self.normalised = preprocessing is not None  # by the weights' own statistics, not the training images'
        self.only_side, self.cell_offset = _measured(self.body, config, channels)  # pixels
        self.map_shift = (0, 0)  # pixels right and down of their middle that cells look, after training
        self.width = config.width if config.context else widths[0]
        if config.context:
            self.fine = nn.Conv2d(widths[0], config.width, 1, bias=False)
            self.deep = nn.Conv2d(widths[1], config.width, 1, bias=False)
            self.merge = nn.Sequential(
                nn.Conv2d(config.width, config.width, 3, padding=1, bias=False),
                nn.BatchNorm2d(config.width),
                nn.ReLU(),
            )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        if preprocessing is not None:
            self.set_normalisation(*preprocessing.of(channels))

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Stores the channel statistics (C, in 0..1 units) that travel with the weights."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def get_extra_state(self) -> Tensor:
        """``cell_offset`` and ``map_shift`` travel with the weights: a measurement must not be made twice.

        Where all levels look half a cell to the same side, or none does, the first number says which: -1, 1 or 0.
        """
        for sign in (-1, 0, 1):
            if self.cell_offset == tuple(sign * (stride // 2) for stride in self.config.strides):
                return torch.tensor([sign, *self.map_shift])
        return torch.tensor([0, *self.map_shift, *self.cell_offset])

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of `get_extra_state`."""
        sign, right, down, *offsets = (int(value) for value in state)
        self.cell_offset = tuple(offsets or (sign * (stride // 2) for stride in self.config.strides))
        self.map_shift = (right, down)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 B×C×H×W → standardised float32."""
        return (images.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, images: Tensor) -> Tensor:
        """uint8 B×C×H×W → f B×D×h×w, cell (i, j) centred on the pixels it covers."""
        return self.depths(images)[1]

    def depths(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 B×C×H×W → the finest level as the body gives it, and f of `forward`: two depths of one run."""
        height, width = images.shape[-2:]
        deepest, stride = max(self.config.strides), self.config.stride
        if height % deepest or width % deepest:
            raise ConfigError(f"data.side: {height}×{width} is not a multiple of the deepest stride {deepest}")
        if self.only_side and (height, width) != (self.only_side, self.only_side):
            raise ConfigError(
                f"data.side: {self.config.backbone} takes images of {self.only_side}×{self.only_side} only, got "
                f"{height}×{width}"
            )
        centring = Centring(self.cell_offset, self.config.strides)
        levels = self.body(centring.pad(_moved(self.normalise(images), *self.map_shift)))
        merged = self._merged(levels, centring)
        return levels[0], centring.crop(merged, height // stride, width // stride)

    def _merged(self, levels: list[Tensor], centring: Centring) -> Tensor:
        if not self.config.context:
            return levels[0]
        fine = self.fine(levels[0])
        merged: Tensor = self.merge(fine + centring.enlarge(self.deep(levels[1]), fine.shape[-2:]))
        return merged


def _moved(images: Tensor, right: int, down: int) -> Tensor:
    """Images moved by whole pixels; what comes in at an edge is a reflection, as in augmentation."""
    height, width = images.shape[-2:]
    reflected = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="reflect")
    top, left = max(-down, 0), max(-right, 0)
    return reflected[..., top : top + height, left : left + width]


def _measured(body: Any, config: BackboneConfig, channels: int) -> tuple[int | None, tuple[int, ...]]:
    """The only side of images that a body takes, or None, and how many pixels cells of each level look off.

    A body of one side cannot be padded: its images are moved after training, if they must be.
    """
    own_side: int = body.pretrained_cfg["input_size"][-1]
    cells = TOKENS if isinstance(body, TokenFeatures) else CELLS
    cells += 2 * (cells * max(config.strides) == own_side)  # another side, to see whether it takes one
    try:
        offsets = measure_cell_offsets(body, channels, config.strides, cells)
    except (AssertionError, RuntimeError, ValueError):
        if not body.pretrained_cfg["fixed_input_size"]:
            raise
        return own_side, (0,) * len(config.strides)
    if not all(map(math.isfinite, offsets)):
        raise ConfigError(f"concepts.model: features of {config.backbone} with these weights are no finite numbers")
    return None, tuple(map(whole_pixels, offsets, config.strides))


def _build_body(config: BackboneConfig, channels: int) -> tuple[Any, list[int], Preprocessing | None]:
    """timm's feature network (untyped), the widths of its levels, and what its weights want images normalised by."""
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise ConfigError(f"concepts.model.checkpoint: no file {config.checkpoint!r}")
    if config.pretrained and config.checkpoint is not None:
        raise ConfigError("concepts.model.checkpoint: set it to null, or concepts.model.pretrained to false")
    if config.context is not None and config.context <= config.stride:
        raise ConfigError(
            f"concepts.model.context: must be a deeper level than concepts.model.stride {config.stride}, "
            f"got {config.context}"
        )
    whole = whole_network(config.backbone, channels)
    settings = {"in_chans": channels, **network_settings(whole)}
    if is_made_of_tokens(whole):
        _check_patch(config, whole.feature_info[-1]["reduction"])
        body: Any = TokenFeatures(_made(config, num_classes=0, **settings))
        widths = [body.width]
    else:
        levels: Any = timm.create_model(config.backbone, features_only=True)
        settings |= level_settings(whole)
        body = _made(
            config, features_only=True, out_indices=_places(config, levels.feature_info.reduction()), **settings
        )
        widths = body.feature_info.channels()
    stated = load_weights(body, whole, Path(config.checkpoint)) if config.checkpoint else None
    if isinstance(config.normalisation, Preprocessing):
        return body, widths, config.normalisation
    if config.normalisation == "images" or not (config.pretrained or config.checkpoint):
        return body, widths, None
    own = whole.pretrained_cfg
    return body, widths, stated or Preprocessing(tuple(own["mean"]), tuple(own["std"]))


def _made(config: BackboneConfig, **settings: Any) -> Any:
    try:
        return timm.create_model(config.backbone, pretrained=config.pretrained, **settings)
    except (OSError, RuntimeError) as error:
        if not config.pretrained:
            raise
        raise ConfigError(
            f"concepts.model.pretrained: timm's weights of {config.backbone} cannot be had ({cause_of(error)}); "
            "without a network set it to false and concepts.model.checkpoint to a file"
        ) from None


def _check_patch(config: BackboneConfig, patch: int) -> None:
    if config.stride != patch:
        raise ConfigError(
            f"concepts.model.stride: a cell of {config.backbone} is its patch of {patch} pixels, got {config.stride}; "
            f"set it to {patch} and concepts.model.context to null"
        )
    if config.context is not None:
        raise ConfigError(
            f"concepts.model.context: {config.backbone} has no deeper level to merge, all its cells are {patch} "
            "pixels; set it to null"
        )


def _places(config: BackboneConfig, reductions: list[int]) -> tuple[int, ...]:
    """Where the levels of the wanted strides stand; of several the last."""
    for key, stride in zip(("stride", "context"), config.strides, strict=False):
        if stride not in reductions:
            offered = ", ".join(map(str, reductions))
            raise ConfigError(
                f"concepts.model.{key}: {config.backbone} has levels of stride {offered}, none of {stride}"
            )
    return tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in config.strides)
