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
from csr.interaction.answering import ANSWER_S, AnswerableCSR, AnswerConfig, answer_curves, effects, read
from csr.interaction.questions import entropy
from csr.network.prototypes import PrototypeModel
from tests.csr.synthetic import make_cache, make_collection, make_csr, make_reasoner

CONCEPTS, CLASSES = ("a", "b", "idle"), ("neither", "only a", "only b", "both")
CASES = settings(deadline=None, max_examples=30)
POLICIES = pytest.mark.parametrize("policy", ["effect", "random"])


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
    for name, value in {"part": "iid", "policy": "effect", "error": 0.0, "trigger": "all", **wanted}.items():
        table = table[table[name] == value]
    return table.sort_values("budget")


def said_by(model: Rule, labels: np.ndarray, policy: str, error: float, budget: int) -> np.ndarray:
    """n×K, all that a reader said by the end."""
    read(model, labels, AnswerConfig(budget=budget), policy, error, model.multilabel)  # type: ignore[arg-type]
    return model.asked[-1]


# questions


@pytest.mark.parametrize("multilabel", [False, True])
@CASES
@given(st.integers(0, 10_000))
def test_the_effects_are_those_of_asking_about_one_concept_at_a_time(multilabel, seed):
    rng = np.random.default_rng(seed)
    model = Rule(rng.random((5, 3)), multilabel)
    answers = rng.integers(-1, 2, (5, 3)).astype(float)
    found = effects(model, answers, multilabel)
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
    _, used = read(Rule(likely), labels, AnswerConfig(budget=2), "effect", 0.0, False)
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
    _, used = read(model, labels, AnswerConfig(budget=3), policy, 0.2, False)
    assert not used[:, :10].any()
    assert (used[-1] == np.abs(said).sum(1)).all() and used[-1, 10:].all()


def test_no_question_is_asked_that_is_worth_less_than_the_least_effect_but_chance_asks_on():
    model, collection, _ = make_case()
    labels = collection.concept_labels()
    first = effects(model, np.zeros((80, 3)), False).max(1)
    least = float(np.median(first))
    _, used = read(model, labels, AnswerConfig(budget=3, least_effect=least), "effect", 0.0, False)
    np.testing.assert_array_equal(used[1] == 1, first >= least)
    assert 0 < used[1].sum() < 80
    _, used = read(model, labels, AnswerConfig(budget=3, least_effect=99.0), "effect", 0.0, False)
    assert not used.any()
    _, used = read(model, labels, AnswerConfig(budget=4, least_effect=99.0), "random", 0.0, False)
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
        tables.append(answer_curves(*make_case(), config))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


# curves


def test_a_perfect_readers_answers_settle_the_class_and_never_harm():
    table = answer_curves(*make_case(), AnswerConfig(budget=3, errors=(0.0,)))
    for _, curve in table.groupby(["part", "policy", "trigger"]):
        figures = curve.sort_values("budget")["macro_f1"].to_numpy()
        assert figures[0] < 1 and (np.diff(figures) >= -1e-9).all()
    assert one(table)["macro_f1"].tolist()[2:] == one(table)["accuracy"].tolist()[2:] == [1, 1]
    chance = one(table, policy="random")["macro_f1"].tolist()  # asks about what is idle, too
    assert chance[2] < chance[3] == 1


def test_the_figures_are_those_of_each_part():
    model, collection, rows = make_case()
    table = answer_curves(model, collection, rows, AnswerConfig(budget=2, errors=(0.3,), margin=0.3))
    probabilities, used = read(model, collection.concept_labels(), AnswerConfig(budget=2), "effect", 0.3, False)
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
            assert row["answers"] == pytest.approx((used[budget] * touched)[own].mean())
            assert row["seconds"] == pytest.approx(ANSWER_S * row["answers"])


def test_every_kind_of_reader_is_listed_and_each_curve_is_whole():
    table = answer_curves(*make_case(), AnswerConfig(budget=2, errors=(0.0, 0.2)))
    kinds = table.groupby(["part", "policy", "error", "trigger"]).size()
    assert len(kinds) == 2 * 2 * 2 * 2
    assert (kinds == 3).all()


def test_without_any_budget_the_curve_is_the_models_own_answer():
    model, collection, rows = make_case()
    table = answer_curves(model, collection, rows, AnswerConfig(budget=0, errors=(0.0,)))
    assert set(table["budget"]) == {0} and not table["answers"].any()
    expected = macro_f1(collection.truth()[:40], model.ask(np.zeros((80, 3))).argmax(1)[:40], 4)
    assert set(one(table)["macro_f1"]) == {expected}


def test_studies_with_several_classes_are_asked_about_as_well():
    table = answer_curves(*make_case(multilabel=True), AnswerConfig(budget=2, errors=(0.0,)))
    curve, asked = one(table), one(table, trigger="uncertain")
    assert curve["macro_f1"].iloc[0] < curve["macro_f1"].iloc[1] < curve["macro_f1"].iloc[2] == 1
    assert 0 < asked["answers"].iloc[2] < curve["answers"].iloc[2]


# a trained CSR


def test_a_csr_is_asked_what_its_reasoner_answers():
    collection = make_collection()
    cache, model, rows = make_cache(collection), PrototypeModel(6, 3, 4, 5, 1), collection.rows("test")
    reasoner = make_reasoner(4, clip=True, pruned=3, floor="absent")
    csr = make_csr(model, reasoner, collection).eval()
    asked = AnswerableCSR(cache, csr, rows)
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
