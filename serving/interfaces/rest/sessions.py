"""``/v1/sessions``, for administrators."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from fastapi import Path as InPath

from serving.access.sessions import Session
from serving.interfaces.rest.routing import strict_router
from serving.interfaces.schemas import SessionsAnswer, SignedIn

if TYPE_CHECKING:
    from serving.deploy.service import Service

_Id = Annotated[str, InPath(description="of a session that was listed", max_length=64)]


def routes(service: Service) -> APIRouter:
    """All of them, over one service."""
    router = strict_router()
    sessions = service.authenticator.sessions

    @router.get("/sessions")
    async def listed() -> SessionsAnswer:
        """Browsers that are signed in, for administrators."""
        return SessionsAnswer(sessions=[_answer(each) for each in await to_thread(sessions.list)])

    @router.delete("/sessions/{session}")
    async def ended(session: _Id) -> SignedIn:
        """Signs a browser out, for administrators: here at once, at other replicas within seconds."""
        return _answer(await to_thread(sessions.end_by_id, session))

    return router


def _answer(session: Session) -> SignedIn:
    actor = session.actor
    return SignedIn(
        id=session.id,
        actor=actor.name,
        role=actor.role.value,
        opened_at=session.opened_at,
        used_at=session.used_at,
        expires_at=session.expires_at,
    )
