"""Atlas refinement on a model small enough to work out by hand: two concepts, two prototypes each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch

from csr.data.prepared import PreparedSet
from csr.data.records import BOX_COLUMNS, Collection
from csr.evaluation.peaks import map_peaks
from csr.interaction.review import CROPS, misled, prune, relearn, retrain_head, review
from csr.network.reasoner import Reasoner
from csr.training.callbacks import SilentCallbacks
from csr.training.features import FeatureCache
from csr.training.head import HeadConfig, train_head
from csr.training.prototypes import PrototypeConfig, PrototypeModel, train_prototypes
from csr.training.temperature import calibrate_temperature
from tests.csr.synthetic import make_cache, make_collection, make_csr, make_patches, make_reasoner, without_images

SIDE, CELLS = 32, 4
CELL = SIDE // CELLS
CONCEPTS, CLASSES = ("a", "b"), ("none", "some")
A0, A1, B0, B1 = range(4)  # prototypes, and the feature channels that they look at
FINDING, MARKER = (1, 1), (3, 3)  # cells (row, column), further than half a cell from each other

Cell = tuple[int, int]
Box = tuple[float, float, float, float]
Run = tuple[PreparedSet, FeatureCache, PrototypeModel, Reasoner]


def box_of(cell: Cell) -> Box:
    row, column = cell
    return column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL


@dataclass
class Study:
    """Boxes by concept, and what prototypes see: similarity and cell, by prototype."""

    boxes: dict[str, Box]
    seen: dict[int, tuple[float, Cell]]
    split: str = "train"
    columns: dict[str, float] = field(default_factory=dict)


def study_of_a(first: tuple[float, Cell], second: tuple[float, Cell], **changes) -> Study:
    """A study that shows concept a at `FINDING`: what A0 and A1 see in it."""
    return Study({"a": box_of(FINDING)}, {A0: first, A1: second}, **changes)


def make_run(studies: list[Study]) -> Run:
    """A prepared set without pictures, its features, and a model whose prototypes are the first four unit vectors."""
    table = pd.DataFrame(
        {
            "study_id": [f"s{index}" for index in range(len(studies))],
            "split": [study.split for study in studies],
            "part": [study.split for study in studies],
            "label": [CLASSES[index % 2] for index in range(len(studies))],
            **{f"concept:{name}": [float(name in study.boxes) for study in studies] for name in CONCEPTS},
        }
    ).join(pd.DataFrame([study.columns for study in studies]))
    boxes = [(f"s{index}", name, *box) for index, study in enumerate(studies) for name, box in study.boxes.items()]
    collection = Collection("toy", CONCEPTS, CLASSES, table, pd.DataFrame(boxes, columns=list(BOX_COLUMNS)))
    patches = np.zeros((len(studies), 5, CELLS, CELLS), np.float16)
    patches[:, 4] = 1
    for index, study in enumerate(studies):
        for prototype, (similarity, (row, column)) in study.seen.items():
            patches[index, prototype, row, column] = similarity
            rest = 1 - np.square(patches[index, :4, row, column].astype(float)).sum()
            patches[index, 4, row, column] = rest**0.5
    cache = FeatureCache(patches, np.zeros((len(studies), 2, CELLS, CELLS), np.float32))
    model = PrototypeModel(features=5, concepts=2, per_concept=2, width=5, blocks=0)
    reasoner = Reasoner(2, 2, 5, 2, clip=True, floor="absent")
    with torch.no_grad():
        model.projector.inlet.weight.copy_(torch.eye(5))
        model.projector.inlet.bias.zero_()
        reasoner.prototypes.copy_(torch.eye(5)[:4].reshape(2, 2, 5))
    return without_images(collection, SIDE), cache, make_csr(model, reasoner, collection)


def verdicts(studies: list[Study]) -> pd.DataFrame:
    """The reviewer's verdicts, rows A0, A1, B0, B1."""
    table = review(*make_run(studies))
    assert table[["concept", "prototype"]].to_numpy().tolist() == [["a", 0], ["a", 1], ["b", 0], ["b", 1]]
    return table


