"""``csr feedback``: what readers signed and reviewers agreed on, for the next training. Reads the store, asks no
server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from csr.bundle.format import Bundle
from csr.data.feedback import FeedbackSet, ReviewSource, write_feedback
from serving.commands.audit import open_store, receipt
from serving.core.feedback import OTHER_BUNDLE, Looks, collect_feedback
from serving.deploy.config import ReviewConfig, StoreConfig, load_config
from serving.store.studies import load_study


def main(arguments: Sequence[str]) -> int:
    """``csr feedback export OUT``; status 1, and nothing written, if the ledger is not whole.

    Raises:
        CSRError: the store, its key, a study or a bundle cannot be read, or ``OUT`` holds something else.
    """
    parser = argparse.ArgumentParser(prog="csr feedback", description="What people said, for the next training.")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="verify the ledger and write the feedback set that training reads")
    export.add_argument("out", type=Path, help="a new folder, or a feedback set to be replaced")
    export.add_argument("--config", type=Path, help="the server's configuration; without it, defaults")
    export.add_argument("--noted", type=receipt, metavar="NUMBER:HASH", help="a head noted elsewhere, to compare with")
    export.add_argument(
        "--bundle",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a bundle whose prototypes were reviewed; again for each. Reviews of others are left out",
    )
    given = parser.parse_args(arguments)
    where, second_reader = StoreConfig(), ReviewConfig().second_reader
    if given.config is not None:
        config = load_config(given.config)
        where, second_reader = config.store, config.review.second_reader
    looks = _looks(given.bundle)
    store = open_store(where)
    try:
        found = store.ledger.verify(given.noted)
        if found.faults:
            print(*found.faults, sep="\n", file=sys.stderr)
            print("nothing was exported: the ledger is not whole; see csr audit verify", file=sys.stderr)
            return 1
        secret = where.ledger_key(make=False)
        feedback = collect_feedback(store, secret, looks, second_reader, found.head)
        through = feedback.through.number, feedback.through.hash
        written = write_feedback(
            given.out,
            feedback.readings,
            feedback.reviews,
            lambda study: load_study(store.database, study).canvas,
            through,
            feedback.left_out,
        )
    finally:
        store.database.close()
    _say(written)
    return 0


def _looks(folders: Sequence[Path]) -> Looks:
    """What the prototypes of bundles resemble."""
    bundles = [Bundle.open(folder) for folder in folders]
    return {
        bundle.digest: {
            (entry.concept, entry.index): tuple(ReviewSource(each.study_id, each.similarity) for each in entry.sources)
            for entry in bundle.atlas()
        }
        for bundle in bundles
    }


def _say(written: FeedbackSet) -> None:
    counts = f"{len(written.readings)} readings of {len(written.studies)} studies, {len(written.reviews)} reviews"
    print(f"{written.path}: version {written.version}, {counts}")
    if ties := sum(label.present is None for label in written.labels):
        print(f"{ties} labels are unknown, for as many readers say yes as no")
    for why, count in written.left_out.items():
        hint = "; name it with --bundle" if why == OTHER_BUNDLE else ""
        print(f"left out: {count} {why}{hint}")
