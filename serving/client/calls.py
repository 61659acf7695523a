"""What both clients share: the calls of the reading API, how answers are read, and when to try again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx2 as httpx
from pydantic import BaseModel, ValidationError

from csr.errors import CSRError
from serving.interfaces.schemas import (
    AtlasAnswer,
    AtlasEntryAnswer,
    CompareAnswer,
    FeedbackCount,
    InteractionAnswer,
    InteractionRequest,
    MapsAnswer,
    MeAnswer,
    ModelsAnswer,
    PreviewAnswer,
    PreviewRequest,
    ProbeAnswer,
    ProbeRequest,
    ReadingAnswer,
    ReadingRequest,
    ReadingsAnswer,
    ReviewAnswer,
    ReviewedAnswer,
    ReviewRequest,
    ReviewsAnswer,
    ReviewsRequest,
    RollbackAnswer,
    SessionsAnswer,
    SignedIn,
    SkipAnswer,
    SkipRequest,
    StudiesAnswer,
    StudyAnswer,
    WorklistAnswer,
)
from serving.interfaces.schemas.dicom import DocumentRequest, SendAnswer, SendRequest, SourcesAnswer

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
TRIES = 5
_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
T = TypeVar("T")
File = Path | tuple[str, bytes]


class ClientError(CSRError):
    """The server refused.

    Attributes:
        status: of HTTP. code: stable, for programs.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({code}, status {status})")
        self.status = status
        self.code = code


class ServerUnreachableError(CSRError):
    """There was no answer, however often it was tried."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and the type of its answer. ``again``: it may be sent once more if no answer comes."""

    answer: type[T]
    method: str
    path: str
    json: dict[str, Any] | None = None
    files: tuple[tuple[str, tuple[str, bytes]], ...] = ()
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    again: bool = True

    def arguments(self) -> dict[str, Any]:
        """As httpx takes them."""
        content: dict[str, Any] = {}
        if self.json is not None:
            content["json"] = self.json
        if self.files:
            content["files"] = list(self.files)
        return {"method": self.method, "url": self.path, "params": self.query, "headers": self.headers, **content}

    def read(self, response: httpx.Response) -> T:
        """Raises:
        ClientError: the server refused, or what answered is no such server.
        """
        if response.is_success:
            if self.answer is bytes:
                return response.content  # type: ignore[return-value]
            assert issubclass(self.answer, BaseModel)
            try:
                return self.answer.model_validate_json(response.content)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                message = f"the answer is not of this client's version: {place}: {first['msg']}"
                raise ClientError(response.status_code, "unexpected_answer", message) from None
        try:
            refusal = response.json()["error"]
            raise ClientError(response.status_code, str(refusal["code"]), str(refusal["message"]))
        except (ValueError, KeyError, TypeError):
            message = "the answer is not the reading API's; is the address right?"
            raise ClientError(response.status_code, "unexpected_answer", message) from None


def add_study(file: File, frame: int | None = None) -> Call[StudyAnswer]:
    """``POST /v1/studies``."""
    query = {} if frame is None else {"frame": frame}
    return Call(StudyAnswer, "POST", "/v1/studies", files=(("file", _content(file)),), query=query, headers=_once())


def add_studies(files: Sequence[File]) -> Call[StudiesAnswer]:
    """``POST /v1/studies/batch``."""
    parts = tuple(("files", _content(file)) for file in files)
    return Call(StudiesAnswer, "POST", "/v1/studies/batch", files=parts, headers=_once())


def study(digest: str) -> Call[StudyAnswer]:
    """``GET /v1/studies/{digest}``."""
    return Call(StudyAnswer, "GET", f"/v1/studies/{_part(digest)}", headers=_once())


def interact(digest: str, request: InteractionRequest) -> Call[InteractionAnswer]:
    """``POST /v1/studies/{digest}/interactions``."""
    path = f"/v1/studies/{_part(digest)}/interactions"
    return Call(InteractionAnswer, "POST", path, json=request.model_dump(exclude_none=True), headers=_once())


def probe(digest: str, request: ProbeRequest) -> Call[ProbeAnswer]:
    """``POST /v1/studies/{digest}/probe``."""
    return Call(ProbeAnswer, "POST", f"/v1/studies/{_part(digest)}/probe", json=request.model_dump(exclude_none=True))


