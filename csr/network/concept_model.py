"""Stage 1, the concept model: backbone F and a 1×1 convolution that gives one map a concept (CSR, section 3.1).

    f = F(x)                       B×D×h×w
    cam = conv1×1(f), no bias      B×K×h×w
    logit_k = pool_hw(cam_k)       B×K

The paper pools by the average. Log-sum-exp pooling lies between average (r → 0) and maximum (r → ∞):

    lse_r(cam_k) = (1/r) · log( (1/hw) Σ_hw exp(r · cam_k(h,w)) )        (Pinheiro & Collobert 2015, eq. 2)

It lets a concept rest on few cells, which is what puts the map's maximum on a small finding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from csr.network.backbone import Backbone, BackboneConfig

Pooling = Literal["average", "lse"]


@dataclass(frozen=True)
class ConceptModelConfig(BackboneConfig):
    """What the concept model is made of.

    Args:
        pooling: ``average`` (paper) or ``lse``.
        sharpness: r of log-sum-exp pooling.
    """

    pooling: Pooling = "lse"
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

    def __init__(self, config: ConceptModelConfig, channels: int, concepts: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, channels)
        self.to_maps = nn.Conv2d(self.backbone.width, concepts, kernel_size=1, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """uint8 B×C×H×W → f B×D×h×w."""
        return self.backbone(images)

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
