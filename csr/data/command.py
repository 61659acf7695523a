"""``csr data check PATH``: everything that is wrong with a data set, without writing anything."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from csr.data.confounders import confounder_summary, confounder_warnings, confounders
from csr.data.orientation import CHEST, directions
from csr.data.prepared import PreparedSet
from csr.data.problems import Problems, grouped
from csr.data.quality import quality_warnings
from csr.data.raw import prepare_raw
from csr.data.records import Collection, Task
from csr.data.sources.read import Source, SourceOptions, read_source
from csr.data.sources.tbx11k import TBX11KConfig
from csr.data.sources.vindr_cxr import VinDrConfig
from csr.data.splits import SplitShares
from csr.data.tasks import TaskChoice
from csr.errors import ConfigError, DataError

SIDE = 64  # pixels that images are decoded to for a check: it sees the same problems at any


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Args:
        collection: the tables, or None if anything is wrong.
        problems: what is wrong.
        warnings: what is not, but should be known.
        confounders: a sentence on what else predicts the class.
    """

    collection: Collection | None
    problems: Problems
    warnings: Sequence[str] = ()
    confounders: str = ""


def check(
    folder: Path, source: Source, options: SourceOptions, lenient: bool = False, display: str | None = None
) -> Checked:
    """Reads and decodes a whole data set as stage ``prepare`` would, and throws the result away."""
    problems = Problems()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            raw = read_source(source, folder, options, problems)
            prepared = Path(scratch) / "prepared"
            collection = prepare_raw(
                raw, prepared, SIDE, 3, options.workers, problems, lenient=lenient, display=display
            )
            data = PreparedSet.open(prepared)
            found = confounders(data)
            said = [*data.notes(), *quality_warnings(data), *confounder_warnings(found)]
            return Checked(collection, problems, said, confounder_summary(found))
        except DataError as error:
            if not problems.found:  # the source could not go on, so nothing was gathered
                where, _, reason = str(error).partition(": ")
                problems.add(where, reason, skippable=False)
            return Checked(None, problems)


def _check(given: argparse.Namespace) -> None:
    choice = TaskChoice(given.task, _names(given.concepts), _names(given.targets), dict(given.merge))
    options = SourceOptions(
        _shares(given),
        TBX11KConfig(given.concept_table, tuple(given.located)),
        given.workers,
        choice,
        VinDrConfig(given.consensus, given.least),
    )
    checked = check(given.path, given.source, options, given.lenient, given.display)
    collection = checked.collection
    if collection is None:
        for problem in grouped(checked.problems.found):
            print(problem)
        sys.exit(f"{given.path}: {len(checked.problems.found)} problems")
    counts = ", ".join(f"{len(collection.rows(split))} {split}" for split in ("train", "val", "test"))
    if collection.classes and (unknown := int((~collection.has_class()).sum())):
        counts += f" ({unknown} for training without a class)"
    print(
        f"{given.path}: nothing is wrong. {counts}; {len(collection.classes)} classes, {len(collection.concepts)} "
        f"concepts, {len(collection.boxes)} boxes"
    )
    for warning in checked.warnings:
        print(f"warning: {warning}")
    print(checked.confounders)


def _shares(given: argparse.Namespace) -> SplitShares:
    try:
        return SplitShares(given.validation_share, given.test_share, given.split_seed, given.folds, given.fold)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _names(given: list[str] | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(given)


def _merged(text: str) -> tuple[str, tuple[str, ...]]:
    new, equals, old = text.partition("=")
    if not (new and equals and old):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NEW=OLD,OLD")
    return new, tuple(old.split(","))


def _display(text: str) -> str | None:
    if text == "none":
        return None
    try:
        directions(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main(arguments: Sequence[str]) -> None:
    """The command; see the module's docstring.

    Raises:
        CSRError: it cannot be done, for the reason given.
    """
    parser = argparse.ArgumentParser(prog="csr data", description="Data sets.")
    checking = parser.add_subparsers(required=True, metavar="check").add_parser(
        "check", help="say everything that is wrong with a data set"
    )
    checking.add_argument("path", type=Path)
    checking.add_argument("--source", choices=get_args(Source), default="table")
    checking.add_argument(
        "--display", type=_display, default=CHEST, help="how patients lie in the images, or 'none'; as data.display"
    )
    checking.add_argument("--validation-share", type=float, default=SplitShares.validation)
    checking.add_argument("--test-share", type=float, default=SplitShares.test)
    checking.add_argument("--split-seed", type=int, default=SplitShares.seed)
    checking.add_argument("--folds", type=int, help="as data.folds: so many folds instead of shares")
    checking.add_argument("--fold", type=int, default=SplitShares.fold, help="as data.fold: the one to judge on")
    checking.add_argument("--lenient", action="store_true", help="take names that fit one file but for their spelling")
    checking.add_argument("--task", choices=get_args(Task), help="what is learned; by default what the set offers")
    checking.add_argument("--concepts", nargs="+", metavar="LABEL", help="labels that are concepts")
    checking.add_argument("--targets", nargs="+", metavar="LABEL", help="labels that a multi-label task predicts")
    checking.add_argument("--merge", nargs="+", type=_merged, default=(), metavar="NEW=OLD,OLD", help="classes")
    checking.add_argument("--concept-table", default=TBX11KConfig.concepts, help="tbx11k: your table of concept labels")
    checking.add_argument("--located", nargs="*", default=(), help="tbx11k: concepts whose place is the official box")
    checking.add_argument(
        "--consensus", choices=("any", "majority", "all"), default=VinDrConfig.consensus, help="vindr_cxr"
    )
    checking.add_argument("--least", type=int, default=VinDrConfig.least, help="vindr_cxr: rarer labels are left out")
    checking.add_argument("--workers", type=int, default=2)
    checking.set_defaults(run=_check)
    given = parser.parse_args(arguments)
    given.run(given)
