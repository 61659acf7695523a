"""Splits that are made: whole patients, shares, rare labels everywhere, seeded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from csr.data.splits import SplitShares, complete_split

SHARES = SplitShares(0.2, 0.2, 0)


def studies(count: int = 300, seed: int = 0) -> pd.DataFrame:
    """Three studies a patient; a rare and a common target that overlap, and a rare concept, unknown here and there."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"patient_id": [f"p{index // 3:03d}" for index in range(count)], "split": ""})
    table["target:common"] = (rng.random(count) < 0.4).astype(float)
    table["target:rare"] = np.where(np.arange(count) % 30 == 0, 1.0, 0.0)
    table["concept:small"] = np.where(np.arange(count) % 20 == 1, 1.0, np.where(rng.random(count) < 0.5, 0.0, np.nan))
    return table


@pytest.mark.parametrize("seed", range(5))
def test_every_split_gets_its_share_of_every_label(seed: int) -> None:
    table = studies(seed=seed)
    split = complete_split(table, SplitShares(0.2, 0.2, seed))
    assert split.value_counts()[["train", "val", "test"]].tolist() == pytest.approx([180, 60, 60], abs=6)
    for column, total in (("target:rare", 10), ("concept:small", 15)):
        has = table[column] == 1
        assert has.sum() == total
        counts = split[has].value_counts()
        for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            assert abs(counts[name] - share * total) <= 1, (column, name)
    share = (table["target:common"] == 1).groupby(split).mean()
    assert share.max() - share.min() < 0.05


def test_a_patient_stays_in_one_split() -> None:
    table = studies()
    split = complete_split(table, SHARES)
    assert (split.groupby(table["patient_id"]).nunique() == 1).all()


def test_a_given_split_is_kept_and_holds_for_the_patient_s_other_studies() -> None:
    table = studies()
    table.loc[1, "split"] = "test"
    table.loc[7, "split"] = "val"
    split = complete_split(table, SHARES)
    assert split[:3].tolist() == ["test"] * 3 and split[6:9].tolist() == ["val"] * 3
    assert set(split) == {"train", "val", "test"}
    whole = table.assign(split="train")
    assert complete_split(whole, SHARES).tolist() == ["train"] * len(table)


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    table = studies()
    split = complete_split(table, SHARES)
    assert complete_split(table, SHARES).tolist() == split.tolist()
    assert complete_split(table, SplitShares(0.2, 0.2, 1)).tolist() != split.tolist()
    shuffled = table.sample(frac=1, random_state=0)
    assert complete_split(shuffled, SHARES).sort_index().tolist() == split.tolist()


def test_a_share_of_nothing_gets_nobody() -> None:
    split = complete_split(studies(), SplitShares(0.25, 0.0, 0))
    assert split.value_counts().to_dict() == {"train": pytest.approx(225, abs=6), "val": pytest.approx(75, abs=6)}


def test_classes_are_stratified_too() -> None:
    table = pd.DataFrame({"patient_id": [f"p{index}" for index in range(100)], "split": ""})
    table["label"] = ["rare" if index % 20 == 0 else "usual" for index in range(100)]
    counts = complete_split(table, SHARES)[table["label"] == "rare"].value_counts()
    assert counts.to_dict() == {"train": 3, "val": 1, "test": 1}
