"""The studies that candidates are judged on: frozen, never learned from, and good for a number of decisions.

A gate that reads the same test set every week selects on it: each decision tells one bit about the set, and recipes are
kept that happen to suit it (Dwork et al. 2015, "The reusable holdout"; Blum and Hardt 2015, "The Ladder"). So there are
several *judging sets*, folders of ``data/judging`` in the prepared form (`csr.data.prepared`), which no split of the
data set holds. The first by name is used for `JudgingRule.uses` decisions, then the next; the decisions on record in
MLflow are what is counted, by the set's digest, so it does not matter which machine made them. When all are spent,
nothing is promoted until there is a new one. A spent set may be learned from.

    python -m pipelines.promotion.judging_sets list
    python -m pipelines.promotion.judging_sets draw NAME --from FOLDER    new studies, in the layout of data.source
    dvc add data/judging/NAME

The phantom's are drawn by themselves, each with a seed of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from csr.data.images import pixel_digest
from csr.data.leaks import near_pairs, perceptual_hash
from csr.data.phantom import generate
from csr.data.phantom.plan import CLASSES
from csr.data.prepared import PreparedSet, copy_rows
from csr.errors import CSRError, DataError
from pipelines.digests import path_digest
from pipelines.params import Params, load_params
from pipelines.prepare import prepare_real
from pipelines.promotion.gates import JudgingRule, load_gates
from pipelines.stage import PREPARED, cores
from pipelines.tracking import STATE

FOLDER = Path("data/judging")
_FIRST_SEED = 1000  # the phantom's judging sets are drawn with its seed + 1000, 1001, …
_FEW = 20 * len(CLASSES)  # studies of splits that are thrown away, enough that each class is there


@dataclass(frozen=True)
class JudgingSet:
    """One judging set; all of its studies are of split ``test``."""

    name: str
    data: PreparedSet
    digest: str

    @classmethod
    def open(cls, path: Path) -> JudgingSet:
        """Raises:
        DataError: the folder is none.
        """
        data = PreparedSet.open(path)
        return cls(path.name, data, path_digest(path))


def next_set(params: Params, rule: JudgingRule, uses: Mapping[str, int]) -> JudgingSet:
    """The first judging set that is not spent; the phantom's is drawn if there is none.

    Args:
        uses: decisions on record by the digest of the set.

    Raises:
        DataError: there is no set, or all are spent.
    """
    if params.data.source == "phantom":
        return _of_phantom(params, rule, uses)
    found = available()
    for each in found:
        if uses.get(each.digest, 0) < rule.uses:
            return each
    said = f"all {len(found)} are spent ({rule.uses} decisions each)" if found else "there is none"
    raise DataError(
        f"{FOLDER}: a judging set is needed, studies that are neither learned from nor tuned on, and {said}; draw one "
        "from new studies: python -m pipelines.promotion.judging_sets draw NAME --from FOLDER"
    )


def available() -> list[JudgingSet]:
    """All judging sets, by name."""
    return [JudgingSet.open(path) for path in sorted(FOLDER.glob("*")) if (path / "collection.json").is_file()]


def _of_phantom(params: Params, rule: JudgingRule, uses: Mapping[str, int]) -> JudgingSet:
    data = params.data
    kind = hashlib.sha256(json.dumps([asdict(data.phantom), data.side, rule.phantom_studies]).encode()).hexdigest()[:8]
    number = 0
    while True:
        path = FOLDER / f"phantom-{kind}-{number}"
        if not path.exists():
            config = replace(
                data.phantom,
                train=_FEW, val=_FEW, test=rule.phantom_studies, seed=data.phantom.seed + _FIRST_SEED + number,
            )  # fmt: skip
            print(f"judging set: drawing {path}")
            draft = STATE / "judging"
            generate(config, data.side, draft, data.workers or cores())
            _keep_test(draft, path)
        found = JudgingSet.open(path)
        if uses.get(found.digest, 0) < rule.uses:
            return found
        number += 1


def draw(name: str, source: Path, params: Params) -> JudgingSet:
    """Makes a judging set of the studies in a folder that is laid out as ``data.source`` wants it.

    Raises:
        DataError: there is one of that name, the folder cannot be read, or a study is one of the data set's.
    """
    path = FOLDER / name
    if path.exists():
        raise DataError(f"{path}: is there; a judging set is never changed, give the new one another name")
    if params.data.source == "phantom":
        raise DataError("the phantom's judging sets are drawn by themselves; data.source names no real set")
    prepare_real(
        replace(params.data, path=str(source), feedback=None), path, params.data.workers or cores(),
        torch.device("cpu"), judging=True,
    )  # fmt: skip
    found = JudgingSet.open(path)
    try:
        if PREPARED.exists():
            check_unseen(found, PreparedSet.open(PREPARED), params.data.near_bits)
    except DataError:
        shutil.rmtree(path)
        raise
    return found


def check_unseen(judging: JudgingSet, learned: PreparedSet, near_bits: int = -1) -> None:
    """Raises:
    DataError: a study of the judging set, or nearly its picture, or one of its patients, is in the data set, whatever
        split: its test split is looked at by people who choose recipes.
    """
    own, theirs = judging.data, learned
    known = {pixel_digest(image): row for row, image in enumerate(theirs.images)}
    names = own.collection.studies["study_id"]
    for name, image in zip(names, own.images, strict=True):
        if (row := known.get(pixel_digest(image))) is not None:
            raise _seen(judging, str(name), "is", learned, row)
    if near_bits >= 0:
        ours, hashes = (np.array([perceptual_hash(image) for image in each.images]) for each in (own, theirs))
        if len(near := near_pairs(ours, hashes, near_bits)):
            first, row, _ = min(near.tolist(), key=lambda pair: (pair[0], pair[2], pair[1]))
            raise _seen(judging, str(names.iat[first]), "is nearly", learned, row)
    if own.collection.name == "phantom":
        return  # whose patients are numbered anew in each drawing
    patients = {str(name): row for row, name in reversed(list(enumerate(theirs.collection.patients())))}
    for name, patient in zip(names, own.collection.patients(), strict=True):
        if str(patient) in patients:
            raise _seen(judging, str(name), "is of the same patient as", learned, patients[str(patient)])


def _seen(judging: JudgingSet, name: str, how: str, learned: PreparedSet, row: int) -> DataError:
    study = learned.collection.studies.iloc[row]
    return DataError(
        f"judging set {judging.name}: study {name!r} {how} {study['study_id']!r} of split {study['split']!r} in "
        f"{learned.path}; what is judged on must not be learned from: take it out of one of them"
    )


def _keep_test(draft: Path, path: Path) -> None:
    """Moves a prepared set to ``path`` without what is not of split ``test``."""
    data = PreparedSet.open(draft)
    copy_rows(data, data.collection.rows("test"), path)
    shutil.rmtree(draft)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.promotion.judging_sets")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all judging sets, and how often each was used")
    drawing = commands.add_parser("draw", help="make one of new studies")
    drawing.add_argument("name")
    drawing.add_argument("--from", dest="source", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    try:
        if given.command == "draw":
            found = draw(given.name, given.source, load_params())
            print(f"{FOLDER / found.name}: {len(found.data.collection.studies)} studies, digest {found.digest[:12]}")
        else:
            _list()
    except CSRError as error:
        sys.exit(f"judging_sets: {error}")


def _list() -> None:
    from pipelines.promotion.decisions import uses_by_set
    from pipelines.tracking import connect

    uses, rule = uses_by_set(connect()), load_gates().judging
    for each in available():
        count = uses.get(each.digest, 0)
        said = "spent" if count >= rule.uses else f"{count} of {rule.uses} decisions"
        print(f"{each.name}  {len(each.data.collection.studies)} studies  {said}")


if __name__ == "__main__":
    main()
