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


# folds


def retina(count: int = 120) -> pd.DataFrame:
    """As in small medical sets: two studies a patient; experts outlined a lesion in few studies of the sick, and the
    healthy are known to lack it; nothing is known of the others, and some have no class."""
    table = pd.DataFrame({"study_id": [f"s{index:03d}" for index in range(count)], "split": ""})
    table["patient_id"] = [f"p{index // 2:03d}" for index in range(count)]
    table["label"] = [None if index % 24 == 0 else ("sick" if index % 3 else "well") for index in range(count)]
    outlined = table["label"].eq("sick") & (np.arange(count) % 5 == 1)
    table["concept:lesion"] = np.where(outlined, 1.0, np.where(table["label"] == "well", 0.0, np.nan))
    return table


OUTLINED = set(retina()["study_id"][retina()["concept:lesion"] == 1])


@pytest.mark.parametrize("seed", range(4))
def test_every_study_is_in_one_test_fold_and_one_validation_fold_or_always_in_train(seed: int) -> None:
    table = retina()
    made = [complete_split(table, SplitShares(seed=seed, folds=4, fold=fold), OUTLINED) for fold in range(4)]
    tested = sum((split == "test").astype(int) for split in made)
    validated = sum((split == "val").astype(int) for split in made)
    without = table["patient_id"].isin(table["patient_id"][table["label"].isna()])
    assert (tested[~without] == 1).all() and (validated[~without] == 1).all()
    assert (tested[without] == 0).all() and (validated[without] == 0).all()
    for fold, split in enumerate(made):
        assert (split.groupby(table["patient_id"]).nunique() == 1).all()
        assert ((split == "val") == (made[(fold + 1) % 4] == "test")).all()


def test_folds_have_equal_shares_of_classes_and_of_outlined_studies() -> None:
    table = retina()
    tests = [complete_split(table, SplitShares(folds=4, fold=fold), OUTLINED) == "test" for fold in range(4)]
    for has in (table["label"] == "sick", table["label"] == "well", table["study_id"].isin(OUTLINED)):
        counts = [int((test & has).sum()) for test in tests]
        assert max(counts) - min(counts) <= 2, counts


def test_what_is_located_counts_where_no_label_tells_it() -> None:
    table = pd.DataFrame({"study_id": [f"s{index}" for index in range(40)], "split": "", "label": "a"})
    table["patient_id"], table["concept:x"] = table["study_id"], 1.0
    located = set(table["study_id"][:8])
    for fold in range(4):
        split = complete_split(table, SplitShares(folds=4, fold=fold), located)
        assert (split[:8] == "test").sum() == 2 and (split == "test").sum() == 10


def test_a_split_that_the_publisher_gives_takes_no_fold() -> None:
    split = complete_split(studies(), SplitShares(0.15, 0.0, 0, folds=5, fold=3))
    assert split.value_counts().to_dict() == {"train": pytest.approx(240, abs=6), "val": pytest.approx(60, abs=6)}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"folds": 2}, "data.folds: at least 3"),
        ({"folds": 1, "test": 0.0}, "data.folds: at least 2"),
        ({"folds": 5, "fold": 5}, "data.fold: a number from 0 to 4"),
        ({"folds": 5, "fold": -1}, "data.fold: a number from 0 to 4"),
        ({"fold": 1}, "data.fold: there are no folds"),
    ],
)
def test_folds_that_cannot_be_are_refused(given: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SplitShares(**given)
