"""The input guard: how unlike the training images an image is, computed beside the patches in the encoder's graph.

Six small descriptions e of an image are looked at, the *parts* of `csr.bundle.profile.PARTS`: pooled features at two
depths, a thumbnail, its difference from its mirror image, the spread of the grey values, and how much detail there is
at four sizes. Of each

    d² = (e − μ)ᵀ Σ⁻¹ (e − μ) / dim(e)                      (Mahalanobis distance; Lee et al. 2018, arXiv 1807.03888)
    score = (∛d² − a) / b

with μ and Σ of the training images (`csr.training.guard`). The cube root of a χ² is about normal (Wilson and Hilferty
1931); a and b are such that a score of 1 is the limit for every part. No image that is wrong is needed to fit it. Two
depths see different things: the finer one what the pixels are made of, the deeper one what the network takes them for.
Of the difference from the mirror image only the one direction is looked at in which training images and their mirror
images are furthest apart, w = Σ⁻¹μ (Fisher 1936): bodies differ more from one another than left from right.
Mahalanobis distances at several depths were the best of the simple scores on radiographs in Wollek et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.bundle.profile import GREY_EDGES, PARTS, Part
from csr.network.trained import Encoder

THUMBNAIL = 16  # cells a side
DETAIL_SIZES = (1, 2, 4, 8)  # pixels averaged before detail is looked for
_FLOOR = 1e-3  # of the detail: below a grey level it says nothing
_SMOOTH_SIZES = DETAIL_SIZES[:2]
_SMOOTH = 3.6 / 255  # no multiple of a quarter of a grey level: rounding must not decide
_LAPLACIAN = 3  # cells a side that it looks at


class Descriptions(nn.Module):
    """Image and features → the description of each part.

    Args:
        side: S of the images.
    """

    pool: Tensor
    edges: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        self.register_buffer("pool", averaging(side, THUMBNAIL))
        self.register_buffer("edges", torch.tensor(GREY_EDGES))
        self.sizes = tuple(size for size in DETAIL_SIZES if side // size >= _LAPLACIAN)

    def forward(self, images: Tensor, fine: Tensor, patches: Tensor) -> dict[Part, Tensor]:
        """Args:
            images: uint8 B×C×S×S.
            fine: the backbone's finest level, B×D×h×w; see `csr.network.backbone.Backbone.depths`.
            patches: v' B×D'×h×w.

        Returns:
            B×dim by part, in the order of `csr.bundle.profile.PARTS`.
        """
        grey = images.float() / 255
        mean = grey.mean(1, keepdim=True) if grey.shape[1] > 1 else grey
        thumbnail = self.pool @ mean @ self.pool.T
        left, right = thumbnail[..., : THUMBNAIL // 2], thumbnail.flip(-1)[..., : THUMBNAIL // 2]
        described: dict[Part, Tensor] = {
            "texture": fine.float().mean((2, 3)),
            "content": patches.float().mean((2, 3)),
            "layout": thumbnail.flatten(1),
            "handedness": (left - right).flatten(1),
            "grey_levels": self._grey_levels(grey),
            "detail": self._detail(mean),
        }
        return {part: described[part] for part in PARTS}

    def _grey_levels(self, grey: Tensor) -> Tensor:
        """The share of each channel's pixels up to each edge; of channels that can differ also by how much they do.

        Of every second pixel in both directions, a quarter of all, which say as much in a quarter of the time.
        """
        seen = grey[..., ::2, ::2]
        below = [(seen <= edge).float().mean((2, 3)) for edge in self.edges]
        if seen.shape[1] > 1:
            below.append((seen[:, 1:] - seen[:, :-1]).abs().mean((2, 3)))
        return torch.cat(below, 1)

    def _detail(self, mean: Tensor) -> Tensor:
        """Of the picture averaged over size×size pixels the log of the mean |Laplacian|, and of the smallest sizes also
        that of the share of places where it is next to nothing, which compression makes more of."""
        found, smaller, inner = [], mean, slice(1, -1)
        for size in self.sizes:
            smaller = F.avg_pool2d(smaller, 2) if size > 1 else smaller  # of the size before: each is twice the last
            # a convolution with one channel would take longer
            across = smaller[..., inner, 2:] + smaller[..., inner, :-2]
            around = smaller[..., 2:, inner] + smaller[..., :-2, inner] + across
            steep = (around - 4 * smaller[..., inner, inner]).abs()
            found.append(torch.log(steep.mean((2, 3)) + _FLOOR))
            if size in _SMOOTH_SIZES:
                found.append(torch.log((steep < _SMOOTH).float().mean((2, 3)) + _FLOOR))
        return torch.cat(found, 1)


class Distance(nn.Module):
    """The score of one part; see the module's docstring.

    Args:
        width: dim(e).
        directions: rows of ``whiten``, which is W with WᵀW = Σ⁻¹, or some directions of unit variance only.
    """

    centre: Tensor
    whiten: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, width: int, directions: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("whiten", torch.eye(directions, width))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, described: Tensor) -> Tensor:
        """B×dim → B."""
        white = (described - self.centre) @ self.whiten.T
        return (white.square().mean(1) ** (1 / 3) - self.shift) / self.scale


class InputGuard(nn.Module):
    """Image and features → one score a part; above `csr.bundle.profile.LIMIT` it is unlike the training images.

    Args:
        describe: what is looked at.
        distances: how far that is from the training images, by part.
    """

    def __init__(self, describe: Descriptions, distances: Mapping[Part, Distance]) -> None:
        super().__init__()
        self.describe = describe
        self.distances = nn.ModuleDict({part: distances[part] for part in PARTS})

    def forward(self, images: Tensor, fine: Tensor, patches: Tensor) -> Tensor:
        """See `Descriptions.forward`; B×R scores in the order of `csr.bundle.profile.PARTS`."""
        described = self.describe(images, fine, patches)
        return torch.stack([self.distances[part](described[part]) for part in PARTS], 1)


class GuardedEncoder(nn.Module):
    """uint8 B×C×S×S → (v' B×D'×h×w, scores B×R); the encoder and its guard in one graph."""

    def __init__(self, encoder: Encoder, guard: InputGuard) -> None:
        super().__init__()
        self.encoder = encoder
        self.guard = guard

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine, patches = self.encoder.depths(images)
        return patches, self.guard(images, fine, patches)


def averaging(side: int, cells: int) -> Tensor:
    """cells×side: each row averages side/cells pixels, those at its ends by the part that belongs to it."""
    ends = torch.arange(cells + 1) * (side / cells)
    pixels = torch.arange(side)
    inside = (torch.minimum(ends[1:, None], pixels + 1) - torch.maximum(ends[:-1, None], pixels)).clamp_min(0)
    return inside * (cells / side)
