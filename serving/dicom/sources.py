"""Which of the DICOM images that a study came as a document is about.

Images with the same pixels are one study: the same exposure under two instance UIDs, or sent twice with other
attributes. None of them takes another's place, so whoever wants a document says which one it is about, unless there is
only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csr.data.orientation import AS_STORED
from serving.dicom.deidentify import DicomSource
from serving.errors import AlteredStudyError, FrameError, NoSourceError, SeveralSourcesError, UnknownSourceError
from serving.interfaces.schemas import ImageSize, InteractionRequest
from serving.interfaces.schemas.dicom import SourceAnswer
from serving.store.database import Database
from serving.store.studies import load_sources

_NAMED = 10


@dataclass(frozen=True)
class Numbered:
    """A source, and the number by which requests name it."""

    number: int
    added_at: str
    source: DicomSource


def sources_of(database: Database, digest: str) -> list[Numbered]:
    """A study's, in the order of their arrival.

    Raises:
        AlteredStudyError: one of them is not what was added.
        StoreError: the database does not answer.
    """
    try:
        return [
            Numbered(each.number, each.added_at, DicomSource.from_json(each.source))
            for each in load_sources(database, digest)
        ]
    except ValueError:
        raise AlteredStudyError(
            f"study {digest[:12]}: the store does not hold what was added (a DICOM source cannot be read); tell who "
            "runs this server"
        ) from None


def chosen(sources: Sequence[Numbered], number: int | None) -> DicomSource:
    """The one that a request names, or the only one.

    Raises:
        NoSourceError: there is none.
        SeveralSourcesError: there are several, and it names none.
        UnknownSourceError: it names one that there is not.
    """
    if not sources:
        raise NoSourceError("the study was not added as a DICOM image, so no DICOM document can be about it")
    there = "; ".join(_described(each) for each in sources[:_NAMED])
    there += f"; and {len(sources) - _NAMED} more" if len(sources) > _NAMED else ""
    if number is None:
        if len(sources) > 1:
            raise SeveralSourcesError(f"the study came as {len(sources)} DICOM images; name one as source: {there}")
        return sources[0].source
    for each in sources:
        if each.number == number:
            return each.source
    raise UnknownSourceError(f"source: {number} is none of the study's: {there}")


def framed(request: InteractionRequest, source: DicomSource) -> InteractionRequest:
    """The interaction as one that was drawn on this source's image, in whose pixels a document places its findings.

    The same pixels may have been uploaded in another size; the data plane refuses the request then.

    Raises:
        FrameError: the request says that it was drawn on an image of another size.
    """
    if source.rows is None or source.columns is None:
        return request
    own = ImageSize(width=source.columns, height=source.rows, turn=source.turn or AS_STORED)
    if request.image is not None and not request.image.fits(own):
        raise FrameError(
            f"image: the boxes were drawn on another size than the source's {own.width}×{own.height}, or it was turned "
            "otherwise"
        )
    return request.model_copy(update={"image": own})


def listed(given: Numbered) -> SourceAnswer:
    """As answers show it."""
    about = given.source
    return SourceAnswer(
        number=given.number,
        added_at=given.added_at,
        study_uid=about.study_uid,
        series_uid=about.series_uid,
        instance_uid=about.instance_uid,
        modality=about.modality,
        rows=about.rows,
        columns=about.columns,
    )


def _described(given: Numbered) -> str:
    about = given.source
    kind = f"{about.modality}, " if about.modality else ""
    return f"{given.number} ({kind}{about.columns}×{about.rows}, instance {about.instance_uid}, since {given.added_at})"
