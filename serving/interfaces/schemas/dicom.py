"""Requests and answers about DICOM."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serving.interfaces.schemas.answers import Record, Timings
from serving.interfaces.schemas.base import Answer, Request
from serving.interfaces.schemas.requests import InteractionRequest

MAX_PICTURES = 16
Uid = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]
NodeName = Annotated[str, Field(max_length=64)]


class InstanceRef(Request):
    """An image in an archive, by its own UIDs, which this server does not keep."""

    study_uid: Uid
    series_uid: Uid
    instance_uid: Uid


class FetchRequest(Request):
    """An image to be fetched from an archive that the configuration names."""

    node: NodeName
    instance: InstanceRef


SourceNumber = Annotated[int, Field(ge=1, le=1_000_000)]
ReadingNumber = Annotated[int, Field(ge=1, le=2**53)]


class DocumentRequest(Request):
    """What a document is about: a study under an interaction, as it was predicted, or as a reader signed it.

    Args:
        interaction: what the reader says.
        reading: the number of the record of a signed reading that counts, in place of an interaction.
        source: of the DICOM images that the study came as, which one; it must be said only where there are several.
    """

    interaction: InteractionRequest = InteractionRequest()
    reading: ReadingNumber | None = None
    source: SourceNumber | None = None


class SendRequest(Request):
    """A report, and pictures of some concepts' maps, to be filed beside the image that the study came from.

    Args:
        node: the archive, as the configuration names it.
        original: the image, by its own UIDs. It must be the one that the study came from.
        interaction, reading: see `DocumentRequest`.
        pictures: concepts whose maps are sent as Secondary Captures beside the report.
        source: see `DocumentRequest`; here it must be said only where several are of the original.
    """

    node: NodeName
    original: InstanceRef
    interaction: InteractionRequest = InteractionRequest()
    reading: ReadingNumber | None = None
    pictures: list[Annotated[str, Field(max_length=200)]] = Field(default=[], max_length=MAX_PICTURES)
    source: SourceNumber | None = None


class SourceAnswer(Answer):
    """A DICOM image that a study came as, under its pseudonym. ``number``: by which a request names it."""

    number: int
    added_at: str
    study_uid: str
    series_uid: str
    instance_uid: str
    modality: str | None
    rows: int | None
    columns: int | None


class SourcesAnswer(Answer):
    """All of them, in the order of their arrival; none if the study came as other files only."""

    digest: str
    sources: list[SourceAnswer]


class FoundInstance(Answer):
    """An image in an archive."""

    study_uid: str
    series_uid: str
    instance_uid: str
    modality: str
    study_date: str


class SearchAnswer(Answer):
    """What an archive has; nothing of it is kept here."""

    instances: list[FoundInstance]
    timings_ms: Timings


class NodesAnswer(Answer):
    """The archives that the configuration names."""

    nodes: list[str]


class SendAnswer(Answer):
    """What the archive took: the report first."""

    instance_uids: list[str]
    record: Record
    timings_ms: Timings
