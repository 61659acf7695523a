"""The client that waits. Each method is a call of `serving.client.calls`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx2 as httpx

from serving.client import calls
from serving.client.calls import TIMEOUT, Call, File
from serving.interfaces.schemas import (
    AtlasAnswer,
    AtlasEntryAnswer,
    CompareAnswer,
    FeedbackCount,
    ImageSize,
    InteractionAnswer,
    InteractionRequest,
    MapsAnswer,
    MeAnswer,
    ModelsAnswer,
    Order,
    PreviewAnswer,
    PreviewRequest,
    ProbeAnswer,
    ProbeRequest,
    Progress,
    ReadingAnswer,
    ReadingRequest,
    ReadingsAnswer,
    Region,
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
from serving.interfaces.schemas.dicom import SendAnswer, SendRequest, SourcesAnswer

T = TypeVar("T")


class Client:
    """Thread-safe. A server that refuses raises `serving.client.ClientError`, none
    `serving.client.ServerUnreachableError`.

    Args:
        url: of the server, such as ``https://csr.example.org``.
        key: an API key, or an OIDC token.
        timeout: of one attempt.
        transport: in place of the network's.
    """

    def __init__(
        self,
        url: str,
        key: str,
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, headers=calls.headers(key), timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def add_study(self, file: File, frame: int | None = None) -> StudyAnswer:
        """Uploads an image, or a page or frame of a file of several, and returns its prediction."""
        return self._send(calls.add_study(file, frame))

    def add_studies(self, files: Sequence[File]) -> StudiesAnswer:
        """Uploads several images, all or none."""
        return self._send(calls.add_studies(files))

    def study(self, digest: str) -> StudyAnswer:
        """The prediction without interaction, again."""
        return self._send(calls.study(digest))

    def interact(self, digest: str, request: InteractionRequest) -> InteractionAnswer:
        """Applies an interaction and says what changed."""
        return self._send(calls.interact(digest, request))

    def probe(self, digest: str, box: Region, image: ImageSize | None = None) -> ProbeAnswer:
        """What is in this box? Concepts by how likely it is about each, and the exemplars that it resembles."""
        return self._send(calls.probe(digest, ProbeRequest(box=box, image=image)))

    def maps(self, digest: str, request: InteractionRequest | None = None) -> MapsAnswer:
        """Similarity maps as numbers."""
        return self._send(calls.maps(digest, request))

    def overlay(self, digest: str, concept: str, request: InteractionRequest | None = None) -> bytes:
        """A concept's similarity map as PNG, to lay over the image."""
        return self._send(calls.overlay(digest, concept, request))

    def sources(self, digest: str) -> SourcesAnswer:
        """The DICOM images that a study came as."""
        return self._send(calls.sources(digest))

    def report(
        self,
        digest: str,
        request: InteractionRequest | None = None,
        source: int | None = None,
        reading: int | None = None,
    ) -> bytes:
        """A DICOM report; of several sources, about the one of this number; of the reading whose record has this
        number, in place of an interaction."""
        return self._send(calls.report(digest, request, source, reading))

    def capture(
        self,
        digest: str,
        concept: str,
        request: InteractionRequest | None = None,
        source: int | None = None,
        reading: int | None = None,
    ) -> bytes:
        """A concept's map over the image as a DICOM picture; ``source`` and ``reading`` as for `report`."""
        return self._send(calls.capture(digest, concept, request, source, reading))

    def send(self, digest: str, request: SendRequest) -> SendAnswer:
        """Files a report, and pictures, in an archive; it may be sent twice if no answer comes."""
        return self._send(calls.send(digest, request))

    def atlas(self) -> AtlasAnswer:
        """The prototypes."""
        return self._send(calls.atlas())

    def prototype(self, concept: str, index: int) -> AtlasEntryAnswer:
        """One prototype: where its map peaks, what it resembles, and on which studies it decides."""
        return self._send(calls.prototype(concept, index))

    def crop(self, concept: str, index: int, rank: int = 0, with_map: bool = False) -> bytes:
        """What a prototype looks like in one of its sources, as PNG."""
        return self._send(calls.crop(concept, index, rank, with_map))

    def preview(self, request: PreviewRequest) -> PreviewAnswer:
        """What pruning would do, on the bundle's validation studies."""
        return self._send(calls.preview(request))

    def review(self, concept: str, index: int, request: ReviewRequest) -> ReviewAnswer:
        """Puts a verdict on a prototype on record."""
        return self._send(calls.review(concept, index, request))

    def review_all(self, request: ReviewsRequest) -> ReviewedAnswer:
        """The same for several prototypes: all, or none."""
        return self._send(calls.review_all(request))

    def reviews(self) -> ReviewsAnswer:
        """The last verdicts."""
        return self._send(calls.reviews())

    def me(self) -> MeAnswer:
        """Who asks, and what they may do."""
        return self._send(calls.me())

    def worklist(
        self,
        order: Order = "margin",
        progress: Progress = "all",
        limit: int = 50,
        offset: int = 0,
        asks_for_help: bool | None = None,
        after: str | None = None,
    ) -> WorklistAnswer:
        """Studies that wait for a reader; only those where the model asks for help, or only the others, if so asked.

        ``after``: ``next_after`` of the page before; ``offset`` is for the first 10,000.
        """
        return self._send(calls.worklist(order, progress, asks_for_help, limit, offset, after))

    def thumbnail(self, digest: str) -> bytes:
        """A study's image, small, as PNG."""
        return self._send(calls.thumbnail(digest))

    def sign(self, digest: str, request: ReadingRequest) -> ReadingAnswer:
        """Puts a reading on record."""
        return self._send(calls.sign(digest, request))

    def readings(self, digest: str) -> ReadingsAnswer:
        """The last reading of each reader; the others' once one has signed one's own."""
        return self._send(calls.readings(digest))

    def skip(self, digest: str, reason: str = "") -> SkipAnswer:
        """Puts on record that one does not read a study."""
        return self._send(calls.skip(digest, SkipRequest(reason=reason)))

    def feedback(self, after: int = 0) -> FeedbackCount:
        """How much was signed and reviewed since a ledger entry."""
        return self._send(calls.feedback(after))

    def compare(self, digest: str, request: InteractionRequest) -> CompareAnswer:
        """What champion and challenger say of a study, side by side."""
        return self._send(calls.compare(digest, request))

    def rollback(self, reason: str) -> RollbackAnswer:
        """Points the registry's champion back at the version before; an administrator's key is needed. It is sent once:
        a second one would go one further back."""
        return self._send(calls.rollback(reason))

    def models(self) -> ModelsAnswer:
        """What is in service, and what was."""
        return self._send(calls.models())

    def sessions(self) -> SessionsAnswer:
        """Browsers that are signed in; an administrator's key is needed."""
        return self._send(calls.sessions())

    def end_session(self, session: str) -> SignedIn:
        """Signs a browser out; an administrator's key is needed."""
        return self._send(calls.end_session(session))

    def _send(self, call: Call[T]) -> T:
        attempt = 1
        while True:
            response, failure = None, None
            try:
                response = self._http.request(**call.arguments())
            except httpx.TransportError as error:
                failure = error
            wait = calls.wait_before(attempt, response) if call.again else None
            if wait is None:
                if response is None:
                    assert failure is not None
                    raise calls.unreachable(self._url, failure) from None
                return call.read(response)
            time.sleep(wait)
            attempt += 1