def maps(digest: str, request: InteractionRequest | None) -> Call[MapsAnswer]:
    """``GET`` or ``POST /v1/studies/{digest}/maps``."""
    path = f"/v1/studies/{_part(digest)}/maps"
    if request is None:
        return Call(MapsAnswer, "GET", path)
    return Call(MapsAnswer, "POST", path, json=request.model_dump(exclude_none=True))


def overlay(digest: str, concept: str, request: InteractionRequest | None) -> Call[bytes]:
    """``GET`` or ``POST /v1/studies/{digest}/maps/{concept}.png``."""
    path = f"/v1/studies/{_part(digest)}/maps/{_part(concept)}.png"
    if request is None:
        return Call(bytes, "GET", path)
    return Call(bytes, "POST", path, json=request.model_dump(exclude_none=True))


def sources(digest: str) -> Call[SourcesAnswer]:
    """``GET /v1/studies/{digest}/sources``."""
    return Call(SourcesAnswer, "GET", f"/v1/studies/{_part(digest)}/sources")


def report(digest: str, request: InteractionRequest | None, source: int | None, reading: int | None) -> Call[bytes]:
    """``POST /v1/studies/{digest}/report.dcm``."""
    path = f"/v1/studies/{_part(digest)}/report.dcm"
    return Call(bytes, "POST", path, json=_document(request, source, reading), headers=_once())


def capture(
    digest: str, concept: str, request: InteractionRequest | None, source: int | None, reading: int | None
) -> Call[bytes]:
    """``POST /v1/studies/{digest}/captures/{concept}.dcm``."""
    path = f"/v1/studies/{_part(digest)}/captures/{_part(concept)}.dcm"
    return Call(bytes, "POST", path, json=_document(request, source, reading), headers=_once())


def send(digest: str, request: SendRequest) -> Call[SendAnswer]:
    """``POST /v1/studies/{digest}/send``."""
    path = f"/v1/studies/{_part(digest)}/send"
    return Call(SendAnswer, "POST", path, json=request.model_dump(exclude_none=True), headers=_once())


def atlas() -> Call[AtlasAnswer]:
    """``GET /v1/atlas``."""
    return Call(AtlasAnswer, "GET", "/v1/atlas")


def prototype(concept: str, index: int) -> Call[AtlasEntryAnswer]:
    """``GET /v1/atlas/{concept}/{index}``."""
    return Call(AtlasEntryAnswer, "GET", f"/v1/atlas/{_part(concept)}/{index}")


def crop(concept: str, index: int, rank: int, with_map: bool) -> Call[bytes]:
    """``GET /v1/atlas/{concept}/{index}.png``."""
    query = {"rank": rank, "map": "true" if with_map else "false"}
    return Call(bytes, "GET", f"/v1/atlas/{_part(concept)}/{index}.png", query=query)


def preview(request: PreviewRequest) -> Call[PreviewAnswer]:
    """``POST /v1/atlas/preview``."""
    return Call(PreviewAnswer, "POST", "/v1/atlas/preview", json=request.model_dump())


def review(concept: str, index: int, request: ReviewRequest) -> Call[ReviewAnswer]:
    """``POST /v1/atlas/{concept}/{index}/review``."""
    path = f"/v1/atlas/{_part(concept)}/{index}/review"
    return Call(ReviewAnswer, "POST", path, json=request.model_dump(), headers=_once())


def review_all(request: ReviewsRequest) -> Call[ReviewedAnswer]:
    """``POST /v1/reviews``."""
    return Call(ReviewedAnswer, "POST", "/v1/reviews", json=request.model_dump(), headers=_once())


def reviews() -> Call[ReviewsAnswer]:
    """``GET /v1/reviews``."""
    return Call(ReviewsAnswer, "GET", "/v1/reviews")


def me() -> Call[MeAnswer]:
    """``GET /v1/me``."""
    return Call(MeAnswer, "GET", "/v1/me")


def thumbnail(digest: str) -> Call[bytes]:
    """``GET /v1/studies/{digest}/thumbnail.png``."""
    return Call(bytes, "GET", f"/v1/studies/{_part(digest)}/thumbnail.png")


