"""``csr predict`` and ``csr interact``: what a reader does, from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from csr.errors import ConfigError
from serving.client import InteractionRequest
from serving.commands.connection import add_server, asked, connect
from serving.interfaces.schemas import InteractionAnswer, Prediction, StudyAnswer
from serving.interfaces.schemas.dicom import DocumentRequest

_BATCH = 16


def predict(arguments: Sequence[str]) -> None:
    """``csr predict FILE…``.

    Raises:
        CSRError: a file cannot be read, or the server refuses it.
    """
    parser = argparse.ArgumentParser(prog="csr predict", description="Uploads images and prints what the model says.")
    parser.add_argument("files", nargs="+", type=Path, help="PNG, JPEG, TIFF or DICOM")
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
    parser.add_argument("digest", help="of the study, as `csr predict` prints it")
    box = "X_MIN,Y_MIN,X_MAX,Y_MAX in pixels of the image"
    parser.add_argument("--attend", action="append", type=_corners, default=[], metavar="BOX", help=f"look here: {box}")
    parser.add_argument("--ignore", action="append", type=_corners, default=[], metavar="BOX", help="ignore that")
    parser.add_argument("--reject", action="append", default=[], metavar="CONCEPT", help="it is not there")
    parser.add_argument("--alpha", type=float, help="weight outside the boxes to attend to, 0 to 1")
    parser.add_argument("--json", action="store_true", help="print the whole answer")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a DICOM report of it there instead")
    parser.add_argument("--source", type=int, metavar="NUMBER", help="of several DICOM sources, which one it is about")
    add_server(parser)
    given = parser.parse_args(arguments)
    if given.source is not None and given.report is None:
        parser.error("--source: says what a --report is about")
    boxes = [_box(each, "positive") for each in given.attend] + [_box(each, "negative") for each in given.ignore]
    request = asked(InteractionRequest, boxes=boxes, rejected=given.reject, alpha=given.alpha)
    if given.report is not None:
        asked(DocumentRequest, source=given.source)
        with connect(given) as client:
            _write(given.report, client.report(given.digest, request, given.source))
        return
    with connect(given) as client:
        answer = client.interact(given.digest, request)
    print(answer.model_dump_json() if given.json else _changed(answer))


def _write(file: Path, data: bytes) -> None:
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
        raise argparse.ArgumentTypeError(f"{text!r} is not X_MIN,Y_MIN,X_MAX,Y_MAX")
    return values


def _box(corners: tuple[float, ...], kind: str) -> dict[str, object]:
    return dict(zip(("x_min", "y_min", "x_max", "y_max"), corners, strict=True), kind=kind)


def _described(study: StudyAnswer) -> str:
    return f"  study {study.digest}\n{_prediction(study.prediction)}"


def _prediction(prediction: Prediction) -> str:
    said = ", ".join(prediction.found) or "nothing found"
    doubts = [" abstains"] * prediction.abstains + [" asks for a second look"] * prediction.asks_for_help
    lines = [f"  {said}{';' if doubts else ''}{','.join(doubts)}"]
    lines += [f"    {each.name:<24} {each.probability:6.1%}" for each in prediction.classes]
    lines += ["  concepts"]
    for concept in sorted(prediction.concepts, key=lambda each: -each.probability):
        place = f" at ({concept.peak.x:.0f}, {concept.peak.y:.0f})" if concept.peak else ""
        like = ", ".join(f"{each.study_id} ({each.score:.2f})" for each in concept.exemplars)
        lines.append(f"    {concept.name:<24} {concept.probability:6.1%}{place}{f'  like {like}' if like else ''}")
    return "\n".join(lines)


def _changed(answer: InteractionAnswer) -> str:
    lines = [answer.changes.summary]
    for each in answer.changes.classes:
        lines.append(f"  {each.name:<24} {each.before:6.1%} → {each.after:6.1%}")
    lines.append(f"on record as entry {answer.record.number}")
    return "\n".join(lines)
