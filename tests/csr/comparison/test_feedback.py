"""Simulated readers who correct new studies: what they say, how often they are wrong, and that it can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csr.comparison.feedback import ARMS, MAIN, POOL, Said, correct, least_sure, new_studies, write_set
from csr.data.feedback import Reading
from csr.data.feedback.joining import join_feedback
from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet

SIDE = 32
COUNT = 60


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedSet, np.ndarray, Said]:
    """New studies, and a model that is the surer of one the later it comes and sees every concept in a corner."""
    folder = tmp_path_factory.mktemp("new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csr.comparison.feedback.POOL", 100)
        data, rows = new_studies(PhantomConfig(devices=0.6), SIDE, 0, folder / "new")
    n, concepts = len(rows), len(data.collection.concepts)
    says = Said(np.zeros(n, int), np.arange(n) / n, np.ones((n, concepts), bool), np.full((n, concepts, 2), 1.0))
    return data, rows, says


def wrong_words(data: PreparedSet, rows: np.ndarray, readings: list[Reading]) -> np.ndarray:
    """n×(K + 1) bool: the concepts, and last the class, of which a reader says what is not so."""
    found = []
    for row, said in zip(rows, readings, strict=True):
        there = data.collection.concept_labels()[row] == 1
        words = np.array([name in said.present for name in data.collection.concepts])
        assert set(said.rejected) == set(data.collection.concepts) - said.present, "every concept is spoken of"
        found.append([*(words != there), said.found != (data.collection.studies["label"].iat[row],)])
    return np.array(found)


def test_readers_who_never_err_say_what_is_there_and_where(met: tuple[PreparedSet, np.ndarray, Said]) -> None:
    data, rows, says = met
    readings = correct(data, rows, says, COUNT, 0.0, 1)
    assert not wrong_words(data, rows[:COUNT], readings).any(), "the least sure come first here"
    for row, said in zip(rows, readings, strict=False):
        for name in data.collection.concepts:
            drawn = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in said.boxes if box.concept == name]
            np.testing.assert_allclose(np.array(drawn).reshape(-1, 4), data.collection.boxes_of(row, name))
        spots = [box for box in said.boxes if box.kind == "ignore"]
        assert all((box.x_min, box.y_min) == (0, 0) for box in spots)


def test_a_share_of_the_words_is_wrong_and_the_mistakes_of_the_better_are_among_those_of_the_worse(
    met: tuple[PreparedSet, np.ndarray, Said],
) -> None:
    data, rows, says = met
    some, more = (wrong_words(data, rows[:COUNT], correct(data, rows, says, COUNT, error, 1)) for error in (0.1, 0.3))
    assert some.mean() == pytest.approx(0.1, abs=0.04) and more.mean() == pytest.approx(0.3, abs=0.05)
    assert more[some].all()
    other = wrong_words(data, rows[:COUNT], correct(data, rows, says, COUNT, 0.3, 2))
    assert (other != more).any(), "other readers err elsewhere"


def test_what_they_said_joins_as_a_feedback_set_does(met: tuple[PreparedSet, np.ndarray, Said], tmp_path: Path) -> None:
    data, rows, says = met
    generate(PhantomConfig(train=60, val=20, test=20, devices=0.6), SIDE, tmp_path / "plain")
    base = PreparedSet.open(tmp_path / "plain")
    feedback = write_set(data, rows, correct(data, rows, says, COUNT, 0.3, 1), tmp_path / "set")
    _, joined = join_feedback(base, feedback, tmp_path / "joined", near_bits=-1)
    assert joined.added == COUNT and not joined.left_out
    found = PreparedSet.open(tmp_path / "joined")
    assert found.collection.said_labels()[-COUNT:].all() and not found.collection.said_labels()[:-COUNT].any()
    assert {"finding", "ignore"} <= set(found.reader_boxes()["kind"])


def test_new_studies_are_of_no_split_and_the_least_sure_are_corrected(
    met: tuple[PreparedSet, np.ndarray, Said],
) -> None:
    data, rows, _ = met
    assert set(data.collection.studies["part"].iloc[rows]) == {"shifted"}
    margin = np.array([0.5, 0.1, 0.3, 0.2])
    nothing = np.zeros((4, 1))
    assert least_sure(Said(nothing, margin, nothing > 0, nothing), 2).tolist() == [1, 3]
    assert max(arm.studies for arm in ARMS.values()) < POOL, "some are left to look at"
    assert set(MAIN) < set(ARMS) and not ARMS["none"].studies
