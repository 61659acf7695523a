"""Curves of answers on a model that is a table: three concepts, of which two settle the class."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csr.data.records import BOX_COLUMNS, Collection
from csr.evaluation.metrics import macro_f1
from csr.interaction.answering import (
    COSTS,
    AnswerableCSR,
    AnswerConfig,
    Findings,
    Reader,
    answer_curves,
    decision_key,
    effects,
    most_alike,
    read,
)
from csr.interaction.corrections import Interaction, RegionBox, interaction_tensors
from csr.interaction.questions import entropy
from csr.network.prototypes import PrototypeModel
from tests.csr.synthetic import make_cache, make_collection, make_csr, make_reasoner

CONCEPTS, CLASSES = ("a", "b", "idle"), ("neither", "only a", "only b", "both")
CASES = settings(deadline=None, max_examples=30)
POLICIES = pytest.mark.parametrize("policy", ["effect", "random"])
SIDE = 48


class Rule:
    """Believes in concepts a and b by themselves, each with its own probability; an answer settles one.

    The class is which of the two are there. Whether ``idle`` is there tells nothing.
    """

    def __init__(self, likely: np.ndarray, multilabel: bool = False) -> None:
        self.likely, self.multilabel, self.asked = likely, multilabel, []

    def ask(self, answers: np.ndarray) -> np.ndarray:
        self.asked.append(answers.copy())
        believed = np.where(answers > 0, 1.0, np.where(answers < 0, 0.0, self.likely))[:, :2]
        if self.multilabel:
            return believed
        a, b = believed.T
        return np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], 1)


def make_case(studies: int = 80, multilabel: bool = False) -> tuple[Rule, Collection, np.ndarray]:
    """Studies of two parts, every class in each, and a model that is often, but not always, right about them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (studies, 3)).astype(np.float32)
    labels[:, :2] = np.tile([[0, 0], [1, 0], [0, 1], [1, 1]], (studies // 4, 1))
    likely = np.clip(np.where(labels == 1, 0.6, 0.4) + rng.uniform(-0.35, 0.35, labels.shape), 0.02, 0.98)
    part = np.where(np.arange(studies) < studies // 2, "iid", "shifted")
    columns = {"study_id": [f"s{row}" for row in range(studies)], "split": "test", "part": part}
    if multilabel:
        columns |= {f"target:{name}": labels[:, k] for k, name in enumerate(CONCEPTS[:2])}
    else:
        columns["label"] = np.array(CLASSES)[(labels[:, 0] + 2 * labels[:, 1]).astype(int)]
    table = pd.DataFrame(columns | {f"concept:{name}": labels[:, k] for k, name in enumerate(CONCEPTS)})
    boxes = pd.DataFrame(columns=list(BOX_COLUMNS))
    if multilabel:
        collection = Collection("toy", CONCEPTS, CONCEPTS[:2], table, boxes, "multilabel")
    else:
        collection = Collection("toy", CONCEPTS, CLASSES, table, boxes)
    return Rule(likely, multilabel), collection, np.arange(studies)


def one(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    default = {"part": "iid", "tool": "keys", "policy": "effect", "error": 0.0, "trigger": "all"}
    for name, value in {**default, **wanted}.items():
        table = table[table[name] == value]
    return table.sort_values("budget")


def shown(labels: np.ndarray, alike=(1, 0, 0)) -> Findings:
    return Findings(labels, [{} for _ in labels], np.array(alike), SIDE)


def curves_of(model: Rule, collection: Collection, rows: np.ndarray, config: AnswerConfig) -> pd.DataFrame:
    return answer_curves(model, collection, rows, shown(collection.concept_labels()[rows]), config)[0]


def read_all(model: Rule, labels: np.ndarray, reader: Reader, config: AnswerConfig):
    return read(model, shown(labels), reader, config, model.multilabel)


def said_by(model: Rule, labels: np.ndarray, policy: str, error: float, budget: int, tool: str = "keys") -> np.ndarray:
    """n×K, all that a reader said by the end."""
    reader = Reader(tool, policy, error)  # type: ignore[arg-type]
    read_all(model, labels, reader, AnswerConfig(budget=budget, least_effect=0.0))
    return model.asked[-1]


# questions


@pytest.mark.parametrize("multilabel", [False, True])
@CASES
@given(st.integers(0, 10_000))
def test_the_effects_are_those_of_asking_about_one_concept_at_a_time(multilabel, seed):
    rng = np.random.default_rng(seed)
    model = Rule(rng.random((5, 3)), multilabel)
    answers = rng.integers(-1, 2, (5, 3)).astype(float)
    found = effects(model.ask, answers, model.likely, multilabel)
    for n, k in zip(*np.nonzero(answers == 0), strict=True):
        told = 0.0
        for said, chance in ((1, model.likely[n, k]), (-1, 1 - model.likely[n, k])):
            after = answers.copy()
            after[n, k] = said
            told += chance * entropy(model.ask(after)[n], multilabel)
        assert found[n, k] == pytest.approx(entropy(model.ask(answers)[n], multilabel) - told, abs=1e-8)
        assert found[n, k] >= -1e-8  # beliefs that are consistent never expect to lose
        assert k != 2 or abs(found[n, k]) < 1e-8


def test_the_most_telling_question_comes_first_and_none_comes_twice():
    likely, labels = np.array([[0.9, 0.5, 0.5], [0.45, 0.99, 0.5]]), np.array([[1.0, 0, 1], [0, 1, 0]])
    assert said_by(Rule(likely), labels, "effect", 0.0, 1).tolist() == [[0, -1, 0], [-1, 0, 0]]
    assert said_by(Rule(likely), labels, "effect", 0.0, 2).tolist() == [[1, -1, 0], [-1, 1, 0]]
    _, used, _ = read_all(Rule(likely), labels, Reader(), AnswerConfig(budget=2))
    assert used.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_the_next_question_knows_the_last_answer():
    """Of two concepts that say the same, the second tells nothing once the first was answered."""

    class Twins(Rule):
        def ask(self, answers: np.ndarray) -> np.ndarray:
            told = np.where(answers[:, 0] != 0, answers[:, 0], answers[:, 1])
            one = np.where(told == 0, 0.5, (told + 1) / 2)
            other = np.where(answers[:, 2] == 0, 0.9, (answers[:, 2] + 1) / 2)
            self.asked.append(answers.copy())
            return np.stack([one * other, one * (1 - other), (1 - one) * other, (1 - one) * (1 - other)], 1)

    model = Twins(np.array([[0.5, 0.5, 0.9]]))
    assert said_by(model, np.array([[1.0, 1, 1]]), "effect", 0.0, 2).tolist() == [[1, 0, 1]]


@POLICIES
def test_a_concept_whose_label_is_unknown_is_not_asked_about(policy):
    model, collection, _ = make_case()
    labels = collection.concept_labels()
    labels[::2, 0] = np.nan
    labels[:10] = np.nan
    said = said_by(model, labels, policy, 0.2, 3)
    assert not said[np.isnan(labels)].any()
    _, used, _ = read_all(model, labels, Reader("keys", policy, 0.2), AnswerConfig(budget=3))
    assert not used[:, :10].any()
    assert (used[-1] == np.abs(said).sum(1)).all() and used[-1, 10:].all()


def test_no_question_is_asked_that_is_worth_less_than_the_least_effect_where_that_counts():
    model, collection, _ = make_case()
    labels = collection.concept_labels()
    first = effects(model.ask, np.zeros((80, 3)), model.likely, False).max(1)
    least = float(np.median(first))
    _, used, _ = read_all(model, labels, Reader(policy="worthwhile"), AnswerConfig(budget=3, least_effect=least))
    np.testing.assert_array_equal(used[1] == 1, first >= least)
    assert 0 < used[1].sum() < 80
    _, used, _ = read_all(model, labels, Reader(policy="worthwhile"), AnswerConfig(budget=3, least_effect=99.0))
    assert not used.any()
    for policy in ("random", "effect"):
        _, used, _ = read_all(model, labels, Reader(policy=policy), AnswerConfig(budget=4, least_effect=99.0))
        assert (used == np.array([0, 1, 2, 3, 3])[:, None]).all()


def test_at_random_every_concept_is_as_likely_to_be_asked_about_first():
    model, collection, _ = make_case(studies=1200)
    said = said_by(model, collection.concept_labels(), "random", 0.0, 1)
    np.testing.assert_allclose(np.abs(said).mean(0), 1 / 3, atol=0.05)


# readers


@POLICIES
def test_readers_who_err_say_the_opposite_and_share_their_slips(policy):
    """Of the first question: later ones may differ, since the model heard something else."""
    model, collection, _ = make_case(studies=2000)
    labels, wrong = collection.concept_labels(), {}
    for error in (0.0, 0.1, 0.3, 1.0):
        said = said_by(model, labels, policy, error, 1)
        assert (np.abs(said).sum(1) == 1).all()
        wrong[error] = (said * (2 * labels - 1)).sum(1) == -1
        assert wrong[error].mean() == pytest.approx(error, abs=0.03)
    assert (wrong[0.1] <= wrong[0.3]).all() and (wrong[0.3] <= wrong[1.0]).all()


def test_where_the_questions_are_the_same_the_slips_are_shared_at_every_turn():
    model, collection, _ = make_case(studies=200)
    labels = collection.concept_labels()
    few, many = (said_by(model, labels, "random", error, 3) for error in (0.1, 0.3))
    assert (np.abs(few) == 1).all()
    slips = [(said * (2 * labels - 1)) == -1 for said in (few, many)]
    assert (slips[0] <= slips[1]).all() and 0 < slips[0].sum() < slips[1].sum()


def test_the_same_seed_says_the_same_and_another_something_else():
    tables = []
    for seed in (0, 0, 1):
        config = AnswerConfig(budget=2, errors=(0.3,), seed=seed)
        tables.append(curves_of(*make_case(), config))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


# curves


def test_a_perfect_readers_answers_settle_the_class_and_never_harm():
    table = curves_of(*make_case(), AnswerConfig(budget=3, errors=(0.0,)))
    for _, curve in table.groupby(["part", "policy", "trigger"]):
        figures = curve.sort_values("budget")["macro_f1"].to_numpy()
        assert figures[0] < 1 and (np.diff(figures) >= -1e-9).all()
    assert one(table)["macro_f1"].tolist()[2:] == one(table)["accuracy"].tolist()[2:] == [1, 1]
    chance = one(table, policy="random")["macro_f1"].tolist()  # asks about what is idle, too
    assert chance[2] < chance[3] == 1


def test_the_figures_are_those_of_each_part():
    model, collection, rows = make_case()
    config = AnswerConfig(budget=2, errors=(0.3,), margin=0.3)
    findings = shown(collection.concept_labels())
    table, decisions = answer_curves(model, collection, rows, findings, config)
    probabilities, used, _ = read(model, findings, Reader(error=0.3), config, False)
    truth, top = collection.truth(), np.sort(probabilities[0], 1)
    uncertain = top[:, -1] - top[:, -2] < 0.3
    assert 0 < uncertain.mean() < 1
    own = np.arange(40, 80)  # part shifted
    for trigger, touched in (("all", np.ones(80, bool)), ("uncertain", uncertain)):
        curve = one(table, error=0.3, part="shifted", trigger=trigger)
        for budget in range(3):
            predicted = np.where(touched, probabilities[budget].argmax(1), probabilities[0].argmax(1))[own]
            row = curve[curve["budget"] == budget].iloc[0]
            assert row["macro_f1"] == pytest.approx(macro_f1(truth[own], predicted, 4))
            assert row["accuracy"] == pytest.approx((predicted == truth[own]).mean())
            np.testing.assert_array_equal(decisions[decision_key(Reader(error=0.3), trigger)][budget][own], predicted)
            assert row["replies"] == pytest.approx((used[budget] * touched)[own].mean())
            assert row["seconds"] == pytest.approx(COSTS["key"] * row["replies"])
            before, right = probabilities[0].argmax(1)[own] == truth[own], predicted == truth[own]
            assert (row["fixed"], row["broken"]) == ((right & ~before).sum(), (before & ~right).sum())


def test_every_kind_of_reader_is_listed_and_each_curve_is_whole():
    table = curves_of(*make_case(), AnswerConfig(budget=2, errors=(0.0, 0.2)))
    kinds = table.groupby(["part", "policy", "error", "trigger"]).size()
    assert len(kinds) == 2 * 3 * 2 * 2
    assert (kinds == 3).all()


def test_without_any_budget_the_curve_is_the_models_own_answer():
    model, collection, rows = make_case()
    table = curves_of(model, collection, rows, AnswerConfig(budget=0, errors=(0.0,)))
    assert set(table["budget"]) == {0} and not table["replies"].any()
    expected = macro_f1(collection.truth()[:40], model.ask(np.zeros((80, 3))).argmax(1)[:40], 4)
    assert set(one(table)["macro_f1"]) == {expected}


def test_studies_with_several_classes_are_asked_about_as_well():
    table = curves_of(*make_case(multilabel=True), AnswerConfig(budget=2, errors=(0.0,)))
    curve, asked = one(table), one(table, trigger="uncertain")
    assert curve["macro_f1"].iloc[0] < curve["macro_f1"].iloc[1] < curve["macro_f1"].iloc[2] == 1
    assert 0 < asked["replies"].iloc[2] < curve["replies"].iloc[2]


def test_several_classes_are_decided_at_the_model_s_thresholds():
    model, collection, rows = make_case(multilabel=True)
    thresholds = np.array([0.2, 0.9])
    config = AnswerConfig(budget=1, errors=(0.0,))
    findings = shown(collection.concept_labels())
    table, decisions = answer_curves(model, collection, rows, findings, config, thresholds)
    said = (model.ask(np.zeros((80, 3))) >= thresholds).astype(int)
    assert (decisions[decision_key(Reader(), "all")][0] == said).all()
    assert one(table)["macro_f1"].iloc[0] == macro_f1(collection.truth()[:40], said[:40], 2)
    assert one(table)["macro_f1"].iloc[0] != one(curves_of(model, collection, rows, config))["macro_f1"].iloc[0]


# a trained CSR


def test_a_csr_is_asked_what_its_reasoner_answers():
    collection = make_collection()
    cache, model, rows = make_cache(collection), PrototypeModel(6, 3, 4, 5, 1), collection.rows("test")
    reasoner = make_reasoner(4, clip=True, pruned=3, floor="absent")
    csr = make_csr(model, reasoner, collection).eval()
    asked = AnswerableCSR(cache, csr, rows, SIDE)
    drawn = np.random.default_rng(0).integers(-1, 2, (3, len(rows), 3)).astype(float)
    with torch.no_grad():
        patches = csr.project(cache.batch(rows, csr.place)[0])
        plain = reasoner(patches)
        evidence = torch.where(reasoner.alive > 0, plain.scores, -1.0).amax(2)
        reasoner.present_evidence.copy_(evidence.quantile(0.7, 0))
        reasoner.absent_evidence.copy_(evidence.quantile(0.3, 0))
        np.testing.assert_allclose(asked.likely, plain.concept_probabilities, atol=1e-5)
        for answers in (np.zeros((len(rows), 3)), *drawn):
            expected = reasoner(patches, answers=torch.tensor(answers, dtype=torch.float32)).probabilities
            np.testing.assert_allclose(asked.ask(answers), expected, atol=1e-5)
            assert answers.any() == bool((expected - plain.probabilities).abs().max() > 1e-3)


# boxes


def test_a_wrong_box_bears_the_name_of_what_looks_alike_unless_that_was_spoken_of():
    labels = np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    likely = np.array([[0.5, 0.9, 0.5], [0.9, 0.5, 0.5], [0.5, 0.9, 0.5]])
    once = said_by(Rule(likely), labels, "effect", 1.0, 1, "findings")
    assert once.tolist() == [[0, 1, 0], [1, 0, 0], [-1, 0, 0]]  # what is not there gets no box, and no wrong name
    twice = said_by(Rule(likely), labels, "effect", 1.0, 2, "findings")
    assert twice[:2].tolist() == [[1, 1, 0], [1, 1, 0]]
    right = said_by(Rule(likely), labels, "effect", 0.0, 1, "findings")
    assert right.tolist() == [[1, 0, 0], [0, 1, 0], [-1, 0, 0]]


def test_a_box_with_a_name_costs_more_than_a_key():
    labels = np.array([[1.0, 0, 1], [0, 0, 0]])
    likely = np.array([[0.5, 0.9, 0.5], [0.5, 0.9, 0.5]])
    _, used, seconds = read_all(Rule(likely), labels, Reader("findings"), AnswerConfig(budget=1))
    assert used[1].tolist() == [1, 1] and seconds[1].tolist() == [COSTS["finding"], COSTS["key"]]


def a_csr():
    collection = make_collection()
    cache, model, rows = make_cache(collection), PrototypeModel(6, 3, 4, 5, 1), collection.rows("test")
    reasoner = make_reasoner(4, clip=True, floor="absent")
    return cache, make_csr(model, reasoner, collection).eval(), rows


def test_regions_weigh_the_scores_as_the_reasoner_does():
    cache, csr, rows = a_csr()
    asked = AnswerableCSR(cache, csr, rows, SIDE)
    nothing = np.zeros((len(rows), 3))
    boxes = [(), *[(RegionBox(2, 3, 20, 25), RegionBox(30, 30, 44, 40, "ignore"))] * (len(rows) - 1)]
    found = asked.ask(nothing, boxes)
    with torch.no_grad():
        patches = csr.project(cache.batch(rows, csr.place)[0])
        said = [Interaction(own) for own in boxes]
        importance = interaction_tensors(said, csr.concepts, SIDE, *patches.shape[2:])["importance"]
        expected = csr.reasoner(patches, torch.from_numpy(importance)).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(asked.ask(nothing)[0], found[0], atol=1e-6)
    assert np.abs(asked.ask(nothing) - found)[1:].max() > 1e-3


def regions_of(labels: np.ndarray, boxes: list, error: float, budget: int = 3) -> tuple[np.ndarray, list, np.ndarray]:
    """What a reader with boxes leaves behind: how often asked, the last boxes and the seconds."""
    cache, csr, rows = a_csr()
    drawn = []

    class Watched(AnswerableCSR):
        def ask(self, answers, boxes=None):
            drawn.append(list(boxes))
            return super().ask(answers, boxes)

    model = Watched(cache, csr, rows[: len(labels)], SIDE)
    findings = Findings(labels, boxes, np.array([1, 0, 0]), SIDE)
    _, used, seconds = read(model, findings, Reader("regions", "effect", error), AnswerConfig(budget=budget), False)
    return used, drawn[-1], seconds


def test_a_reader_with_regions_outlines_every_finding_at_once_and_ignores_what_is_none():
    labels = np.array([[1.0, 1, np.nan], [0, 0, 0]])
    boxes = [{0: np.array([[4.0, 4, 20, 20]]), 1: np.array([[30.0, 30, 40, 44]])}, {}]
    used, drawn, seconds = regions_of(labels, boxes, 0.0)
    assert [(box.kind, box.x_min, box.y_max) for box in drawn[0]] == [("focus", 4, 20), ("focus", 30, 44)]
    assert used[:, 0].tolist() == [0, 1, 1, 1] and seconds[-1, 0] == 2 * COSTS["region"]
    assert {box.kind for box in drawn[1]} == {"ignore"} and len(drawn[1]) == 3  # one where each concept is seen
    assert used[:, 1].tolist() == [0, 1, 2, 3]


def test_a_careless_readers_regions_lie_half_their_size_away():
    labels = np.array([[1.0, np.nan, np.nan]])
    _, [(box,)], _ = regions_of(labels, [{0: np.array([[16.0, 12, 32, 36]])}], 1.0)
    turned = np.array([box.x_min - 16, box.y_min - 12]) / np.array([8, 12])
    assert np.hypot(*turned) == pytest.approx(1) and (box.x_max - box.x_min, box.y_max - box.y_min) == (16, 24)


def test_what_is_a_finding_is_not_ignored():
    labels = np.array([[0.0, np.nan, np.nan]])
    used, drawn, seconds = regions_of(labels, [{2: np.array([[0.0, 0, SIDE, SIDE]])}], 0.0)
    assert drawn == [()] and used[-1].tolist() == [1] and seconds[-1].tolist() == [COSTS["key"]]


def test_the_most_alike_are_those_whose_vectors_point_the_same_way(tiny_run):
    alike = most_alike(tiny_run.data, tiny_run.cache)
    assert len(alike) == len(tiny_run.data.collection.concepts)
    assert (alike != np.arange(len(alike))).all()
