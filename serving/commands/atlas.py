"""``csr atlas``: the prototypes, what pruning some would do, and what reviewers say of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from serving.client import Client, PreviewRequest, PrototypeName, ReviewRequest
from serving.commands.connection import add_server, asked, connect
from serving.interfaces.schemas import ReviewReason, Verdict


def main(arguments: Sequence[str]) -> None:
    """``csr atlas list``, ``show``, ``preview``, ``review`` and ``reviews``.

    Raises:
        CSRError: the comment is too long, or the server refuses.
    """
    given = _parser().parse_args(arguments)
    with connect(given) as client:
        if given.command == "show":
            _show(client, given.concept, given.index)
        elif given.command == "preview":
            _preview(client, given.prototypes)
        elif given.command == "review":
            _review(client, given)
        elif given.command == "reviews":
            _reviews(client, given.agreed)
        else:
            _list(client)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="csr atlas", description="The model's prototypes and their reviews.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="every live prototype, with the last verdict")
    show = commands.add_parser("show", help="one prototype: what it resembles, and on which studies it decides")
    preview = commands.add_parser("preview", help="what pruning would do on the bundle's validation studies")
    preview.add_argument("prototypes", nargs="+", type=_prototype, metavar="CONCEPT:INDEX")
    review = commands.add_parser("review", help="put a verdict on record")
    for command in (show, review):
        command.add_argument("concept")
        command.add_argument("index", type=int)
    review.add_argument("verdict", choices=get_args(Verdict))
    review.add_argument("--reason", choices=get_args(ReviewReason), default="none")
    review.add_argument("--comment", default="")
    reviews = commands.add_parser("reviews", help="who said what, and what of it counts")
    reviews.add_argument("--agreed", action="store_true", help="only what counts")
    for command in (listing, show, preview, review, reviews):
        add_server(command)
    return parser


def _list(client: Client) -> None:
    verdicts = {(each.concept, each.index): f"{each.verdict} ({each.status})" for each in client.reviews().reviews}
    for entry in client.atlas().entries:
        if entry.alive:
            verdict = verdicts.get((entry.concept, entry.index), "")
            use = f"usage {entry.usage:5.1%}  reliance {entry.reliance:5.1%}"
            shown = ", ".join(source.study_id for source in entry.sources)
            print(f"{entry.concept:<24} {entry.index:>3}  {use}  {shown}  {verdict}".rstrip())


def _show(client: Client, concept: str, index: int) -> None:
    entry = client.prototype(concept, index)
    state = "" if entry.alive else "  (pruned)"
    print(f"{entry.concept} {entry.index}: usage {entry.usage:.1%}, reliance {entry.reliance:.1%}{state}")
    for other in entry.similar:
        print(f"  similar to {other.concept} {other.index}  cosine {other.cosine:.2f}")
    for study in entry.decides:
        truth = {True: "right", False: "wrong", None: "truth unknown"}[study.right]
        print(f"  speaks for {study.cls} in {study.study_id}  {study.contribution:+.2f}, {study.share:.0%} ({truth})")


def _preview(client: Client, prototypes: Sequence[tuple[str, int]]) -> None:
    pruned = [asked(PrototypeName, concept=concept, index=index) for concept, index in prototypes]
    effect = client.preview(asked(PreviewRequest, pruned=pruned))
    print(f"on {effect.studies} validation studies, of which {effect.changed} are told otherwise:")
    _step("macro F1", effect.before.macro_f1, effect.after.macro_f1)
    _step("pointing game", effect.before.pointing, effect.after.pointing)
    for cls in effect.classes:
        _step(f"F1 of {cls.name}", cls.f1_before, cls.f1_after)
    for concept in effect.concepts:
        _step(f"pointing at {concept.name}", concept.pointing_before, concept.pointing_after)


def _step(name: str, before: float | None, after: float | None) -> None:
    if before is not None and after is not None:
        change = f"{after - before:+.3f}".replace("-", "−")
        print(f"  {name:<32} {before:.3f} → {after:.3f}  {change}")


def _review(client: Client, given: argparse.Namespace) -> None:
    request = asked(ReviewRequest, verdict=given.verdict, reason=given.reason, comment=given.comment)
    said = client.review(given.concept, given.index, request)
    print(f"{said.concept} {said.index}: {said.verdict}, {said.status}, on record as entry {said.record.number}")


def _reviews(client: Client, agreed: bool) -> None:
    for each in client.reviews().reviews:
        if each.status == "agreed" or not agreed:
            words = "; ".join(
                f"{word.reviewer} {word.verdict}{'' if word.reason == 'none' else f' ({word.reason})'}"
                f"{': ' if word.comment else ''}{word.comment}"
                for word in each.said
            )
            print(f"{each.concept:<24} {each.index:>3}  {each.verdict:<5}  {each.status:<8}  {words}")


def _prototype(text: str) -> tuple[str, int]:
    concept, colon, index = text.rpartition(":")
    if not (colon and concept and index.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not CONCEPT:INDEX")
    return concept, int(index)
