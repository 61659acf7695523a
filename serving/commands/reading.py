"""``csr predict``, ``csr interact`` and ``csr probe``: what a reader does, from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from csr.errors import ConfigError
from serving.client import InteractionRequest, Region
from serving.commands.connection import add_server, asked, connect
from serving.interfaces.schemas import InteractionAnswer, Prediction, ProbeAnswer, StudyAnswer
from serving.interfaces.schemas.dicom import DocumentRequest

_BATCH = 16
_BOX = "X_MIN,Y_MIN,X_MAX,Y_MAX"


def predict(arguments: Sequence[str]) -> None:
    """``csr predict FILE…``.

    Raises:
        CSRError: a file cannot be read, or the server refuses it.
    """
    parser = argparse.ArgumentParser(prog="csr predict", description="Uploads images and prints what the model says.")
    parser.add_argument("files", nargs="+", type=Path, help="PNG, JPEG, TIFF, BMP, WebP or DICOM")
    parser.add_argument("--json", action="store_true", help="print whole answers, one a line")
    add_server(parser)
    given = parser.parse_args(arguments)
    for file in given.files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    with connect(given) as client:
        for start in range(0, len(given.files), _BATCH):
            files = given.files[start : start + _BATCH]
            for file, study in zip(files, client.add_studies(files).studies, strict=True):
                print(study.model_dump_json() if given.json else f"{file}\n{_described(study)}")


def interact(arguments: Sequence[str]) -> None:
    """``csr interact DIGEST``, and with ``--report FILE`` the DICOM report of it.

    Raises:
        CSRError: what is given is no interaction, the server refuses it, or the report cannot be written.
    """
    parser = argparse.ArgumentParser(prog="csr interact", description="Corrects a prediction and says what changed.")
    add_corrections(parser)
    parser.add_argument("--json", action="store_true", help="print the whole answer")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a DICOM report of it there instead")
    parser.add_argument("--source", type=int, metavar="NUMBER", help="of several DICOM sources, which one it is about")
    add_server(parser)
    given = parser.parse_args(arguments)
    if given.source is not None and given.report is None:
        parser.error("--source: says what a --report is about")
    request = corrections(given)
    if given.report is not None:
        asked(DocumentRequest, source=given.source)
        with connect(given) as client:
            write_report(given.report, client.report(given.digest, request, given.source))
        return
    with connect(given) as client:
        answer = client.interact(given.digest, request)
    print(answer.model_dump_json() if given.json else changed(answer))


def probe(arguments: Sequence[str]) -> None:
    """``csr probe DIGEST --box X_MIN,Y_MIN,X_MAX,Y_MAX``.

    Raises:
        CSRError: what is given is no box, or the server refuses it.
    """
    parser = argparse.ArgumentParser(prog="csr probe", description="Says what a box of a study may be about.")
    parser.add_argument("digest", help="of the study, as `csr predict` prints it")
    parser.add_argument("--box", required=True, type=_corners, metavar="BOX", help=f"{_BOX} in pixels of the image")
    parser.add_argument("--json", action="store_true", help="print the whole answer")
    add_server(parser)
    given = parser.parse_args(arguments)
    with connect(given) as client:
        answer = client.probe(given.digest, asked(Region, **_box(given.box)))
    print(answer.model_dump_json() if given.json else _probed(answer))


def add_corrections(parser: argparse.ArgumentParser) -> None:
    """Adds the study and what a reader can say of it."""
    parser.add_argument("digest", help="of the study, as `csr predict` and `csr worklist` print it")
    focus = parser.add_argument_group("boxes", f"BOX is {_BOX} in pixels of the image")
    focus.add_argument("--focus", action="append", type=_corners, default=[], metavar="BOX", help="look here")
    focus.add_argument(
        "--ignore", action="append", type=_corners, default=[], metavar="BOX", help="nothing inside counts"
    )
    focus.add_argument(
        "--finding", action="append", type=_named, default=[], metavar="CONCEPT=BOX", help="this here is CONCEPT"
    )
    focus.add_argument("--alpha", type=float, help="weight of what is outside focus boxes, 0 to 1 (the model's own)")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--confirm", action="append", default=[], metavar="CONCEPT", help="it is there")
    answers.add_argument("--reject", action="append", default=[], metavar="CONCEPT", help="it is not there")


def corrections(given: argparse.Namespace) -> InteractionRequest:
    """What was said by the options of `add_corrections`.

    Raises:
        ConfigError: it is no interaction.
    """
    boxes = [_box(each, kind="focus") for each in given.focus] + [_box(each, kind="ignore") for each in given.ignore]
    boxes += [_box(corners, kind="finding", concept=concept) for concept, corners in given.finding]
    return asked(InteractionRequest, boxes=boxes, confirmed=given.confirm, rejected=given.reject, alpha=given.alpha)


def write_report(file: Path, data: bytes) -> None:
    """Raises:
    ConfigError: it cannot be written.
    """
    try:
        file.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from None
    print(f"report of {len(data):,} bytes in {file}")


def _corners(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_BOX}")
    return values


def _named(text: str) -> tuple[str, tuple[float, ...]]:
    concept, equals, corners = text.rpartition("=")
    if not (concept and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not CONCEPT={_BOX}")
    return concept, _corners(corners)


def _box(corners: tuple[float, ...], **more: str) -> dict[str, object]:
    return dict(zip(("x_min", "y_min", "x_max", "y_max"), corners, strict=True), **more)


def _described(study: StudyAnswer) -> str:
    return f"  study {study.digest}\n{_prediction(study.prediction)}"


def _prediction(prediction: Prediction) -> str:
    said = ", ".join(prediction.found) or "nothing found"
    doubts = [" abstains"] * prediction.abstains + [" asks for a second look"] * prediction.asks_for_help
    lines = _misfit(prediction)
    lines.append(f"  {said}{';' if doubts else ''}{','.join(doubts)}")
    lines += [f"    {each.name:<24} {each.probability:6.1%}" for each in prediction.classes]
    lines += ["  concepts"]
    for concept in sorted(prediction.concepts, key=lambda each: -each.probability):
        place = f" at ({concept.peak.x:.0f}, {concept.peak.y:.0f})" if concept.peak else ""
        like = ", ".join(f"{each.study_id} ({each.score:.2f})" for each in concept.exemplars)
        lines.append(f"    {concept.name:<24} {concept.probability:6.1%}{place}{f'  like {like}' if like else ''}")
    return "\n".join([*lines, *_questions(prediction)])


def _misfit(prediction: Prediction) -> list[str]:
    fits = prediction.fits
    if not fits.reasons:
        return []
    head = f"  unlike the images that the model was trained on (score {fits.score:.1f}, limit {fits.limit:g})"
    return [head, *(f"    {each.message} [{each.code}]" for each in fits.reasons)]


def _questions(prediction: Prediction) -> list[str]:
    if not prediction.questions:
        return []
    lines = ["  worth asking"]
    for each in prediction.questions:
        place = f" at ({each.place.x:.0f}, {each.place.y:.0f})" if each.place else ""
        lines.append(f"    {each.concept}{place}? {each.reason} ({each.effect:.2f} bits)")
    return lines


def _probed(answer: ProbeAnswer) -> str:
    lines = []
    for each in answer.concepts:
        like = ", ".join(f"prototype {shown.index} ({shown.score:.2f})" for shown in each.exemplars)
        lines.append(f"  {each.name:<24} {each.probability:6.1%}{f'  like {like}' if like else ''}")
    return "\n".join(lines)


def changed(answer: InteractionAnswer) -> str:
    """An interaction's answer, for people."""
    lines = [*_misfit(answer.after), answer.changes.summary]
    for each in answer.changes.classes:
        lines.append(f"  {each.name:<24} {each.before:6.1%} → {each.after:6.1%}")
    lines += [f"  doubt: {each.message}" for each in answer.doubts]
    lines += _questions(answer.after)
    lines.append(f"on record as entry {answer.record.number}")
    return "\n".join(lines)
