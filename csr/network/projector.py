"""The projector P: features → unit vectors that prototypes are compared with (CSR, section 3.2 and supplement).

The supplement describes three residual blocks of 1-D convolution, IBN and ReLU. Instance statistics of a lone concept
vector are degenerate, and batch statistics gathered on concept vectors do not fit patches, so here every block is
pointwise and normalised by LayerNorm over channels: it does to a lone vector exactly what it does to a patch.
Optionally the input is standardised per channel with statistics of training patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + W₂·ReLU(LN(W₁·x)) over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Projector(nn.Module):
    """…×D → …×D', L2-normalised.

    Args:
        width_in: D.
        width_out: D'.
        blocks: number of residual blocks.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width_in: int, width_out: int, blocks: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width_in))
        self.register_buffer("std", torch.ones(width_in))
        self.inlet = nn.Linear(width_in, width_out)
        self.blocks = nn.Sequential(*(ResidualBlock(width_out) for _ in range(blocks)))

    def set_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Stores per-channel statistics (D) of training patches."""
        self.mean.copy_(mean)
        # a channel that is silent in the sample must not be blown up when it wakes
        self.std.copy_(std.clamp_min(max(1e-6, 0.01 * float(std.median()))))

    def forward(self, vectors: Tensor) -> Tensor:
        standard = (vectors - self.mean) / self.std
        return F.normalize(self.blocks(self.inlet(standard)), dim=-1)

    def project_maps(self, features: Tensor) -> Tensor:
        """f B×D×h×w → v' B×D'×h×w, every patch on its own."""
        return self(features.movedim(1, -1)).movedim(-1, 1)
