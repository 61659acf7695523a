"""Bodies are of the kind that a route reads, and say so."""

from __future__ import annotations

from fnmatch import fnmatchcase

from starlette.datastructures import Headers

from serving.errors import UnsupportedMediaTypeError

_SHOWN = 100  # characters


def require_content_type(headers: Headers, *kinds: str) -> None:
    """A request without a body needs none.

    Args:
        headers: of the request.
        kinds: what is read, such as ``application/json``; a star stands for anything.

    Raises:
        UnsupportedMediaTypeError: it has a body that is something else, or does not say what it is.
    """
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    given = headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if not any(fnmatchcase(kind, each) for each in kinds):
        said = repr(given[:_SHOWN]) if given else "missing"
        raise UnsupportedMediaTypeError(f"Content-Type: is {said}; what is read here is {kinds[0]}")
