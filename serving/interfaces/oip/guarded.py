"""The gRPC service for people with a key: as `serving.access.middleware` for HTTP."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol
from uuid import uuid4

from serving.access.addresses import FORWARDED, Addresses
from serving.access.authenticator import Authenticator, asking
from serving.access.roles import Role
from serving.errors import ServingError
from serving.interfaces.oip.grpc import Context, InferenceServicer, refuse
from serving.interfaces.oip.models import InferenceServer
from serving.store.entries import Caller
from serving.telemetry import Telemetry

_OPEN = frozenset({"server_ready"})


class CallContext(Context, Protocol):
    """What is known of a call beside what `InferenceServicer` needs."""

    def invocation_metadata(self) -> Any: ...
    def peer(self) -> str: ...


class GuardedServicer(InferenceServicer):
    """Lets in whoever sends ``authorization: Bearer KEY`` in the metadata of a call; liveness and readiness are open.

    Args:
        server: what is served.
        authenticator: knows who asks.
        telemetry: is told of calls and refusals.
        addresses: tells the client's.
    """

    def __init__(
        self, server: InferenceServer, authenticator: Authenticator, telemetry: Telemetry, addresses: Addresses
    ) -> None:
        super().__init__(server)
        self._addresses = addresses
        self._authenticator = authenticator
        self._telemetry = telemetry

    async def _answer(self, answer: type, context: Any, compute: Callable[..., Any], *arguments: Any) -> Any:
        metrics, started = self._telemetry.metrics, perf_counter()
        metrics.request_began()
        try:
            if compute.__name__ not in _OPEN:
                await self._admit(context)
            return await super()._answer(answer, context, compute, *arguments)
        except ServingError as error:
            metrics.refused(error)
            return refuse(context, error, answer)
        finally:
            status = 200 if context.code() in (None, 0) else 500
            metrics.request_ended(f"grpc {compute.__name__}", "POST", status, perf_counter() - started)

    async def _admit(self, context: CallContext) -> None:
        pairs = [(str(key), str(value)) for key, value in context.invocation_metadata()]
        address = self._addresses.client(context.peer(), [value for key, value in pairs if key == FORWARDED])
        metadata = dict(pairs)
        actor = await self._authenticator.authorize_soon(metadata, Role.READER, address)
        asking.set(Caller(actor.name, metadata.get("x-request-id", uuid4().hex)[:64]))