# the verdict


def test_a_prototype_that_peaks_on_findings_is_kept_and_one_that_peaks_elsewhere_is_flagged():
    of_a = [study_of_a((first, FINDING), (second, MARKER)) for first, second in ((0.9, 0.5), (0.9, 0.3), (0.2, 0.5))]
    of_b = [Study({"b": box_of((0, 3))}, {B0: (0.6, (0, 3)), B1: (0.8, (0, 3))})] * 2
    table = verdicts([*of_a, *of_b])
    assert table["crops"].tolist() == [3, 3, 2, 2]
    assert table["shown"].tolist() == [1, 0, 1, 1]
    assert table["prune"].tolist() == [False, True, False, False]
    assert table["wins"].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 1])


@pytest.mark.parametrize(("hits", "pruned"), [(CROPS // 2, False), (CROPS // 2 - 1, True)])
def test_only_the_nearest_crops_count_and_half_of_them_is_enough(hits, pruned):
    """Images beyond the nearest ten would turn the verdict if they counted."""
    steady = (0.3, FINDING)  # of the other prototype, so that the verdict does not hang on who is left
    far = [study_of_a((0.2, FINDING if pruned else MARKER), steady) for _ in range(6)]
    near = [study_of_a((0.9 - 0.01 * i, FINDING if i < hits else MARKER), steady) for i in range(CROPS)]
    table = verdicts([*far, *near])
    assert table.loc[A0, "crops"] == CROPS
    assert table.loc[A0, "shown"] == hits / CROPS
    assert bool(table.loc[A0, "prune"]) is pruned
    assert not table.loc[A1, "prune"]


@pytest.mark.parametrize("side", ["left", "right", "above", "below"])
@pytest.mark.parametrize(("gap", "shown"), [(CELL / 2, 1), (CELL / 2 + 0.1, 0)])
def test_a_crop_shows_what_lies_within_half_a_cell_of_its_centre(side, gap, shown):
    corner = (3, 3) if side in ("left", "above") else (0, 0)  # opposite the box
    impulse = np.zeros((CELLS, CELLS), np.float32)
    impulse[corner] = 1
    x, y = map_peaks(impulse, SIDE)
    box = {
        "left": (0, 0, x - gap, SIDE),
        "right": (x + gap, 0, SIDE, SIDE),
        "above": (0, 0, SIDE, y - gap),
        "below": (0, y + gap, SIDE, SIDE),
    }[side]
    table = verdicts([Study({"a": box}, {A0: (0.9, corner), A1: (0.5, FINDING)})])
    assert table.loc[A0, "shown"] == shown


def test_any_box_of_the_concept_will_do_but_not_one_of_another():
    boxes = {"a": box_of(FINDING), "b": box_of((0, 3))}
    table = verdicts([Study(boxes, {A0: (0.6, (0, 3)), A1: (0.6, FINDING), B0: (0.6, (0, 3)), B1: (0.6, FINDING)})])
    assert table["shown"].tolist() == [0, 1, 1, 0]

    one, cache, csr = make_run([study_of_a((0.9, MARKER), (0.9, FINDING))])
    second = pd.DataFrame([("s0", "a", *box_of(MARKER))], columns=list(BOX_COLUMNS))
    both = replace(one.collection, boxes=pd.concat([one.collection.boxes, second]))
    table = review(replace(one, collection=both), cache, csr)
    assert table["shown"].tolist()[:2] == [1, 1]


# who stays


def test_a_concept_keeps_the_prototype_with_the_most_crops_that_show_it():
    studies = [study_of_a((0.6, MARKER), (0.6, FINDING if i == 0 else MARKER)) for i in range(4)]
    table = verdicts(studies)
    assert table["shown"].tolist()[:2] == [0, 0.25]
    assert table["prune"].tolist() == [True, False, False, False]


def test_of_equally_bad_prototypes_one_stays():
    table = verdicts([study_of_a((0.6, MARKER), (0.5, MARKER))])
    assert table["shown"].tolist()[:2] == [0, 0]
    assert table["prune"].tolist()[:2] == [False, True]


def test_what_an_earlier_review_pruned_stays_pruned_and_cannot_stand_for_its_concept():
    """A0 would be kept on sight; it is gone, so A1 has to stay."""
    data, cache, csr = make_run([study_of_a((0.9, FINDING), (0.8, MARKER))])
    csr.reasoner.alive[0, 0] = 0
    table = review(data, cache, csr)
    assert table["prune"].tolist() == [True, False, False, False]
    assert table["wins"].tolist()[:2] == [0, 1]
    csr.reasoner.alive[0, 0] = 1
    assert review(data, cache, csr)["prune"].tolist() == [False, True, False, False]


@pytest.mark.parametrize("split", ["val", "test"])
def test_only_training_boxes_are_looked_at_and_a_concept_without_any_is_never_pruned(split):
    of_b = Study({"b": box_of(FINDING)}, {B0: (0.6, MARKER), B1: (0.6, MARKER)}, split)
    misleading = study_of_a((0.99, MARKER), (0.1, FINDING), split=split)
    table = verdicts([study_of_a((0.9, FINDING), (0.5, MARKER)), of_b, misleading, misleading])
    assert table["crops"].tolist() == [1, 1, 0, 0]
    assert table["shown"].tolist()[:2] == [1, 0]
    assert table.loc[[B0, B1], ["shown", "wins"]].isna().all(axis=None)
    assert table["prune"].tolist() == [False, True, False, False]


def test_without_any_box_nothing_is_pruned():
    table = verdicts([Study({}, {A0: (0.9, FINDING)}), Study({}, {B0: (0.9, FINDING)})])
    assert table["crops"].tolist() == [0] * 4
    assert not table["prune"].any()


def test_the_reviewer_does_not_know_where_the_shortcut_is():
    """The phantom's marker columns may say what they like, or be missing."""
    pairs = [((0.9, FINDING), (0.9, MARKER)), ((0.8, MARKER), (0.7, FINDING)), ((0.7, FINDING), (0.6, MARKER))]
    left, top, right, bottom = box_of(MARKER)
    corners = {"marker_x_min": left, "marker_y_min": top, "marker_x_max": right, "marker_y_max": bottom}
    honest = verdicts([study_of_a(*pair, columns={"marker": 1, **corners}) for pair in pairs])
    elsewhere = verdicts([study_of_a(*pair, columns={"marker": 0} | dict.fromkeys(corners, 0.0)) for pair in pairs])
    without = verdicts([study_of_a(*pair) for pair in pairs])
    assert honest["prune"].tolist() == [False, True, False, False]
    pd.testing.assert_frame_equal(elsewhere, honest)
    pd.testing.assert_frame_equal(without, honest)


# pruning


def test_pruning_masks_what_is_flagged_and_leaves_the_original_untouched():
    reasoner, patches = make_reasoner(0, clip=True), make_patches(1)
    before = {name: value.clone() for name, value in reasoner.state_dict().items()}
    flags = np.zeros((3, 4), bool)
    flags[0, 1] = flags[2, :3] = True
    csr = make_csr(PrototypeModel(5, 3, 4, 5, 0), reasoner, make_collection())
    refined = prune(csr, pd.DataFrame({"prune": flags.ravel()})).reasoner
    np.testing.assert_array_equal(refined.alive == 0, flags)
    for name, value in refined.state_dict().items():
        torch.testing.assert_close(reasoner.state_dict()[name], before[name], rtol=0, atol=0)
        assert name == "alive" or torch.equal(value, before[name])
    with torch.no_grad():
        first, second = reasoner(patches), refined(patches)
    np.testing.assert_array_equal(second.scores[:, flags], reasoner.absent_scores[flags].expand(2, -1))
    assert torch.equal(second.concept_maps[:, 2], second.similarity_maps[:, 2, 3])
    assert not torch.allclose(first.logits, second.logits)
    refined.head.weight.data.zero_()
    assert torch.equal(reasoner.head.weight, before["head.weight"])


def test_pruning_again_brings_nothing_back():
    csr = make_csr(PrototypeModel(5, 3, 4, 5, 0), make_reasoner(0, clip=True), make_collection())
    once = prune(csr, pd.DataFrame({"prune": [True] + [False] * 11}))
    twice = prune(once, pd.DataFrame({"prune": [False, True] + [False] * 10}))
    assert twice.reasoner.alive.flatten().tolist() == [0, 0] + [1] * 10


# the new head


@pytest.fixture(scope="module")
def trained() -> Run:
    """Stages 2 and 3 on made-up features."""
    collection = make_collection(train=120)
    cache, callbacks = make_cache(collection), SilentCallbacks()
    model = train_prototypes(collection, cache, PrototypeConfig(per_concept=3, width=8, epochs=2), callbacks)
    reasoner = train_head(collection, cache, model, HeadConfig(epochs=10), callbacks)
    return without_images(collection), cache, make_csr(model, reasoner, collection)


FLAGS = np.array([[0, 1, 0], [1, 0, 1], [0, 0, 1]], bool)


@pytest.fixture(scope="module", params=[True, False], ids=["clipped", "signed"])
def retrained(trained, request) -> tuple[Reasoner, HeadConfig]:
    data, cache, csr = trained
    config = HeadConfig(clip=request.param, floor="absent" if request.param else "zero", epochs=10)
    refined = prune(csr, pd.DataFrame({"prune": FLAGS.ravel()}))
    return retrain_head(data, cache, refined, config, SilentCallbacks()).reasoner, config


@torch.no_grad()
def patches_of(trained: Run, split: str = "test") -> torch.Tensor:
    data, cache, csr = trained
    features, _ = cache.batch(data.collection.rows(split), torch.device("cpu"))
    return csr.project(features)


def test_the_new_head_gives_pruned_prototypes_no_weight(trained, retrained):
    head = retrained[0].head.weight.reshape(3, 3, 3)
    assert (head[:, FLAGS] == 0).all()
    assert (head[:, ~FLAGS] != 0).any(0).all()
    np.testing.assert_array_equal(retrained[0].alive == 0, FLAGS)
    assert (trained[2].reasoner.alive == 1).all()


def test_predictions_do_not_depend_on_pruned_prototypes(trained, retrained):
    """Nor on what answers make of them: a rejected score that is set to zero is far from a constant's mean."""
    reasoner, patches = retrained[0], patches_of(trained)
    with torch.no_grad():
        before = reasoner(patches)
        kept = reasoner.prototypes.clone()
        reasoner.prototypes[torch.from_numpy(FLAGS)] = kept[0, 0]
        after = reasoner(patches)
        reasoner.prototypes[0, 0] = kept[0, 2]
        other = reasoner(patches)
        reasoner.prototypes.copy_(kept)
        moved = copy.deepcopy(reasoner)
        moved.present_scores[torch.from_numpy(FLAGS)], moved.absent_scores[torch.from_numpy(FLAGS)] = 7.0, -7.0
        for said in (1.0, -1.0):
            answers, weight = torch.full((len(patches), 3), said), torch.zeros(len(patches))
            first, second = (each(patches, answers=answers, absent_weight=weight).logits for each in (reasoner, moved))
            assert torch.equal(first, second) and not torch.allclose(first, before.logits)
    for name in ("concept_maps", "concept_probabilities", "logits"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert not torch.allclose(other.logits, before.logits)


def test_the_new_head_is_calibrated_anew(trained, retrained):
    data, cache, csr = trained
    again = copy.deepcopy(retrained[0])
    again.temperature.fill_(3.0)
    calibrate_temperature(data, cache, csr.with_reasoner(again))
    assert torch.equal(retrained[0].temperature, again.temperature)


def test_the_new_head_says_what_was_trained(trained, retrained):
    """Emptying the weights of constants into the bias changes no logit."""
    data, cache, csr = trained
    alive = torch.from_numpy(~FLAGS).float()
    raw = train_head(data.collection, cache, csr.prototype_model, retrained[1], SilentCallbacks(), alive=alive)
    patches = patches_of(trained, "train")
    with torch.no_grad():
        expected, found = raw(patches), retrained[0](patches)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
    labels = data.collection.truth()[data.collection.rows("train")]
    assert (found.logits.argmax(1).numpy() == labels).mean() > 0.6


# learning anew from what a reviewer draws


def shortcut_run() -> tuple[PreparedSet, FeatureCache]:
    """Concept a shows at `FINDING`, and stage 1's attention lies on a marker that goes with it; b is honest."""
    rng = np.random.default_rng(0)
    studies = []
    for index in range(90):
        boxes = {name: box_of(cell) for name, cell, bit in (("a", FINDING, 1), ("b", (0, 3), 2)) if index & bit}
        studies.append(Study(boxes, {}, split="train" if index < 60 else "val" if index < 75 else "test"))
    data, _, _ = make_run(studies)
    patches = rng.normal(0, 0.1, (90, 5, CELLS, CELLS)).astype(np.float16)
    cam = np.full((90, 2, CELLS, CELLS), -4, np.float32)
    for row in range(90):
        for name, cell, channel, bit in (("a", FINDING, 0, 1), ("marker", MARKER, 1, 1), ("b", (0, 3), 2, 2)):
            if row & bit:
                patches[row, channel, *cell] = 3
                if name != "a":
                    cam[row, int(name == "b"), *cell] = 6
    return data, FeatureCache(patches, cam)


STAGE2 = PrototypeConfig(per_concept=2, width=8, blocks=1, epochs=8, batch_size=16)


def learned(data: PreparedSet, cache: FeatureCache):
    collection, callbacks = data.collection, SilentCallbacks()
    model = train_prototypes(collection, cache, STAGE2, callbacks)
    reasoner = train_head(collection, cache, model, HeadConfig(epochs=3), callbacks)
    return make_csr(model, reasoner, collection)


def shown_of(table: pd.DataFrame, concept: str) -> float:
    own = table[(table["concept"] == concept) & (table["wins"] > 0)]
    return float(np.average(own["shown"], weights=own["wins"]))


def test_a_concept_that_rests_on_a_marker_is_learned_anew_from_where_the_reviewer_sees_it():
    data, cache = shortcut_run()
    before = learned(data, cache)
    table = review(data, cache, before)
    assert shown_of(table, "a") < 0.5 < shown_of(table, "b")
    drawn = misled(table)
    assert list(drawn) == ["a"] and 0 < len(drawn["a"]) <= 2 * CROPS
    assert all(row & 1 and data.collection.studies["split"][row] == "train" for row in drawn["a"])
    kept = cache.cam.copy()
    after = relearn(data, cache, before, table, STAGE2, HeadConfig(epochs=3), SilentCallbacks())
    again = review(data, cache, after)
    assert shown_of(again, "a") > 0.9 and shown_of(again, "b") > 0.5
    np.testing.assert_array_equal(cache.cam, kept)
    assert not data.collection.studies["concept:a"].isna().any()
    assert after.concept_model is before.concept_model


def test_where_nothing_rests_on_something_else_nobody_draws():
    of_a = [study_of_a((0.7, FINDING), (0.5, FINDING))] * 3
    of_b = [Study({"b": box_of((0, 3))}, {B0: (0.6, (0, 3)), B1: (0.8, MARKER)})] * 2
    table = verdicts([*of_a, *of_b])
    assert misled(table) == {"b": [3, 4]}
    table.loc[B1, "wins"] = 0.0  # what wins nothing has no say
    assert misled(table) == {}
