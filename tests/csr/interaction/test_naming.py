"""What is in this box: features by hand, a regression of made-up boxes, and what it never says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from csr.data.records import BOX_COLUMNS, Collection
from csr.interaction.corrections import RegionBox
from csr.interaction.naming import BoxNaming, box_features
from csr.interaction.naming_fit import FALSE_ALARMS, fit_naming, labelled_boxes
from csr.network.reasoner import Reasoner
from tests.csr.interaction.hand_made import CONCEPTS as SEEN
from tests.csr.interaction.hand_made import HAS_B, TRUE_A, Study, make_run
from tests.csr.synthetic import make_csr

SIDE = 96
CASES = settings(deadline=None, max_examples=60)


def naming_of(seed: int, concepts: int = 3) -> BoxNaming:
    rng = np.random.default_rng(seed)
    width = concepts + 2
    weights, bias = rng.normal(0, 3, (concepts, width)), rng.normal(0, 3, concepts)
    return BoxNaming(rng.normal(0, 1, width), rng.uniform(0.1, 2, width), weights, bias, float(rng.random()))


def boxes() -> st.SearchStrategy[RegionBox]:
    low, length = st.floats(0, SIDE - 1), st.floats(0.01, 1.5 * SIDE)
    return st.builds(lambda x, y, w, h: RegionBox(x, y, x + w, y + h), low, low, length, length)


@CASES
@given(boxes(), st.integers(0, 1000))
def test_features_are_the_largest_cells_that_the_box_touches_and_its_size(box, seed):
    maps = np.random.default_rng(seed).normal(0, 1, (3, 4, 6))
    own = box_features(maps, box, SIDE)
    for k in range(3):
        touched = [
            maps[k, i, j]
            for i, j in np.ndindex(4, 6)
            if min(box.x_max, (j + 1) * 16) - max(box.x_min, j * 16) > 1e-9 * min(16, box.x_max - box.x_min)
            and min(box.y_max, (i + 1) * 24) - max(box.y_min, i * 24) > 1e-9 * min(24, box.y_max - box.y_min)
        ]
        assert own[k] == max(touched)
    assert own[3:] == pytest.approx(np.log([(box.x_max - box.x_min) / SIDE, (box.y_max - box.y_min) / SIDE]))


def test_neither_the_kind_of_a_box_nor_its_name_matters():
    maps, corners = np.random.default_rng(0).normal(0, 1, (3, 6, 6)), (10.0, 0.0, 33.0, 16.0)
    plain = naming_of(0).probabilities(maps, RegionBox(*corners), SIDE)
    for box in (RegionBox(*corners, "ignore"), RegionBox(*corners, "finding", "a")):
        np.testing.assert_array_equal(naming_of(0).probabilities(maps, box, SIDE), plain)


@CASES
@given(boxes(), st.integers(0, 1000), st.integers(1, 6))
def test_probabilities_are_the_softmax_of_the_regression(box, seed, concepts):
    naming, maps = naming_of(seed, concepts), np.random.default_rng(seed).normal(0, 5, (concepts, 4, 6))
    likely = naming.probabilities(maps, box, SIDE)
    assert likely.sum() == pytest.approx(1) and (likely >= 0).all() and np.isfinite(likely).all()
    standard = (box_features(maps, box, SIDE) - naming.mean) / naming.scale
    logits = np.array([naming.bias[k] + float(naming.weights[k] @ standard) for k in range(concepts)])
    np.testing.assert_allclose(likely, [1 / np.exp(logits - logit).sum() for logit in logits], atol=1e-9)


def test_it_comes_back_from_plain_json_to_the_last_bit():
    naming = naming_of(7)
    text = json.dumps(naming.to_json())
    again = BoxNaming.from_json(json.loads(text))
    assert "NaN" not in text and "Infinity" not in text
    for name in ("mean", "scale", "weights", "bias"):
        np.testing.assert_array_equal(getattr(again, name), getattr(naming, name))
    assert again.doubt == naming.doubt


@pytest.mark.parametrize("part", ["mean", "scale", "weights", "bias", "doubt"])
def test_a_missing_part_is_missed_by_its_name(part):
    content = naming_of(7).to_json()
    del content[part]
    with pytest.raises(KeyError, match=part):
        BoxNaming.from_json(content)


# the fit


MISLEADING = Study("has a", {"a": (0, 0)}, [("b", 0.9, (0, 0))])  # what looks like b is called a


def boxes_of(data) -> list[tuple[int, int, RegionBox]]:
    return [
        (row, k, RegionBox(*corners))
        for (row, k), own in data.collection.boxes_by_pair().items()
        for corners in own.tolist()
    ]


def maps_of(csr, cache, row: int) -> np.ndarray:
    """K×h×w; one prototype a concept, so its map is the concept's."""
    return csr.reasoner.maps(csr.project(cache.batch(np.array([row]), csr.place)[0]))[0, :, 0].detach().numpy()


def test_on_boxes_that_can_be_told_apart_the_right_name_comes_first_and_two_concepts_are_enough():
    run = make_run([TRUE_A, HAS_B] * 12, "val")
    data, cache, csr = run
    naming = fit_naming(*run)
    assert naming is not None
    for row, k, box in boxes_of(data):
        likely = naming.probabilities(maps_of(csr, cache, row), box, data.side)
        assert likely.argmax() == k and likely[k] > 0.8 and likely.sum() == pytest.approx(1)
        assert likely[k] >= naming.doubt - 1e-9  # they are all alike, and none is doubted
    # the wrong name of the same boxes is
    assert naming.probabilities(maps_of(csr, cache, 0), boxes_of(data)[0][2], data.side)[1] < naming.doubt


