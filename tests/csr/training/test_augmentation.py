"""Random changes of training images never cut a labelled finding away."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from csr.data.records import BOX_COLUMNS, Collection
from csr.training.augmentation import AugmentConfig, Findings, augment, move
from tests.csr.synthetic import make_collection

SIDE = 40
WILD = AugmentConfig(rotate=30, shift=0.35, scale=0.3, brightness=0, contrast=0, flip=True)
ROW = np.array([0])


def collection_of(*boxes: tuple[str, float, float, float, float], absent: tuple[str, ...] = ()) -> Collection:
    """One study with boxes of the concepts ``spot`` and ``bar``."""
    studies = pd.DataFrame({"study_id": ["s"], "label": ["any"], "split": ["train"], "part": ["train"]})
    for name in ("spot", "bar"):
        studies[f"concept:{name}"] = 0.0 if name in absent else 1.0
    table = pd.DataFrame([("s", *box) for box in boxes], columns=list(BOX_COLUMNS))
    return Collection("toy", ("spot", "bar"), ("any",), studies, table)


def marked(*boxes: tuple[float, float, float, float]) -> torch.Tensor:
    """An image that is white in its boxes and black elsewhere."""
    image = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    for left, top, right, bottom in boxes:
        image[..., int(top) : int(bottom), int(left) : int(right)] = 255
    return image


def transform(angle: float, zoom: float, dx: float, dy: float) -> torch.Tensor:
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    return torch.tensor([[[cos, -sin, dx], [sin, cos, dy]]], dtype=torch.float32)


@pytest.mark.parametrize("seed", range(30))
def test_a_finding_is_lost_when_less_than_half_of_it_stays_in_the_picture(seed: int) -> None:
    """Against the count of white pixels in a picture of the same field, drawn without mirrored borders."""
    rng = np.random.default_rng(seed)
    left, top = rng.integers(0, SIDE - 14, 2)
    box = (float(left), float(top), float(left + 14), float(top + 9))
    moved = transform(rng.uniform(-0.6, 0.6), rng.uniform(0.7, 1.0), *rng.uniform(-0.9, 0.9, 2))
    grid = torch.nn.functional.affine_grid(moved, [1, 1, 8 * SIDE, 8 * SIDE], align_corners=False)
    seen = torch.nn.functional.grid_sample(marked(box).float(), grid, mode="nearest", align_corners=False)
    area = float((seen > 0).sum()) * float(torch.linalg.det(moved[0, :, :2])) / 64  # pixels of the image
    share = area / (14 * 9)
    if abs(share - 0.5) < 0.05:  # nearer than the points can tell
        return
    lost = Findings(collection_of(("spot", *box), absent=("bar",)), SIDE).lost(ROW, moved)
    assert lost.tolist() == [share < 0.5]


def test_no_move_cuts_a_finding_away_and_without_boxes_many_would() -> None:
    box = (32.0, 2.0, 40.0, 10.0)
    findings = Findings(collection_of(("spot", *box)), SIDE)
    images = marked(box).repeat(400, 1, 1, 1)
    torch.manual_seed(0)
    rows = np.zeros(400, int)
    kept = (augment(images, WILD, findings, rows) > 128).sum((1, 2, 3))
    torch.manual_seed(0)
    free = (augment(images, WILD) > 128).sum((1, 2, 3))
    # Half of 64 pixels, over the largest zoom out; reflection at the border may only add.
    assert kept.min() >= 32 / 1.3**2 - 6
    assert (free == 0).sum() > 20
    assert len(set(kept.tolist())) > 20  # still moved


def test_every_concept_s_finding_counts_and_one_of_several_boxes_may_go() -> None:
    shifted = transform(0, 1, 1.0, 0)  # the right half of the image
    left, right, far = (2.0, 10.0, 8.0, 16.0), (30.0, 10.0, 36.0, 16.0), (24.0, 20.0, 34.0, 30.0)
    of = lambda *boxes, **more: Findings(collection_of(*boxes, **more), SIDE).lost(ROW, shifted).tolist()  # noqa: E731
    assert of(("spot", *right)) == [False]
    assert of(("spot", *right), ("bar", *left)) == [True]
    assert of(("spot", *right), ("spot", *left), ("spot", *far)) == [False]
    assert of(("spot", *left), ("spot", *right), ("spot", 3.0, 30.0, 9.0, 36.0)) == [True]
    assert of(("spot", *left), absent=("spot",)) == [False]  # no finding, whatever the table of boxes says


def test_in_a_batch_each_image_is_judged_by_its_own_findings_and_move() -> None:
    collection = make_collection()
    findings, rng = Findings(collection, SIDE), np.random.default_rng(0)
    rows = rng.choice(len(collection.studies), 30)  # some without a finding, some twice
    moves = torch.cat([transform(*rng.uniform(-0.6, 0.6, 1), 1.0, *rng.uniform(-0.9, 0.9, 2)) for _ in rows])
    lost = findings.lost(rows, moves)
    assert 5 < lost.sum() < 25
    alone = [bool(findings.lost(rows[n : n + 1], moves[n : n + 1])) for n in range(len(rows))]
    assert lost.tolist() == alone and not findings.lost(rows[:0], moves[:0]).numel()


def test_where_nothing_is_lost_the_random_draws_are_the_same() -> None:
    images = torch.randint(0, 256, (6, 1, SIDE, SIDE), dtype=torch.uint8)
    findings = Findings(collection_of(("spot", 15, 15, 25, 25)), SIDE)
    torch.manual_seed(3)
    free = augment(images, AugmentConfig())
    torch.manual_seed(3)
    assert torch.equal(augment(images, AugmentConfig(), findings, np.zeros(6, int)), free)


def test_an_image_that_no_draw_spares_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csr.training.augmentation._draw_moves", lambda images, _: transform(0, 1, 5.0, 0))
    box = (5.0, 5.0, 9.0, 9.0)
    moved = move(marked(box), WILD, Findings(collection_of(("spot", *box)), SIDE), ROW)
    assert torch.equal(moved.round().to(torch.uint8), marked(box))


def test_mirroring_alone_changes_no_grey_value_and_draws_the_same_numbers() -> None:
    still = {"rotate": 0.0, "shift": 0.0, "scale": 0.0, "brightness": 0.0, "contrast": 0.0}
    images = torch.randint(0, 256, (40, 3, 17, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    mirrored = augment(images, AugmentConfig(**still, flip=True))
    after = torch.rand(1)
    flipped = [bool((mirrored[row] == images[row].flip(-1)).all()) for row in range(40)]
    kept = [bool((mirrored[row] == images[row]).all()) for row in range(40)]
    assert all(one != other for one, other in zip(flipped, kept, strict=True)) and 10 < sum(flipped) < 30
    torch.manual_seed(3)
    resampled = augment(images, AugmentConfig(**still | {"rotate": 1e-9}, flip=True))
    assert torch.equal(after, torch.rand(1))
    assert (resampled.int() - mirrored.int()).abs().max() <= 1
    torch.manual_seed(3)
    assert torch.equal(augment(images, AugmentConfig(**still)), images)
