"""What the data plane writes into the ledger, and what is read back from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from serving.core.timing import Timing
from serving.errors import StoreError
from serving.interfaces.schemas import (
    ClassProbability,
    Doubt,
    ImageSize,
    InteractionAnswer,
    InteractionRequest,
    ModelRef,
    Prediction,
    ReadingAnswer,
    ReadingRequest,
    Record,
    SkipRequest,
)
from serving.interfaces.schemas.dicom import SendRequest
from serving.models.in_service import Model
from serving.store.entries import Caller, Entry, Receipt
from serving.store.ledger import Ledger


def prediction_entry(
    caller: Caller, model: Model, digest: str, image: ImageSize, prediction: Prediction, timing: Timing
) -> Entry:
    """A prediction without interaction that was shown to somebody."""
    request = {"image": image.model_dump()}
    return _entry("prediction", caller, model, digest, request, None, prediction, timing)


def interaction_entry(
    caller: Caller,
    model: Model,
    digest: str,
    request: InteractionRequest,
    before: Prediction,
    after: Prediction,
    doubts: list[Doubt],
    timing: Timing,
) -> Entry:
    """A correction, whole, so that it can be replayed on another model, and the questions back to the reader."""
    asked = request.model_dump()
    back = {"doubts": [each.model_dump(exclude={"message"}) for each in doubts]}
    return _entry("interaction", caller, model, digest, asked, before, after, timing, back)


def reading_entry(
    caller: Caller,
    model: Model,
    digest: str,
    request: ReadingRequest,
    before: Prediction,
    after: Prediction,
    timing: Timing,
) -> Entry:
    """A signed reading; ``after`` is what the corrections make of it, also where they are reverted."""
    return _entry("reading", caller, model, digest, request.model_dump(), before, after, timing)


def readings(ledger: Ledger, studies: Collection[str]) -> Iterator[ReadingAnswer]:
    """All readings of some studies, oldest first.

    Raises:
        StoreError: one of them cannot be read, or the database does not answer.
    """
    before: dict[tuple[str, str], int] = {}
    for row in ledger.entries("reading", studies):
        who = (row["study"], row["actor"])
        try:
            yield _reading(row, before.get(who))
        except (KeyError, TypeError, AttributeError, ValidationError):
            raise StoreError(f"ledger entry {row['number']} is no reading; see csr audit verify") from None
        before[who] = row["number"]


def _reading(row: dict[str, Any], supersedes: int | None) -> ReadingAnswer:
    body = row["body"]
    request = ReadingRequest.model_validate(body["request"])
    said = body["after" if request.decision == "keep" else "before"]
    likely = sorted(said["classes"].items(), key=lambda each: -each[1])
    return ReadingAnswer(
        digest=row["study"],
        reader=row["actor"],
        at=row["at"],
        model=ModelRef(version=body["version"], digest=row["bundle"]),
        decision=request.decision,
        comment=request.comment,
        found=said["found"],
        top=said["top"],
        classes=[ClassProbability(name=name, probability=value) for name, value in likely],
        state=request.state,
        record=_record(row),
        supersedes=supersedes,
    )


def skip_entry(caller: Caller, digest: str, request: SkipRequest) -> Entry:
    """A study that a reader does not read."""
    return Entry("skip", caller, "", {"request": request.model_dump()}, digest)


def shadow_entry(
    caller: Caller, model: Model, digest: str, request: dict[str, Any], champion: Prediction, own: Prediction
) -> Entry:
    """What a challenger would have answered: ``before`` is the champion's answer, ``after`` its own."""
    return _entry("shadow", caller, model, digest, request, champion, own, None)


def _entry(
    kind: Any,
    caller: Caller,
    model: Model,
    digest: str,
    request: dict[str, Any],
    before: Prediction | None,
    after: Prediction,
    timing: Timing | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Entry:
    body = {
        "version": model.version,
        "request": request,
        "before": None if before is None else _summary(before),
        "after": _summary(after),
        "latency_ms": None if timing is None else timing.total,
        **more,
    }
    return Entry(kind, caller, model.digest, body, digest)


def _summary(prediction: Prediction) -> dict[str, Any]:
    return {
        "found": prediction.found,
        "top": prediction.top,
        "margin": prediction.margin,
        "abstains": prediction.abstains,
        "fits": {"score": prediction.fits.score, "reasons": [each.code for each in prediction.fits.reasons]},
        "classes": {each.name: each.probability for each in prediction.classes},
        "concepts": {each.name: each.probability for each in prediction.concepts},
        "questions": {each.concept: each.effect for each in prediction.questions},
    }


def record(receipt: Receipt) -> Record:
    """A receipt as answers show it."""
    return Record(number=receipt.number, hash=receipt.hash)


def document_entry(
    caller: Caller, answer: InteractionAnswer, request: SendRequest, original: str, documents: list[str]
) -> Entry:
    """Documents that an archive took. ``original`` is the image's salted UID: the real one stays out of the ledger."""
    about = {"node": request.node, "original": original, "interaction": answer.record.number}
    if request.reading is not None:
        about["reading"] = request.reading
    body = {"version": answer.model.version, "request": about, "documents": documents}
    return Entry("document", caller, answer.model.digest, body, answer.digest)


def _record(row: dict[str, Any]) -> Record:
    return Record(number=row["number"], hash=row["hash"])
