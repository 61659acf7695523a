"""A client of the reading API, without torch: `Client` waits, `AsyncClient` is awaited; both give typed results.

    with Client("http://127.0.0.1:8000", key) as client:
        study = client.add_study(Path("chest.dcm"))
        answer = client.interact(study.digest, InteractionRequest(confirmed=["nodule"]))
        print(answer.changes.summary)

A request that got no answer, or was told to come back, is sent again a few times, waiting longer each time. That is
safe: whatever is put on record carries an idempotency key, so a repetition is recorded once. A rollback is sent once.
"""

from serving.client.asynchronous import AsyncClient
from serving.client.calls import ClientError, ServerUnreachableError
from serving.client.synchronous import Client
from serving.interfaces.schemas import (
    Box,
    InteractionRequest,
    NamedReview,
    PreviewRequest,
    PrototypeName,
    ReadingRequest,
    Region,
    ReviewRequest,
    ReviewsRequest,
)

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "ClientError",
    "InteractionRequest",
    "NamedReview",
    "PreviewRequest",
    "PrototypeName",
    "ReadingRequest",
    "Region",
    "ReviewRequest",
    "ReviewsRequest",
    "ServerUnreachableError",
]
