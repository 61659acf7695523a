"""A map cell looks at the pixels it is drawn over, for backbones whose convolutions are centred differently."""

from __future__ import annotations

import pytest
import torch

from csr.network.backbone import Backbone, BackboneConfig
from csr.network.cell_offset import measure_cell_offsets

ONE_LEVEL = BackboneConfig("regnetx_002", stride=16, context=None)


def make_backbone(config: BackboneConfig, seed: int = 1) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(config, channels=1).eval()


def make_two_levels(name: str, levels: str) -> Backbone:
    """Strides 8 and 16, ``both`` or only the ``deep`` or the ``fine`` one switched on.

    The merging convolution gets a symmetric kernel: a random one would move what it sees by itself.
    """
    backbone = make_backbone(BackboneConfig(name, stride=8, context=16, width=32))
    blur = torch.tensor([0.25, 0.5, 0.25])
    with torch.no_grad():
        merge = backbone.merge[0].weight
        merge.copy_(merge.sum((2, 3), keepdim=True) * torch.outer(blur, blur))
        if levels != "both":
            (backbone.fine if levels == "deep" else backbone.deep).weight.zero_()
    return backbone


def centre_of_sight(backbone: Backbone, side: int, row: int, column: int) -> tuple[float, float]:
    """Mean (x, y) of |∂f(row, column)/∂x| over random images, in pixels; pixel i covers [i, i + 1)."""
    images = torch.randn(8, 1, side, side, requires_grad=True)
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
    backbone = make_two_levels(name, levels)
    assert backbone.cell_offset == cell_offset
    assert backbone(torch.zeros(1, 1, 96, 96, dtype=torch.uint8)).shape == (1, 32, 12, 12)
    for row, column in ((1, 10), (10, 1)):  # far from the middle, where a wrong enlargement is right by chance
        x, y = centre_of_sight(backbone, 96, row, column)
        assert abs(x - 8 * (column + 0.5)) < 2
        assert abs(y - 8 * (row + 0.5)) < 2


@pytest.mark.parametrize("levels", ["both", "deep"])
@pytest.mark.parametrize(("name", "cell_offset"), [("regnetx_002", (-4, -8)), ("test_convnext", (0, 0))])
def test_a_bright_dot_moves_the_features_of_the_cell_that_covers_it_most(name, cell_offset, levels):
    backbone = make_two_levels(name, levels)
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
