"""Intervention curves on a model small enough to work out by hand: one prototype a concept, one class a concept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from csr.data.records import BOX_COLUMNS, Collection
from csr.interaction.curves import InterventionConfig, intervention_curves
from csr.network.prototypes import PrototypeModel
from csr.network.reasoner import Reasoner
from csr.training.features import FeatureCache
from tests.csr.synthetic import make_csr, without_images

SIDE, CELLS = 32, 4
CONCEPTS, CLASSES = ("a", "b"), ("none", "has a", "has b")


@dataclass
class Study:
    """Present concepts, and per concept what the model sees where: similarity and cell (row, column)."""

    label: str
    present: dict[str, tuple[int, int]]
    seen: list[tuple[str, float, tuple[int, int]]]


TRUE_A = Study("has a", {"a": (0, 0)}, [("a", 0.8, (0, 0))])
FALSE_B = Study("has a", {"a": (0, 0)}, [("a", 0.8, (0, 0)), ("b", 0.9, (3, 3))])  # wrong until b is gone
FALSE_ONLY = Study("none", {}, [("b", 0.9, (2, 2))])
MISSED_A = Study("has a", {"a": (0, 0)}, [("a", 0.42, (0, 0)), ("a", 0.45, (2, 3)), ("b", 0.49, (3, 3))])
HAS_B = Study("has b", {"b": (1, 1)}, [("b", 0.9, (1, 1))])


def make_run(studies: list[Study], split: str = "test", part: str | None = None, alpha: float = 0.2):
    """A collection, its features, and a model whose patches are unit vectors: a, b and 'nothing'."""
    rows = pd.DataFrame(
        {
            "study_id": [f"s{index}" for index in range(len(studies))],
            "split": split,
            "part": part or split,
            "label": [study.label for study in studies],
            **{f"concept:{name}": [float(name in study.present) for study in studies] for name in CONCEPTS},
        }
    )
    cell = SIDE // CELLS
    boxes = [
        (f"s{index}", name, column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
        for index, study in enumerate(studies)
        for name, (row, column) in study.present.items()
    ]
    collection = Collection("toy", CONCEPTS, CLASSES, rows, pd.DataFrame(boxes, columns=list(BOX_COLUMNS)))
    patches = np.zeros((len(studies), 3, CELLS, CELLS), np.float16)
    patches[:, 2] = 1
    for index, study in enumerate(studies):
        for name, similarity, (row, column) in study.seen:
            patches[index, :, row, column] = 0
            patches[index, CONCEPTS.index(name), row, column] = similarity
            patches[index, 2, row, column] = (1 - similarity**2) ** 0.5
    cache = FeatureCache(patches, np.zeros((len(studies), 2, CELLS, CELLS), np.float32))
    model = PrototypeModel(features=3, concepts=2, per_concept=1, width=3, blocks=0)
    with torch.no_grad():
        model.projector.inlet.weight.copy_(torch.eye(3))
        model.projector.inlet.bias.zero_()
    reasoner = Reasoner(2, 1, 3, 3, clip=True, floor="absent")
    with torch.no_grad():
        reasoner.prototypes.copy_(torch.eye(3)[:2, None])
        reasoner.absent_scores.fill_(0.1)
        reasoner.concept_scale.fill_(20.0)
        reasoner.concept_shift.fill_(-10.0)  # asserted above 0.5
        reasoner.alpha.fill_(alpha)
        reasoner.head.weight.copy_(10 * torch.tensor([[0.0, 0], [1, 0], [0, 1]]))
        reasoner.head.bias.copy_(torch.tensor([4.0, 0, 0]))
    return without_images(collection, SIDE), cache, make_csr(model, reasoner, collection)


def curves(studies: list[Study], own_alpha: float = 0.2, **config: object) -> pd.DataFrame:
    settings = InterventionConfig(**{"budget": 3, "errors": (0.0,), **config})  # type: ignore[arg-type]
    return intervention_curves(*make_run(studies, alpha=own_alpha), settings)


def one(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    for name, value in {"trigger": "all", **wanted}.items():
        table = table[table[name] == value]
    return table.sort_values("budget")


def test_a_curve_worked_out_by_hand():
    """b is false in three studies: two are wrong for it, and rejecting it sets both right."""
    table = curves([TRUE_A, FALSE_B, FALSE_ONLY, HAS_B], modes=("concept",), orders=("uncertainty",))
    own = one(table, rejection="absent")
    assert own["accuracy"].tolist() == [0.5, 1, 1, 1]
    assert own["fixed"].tolist() == [0, 2, 2, 2]
    assert own["broken"].tolist() == [0, 0, 0, 0]
    assert own["interactions"].tolist() == [0, 0.5, 0.5, 0.5]
    before = (0 + 2 * 1 * 0.5 / 1.5 + 2 * 1 / 3 / (1 + 1 / 3)) / 3  # classes none, has a, has b
    assert own["macro_f1"].tolist() == pytest.approx([before, 1, 1, 1])


def test_a_false_spot_is_erased_by_a_box_as_well():
    table = curves([TRUE_A, FALSE_B, FALSE_ONLY, HAS_B], modes=("spatial",), orders=("uncertainty",))
    assert one(table)["accuracy"].tolist() == [0.5, 1, 1, 1]
    assert set(table["rejection"]) == {"none"}


@pytest.mark.parametrize(("own", "given", "right"), [(0.2, None, 1), (1.0, None, 0), (1.0, 0.2, 1), (0.2, 1.0, 0)])
def test_a_focus_box_weakens_what_lies_outside_by_the_concepts_own_alpha_or_the_given_one(own, given, right):
    """MISSED_A: logits 4, 4.5, 4.9. With the box on a and α 0.2 they are 4, 4.2, 10·(0.1 + 0.2·0.39)."""
    table = curves([MISSED_A], own, modes=("spatial",), orders=("uncertainty",), budget=1, alpha=given)
    assert one(table)["accuracy"].tolist() == [0, right]
    assert one(table)["interactions"].tolist() == [0, 1]


def test_only_meaningful_combinations_are_listed_and_each_is_whole():
    table = curves([TRUE_A, FALSE_B], budget=2, errors=(0.0, 0.3))
    kinds = table.groupby(["mode", "order", "rejection", "error", "trigger"]).size()
    assert len(kinds) == (1 + 2 + 2) * 2 * 2 * 2
    assert (kinds == 3).all()
    assert set(table.loc[table["mode"] == "spatial", "rejection"]) == {"none"}


def test_the_trigger_leaves_confident_studies_alone():
    """FALSE_B hesitates (8 against 9 logits); FALSE_ONLY is sure of b (9 against 4) and stays wrong."""
    studies = [TRUE_A, FALSE_B, FALSE_ONLY, HAS_B]
    table = curves(studies, modes=("concept",), orders=("uncertainty",), margin=0.6)
    own = one(table, rejection="absent", trigger="uncertain")
    assert own["accuracy"].tolist() == [0.5, 0.75, 0.75, 0.75]
    assert own["interactions"].tolist() == [0, 0.25, 0.25, 0.25]


def test_parts_are_judged_apart():
    data, *rest = make_run([TRUE_A, FALSE_B, FALSE_ONLY, HAS_B])
    data.collection.studies["part"] = ["iid", "shifted", "shifted", "iid"]
    settings = InterventionConfig(budget=1, errors=(0.0,), modes=("concept",), orders=("uncertainty",))
    table = intervention_curves(data, *rest, settings)
    assert one(table, part="iid", rejection="absent")["accuracy"].tolist() == [1, 1]
    assert one(table, part="shifted", rejection="absent")["accuracy"].tolist() == [0, 1]


def test_the_same_seed_gives_the_same_table_and_another_another():
    studies = [TRUE_A, FALSE_B, FALSE_ONLY, HAS_B, MISSED_A] * 4
    first, again = curves(studies, errors=(0.3,)), curves(studies, errors=(0.3,))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(curves(studies, errors=(0.3,), seed=1))


def test_a_perfect_reader_never_breaks_anything():
    table = curves([TRUE_A, FALSE_B, FALSE_ONLY, HAS_B, MISSED_A] * 6, own_alpha=1.0)
    assert (table["broken"] == 0).all()
    for _, own in table.groupby(["mode", "order", "rejection", "trigger"]):
        assert (own["macro_f1"].diff().dropna() >= 0).all()


def test_a_reader_who_is_always_wrong_breaks_what_was_right():
    """BOTH is right although b is false in it; the mistaken rejection takes a away instead."""
    both = Study("has a", {"a": (0, 0)}, [("a", 0.9, (0, 0)), ("b", 0.6, (3, 3))])
    table = curves([both], modes=("concept",), errors=(0.0, 1.0))
    assert (one(table, error=0.0)["broken"] == 0).all()
    wrong = one(table, error=1.0, rejection="absent", order="random")
    assert wrong["broken"].tolist() == [0, 1, 1, 1]
    assert wrong["interactions"].tolist() == [0, 1, 2, 3]
