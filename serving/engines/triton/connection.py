"""A connection to a Triton server by gRPC, and its errors as ours. Nothing of tritonclient's escapes from here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving.errors import EngineUnavailableError, ServingError

NOT_FOUND = "StatusCode.NOT_FOUND"
UNAVAILABLE = "StatusCode.UNAVAILABLE"
_AWAY = {
    UNAVAILABLE: "does not answer",
    "StatusCode.DEADLINE_EXCEEDED": "did not answer in time",
    "StatusCode.CANCELLED": "cut the call off",
    NOT_FOUND: "does not have what was asked for",
}
# Of Triton's messages; their status is the one of a server that is gone.
_QUEUE_FULL = "maximum queue size"
_UNLOADED = "not at ready state"
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC waits up to two minutes before it tries a server again that was gone; a reader should not.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def connect(url: str) -> InferenceServerClient:
    """A client of its own connection; it connects at the first call, and again by itself.

    Args:
        url: ``host:port`` of the server's gRPC endpoint, in clear text: keep it inside one machine or trusted network.
    """
    # Clients with equal options share one connection, with its waiting time after failures and its end.
    return InferenceServerClient(url, channel_args=[*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)])


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raises:
    EngineUnavailableError: the server is gone, too slow, overloaded, or does not hold the model.
    ServingError: it answered with any other error.
    """
    try:
        yield
    except InferenceServerException as error:
        raise as_serving_error(error, url) from error


def as_serving_error(error: InferenceServerException, url: str) -> ServingError:
    """One sentence with the server's address and what it, or gRPC, said."""
    if (what := _AWAY.get(error.status())) is None:
        return ServingError(f"Triton at {url} failed: {error.message()}")
    if is_overloaded(error):
        what = "is overloaded"
    elif _UNLOADED in error.message():
        what = _AWAY[NOT_FOUND]
    return EngineUnavailableError(f"Triton at {url} {what}: {error.message()}")


def is_overloaded(error: InferenceServerException) -> bool:
    """True if the server refused a request because too many wait; it is there, and the same as before."""
    return error.status() == UNAVAILABLE and _QUEUE_FULL in error.message()


def is_away(error: InferenceServerException) -> bool:
    """True if what was asked is not there to answer, rather than answering with an error."""
    return error.status() in _AWAY