def three_concepts(splits: dict[str, tuple[str, ...]], per_concept: int = 12):
    """A run whose third concept, ``c``, is what the model sees nothing of; boxes of each split's concepts."""
    studies = {"a": TRUE_A, "b": HAS_B, "c": Study("none", {}, [])}
    names = [(split, name) for split, own in splits.items() for name in own for _ in range(per_concept)]
    data, cache, csr = make_run([studies[name] for _, name in names])
    table = data.collection.studies.assign(split=[split for split, _ in names])
    table["concept:c"] = [float(name == "c") for _, name in names]
    extra = [(f"s{row}", "c", 8.0, 8, 24, 24) for row, (_, name) in enumerate(names) if name == "c"]
    own = pd.concat([data.collection.boxes, pd.DataFrame(extra, columns=list(BOX_COLUMNS))])
    collection = Collection("toy", (*SEEN, "c"), data.collection.classes, table, own)
    reasoner = Reasoner(3, 1, 3, 3, clip=True, floor="absent")
    reasoner.prototypes[:2] = csr.reasoner.prototypes
    reasoner.prototypes[2] = -torch.ones(3) / 3**0.5
    return replace(data, collection=collection), cache, make_csr(csr.prototype_model, reasoner, collection)


def test_three_concepts_are_told_apart_also_by_the_size_of_their_boxes():
    data, cache, csr = three_concepts({"val": ("a", "b", "c")})
    naming = fit_naming(data, cache, csr)
    assert naming is not None
    for row, k, box in boxes_of(data):
        likely = naming.probabilities(maps_of(csr, cache, row), box, data.side)
        assert likely.argmax() == k and likely[k] > 0.8


def test_a_concept_without_a_validation_box_is_never_guessed():
    data, cache, csr = three_concepts({"val": ("a", "c"), "train": ("b",)})
    naming = fit_naming(data, cache, csr)
    assert naming is not None
    for row, k, box in boxes_of(data):
        likely = naming.probabilities(maps_of(csr, cache, row), box, data.side)
        assert likely[1] == 0
        assert k == 1 or likely.argmax() == k


def test_only_validation_boxes_decide():
    run = make_run([TRUE_A, HAS_B] * 6 + [MISLEADING] * 30)
    run[0].collection.studies["split"] = ["val"] * 12 + ["train"] * 30
    alone = make_run([TRUE_A, HAS_B] * 6, "val")
    for name, value in fit_naming(*run).to_json().items():
        assert value == pytest.approx(np.array(fit_naming(*alone).to_json()[name])), name


@pytest.mark.parametrize(("studies", "split"), [([TRUE_A] * 6, "val"), ([TRUE_A, HAS_B] * 6, "train")])
def test_boxes_of_fewer_than_two_concepts_cannot_tell(studies, split):
    assert fit_naming(*make_run(studies, split)) is None


def test_the_boxes_of_a_set_without_any_are_none():
    data, cache, csr = make_run([Study("none", {}, [("b", 0.9, (2, 2))])] * 4, "val")
    features, concepts = labelled_boxes(data, cache, csr, np.arange(4))
    assert features.shape == (0, 4) and concepts.shape == (0,)
    assert fit_naming(data, cache, csr) is None


def test_a_share_of_the_rightly_named_boxes_is_doubted_and_wrong_names_are():
    """Noisy evidence, so that names are more or less likely; the oracle is the regression made here."""
    rng = np.random.default_rng(0)
    studies = []
    for row in range(120):
        own, other = (("a", "b"), ("b", "a"))[row % 2]
        seen = (own, rng.uniform(0.3, 0.9)) if rng.random() < 0.7 else (other, rng.uniform(0, 0.6))
        studies.append(Study(f"has {own}", {own: (0, 0)}, [(*seen, (0, 0))]))
    data, cache, csr = make_run(studies, "val")
    naming = fit_naming(data, cache, csr)
    assert naming is not None
    features, concept = labelled_boxes(data, cache, csr, data.collection.rows("val"))
    standard = (features - features.mean(0)) / features.std(0).clip(1e-6)
    expected = LogisticRegression(C=0.3, max_iter=2000).fit(standard, concept).predict_proba(standard)
    own = sorted(boxes_of(data), key=lambda each: each[0])  # a box a row
    named = np.array([naming.probabilities(maps_of(csr, cache, row), box, data.side)[k] for row, k, box in own])
    np.testing.assert_allclose(named, expected[np.arange(120), concept], atol=1e-6)
    # by regressions that have not seen the box, the first of each concept's in the first fold and so on
    regression = LogisticRegression(C=0.3, max_iter=2000)
    unseen = cross_val_predict(regression, standard, concept, cv=5, method="predict_proba")[np.arange(120), concept]
    assert naming.doubt == pytest.approx(np.quantile(unseen, FALSE_ALARMS))
    assert (named < naming.doubt).mean() == pytest.approx(FALSE_ALARMS, abs=0.02)
    assert ((1 - named) < naming.doubt).mean() > (named < naming.doubt).mean()
