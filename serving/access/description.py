"""What the OpenAPI description says of credentials, by the same rules that requests are let through by."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serving.access.credentials import SESSION_COOKIE
from serving.access.rules import RULES, needed_role

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or a token of the identity provider"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "of a browser that signed in: a secret of its own, no API key and no token",
    },
}
_METHODS = frozenset({"get", "head", "post", "put", "patch", "delete", "options"})


def describe_access(app: FastAPI) -> None:
    """Makes the application's description name the credentials, and which operations need one."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        described = plain()
        described.setdefault("components", {})["securitySchemes"] = _SCHEMES
        for path, operations in described["paths"].items():
            for method in _METHODS & operations.keys():
                if needed_role(RULES, method.upper(), path) is not None:
                    operations[method]["security"] = [{name: []} for name in _SCHEMES]
        return described

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend a description
