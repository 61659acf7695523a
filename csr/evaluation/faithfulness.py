"""Does a map show what the score rests on? Deletion and insertion (Petsiuk et al. 2018, RISE, arXiv 1806.07421).

    deletion    the cells of an image are taken away, those of the largest map values first: the sooner the score falls,
                the smaller the area under its curve, the better
    insertion   they are put back into an image without any, in the same order: the larger the area, the better

What is taken away is replaced by the blurred image, in both (RISE: grey in deletion): a grey hole in a radiograph is a
finding of its own. Cells are taken whole, so an order may be coarse but is never of one kind with less pixels than of
another. An area says little alone: it depends on how much of the image the score needs and on what blurring leaves of
it. So it stands beside those of orders that know nothing of the model: random, and from the middle outwards.

Exemplars make another promise: what looks like this raises the score. `pasted` and `wiped` make the images to test it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the cells; dense where findings are as large
BLUR = 1 / 12  # σ as a share of the image's side: nothing of a finding of a quarter of the side is left

Score = Callable[[Tensor], np.ndarray]


def blurred(images: Tensor, share: float = BLUR) -> Tensor:
    """uint8 B×C×S×S → the same, blurred by a Gaussian of σ = share·S, mirrored at the edges."""
    sigma = share * images.shape[-1]
    reach = min(math.ceil(3 * sigma), images.shape[-1] - 1)
    steps = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()
    flat = F.pad(images.float().flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
    flat = F.conv2d(F.conv2d(flat, kernel[None, None, None]), kernel[None, None, :, None])
    return flat.reshape(images.shape).round().to(torch.uint8)


def map_ranks(maps: np.ndarray) -> np.ndarray:
    """B×h×w → B×h×w, 0 for the cell that is taken first, that of the largest value; equal ones in reading order."""
    flat = maps.reshape(len(maps), -1)
    return np.argsort(np.argsort(-flat, axis=1, kind="stable"), axis=1).reshape(maps.shape)


def random_ranks(count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """B×h×w, another random order for each image."""
    return map_ranks(rng.random((count, height, width)))


def centre_ranks(count: int, height: int, width: int) -> np.ndarray:
    """B×h×w, from the middle of the image outwards."""
    down, across = np.mgrid[:height, :width]
    distance = np.hypot((down + 0.5) / height - 0.5, (across + 0.5) / width - 0.5)
    return map_ranks(np.repeat(-distance[None], count, 0))


def first_cells(ranks: np.ndarray, share: float, side: int) -> np.ndarray:
    """B×S×S bool, the pixels of the cells that come first in an order B×h×w: a share of them, rounded."""
    chosen = ranks < round(share * ranks[0].size)
    rows = np.arange(side) * ranks.shape[1] // side
    columns = np.arange(side) * ranks.shape[2] // side
    return chosen[:, rows][:, :, columns]


def removal_curves(
    images: Tensor,
    baseline: Tensor,
    ranks: np.ndarray,
    score: Score,
    insertion: bool,
    shares: Sequence[float] = SHARES,
    ends: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """What a score becomes as cells are taken away, or put back.

    Args:
        images: uint8 B×C×S×S.
        baseline: of the same shape, what stands in the place of what is taken away.
        ranks: B×h×w, the order in which cells go, or come.
        score: images → B×J values.
        insertion: start from the baseline.
        shares: of the cells, ascending from 0 to 1.
        ends: the scores of the images and of the baseline, which are those of every order; None: they are computed.

    Returns:
        B×len(shares)×J.
    """
    whole, nothing = ends or (score(images), score(baseline))
    before, after = (baseline, images) if insertion else (images, baseline)
    curves = [nothing if insertion else whole]
    for share in shares[1:-1]:
        mask = torch.from_numpy(first_cells(ranks, share, images.shape[-1])).to(images.device)
        curves.append(score(torch.where(mask[:, None], after, before)))
    return np.stack([*curves, whole if insertion else nothing], 1)


def area(curves: np.ndarray, shares: Sequence[float] = SHARES) -> np.ndarray:
    """The area under …×len(shares) curves by trapezoids, over their range: the score in the mean."""
    x = np.asarray(shares, np.float64)
    return np.trapezoid(curves, x, axis=-1) / (x[-1] - x[0])


def pasted(images: Tensor, crops: Tensor, corners: np.ndarray) -> Tensor:
    """B images with a B×C×c×c crop each, at corners B×2 (left, top)."""
    changed, side = images.clone(), crops.shape[-1]
    for image, crop, (left, top) in zip(changed, crops, corners.tolist(), strict=True):
        image[:, top : top + side, left : left + side] = crop
    return changed


def wiped(images: Tensor, baseline: Tensor, corners: np.ndarray, side: int) -> Tensor:
    """B images with a square at corners B×2 (left, top) replaced by what the baseline shows there."""
    crops = [
        plain[:, top : top + side, left : left + side]
        for plain, (left, top) in zip(baseline, corners.tolist(), strict=True)
    ]
    return pasted(images, torch.stack(crops), corners)


def square_around(points: np.ndarray, side: int, size: int) -> np.ndarray:
    """B×2 corners (left, top) of squares of a size around points (x, y), moved inside a side×side image."""
    return np.clip(np.rint(points - size / 2), 0, side - size).astype(int)
