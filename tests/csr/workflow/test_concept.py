"""``csr concept add``: from a table of boxes to a bundle that knows one concept more; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import csr
from csr.bundle.format import Bundle
from csr.errors import DataError
from csr.workflow.concept import main, read_examples
from tests.conftest import TinyRun

COLUMNS = ["study_id", "x_min", "y_min", "x_max", "y_max"]


def table(run: TinyRun, file: Path) -> Path:
    collection = run.data.collection
    k, boxes = collection.concepts.index("effusion"), collection.boxes_by_pair()
    train, labels = collection.rows("train"), collection.concept_labels()
    study = collection.studies["study_id"]
    shown = [int(row) for row in train if (int(row), k) in boxes][:3]
    rows = [[study[row], *box] for row in shown for box in boxes[row, k].tolist()]
    rows += [[study[row], None, None, None, None] for row in train[labels[train, k] == 0][:3]]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(file, index=False)
    return file


def test_a_table_of_boxes_makes_a_bundle_that_knows_one_concept_more(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run.csr.save(tmp_path / "model.pt")
    given = ["--model", str(tmp_path / "model.pt"), "--data", str(tiny_run.data.path)]
    examples = ["--examples", str(table(tiny_run, tmp_path / "device.csv"))]
    main(["add", "device", *examples, *given, "--bundle", str(tmp_path / "bundle")])
    assert "knows 'device' too, from 3 studies with boxes and 3 without it" in capsys.readouterr().out
    saved = csr.TrainedCSR.load(tmp_path / "bundle.pt")
    assert saved.concepts == (*tiny_run.csr.concepts, "device")
    assert Bundle.open(tmp_path / "bundle").manifest.concepts == saved.concepts


def test_tables_that_do_not_fit_are_refused_with_the_line(tiny_run: TinyRun, tmp_path: Path) -> None:
    study = tiny_run.data.collection.studies["study_id"][0]
    wrong = {
        "column 'y_max' is missing": "study_id,x_min,y_min,x_max\n",
        "line 3: the data set has no study 'nobody'": f"{','.join(COLUMNS)}\n{study},1,1,9,9\nnobody,,,,\n",
        "line 2: a box needs four numbers": f"{','.join(COLUMNS)}\n{study},1,1,9,\n",
        "is not a CSV table": "",
    }
    for message, text in wrong.items():
        (tmp_path / "wrong.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_examples(tmp_path / "wrong.csv", "device", tiny_run.data)
    with pytest.raises(DataError, match=r"none\.csv: is not a CSV table"):
        read_examples(tmp_path / "none.csv", "device", tiny_run.data)
