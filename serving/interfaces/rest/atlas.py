"""``/v1/atlas`` and ``/v1/reviews``."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Response

from serving.core.timing import Timing
from serving.interfaces.rest.context import PNG, CallerOf, answered, png
from serving.interfaces.rest.routing import strict_router
from serving.interfaces.schemas import (
    AtlasAnswer,
    AtlasEntryAnswer,
    PreviewAnswer,
    PreviewRequest,
    ReviewAnswer,
    ReviewedAnswer,
    ReviewRequest,
    ReviewsAnswer,
    ReviewsRequest,
)

if TYPE_CHECKING:
    from serving.deploy.service import Service


def routes(service: Service) -> APIRouter:
    """All of them, over one service."""
    router = strict_router()
    room = service.atlas

    @router.get("/atlas")
    async def atlas() -> AtlasAnswer:
        """Every prototype with its sources, usage and reliance."""
        return room.atlas()

    @router.post("/atlas/preview")
    async def preview(request: PreviewRequest) -> PreviewAnswer:
        """What pruning these prototypes would do to macro F1 and the pointing game, on the bundle's validation
        studies."""
        return await to_thread(room.preview, request)

    # ``:path`` because concept names may hold a slash, as VinDr-CXR's "Nodule/Mass" does.
    @router.get("/atlas/{concept:path}/{index:index}.png", response_class=Response, responses=PNG)
    async def crop(
        concept: str,
        index: int,
        rank: Annotated[int, Query(ge=0)] = 0,
        with_map: Annotated[bool, Query(alias="map", description="with its similarity map over it")] = False,
    ) -> Response:
        """What a prototype looks like in one of its sources, the nearest by default."""
        timing = Timing(service.telemetry)
        return png(await to_thread(room.crop, concept, index, rank, with_map, timing), timing)

    @router.get("/atlas/{concept:path}/{index:index}", response_model=AtlasEntryAnswer)
    async def entry(concept: str, index: int) -> Response:
        """One prototype: where its map peaks, what it resembles, and on which studies it decides."""
        return answered(await to_thread(room.entry, concept, index))

    @router.post("/atlas/{concept:path}/{index:index}/review", status_code=201)
    async def review(concept: str, index: int, request: ReviewRequest, caller: CallerOf) -> ReviewAnswer:
        """Puts on record whether a prototype should stay."""
        return await to_thread(room.review, concept, index, request, caller)

    @router.post("/reviews", status_code=201)
    async def review_all(request: ReviewsRequest, caller: CallerOf) -> ReviewedAnswer:
        """The same for several prototypes: all, or none."""
        return await to_thread(room.review_all, request, caller)

    @router.get("/reviews")
    async def reviews() -> ReviewsAnswer:
        """The last word on each prototype of the champion, who said what, and what of it counts."""
        return await to_thread(room.reviews)

    return router
