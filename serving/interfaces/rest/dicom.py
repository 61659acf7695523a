"""``/v1/nodes`` and the DICOM documents of a study."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Response

from serving.dicom.nodes import Query as DicomQuery
from serving.interfaces.rest.context import ActorOf, CallerOf, sees_all
from serving.interfaces.rest.routing import strict_router
from serving.interfaces.rest.studies import Digest
from serving.interfaces.schemas import StudyAnswer
from serving.interfaces.schemas.dicom import (
    DocumentRequest,
    FetchRequest,
    NodesAnswer,
    SearchAnswer,
    SendAnswer,
    SendRequest,
    SourcesAnswer,
)

if TYPE_CHECKING:
    from serving.deploy.service import Service

_DICOM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/dicom": {"schema": {"type": "string", "format": "binary"}}}}
}
_Text = Annotated[str | None, Query(max_length=64)]


def routes(service: Service) -> APIRouter:
    """All of them, over one service."""
    router = strict_router()
    documents = service.documents

    @router.get("/nodes")
    async def nodes() -> NodesAnswer:
        """The archives that images can be fetched from and documents sent to."""
        return NodesAnswer(nodes=documents.nodes)

    @router.get("/nodes/{node}/instances")
    async def instances(
        node: str,
        study_uid: _Text = None,
        patient_id: _Text = None,
        study_date: _Text = None,
        modality: _Text = None,
        accession_number: _Text = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> SearchAnswer:
        """Images in an archive (QIDO-RS)."""
        query = DicomQuery(study_uid, patient_id, study_date, modality, accession_number)
        return await to_thread(documents.search, node, query, limit, offset)

    @router.post("/studies/fetch", status_code=201)
    async def fetch(request: FetchRequest, caller: CallerOf) -> StudyAnswer:
        """Adds an image from an archive (WADO-RS) as a study."""
        return await to_thread(documents.fetch, request, caller)

    @router.get("/studies/{digest}/sources")
    async def sources(digest: Digest) -> SourcesAnswer:
        """The DICOM images that a study came as, under their pseudonyms; documents are about one of them."""
        return await to_thread(documents.sources, digest)

    @router.post("/studies/{digest}/report.dcm", response_class=Response, responses=_DICOM)
    async def report(digest: Digest, request: DocumentRequest, caller: CallerOf, actor: ActorOf) -> Response:
        """A structured report (TID 1500) under the study's pseudonym."""
        return _dicom(await to_thread(documents.report, digest, request, caller, sees_all(actor)))

    @router.post("/studies/{digest}/captures/{concept:path}.dcm", response_class=Response, responses=_DICOM)
    async def capture(
        digest: Digest, concept: str, request: DocumentRequest, caller: CallerOf, actor: ActorOf
    ) -> Response:
        """A Secondary Capture of a concept's map over the image, under the study's pseudonym."""
        return _dicom(await to_thread(documents.capture, digest, concept, request, caller, sees_all(actor)))

    @router.post("/studies/{digest}/send")
    async def send(digest: Digest, request: SendRequest, caller: CallerOf, actor: ActorOf) -> SendAnswer:
        """Files a report and pictures in an archive (STOW-RS), beside the image that the study came from."""
        return await to_thread(documents.send, digest, request, caller, sees_all(actor))

    return router


def _dicom(data: bytes) -> Response:
    return Response(data, media_type="application/dicom")
