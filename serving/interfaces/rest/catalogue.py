"""``/v1/atlas``, ``/v1/reviews``, ``/v1/models`` and ``/v1/samples``."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Response
from starlette.convertors import IntegerConvertor, register_url_convertor

from serving.core.timing import Timing
from serving.interfaces.rest.context import PNG, CallerOf, png
from serving.interfaces.rest.routing import strict_router
from serving.interfaces.schemas import AtlasAnswer, ModelsAnswer, ReviewAnswer, ReviewRequest, ReviewsAnswer, Sample

if TYPE_CHECKING:
    from serving.deploy.service import Service


class _Index(IntegerConvertor):
    """A number that can be a place in a list: Starlette's own convertor fails at one of thousands of digits."""

    regex = "[0-9]{1,9}"


register_url_convertor("index", _Index())


def routes(service: Service) -> APIRouter:
    """All of them, over one service."""
    router = strict_router()
    catalogue, models = service.catalogue, service.models

    @router.get("/atlas")
    async def atlas() -> AtlasAnswer:
        """Every prototype with its sources, usage and reliance."""
        return catalogue.atlas()

    @router.get("/atlas/{concept:path}/{index:index}.png", response_class=Response, responses=PNG)
    async def crop(concept: str, index: int, rank: Annotated[int, Query(ge=0)] = 0) -> Response:
        """What a prototype looks like in one of its sources, the nearest by default."""
        timing = Timing(service.telemetry)
        data = await to_thread(models.champion.atlas.crop, concept, index, rank)
        timing.lap("draw")
        return png(data, timing)

    @router.post("/atlas/{concept:path}/{index:index}/review", status_code=201)
    async def review(concept: str, index: int, request: ReviewRequest, caller: CallerOf) -> ReviewAnswer:
        """Puts on record whether a prototype should stay; the next training reads it."""
        return await to_thread(catalogue.review, concept, index, request, caller)

    @router.get("/reviews")
    async def reviews() -> ReviewsAnswer:
        """The last word on each prototype of the champion."""
        return await to_thread(catalogue.reviews)

    @router.get("/models")
    async def served() -> ModelsAnswer:
        """What is in service, what was refused and why, and every change there was."""
        return await to_thread(catalogue.models)

    @router.get("/samples")
    async def samples() -> list[Sample]:
        """Studies to try the page with."""
        return models.champion.atlas.samples

    @router.get("/samples/{index:index}.png", response_class=Response, responses=PNG)
    async def sample(index: int) -> Response:
        """A sample's image, to be uploaded like any other."""
        return png(models.champion.atlas.sample(index), Timing(service.telemetry))

    return router
