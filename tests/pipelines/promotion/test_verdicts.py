"""What passes and what does not: by hand, and how often a candidate passes that is truly as good, or as bad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from csr.errors import ConfigError
from csr.evaluation.bootstrap import Interval
from pipelines.promotion.gates import Gate, Gates
from pipelines.promotion.judging import Answers, Studies
from pipelines.promotion.verdicts import Cost, Judged, Verdict, apply_gates

CLASSES = ("a", "b", "c")


def studies(count: int, seed: int = 0, parts: tuple[str, ...] = ("test",), sites: tuple[str, ...] = ("",)) -> Studies:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    part, site = np.resize(np.array(parts), count), np.resize(np.array(sites), count)
    return Studies(truth, part, site, np.arange(count).astype(str), np.ones(count), CLASSES)


def answers(truth: np.ndarray, accuracy: float, seed: int, easy: np.ndarray | None = None) -> Answers:
    """A system that is right with a probability of ``accuracy``; ``easy`` makes two systems fail on the same."""
    rng = np.random.default_rng(seed)
    luck = rng.random(len(truth))
    if easy is not None:
        luck = np.where(rng.random(len(truth)) < 0.5, easy, luck)
    right = luck < accuracy
    decided = np.where(right, truth, (truth + rng.integers(1, 3, len(truth))) % 3)
    probabilities = np.where(np.eye(3)[decided] == 1, 0.8, 0.1)
    return Answers(probabilities, decided, truth.copy(), right.astype(float), ~right)


def said(gates: list[Gate], judged: Judged, readings: Judged | None = None, **costs: Any) -> list[Verdict]:
    return apply_gates(Gates(gates=gates, draws=400), judged, readings, costs, 0.0)


def of(verdicts: list[Verdict], where: str) -> Verdict:
    return next(each for each in verdicts if each.where == where)


def test_one_gate_judges_every_part_and_one_bad_part_fails_it() -> None:
    about = studies(600, parts=("iid", "shifted"))
    good = answers(about.truth, 0.9, 1)
    shifted = about.parts == "shifted"
    decided = np.where(shifted, (about.truth + 1) % 3, good.decided)
    bad = Answers(good.probabilities, decided, good.answered, good.hits, good.unlike)
    verdicts = said([Gate(measure="macro_f1", limit=0.5)], Judged(about, bad, None))
    assert of(verdicts, "iid").passed and not of(verdicts, "shifted").passed
    assert "beyond the limit" in of(verdicts, "shifted").reason


def test_classes_and_sites_are_judged_by_themselves_if_they_are_large_enough() -> None:
    about = studies(300, sites=("north", "north", "south", ""))
    verdicts = said(
        [Gate(measure="macro_f1", by="class", limit=0.2), Gate(measure="accuracy", by="site", limit=0.2, least=80)],
        Judged(about, answers(about.truth, 0.9, 1), None),
    )
    assert {each.where for each in verdicts[1:]} == {"a, test", "b, test", "c, test", "site north, test"}
    broken = answers(about.truth, 0.95, 1)
    broken.decided[about.truth == 2] = 0
    verdicts = said([Gate(measure="macro_f1", by="class", limit=0.2)], Judged(about, broken, None))
    assert [each.where for each in verdicts if not each.passed] == ["c, test"]


def test_less_is_better_where_it_is() -> None:
    about = studies(400)
    champion, candidate = answers(about.truth, 0.9, 1), answers(about.truth, 0.6, 2)
    gate = Gate(measure="unlike", limit=0.3, margin=0.1)
    verdict = of(said([gate], Judged(about, candidate, champion)), "test")
    assert not verdict.passed and "worse than the champion" in verdict.reason and "beyond the limit" in verdict.reason
    assert of(said([gate], Judged(about, champion, candidate)), "test").passed


def test_what_cannot_be_computed_fails() -> None:
    about = studies(40)
    nothing = Studies(about.truth, about.parts, about.sites, about.patients, np.zeros(40), CLASSES)
    verdict = of(
        said([Gate(measure="pointing", limit=0.3)], Judged(nothing, answers(about.truth, 0.9, 1), None)), "test"
    )
    assert not verdict.passed


def test_costs_are_ratios_and_the_golden_case_has_a_tolerance() -> None:
    about = studies(40)
    judged = Judged(about, answers(about.truth, 0.9, 1), None)
    slow = {"encode_ms": Cost(20.0, 10.0, Interval(2.0, 1.9, 2.1))}
    assert not said([Gate(measure="encode_ms", margin=1.25)], judged, None, **slow)[1].passed
    assert said([Gate(measure="encode_ms", margin=2.5)], judged, None, **slow)[1].passed
    assert not said([Gate(measure="encode_ms", limit=15)], judged, None, **slow)[1].passed
    first = {"encode_ms": Cost(20.0, None, None)}
    assert said([Gate(measure="encode_ms", margin=1.25)], judged, None, **first)[1].passed
    for error, passed in ((0.0005, True), (0.01, False), (float("nan"), False)):
        assert apply_gates(Gates(gates=[]), judged, None, {}, error)[0].passed == passed


def test_readings_are_judged_if_there_are_any_and_a_part_that_is_not_there_is_refused() -> None:
    about = studies(60, parts=("readings",))
    judged = Judged(studies(60), answers(studies(60).truth, 0.9, 1), None)
    gate = Gate(measure="accuracy", part="readings", limit=0.5)
    nobody = of(said([gate], judged), "readings")
    assert nobody.passed and nobody.candidate is None and "nobody has signed" in nobody.reason
    assert of(said([gate], judged, Judged(about, answers(about.truth, 0.9, 1), None)), "readings").passed
    assert not of(said([gate], judged, Judged(about, answers(about.truth, 0.3, 1), None)), "readings").passed
    with pytest.raises(ConfigError, match="part 'shifted' is none of test"):
        said([Gate(measure="auroc", part="shifted", limit=0)], judged)


# 200 pairs of systems of known accuracy, which fail on the same studies half of the time, as two trainings do. The
# accuracy of what they are drawn from differs by `worse`; the gate's margin is 0.05, its error 0.05.
@pytest.mark.parametrize(("worse", "least", "most"), [(0.05, 0.0, 0.09), (0.0, 0.75, 1.0), (-0.03, 0.97, 1.0)])
def test_candidates_pass_at_the_stated_rate(worse: float, least: float, most: float) -> None:
    gate, passed = Gates(gates=[Gate(measure="accuracy", margin=0.05)], draws=400), []
    for case in range(200):
        about = studies(1000, case)
        easy = np.random.default_rng(10_000 + case).random(1000)
        champion = answers(about.truth, 0.85, 20_000 + case, easy)
        candidate = answers(about.truth, 0.85 - worse, 30_000 + case, easy)
        passed.append(apply_gates(gate, Judged(about, candidate, champion), None, {}, 0.0)[1].passed)
    assert least <= np.mean(passed) <= most
