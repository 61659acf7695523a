"""How far from the middle of its pixels a cell looks, and what undoes it; `csr.network.backbone` says why.

An offset δ is in pixels, to the right and down where it is above 0. It is measured for each level as the centre of
mass of |∂f(middle cell)/∂x|², of weights as they are, random ones too. A measurement differs from the next by up to an
eighth of a cell; nearer than that to what a network's padding makes of its strides of 2 it is taken as just that:
±(s−1)/2, rounded to half a cell, or 0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# a side of the images that are measured with: more than most convolutions see; fewer where each cell sees all, and an
# odd number, since the middle cell must stand in the middle there
CELLS, TOKENS = 13, 7
_IMAGES = 4


def measure_cell_offsets(body: nn.Module, channels: int, strides: tuple[int, ...], cells: int = CELLS) -> list[float]:
    """δ of each level, the average of both axes.

    The global random state is left as it was, and so are the running statistics.

    Args:
        strides: of the levels.
        cells: of the coarsest level, that the images to measure with hold on each side.
    """
    side = cells * max(strides)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        images = torch.randn(_IMAGES, channels, side, side, requires_grad=True)
        training = body.training
        levels = body.eval()(images)
        body.train(training)
        offsets = []
        for level, stride in zip(levels, strides, strict=True):
            middle = level.shape[-1] // 2
            peak = level[..., middle, middle].square().sum()
            (gradient,) = torch.autograd.grad(peak, images, retain_graph=True)
            weight = gradient.double().square().sum((0, 1))
            where = torch.arange(side) + 0.5 - stride * (middle + 0.5)
            offsets.append(float(((weight.sum(0) + weight.sum(1)) * where).sum() / (2 * weight.sum())))
    return offsets


def whole_pixels(offset: float, stride: int) -> int:
    """A measured δ in whole pixels; see the module's docstring."""
    strided = (stride - 1) / 2
    for usual, taken in ((0.0, 0), (-strided, -(stride // 2)), (strided, stride // 2)):
        if abs(offset - usual) <= stride / 8:
            return taken
    return round(offset)


class Centring:
    """Pads images and crops maps so that cell i looks at the middle of its pixels.

    Padded by ``before`` pixels, cell i + ``dropped`` looks at s·(i + dropped + ½) + δ − before = s·(i + ½).

    Args:
        offsets: δ of each level in whole pixels.
        strides: s of each level, the finest first.
    """

    def __init__(self, offsets: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.offsets, self.strides = offsets, strides
        (fine, *_), (stride, *_), deepest = offsets, strides, max(strides)
        self.symmetric = offsets == tuple(-(each // 2) for each in strides)
        self.dropped = max(0, -(fine // stride))
        self.before = fine + stride * self.dropped
        # Whole cells of the deepest level, or its padding differs from that of the images measured with. Symmetric
        # padding is the same behind images of any side, and so needs none.
        total = -(-max(self.before, stride * self.dropped) // deepest) * deepest
        self.behind = 0 if self.symmetric else total - self.before

    def pad(self, images: Tensor) -> Tensor:
        """…×H×W, normalised, with 0 around."""
        sides = (self.before, self.behind, self.before, self.behind)
        return F.pad(images, sides) if any(sides) else images

    def crop(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Maps of padded images → height×width cells."""
        first = self.dropped
        return maps[..., first : first + height, first : first + width]

    def enlarge(self, deep: Tensor, size: Any) -> Tensor:
        """A deeper level B×D×h×w at the cells of the finer one, bilinearly, wherever both look.

        Args:
            size: the finer level's height and width.
        """
        if self.symmetric:  # corners coincide, since cells look at the upper left corner of their pixels
            return F.interpolate(deep, size=size, mode="bilinear", align_corners=True)
        if self.offsets[0] == self.offsets[1]:
            return F.interpolate(deep, size=size, mode="bilinear", align_corners=False)
        rows, columns = (self._weights(fine, coarse, deep) for fine, coarse in zip(size, deep.shape[-2:], strict=True))
        return rows @ deep @ columns.T

    def _weights(self, fine: int, coarse: int, like: Tensor) -> Tensor:
        """fine×coarse: of which cells of the deeper level each of the finer one is made."""
        (offset, deep_offset), (stride, deep_stride) = self.offsets, self.strides
        seen = stride * (torch.arange(fine) + 0.5) + offset
        place = ((seen - deep_offset) / deep_stride - 0.5).clamp(0, coarse - 1)
        return (1 - (place[:, None] - torch.arange(coarse)).abs()).clamp_min(0).to(like)
