"""What all requests and answers share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """Checked strictly: no unknown keys, nothing coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(BaseModel):
    """Built by the data plane; clients of another version may meet keys that they do not know."""

    model_config = ConfigDict(frozen=True)
