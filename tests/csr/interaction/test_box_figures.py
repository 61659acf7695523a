"""What boxes are good for, on a small trained model, against figures worked out one box at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csr.interaction.box_figures import MOVED, focus_figures, naming_figures
from csr.interaction.corrections import Interaction, RegionBox, importance_map
from csr.interaction.naming import BoxNaming
from csr.interaction.naming_fit import labelled_boxes


@pytest.fixture(scope="module")
def rows(tiny_run) -> np.ndarray:
    return tiny_run.data.collection.rows("test")


def test_names_are_ranked_and_doubted_box_by_box(tiny_run, rows):
    data, cache, csr = tiny_run.data, tiny_run.cache, tiny_run.csr
    count, rng = len(csr.concepts), np.random.default_rng(0)
    naming = BoxNaming(
        np.zeros(count + 2), np.ones(count + 2), rng.normal(0, 1, (count, count + 2)), rng.normal(0, 1, count), 0.08
    )
    alike = np.roll(np.arange(count), 1)
    found = naming_figures(data, cache, csr, naming, rows, alike)
    features, concepts = labelled_boxes(data, cache, csr, rows)
    likely = np.stack([naming.by_features(each) for each in features])
    orders = np.argsort(-likely, 1)
    assert found["boxes"] == len(concepts) > 20
    assert found["top1"] == pytest.approx(np.mean([k == order[0] for k, order in zip(concepts, orders, strict=True)]))
    assert found["top3"] == pytest.approx(np.mean([k in order[:3] for k, order in zip(concepts, orders, strict=True)]))
    doubted = likely < naming.doubt
    assert found["false_alarms"] == pytest.approx(np.mean([own[k] for own, k in zip(doubted, concepts, strict=True)]))
    assert found["caught_alike"] == pytest.approx(
        np.mean([own[alike[k]] for own, k in zip(doubted, concepts, strict=True)])
    )
    others = [own[j] for own, k in zip(doubted, concepts, strict=True) for j in range(count) if j != k]
    assert found["caught_any"] == pytest.approx(np.mean(others))


@torch.no_grad()
def test_focus_boxes_move_the_class_as_the_reasoner_says(tiny_run, rows):
    data, cache, csr = tiny_run.data, tiny_run.cache, tiny_run.csr
    found = focus_figures(data, cache, csr, rows, seed=0)
    boxes, truth = data.collection.boxes_by_pair(), data.collection.truth()
    changes: dict[str, list[float]] = {"matters": [], "every": []}
    for row in rows:
        own = {k: boxes[int(row), k] for k in range(len(csr.concepts)) if (int(row), k) in boxes}
        if not own:
            continue
        patches = csr.project(cache.batch(np.array([row]), csr.place)[0])
        plain = csr.reasoner(patches)
        best = max(own, key=lambda k: float(plain.contributions[0, k, truth[row]]))
        for name, where in (("matters", own[best]), ("every", np.concatenate(list(own.values())))):
            said = Interaction(tuple(RegionBox(*box) for box in where.tolist()))
            weights = importance_map(said, data.side, *patches.shape[2:])[None]
            after = csr.reasoner(patches, torch.from_numpy(weights)).probabilities
            changes[name].append(float((after - plain.probabilities)[0, truth[row]]))
    for name, own in changes.items():
        assert found[f"{name}_change"] == pytest.approx(np.mean(own), abs=1e-5)
        assert found[f"{name}_lowered"] == pytest.approx(np.mean(np.array(own) <= -MOVED), abs=0.02)
        assert found[f"{name}_raised"] == pytest.approx(np.mean(np.array(own) >= MOVED), abs=0.02)
    assert 0 <= found["random_moved"] <= 1


def test_random_boxes_are_drawn_from_the_seed(tiny_run, rows):
    data, cache, csr = tiny_run.data, tiny_run.cache, tiny_run.csr
    first, second = (focus_figures(data, cache, csr, rows, seed=3) for _ in range(2))
    assert first == second
