"""``csr concept add NAME``: a concept that a trained model does not know, from a few boxed examples, as a new bundle.

    csr concept add device --examples device.csv --model build/head/model.pt --data data/prepared --bundle build/device

The table of examples has the columns ``study_id, x_min, y_min, x_max, y_max``, a row a box, in pixels of the prepared
images; a row without corners is a training study that lacks the concept. The bundle is written with the defaults of
`csr.bundle.writing.ExportConfig`, and the model beside it as ``<bundle>.pt``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from csr.data.prepared import PreparedSet
from csr.data.records import CORNERS
from csr.errors import DataError
from csr.interaction.few_shot import Examples
from csr.network.trained import TrainedCSR
from csr.workflow.use import add_concept, export_bundle


def read_examples(file: Path, concept: str, data: PreparedSet) -> Examples:
    """The examples of a table; see the module's docstring.

    Raises:
        DataError: the file is missing or no such table, a study is unknown, or a row has some corners only.
    """
    try:
        table = pd.read_csv(file, dtype={"study_id": str})
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{file}: is not a CSV table that can be read ({error})") from None
    if missing := [name for name in ("study_id", *CORNERS) if name not in table]:
        raise DataError(f"{file}: column {missing[0]!r} is missing; it needs study_id, {', '.join(CORNERS)}")
    row_of = {str(study): row for row, study in enumerate(data.collection.studies["study_id"])}
    corners = table[CORNERS].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    boxes: dict[int, list[np.ndarray]] = {}
    absent = []
    for number, (study, given, box) in enumerate(
        zip(table["study_id"], table[CORNERS].notna().to_numpy(), corners, strict=True), start=2
    ):
        if study not in row_of:
            raise DataError(f"{file}, line {number}: the data set has no study {study!r}")
        if not given.any():
            absent.append(row_of[study])
        elif np.isnan(box).any():
            raise DataError(f"{file}, line {number}: a box needs four numbers; leave all empty where it is absent")
        else:
            boxes.setdefault(row_of[study], []).append(box)
    return Examples(concept, {row: np.stack(own) for row, own in boxes.items()}, np.unique(np.array(absent, np.int64)))


def _add(given: argparse.Namespace) -> None:
    data = PreparedSet.open(given.data)
    if not given.model.is_file():
        raise DataError(f"{given.model}: missing; train the head first (dvc repro head)")
    csr, examples = TrainedCSR.load(given.model), read_examples(given.examples, given.name, data)
    added, known = add_concept(csr, data, examples)
    added.save(given.bundle.with_name(given.bundle.name + ".pt"))
    bundle = export_bundle(added, known, given.bundle)
    boxed, lacking = len(examples.boxes), len(examples.absent)
    print(
        f"{bundle.path}: knows {given.name!r} too, from {boxed} studies with boxes and {lacking} without it; serve it "
        f"with csr serve --bundle {bundle.path}"
    )


def main(arguments: Sequence[str]) -> None:
    """The command; see the module's docstring.

    Raises:
        CSRError: it cannot be done, for the reason given.
    """
    parser = argparse.ArgumentParser(prog="csr concept", description="Concepts of a trained model.")
    adding = parser.add_subparsers(required=True, metavar="add").add_parser(
        "add", help="add one from a few boxed examples, and write a new bundle"
    )
    adding.add_argument("name", help="of the new concept")
    adding.add_argument("--examples", type=Path, required=True, help="CSV: study_id, x_min, y_min, x_max, y_max")
    adding.add_argument("--model", type=Path, default=Path("build/head/model.pt"))
    adding.add_argument("--data", type=Path, default=Path("data/prepared"), help="what it was trained on")
    adding.add_argument("--bundle", type=Path, required=True, help="folder to write; replaced if it exists")
    adding.set_defaults(run=_add)
    given = parser.parse_args(arguments)
    given.run(given)
