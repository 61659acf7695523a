"""``csr atlas``: the prototypes, and what reviewers say of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from serving.client import ReviewRequest
from serving.commands.connection import add_server, asked, connect
from serving.interfaces.schemas import Verdict


def main(arguments: Sequence[str]) -> None:
    """``csr atlas list`` and ``csr atlas review CONCEPT INDEX VERDICT``.

    Raises:
        CSRError: the comment is too long, or the server refuses.
    """
    parser = argparse.ArgumentParser(prog="csr atlas", description="The model's prototypes and their reviews.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="every live prototype, with the last verdict")
    review = commands.add_parser("review", help="put a verdict on record; the next training reads it")
    review.add_argument("concept")
    review.add_argument("index", type=int)
    review.add_argument("verdict", choices=get_args(Verdict))
    review.add_argument("--comment", default="")
    for command in (listing, review):
        add_server(command)
    given = parser.parse_args(arguments)
    with connect(given) as client:
        if given.command == "review":
            request = asked(ReviewRequest, verdict=given.verdict, comment=given.comment)
            said = client.review(given.concept, given.index, request)
            print(f"{said.concept} {said.index}: {said.verdict}, on record as entry {said.record.number}")
            return
        verdicts = {(each.concept, each.index): each.verdict for each in client.reviews().reviews}
        for entry in client.atlas().entries:
            if entry.alive:
                verdict = verdicts.get((entry.concept, entry.index), "")
                use = f"usage {entry.usage:5.1%}  reliance {entry.reliance:5.1%}"
                shown = ", ".join(source.study_id for source in entry.sources)
                print(f"{entry.concept:<24} {entry.index:>3}  {use}  {shown}  {verdict}".rstrip())
