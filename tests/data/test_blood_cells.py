"""The real data set that the project is developed with, read from where it lies.

The folder is no part of the repository: ``CSR_SHARED_DATA`` names it, ``../shared/data`` is the default. Where it is
absent these tests are left out, visibly; a folder that is named and missing is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from csr.data.prepared import PreparedSet
from csr.data.problems import Problems
from csr.data.quality import quality_warnings
from csr.data.raw import prepare_raw
from csr.data.sources.table import read_table
from csr.data.splits import SplitShares

NAMED = os.environ.get("CSR_SHARED_DATA")
FOLDER = Path(NAMED or Path(__file__).parents[3] / "shared" / "data") / "blood_cells"
pytestmark = pytest.mark.skipif(
    NAMED is None and not FOLDER.is_dir(), reason=f"the real data set is not in {FOLDER}; name it by CSR_SHARED_DATA"
)


def test_the_real_set_reads_prepares_and_keeps_its_boxes_on_the_cells(tmp_path: Path) -> None:
    problems = Problems()
    raw = read_table(FOLDER, SplitShares(), problems)
    assert not problems.found
    collection = raw.collection
    assert (len(collection.concepts), len(collection.classes), len(collection.studies)) == (22, 5, 2000)
    assert collection.studies["split"].value_counts().to_dict() == {"train": 1000, "test": 700, "val": 300}
    prepare_raw(raw, tmp_path / "prepared", side=96, channels=3, workers=2, problems=problems)
    data = PreparedSet.open(tmp_path / "prepared")
    boxes = data.collection.boxes
    corners = boxes[["x_min", "y_min", "x_max", "y_max"]].to_numpy()
    assert (corners >= 0).all() and (corners <= 96).all()
    found = quality_warnings(data)
    assert found and all("says the same as class" in text for text in found)  # granules are what tells white cells
    # a stained cell is darker than what surrounds it: boxes that moved away from their cells would lose this
    names = data.collection.studies["study_id"]
    boxes_of = boxes.groupby("study_id").indices
    darker = []
    for row in data.collection.rows("val"):
        if names[row] in boxes_of:
            own = corners[boxes_of[names[row]]]
            x_min, y_min, x_max, y_max = np.rint([*own[:, :2].min(0), *own[:, 2:].max(0)]).astype(int)
            grey = data.images[row].mean(0)
            inside = np.zeros_like(grey, bool)
            inside[y_min:y_max, x_min:x_max] = True
            darker.append(grey[inside].mean() < grey[~inside].mean())
    assert len(darker) > 250 and np.mean(darker) > 0.95
