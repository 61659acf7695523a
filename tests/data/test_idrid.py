"""Folds of a real, small medical set, read from where it lies; see ``tests/data/test_blood_cells.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csr.data.problems import Problems
from csr.data.sources.table import read_table
from csr.data.splits import SplitShares

NAMED = os.environ.get("CSR_SHARED_DATA")
FOLDER = Path(NAMED or Path(__file__).parents[3] / "shared" / "data") / "idrid"
pytestmark = pytest.mark.skipif(
    NAMED is None and not FOLDER.is_dir(), reason=f"the real data set is not in {FOLDER}; name it by CSR_SHARED_DATA"
)
FOLDS = 5


def test_each_fold_can_be_judged_by_grade_and_by_pointing() -> None:
    judged: list[str] = []
    for fold in range(FOLDS):
        problems = Problems()
        collection = read_table(FOLDER, SplitShares(folds=FOLDS, fold=fold), problems).collection
        assert not problems.found
        studies, outlined = collection.studies, set(collection.boxes["study_id"])
        assert (studies.loc[studies["label"].isna(), "split"] == "train").all()
        for split in ("val", "test"):
            own = studies[studies["split"] == split]
            assert 78 <= len(own) <= 80
            assert all(
                abs(count - total / FOLDS) <= 1.5 for count, total in zip(_grades(own), _grades(studies), strict=True)
            )
            # 45 of the outlined studies have a grade
            assert 8 <= own["study_id"].isin(outlined).sum() <= 10
            assert (own["concept:soft_exudate"] == 1).sum() >= 3
        judged += studies.loc[studies["split"] == "test", "study_id"].tolist()
    assert len(judged) == len(set(judged)) == 394


def _grades(studies) -> list[int]:
    return [int((studies["label"] == grade).sum()) for grade in ("no_dr", "mild_moderate", "severe_pdr")]
