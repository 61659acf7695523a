"""Stage 1: the concept model. Backbone F and a 1×1 convolution give one map a concept (CSR, section 3.1).

    f = F(x)                       B×D×h×w
    cam = conv1×1(f), no bias      B×K×h×w
    logit_k = pool_hw(cam_k)       B×K

The paper pools by the average. Log-sum-exp pooling lies between average (r → 0) and maximum (r → ∞):

    lse_r(cam_k) = (1/r) · log( (1/hw) Σ_hw exp(r · cam_k(h,w)) )        (Pinheiro & Collobert 2015, eq. 2)

It lets a concept rest on few cells, which is what puts the map's maximum on a small finding.

A map cell must also look at the pixels that it is drawn over. A stride-2 convolution with symmetric padding centres its
output i on input 2i, so after four of them cell i looks at pixel 16·i, half a cell up and left of the middle of the
pixels it is drawn over: maps then point half a cell down and right of every finding, which a finding smaller than a
cell does not forgive. Such backbones get half a stride of padding in front, and their first row and column of cells,
which look outside the image, are dropped. Backbones with TensorFlow's SAME padding look half a cell the other way;
patchify stems and average-pooled shortcuts are centred as they are. Which it is is measured when the model is built.
Not covered: several feature levels fused into one map.
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

from csr.errors import ConfigError


@dataclass(frozen=True)
class ConceptModelConfig:
    """What the concept model is made of.

    Args:
        backbone: a timm model name with ``features_only`` support.
        pretrained: timm's published weights (downloads them), or
        checkpoint: a local file of backbone weights, or neither: from scratch.
        stride: input pixels a map cell, a power of two that the backbone offers.
        pooling: ``average`` (paper) or ``lse``.
        sharpness: r of log-sum-exp pooling.
    """

    backbone: str = "regnetx_002"
    pretrained: bool = False
    checkpoint: str | None = None
    stride: int = 16
    pooling: Literal["average", "lse"] = "lse"
    sharpness: float = 5.0


class ConceptModel(nn.Module):
    """Backbone and concept maps.

    Args:
        config: architecture.
        channels: image channels, 1 or 3.
        concepts: K.

    Raises:
        ConfigError: timm does not know the backbone, or it has no level of that stride.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ConceptModelConfig, channels: int, concepts: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = _build_backbone(config, channels)
        self.width: int = self.backbone.feature_info.channels()[-1]
        self.sight = measure_sight(self.backbone, channels, config.stride)
        self.to_maps = nn.Conv2d(self.width, concepts, kernel_size=1, bias=False)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Stores the channel statistics (C, in 0..1 units) that travel with the weights."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def get_extra_state(self) -> Tensor:
        """``sight`` travels with the weights: a measurement must not be made twice."""
        return torch.tensor(self.sight)

    def set_extra_state(self, state: Tensor) -> None:
        """The inverse of `get_extra_state`."""
        self.sight = int(state)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 B×C×H×W → standardised float32."""
        return (images.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]

    def features(self, images: Tensor) -> Tensor:
        """uint8 B×C×H×W → f B×D×h×w, cell (i, j) centred on the pixels it covers."""
        normal, half = self.normalise(images), self.config.stride // 2
        if self.sight < 0:
            return self.backbone(F.pad(normal, (half, 0, half, 0)))[-1][..., 1:, 1:]
        if self.sight > 0:
            return self.backbone(F.pad(normal, (half, half, half, half)))[-1][..., :-1, :-1]
        return self.backbone(normal)[-1]

    def maps(self, features: Tensor) -> Tensor:
        """f B×D×h×w → cam B×K×h×w."""
        return self.to_maps(features)

    def pool(self, maps: Tensor) -> Tensor:
        """cam B×K×h×w → concept logits B×K."""
        return pool_maps(maps, self.config)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 B×C×H×W → (cam B×K×h×w, concept logits B×K)."""
        maps = self.maps(self.features(images))
        return maps, self.pool(maps)


def pool_maps(maps: Tensor, config: ConceptModelConfig) -> Tensor:
    """Pools …×h×w over space, in float32."""
    cells = maps.float().flatten(-2)
    if config.pooling == "average":
        return cells.mean(-1)
    r = config.sharpness
    return (torch.logsumexp(r * cells, -1) - math.log(cells.shape[-1])) / r


def measure_sight(backbone: nn.Module, channels: int, stride: int) -> int:
    """Where a backbone's cells look: −1 at their upper left corner, 0 at their middle, 1 at their lower right corner.

    Measured as the centre of mass of |∂f(middle cell)/∂x|², which is near one of the three whatever the weights are.
    The global random state is left as it was, and so are the backbone's running statistics.
    """
    cells = 12
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        images = torch.randn(8, channels, cells * stride, cells * stride, requires_grad=True)
        training = backbone.training
        features = backbone.eval()(images)[-1]
        backbone.train(training)
        middle = features.shape[-1] // 2
        (gradient,) = torch.autograd.grad(features[..., middle, middle].square().sum(), images)
    weight = gradient.square().sum((0, 1, 2))
    seen = float((weight * (torch.arange(len(weight)) + 0.5)).sum() / weight.sum())
    offset = seen / stride - (middle + 0.5)
    return -1 if offset < -0.25 else 1 if offset > 0.25 else 0


def _build_backbone(config: ConceptModelConfig, channels: int) -> Any:  # timm's FeatureListNet, untyped
    if config.checkpoint is not None and not Path(config.checkpoint).is_file():
        raise ConfigError(f"concepts.checkpoint: no file {config.checkpoint!r}")
    try:
        levels: Any = timm.create_model(config.backbone, features_only=True)
    except RuntimeError as error:
        raise ConfigError(f"concepts.backbone: {error}") from None
    reductions = levels.feature_info.reduction()
    if config.stride not in reductions:
        offered = ", ".join(map(str, reductions))
        raise ConfigError(f"concepts.stride: {config.backbone} has levels of stride {offered}, none of {config.stride}")
    overlay = {"file": config.checkpoint} if config.checkpoint else None
    return timm.create_model(
        config.backbone,
        pretrained=config.pretrained or config.checkpoint is not None,
        pretrained_cfg_overlay=overlay,
        features_only=True,
        out_indices=(reductions.index(config.stride),),
        in_chans=channels,
    )
