"""A head that saw images under readers' boxes while it was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from csr.interaction.corrections import importance_map
from csr.training.callbacks import SilentCallbacks
from csr.training.head import HeadConfig, all_scores, train_head
from csr.training.interventions import boxed_scores, draw_boxes

SIDE = 64
FINDINGS = np.array([[4.0, 4, 16, 20], [40, 36, 60, 50]])
NONE = np.zeros((0, 4))


def drawn(boxes: np.ndarray, count: int = 3000):
    rng = np.random.default_rng(0)
    return [draw_boxes(boxes, SIDE, rng) for _ in range(count)]


def corners(interaction) -> list[tuple[float, ...]]:
    return [(box.x_min, box.y_min, box.x_max, box.y_max) for box in interaction.boxes]


def test_focus_boxes_lie_on_findings_beside_them_or_elsewhere_equally_often():
    focus = [each for each in drawn(FINDINGS) if each.boxes[0].kind == "focus"]
    assert len(focus) / 3000 == pytest.approx(0.5, abs=0.03)
    assert np.mean([len(each.boxes) == 2 for each in focus]) == pytest.approx(0.5, abs=0.04)
    truth = set(map(tuple, FINDINGS.tolist()))
    assert np.mean([set(corners(each)) <= truth for each in focus]) == pytest.approx(1 / 3, abs=0.04)
    sizes = {(round(right - left), round(low - top)) for each in focus for left, top, right, low in corners(each)}
    assert sizes == {(12, 16), (20, 14)}


def test_ignore_boxes_spare_the_findings_in_one_of_three():
    ignore = [each for each in drawn(FINDINGS) if each.boxes[0].kind == "ignore"]
    assert all(len(each.boxes) == 1 for each in ignore)
    truth = set(map(tuple, FINDINGS.tolist()))
    assert np.mean([corners(each)[0] in truth for each in ignore]) == pytest.approx(1 / 3, abs=0.04)


def test_an_image_without_boxes_has_something_to_ignore():
    assert {each.boxes[0].kind for each in drawn(NONE, 50)} == {"ignore"}


def test_boxed_scores_are_those_of_the_reasoner_under_the_same_boxes(tiny_run):
    data, cache, csr = tiny_run.data, tiny_run.cache, tiny_run.csr
    rows = data.collection.rows("train")[:7]
    found = boxed_scores(
        csr.reasoner, csr.prototype_model, cache, data.collection, rows, data.side, 2, np.random.default_rng(3)
    )
    assert found.shape == (7, 2, *csr.reasoner.alive.shape)
    rng, boxes = np.random.default_rng(3), data.collection.boxes_by_pair()
    own = [[found for (row, _), found in boxes.items() if row == each] for each in rows]
    said = [[draw_boxes(np.concatenate([*each, NONE]), data.side, rng) for each in own] for _ in range(2)]
    with torch.no_grad():
        patches = csr.project(cache.batch(rows, csr.place)[0])
        for view in range(2):
            weights = np.stack([importance_map(each, data.side, *patches.shape[2:]) for each in said[view]])
            expected = csr.reasoner.scores(csr.reasoner.maps(patches, torch.from_numpy(weights)))
            torch.testing.assert_close(found[:, view], expected, rtol=0, atol=1e-6)
    plain = all_scores(csr.reasoner, csr.prototype_model, cache, rows)
    assert (plain[:, None] - found).abs().max() > 1e-3


def test_a_head_that_saw_boxes_is_another_and_its_statistics_are_not(tiny_run):
    data, cache, model = tiny_run.data, tiny_run.cache, tiny_run.csr.prototype_model
    heads = {
        share: train_head(
            data.collection, cache, model, replace(HeadConfig(epochs=2), boxes=share), SilentCallbacks(), side=data.side
        ).state_dict()
        for share in (0.0, 1.0)
    }
    moved = {name for name, value in heads[0.0].items() if not torch.equal(value, heads[1.0][name])}
    assert moved == {"head.weight", "head.bias"}
