"""``/v1/studies``: uploads, predictions, interactions, maps."""

from __future__ import annotations

from asyncio import to_thread
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, File, Query, Response, UploadFile
from fastapi import Path as InPath

from csr.data.limits import MAX_FRAME
from serving.core.intake import Upload
from serving.core.timing import Timing
from serving.errors import TooManyFilesError
from serving.interfaces.rest.context import PNG, CallerOf, answered, png
from serving.interfaces.rest.routing import strict_router
from serving.interfaces.schemas import (
    InteractionAnswer,
    InteractionRequest,
    MapsAnswer,
    ProbeAnswer,
    ProbeRequest,
    StudiesAnswer,
    StudyAnswer,
)

if TYPE_CHECKING:
    from serving.deploy.service import Service

_NAME_CHARACTERS = 100
# Not found again without the credential that it was given for, so not after a reader has signed out.
_KEPT = {"Cache-Control": "private, max-age=86400, immutable", "Vary": "Authorization, Cookie"}
Digest = Annotated[str, InPath(description="of the study's pixels, as an upload returned it", max_length=64)]
FrameNumber = Annotated[int | None, Query(description="which page or frame of a file of several", ge=1, le=MAX_FRAME)]
Concept = Annotated[str, InPath(description="a concept's name", max_length=200)]


def routes(service: Service) -> APIRouter:
    """All of them, over one service."""
    router = strict_router()
    plane = service.plane

    @router.post(
        "/studies/{digest}/interactions", response_model=InteractionAnswer
    )  # first: the one that must be quick
    async def interact(digest: Digest, request: InteractionRequest, caller: CallerOf) -> Response:
        """Applies an interaction, which carries its whole state, and says what changed and why."""
        return answered(await to_thread(plane.interact, digest, request, caller))

    @router.post("/studies", status_code=201, response_model=StudyAnswer)
    async def add_study(caller: CallerOf, file: Annotated[UploadFile, File()], frame: FrameNumber = None) -> Response:
        """Adds a study and predicts."""
        upload = replace(await _upload(file), frame=frame)
        return answered((await to_thread(plane.add_studies, [upload], caller))[0], 201)

    @router.post("/studies/batch", status_code=201, response_model=StudiesAnswer)
    async def add_studies(caller: CallerOf, files: Annotated[list[UploadFile], File()]) -> Response:
        """Adds several studies, all or, if one of them cannot be read, none."""
        if len(files) > service.limits.batch_files:
            raise TooManyFilesError(f"files: {len(files)} in one request, the limit is {service.limits.batch_files}")
        uploads = [await _upload(file) for file in files]
        return answered(StudiesAnswer(studies=await to_thread(plane.add_studies, uploads, caller)), 201)

    @router.get("/studies/{digest}", response_model=StudyAnswer)
    async def study(digest: Digest, caller: CallerOf) -> Response:
        """The prediction without interaction, again."""
        return answered(await to_thread(plane.predict, digest, caller))

    @router.post("/studies/{digest}/probe", response_model=ProbeAnswer)
    async def probe(digest: Digest, request: ProbeRequest) -> Response:
        """What is in this box? Concepts by how likely it is about each, and the exemplars that it resembles."""
        return answered(await to_thread(plane.probe, digest, request))

    @router.get("/studies/{digest}/image.png", response_class=Response, responses=PNG)
    async def image(digest: Digest) -> Response:
        """The study as the network saw it."""
        timing = Timing(service.telemetry)
        return png(await to_thread(plane.image, digest, timing), timing)

    @router.get("/studies/{digest}/thumbnail.png", response_class=Response, responses=PNG)
    async def thumbnail(digest: Digest) -> Response:
        """The study's image, small enough for a list; the browser that asked may keep it while its session lasts."""
        timing = Timing(service.telemetry)
        answer = png(await to_thread(plane.thumbnail, digest, timing), timing)
        answer.headers.update(_KEPT)
        return answer

    @router.get("/studies/{digest}/maps", response_model=MapsAnswer)
    async def maps(digest: Digest) -> Response:
        """All similarity maps without interaction, as numbers."""
        return answered(await to_thread(plane.maps, digest))

    @router.post("/studies/{digest}/maps", response_model=MapsAnswer)
    async def maps_after(digest: Digest, request: InteractionRequest) -> Response:
        """All similarity maps under an interaction, as numbers."""
        return answered(await to_thread(plane.maps, digest, request))

    # ``:path`` because concept names may hold a slash, as VinDr-CXR's "Nodule/Mass" does.
    @router.get("/studies/{digest}/maps/{concept:path}.png", response_class=Response, responses=PNG)
    async def overlay(digest: Digest, concept: Concept) -> Response:
        """A concept's similarity map without interaction, to lay over the image."""
        timing = Timing(service.telemetry)
        return png(await to_thread(plane.overlay, digest, concept, None, timing), timing)

    @router.post("/studies/{digest}/maps/{concept:path}.png", response_class=Response, responses=PNG)
    async def overlay_after(digest: Digest, concept: Concept, request: InteractionRequest) -> Response:
        """A concept's similarity map under an interaction."""
        timing = Timing(service.telemetry)
        return png(await to_thread(plane.overlay, digest, concept, request, timing), timing)

    return router


async def _upload(file: UploadFile) -> Upload:
    return Upload(await file.read(), (file.filename or "upload")[:_NAME_CHARACTERS])
