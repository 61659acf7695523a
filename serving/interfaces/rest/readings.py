"""``/v1/me``, ``/v1/worklist`` and what readers sign."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Response

from serving.interfaces.rest.context import ActorOf, CallerOf, answered, sees_all
from serving.interfaces.rest.routing import strict_router
from serving.interfaces.rest.studies import Digest
from serving.interfaces.schemas import (
    MOST_SKIPPED,
    FeedbackCount,
    MeAnswer,
    Order,
    Progress,
    ReadingAnswer,
    ReadingRequest,
    ReadingsAnswer,
    SkipAnswer,
    SkipRequest,
    WorklistAnswer,
)
from serving.store.worklist import WorklistQuery

if TYPE_CHECKING:
    from serving.deploy.service import Service

MOST_ENTRIES = 2**31 - 1  # of a ledger


def routes(service: Service) -> APIRouter:
    """All of them, over one service."""
    router = strict_router()
    readings = service.readings

    @router.get("/me")
    async def me(actor: ActorOf) -> MeAnswer:
        """Who asks, and what they may do."""
        return MeAnswer(actor=actor.name, role=actor.role.value)

    @router.get("/worklist")
    async def worklist(
        actor: ActorOf,
        order: Order = "margin",
        progress: Progress = "all",
        asks_for_help: Annotated[bool | None, Query(alias="help")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        offset: Annotated[int, Query(ge=0, le=MOST_SKIPPED)] = 0,
        after: Annotated[str | None, Query(max_length=200)] = None,
    ) -> WorklistAnswer:
        """Studies that wait for a reader, the least sure, the most changeable or the newest first; from ``after`` on,
        which is ``next_after`` of the page before, or from the study with the number ``offset``."""
        query = WorklistQuery(order, progress, asks_for_help, limit, offset, after)
        return await to_thread(readings.worklist, query, actor.name, sees_all(actor))

    @router.post("/studies/{digest}/readings", status_code=201, response_model=ReadingAnswer)
    async def sign(digest: Digest, request: ReadingRequest, caller: CallerOf) -> Response:
        """Signs a reading: the corrections stand, or the study is signed as it was predicted."""
        return answered(await to_thread(readings.sign, digest, request, caller), 201)

    @router.get("/studies/{digest}/readings")
    async def signed(digest: Digest, actor: ActorOf) -> ReadingsAnswer:
        """The last reading of each reader, and how they agree; the others' once one has signed one's own."""
        return await to_thread(readings.readings, digest, actor.name, sees_all(actor))

    @router.post("/studies/{digest}/skips", status_code=201)
    async def skip(digest: Digest, request: SkipRequest, caller: CallerOf) -> SkipAnswer:
        """Says that one does not read this study."""
        return await to_thread(readings.skip, digest, request, caller)

    @router.get("/feedback")
    async def feedback(after: Annotated[int, Query(ge=0, le=MOST_ENTRIES)] = 0) -> FeedbackCount:
        """How much was signed and reviewed since a ledger entry: what decides when to train again."""
        return await to_thread(readings.feedback, after)

    return router
