"""The models in service: what they are, what they say side by side, and the way back."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, ConfigDict, Field

from csr.bundle.format import Manifest
from serving.interfaces.schemas.answers import ModelRef, Record, Timings
from serving.interfaces.schemas.base import Answer, Request
from serving.interfaces.schemas.prediction import Prediction


class RollbackRequest(Request):
    """Why the champion goes back; the record keeps it."""

    reason: str = Field(pattern=r"\S", max_length=1000)


class ServedModel(Answer):
    """A bundle in service.

    ``live`` of its ``prototypes`` are not pruned; ``mb`` is the size of its files.
    """

    role: Literal["champion", "challenger"]
    version: str
    digest: str
    since: str
    manifest: Manifest
    prototypes: int
    live: int
    mb: float


class ModelChange(Answer):
    """A change of what this server answers with."""

    at: str
    role: Literal["champion", "challenger"]
    version: str
    digest: str
    previous_digest: str
    record: Record


class ModelsAnswer(Answer):
    """What is in service, what was refused lately and why, and all changes, oldest first."""

    models: list[ServedModel]
    refused: dict[str, str]
    history: list[ModelChange]
    timings_ms: Timings


class Compared(Answer):
    """What one model says of a study without and with an interaction."""

    model: ModelRef
    before: Prediction
    after: Prediction


class CompareAnswer(Answer):
    """Champion and challenger on one study, side by side; ``challenger`` is None where there is none on trial."""

    digest: str
    champion: Compared
    challenger: Compared | None
    timings_ms: Timings


class RollbackAnswer(Answer):
    """The registry's alias moved back: versions ``source`` to ``target``. Replicas follow within seconds."""

    source: str = Field(validation_alias=AliasChoices("source", "from"), serialization_alias="from")
    target: str = Field(validation_alias=AliasChoices("target", "to"), serialization_alias="to")
    at: str

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)
