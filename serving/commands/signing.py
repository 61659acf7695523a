"""``csr worklist``, ``csr sign``, ``csr skip`` and ``csr readings``: a reader's day, from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from serving.client import ReadingRequest
from serving.commands.connection import add_server, asked, connect
from serving.commands.reading import add_corrections, changed, corrections, write_report
from serving.interfaces.schemas import Order, Progress, ReadingAnswer, SkipRequest, WorklistItem
from serving.interfaces.schemas.dicom import DocumentRequest

_SIGNED = {"keep": "with the corrections", "revert": "as predicted"}


def worklist(arguments: Sequence[str]) -> None:
    """Prints a page of the studies, one a line.

    Raises:
        CSRError: the server refuses.
    """
    parser = argparse.ArgumentParser(prog="csr worklist", description="Studies, and how far you are with them.")
    parser.add_argument("--order", choices=get_args(Order), default="margin", help="what is first (%(default)s)")
    parser.add_argument("--progress", choices=get_args(Progress), default="all", help="yours (%(default)s)")
    parser.add_argument(
        "--asks-for-help", action=argparse.BooleanOptionalAction, help="only where the model asks for help, or does not"
    )
    parser.add_argument("--limit", type=int, default=50, help="so many, at most 200 (%(default)s)")
    parser.add_argument("--offset", type=int, default=0, help="from this one on (%(default)s)")
    parser.add_argument("--after", help="from where a page ended: its next_after (--json), for pages beyond 10,000")
    parser.add_argument("--json", action="store_true", help="print the whole answer")
    add_server(parser)
    given = parser.parse_args(arguments)
    with connect(given) as client:
        answer = client.worklist(
            given.order, given.progress, given.limit, given.offset, given.asks_for_help, given.after
        )
    if given.json:
        print(answer.model_dump_json())
        return
    for item in answer.items:
        print(_listed(item))
    print(f"{len(answer.items)} of {'' if answer.total_exact else 'more than '}{answer.total} studies")


def sign(arguments: Sequence[str]) -> None:
    """``csr sign DIGEST``: prints what the corrections make of the prediction, and signs exactly that.

    Raises:
        CSRError: what is given is no interaction, the server refuses it, or the report cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="csr sign", description="Signs a reading; given again, it supersedes your last one of the study."
    )
    add_corrections(parser)
    parser.add_argument("--revert", action="store_true", help="sign as predicted; the corrections are only recorded")
    parser.add_argument("--comment", default="", help="for whoever reads the reading; name no patient")
    parser.add_argument("--json", action="store_true", help="print the signed reading only, whole")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write a DICOM report of it there")
    parser.add_argument("--source", type=int, metavar="NUMBER", help="of several DICOM sources, which one it is about")
    add_server(parser)
    given = parser.parse_args(arguments)
    if given.source is not None and given.report is None:
        parser.error("--source: says what a --report is about")
    asked(DocumentRequest, source=given.source)
    state, decision = corrections(given), "revert" if given.revert else "keep"
    with connect(given) as client:
        shown = client.interact(given.digest, state)
        request = asked(ReadingRequest, state=state, decision=decision, comment=given.comment, model=shown.model.digest)
        signed = client.sign(given.digest, request)
        print(signed.model_dump_json() if given.json else f"{changed(shown)}\n{_signed(signed)}")
        if given.report is not None:
            report = client.report(given.digest, source=given.source, reading=signed.record.number)
            write_report(given.report, report)


def skip(arguments: Sequence[str]) -> None:
    """``csr skip DIGEST``.

    Raises:
        CSRError: the reason is too long, or the server refuses.
    """
    parser = argparse.ArgumentParser(prog="csr skip", description="Says that you do not read a study.")
    parser.add_argument("digest", help="of the study, as `csr worklist` prints it")
    parser.add_argument("--reason", default="", help="why")
    add_server(parser)
    given = parser.parse_args(arguments)
    request = asked(SkipRequest, reason=given.reason)
    with connect(given) as client:
        print(f"skipped, on record as entry {client.skip(given.digest, request.reason).record.number}")


def readings(arguments: Sequence[str]) -> None:
    """``csr readings DIGEST``: the last reading of each reader, and how they agree.

    Raises:
        CSRError: the server refuses.
    """
    parser = argparse.ArgumentParser(
        prog="csr readings", description="What readers signed; the others' once you have signed yours."
    )
    parser.add_argument("digest", help="of the study, as `csr worklist` prints it")
    parser.add_argument("--json", action="store_true", help="print the whole answer")
    add_server(parser)
    given = parser.parse_args(arguments)
    with connect(given) as client:
        answer = client.readings(given.digest)
    if given.json:
        print(answer.model_dump_json())
        return
    for each in answer.readings:
        print(_signed(each))
    if answer.hidden:
        print(f"{answer.hidden} hidden until you have signed yours")
    print(f"readers: {answer.agreement.readers}, agreement: {answer.agreement.verdict}")
    for concept in answer.agreement.concepts:
        print(f"  {concept.name:<24} confirmed {concept.confirmed}, rejected {concept.rejected}")


def _listed(item: WorklistItem) -> str:
    said = item.top if item.found is None else ", ".join(item.found) or "nothing found"
    sure = "" if item.confidence is None else f"{item.confidence:6.1%}"
    notes = [
        *["asks for help"] * item.asks_for_help,
        *["abstains"] * item.abstains,
        *["does not fit"] * (item.fits is False),
        *[f"readers {item.readers}, agreement {item.agreement}"] * bool(item.readers),
    ]
    return f"{item.digest}  {item.mine:<8}{sure:>7}  {said}{'  ' if notes else ''}{'; '.join(notes)}"


def _signed(reading: ReadingAnswer) -> str:
    said = ", ".join(reading.found) or "nothing found"
    again = "" if reading.supersedes is None else f", in place of entry {reading.supersedes}"
    comment = f'\n  "{reading.comment}"' if reading.comment else ""
    where = f"version {reading.model.version}, at {reading.at}, on record as entry {reading.record.number}"
    return f"{reading.reader} signed {_SIGNED[reading.decision]}: {said}, {where}{again}{comment}"
