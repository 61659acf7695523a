"""Where training has moved a concept model's maps: measured without boxes, and moved back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csr.data.prepared import PreparedSet
from csr.data.records import Collection
from csr.network.concept_model import ConceptModel, ConceptModelConfig
from csr.network.rebuild import concept_model_checkpoint, concept_model_from_checkpoint
from csr.training import alignment
from csr.training.alignment import align, concept_maps, measure_map_shift

SIDE, STRIDE = 96, 8
LABELS = np.array([[1.0], [1.0], [0.0], [np.nan]] * 10)


class Squinting(nn.Module):
    """Stands for a trained body: each cell sees the mean of a 4×4 patch, beside its middle by ``off`` pixels."""

    def __init__(self, off: tuple[int, int]) -> None:
        super().__init__()
        right, down = off
        kernel = torch.zeros(1, 1, 25, 25)
        kernel[..., 12 + down - 2 : 12 + down + 2, 12 + right - 2 : 12 + right + 2] = 1 / 16
        self.register_buffer("kernel", kernel)

    def forward(self, normal: Tensor) -> list[Tensor]:
        # output i is centred between the pixels 8i + 3 and 8i + 4
        return [F.conv2d(F.pad(normal, (8, 12, 8, 12)), self.kernel, stride=STRIDE)[..., : SIDE // 8, : SIDE // 8]]


def make_model(off: tuple[int, int]) -> ConceptModel:
    torch.manual_seed(0)
    model = ConceptModel(ConceptModelConfig("test_resnet", stride=STRIDE, context=None), channels=1, concepts=1)
    model.backbone.body, model.backbone.cell_offset = Squinting(off), (0,)
    model.to_maps = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(model.to_maps.weight)
    return model.eval()


@pytest.fixture(scope="module")
def data() -> PreparedSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (len(LABELS), 1, SIDE, SIDE)).astype(np.uint8)
    for image in images:  # a bright square, away from the edges
        x, y = rng.integers(24, SIDE - 32, 2)
        image[0, y : y + 8, x : x + 8] += 200
    studies = pd.DataFrame({"split": ["train"] * len(LABELS), "class": 0, "concept:spot": LABELS[:, 0]})
    return PreparedSet(Collection("spots", ("spot",), ("any",), studies, pd.DataFrame()), images, Path("nowhere"))


@pytest.mark.parametrize("off", [(0, 0), (5, 0), (0, -6), (-3, 4)])
def test_the_drift_is_what_was_planted_and_aligning_removes_it(data, off):
    model = make_model(off)
    assert measure_map_shift(concept_maps(model), data, LABELS) == off
    align(model, data, LABELS)
    assert model.backbone.map_shift == off
    assert measure_map_shift(concept_maps(model), data, LABELS) == (0, 0)


@pytest.mark.parametrize(("pixels", "most"), [(1, 1), (5 * SIDE**2, 5), (2**30, 20)])
def test_few_images_at_once_tell_the_same(data, monkeypatch, pixels, most):
    monkeypatch.setattr(alignment, "PIXELS", pixels)
    model, seen = make_model((-3, 4)), []

    def maps_of(images: Tensor, k: int) -> Tensor:
        seen.append(len(images))
        return concept_maps(model)(images, k)

    assert measure_map_shift(maps_of, data, LABELS) == (-3, 4)
    assert max(seen) == most and sum(seen) == 20


def test_aligning_anew_starts_from_what_the_weights_do(data):
    model = make_model((4, -2))
    model.backbone.map_shift = (-9, 9)
    align(model, data, LABELS)
    assert model.backbone.map_shift == (4, -2)


def test_an_aligned_map_peaks_where_the_square_is(data):
    model = make_model((6, -7))
    images = torch.from_numpy(data.images)
    bright = np.array([np.argwhere(image[0] > 150).mean(0) + 0.5 for image in data.images])  # y, x

    def misses() -> float:
        peak = model(images)[0][:, 0].flatten(1).argmax(1).numpy()
        cells = np.stack([peak // (SIDE // 8), peak % (SIDE // 8)], 1) * STRIDE + STRIDE / 2
        return float(np.abs(cells - bright).max())

    assert misses() > STRIDE
    align(model, data, LABELS)
    assert misses() <= STRIDE


def test_without_a_present_concept_or_a_gradient_nothing_is_moved(data):
    model = make_model((5, 5))
    assert measure_map_shift(concept_maps(model), data, np.zeros_like(LABELS)) == (0, 0)
    nn.init.zeros_(model.to_maps.weight)
    assert measure_map_shift(concept_maps(model), data, LABELS) == (0, 0)


def test_what_comes_in_at_an_edge_is_reflected(data):
    backbone = make_model((0, 0)).backbone
    seen = []

    class Body(nn.Module):
        def forward(self, normal: torch.Tensor) -> list[torch.Tensor]:
            seen.append(normal)
            return [normal]

    backbone.body = Body()
    image = torch.arange(SIDE * SIDE).remainder(251).to(torch.uint8).view(1, 1, SIDE, SIDE)
    backbone.map_shift = (2, -3)
    backbone(image)
    normal = backbone.normalise(image)
    torch.testing.assert_close(seen[0][..., : SIDE - 3, 2:], normal[..., 3:, : SIDE - 2])
    torch.testing.assert_close(seen[0][..., :-3, :2], normal[..., 3:, 1:3].flip(-1))
    torch.testing.assert_close(seen[0][..., -3:, 2:], normal[..., -4:-1, : SIDE - 2].flip(-2))


def test_drift_travels_with_a_checkpoint():
    torch.manual_seed(0)
    model = ConceptModel(ConceptModelConfig("test_resnet", stride=8, context=None), channels=1, concepts=2).eval()
    model.backbone.map_shift = (3, -1)
    again = concept_model_from_checkpoint(concept_model_checkpoint(model))
    assert again.backbone.map_shift == (3, -1)
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(again(images)[0], model(images)[0])
