"""A map cell looks at the pixels it is drawn over, for backbones whose convolutions are centred differently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from csr.network.backbone import Backbone, BackboneConfig
from csr.network.cell_offset import Centring, measure_cell_offsets, whole_pixels
from csr.network.pypi_weights import convert

ONE_LEVEL = BackboneConfig("regnetx_002", stride=16, context=None)


def make_backbone(config: BackboneConfig, seed: int = 1) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(config, channels=1).eval()


def make_two_levels(config: BackboneConfig, levels: str) -> Backbone:
    """Strides 8 and 16, ``both`` or only the ``deep`` or the ``fine`` one switched on.

    The merging convolution gets a symmetric kernel: a random one would move what it sees by itself.
    """
    backbone = make_backbone(config)
    blur = torch.tensor([0.25, 0.5, 0.25])
    with torch.no_grad():
        merge = backbone.merge[0].weight
        merge.copy_(merge.sum((2, 3), keepdim=True) * torch.outer(blur, blur))
        if levels != "both":
            (backbone.fine if levels == "deep" else backbone.deep).weight.zero_()
    return backbone


def centre_of_sight(backbone: Backbone, side: int, row: int, column: int) -> tuple[float, float]:
    """Mean (x, y) of |∂f(row, column)/∂x| over random images, in pixels; pixel i covers [i, i + 1)."""
    images = torch.randn(8, backbone.mean.numel(), side, side, requires_grad=True)
    backbone.normalise = lambda values: values  # type: ignore[method-assign]  # uint8 has no gradient
    cell = backbone(images)[..., row, column]
    (gradient,) = torch.autograd.grad(cell.square().sum(), images)
    weight = gradient.square().sum((0, 1))
    axis = torch.arange(side) + 0.5
    return float((weight.sum(0) * axis).sum() / weight.sum()), float((weight.sum(1) * axis).sum() / weight.sum())


@pytest.mark.parametrize(
    ("name", "stride"),
    [("regnetx_002", 16), ("resnet18", 16), ("resnet18", 8), ("tf_efficientnet_lite0", 16), ("convnext_atto", 16)],
)
def test_a_cell_looks_at_the_middle_of_the_pixels_it_covers(name, stride):
    backbone = make_backbone(BackboneConfig(name, stride=stride, context=None))
    side = 12 * stride
    assert backbone(torch.zeros(1, 1, side, side, dtype=torch.uint8)).shape[-2:] == (12, 12)
    x, y = centre_of_sight(backbone, side, row=5, column=6)
    assert abs(x - 6.5 * stride) < stride / 4
    assert abs(y - 5.5 * stride) < stride / 4


@pytest.mark.parametrize("levels", ["both", "deep", "fine"])
@pytest.mark.parametrize(("name", "cell_offset"), [("regnetx_002", (-4, -8)), ("convnext_atto", (0, 0))])
def test_each_of_two_merged_levels_looks_at_the_middle_of_the_pixels_of_a_cell(name, cell_offset, levels):
    backbone = make_two_levels(BackboneConfig(name, stride=8, context=16, width=32), levels)
    assert backbone.cell_offset == cell_offset
    assert backbone(torch.zeros(1, 1, 96, 96, dtype=torch.uint8)).shape == (1, 32, 12, 12)
    for row, column in ((1, 10), (10, 1)):  # far from the middle, where a wrong enlargement is right by chance
        x, y = centre_of_sight(backbone, 96, row, column)
        assert abs(x - 8 * (column + 0.5)) < 2
        assert abs(y - 8 * (row + 0.5)) < 2


@pytest.mark.parametrize("levels", ["both", "deep"])
@pytest.mark.parametrize(("name", "cell_offset"), [("regnetx_002", (-4, -8)), ("test_convnext", (0, 0))])
def test_a_bright_dot_moves_the_features_of_the_cell_that_covers_it_most(name, cell_offset, levels):
    backbone = make_two_levels(BackboneConfig(name, stride=8, context=16, width=32), levels)
    assert backbone.cell_offset == cell_offset
    with torch.no_grad():
        for parameter_name, parameter in backbone.body.named_parameters():
            if parameter.ndim == 1 and not parameter_name.endswith("bias"):
                parameter.fill_(1)  # residual branches start switched off
        cells = [(row, column) for row in range(3, 9) for column in range(3, 9)]
        plain = torch.randint(0, 255, (1, 1, 96, 96), dtype=torch.uint8)
        dotted = plain.repeat(len(cells), 1, 1, 1)
        for image, (row, column) in zip(dotted, cells, strict=True):
            image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
        change = (backbone(dotted) - backbone(plain)).square().sum(1)
    around = torch.zeros(7, 7)  # mean change, seen from the dot's own cell in the middle
    for image, (row, column) in zip(change, cells, strict=True):
        around += image[row - 3 : row + 4, column - 3 : column + 4] / image.sum()
    assert divmod(int(around.argmax()), 7) == (3, 3)


def test_without_the_padding_a_symmetrically_padded_backbone_looks_half_a_cell_away():
    backbone = make_backbone(ONE_LEVEL)
    assert backbone.cell_offset == (-8,)
    backbone.cell_offset = (0,)
    x, y = centre_of_sight(backbone, 192, row=5, column=6)
    assert 6.5 * 16 - x > 5 and 5.5 * 16 - y > 5


def test_where_cells_look_travels_with_the_weights():
    backbone, other = make_backbone(ONE_LEVEL), make_backbone(ONE_LEVEL)
    other.cell_offset = (0,)
    other.load_state_dict(backbone.state_dict())
    assert other.cell_offset == backbone.cell_offset == (-8,)


def test_measuring_where_cells_look_draws_no_global_random_numbers_and_leaves_the_mode():
    body = make_backbone(ONE_LEVEL).body.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert abs(measure_cell_offsets(body, 1, (16,))[0] + 7.5) < 1
    assert torch.equal(torch.rand(3), expected)
    assert body.training


# any offset


class Sampling(nn.Module):
    """Levels whose cell i is the pixel in the middle of its pixels, moved by the level's offset; 0 outside."""

    def __init__(self, offsets: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.offsets, self.strides = offsets, strides

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.level(images, *each) for each in zip(self.offsets, self.strides, strict=True)]

    def level(self, images: Tensor, offset: int, stride: int) -> Tensor:
        for axis in (-2, -1):
            side = images.shape[axis]
            seen = torch.arange(-(-side // stride)) * stride + stride // 2 + offset
            inside = ((seen >= 0) & (seen < side)).to(images).reshape(-1, *(1,) * (-axis - 1))
            images = images.index_select(axis, seen.clamp(0, side - 1)) * inside
        return images


@settings(deadline=None, max_examples=60)
@given(st.integers(-20, 20), st.integers(-20, 20), st.sampled_from([(8, 16), (4, 16), (8, 32)]))
def test_levels_that_look_anywhere_are_brought_back_to_the_middle_of_each_cell(fine, deep, strides):
    """A ramp of grey is its own coordinate: each cell must give that of its middle, whatever the levels look at."""
    stride, side = strides[0], 8 * strides[1]
    ramp = torch.arange(side).float()
    centring = Centring((fine, deep), strides)
    levels = Sampling((fine, deep), strides)(centring.pad((ramp[:, None] + 1000 * ramp)[None, None]))
    cells = side // stride
    enlarged = centring.enlarge(levels[1], levels[0].shape[-2:])
    middle = torch.arange(cells) * stride + stride // 2
    expected = middle[:, None] + 1000 * middle
    edge = 40 // stride + 1  # cells that may have looked at the padding, or between it and the image
    inner = slice(edge + strides[1] // stride, -edge - strides[1] // stride)
    for maps in (levels[0], enlarged):
        found = centring.crop(maps, cells, cells)[0, 0]
        assert found.shape == (cells, cells)
        torch.testing.assert_close(found[inner, inner], expected[inner, inner].float(), atol=0.6, rtol=1e-4)


@pytest.mark.parametrize("offsets", [(-3, 5), (0, 0), (6, -11), (-4, -8), (9, 0)])
def test_the_offset_of_each_level_is_measured(offsets):
    found = measure_cell_offsets(Sampling(offsets, (8, 16)), 1, (8, 16))
    np.testing.assert_allclose(found, np.array(offsets) + 0.5, atol=1e-6)  # a pixel's middle


def test_a_measured_offset_is_rounded_to_a_pixel_or_taken_as_what_strides_of_2_make():
    assert [whole_pixels(offset, 8) for offset in (-4.4, -3.5, -2.6, 0.9, -0.9, 3.1, 4.4)] == [-4, -4, -4, 0, 0, 4, 4]
    assert [whole_pixels(offset, 8) for offset in (-6.7, -2.3, -1.2, 1.6, 2.4, 5.1, 12.2)] == [-7, -2, -1, 2, 2, 5, 12]
    assert [whole_pixels(offset, 16) for offset in (-8.5, 2.4, 7.5, -12.4)] == [-8, 2, 8, -12]


@pytest.mark.parametrize(
    ("state", "offsets"), [([-1, 2, -3], (-4, -8)), ([0, 2, -3], (0, 0)), ([0, 2, -3, 0, 2], (0, 2))]
)
def test_offsets_of_both_forms_are_kept_as_they_came(state, offsets):
    """Checkpoints of earlier versions hold half a cell to one side, or none, for all levels."""
    backbone = make_backbone(BackboneConfig("test_resnet", stride=8, context=16))
    backbone.set_extra_state(torch.tensor(state))
    assert backbone.cell_offset == offsets and backbone.map_shift == (2, -3)
    assert backbone.get_extra_state().tolist() == state


def test_one_level_of_any_offset_travels_too():
    backbone = make_backbone(ONE_LEVEL)
    backbone.cell_offset = (-5,)
    other = make_backbone(ONE_LEVEL)
    other.load_state_dict(backbone.state_dict())
    assert other.cell_offset == (-5,)


@pytest.mark.parametrize("levels", ["deep", "fine"])
@pytest.mark.parametrize("trained", [True, False])
def test_two_levels_of_tensorflows_padding_look_at_the_middle_of_each_cell(trained, levels, tmp_path_factory):
    """Random, EfficientNet-Lite looks where its padding says, trained elsewhere: it is measured as it is."""
    file = convert("efficientnet_lite0", tmp_path_factory.mktemp("weights"))[0] if trained else None
    config = BackboneConfig("tf_efficientnet_lite0", checkpoint=file and str(file), stride=8, context=16, width=32)
    backbone = make_two_levels(config, levels)
    fine, deep = backbone.cell_offset
    assert (abs(fine) <= 1 and abs(deep) <= 3) if trained else (2 <= fine <= 5 and 5 <= deep <= 10)
    assert backbone(torch.zeros(1, 1, 192, 192, dtype=torch.uint8)).shape == (1, 32, 24, 24)
    seen = [np.subtract(centre_of_sight(backbone, 192, at, at), 8 * (at + 0.5)) for at in (9, 12, 15)]
    assert np.abs(np.mean(seen)) < 2
