"""Readers' boxes in stage 1: the loss against a slow loop, cells that move with the image, and what maps learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from csr.data.prepared import READER_BOX_COLUMNS, PreparedSet, PreparedWriter
from csr.errors import ConfigError
from csr.interaction.corrections import RegionBox, cells_inside
from csr.network.checkpoint import write_checkpoint
from csr.network.concept_model import ConceptModelConfig, pool_maps
from csr.network.rebuild import concept_model_checkpoint
from csr.training.augmentation import AugmentConfig, Draws, draw_moves, moved
from csr.training.callbacks import SilentCallbacks
from csr.training.concepts import ConceptTrainingConfig, train_concepts
from csr.training.reader_boxes import ReaderBoxes, box_loss, region_scores
from tests.csr.synthetic import CONCEPTS, SIDE, make_collection, make_prepared

STILL = torch.eye(2, 3)[None]
NET = ConceptModelConfig("test_resnet", stride=8, context=16, width=16)
CONFIG = ConceptTrainingConfig(NET, AugmentConfig(), epochs=2, batch_size=8, precision="float32")
MODELS = [NET, replace(NET, pooling="average")]


def with_boxes(path: Path, *boxes: tuple[str, str, str | None, float, float, float, float]) -> PreparedSet:
    """A prepared set in whose studies readers drew boxes."""
    return make_prepared(path / "drawn", make_collection(), drawn=boxes)


def present(*concepts: int) -> torch.Tensor:
    found = torch.zeros(1, len(CONCEPTS), dtype=torch.bool)
    found[0, list(concepts)] = True
    return found


@pytest.mark.parametrize("config", MODELS)
def test_the_loss_is_what_a_loop_over_cells_says(config: ConceptModelConfig) -> None:
    rng = np.random.default_rng(3)
    maps = rng.normal(0, 1, (4, 3, 5, 6))
    inside, outside = rng.random((2, *maps.shape)) < 0.3
    inside[0], outside[1, 2], inside[2, 1, :], outside[3] = False, False, False, True
    expected = 0.0
    for n in range(4):
        for k in range(3):
            for region, target in ((inside[n, k], 1), (outside[n, k], 0)):
                cells = [maps[n, k, i, j] for i in range(5) for j in range(6) if region[i, j]]
                if cells and config.pooling == "average":
                    score = sum(cells) / 30
                elif cells:
                    score = math.log(sum(math.exp(config.sharpness * cell) for cell in cells) / 30) / config.sharpness
                if cells:
                    probability = 1 / (1 + math.exp(-score))
                    expected -= math.log(probability if target else 1 - probability)
    value = box_loss(*map(torch.tensor, (maps, inside, outside)), config)
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("config", MODELS)
def test_the_scores_of_two_halves_make_that_of_the_whole(config: ConceptModelConfig) -> None:
    maps = torch.randn(2, 3, 4, 4)
    half = torch.rand(2, 3, 4, 4) < 0.5
    half[..., 0, 0], half[..., 1, 1] = True, False
    one, other, whole = region_scores(maps, half, config), region_scores(maps, ~half, config), pool_maps(maps, config)
    r = config.sharpness
    together = one + other if config.pooling == "average" else torch.logaddexp(r * one, r * other) / r
    torch.testing.assert_close(together, whole)


def test_the_loss_falls_as_evidence_moves_into_the_box() -> None:
    inside = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    inside[0, 0, 1, 1] = True
    maps = torch.full((1, 1, 4, 4), -1.0, requires_grad=True)
    box_loss(maps, inside, ~inside, NET).backward()
    assert maps.grad is not None
    assert maps.grad[0, 0, 1, 1] < 0 and (maps.grad[~inside] > 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_cells_of_a_picture_that_did_not_move_are_those_that_boxes_reach_elsewhere_too(
    seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, SIDE - 8, 2)
    corners = (*low, *np.minimum(low + rng.uniform(1, 16, 2), SIDE))
    data = with_boxes(tmp_path, ("s003", "finding", CONCEPTS[1], *corners), ("s004", "ignore", None, *corners))
    reader = ReaderBoxes(data)
    inside, _ = reader.cells(np.array([3]), present(1), STILL, 4, 4)
    np.testing.assert_array_equal(inside[0, 1], cells_inside(RegionBox(*corners, "focus"), SIDE, 4, 4))
    inside, outside = reader.cells(np.array([4]), present(1), STILL, 4, 4)
    assert not inside.any(), "an ignore box says where evidence is not, and nothing else"
    for k in range(len(CONCEPTS)):
        np.testing.assert_array_equal(outside[0, k], cells_inside(RegionBox(*corners, "ignore"), SIDE, 4, 4))


def test_outside_is_clear_of_the_box_by_a_cell_and_what_is_ignored_is_no_place(tmp_path: Path) -> None:
    data = with_boxes(
        tmp_path,
        ("s003", "finding", CONCEPTS[0], 0.0, 0.0, 8.0, 8.0),
        ("s003", "focus", None, 24.0, 24.0, 32.0, 32.0),
        ("s005", "finding", CONCEPTS[0], 0.0, 0.0, 8.0, 8.0),
        ("s005", "ignore", None, 0.0, 0.0, 8.0, 8.0),
    )
    reader = ReaderBoxes(data)
    inside, outside = reader.cells(np.array([3]), present(0, 1), STILL, 4, 4)
    assert inside[0, 0].nonzero().tolist() == [[0, 0]]
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[:2, :2] = True
    torch.testing.assert_close(outside[0, 0], ~near)
    assert inside[0, 1].nonzero().tolist() == [[3, 3]], "a present concept without a finding box is where to look"
    assert not inside[0, 2].any() and not outside[0, 2].any(), "nothing was said of it"
    inside, outside = reader.cells(np.array([5]), present(0), STILL, 4, 4)
    assert not inside.any() and outside[0, 0].nonzero().tolist() == [[0, 0]]


def test_boxes_move_with_the_image(tmp_path: Path) -> None:
    """White where the box is, moved as images are: the cells of the box are those that turn white."""
    box = (6.0, 14.0, 22.0, 27.0)
    reader = ReaderBoxes(with_boxes(tmp_path, ("s003", "finding", CONCEPTS[0], *box)))
    image = torch.zeros(200, 1, SIDE, SIDE, dtype=torch.uint8)
    image[..., 14:27, 6:22] = 255
    wild = AugmentConfig(rotate=15, shift=0.15, scale=0.05, flip=True)
    moves = draw_moves(wild, None, None, Draws(200, generator=torch.Generator().manual_seed(0)))
    white = torch.nn.functional.avg_pool2d(moved(image, wild, moves), 4)[:, 0] / 255
    rows = np.full(200, 3)
    inside, outside = reader.cells(rows, present(0).expand(200, -1), moves, 8, 8)
    middle = torch.zeros(8, 8, dtype=torch.bool)
    middle[1:-1, 1:-1] = True  # pictures are mirrored at their borders, boxes end there
    assert inside[:, 0][(white > 0.6) & middle].all()
    assert not (inside[:, 0] & (white == 0)).float().mean() > 0.06, "a turned cell is taken for an upright one"
    assert not (white[outside[:, 0] & middle] > 0.02).any()


def test_maps_of_corrected_studies_peak_inside_their_boxes(tmp_path: Path) -> None:
    """A concept whose studies all have a second square, brighter than its own: the boxes tell which it is."""
    collection = make_collection(train=48)
    rows = [row for row in collection.rows("train") if collection.concept_labels()[row, 1] == 1]
    boxes = [(f"s{row:03d}", "finding", CONCEPTS[1], 8.0, 4.0, 16.0, 12.0) for row in rows]
    data = make_prepared(tmp_path / "plain", collection)
    with PreparedWriter(tmp_path / "drawn", len(data.images), 1, data.side) as writer:
        for row in range(len(data.images)):
            image = np.array(data.images[row])
            if row in rows:
                image[0, 20:28, 24:32] = 255
            writer.write_image(row, image)
        writer.write_tables(collection)
        writer.write_reader_boxes(pd.DataFrame(boxes, columns=list(READER_BOX_COLUMNS)))
    drawn = PreparedSet.open(tmp_path / "drawn")
    still = AugmentConfig(rotate=0, shift=0, scale=0, brightness=0, contrast=0)
    config = replace(CONFIG, model=replace(NET, context=None), augment=still, epochs=16, learning_rate=3e-3)
    shares = {}
    for weight in (0.0, 4.0):
        model = train_concepts(drawn, replace(config, box_weight=weight), SilentCallbacks())
        with torch.no_grad():
            maps = model(torch.from_numpy(np.array(drawn.images[np.array(rows)])))[0][:, 1]
        peaks = maps.flatten(1).argmax(1)
        shares[weight] = float((peaks == 1).logical_or(peaks == 4 + 1).float().mean())
    assert shares[0.0] < 0.2 and shares[4.0] > 0.8


def test_without_boxes_no_weight_changes_a_bit(tmp_path: Path) -> None:
    data = make_prepared(tmp_path, make_collection())
    found = [
        concept_model_checkpoint(train_concepts(data, replace(CONFIG, **keys), SilentCallbacks()))["weights"]
        for keys in ({}, {"box_weight": 0.0}, {"box_weight": 7.0, "feedback_weight": 3.0})
    ]
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("key", ["box_weight", "feedback_weight"])
def test_a_negative_weight_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"concepts\.{key}: must be 0 or more"):
        replace(CONFIG, **{key: -1.0})


def test_training_goes_on_from_a_concept_model(tmp_path: Path) -> None:
    data = make_prepared(tmp_path / "set", make_collection())
    first = train_concepts(data, CONFIG, SilentCallbacks())
    write_checkpoint(concept_model_checkpoint(first), tmp_path / "model.pt")
    still = replace(CONFIG, start=str(tmp_path / "model.pt"), epochs=1, learning_rate=1e-12)
    again = train_concepts(data, still, SilentCallbacks())
    for name, value in again.named_parameters():
        torch.testing.assert_close(value, dict(first.named_parameters())[name], atol=1e-6, rtol=0)
    assert torch.equal(again.backbone.mean, first.backbone.mean)
    with pytest.raises(ConfigError, match=r"concepts\.start: no file"):
        train_concepts(data, replace(still, start="nowhere.pt"), SilentCallbacks())
    with pytest.raises(ConfigError, match=r"has width 16, concepts\.model says 8"):
        train_concepts(data, replace(still, model=replace(NET, width=8)), SilentCallbacks())
    with pytest.raises(ValueError, match=r"concepts\.start: these weights would replace"):
        replace(still, model=replace(NET, pretrained=True))