def sign(digest: str, request: ReadingRequest) -> Call[ReadingAnswer]:
    """``POST /v1/studies/{digest}/readings``."""
    path = f"/v1/studies/{_part(digest)}/readings"
    return Call(ReadingAnswer, "POST", path, json=request.model_dump(exclude_none=True), headers=_once())


def readings(digest: str) -> Call[ReadingsAnswer]:
    """``GET /v1/studies/{digest}/readings``."""
    return Call(ReadingsAnswer, "GET", f"/v1/studies/{_part(digest)}/readings")


def skip(digest: str, request: SkipRequest) -> Call[SkipAnswer]:
    """``POST /v1/studies/{digest}/skips``."""
    path = f"/v1/studies/{_part(digest)}/skips"
    return Call(SkipAnswer, "POST", path, json=request.model_dump(), headers=_once())


def worklist(
    order: str, progress: str, asks_for_help: bool | None, limit: int, offset: int, after: str | None
) -> Call[WorklistAnswer]:
    """``GET /v1/worklist``."""
    query: dict[str, Any] = {"order": order, "progress": progress, "limit": limit, "offset": offset}
    if asks_for_help is not None:
        query["help"] = asks_for_help
    if after is not None:
        query["after"] = after
    return Call(WorklistAnswer, "GET", "/v1/worklist", query=query)


def feedback(after: int) -> Call[FeedbackCount]:
    """``GET /v1/feedback``."""
    return Call(FeedbackCount, "GET", "/v1/feedback", query={"after": after})


def compare(digest: str, request: InteractionRequest) -> Call[CompareAnswer]:
    """``POST /v1/studies/{digest}/compare``."""
    path = f"/v1/studies/{_part(digest)}/compare"
    return Call(CompareAnswer, "POST", path, json=request.model_dump(exclude_none=True))


def rollback(reason: str) -> Call[RollbackAnswer]:
    """``POST /v1/models/rollback``; a repetition would go one further back, so it is sent once."""
    return Call(RollbackAnswer, "POST", "/v1/models/rollback", json={"reason": reason}, again=False)


def models() -> Call[ModelsAnswer]:
    """``GET /v1/models``."""
    return Call(ModelsAnswer, "GET", "/v1/models")


def sessions() -> Call[SessionsAnswer]:
    """``GET /v1/sessions``."""
    return Call(SessionsAnswer, "GET", "/v1/sessions")


def end_session(session: str) -> Call[SignedIn]:
    """``DELETE /v1/sessions/{session}``."""
    return Call(SignedIn, "DELETE", f"/v1/sessions/{_part(session)}")


def wait_before(attempt: int, response: httpx.Response | None) -> float | None:
    """Seconds to wait before the next attempt; None where another one is of no use.

    Args:
        attempt: that was made, from 1.
        response: that came back, if one did.
    """
    if response is not None and response.status_code not in _AGAIN and not _of_proxy(response):
        return None
    if attempt >= TRIES:
        return None
    asked = response.headers.get("retry-after", "") if response is not None else ""
    if asked.isdecimal():
        return min(float(asked), _LONGEST_WAIT_S)
    # Not all clients at the same moment.
    return min(_FIRST_WAIT_S * 2 ** (attempt - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)


def _of_proxy(response: httpx.Response) -> bool:
    """Ray's proxy says that there is no application: it has gone, and may come back."""
    return response.status_code == 404 and b"/-/routes" in response.content


def unreachable(url: str, error: Exception) -> ServerUnreachableError:
    """The error after the last attempt."""
    return ServerUnreachableError(f"{url}: no answer ({str(error) or type(error).__name__})")


def headers(key: str) -> dict[str, str]:
    """Of every request."""
    return {"Authorization": f"Bearer {key}"}


def _document(request: InteractionRequest | None, source: int | None, reading: int | None) -> dict[str, Any]:
    asked = DocumentRequest(interaction=request or InteractionRequest(), source=source, reading=reading)
    return asked.model_dump(exclude_none=True)


def _once() -> dict[str, str]:
    return {"Idempotency-Key": uuid4().hex}


def _part(text: str) -> str:
    return quote(text, safe="")


def _content(file: File) -> tuple[str, bytes]:
    if isinstance(file, Path):
        return file.name, file.read_bytes()
    return file
