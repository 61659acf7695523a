"""Where a trained system's map cells look, and the correction of what training has moved.

Stage 1's loss pools the maps over space, so it is the same wherever in a map the evidence stands: nothing keeps a cell
looking at the pixels that it is drawn over, and random weights end a few pixels to one side, a direction and distance
of the seed's own. On a map of stride 8 such a shift of 7 pixels moves every maximum off a finding of 12: on the
phantom's validation split it cost up to 14 points of the pointing game, and most of its variation between seeds.

The shift can be seen without any box: the gradient of a map's peak with respect to the image says which pixels the peak
rests on (Simonyan et al. 2014, arXiv 1312.6034, section 3). Its median offset from the middle of the peak's cell is the
shift, and `csr.network.backbone.Backbone` moves images by it. What is looked at are training images and their image
labels: the concepts' for maps of concepts, the classes' for maps of classes and of a rival's prototypes, which know no
concept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from csr.data.prepared import PreparedSet
from csr.network.backbone import Backbone
from csr.network.concept_model import ConceptModel
from csr.training.runtime import device

EXAMPLES = 24  # training images a concept or class
PIXELS = 2**20  # that a gradient is taken of at once, so that memory does not grow with the side

# images B×C×S×S (float32, 0..255, with a gradient), the column of labels that they are examples of → a map each B×h×w
MapsOf = Callable[[Tensor, int], Tensor]


def align(model: ConceptModel, data: PreparedSet, labels: np.ndarray) -> None:
    """Measures the shift of a trained model's maps and sets ``model.backbone.map_shift``; see `measure_map_shift`."""
    align_maps(model.to(device()), model.backbone, concept_maps(model), data, labels)


def align_maps(model: nn.Module, backbone: Backbone, maps_of: MapsOf, data: PreparedSet, labels: np.ndarray) -> None:
    """The same for any trained model that draws maps with a backbone of its own.

    Args:
        model: what holds the backbone, for evaluation from now on.
        maps_of: see `measure_map_shift`.
    """
    model.eval()
    backbone.map_shift = (0, 0)
    backbone.map_shift = measure_map_shift(maps_of, data, labels)


def concept_maps(model: ConceptModel) -> MapsOf:
    """What `measure_map_shift` looks at in a concept model: the map of the concept that an image is an example of."""
    return lambda images, k: model(images)[0][:, k]


def measure_map_shift(maps_of: MapsOf, data: PreparedSet, labels: np.ndarray) -> tuple[int, int]:
    """How many pixels right (x) and down (y) of their middle cells look, beyond the backbone's ``map_shift``.

    The median over |∂ peak / ∂ pixel|², each image's summing to 1, of `EXAMPLES` evenly spaced training images of each
    column of labels.

    Args:
        maps_of: images and the column that they are examples of → their maps, in evaluation mode.
        labels: N×K of 1, 0 or NaN.
    """
    train = data.collection.rows("train")
    across, down = np.zeros(2 * data.side), np.zeros(2 * data.side)
    for k in range(labels.shape[1]):
        present = train[labels[train, k] == 1]
        examples = np.unique(present[np.linspace(0, len(present) - 1, min(EXAMPLES, len(present))).astype(int)])
        at_once = max(1, PIXELS // data.side**2)
        for start in range(0, len(examples), at_once):
            chosen = examples[start : start + at_once]
            images = torch.from_numpy(np.ascontiguousarray(data.images[chosen])).to(device())
            energy, middles = _peak_energy(maps_of, images, k)
            for weight, (x, y) in zip(energy, middles, strict=True):
                across[data.side - x : 2 * data.side - x] += weight.sum(0)
                down[data.side - y : 2 * data.side - y] += weight.sum(1)
    return round(_median(across)), round(_median(down))


def _peak_energy(maps_of: MapsOf, images: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """|∂ peak of each map / ∂ pixel|² B×S×S, each summing to 1, and the middles B×2 (x, y) of the peaks' cells."""
    with torch.enable_grad():
        pixels = images.float().requires_grad_(True)
        cells = maps_of(pixels, k).flatten(1)
        (gradient,) = torch.autograd.grad(cells.amax(1).sum(), pixels)
    energy = gradient.square().sum(1).double()
    energy /= energy.sum((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    count = round(cells.shape[1] ** 0.5)
    stride, peak = images.shape[-1] // count, cells.argmax(1)
    middles = torch.stack([peak % count, peak // count], 1) * stride + stride // 2
    return energy.cpu().numpy(), middles.cpu().numpy()


def _median(weights: np.ndarray) -> float:
    """The median offset, where bin i of 2S covers the offsets from i − S to i − S + 1; 0 if there is no weight."""
    total = np.concatenate([[0.0], weights.cumsum()])
    return float(np.interp(total[-1] / 2, total, np.arange(len(total)) - len(weights) / 2)) if total[-1] else 0.0
