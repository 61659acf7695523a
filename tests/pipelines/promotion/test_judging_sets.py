"""Judging sets: frozen, taken in turn, and never of what was learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csr.data.phantom import PhantomConfig, generate
from csr.data.prepared import PreparedSet, copy_rows
from csr.errors import DataError
from pipelines.params import DataParams, Params, load_params
from pipelines.promotion.gates import JudgingRule
from pipelines.promotion.judging_sets import JudgingSet, available, check_unseen, draw, next_set
from tests.csr.data.sources.test_table import folder as table_folder

ROOT = Path(__file__).parents[3]
table = table_folder  # a fixture: twelve studies
RULE = JudgingRule(uses=2, phantom_studies=40)


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    params = load_params(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    phantom = PhantomConfig(train=100, val=50, test=40, contrast=2.0)
    return replace(params, data=replace(params.data, side=64, workers=1, phantom=phantom))


def test_the_phantoms_are_drawn_in_turn_and_always_the_same(params: Params) -> None:
    first = next_set(params, RULE, {})
    assert set(first.data.collection.studies["split"]) == {"test"}
    assert set(first.data.collection.test_parts()) == {"iid", "shifted"}
    assert len(first.data.collection.studies) == 80
    assert next_set(params, RULE, {first.digest: 1}).digest == first.digest
    second = next_set(params, RULE, {first.digest: 2})
    assert second.name != first.name and second.digest != first.digest
    again = {path.name: JudgingSet.open(path).digest for path in Path("data/judging").iterdir()}
    for path in Path("data/judging").iterdir():
        path.rename(path.with_name(f"kept-{path.name}"))
    assert next_set(params, RULE, {}).digest == again[first.name]


def test_another_phantom_has_sets_of_its_own(params: Params) -> None:
    first = next_set(params, RULE, {})
    harder = replace(params, data=replace(params.data, phantom=replace(params.data.phantom, contrast=1.0)))
    assert next_set(harder, RULE, {}).name != first.name


def test_what_was_learned_from_is_not_judged_on(params: Params, tmp_path: Path) -> None:
    generate(params.data.phantom, 64, tmp_path / "prepared")
    learned = PreparedSet.open(tmp_path / "prepared")
    check_unseen(next_set(params, RULE, {}), learned, near_bits=12)
    row = learned.collection.rows("train")[3]
    copy_rows(learned, np.sort(np.array([row, *learned.collection.rows("test")])), tmp_path / "seen")
    name = learned.collection.studies["study_id"].iat[row]
    with pytest.raises(DataError, match=f"study '{name}' is '{name}' of split 'train'"):
        check_unseen(JudgingSet.open(tmp_path / "seen"), learned)


def test_real_sets_are_drawn_from_new_studies(params: Params, table: Path, tmp_path: Path) -> None:
    real = replace(params, data=replace(DataParams(), source="table", side=32, path=str(table), display=None))
    with pytest.raises(DataError, match="there is none; draw one"):
        next_set(real, RULE, {})
    drawn = draw("spring", table, real)
    assert set(drawn.data.collection.studies["split"]) == {"test"}
    assert [each.name for each in available()] == ["spring"] and next_set(real, RULE, {}).digest == drawn.digest
    with pytest.raises(DataError, match="never changed, give the new one another name"):
        draw("spring", table, real)
    with pytest.raises(DataError, match=r"all 1 are spent \(2 decisions each\)"):
        next_set(real, RULE, {drawn.digest: 2})
    with pytest.raises(DataError, match="drawn by themselves"):
        draw("summer", table, params)
    (tmp_path / "data/judging/spring").rename(tmp_path / "data/prepared")
    with pytest.raises(DataError, match="what is judged on must not be learned from"):
        draw("summer", table, real)
    assert available() == []
