"""``/v1/models``, what they say side by side, and ``/v1/samples``."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response

from serving.core.timing import Timing
from serving.interfaces.rest.context import PNG, CallerOf, answered, png
from serving.interfaces.rest.routing import strict_router
from serving.interfaces.rest.studies import Digest
from serving.interfaces.schemas import (
    CompareAnswer,
    InteractionRequest,
    ModelsAnswer,
    RollbackAnswer,
    RollbackRequest,
    Sample,
)

if TYPE_CHECKING:
    from serving.deploy.service import Service


def routes(service: Service) -> APIRouter:
    """All of them, over one service."""
    router = strict_router()
    catalogue, models = service.catalogue, service.models

    @router.get("/models")
    async def served() -> ModelsAnswer:
        """What is in service, what was refused and why, and every change there was."""
        return await to_thread(catalogue.models)

    @router.post("/studies/{digest}/compare", response_model=CompareAnswer)
    async def compare(digest: Digest, request: InteractionRequest) -> Response:
        """What champion and challenger say of a study under an interaction; puts nothing on record."""
        return answered(await to_thread(service.plane.compare, digest, request))

    @router.post("/models/rollback")
    async def rollback(request: RollbackRequest, caller: CallerOf) -> RollbackAnswer:
        """Points the registry's champion back at the version before; replicas follow."""
        return await to_thread(catalogue.rollback, request, caller)

    @router.get("/samples")
    async def samples() -> list[Sample]:
        """Studies to try the page with."""
        return models.champion.atlas.samples

    @router.get("/samples/{index:index}.png", response_class=Response, responses=PNG)
    async def sample(index: int) -> Response:
        """A sample's image, to be uploaded like any other."""
        return png(models.champion.atlas.sample(index), Timing(service.telemetry))

    return router
