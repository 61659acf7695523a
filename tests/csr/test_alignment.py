"""A map cell looks at the pixels it is drawn over, for backbones whose convolutions are centred differently."""

from __future__ import annotations

import pytest
import torch

from csr.network.concept_model import ConceptModel, ConceptModelConfig, measure_sight


def centre_of_sight(model: ConceptModel, side: int, row: int, column: int) -> tuple[float, float]:
    """Mean (x, y) of |∂f(row, column)/∂x| over random images, in pixels; pixel i covers [i, i + 1)."""
    images = torch.randn(16, 1, side, side, requires_grad=True)
    model.normalise = lambda values: values  # type: ignore[method-assign]  # uint8 has no gradient
    cell = model.features(images)[..., row, column]
    (gradient,) = torch.autograd.grad(cell.square().sum(), images)
    weight = gradient.square().sum((0, 1))
    axis = torch.arange(side) + 0.5
    return float((weight.sum(0) * axis).sum() / weight.sum()), float((weight.sum(1) * axis).sum() / weight.sum())


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [("regnetx_002", 16), ("resnet18", 16), ("resnet18", 8), ("tf_efficientnet_b0", 16), ("convnext_atto", 16)],
)
def test_a_cell_looks_at_the_middle_of_the_pixels_it_covers(backbone: str, stride: int) -> None:
    torch.manual_seed(1)
    model = ConceptModel(ConceptModelConfig(backbone, stride=stride), channels=1, concepts=2).eval()
    side = 12 * stride
    assert model.features(torch.zeros(1, 1, side, side, dtype=torch.uint8)).shape[-2:] == (12, 12)
    x, y = centre_of_sight(model, side, row=5, column=6)
    assert abs(x - 6.5 * stride) < stride / 4
    assert abs(y - 5.5 * stride) < stride / 4


def test_without_the_padding_a_symmetrically_padded_backbone_looks_half_a_cell_away() -> None:
    torch.manual_seed(1)
    model = ConceptModel(ConceptModelConfig("regnetx_002"), channels=1, concepts=2).eval()
    assert model.sight == -1
    model.sight = 0
    x, y = centre_of_sight(model, 192, row=5, column=6)
    assert 6.5 * 16 - x > 5 and 5.5 * 16 - y > 5


def test_where_cells_look_travels_with_the_weights() -> None:
    model = ConceptModel(ConceptModelConfig("regnetx_002"), channels=1, concepts=2)
    other = ConceptModel(ConceptModelConfig("regnetx_002"), channels=1, concepts=2)
    other.sight = 0
    other.load_state_dict(model.state_dict())
    assert other.sight == model.sight == -1


def test_measuring_where_cells_look_draws_no_global_random_numbers() -> None:
    model = ConceptModel(ConceptModelConfig("regnetx_002"), channels=1, concepts=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert measure_sight(model.backbone, 1, 16) == -1
    assert torch.equal(torch.rand(3), expected)
